"""The two drawings of all methods leave none out, and what they draw can be read."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from peftkit.methods import METHODS, plots


@pytest.mark.parametrize("groups", [plots.FAMILIES, plots.PLACES], ids=["families", "places"])
def test_every_method_is_in_one_group(groups):
    grouped = [method for methods in groups.values() for method in methods]
    assert sorted(grouped) == sorted(METHODS)


def test_every_method_has_a_tag_of_its_family_in_the_picture_of_sites():
    figure, drawn = plots.sites()
    assert set(drawn["method"]) == set(METHODS)
    assert all(row.method in plots.FAMILIES[row.family] for row in drawn.itertuples())
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert all(texts.count(method) >= count for method, count in drawn["method"].value_counts().items())
    assert not drawn.duplicated(["method", "tag"]).any()
    plt.close(figure)


def test_tags_of_the_picture_of_sites_do_not_overlap():
    figure, drawn = plots.sites()
    figure.canvas.draw()
    tags = [text for text in figure.axes[0].texts if text.get_text() in set(drawn["method"]) and text.get_bbox_patch()]
    boxes = [text.get_bbox_patch().get_window_extent() for text in tags]
    clashes = [(a.get_text(), b.get_text()) for i, a in enumerate(tags) for j, b in enumerate(tags)
               if i < j and boxes[i].overlaps(boxes[j].shrunk(0.8, 0.6))]
    plt.close(figure)
    assert len(tags) == len(drawn) and not clashes


def test_labels_of_arms_of_one_size_are_moved_apart():
    runs = pd.DataFrame([{"arm": name, "place": "in every block", "trainable": 1000, "seed": seed, "accuracy": 0.7}
                         for name in "abc" for seed in (1, 2)])
    figure = plots.size_and_score(runs, {"zero-shot": 0.1})
    heights = np.sort([text.xyann[1] for text in figure.axes[0].texts if text.get_text() in "abc"])
    plt.close(figure)
    assert len(heights) == 3 and np.diff(heights).min() >= 0.03
    assert heights.mean() == pytest.approx(0.7)
