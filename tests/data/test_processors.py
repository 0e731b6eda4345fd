"""Qwen2-VL's and PaliGemma's own processors: encoded rows are what they would make, batches what their models take."""
import pytest
import torch

import peftkit
from peftkit.data.collate import CHUNK, chat_prompt, encode
from peftkit.data.encoded import IGNORE
from peftkit.data.patches import grid_positions
from peftkit.training.forward import answer_loss

SIZES = [(48, 48), (48, 24), (16, 40)]  # of pictures, width and height


@pytest.fixture(scope="module")
def data():
    """A chunk and a few rows more, with pictures of several sizes."""
    task = peftkit.task("vqav2", train_size=CHUNK + 3, validation_size=1, test_size=1)
    return task.train.map(lambda row, number: {"image": row["image"].resize(SIZES[number % 3])}, with_indices=True)


@pytest.fixture(scope="module", params=["tiny_qwen2_vl", "tiny_paligemma"])
def tiny(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def qwen_rows(tiny_qwen2_vl, data):
    return encode(tiny_qwen2_vl.processor, data, "{question}")


def theirs(tiny, data, rows):
    """What the processor makes of whole conversations, and labels of the answers: transformers' own way."""
    processor, data = tiny.processor, data.select(rows)
    texts = [chat_prompt(processor, row["question"]) for row in data]
    images, answers = [[row["image"]] for row in data], [row["answers"][0] for row in data]
    settings = dict(images=images, padding=True, padding_side="right", return_tensors="pt")
    if hasattr(processor, "image_seq_length"):  # PaliGemma
        return processor(text=texts, suffix=answers, **settings)
    inputs = processor(text=[f"{text} {answer} </s>" for text, answer in zip(texts, answers)], **settings)
    labels = inputs["input_ids"].clone()
    for row, text in zip(labels, texts):
        row[:row.tolist().index(processor.tokenizer.convert_tokens_to_ids("assistant")) + 1] = IGNORE
    return inputs | {"labels": labels.masked_fill(inputs["attention_mask"] == 0, IGNORE)}


ROWS = [4, 0, CHUNK + 1, 2, 33]


def test_a_batch_is_what_the_processor_makes_of_question_and_answer(tiny, data):
    batch, expected = encode(tiny.processor, data, "{question}").training_batch(ROWS), theirs(tiny, data, ROWS)
    assert batch.keys() == expected.keys()
    for name in batch.keys() - {"labels"}:
        assert torch.equal(batch[name], expected[name]), name
    assert torch.equal(batch["labels"][:, :-1], expected["labels"][:, 1:])


@torch.no_grad()
def test_the_loss_is_the_one_that_the_model_computes_itself(tiny, data):
    batch = encode(tiny.processor, data, "{question}").training_batch(ROWS)
    expected = tiny.model(**theirs(tiny, data, ROWS)).loss.item()
    assert answer_loss(tiny.model, batch).item() == pytest.approx(expected, abs=1e-6)


def test_a_prompt_batch_is_what_the_processor_makes_of_questions_alone(tiny, data):
    processor, rows = tiny.processor, data.select(ROWS)
    expected = processor(images=[[row["image"]] for row in rows], padding=True, padding_side="left",
                         return_tensors="pt", text=[chat_prompt(processor, row["question"]) for row in rows])
    batch = encode(processor, data, "{question}").prompt_batch(ROWS)
    assert batch.keys() == expected.keys() - {"labels"}
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_a_picture_has_one_id_and_one_place_whatever_stands_beside_it(tiny, data):
    rows = encode(tiny.processor, data, "{question}")
    alone = encode(tiny.processor, data.select([1]), "{question}")
    assert alone.picture_ids == rows.picture_ids[1:2]
    for name, value in alone.training_batch([0]).items():
        assert torch.equal(value, rows.training_batch([1])[name]), name


def test_qwens_pictures_keep_their_sizes(qwen_rows):
    assert qwen_rows.pictures["image_grid_thw"][:3].tolist() == [[1, 6, 6], [1, 4, 8], [1, 8, 2]]
    assert qwen_rows.pictures["pixel_values"].shape[1] == 36
    assert [prompt.count(qwen_rows.image_token) for prompt in qwen_rows.prompts[:3]] == [9, 8, 4]


def test_positions_are_those_of_qwens_own_rule(tiny_qwen2_vl, qwen_rows):
    for row in range(3):
        batch = qwen_rows.prompt_batch([row])
        expected, _ = tiny_qwen2_vl.model.model.get_rope_index(**batch)
        grid, ids = qwen_rows.pictures["image_grid_thw"][row], qwen_rows.prompts[row]
        assert expected[:, 0].tolist() == grid_positions(ids, qwen_rows.image_token, grid, 2).tolist()


def test_paligemmas_prompt_is_picture_begin_question_and_one_new_line(tiny_paligemma, data):
    rows = encode(tiny_paligemma.processor, data, "answer {question}")
    words = tiny_paligemma.processor.tokenizer.convert_ids_to_tokens(rows.prompts[0])
    assert words == ["<image>"] * 4 + ["<s>", "answer", *data[0]["question"].split(), "\n"]
