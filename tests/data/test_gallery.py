"""The gallery shows the first rows with what was asked, what is right, and what was predicted."""
import matplotlib.pyplot as plt
import numpy as np
import pytest

import peftkit
from peftkit.errors import PeftkitError


@pytest.fixture(scope="module")
def task():
    return peftkit.task("scienceqa", train_size=6, validation_size=1, test_size=1)


def shown(figure):
    return [axis for axis in figure.axes if axis.images]


def test_every_picture_stands_under_its_prompt_and_over_its_answer(task):
    figure = peftkit.gallery(task.train, prompt=task.prompt, n=5, columns=3)
    assert len(figure.axes) == 6 and len(shown(figure)) == 5
    for axis, row in zip(shown(figure), task.train):
        assert (axis.images[0].get_array() == np.asarray(row["image"])).all()
        title = axis.get_title().replace("\n", " ")
        assert row["question"] in title and row["context"] in title
        assert axis.texts[0].get_text() == f"answer: {row['answers'][0]}"


def test_predictions_stand_beside_the_answer(task):
    figure = peftkit.gallery(task.train, n=2, predictions={"before": ["b", "c"], "after": ["a", "a"]})
    answers = [row["answers"][0] for row in task.train.select(range(2))]
    texts = [axis.texts[0].get_text() for axis in shown(figure)]
    assert texts == [f"answer: {answers[0]}\nbefore: b\nafter: a", f"answer: {answers[1]}\nbefore: c\nafter: a"]


def test_no_more_pictures_than_rows(task):
    assert len(shown(peftkit.gallery(task.train, n=50))) == 6


def test_the_figure_is_closed_and_can_be_saved(task, tmp_path):
    figure = peftkit.gallery(task.train, n=1)
    assert not plt.get_fignums()
    figure.savefig(tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 1000


def test_long_answers_are_wrapped():
    task = peftkit.task("flickr30k", train_size=4, validation_size=1, test_size=1)
    lines = [axis.texts[0].get_text().split("\n") for axis in shown(peftkit.gallery(task.train))]
    assert max(len(line) for text in lines for line in text) <= 32


@pytest.mark.parametrize("n,columns", [(0, 4), (-1, 4), (3, 0)])
def test_nothing_to_show_is_refused(task, n, columns):
    with pytest.raises(PeftkitError, match="accepted: 1 or more"):
        peftkit.gallery(task.train, n=n, columns=columns)


def test_too_few_predictions_are_refused(task):
    with pytest.raises(PeftkitError, match="'lora' has 1 predictions for 3 pictures"):
        peftkit.gallery(task.train, n=3, predictions={"lora": ["red"]})
