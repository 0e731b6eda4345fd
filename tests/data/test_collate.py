"""From rows to tensors: what is learned stands where it must, and a bad row is named before training starts."""
import io

import datasets
import pytest
import torch
from PIL import Image

import peftkit
from peftkit.data import encode
from peftkit.data.collate import CHUNK, _joined
from peftkit.data.encoded import IGNORE
from peftkit.errors import PeftkitError


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_idefics2"])
def tiny(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def task():
    return peftkit.task("vqav2", train_size=CHUNK + 6, validation_size=1, test_size=1)


@pytest.fixture(scope="module")
def encoded(tiny, task):
    return encode(tiny.processor, task.train, task.prompt)


def own_rows(**columns) -> datasets.Dataset:
    """Two good rows, changed by columns."""
    good = {"image": [Image.new("RGB", (48, 48), "red")] * 2, "question": ["what ?"] * 2, "answers": [["red"]] * 2}
    return datasets.Dataset.from_dict(good | columns)


def picture_bytes(keep: float = 1.0) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((48, 48), 50).convert("RGB").save(file, "png")
    return file.getvalue()[:int(keep * file.tell())]


# ---- rows ------------------------------------------------------------------------------------------------------------

def test_prompts_and_answers_are_those_of_the_rows(tiny, task, encoded):
    decode = tiny.processor.tokenizer.decode
    assert len(encoded) == len(task.train)
    for i, row in enumerate(task.train):
        words = decode(encoded.prompts[i]).split()
        assert words[:2] == ["<s>", "user"] and words.count("<image>") == 9
        assert " ".join(words).endswith(f"{row['question']} short answer assistant")
        assert decode(encoded.answers[i]) == f"{row['answers'][0]} </s>"
        assert encoded.references[i] == row["answers"] and encoded.question_ids[i] == row["question_id"]


def test_pictures_are_what_the_processor_makes_of_them_alone(tiny, task, encoded):
    for i in (0, CHUNK - 1, CHUNK + 5):
        alone = tiny.processor(images=[[task.train[i]["image"]]], text=["<image>"], return_tensors="pt")
        assert set(encoded.pictures) == set(alone) - {"input_ids", "attention_mask"}
        for name, value in encoded.pictures.items():
            assert len(value) == len(task.train)
            assert torch.equal(value[i], alone[name][0])


def test_lengths(encoded):
    assert encoded.lengths()[3] == len(encoded.prompts[3]) + len(encoded.answers[3])


# ---- batches ---------------------------------------------------------------------------------------------------------

ROWS = [4, 0, 67, 12, 33]


def test_a_training_batch_is_padded_on_the_right(encoded):
    batch = encoded.training_batch(ROWS)
    assert len({len(encoded.prompts[row]) for row in ROWS}) > 1
    for b, row in enumerate(ROWS):
        ids = encoded.prompts[row] + encoded.answers[row]
        rest = batch["input_ids"].shape[1] - len(ids)
        assert batch["input_ids"][b].tolist() == ids + [encoded.pad] * rest
        assert batch["attention_mask"][b].tolist() == [1] * len(ids) + [0] * rest
    assert batch["input_ids"].shape[1] == max(encoded.lengths()[row] for row in ROWS)


def test_labels_are_the_next_token_and_only_the_answer(tiny, encoded):
    batch = encoded.training_batch(ROWS)
    for b, row in enumerate(ROWS):
        learned = (batch["labels"][b] != IGNORE).nonzero().flatten()
        assert batch["labels"][b, learned].tolist() == encoded.answers[row]
        assert torch.equal(batch["labels"][b, learned], batch["input_ids"][b, learned + 1])
        assert learned[0] == len(encoded.prompts[row]) - 1
        assert batch["labels"][b, learned[-1]] == tiny.processor.tokenizer.eos_token_id


def test_a_prompt_batch_is_padded_on_the_left_and_holds_no_answer(encoded):
    batch = encoded.prompt_batch(ROWS)
    for b, row in enumerate(ROWS):
        rest = batch["input_ids"].shape[1] - len(encoded.prompts[row])
        assert batch["input_ids"][b].tolist() == [encoded.pad] * rest + encoded.prompts[row]
        assert batch["attention_mask"][b].tolist() == [0] * rest + [1] * len(encoded.prompts[row])
    assert "labels" not in batch


@torch.no_grad()
def test_padding_on_either_side_changes_no_logits(tiny, encoded):
    """The training batch at the last prompt position, the prompt batch at its last one, and a prompt alone agree."""
    training, prompts = encoded.training_batch(ROWS), encoded.prompt_batch(ROWS)
    training.pop("labels")
    right, left = tiny.model(**training).logits, tiny.model(**prompts).logits
    for b, row in enumerate(ROWS):
        alone = tiny.model(**encoded.prompt_batch([row])).logits[0, -1]
        assert torch.allclose(right[b, len(encoded.prompts[row]) - 1], alone, atol=1e-4)
        assert torch.allclose(left[b, -1], alone, atol=1e-4)


def test_pictures_follow_their_rows(encoded):
    for batch in (encoded.training_batch(ROWS), encoded.prompt_batch(ROWS)):
        for name, value in encoded.pictures.items():
            assert torch.equal(batch[name], value[ROWS])


def test_cached_features_take_the_place_of_pictures_in_training(tiny, task):
    encoded = encode(tiny.processor, task.train.select(range(4)), task.prompt)
    encoded.features = torch.arange(4.0).view(4, 1, 1)
    batch = encoded.training_batch([2, 0])
    assert batch["features"].flatten().tolist() == [2, 0]
    assert not set(batch) & set(encoded.pictures)
    assert set(encoded.pictures) < set(encoded.prompt_batch([2, 0]))


# ---- the length limit ------------------------------------------------------------------------------------------------

def test_the_length_limit_cuts_the_end_of_an_answer(tiny):
    rows = own_rows(answers=[["red green blue red"], ["red"]])
    free = encode(tiny.processor, rows, "{question}")
    limit = len(free.prompts[0]) + 2
    cut = encode(tiny.processor, rows, "{question}", max_length=limit)
    assert cut.prompts == free.prompts
    assert cut.answers == [free.answers[0][:2], free.answers[1]]


def test_an_answer_cut_off_entirely_is_named(tiny):
    rows = own_rows(question=["what ?", "what color is the star ?"])
    limit = len(encode(tiny.processor, rows, "{question}").prompts[1])
    with pytest.raises(PeftkitError, match=rf"validation row 1: .*max_length={limit} cuts its answer off entirely"):
        encode(tiny.processor, rows, "{question}", split="validation", max_length=limit)
    assert encode(tiny.processor, rows, "{question}", max_length=limit + 1).answers[1]


# ---- bad rows --------------------------------------------------------------------------------------------------------

def stored(*pictures: bytes | None) -> datasets.Dataset:
    """Rows whose pictures are given as the bytes of image files."""
    images = [picture and {"bytes": picture, "path": None} for picture in pictures]
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string"),
                                  "answers": datasets.List(datasets.Value("string"))})
    number = len(pictures)
    return datasets.Dataset.from_dict({"image": images, "question": ["what ?"] * number,
                                       "answers": [["red"]] * number}, features=features)


@pytest.mark.parametrize("rows,message", [
    (lambda: stored(picture_bytes(), None), "row 1 has no image"),
    (lambda: stored(picture_bytes(), picture_bytes(0.5)), r"row 1: its image cannot be read \(.*truncated"),
    (lambda: stored(picture_bytes(), b"no picture"), r"row 1: its image cannot be read \(.*cannot identify"),
    (lambda: stored(*[picture_bytes()] * CHUNK, None), f"row {CHUNK} has no image"),
    (lambda: own_rows(image=["a.png", "b.png"]), "row 0: its image is a str"),
    (lambda: own_rows(answers=[["red"], []]), "row 1 has an empty answer"),
    (lambda: own_rows(answers=[["red"], None]), "row 1 has an empty answer"),
    (lambda: own_rows(answers=[["red"], [" "]]), "row 1 has an empty answer"),
    (lambda: own_rows(answers=["red", "blue"]), "row 0: its answers are a str"),
], ids=["none", "truncated", "noise", "second chunk", "path", "no answers", "null", "blank", "one string"])
def test_a_bad_row_is_named_by_split_and_number(tiny_llava, rows, message):
    with pytest.raises(PeftkitError, match=f"^test {message}"):
        encode(tiny_llava.processor, rows(), "{question}", split="test")


def test_a_missing_picture_file_is_named(tiny_llava, tmp_path):
    rows = own_rows(image=[str(tmp_path / "missing.png")] * 2).cast_column("image", datasets.Image())
    with pytest.raises(PeftkitError, match=r"train row 0: its image cannot be read \(.*missing.png"):
        encode(tiny_llava.processor, rows, "{question}")


def test_a_missing_column_and_an_empty_split_are_named(tiny_llava):
    with pytest.raises(PeftkitError, match="train has no column answers; it has image, question"):
        encode(tiny_llava.processor, own_rows().remove_columns("answers"), "{question}")
    with pytest.raises(PeftkitError, match="train has no rows"):
        encode(tiny_llava.processor, own_rows().select([]), "{question}")


# ---- other processors ------------------------------------------------------------------------------------------------

def test_pictures_of_several_sizes_are_padded_as_the_processor_pads():
    tall, wide = torch.ones(1, 3, 4, 2), torch.ones(1, 3, 3, 5)
    joined = _joined([tall, wide])
    assert joined.shape == (2, 1, 3, 4, 5)
    assert joined.sum() == tall.sum() + wide.sum()
    assert torch.equal(joined[0, ..., :2], tall) and torch.equal(joined[1, :, :, :3], wide)


def test_a_processor_whose_pictures_have_no_row_each_is_refused(tiny_llava):
    class Flat:  # all patches of a batch in one list, and no word of which are whose
        tokenizer = tiny_llava.processor.tokenizer

        def __call__(self, images, text, **kwargs):
            ids = self.tokenizer(text, **kwargs)
            return dict(ids) | {"pixel_values": torch.zeros(16 * len(text), 8)}

    with pytest.raises(PeftkitError, match=r"Flat makes 'pixel_values' of shape \(32, 8\) for 2 rows"):
        encode(Flat(), own_rows(), "{question}")
