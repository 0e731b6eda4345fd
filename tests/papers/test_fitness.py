"""The rule of a fit task, at its borders and on made-up studies."""
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.papers.zhou2024 import fitness, is_fit, resolution

GOOD = {"zero_shot": 0.30, "best": 0.90, "spread": 5.0}


@pytest.mark.parametrize("changed, fit", [
    ({}, True),
    ({"zero_shot": 0.75, "best": 0.90}, True),
    ({"zero_shot": 0.76}, False),  # less than 0.15 of headroom
    ({"best": 0.849}, False),
    ({"best": 0.85}, True),
    ({"spread": 3.0}, True),
    ({"spread": 2.99}, False),
    ({"spread": math.inf}, True),
    ({"spread": math.nan}, None),  # one seed
    ({"spread": math.nan, "best": 0.5}, False),
])
def test_an_unseen_task(changed, fit):
    assert is_fit("unseen", **GOOD | changed) is fit


@pytest.mark.parametrize("zero_shot, fit", [(0.849, False), (0.85, True), (0.93, True), (0.99, True), (0.991, False)])
def test_a_seen_task_asks_for_zero_shot_only(zero_shot, fit):
    assert is_fit("seen", zero_shot=zero_shot, best=0.2, spread=math.nan) is fit


def test_another_role_is_refused():
    with pytest.raises(PeftkitError, match="unknown role 'new'; accepted: unseen, seen"):
        is_fit("new", **GOOD)


def by_method(method, connector, task, seed):
    if method == "none":
        return 0.3 if task == "vizwiz" else 0.9
    return {"lora": 0.9, "adapter": 0.8, "ia3": 0.5, "prefix-peft": 0.6}[method] + 0.01 * (seed - 43)


def test_the_table_measures_what_the_rule_needs(frame_of):
    table = fitness(frame_of(by_method, tasks=("okvqa", "vizwiz"))).set_index("task")
    assert list(table.index) == ["vizwiz", "okvqa"], "tasks come in the paper's order"
    row = table.loc["vizwiz"]
    assert (row["role"], row["fit"], row["best_of"]) == ("unseen", "yes", "lora frozen")
    assert row["zero_shot"] == 0.3 and row["best"] == pytest.approx(0.9)
    assert row["seed_sd"] == pytest.approx(0.01) and row["spread"] == pytest.approx(0.4 / 0.01)
    assert table.loc["okvqa", "role"] == "seen" and table.loc["okvqa", "fit"] == "yes"


def test_full_fine_tuning_is_no_contestant(frame_of):
    frame = frame_of(by_method, tasks=("vizwiz",))
    full = frame[(frame["method"] == "lora") & (frame["connector"] == "tuned")].assign(method="language", score=1.0)
    assert fitness(pd.concat([frame, full])).equals(fitness(frame))


def test_one_seed_leaves_the_question_open(frame_of):
    table = fitness(frame_of(by_method, tasks=("vizwiz",), seeds=(42,)))
    assert table["fit"].tolist() == ["?"] and table["spread"].isna().all()


def test_no_noise_at_all_is_an_endless_spread(frame_of):
    table = fitness(frame_of(lambda m, c, t, s: by_method(m, c, t, 43), tasks=("vizwiz",)))
    assert table["spread"].tolist() == [math.inf] and table["fit"].tolist() == ["yes"]


def test_resolution_is_that_of_the_paired_change():
    def record(method, scores, **options):
        config = {"base": "tiny-llava-s", "task": "okvqa", "method": method, "options": options}
        return SimpleNamespace(config=config, predictions=pd.DataFrame({"score": scores}))

    zero_shot, first, second = [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0]
    table = resolution([record("none", zero_shot), record("lora", first, connector="tuned"),
                        record("lora", second, connector="tuned")])
    change = np.array([0.0, 0.5, 0.0, -0.5])
    assert table["resolves"].tolist() == [pytest.approx(1.96 * change.std(ddof=1) / 2)]
    assert table[["base", "task"]].values.tolist() == [["tiny-llava-s", "okvqa"]]
