"""Questions about one picture side by side: the answers and logits of `generate`, with each picture read once."""
import copy
import dataclasses
import warnings
from collections import Counter

import pytest
import torch

import peftkit
from peftkit.data.collate import encode
from peftkit.evaluation import generate_answers
from peftkit.evaluation.decode import _answer_apart
from peftkit.evaluation.shared import NEUTRAL, answer_packs, pack_batches, why_apart
from peftkit.methods import METHODS
from peftkit.models.regions import architecture
from peftkit.training.features import cache_features
from peftkit.training.towers import unwrap

from ..methods.weights import perturb

BASES = ("tiny_llava", "tiny_idefics2", "tiny_qwen2_vl")
NEW_TOKENS = 5
TOLERANCE = 1e-4  # of next-token logits, absolute


@pytest.fixture(scope="module", params=BASES)
def base(request):
    """A model that never ends an answer, and its processor."""
    tiny = copy.copy(request.getfixturevalue(request.param))
    tiny.model = copy.deepcopy(tiny.model)
    tiny.model.generation_config.eos_token_id = None
    return tiny


def questions(processor):
    """Eight questions: five about one picture and three about another, smaller one, in turn while both last."""
    data = peftkit.task("vqav2", train_size=8, validation_size=1, test_size=1).train
    pictures = data[0]["image"], data[5]["image"].resize((48, 24))
    data = data.map(lambda row, number: {"image": pictures[number % 2 if number < 6 else 0]}, with_indices=True)
    return encode(processor, data, "{question} short answer")


@pytest.fixture(scope="module")
def rows(base):
    return questions(base.processor)


@pytest.fixture(scope="module")
def lora(base):
    return perturb(peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")).eval()


def other_words_first(rows, words):
    """The rows with words before the picture: `words(row number)`, a list of ids."""
    return dataclasses.replace(rows, prompts=[words(n) + prompt for n, prompt in enumerate(rows.prompts)])


def logits_of(model, answer):
    """What `answer()` returns, and the logits of each step, (questions, vocabulary)."""
    seen = []
    head = unwrap(model).get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten(0, 1)))
    try:
        return answer(), seen
    finally:
        handle.remove()


def assert_same(model, rows):
    """All rows in one batch of packs against all rows in one batch of `generate`: tokens, and logits of every step."""
    assert why_apart(model, rows, NEW_TOKENS) is None
    [packs] = pack_batches(rows, len(rows) + 2)
    ours, our_logits = logits_of(model, lambda: answer_packs(model, rows, packs, NEW_TOKENS))
    together = not peftkit.methods.leading_tokens(model)  # `generate` cannot pad behind a prompt
    most = max(map(len, packs))
    for batch in [list(range(len(rows)))] if together else [[row] for row in range(len(rows))]:
        theirs, their_logits = logits_of(model, lambda: _answer_apart(model, rows, batch, NEW_TOKENS))
        assert {row: ours[row] for row in batch} == theirs
        places = [number * most + pack.index(row) for row in batch for number, pack in enumerate(packs) if row in pack]
        for mine, expected in zip(our_logits, their_logits, strict=True):
            assert torch.allclose(mine[places], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_generate_does(base, rows, method):
    if reason := METHODS[method].refuses.get(base.model.config.model_type):
        pytest.skip(reason)
    connector = "frozen" if METHODS[method].refuses_connector else "tuned"
    assert_same(perturb(peftkit.inject(copy.deepcopy(base.model), method, connector=connector)).eval(), rows)


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix-peft"])
@pytest.mark.parametrize("words", [lambda n: [50, 51, 52] * (n % 2 and n < 6), lambda n: [50 + n]],
                         ids=["shared parts of different length", "nothing shared"])
def test_what_stands_before_the_picture_changes_no_answer(base, rows, method, words):
    if reason := METHODS[method].refuses.get(base.model.config.model_type):
        pytest.skip(reason)
    model = perturb(peftkit.inject(copy.deepcopy(base.model), method)).eval()
    changed = other_words_first(rows, words)
    assert sorted(map(len, changed.by_picture(range(8)))) == ([3, 5] if words(0) == words(2) else [1] * 8)
    assert_same(model, changed)


def count_work(base, model, rows):
    """Pictures that the tower gets, positions that the language model reads."""
    arch, work = architecture(base.model), Counter()
    tower, language = (unwrap(model).get_submodule(name) for name in (arch.vision, arch.language))
    first = tower.get_submodule("blocks.0" if base.model.config.model_type == "qwen2_vl" else "encoder.layers.0")
    hooks = [first.register_forward_pre_hook(lambda module, inputs: work.update(patches=inputs[0].numel())),
             language.register_forward_pre_hook(
                 lambda module, inputs, named: work.update(positions=named["inputs_embeds"].shape[:2].numel()),
                 with_kwargs=True)]
    generate_answers(model, base.processor, rows, NEW_TOKENS, progress=False)
    for hook in hooks:
        hook.remove()
    return work


def test_a_picture_is_read_once(base, rows, lora):
    one_each = dataclasses.replace(rows, prompts=rows.prompts[:2], answers=rows.answers[:2],
                                   picture_ids=rows.picture_ids[:2])
    work = count_work(base, lora, rows)
    assert work["patches"] == count_work(base, lora, one_each)["patches"] > 0
    image, prompt = rows.prompts[0].count(rows.image_token), max(map(len, rows.prompts))
    pack = prompt + 4 * (prompt - image)  # one whole prompt and four without the picture, at most
    assert work["positions"] <= 2 * pack + 2 * 5 * (NEW_TOKENS - 1)
    apart = other_words_first(rows, lambda n: [50 + n])
    assert count_work(base, lora, apart)["patches"] == work["patches"]


def test_kept_features_stand_in_for_the_tower(base, rows, lora):
    answers = generate_answers(lora, base.processor, rows, NEW_TOKENS, progress=False)
    kept = cache_features(base.model, copy.copy(rows))
    assert generate_answers(lora, base.processor, kept, NEW_TOKENS, progress=False) == answers
    assert "patches" not in count_work(base, lora, kept)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_batches_hold_at_most_so_many_questions_and_answers_stay_in_order(base, rows, lora, batch_size):
    batches = pack_batches(rows, batch_size)
    assert sorted(row for batch in batches for pack in batch for row in pack) == list(range(8))
    assert all(len(batch) * max(map(len, batch)) <= batch_size for batch in batches)
    alone = [_answer_apart(lora, rows, [row], NEW_TOKENS)[row] for row in range(8)]
    expected = [text.strip() for text in base.processor.batch_decode(alone, skip_special_tokens=True)]
    assert generate_answers(lora, base.processor, rows, NEW_TOKENS, batch_size, progress=False) == expected


def test_a_long_pack_is_split(tiny_llava):
    rows = questions(tiny_llava.processor)
    many = dataclasses.replace(rows, prompts=20 * rows.prompts, answers=20 * rows.answers,
                               picture_ids=20 * rows.picture_ids)
    [batch] = pack_batches(many, 1000)
    assert len(batch) > 2 and all(sum(len(many.prompts[r]) - 11 for r in pack) < 520 for pack in batch)


@pytest.mark.parametrize("which", [[0], [0, 1, 5], range(8)], ids=["one", "some", "all"])
def test_an_answer_ends_at_any_end_token_and_ended_packs_leave(base, rows, lora, which):
    """End tokens are what these rows say second; then nothing more is computed than the rows that go on need."""
    free = _answer_apart(lora, rows, list(range(8)), NEW_TOKENS)
    ends = sorted({free[row][1] for row in which})
    model = copy.deepcopy(lora)
    unwrap(model).generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    [packs] = pack_batches(rows, 10)
    found, logits = logits_of(model, lambda: answer_packs(model, rows, packs, NEW_TOKENS))
    stop = {row: next((at + 1 for at, token in enumerate(free[row]) if token in ends), NEW_TOKENS) for row in range(8)}
    assert found == {row: free[row][:stop[row]] for row in found}
    last = [max(stop[row] for row in pack) for pack in packs]
    assert [len(step) for step in logits] == [5 * sum(at < one for one in last) for at in range(max(last))]
    theirs = _answer_apart(model, rows, list(range(8)), NEW_TOKENS)
    assert all(found[row] == theirs[row][:stop[row]] for row in found)


def test_packs_that_have_ended_leave_the_others_as_they_are(base, rows, lora):
    """Of eight packs five are made to end with their second token; the other three go on with their own caches."""
    rows = other_words_first(rows, lambda n: [50 + n])
    free = _answer_apart(lora, rows, list(range(8)), NEW_TOKENS)
    end = next(token for token in range(100) if not any(token in answer for answer in free.values()))
    model = copy.deepcopy(lora)
    unwrap(model).generation_config.eos_token_id = end
    ended, shapes = [0, 1, 2, 5, 6], []

    def force(module, inputs, output):
        shapes.append(output.shape[:2])
        if len(shapes) == 2:
            output[ended, :, end] = torch.inf

    unwrap(model).get_output_embeddings().register_forward_hook(force)
    [packs] = pack_batches(rows, 8)
    found = answer_packs(model, rows, packs, NEW_TOKENS)
    assert shapes == [(1, 8), (8, 1), *[(3, 1)] * (NEW_TOKENS - 2)]
    for number, [row] in enumerate(packs):
        assert found[row] == (free[row][:1] + [end] if number in ended else free[row])


def change(name, value):
    """A change of a model's configuration or generation settings."""
    def apply(model, rows):
        target = model.generation_config if name in NEUTRAL else model.config.text_config
        setattr(target, name, value)
        return rows
    return apply


@pytest.mark.parametrize("name, apply, message", [
    ("tiny_paligemma", lambda model, rows: rows, "picture and question see each other both ways"),
    ("tiny_llava", change("repetition_penalty", 1.5), "generation_config sets repetition_penalty"),
    ("tiny_llava", change("suppress_tokens", [7]), "generation_config sets suppress_tokens"),
    ("tiny_idefics2", change("sliding_window", 20), "attention looks back 20 tokens only"),
    ("tiny_llava", change("_attn_implementation", "flex_attention"), "attention 'flex_attention' takes no mask"),
])
def test_where_a_picture_cannot_be_shared_a_warning_says_why_once(request, monkeypatch, name, apply, message):
    tiny = request.getfixturevalue(name)
    model = copy.deepcopy(tiny.model)
    rows = apply(model, questions(tiny.processor))
    monkeypatch.setattr("peftkit.evaluation.decode._answer_apart",
                        lambda model, rows, batch, new: {row: [row] for row in batch})
    with pytest.warns(UserWarning, match=message) as caught:
        assert len(generate_answers(model, tiny.processor, rows, NEW_TOKENS, batch_size=2, progress=False)) == 8
    assert len(caught) == 1


def test_without_repeated_pictures_nothing_is_lost_and_nothing_said(tiny_paligemma):
    rows = questions(tiny_paligemma.processor)
    rows.picture_ids = [str(row) for row in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate_answers(tiny_paligemma.model, tiny_paligemma.processor, rows, 2, progress=False)


def test_a_prompt_that_is_switched_off_is_left_out(tiny_llava):
    rows = questions(tiny_llava.processor)
    model = perturb(peftkit.inject(copy.deepcopy(tiny_llava.model), "prompt"))
    expected = generate_answers(tiny_llava.model, tiny_llava.processor, rows, NEW_TOKENS, progress=False)
    with model.disable_adapter(), pytest.warns(UserWarning, match="virtual tokens are switched off"):
        assert generate_answers(model, tiny_llava.processor, rows, NEW_TOKENS, progress=False) == expected
    assert generate_answers(model, tiny_llava.processor, rows, NEW_TOKENS, progress=False) != expected
