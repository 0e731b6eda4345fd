"""The training loop: repeatable, equal to the plain loss, and honest about what goes wrong."""
import copy
import dataclasses
import math
import random
import time
import warnings

import numpy as np
import pytest
import torch

import peftkit
from peftkit import TrainConfig
from peftkit.data.collate import encode
from peftkit.data.encoded import IGNORE
from peftkit.errors import PeftkitError
from peftkit.training import Checkpoints, features
from peftkit.training.features import cache_features, can_cache
from peftkit.training.forward import answer_loss
from peftkit.training.loop import optimizer_groups, train

BASES = ("tiny_llava", "tiny_idefics2")
METHODS = ("lora", "ia3", "adapter", "prefix", "prefix-peft", "prompt", "adalink", "multiway", "spider")
SHORT = TrainConfig(epochs=2, batch_size=4, learning_rate=5e-3, progress=False)


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def encoded(base):
    """Sixteen rows of a task, encoded by the base's processor."""
    task = peftkit.task("vqav2", train_size=16, validation_size=1, test_size=1)
    return encode(base.processor, task.train, task.prompt)


@pytest.fixture(scope="module")
def llava_rows(tiny_llava):
    task = peftkit.task("vqav2", train_size=16, validation_size=1, test_size=1)
    return encode(tiny_llava.processor, task.train, task.prompt)


def injected(base, method="lora", **options):
    return peftkit.inject(copy.deepcopy(base.model), method, **options)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def run(base, rows, config=SHORT, method="lora", **options):
    """Train a fresh copy on a fresh encoding; the result and the trained weights."""
    model = injected(base, method, **options)
    return train(model, base.processor, dataclasses.replace(rows), config), weights(model)


def subset(rows, chosen):
    """The chosen rows of an encoded set."""
    names = ("prompts", "answers", "references", "question_ids", "picture_ids")
    fields = {name: [getattr(rows, name)[r] for r in chosen] for name in names}
    return dataclasses.replace(rows, **fields, pictures={name: value[chosen] for name, value in rows.pictures.items()})


# ---- the same again, or not ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(tiny_llava, llava_rows, method):
    options = {"dropout": 0.1} if method in ("lora", "adapter") else {}
    (first, start), (second, again) = (run(tiny_llava, llava_rows, method=method, connector="tuned", **options)
                                       for _ in range(2))
    assert first.losses == second.losses
    assert all(torch.equal(start[name], again[name]) for name in start)


def test_another_seed_gives_another_run(tiny_llava, llava_rows):
    first, _ = run(tiny_llava, llava_rows)
    other, _ = run(tiny_llava, llava_rows, dataclasses.replace(SHORT, seed=7))
    assert first.losses != other.losses


def test_frozen_parameters_stay_and_trainable_ones_move(base, encoded):
    model = injected(base, "adapter", connector="tuned")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, base.processor, dataclasses.replace(encoded), SHORT)
    assert not model.training
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


# ---- the loss --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["lora", "prefix-peft", "prompt"])
def test_the_loss_on_answers_equals_the_plain_loss(base, encoded, method):
    model = injected(base, method, connector="tuned").eval()
    batch = encoded.training_batch([0, 3, 5, 11])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = torch.full_like(batch["labels"], IGNORE)
    labels[:, 1:] = batch["labels"][:, :-1]  # transformers shifts its labels itself
    ours, plain = answer_loss(model, batch), model(**inputs, labels=labels, use_cache=False).loss
    assert ours.item() == pytest.approx(plain.item(), abs=1e-6)
    ours, plain = gradients(model, ours), gradients(model, plain)
    assert all(torch.allclose(ours[name], plain[name], rtol=0, atol=1e-6) for name in ours)


@pytest.mark.parametrize("method", ["lora", "prefix-peft", "prompt"])
def test_cached_features_stand_in_for_pictures(base, encoded, method):
    model = injected(base, method, connector="tuned").eval()
    cached = cache_features(model, dataclasses.replace(encoded))
    rows = [0, 3, 5, 11]
    kept, seen = cached.training_batch(rows), encoded.training_batch(rows)
    assert "features" in kept and "pixel_values" in seen
    from_features, from_pictures = answer_loss(model, kept), answer_loss(model, seen)
    assert from_features.item() == pytest.approx(from_pictures.item(), abs=1e-6)
    ours, plain = gradients(model, from_features), gradients(model, from_pictures)
    assert all(torch.allclose(ours[name], plain[name], rtol=0, atol=1e-6) for name in ours)
    assert any("modules_to_save" in name and value.abs().max() > 0 for name, value in ours.items())


def test_training_with_and_without_the_cache_agrees(tiny_llava, llava_rows):
    (kept, ours), (seen, plain) = (
        run(tiny_llava, llava_rows, dataclasses.replace(SHORT, cache_features=cache), connector="tuned")
        for cache in (True, False))
    assert kept.losses == pytest.approx(seen.losses, abs=1e-5)
    assert all(torch.allclose(ours[name], plain[name], rtol=0, atol=1e-4) for name in ours)


def test_a_tower_that_trains_is_not_cached(tiny_llava):
    assert can_cache(injected(tiny_llava)) and not can_cache(tiny_llava.model)


def test_a_tower_that_trains_does_not_use_features_that_were_kept_for_another_run(tiny_llava, llava_rows):
    kept = cache_features(tiny_llava.model, dataclasses.replace(llava_rows))
    start = weights(injected(tiny_llava, "full"))
    _, end = run(tiny_llava, kept, method="full")
    moved = [not torch.equal(end[name], value) for name, value in start.items() if "vision_tower" in name]
    assert any(moved) and kept.features is not None


# ---- steps, rates and schedules --------------------------------------------------------------------------------------

def test_accumulation_equals_the_larger_batch(tiny_llava, llava_rows):
    order = sorted(range(len(llava_rows)), key=lambda r: len(llava_rows.answers[r]))
    rows = subset(llava_rows, order[:2] + order[-2:])
    assert len(set(map(len, rows.answers))) > 1  # a batch with more answer tokens counts for more
    whole = dataclasses.replace(SHORT, epochs=3, batch_size=4, learning_rate=1e-3)
    (large, ours), (small, plain) = (run(tiny_llava, rows, config) for config in (
        whole, dataclasses.replace(whole, batch_size=2, accumulation=2)))
    assert large.steps == small.steps == 3 and large.samples == small.samples == 12
    assert large.losses == pytest.approx(small.losses, abs=1e-5)
    # a tenth of a step: where a gradient is all but zero, AdamW makes a part of a step out of rounding
    assert all(torch.allclose(ours[name], plain[name], rtol=0, atol=1e-4) for name in ours)


@pytest.mark.parametrize("epochs, accumulation, steps, samples", [
    (2, 1, 8, 32), (0.5, 1, 2, 8), (1, 3, 2, 16), (2, 4, 2, 32)])
def test_steps_and_samples_are_counted(tiny_llava, llava_rows, epochs, accumulation, steps, samples):
    result, _ = run(tiny_llava, llava_rows, dataclasses.replace(SHORT, epochs=epochs, accumulation=accumulation))
    assert (result.steps, result.samples, len(result.losses)) == (steps, samples, steps)
    assert result.samples_per_second == pytest.approx(samples / result.seconds) and result.peak_memory_mb > 0


def test_the_connector_has_a_rate_of_its_own(base):
    config = TrainConfig(learning_rate=1e-3, connector_learning_rate=5e-5)
    model = injected(base, connector="tuned")
    method, connector = optimizer_groups(model, config)
    assert (method["lr"], connector["lr"]) == (1e-3, 5e-5)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("lora_" in names[id(p)] for p in method["params"])
    assert all("modules_to_save" in names[id(p)] for p in connector["params"])
    assert len(method["params"]) + len(connector["params"]) == len(weights(model))
    assert [group["lr"] for group in optimizer_groups(injected(base), config)] == [1e-3]


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [0, 0.5, 1, 1, 1, 1, 1, 1]),
    ("linear", [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ("cosine", [0, 0.5, *(0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6))]),
])
def test_the_rate_follows_the_schedule(tiny_llava, llava_rows, monkeypatch, schedule, expected):
    rates = []

    class Recorder(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    config = dataclasses.replace(SHORT, schedule=schedule, warmup_ratio=0.25, learning_rate=1e-3)
    run(tiny_llava, llava_rows, config, connector="tuned")
    assert rates == [pytest.approx([1e-3 * share, 1e-4 * share]) for share in expected]


def test_gradients_are_clipped(tiny_llava, llava_rows, monkeypatch):
    norms = []
    plain = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        norms.append(torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]]).norm().item())
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(tiny_llava, llava_rows, dataclasses.replace(SHORT, max_grad_norm=0.01))
    assert norms and all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms)


@pytest.mark.parametrize("method, rate", [("lora", 1e-2), ("ia3", 5e-2), ("adapter", 1e-2), ("prefix", 5e-2), ("prefix-peft", 5e-2)])
def test_a_toy_set_is_learned(tiny_llava, llava_rows, method, rate):
    config = TrainConfig(epochs=20, batch_size=8, learning_rate=rate, progress=False)
    result, _ = run(tiny_llava, llava_rows, config, method=method, connector="tuned")
    assert result.losses[-1] < 0.5 * result.losses[0]


# ---- a look after every epoch ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, options", [("lora", {"dropout": 0.2}), ("spider", {}), ("prefix-peft", {})])
def test_a_look_changes_no_bit_of_the_run(tiny_llava, llava_rows, method, options):
    plain, expected = run(tiny_llava, llava_rows, method=method, connector="tuned", **options)
    model, modes = injected(tiny_llava, method, connector="tuned", **options), []

    def look(epoch):
        modes.append(model.training)
        peftkit.evaluate(model, tiny_llava.processor, llava_rows, max_new_tokens=2, progress=False)
        random.random(), np.random.rand(), torch.rand(epoch)

    seen = train(model, tiny_llava.processor, dataclasses.replace(llava_rows), SHORT, after_epoch=look)
    assert seen.losses == plain.losses and modes == [False, False]
    assert all(torch.equal(value, expected[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("method", ["lora", "adapter", "ia3", "prefix-peft"])
def test_the_last_look_sees_the_model_that_training_ends_with(base, encoded, method):
    model, seen = injected(base, method, connector="tuned"), []

    @torch.no_grad()
    def look(epoch=None):
        answers = peftkit.evaluate(model, base.processor, encoded, max_new_tokens=3, progress=False).predictions
        seen.append((answers, answer_loss(model, encoded.training_batch([0, 3, 5, 11])).item()))

    train(model, base.processor, dataclasses.replace(encoded), SHORT, after_epoch=look)
    look()
    first, last, afterwards = seen
    assert last == afterwards != first


@pytest.mark.parametrize("epochs, accumulation, expected", [
    (2, 1, [1, 2]), (2, 3, [1, 2]), (1.5, 1, [1]), (0.5, 1, [])])
def test_whole_epochs_are_looked_at(tiny_llava, llava_rows, epochs, accumulation, expected):
    config, seen = dataclasses.replace(SHORT, epochs=epochs, accumulation=accumulation), []
    train(injected(tiny_llava), tiny_llava.processor, dataclasses.replace(llava_rows), config, after_epoch=seen.append)
    assert seen == expected


def test_looking_is_not_training_time(tiny_llava, llava_rows):
    began = time.perf_counter()
    result = train(injected(tiny_llava), tiny_llava.processor, dataclasses.replace(llava_rows), SHORT,
                   after_epoch=lambda epoch: time.sleep(0.2))
    assert 0 < result.seconds < time.perf_counter() - began - 0.4


def test_a_run_that_goes_on_looks_at_the_epochs_that_end_after_its_checkpoint(tiny_llava, llava_rows, tmp_path):
    plain, expected = run(tiny_llava, llava_rows, dropout=0.2)
    settings, seen = Checkpoints(tmp_path, minutes=0), []

    def once(epoch):
        seen.append(epoch)
        torch.rand(3)
        if seen == [1]:
            raise InterruptedError

    for _ in range(2):
        model = injected(tiny_llava, dropout=0.2)
        try:
            result = train(model, tiny_llava.processor, dataclasses.replace(llava_rows), SHORT, checkpoints=settings,
                           after_epoch=once)
        except InterruptedError:
            pass
    assert seen == [1, 2] and result.losses == plain.losses
    assert all(torch.equal(value, expected[name]) for name, value in weights(model).items())


# ---- precision -------------------------------------------------------------------------------------------------------

def test_bfloat16_and_float32_follow_each_other_in_one_process(tiny_llava, llava_rows):
    before, _ = run(tiny_llava, llava_rows)
    half, _ = run(tiny_llava, llava_rows, dataclasses.replace(SHORT, precision="bf16"))
    after, _ = run(tiny_llava, llava_rows)
    assert before.losses == after.losses != half.losses
    assert half.losses == pytest.approx(before.losses, rel=0.05)


def test_bfloat16_ends_with_training(tiny_llava, llava_rows):
    model, twin = injected(tiny_llava), injected(tiny_llava)
    train(model, tiny_llava.processor, dataclasses.replace(llava_rows), dataclasses.replace(SHORT, precision="bf16"))
    twin.load_state_dict(model.state_dict())
    batch = llava_rows.training_batch([0, 1])
    for trained in (model, copy.deepcopy(model)):
        assert torch.equal(answer_loss(trained, batch), answer_loss(twin.eval(), batch))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bfloat16_base_trains(base, encoded, precision):
    model = peftkit.inject(copy.deepcopy(base.model).to(torch.bfloat16), "lora", connector="tuned")
    start = weights(model)
    result = train(model, base.processor, dataclasses.replace(encoded), dataclasses.replace(SHORT, precision=precision))
    assert all(map(math.isfinite, result.losses))
    moved = weights(model)
    assert all(not torch.equal(start[name], moved[name]) for name in start)


# ---- what goes wrong -------------------------------------------------------------------------------------------------

def test_a_model_without_trainable_parameters_is_refused(tiny_llava, llava_rows):
    model = copy.deepcopy(tiny_llava.model).requires_grad_(False)
    with pytest.raises(PeftkitError, match="no trainable parameters; inject a method first"):
        train(model, tiny_llava.processor, dataclasses.replace(llava_rows), SHORT)


def test_what_half_fine_tuning_leaves_out_is_not_reported(tiny_llava, llava_rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny_llava, llava_rows, method="half", layers=2)


@pytest.mark.parametrize("method", ["spider", "lora"])
def test_a_tensor_that_never_receives_a_gradient_is_named(tiny_llava, llava_rows, method):
    model, rows = injected(tiny_llava, method, connector="tuned"), dataclasses.replace(llava_rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, tiny_llava.processor, rows, SHORT)
    model.register_parameter("apart", torch.nn.Parameter(torch.ones(2)))
    with pytest.warns(match="no gradient ever reached apart: "):
        train(model, tiny_llava.processor, rows, SHORT)
    assert torch.equal(model.apart, torch.ones(2))


def test_the_last_block_of_a_tuned_tower_is_named_where_the_model_does_not_read_it(tiny_llava, llava_rows):
    with pytest.warns(match=r"no gradient ever reached .*vision_tower.* and \d+ more"):
        run(tiny_llava, llava_rows, method="full")


def test_a_picture_that_is_not_finite_stops_at_the_first_step(tiny_llava, llava_rows):
    pictures = {"pixel_values": torch.full_like(llava_rows.pictures["pixel_values"], math.nan)}
    with pytest.raises(PeftkitError, match="the loss is nan at step 1; .* a value in the pictures or weights"):
        train(injected(tiny_llava), tiny_llava.processor, dataclasses.replace(llava_rows, pictures=pictures), SHORT)


def test_a_rate_that_is_too_high_stops_early_and_is_named(tiny_llava, llava_rows):
    config = dataclasses.replace(SHORT, learning_rate=1e30, schedule="constant", warmup_ratio=0)
    with pytest.raises(PeftkitError, match=r"the loss is (nan|inf) at step [23]; .*learning_rate=1e\+30"):
        train(injected(tiny_llava), tiny_llava.processor, dataclasses.replace(llava_rows), config)


def test_rows_can_be_given_as_a_data_set(tiny_llava, llava_rows):
    task = peftkit.task("vqav2", train_size=16, validation_size=1, test_size=1)
    model = injected(tiny_llava)
    result = train(model, tiny_llava.processor, task.train, SHORT, prompt=task.prompt)
    assert result.losses == run(tiny_llava, llava_rows)[0].losses


def test_features_above_the_budget_are_not_kept(tiny_llava, llava_rows, monkeypatch):
    monkeypatch.setattr(features, "BUDGET", 100)
    assert cache_features(tiny_llava.model, dataclasses.replace(llava_rows)).features is None


def test_the_trainable_map_and_a_bar_are_shown_on_request(tiny_llava, llava_rows, capsys):
    for progress in (False, True):
        config = dataclasses.replace(SHORT, epochs=1, progress=progress)
        train(injected(tiny_llava), tiny_llava.processor, dataclasses.replace(llava_rows), config)
        shown = capsys.readouterr()
        assert all(("language" in shown.out, "loss=" in shown.err, "samples_per_s=" in shown.err)) == progress
