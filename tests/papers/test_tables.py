"""Main table, figure 2 and differences on made-up studies with known answers."""
import math

import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.papers.zhou2024 import (
    SEEN, UNSEEN, beside, differences, figure2_data, long, main_table, our_table, paper_table, plots, seed_table)
from peftkit.papers.zhou2024.differences import expected_sign, verdict
from peftkit.papers.zhou2024.tables import group_means

ALL = [*UNSEEN, *SEEN, "U", "S", "Avg"]


def score(method, connector, task, seed):
    """Unseen: IA3 gains 0.2 by tuning, the others 0.1; seen: everyone loses 0.02; the seed adds noise that cancels."""
    if method == "none":
        return 0.25 if task in UNSEEN else 0.95
    if task in SEEN:
        return 0.94 - 0.02 * (connector == "tuned") + 0.001 * (seed - 43)
    gain = (0.2 if method == "ia3" else 0.1) * (connector == "tuned")
    return {"lora": 0.8, "adapter": 0.7, "ia3": 0.5, "prefix-peft": 0.4}[method] + gain + 0.001 * (seed - 43)


def test_our_table_has_seed_means_and_the_zero_shot_row(frame_of):
    table = our_table(frame_of(score))
    assert table.shape == (9, 11) and list(table.columns) == ALL
    assert table.loc[("tiny-llava-s", "none", "none"), ["U", "S", "Avg"]].tolist() == pytest.approx(
        [0.25, 0.95, (5 * 0.25 + 3 * 0.95) / 8])
    assert table.loc[("tiny-llava-s", "lora", "tuned"), "U"] == pytest.approx(0.9)


def test_a_configuration_that_lacks_a_task_is_refused(frame_of):
    frame = frame_of(score)
    lacking = frame[~((frame["method"] == "lora") & (frame["task"] == "okvqa") & (frame["seed"] == 43))]
    with pytest.raises(PeftkitError, match="2 configurations lack a task, the first is tiny-llava-s lora frozen 43"):
        seed_table(lacking)


def test_the_smoke_tier_means_over_the_tasks_it_has(frame_of):
    table = our_table(frame_of(score, tasks=("iconqa_blank", "vqav2"), seeds=(42,)))
    assert list(table.columns) == ["iconqa_blank", "vqav2", "U", "S", "Avg"]
    assert (table["U"] == table["iconqa_blank"]).all()


def test_paper_and_ours_stand_beside_each_other(frame_of):
    pair = beside(main_table(frame_of(score)), "tiny-llava-s")
    assert pair.shape == (17, 11)
    assert pair.loc[("lora", "frozen", "llava_1.5_7b"), "scienceqa"] == 85.2
    assert pair.loc[("lora", "frozen", "tiny-llava-s"), "scienceqa"] == 80.0


def test_long_names_every_score_once(frame_of):
    flat = long(main_table(frame_of(score)))
    assert len(flat) == (9 + 32) * 11 and not flat.duplicated(["source", "method", "connector", "column"]).any()
    assert list(flat.columns) == ["source", "method", "connector", "column", "score"]


def test_group_means_carry_t_intervals_and_every_seed(frame_of):
    means = group_means(seed_table(frame_of(score))).set_index(["method", "connector", "group", "row"])
    row = means.loc[("lora", "frozen", "unseen", "mean")]
    half = 4.302653 * 0.001 / math.sqrt(3)
    assert (row["score"], row["low"], row["high"]) == pytest.approx((0.8, 0.8 - half, 0.8 + half), abs=1e-7)
    assert means.loc[("lora", "frozen", "unseen", "seed 44"), "score"] == pytest.approx(0.801)


def test_figure_2_holds_both_sides_and_zero_shot(frame_of):
    data = figure2_data(frame_of(score))
    assert data["source"].unique().tolist() == ["tiny-llava-s", "paper"]
    assert not data.duplicated(["source", "method", "connector", "group", "row"]).any()
    paper = data[(data["source"] == "paper") & (data["row"] == "mean")]
    assert len(paper) == 16 and paper["low"].isna().all()
    assert data.query("method == 'none' and group == 'seen'")["score"].tolist() == [pytest.approx(0.95)]


def test_differences_are_paired_and_judged(frame_of):
    table = differences(frame_of(score)).set_index(["claim", "difference"])
    assert len(table) == 7
    assert table.loc[("B1", "IA3: U tuned − frozen"), "ours"] == pytest.approx(0.2)
    assert table.loc[("B3", "gain of IA3 − other methods"), "ours"] == pytest.approx(0.1)
    assert table.loc[("C3", "U frozen: LoRA, Adapter − IA3, Prefix"), "ours"] == pytest.approx(0.3)
    assert table.loc[("B4", "S frozen − tuned, all methods"), "ours"] == pytest.approx(0.02)
    assert (table["verdict"] == "supported").all() and (table["seeds"] == 3).all()
    printed = table.loc[("B1", "IA3: U tuned − frozen"), "printed"]
    assert printed == pytest.approx(0.217, abs=0.0005)  # facts, B3
    assert table.loc[("B4", "S frozen − tuned, all methods"), "on_paper"] == "unresolved"  # facts, B4: within 0.8


def test_one_seed_resolves_nothing(frame_of):
    table = differences(frame_of(score, seeds=(42,)))
    assert (table["verdict"] == "unresolved").all() and table["p_holm"].isna().all()


def test_on_the_resampler_the_paper_expects_the_reverse(frame_of):
    table = differences(frame_of(score, base="tiny-idefics2")).set_index("difference")
    assert "gain of IA3 − other methods" not in table.index and expected_sign("B3", "tiny-idefics2") == 0
    row = table.loc["LoRA: U tuned − frozen"]
    assert (row["expected"], row["verdict"], row["on_paper"]) == ("-", "contradicted", "supported")


@pytest.mark.parametrize("sign, low, high, word", [
    (1, 0.01, 0.02, "supported"), (-1, 0.01, 0.02, "contradicted"), (1, -0.02, -0.01, "contradicted"),
    (-1, -0.02, -0.01, "supported"), (1, -0.01, 0.02, "unresolved"), (1, 0.0, 0.02, "unresolved"),
    (1, math.nan, math.nan, "unresolved")])
def test_verdict(sign, low, high, word):
    assert verdict(sign, low, high) == word


def test_a_claim_without_a_direction_has_no_verdict():
    with pytest.raises(PeftkitError, match="sign is 0; accepted: 1 or -1"):
        verdict(0, 0.1, 0.2)


@pytest.mark.parametrize("tasks, seeds", [(UNSEEN + SEEN, (42, 43)), (("iconqa_blank", "vqav2"), (42,))])
def test_every_figure_draws_in_both_tiers(frame_of, tasks, seeds):
    frame = frame_of(score, tasks=tasks, seeds=seeds)
    panels = [len(plots.table_heatmap(main_table(frame)).axes), len(plots.figure2(figure2_data(frame)).axes),
              len(plots.forest(differences(frame)).axes)]
    assert panels == [2 + 1, 2 * 2, 1]  # heat maps and color bar; two groups × (ours, paper); one base
    plots.plt.close("all")


def test_the_papers_table_is_complete():
    table = paper_table()
    assert table.shape == (32, 11) and table.notna().all(axis=None) and isinstance(table, pd.DataFrame)
