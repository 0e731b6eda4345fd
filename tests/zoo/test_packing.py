"""A pack is as good as its samples one by one: the same loss and the same gradients."""
import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from peftkit.data.encoded import IGNORE
from peftkit.data.scenes import sample_scenes
from peftkit.zoo.mix import caption_segments, scene_in_words, seen_segments
from peftkit.data.packing import pack
from peftkit.zoo.loss import packed_loss
from peftkit.zoo.stages import Pretraining

SCENES = sample_scenes(np.random.default_rng(5), 2, "train")
DIETS = (seen_segments, caption_segments)  # of the first and the second scene: rows of different length


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_idefics2"])
def tiny(request):
    return request.getfixturevalue(request.param)


def ids(tiny, text: str) -> list[int]:
    return tiny.processor.tokenizer(text, add_special_tokens=False).input_ids


def segments_of(tiny):
    """Of each scene: (prompt ids, answer ids with the end token)."""
    rng, end = np.random.default_rng(6), [tiny.processor.tokenizer.eos_token_id]
    diets = [diet(SCENES.things(i), rng) for i, diet in enumerate(DIETS)]
    return [[(ids(tiny, s.prompt), ids(tiny, s.answer) + end) for s in segments] for segments in diets]


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(first, second):
    """(loss, gradients) agree to 1e-5."""
    assert abs(first[0].item() - second[0].item()) < 1e-5
    assert set(first[1]) == set(second[1])
    for name, gradient in first[1].items():
        assert torch.allclose(gradient, second[1][name], atol=1e-5, rtol=1e-4), name


def one_by_one(model, prefixes, segments, **pictures_of_row):
    """Mean loss over all answer tokens, each sample in a plain forward pass of its own."""
    total, tokens = 0.0, 0
    for row, parts in enumerate(segments):
        pictures = {name: value[row:row + 1] for name, value in pictures_of_row.items()}
        for prompt, answer in parts:
            sample = torch.tensor([prefixes[row] + prompt + answer])
            logits = model(input_ids=sample, attention_mask=torch.ones_like(sample), **pictures).logits[0]
            total = total + F.cross_entropy(logits[-len(answer) - 1:-1], torch.tensor(answer), reduction="sum")
            tokens += len(answer)
    return total / tokens


def test_packed_pictures_equal_separate_samples(tiny):
    model, segments = copy.deepcopy(tiny.model), segments_of(tiny)
    inputs = tiny.processor(images=[[Image.fromarray(p)] for p in SCENES.draw()], text=["user <image>"] * 2,
                            return_tensors="pt")
    prefixes = inputs.pop("input_ids").tolist()
    inputs.pop("attention_mask")
    features = torch.stack(list(model.get_image_features(**inputs).pooler_output))
    loss = packed_loss(model, pack(prefixes, segments, pad=0), features)
    packed = loss, gradients(model, loss)
    loss = one_by_one(model, prefixes, segments, **inputs)
    assert_equal(packed, (loss, gradients(model, loss)))
    assert any("vision" in name for name in packed[1])


def test_packed_text_equals_separate_samples(tiny):
    model, segments = copy.deepcopy(tiny.model), segments_of(tiny)
    prefixes = [ids(tiny, f"<s> user {scene_in_words(SCENES.things(i))}") for i in range(2)]
    loss = packed_loss(model, pack(prefixes, segments, pad=0))
    packed = loss, gradients(model, loss)
    loss = one_by_one(model, prefixes, segments)
    assert_equal(packed, (loss, gradients(model, loss)))


def test_pretraining_computes_this_loss(tiny):
    """The packs and image tokens of the stages are those of the processor and of the model's own path."""
    model, rng = copy.deepcopy(tiny.model), np.random.default_rng(6)
    pretraining = Pretraining(tiny.recipe, model, tiny.processor, progress=False)
    fence = "" if tiny.recipe.kind == "llava" else "<fake_token_around_image>"
    prefix = f"<s> user {fence} {' '.join(['<image>'] * 9)} {fence}"
    batch = pretraining._pack([prefix] * 2, [diet(SCENES.things(i), rng) for i, diet in enumerate(DIETS)])
    inputs = tiny.processor(images=[[Image.fromarray(p)] for p in SCENES.draw()], text=["user <image>"] * 2,
                            return_tensors="pt")
    expected = pack(inputs.pop("input_ids").tolist(), segments_of(tiny), pad=0)
    assert torch.equal(batch.ids, expected.ids) and torch.equal(batch.labels, expected.labels)
    inputs.pop("attention_mask")
    with torch.no_grad():
        features = torch.stack(list(model.get_image_features(**inputs).pooler_output))
        assert torch.allclose(pretraining._image_tokens(SCENES.draw()), features, atol=1e-5)


def test_a_pack_by_hand():
    batch = pack([[10, 11], [10]], [[([1], [2, 3]), ([4, 5], [6])], [([7], [8])]], pad=0)
    assert batch.ids.tolist() == [[10, 11, 1, 2, 3, 4, 5, 6], [10, 7, 8, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0, 0]]
    none = IGNORE
    assert batch.labels.tolist() == [[none, none, 2, 3, none, none, 6, none], [none, 8] + [none] * 6]
    seen = (batch.mask[0, 0] == 0).long().tolist()
    assert seen == [[1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0],
                    [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1, 0, 0],
                    [1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1, 1, 1]]
