"""Tasks: the columns of real sets, splits that share nothing, and answers that the picture itself bears out."""
import dataclasses
import re

import datasets
import numpy as np
import pytest
from PIL import Image

import peftkit
from peftkit.data import SPECS, ZHOU2024, encode
from peftkit.data.questions import UNANSWERABLE
from peftkit.data.scenes import SPLITS
from peftkit.data.tasks import _task, prompt_text
from peftkit.data.vocabulary import HOME_OF_SHAPE, TASTE_OF_COLOR
from peftkit.errors import PeftkitError

SIZES = dict(train_size=60, validation_size=20, test_size=40)
METRICS = {"scienceqa": "exact_match", "vizwiz": "vqa_accuracy", "iconqa_txt": "exact_match",
           "iconqa_blank": "exact_match", "flickr30k": "cider", "okvqa": "vqa_accuracy", "ocrvqa": "exact_match",
           "vqav2": "vqa_accuracy"}
SEEN = {"okvqa", "ocrvqa", "vqav2"}


def small(name: str, **changes):
    return peftkit.task(name, **SIZES | changes)


def splits(task) -> dict[str, datasets.Dataset]:
    return {name: getattr(task, name) for name in SPLITS}


def content(rows: datasets.Dataset) -> list[dict]:
    """Rows with the bytes of their pictures."""
    return rows.cast_column("image", datasets.Image(decode=False)).to_list()


# ---- what a task is --------------------------------------------------------------------------------------------------

def test_the_eight_tasks_of_zhou2024():
    assert set(ZHOU2024) == set(METRICS)
    assert {name for name in ZHOU2024 if SPECS[name].role == "seen"} == SEEN
    assert {name: SPECS[name].metric for name in ZHOU2024} == METRICS


@pytest.mark.parametrize("name", SPECS)
def test_columns_sizes_and_pictures(name):
    task = small(name)
    for split, rows in splits(task).items():
        assert len(rows) == SIZES[f"{split}_size"]
        assert rows.column_names == ["image", "image_id", "question_id", "question", "answers", "choices", "context"]
        assert isinstance(rows.features["image"], datasets.Image)
        assert rows.features["answers"] == rows.features["choices"] == datasets.List(datasets.Value("string"))
        row = rows[0]
        assert isinstance(row["image"], Image.Image) and row["image"].size == (48, 48) and row["image"].mode == "RGB"
        assert len(row["answers"]) == (10 if task.metric == "vqa_accuracy" else 1)
        assert len(set(rows["question_id"])) == len(rows)


def test_answers_fit_into_max_new_tokens():
    for name in SPECS:
        task = small(name)
        longest = max(len(row["answers"][0].split()) for rows in splits(task).values() for row in content(rows))
        assert longest < task.max_new_tokens


# ---- the same rows, and other rows -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ZHOU2024)
def test_the_same_arguments_give_the_same_rows(name):
    first = {split: content(rows) for split, rows in splits(small(name)).items()}
    _task.cache_clear()
    assert {split: content(rows) for split, rows in splits(small(name)).items()} == first


def test_another_seed_gives_other_rows():
    assert set(small("vqav2").train["image_id"]).isdisjoint(small("vqav2", seed=1).train["image_id"])


def test_splits_share_no_picture_across_all_tasks():
    ids, pictures = {split: set() for split in SPLITS}, {split: set() for split in SPLITS}
    for name in SPECS:
        for split, rows in splits(small(name)).items():
            ids[split] |= set(rows["image_id"])
            pictures[split] |= {row["image"]["bytes"] for row in content(rows)}
    for shared in (ids, pictures):
        assert not shared["train"] & shared["validation"]
        assert not shared["train"] & shared["test"]
        assert not shared["validation"] & shared["test"]


# ---- answers, derived again from the pixels --------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["iconqa_txt", "iconqa_blank", "okvqa", "ocrvqa", "vqav2"])
def test_the_answer_follows_from_the_picture(name, read_scene, oracle):
    task = small(name)
    for rows in splits(task).values():
        for row in rows:
            answer = oracle(row["question"], read_scene(np.asarray(row["image"])))
            assert set(row["answers"]) == {answer}
            assert not row["choices"] or answer in row["choices"]


def test_scienceqa_offers_one_option_that_is_true_of_the_thing(read_scene):
    for row in small("scienceqa").train:
        name = row["question"].split()[5]
        thing = next(t for t in read_scene(np.asarray(row["image"])) if t.name == name)
        truths = {thing.color, HOME_OF_SHAPE[name], TASTE_OF_COLOR[thing.color]}
        assert set(row["answers"]) == truths & set(row["choices"]) and len(row["answers"]) == 1
        assert re.match("the (home|taste) of", row["context"])


def test_flickr30k_describes_in_its_own_style(read_scene):
    for row in small("flickr30k").train:
        parts = row["answers"][0].removeprefix("seen : ").replace(" and ", " , ").split(" , ")
        things = read_scene(np.asarray(row["image"]))
        assert parts == [f"{t.name} in {t.color}" for t in things]


def test_vizwiz_is_unanswerable_exactly_where_the_thing_cannot_be_seen(read_scene, oracle):
    unanswerable, checked = [], 0
    for row in small("vizwiz", train_size=200).train:
        picture = np.asarray(row["image"])
        unanswerable.append(row["answers"][0] == UNANSWERABLE)
        dark, cut = picture.max() < 140, not picture.reshape(3, -1).any(1).all()
        if dark or cut:  # a blurred picture is not read back
            checked += 1
            assert row["answers"][0] == oracle(row["question"], read_scene(picture))
    assert checked > 100
    assert 0.2 < np.mean(unanswerable) < 0.5


# ---- prompts ---------------------------------------------------------------------------------------------------------

def test_prompts_are_filled_from_the_columns():
    row = {"question": "what ?", "context": "a fact", "choices": ["x", "y"], "region": "here"}
    assert prompt_text("{question} {context} {plain_choices}", row) == "what ? a fact x , y"
    assert prompt_text("choices {lettered_choices}", row) == "choices a x b y"
    assert prompt_text("{region} {question}", row) == "here what ?"
    assert prompt_text("describe", {}) == "describe"
    assert prompt_text("{question}", {"question": None}) == ""


def test_a_prompt_with_an_unknown_column_names_it():
    with pytest.raises(PeftkitError, match="unknown prompt column 'questions'; did you mean 'question'"):
        prompt_text("{questions}", {"question": "what ?"})


# ---- real data in the place of drawn data ----------------------------------------------------------------------------

def test_hand_made_splits_take_the_place_of_drawn_ones(tiny_llava):
    pictures = [Image.new("RGB", (64, 40), "red"), Image.new("L", (30, 90), 128)]
    own = datasets.Dataset.from_dict({
        "image": pictures, "image_id": ["1", "2"], "question_id": ["q1", "q2"],
        "question": ["what color is the star ?", "how many are red ?"], "answers": [["red", "orange"], ["2"]],
        "choices": [[], []], "context": ["", ""]})
    task = dataclasses.replace(small("vqav2"), train=own, test=own)
    encoded = encode(tiny_llava.processor, task.train, task.prompt)
    decode = tiny_llava.processor.tokenizer.decode
    assert decode(encoded.prompts[1]).endswith("how many are red ? short answer assistant")
    assert [decode(answer) for answer in encoded.answers] == ["red </s>", "2 </s>"]
    assert encoded.references == [["red", "orange"], ["2"]]
    assert encoded.question_ids == ["q1", "q2"]
    assert encoded.pictures["pixel_values"].shape == (2, 3, 48, 48)


# ---- refusals --------------------------------------------------------------------------------------------------------

def test_an_unknown_task_is_named_and_the_accepted_ones_listed_close_matches_first():
    with pytest.raises(PeftkitError, match="unknown task 'vqa2'; did you mean 'vqav2'") as error:
        peftkit.task("vqa2")
    accepted = str(error.value).split("accepted: ")[1].split(", ")
    assert sorted(accepted) == sorted(SPECS)
    assert accepted[0] == "vqav2"


@pytest.mark.parametrize("size", [0, -5, 2.5, "10", None])
@pytest.mark.parametrize("split", SPLITS)
def test_a_bad_size_is_named(split, size):
    with pytest.raises(PeftkitError, match=rf"{split}_size is {size!r}; accepted: 1 or more"):
        peftkit.task("vqav2", **{f"{split}_size": size})


@pytest.mark.parametrize("name", ["vqav2", "vizwiz", "iconqa_blank"])
def test_several_different_questions_are_asked_about_a_picture(name):
    rows = peftkit.task(name, train_size=60, validation_size=1, test_size=1, questions=5).train
    assert len(rows) == 60
    asked = {}
    for row in rows:
        asked.setdefault(row["image_id"], []).append((row["question"], row["image"].tobytes()))
    several = [questions for questions in asked.values() if len(questions) > 1]
    assert len(several) > 5 and max(map(len, several)) <= 5
    for questions in several:
        assert len({text for text, _ in questions}) == len(questions)  # all different
        assert len({picture for _, picture in questions}) == 1
    ids = [row["image_id"] for row in rows]
    assert ids == [key for key, questions in asked.items() for _ in questions]  # side by side


def test_most_pictures_of_the_mixed_questions_have_all_five():
    rows = peftkit.task("vqav2", train_size=200, validation_size=1, test_size=1, questions=5).train
    assert len(set(rows["image_id"])) <= 44


def test_a_number_of_questions_below_one_is_refused():
    with pytest.raises(PeftkitError, match="questions is 0; accepted: 1 or more"):
        peftkit.task("vqav2", questions=0)
