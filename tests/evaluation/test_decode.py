"""Greedy decoding: batches, padding and the cache change no answer; scores stay with their rows."""
import copy
import dataclasses

import numpy as np
import pytest
import torch

import peftkit
from peftkit.data.collate import encode
from peftkit.errors import PeftkitError
from peftkit.evaluation import evaluate, generate_answers

from ..methods.weights import perturb

BASES = ("tiny_llava", "tiny_idefics2")
NEW_TOKENS = 5


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def encoded(base):
    """Rows of two tasks, so that prompts differ in length."""
    parts = [encode(base.processor, task.test, task.prompt) for task in (
        peftkit.task(name, train_size=1, validation_size=1, test_size=4) for name in ("scienceqa", "vqav2"))]
    joined = {field: getattr(parts[0], field) + getattr(parts[1], field)
              for field in ("prompts", "answers", "references", "question_ids", "picture_ids")}
    pictures = {name: torch.cat([part.pictures[name] for part in parts]) for name in parts[0].pictures}
    return dataclasses.replace(parts[0], **joined, pictures=pictures)


@pytest.fixture(scope="module", params=["base", "lora", "adapter", "prefix-peft", "prompt"])
def model(request, base):
    """The base, or a method on it moved away from its start."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():  # a random model may name the picture's token, which no step without a cache can read back
        model.get_output_embeddings().weight[model.config.image_token_id] = 0
    if request.param == "base":
        return model
    return perturb(peftkit.inject(model, request.param, connector="tuned").eval(), 0.1, seed=3)


@torch.no_grad()
def step_by_step(model, processor, encoded, row):
    """One row alone, without padding and without a cache: the token of the largest logit, again and again."""
    batch = encoded.prompt_batch([row])
    start = batch["input_ids"].shape[1]
    for _ in range(NEW_TOKENS):
        token = model(**batch, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
        batch["input_ids"] = torch.cat([batch["input_ids"], token], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if token.item() == processor.tokenizer.eos_token_id:
            break
    return processor.tokenizer.decode(batch["input_ids"][0, start:], skip_special_tokens=True).strip()


def test_batched_answers_equal_step_by_step_answers(base, encoded, model):
    alone = [step_by_step(model, base.processor, encoded, row) for row in range(len(encoded))]
    batched = generate_answers(model, base.processor, encoded, NEW_TOKENS, batch_size=len(encoded), progress=False)
    assert batched == alone and any(alone)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_padding_on_the_left_changes_no_answer(base, encoded, model, batch_size):
    assert len(set(map(len, encoded.prompts))) > 2
    whole = generate_answers(model, base.processor, encoded, NEW_TOKENS, batch_size=len(encoded), progress=False)
    assert generate_answers(model, base.processor, encoded, NEW_TOKENS, batch_size, progress=False) == whole


def test_an_answer_ends_at_the_end_token(tiny_llava):
    """Trained to repeat its rows, the model answers with one word and stops before the limit."""
    task = peftkit.task("vqav2", train_size=4, validation_size=1, test_size=1)
    rows = encode(tiny_llava.processor, task.train, task.prompt)
    model = peftkit.inject(copy.deepcopy(tiny_llava.model), "lora", connector="tuned")
    config = peftkit.TrainConfig(epochs=40, batch_size=4, learning_rate=1e-2, progress=False)
    peftkit.train(model, tiny_llava.processor, dataclasses.replace(rows), config)
    result = evaluate(model, tiny_llava.processor, rows, max_new_tokens=8, progress=False)
    assert result.predictions == [answers[0] for answers in rows.references] and result.score == 1.0


def test_scores_and_predictions_are_in_the_order_of_the_rows(base, encoded):
    answers = generate_answers(base.model, base.processor, encoded, NEW_TOKENS, batch_size=2, progress=False)
    right = [row % 3 == 0 for row in range(len(encoded))]
    marked = dataclasses.replace(encoded, references=[[a] if ok else ["nothing"] for a, ok in zip(answers, right)])
    result = evaluate(base.model, base.processor, marked, max_new_tokens=NEW_TOKENS, batch_size=3, progress=False)
    assert result.predictions == answers and result.question_ids == encoded.question_ids
    np.testing.assert_array_equal(result.scores, np.array(right, dtype=float))
    assert result.score == pytest.approx(np.mean(right)) and result.seconds > 0 and result.metric == "exact_match"


def test_rows_can_be_given_as_a_data_set(tiny_llava):
    task = peftkit.task("flickr30k", train_size=1, validation_size=1, test_size=4)
    result = evaluate(tiny_llava.model, tiny_llava.processor, task.test, metric=task.metric, prompt=task.prompt,
                      max_new_tokens=3, progress=False)
    assert result.scores.shape == (4,) and len(result.predictions) == 4
    assert result.question_ids == task.test["question_id"]


def test_an_unknown_metric_is_refused_before_any_decoding(encoded):
    with pytest.raises(PeftkitError, match="unknown metric 'exact_mach'; did you mean 'exact_match'. accepted: "):
        evaluate(None, None, encoded, metric="exact_mach")
