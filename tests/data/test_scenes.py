"""The drawn world keeps its promises: what the graph says is on the picture, and splits share nothing."""
import time

import numpy as np
import pytest

from peftkit.data.scenes import EMPTY, NUMBER, SIZE, SPLITS, degrade, sample_scenes
from peftkit.data.sprites import atlas
from peftkit.errors import PeftkitError

STYLES = ("mixed", "icons")


def scenes_of(split="train", n=200, style="mixed", seed=0):
    return sample_scenes(np.random.default_rng(seed), n, split, style)


@pytest.fixture(scope="module")
def large():
    return {(split, style): scenes_of(split, 3000, style) for split in SPLITS for style in STYLES}


# ---- the graph and the pixels ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_picture_shows_exactly_the_scene_graph(split, style, read_scene):
    scenes = scenes_of(split, 100, style)
    for i, picture in enumerate(scenes.draw()):
        assert read_scene(picture) == scenes.things(i)


def test_an_empty_cell_is_nothing_but_ground():
    scenes = scenes_of()
    cells = scenes.draw().reshape(-1, 3, 16, 3, 16, 3).swapaxes(2, 3).reshape(-1, 9, 256, 3)
    empty = scenes.kind == EMPTY
    ground = np.broadcast_to(scenes.ground[:, None, None], cells.shape).astype(np.uint8)
    assert (cells[empty] == ground[empty]).all()
    assert (cells[~empty] != ground[~empty]).any((1, 2)).all()


def test_pictures_are_48_by_48_bytes():
    pictures = scenes_of(n=5).draw()
    assert pictures.shape == (5, SIZE, SIZE, 3) and SIZE == 48
    assert pictures.dtype == np.uint8


@pytest.mark.parametrize("style,low,high", [("mixed", 2, 5), ("icons", 3, 7)])
def test_the_number_of_things(style, low, high, large):
    things = (large["train", style].kind != EMPTY).sum(1)
    assert set(things) == set(range(low, high + 1))


def test_icons_are_shapes_of_three_kinds_and_three_colors_at_most(large):
    scenes = large["train", "icons"]
    for i in range(300):
        things = scenes.things(i)
        assert {t.kind for t in things} == {"shape"}
        assert len({t.name for t in things}) <= 3
        assert len({t.color for t in things}) <= 3


# ---- splits ----------------------------------------------------------------------------------------------------------

def test_splits_share_no_scene(large):
    keys = {split: set(np.concatenate([large[split, style].keys() for style in STYLES]).tolist()) for split in SPLITS}
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]


def test_the_key_is_the_scene_graph(large):
    scenes = large["train", "icons"]
    graphs = [tuple(scenes.things(i)) for i in range(len(scenes))]
    pairs = set(zip(graphs, scenes.keys().tolist()))
    assert len(pairs) == len(set(graphs)) == len(set(scenes.keys().tolist()))


def test_splits_share_no_handwritten_digit(large):
    used = {split: set(large[split, "mixed"].sprite[large[split, "mixed"].kind == NUMBER].tolist()) for split in SPLITS}
    assert all(len(scans) > 100 for scans in used.values())
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]


def test_digit_scans_differ_between_splits_also_by_their_pixels():
    sheet = atlas()
    scans = {split: {sheet.masks[n].tobytes() for numbers in sheet.digits[split] for n in numbers} for split in SPLITS}
    assert sum(map(len, scans.values())) == 1797 == len(set.union(*scans.values()))


# ---- determinism and speed -------------------------------------------------------------------------------------------

def test_the_same_generator_draws_the_same_scenes():
    first, second, other = scenes_of(seed=3), scenes_of(seed=3), scenes_of(seed=4)
    assert (first.draw() == second.draw()).all()
    assert (first.keys() == second.keys()).all()
    assert (first.keys() != other.keys()).any()


def test_2000_scenes_a_second_on_one_core():
    atlas()
    rng, rates = np.random.default_rng(0), []
    for _ in range(4):
        start = time.process_time()
        sample_scenes(rng, 500, "test").draw()
        rates.append(500 / (time.process_time() - start))
    assert max(rates) > 2000, rates


# ---- spoiled pictures ------------------------------------------------------------------------------------------------

def test_degrade_blurs_darkens_or_cuts_one_row_off():
    pictures = scenes_of(n=300).draw()
    spoiled, cut = degrade(np.random.default_rng(0), pictures)
    assert spoiled.shape == pictures.shape and spoiled.dtype == np.uint8
    black = ~spoiled.reshape(-1, 3, 16 * SIZE * 3).any(2)  # (N, 3): rows of cells that are gone
    assert (black.sum(1) == (cut >= 0)).all()
    assert (black.argmax(1) == cut)[cut >= 0].all()
    brightness = spoiled.mean((1, 2, 3)) / pictures.mean((1, 2, 3))
    dark, blurred = (brightness < 0.55) & (cut < 0), (brightness > 0.97) & (cut < 0)
    assert (dark | blurred | (cut >= 0)).all()
    assert min(dark.mean(), blurred.mean(), (cut >= 0).mean()) > 0.25


def test_degrade_leaves_its_input_and_the_rows_that_are_not_cut():
    pictures = scenes_of(n=60).draw()
    before = pictures.copy()
    spoiled, cut = degrade(np.random.default_rng(0), pictures)
    assert (pictures == before).all()
    for i in np.flatnonzero(cut >= 0):
        kept = np.repeat(np.arange(3) != cut[i], 16)
        assert (spoiled[i][kept] == pictures[i][kept]).all()


# ---- refusals --------------------------------------------------------------------------------------------------------

def test_unknown_split_and_style_are_named():
    with pytest.raises(PeftkitError, match="unknown split 'tests'; did you mean 'test'"):
        scenes_of("tests")
    with pytest.raises(PeftkitError, match="unknown scene style 'icon'; did you mean 'icons'"):
        scenes_of(style="icon")
