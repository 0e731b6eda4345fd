"""Rows about one picture, side by side: the same loss and gradients as the rows apart, for every method."""
import copy

import pytest
import torch

import peftkit
from peftkit.data.collate import encode
from peftkit.errors import PeftkitError
from peftkit.methods import METHODS
from peftkit.training.features import cache_features
from peftkit.training.forward import answer_loss

BASES = ("tiny_llava", "tiny_idefics2", "tiny_qwen2_vl")
ROWS = [0, 7, 1, 2, 3, 4, 5, 6]  # five and three rows about two pictures, out of order


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def rows(base):
    """Eight questions about two pictures of different size."""
    return encode(base.processor, about_two_pictures(), "{question} short answer")


def about_two_pictures():
    data = peftkit.task("vqav2", train_size=8, validation_size=1, test_size=1).train
    first, second = data[0]["image"], data[5]["image"].resize((48, 24))
    return data.map(lambda row, number: {"image": first if number < 5 else second}, with_indices=True)


def gradients(model, batch):
    model.zero_grad()
    loss = answer_loss(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_packed_rows_give_the_loss_and_gradients_of_the_rows_apart(base, rows, method):
    if reason := METHODS[method].refuses.get(base.model.config.model_type):
        pytest.skip(reason)
    connector = "frozen" if METHODS[method].refuses_connector else "tuned"
    model = peftkit.inject(copy.deepcopy(base.model), method, connector=connector)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    apart, separate = gradients(model, rows.training_batch(ROWS))
    together, packed = gradients(model, rows.packed_batch(ROWS))
    assert together == pytest.approx(apart, abs=1e-5) and packed.keys() == separate.keys()
    for name, gradient in separate.items():
        assert torch.allclose(packed[name], gradient, rtol=0, atol=1e-5 * max(1, gradient.abs().max())), name


def test_packed_rows_share_kept_features_too(base, rows):
    model = peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")
    loss, expected = gradients(model, rows.packed_batch(ROWS))
    kept = cache_features(base.model, copy.copy(rows))
    again, found = gradients(model, kept.packed_batch(ROWS))
    assert again == pytest.approx(loss, abs=1e-5)
    assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-5) for name in expected)


def test_a_picture_is_in_its_pack_once(base, rows):
    ids = rows.packed_batch(ROWS)["input_ids"]
    apart = rows.training_batch([0, 5])["input_ids"]
    assert torch.equal((ids == rows.image_token).sum(1), (apart == rows.image_token).sum(1))


def test_paligemmas_rows_stay_apart_with_the_reason(tiny_paligemma):
    """Its picture's states depend on the question, so that nothing can be shared."""
    rows = encode(tiny_paligemma.processor, about_two_pictures(), "{question}")
    with pytest.warns(UserWarning, match="picture and question see each other both ways.*are not packed"):
        batch = rows.packed_batch(ROWS)
    expected = rows.training_batch(ROWS)
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)
    with pytest.raises(PeftkitError, match=r"row \d+ has \d+ tokens; accepted: up to 5 in a pack"):
        rows.packed_batch(ROWS, longest=5)


@torch.no_grad()
def test_paligemmas_picture_does_not_look_the_same_beside_another_question(tiny_paligemma):
    """The stated reason, measured: hidden states of the image tokens change with the question."""
    rows = encode(tiny_paligemma.processor, about_two_pictures(), "{question}")
    assert rows.prompts[0] != rows.prompts[1]
    one, other = (tiny_paligemma.model(**rows.prompt_batch([row]), output_hidden_states=True).hidden_states
                  for row in (0, 1))
    assert torch.equal(one[0][:, :4], other[0][:, :4])
    assert (one[-2][:, :4] - other[-2][:, :4]).abs().max() > 1e-3


def test_the_same_picture_has_the_same_id_and_another_has_another(rows):
    assert [len(set(rows.picture_ids[a:b])) for a, b in ((0, 5), (5, 8), (0, 8))] == [1, 1, 2]


def test_a_pack_that_is_too_long_is_split_and_loses_nothing(base, rows):
    model = peftkit.inject(copy.deepcopy(base.model), "lora")
    longest = max(rows.lengths()) + 12
    batch = rows.packed_batch(ROWS, longest=longest)
    assert 2 < len(batch["input_ids"]) <= len(ROWS) and batch["input_ids"].shape[1] <= longest
    assert answer_loss(model, batch).item() == pytest.approx(answer_loss(model, rows.packed_batch(ROWS)).item(), abs=1e-5)
    with pytest.raises(PeftkitError, match=r"row \d+ has \d+ tokens; accepted: up to 5 in a pack"):
        rows.packed_batch(ROWS, longest=5)


def test_rows_whose_picture_comes_after_different_words_are_not_packed(rows):
    changed = copy.copy(rows)
    changed.prompts = [[50 + number, *prompt] for number, prompt in enumerate(rows.prompts)]
    assert len(changed.packed_batch(ROWS)["input_ids"]) == len(ROWS)
