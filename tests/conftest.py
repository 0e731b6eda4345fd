"""What the tests share: tiny randomly initialized models, and a second opinion on the drawn world.

The models are built once a session: a test that changes one deep-copies it.
"""
import colorsys
import copy
import dataclasses
import os
import re

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from peftkit.data.scenes import Thing
from peftkit.data.sprites import atlas
from peftkit.data.vocabulary import COLORS, HOME_OF_SHAPE, PLACES, SHAPES, TASTE_OF_COLOR, WORDS
from peftkit.zoo.processors import CHAT_TEMPLATE, build_processor
from peftkit.zoo.recipes import RECIPES, model_config

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
datasets.disable_progress_bars()
torch.set_num_threads(1)

TOKENS = 10  # of every text in `.inputs`
VOCABULARY = 101


def _seeded(build):
    torch.manual_seed(0)
    return build().eval()


def _tiny(name: str) -> SimpleNamespace:
    recipe = dataclasses.replace(RECIPES[name], layers=2)
    model = _seeded(lambda: transformers.AutoModelForImageTextToText.from_config(model_config(recipe)))
    return SimpleNamespace(model=model, processor=build_processor(recipe), recipe=recipe)


def _text(*, width=32, **changes) -> dict:
    sizes = dict(hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return sizes | changes


def _ids(*images: int) -> torch.Tensor:
    """(1, TOKENS) ids: the given image tokens first, then words."""
    words = 3 + torch.arange(TOKENS - len(images))
    return torch.cat([torch.tensor(images, dtype=torch.long), words])[None]


@pytest.fixture(scope="session")
def tiny_llava():
    """The bundled LLaVA's architecture with 2 language layers: .model (seed 0, eval mode), .processor, .recipe."""
    return _tiny("tiny-llava-s")


@pytest.fixture(scope="session")
def tiny_idefics2():
    """The bundled Idefics2's architecture with 2 language layers: .model (seed 0, eval mode), .processor, .recipe."""
    return _tiny("tiny-idefics2")


@pytest.fixture(scope="session")
def qwen2_vl():
    """Qwen2-VL of width 32: .model, .inputs of one forward pass (a 4 x 4 grid of patches, merged to 4 tokens)."""
    image_token = 97
    config = transformers.Qwen2VLConfig(
        text_config=_text(num_key_value_heads=2, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2],
                                                                  "rope_theta": 1e4}),
        vision_config=dict(depth=2, embed_dim=16, hidden_size=32, num_heads=2, patch_size=4, mlp_ratio=2),
        image_token_id=image_token, video_token_id=98, vision_start_token_id=99, vision_end_token_id=100,
        tie_word_embeddings=False)
    model = _seeded(lambda: transformers.Qwen2VLForConditionalGeneration(config))
    ids = _ids(*[image_token] * 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
              "mm_token_type_ids": (ids == image_token).long(),
              "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0)),
              "image_grid_thw": torch.tensor([[1, 4, 4]])}
    return SimpleNamespace(model=model, inputs=inputs)


@pytest.fixture(scope="session")
def paligemma():
    """PaliGemma of width 32: .model, .inputs of one forward pass (4 image tokens)."""
    image_token = 100
    config = transformers.PaliGemmaConfig(
        text_config=_text(model_type="gemma", num_key_value_heads=1, head_dim=8),
        vision_config=dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                           num_attention_heads=2, image_size=16, patch_size=8, projection_dim=32,
                           vision_use_head=False),
        projection_dim=32, image_token_id=image_token)
    model = _seeded(lambda: transformers.PaliGemmaForConditionalGeneration(config))
    ids = _ids(*[image_token] * 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids),
              "pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    return SimpleNamespace(model=model, inputs=inputs)


@pytest.fixture(scope="session")
def blip():
    """BLIP for question answering of width 32: .model, .inputs of one forward pass (with an answer as labels)."""
    config = transformers.BlipConfig(
        text_config=_text(encoder_hidden_size=32, max_position_embeddings=64, sep_token_id=2, projection_dim=8),
        vision_config=dict(hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                           image_size=16, patch_size=8, projection_dim=8),
        projection_dim=8, image_text_hidden_size=8)
    model = _seeded(lambda: transformers.BlipForQuestionAnswering(config))
    ids = _ids()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": _ids()[:, :4],
              "pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    return SimpleNamespace(model=model, inputs=inputs)


@pytest.fixture(scope="session")
def t5():
    """T5 1.1 of width 32 (gated, tied head, one more decoder layer than encoder layers): .model, .inputs."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=6, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4,
        dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1)
    model = _seeded(lambda: transformers.T5ForConditionalGeneration(config))
    ids = _ids()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": _ids()[:, :4]}
    return SimpleNamespace(model=model, inputs=inputs)


# ---- the drawn world, read by other means than it was made -----------------------------------------------------------

HUES = {"red": 0, "orange": 39, "yellow": 60, "green": 120, "blue": 240, "purple": 300}  # degrees, of the CSS colors


def _ink(cell: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coverage mask (256,) of a cell, up to scale, and the pixel that differs most from the ground."""
    difference = (cell.reshape(-1, 3) - ground).astype(float)
    strongest = difference[np.square(difference).sum(1).argmax()]
    return difference @ strongest, ground + strongest


@pytest.fixture(scope="session")
def read_scene():
    """A function from a picture (48, 48, 3) uint8 to the things on it, from its pixels alone; black rows are empty.

    The color is the nearest hue, the name is that of the sprite whose mask correlates best.
    """
    sheet = atlas()
    masks = sheet.masks.reshape(len(sheet.masks), -1)
    masks = masks / np.maximum(np.linalg.norm(masks, axis=1, keepdims=True), 1e-9)
    what = {int(n): ("shape", SHAPES[k]) for k, row in enumerate(sheet.shapes) for n in row}
    what |= {int(n): ("word", WORDS[k]) for k, row in enumerate(sheet.words) for n in row}
    what |= {int(n): ("number", str(k)) for split in sheet.digits.values() for k, row in enumerate(split) for n in row}

    def read(picture: np.ndarray) -> list[Thing]:
        pixels, times = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        ground = pixels[np.where(pixels.any(1), times, 0).argmax()].astype(int)
        things = []
        for number, place in enumerate(PLACES):
            y, x = 16 * (number // 3), 16 * (number % 3)
            mask, ink = _ink(picture[y:y + 16, x:x + 16].astype(int), ground)
            if mask.max() < 50 or not picture[y:y + 16].any():
                continue
            hue = 360 * colorsys.rgb_to_hsv(*ink / 255)[0]
            color = min(HUES, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))
            things.append(Thing(*what[int((masks @ mask).argmax())], color, place))
        return things

    return read


def _one(values: list) -> str:
    """The only value, "unanswerable" for none, an assertion for several."""
    assert len(values) < 2, values
    return values[0] if values else "unanswerable"


def _most(names: list[str]) -> str:
    best = max(names.count(name) for name in names)
    return _one([name for name in sorted(set(names)) if names.count(name) == best])


def _called(things: list[Thing], noun: str) -> list[Thing]:
    return [t for t in things if noun in (t.name if t.kind == "shape" else None, t.kind)]


_PLACE, _COLOR = f"(?P<place>{'|'.join(PLACES)})", f"(?P<color>{'|'.join(COLORS)})"
ORACLE = {
    rf"what color is at the {_PLACE} \?": lambda t, m: _one([x.color for x in t if x.place == m["place"]]),
    rf"what (?P<kind>\w+) is at the {_PLACE} \?":
        lambda t, m: _one([x.name for x in t if x.place == m["place"] and x.kind == m["kind"]]),
    r"what color is the (?P<noun>\w+) \?": lambda t, m: _one([x.color for x in _called(t, m["noun"])]),
    r"what (?P<kind>\w+) is written \?": lambda t, m: _one([x.name for x in t if x.kind == m["kind"]]),
    rf"what (?P<kind>\w+) is {_COLOR} \?":
        lambda t, m: _one([x.name if x.kind == m["kind"] else None for x in t if x.color == m["color"]]),
    r"where is the (?P<noun>\w+) \?": lambda t, m: _one([x.place for x in _called(t, m["noun"])]),
    rf"is there a {_COLOR} (?P<noun>\w+) \?":
        lambda t, m: "yes" if any((x.color, x.name) == (m["color"], m["noun"]) for x in t) else "no",
    rf"what is the home of the {_COLOR} thing \?":
        lambda t, m: HOME_OF_SHAPE[_one([x.name for x in t if x.color == m["color"]])],
    rf"what is the home of the thing at the {_PLACE} \?":
        lambda t, m: HOME_OF_SHAPE[_one([x.name for x in t if x.place == m["place"]])],
    r"what is the taste of the (?P<noun>\w+) \?":
        lambda t, m: TASTE_OF_COLOR[_one([x.color for x in _called(t, m["noun"])])],
    r"what color are most (?P<plural>\w+) \?":
        lambda t, m: _most([x.color for x in t if x.name in (m["plural"][:-1], m["plural"][:-2])]),
    r"what (?P<key>shape|color) is there most \?":
        lambda t, m: _most([x.name if m["key"] == "shape" else x.color for x in t]),
}


@pytest.fixture(scope="session")
def oracle():
    """A function from a question's words and the things of a scene to the right answer: a second opinion.

    "unanswerable" where nothing is there that the question names; an AssertionError where the question is ambiguous.
    """
    def answer(text: str, things: list[Thing]) -> str:
        matches = [(derive, match) for pattern, derive in ORACLE.items() if (match := re.fullmatch(pattern, text))]
        assert matches, f"no pattern for {text!r}"
        derive, match = matches[0]
        return derive(things, match)

    return answer


# ---- the matrix of methods and architectures -------------------------------------------------------------------------

MATRIX = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def matrix(request):
    """A function (table, row, column, text, notes) that fills a cell of what pytest prints at the end of the run."""
    tables = request.config.stash.setdefault(MATRIX, {})

    def fill(table: str, row: str, column: str, text: str, notes: list[str] = ()) -> None:
        tables.setdefault(table, {})[row, column] = text, notes

    return fill


def pytest_terminal_summary(terminalreporter, config):
    numbers: dict[str, int] = {}  # of the notes
    for table, cells in config.stash.get(MATRIX, {}).items():
        shown = {place: " ".join([text, *(f"[{numbers.setdefault(note, len(numbers) + 1)}]" for note in notes)])
                 for place, (text, notes) in cells.items()}
        rows, columns = (list(dict.fromkeys(place[axis] for place in shown)) for axis in (0, 1))
        lines = [[table, *columns], *([row, *(shown.get((row, column), "") for column in columns)] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        terminalreporter.section("methods and architectures")
        for line in lines:
            terminalreporter.write_line("  ".join(map(str.ljust, line, widths)).rstrip())
    for note, number in numbers.items():
        terminalreporter.write_line(f"[{number}] {note}")


# ---- processors of other makers --------------------------------------------------------------------------------------

class _WithoutVideos(transformers.Qwen2VLProcessor):
    """Qwen2-VL's own processor but for videos, which it cannot read without torchvision."""

    def check_argument_for_proper_class(self, name, argument):
        return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)


def _with_words_of(processor, model) -> SimpleNamespace:
    """A model like the given one that knows the processor's tokens."""
    config = copy.deepcopy(model.config)
    config.text_config.vocab_size = len(processor.tokenizer)
    config.image_token_id = processor.image_token_id
    return SimpleNamespace(model=_seeded(lambda: type(model)(config)), processor=processor)


@pytest.fixture(scope="session")
def tiny_qwen2_vl(qwen2_vl):
    """qwen2_vl for the drawn world: .model, .processor (pictures of at most 24 x 24 pixels, or 9 tokens)."""
    words = build_processor(RECIPES["tiny-llava-s"]).tokenizer
    fences = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
    words.add_special_tokens({"additional_special_tokens": fences})
    pictures = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 24 * 24})
    template = CHAT_TEMPLATE.replace("<image>", " ".join(fences[:3]))
    return _with_words_of(_WithoutVideos(pictures, words, None, chat_template=template), qwen2_vl.model)


@pytest.fixture(scope="session")
def tiny_paligemma(paligemma):
    """paligemma for the drawn world: .model, .processor (4 image tokens)."""
    words = build_processor(RECIPES["tiny-llava-s"]).tokenizer
    words.add_tokens("\n")
    pictures = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    pictures.image_seq_length = 4
    return _with_words_of(transformers.PaliGemmaProcessor(pictures, words), paligemma.model)
