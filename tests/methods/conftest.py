"""Six architectures behind one set of questions: what goes in, the logits, the loss, and greedy decoding by hand."""
import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import Tensor, nn

from peftkit.methods import leading_tokens

IGNORE = -100  # label of a position without a loss
WORDS = 40  # ids from here on are words in every vocabulary
LONGEST = 16  # words of a row, at most
BASES = {"llava": "tiny_llava", "idefics2": "tiny_idefics2", "qwen2_vl": "qwen2_vl", "paligemma": "paligemma",
         "t5": "t5", "blip": "blip"}


@dataclass(frozen=True)
class Case:
    """An architecture. base: the model, never changed; image: its image token; image_tokens: how many stand for a
    picture; picture: a function from a row of noise (3, 48, 48) to the model's picture tensors, one a row."""

    name: str
    base: nn.Module
    image: int = -1
    image_tokens: int = 0
    pictures: Callable[[int], dict[str, Tensor]] = lambda rows: {}

    @property
    def decodes(self) -> bool:
        """Whether a decoder of its own writes the answer."""
        return self.name in ("t5", "blip")

    def inputs(self, *lengths: int, side: str = "right", seed: int = 0, positions: bool = False) -> dict[str, Tensor]:
        """Rows of a picture and `length` words, padded on a side; the question's positions, if asked for."""
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.cat([torch.full((self.image_tokens,), self.image),
                           torch.randint(WORDS, 90, (LONGEST,), generator=generator)[:length]])
                for length in lengths]
        pad = lambda values: nn.utils.rnn.pad_sequence(values, batch_first=True, padding_side=side)
        ids, mask = pad(rows), pad([torch.ones_like(row) for row in rows])
        made = {"input_ids": ids, "attention_mask": mask, **self.pictures(len(rows))}
        if self.decodes:
            made["decoder_input_ids"] = torch.randint(WORDS, 90, (len(rows), 4), generator=generator)
        if self.name == "qwen2_vl":
            made["mm_token_type_ids"] = (ids == self.image).long()
        if self.name == "paligemma":
            made["token_type_ids"] = torch.zeros_like(ids)
        if positions and self.name in ("llava", "idefics2", "paligemma"):  # the others count by the mask, or not at all
            made["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + (self.name == "paligemma")
        return made

    def logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """(rows, length, vocabulary), of the words of the decoder if there is one, without a prompt's positions."""
        if self.name != "blip":
            return model(**inputs).logits[:, leading_tokens(model):]
        seen = []  # BLIP keeps its decoder's logits to itself
        watching = model.get_submodule(_decoder_path(model)).register_forward_hook(
            lambda module, args, output: seen.append(output.logits))
        try:
            model(**inputs)
        finally:
            watching.remove()
        return seen[0]

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The model's own loss on words."""
        inputs = dict(inputs)
        labels = inputs.pop("decoder_input_ids") if self.decodes else (
            inputs["input_ids"].where(inputs["input_ids"] >= WORDS, IGNORE))
        return model(**inputs, labels=labels).loss

    def generated(self, model: nn.Module, inputs: dict[str, Tensor], tokens: int) -> Tensor:
        """Greedy `generate`: (rows, tokens) of what is new."""
        inputs = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
        return model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[:, -tokens:]

    def decoded(self, model: nn.Module, inputs: dict[str, Tensor], tokens: int) -> Tensor:
        """The same by repeated forward passes over the whole sequence."""
        inputs, rows = dict(inputs), len(inputs["input_ids"])
        if self.decodes:
            start = model.config.decoder_start_token_id if self.name == "t5" else model.config.text_config.bos_token_id
            inputs["decoder_input_ids"] = torch.full((rows, 1), start)
        longer = {"decoder_input_ids": None} if self.decodes else {
            "input_ids": None, "attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 1}
        new = []
        for _ in range(tokens):
            new.append(self.logits(model, inputs)[:, -1].argmax(-1))
            for name in longer.keys() & inputs.keys():
                value = new[-1] if longer[name] is None else torch.full((rows,), longer[name])
                inputs[name] = torch.cat([inputs[name], value[:, None]], dim=1)
        return torch.stack(new, dim=1)


def _decoder_path(model: nn.Module) -> str:
    return next(name for name, _ in model.named_modules() if name.rpartition(".")[2] == "text_decoder")


def _changed(config, **values):
    config = copy.deepcopy(config)
    for name, value in values.items():
        setattr(config, name, value)
    return config


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


PICTURES = {
    "llava": lambda rows: {"pixel_values": _noise(rows, 3, 48, 48)},
    "idefics2": lambda rows: {"pixel_values": _noise(rows, 1, 3, 48, 48)},
    "qwen2_vl": lambda rows: {"pixel_values": _noise(16 * rows, 96), "image_grid_thw": torch.tensor([[1, 4, 4]] * rows)},
    "paligemma": lambda rows: {"pixel_values": _noise(rows, 3, 16, 16)},
    "blip": lambda rows: {"pixel_values": _noise(rows, 3, 16, 16)},
    "t5": lambda rows: {},
}
IMAGE_TOKENS = {"llava": 9, "idefics2": 9, "qwen2_vl": 4, "paligemma": 4, "t5": 0, "blip": 0}


@pytest.fixture(scope="session", params=BASES)
def case(request):
    """Each architecture in turn, a copy of its tiny model that never ends a sentence."""
    name = request.param
    base = copy.deepcopy(request.getfixturevalue(BASES[name]).model)
    if name == "t5":  # in transformers 5.23 its cache has as many layers as the encoder, so the decoder has fewer
        base = transformers.T5ForConditionalGeneration(_changed(base.config, num_layers=3, num_decoder_layers=2)).eval()
    base.generation_config.eos_token_id = None
    if name == "blip":  # its `generate` reads it here
        base.config.text_config.sep_token_id = -1
    return Case(name, base, getattr(base.config, "image_token_id", -1), IMAGE_TOKENS[name], PICTURES[name])
