"""Main table, figure 2 and the figure of verdicts on made-up studies with known answers."""
import math

import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.papers.claims import claims
from peftkit.papers.zhou2024 import (
    SEEN, UNSEEN, beside, figure2_data, long, main_table, our_table, paper_table, plots, seed_table)
from peftkit.papers.zhou2024.cells import printed_cells
from peftkit.papers.zhou2024.claims import CLAIMS
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


@pytest.fixture
def with_full(frame_of):
    """A frame with full fine-tuning: 0.95 on everything."""
    frame = frame_of(score)
    full = frame[(frame["method"] == "lora") & (frame["connector"] == "tuned")].assign(method="language", score=0.95)
    return pd.concat([frame, full])


@pytest.fixture(scope="module")
def printed():
    return printed_cells()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plots.plt.close("all")


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


def test_full_fine_tuning_is_a_row_of_tables_and_figures_and_no_contestant(with_full):
    table = main_table(with_full)
    assert our_table(with_full).shape == (10, 11)
    pair = beside(table, "tiny-llava-s")
    assert pair.index.get_level_values("method")[:2].tolist() == ["none", "language"], "above the eight configurations"
    assert pair.loc[("language", "tuned", "tiny-llava-s"), "scienceqa"] == 95.0
    labels = [tick.get_text() for tick in plots.table_heatmap(table).axes[0].get_yticklabels()]
    assert labels[:4] == ["zero-shot", "full fine-tuning", "LoRA frozen", "LoRA tuned"]
    data = figure2_data(with_full)
    assert len(data.query("source == 'tiny-llava-s' and method == 'language' and row == 'mean'")) == 2
    dotted = [line for line in plots.figure2(data).axes[0].get_lines() if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [pytest.approx(0.95)]


def test_the_papers_seen_panel_has_another_level_at_the_same_scale(with_full):
    axes = plots.figure2(figure2_data(with_full)).axes
    low, high = zip(*(axis.get_ylim() for axis in axes))
    assert low[0] == low[1] and high[0] == high[1], "unseen tasks share their limits"
    assert high[2] > 0.9 > 0.75 > high[3] and high[2] - low[2] == pytest.approx(high[3] - low[3])


@pytest.mark.parametrize("tasks, seeds", [(UNSEEN + SEEN, (42, 43)), (("iconqa_blank", "vqav2"), (42,))])
def test_every_figure_draws_in_both_tiers(frame_of, tasks, seeds):
    frame = frame_of(score, tasks=tasks, seeds=seeds).assign(study="zhou2024")
    panels = [len(plots.table_heatmap(main_table(frame)).axes), len(plots.figure2(figure2_data(frame)).axes),
              len(plots.verdicts(claims("zhou2024", frame)).axes)]
    assert panels == [2 + 1, 2 * 2, 4 * 3]  # heat maps and color bar; two groups × (ours, paper); sides of four units


def words(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def row(verdict_ours="supported", effect=3.0, low=2.0, high=4.0, **changed):
    made = {"id": "A1", "claim": "LoRA is ahead.", "verdict_paper": "contradicted", "verdict_ours": verdict_ours,
            "effect": effect, "low": low, "high": high, "note": "paper: +1 x. ours: a − b", "unit": "points"}
    return made | changed


@pytest.mark.parametrize("verdict", plots.VERDICT_STYLE)
def test_both_verdicts_can_be_read_without_color(verdict):
    shown = words(plots.verdicts(pd.DataFrame([row(verdict, *[math.nan] * 3 if " " in verdict else ())])))
    assert shown == ["A1", "LoRA is ahead.", "✖ contradicted", f"{plots.GLYPHS[verdict]} {verdict}", "paper", "ours"]
    assert len(set(plots.GLYPHS.values())) == len(plots.VERDICT_STYLE)


def test_units_do_not_mix_and_claims_stand_in_the_ledgers_order():
    rows = [row(id="A1"), row(id="B1", unit="%", note="ours: c > 50", effect=80.0, low=70.0, high=90.0), row(id="B2")]
    figure = plots.verdicts(pd.DataFrame(rows))
    assert [axis.get_xlabel() for axis in figure.axes if axis.get_xlabel()] == ["effect, points", "effect, %"]
    heights = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert heights["A1"] > heights["B2"] and "B1" in words(figure)
    low, high = figure.axes[4].get_xlim()
    assert low < 50 and high > 90, "the bound and the interval are inside the panel"


@pytest.mark.parametrize("note, bounds", [
    ("paper: +20 x > 10. ours: tuned − frozen (lora), 2 of 3 supported. in print > 7 points", (0.0, math.inf)),
    ("ours: U tuned > U frozen, % of model × method > 50: an interval needs two seeds", (50.0, math.inf)),
    ("ours: adapter − lora (tuned) in (-1, 1), 3 of 3 supported", (-1.0, 1.0))])
def test_the_claimed_range_is_read_from_the_note(note, bounds):
    assert plots.claimed_range(note) == bounds


@pytest.mark.parametrize("name", CLAIMS)
def test_the_range_in_the_note_is_that_of_the_deciding_effect(name, printed):
    note, effects = CLAIMS[name].judge(printed).note, CLAIMS[name].predicate(printed)
    deciding = max((effect for effect in effects if note.startswith(effect)), key=len)
    assert plots.claimed_range(f"ours: {note}") == effects[deciding][1:]


def test_the_papers_table_is_complete():
    table = paper_table()
    assert table.shape == (32, 11) and table.notna().all(axis=None) and isinstance(table, pd.DataFrame)
