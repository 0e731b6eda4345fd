"""Notebook 03b: both sides of what the paper varies as numbers, the choice of rates, and the drawings."""
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.papers.zhou2024 import RATES, SEEN, SIZES, UNSEEN, both_sides, printed_table, rates, varied_plots
from peftkit.papers.zhou2024.cells import experiment, printed_experiment
from peftkit.papers.zhou2024.varied import CONNECTOR_RATE, GRID, PAPER_RATES, STABILITY, VISION
from peftkit.stats import Interval, equivalence, mean_interval

BASE, RESAMPLER = "tiny-llava-s", "tiny-idefics2"
GROUPS = {"U": UNSEEN, "S": SEEN}
WOBBLE = {42: 0.00, 43: 0.01, 44: 0.03}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def main(frame_of):
    """The main study on a base: every method scores 0.5, plus a wobble that all share by seed; full fine-tuning 0.9."""
    def build(base=BASE):
        runs = frame_of(lambda m, c, t, seed: 0.3 if m == "none" else 0.5 + WOBBLE[seed], base=base)
        full = runs[(runs["method"] == "lora") & (runs["connector"] == "tuned")].assign(method="language")
        frame = pd.concat([runs, full.assign(score=full["score"] + 0.4)]).assign(study="zhou2024", train_size=800)
        return frame.assign(learning_rate=[RATES.get(m, {}).get("learning_rate") for m in frame["method"]],
                            connector_learning_rate=CONNECTOR_RATE, vision=None)

    return build


def varied(main: pd.DataFrame, study: str, **columns) -> pd.DataFrame:
    """Runs of another study: those of the main study with other columns; score is added to."""
    runs = main[main["method"].isin(SIZES) & (main["connector"] == "tuned")]
    return runs.assign(study=study, **columns | {"score": runs["score"] + columns.get("score", 0.0)})


# ── numbers ──

@pytest.mark.parametrize("n, low, high", [(3, 0.5207, 6.285), (7, 0.6444, 2.202)])  # tables of chi-square
def test_the_interval_of_a_standard_deviation_is_wide(n, low, high):
    assert both_sides.sd_interval(2.0, n) == pytest.approx((2 * low, 2 * high), rel=1e-3)


def test_means_have_the_t_interval_of_the_package(main):
    data = both_sides.levels(pd.concat([main(), varied(main(), "zhou2024-data", train_size=80, score=-0.2)]),
                             "zhou2024-data", BASE, GROUPS)
    row = data[(data["method"] == "ia3") & (data["level"] == 80) & (data["group"] == "U")].iloc[0]
    expected = mean_interval([30, 31, 33])
    assert row[["score", "low", "high", "sd"]].tolist() == pytest.approx(
        [expected.mean, expected.low, expected.high, expected.sd]) and row["n"] == 3
    assert set(data.loc[data["side"] == "ours", "level"].dropna()) == {80, 800}  # the largest is the main study's


def test_untouched_base_and_full_fine_tuning_are_lines_where_their_tasks_are_known(main):
    lines = both_sides.references(main(), BASE, {"U": UNSEEN, "other": ("okvqa", "unknown")}).set_index("method")
    assert lines.loc["none", "score"] == pytest.approx(30) and pd.isna(lines.loc["none", "low"])
    assert lines.loc["language", "score"] == pytest.approx(100 * (0.9 + 0.04 / 3))
    assert lines.loc["language", "low"] < lines.loc["language", "score"] and set(lines["group"]) == {"U"}


def test_the_papers_standard_deviations_are_of_three_seeds(main):
    data = both_sides.levels(varied(main(), "zhou2024-size", rank=4.0), "zhou2024-size", BASE,
                             {task: (task,) for task in STABILITY})
    row = data.query("side == 'paper' and method == 'prefix-peft' and level == 40 and group == 'scienceqa'").iloc[0]
    assert (row["score"], row["sd"], row["n"]) == (56.2, 19.2, 3)
    assert row["high"] - row["score"] == pytest.approx(4.3027 * 19.2 / 3**0.5, rel=1e-4)
    spread = both_sides.spreads(data).query("side == 'paper' and method == 'prefix-peft' and level == 40")
    assert spread["score"].tolist() == [0.27, 19.2] and (spread["high"] > 6 * spread["score"]).all()


def test_the_papers_relative_gains_are_those_of_its_figure_6(main):
    seeds = both_sides.seed_scores(varied(main(), "zhou2024-data"), "zhou2024-data", BASE, {"Avg": UNSEEN + SEEN})
    gains = both_sides.relative_gains(seeds).query("side == 'paper'").set_index(["level", "method"])["score"]
    expected = {"small to medium": (10.3, 13.4, 14.2, 16.3), "medium to large": (4.9, 6.8, 4.0, 8.3)}  # facts 4.3
    for step, values in expected.items():
        assert gains[step][list(SIZES)].tolist() == pytest.approx(values, abs=0.06)


def test_a_change_is_paired_by_seed(main):
    frame = pd.concat([main(), varied(main(), "zhou2024-vision", vision="tuned", score=0.02).query("seed != 42")])
    seeds = both_sides.seed_scores(frame, "zhou2024-vision", BASE, {"four": VISION})
    found = both_sides.changes(seeds, dict.fromkeys(SIZES, "frozen"))
    ours = found[found["side"] == "ours"]
    assert ours["method"].tolist() == list(SIZES) and (ours["n"] == 2).all()
    assert ours[["score", "low", "high"]].to_numpy().tolist() == [pytest.approx([2.0] * 3)] * 4
    paper = found[found["side"] == "paper"].set_index("method")["score"]
    assert paper.round(1).to_dict() == {"lora": -0.1, "adapter": 0.0, "ia3": 0.1, "prefix-peft": -0.3}


def test_the_smallest_margin_is_where_equivalence_starts():
    found = pd.DataFrame([{"method": "lora", "score": 0.2, "low": 0.0, "high": 0.4, "n": 5, "sd": 0.3}])
    row, change = both_sides.equivalences(found, 0.5).iloc[0], Interval(0.2, 0.0, 0.4, 5, 0.3)
    assert row["equivalent"] == equivalence(change, 0.5).equivalent
    assert equivalence(change, 1.001 * row["smallest"]).equivalent
    assert not equivalence(change, 0.999 * row["smallest"]).equivalent
    assert both_sides.equivalences(found.assign(n=1), 0.5).empty


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_the_switch_is_read_from_the_rate_of_the_vocabulary(main):
    frame = main(RESAMPLER)
    for rate, gain in ((CONNECTOR_RATE, -0.1), (1e-2, 0.1)):
        frame = pd.concat([frame, varied(frame, "zhou2024-vocabulary", connector="frozen",
                                         connector_learning_rate=rate, score=gain).query("study != 'zhou2024'")
                           .drop_duplicates(["method", "task", "seed"])])
    found = both_sides.changes(both_sides.switch_scores(frame, GROUPS), dict.fromkeys(SIZES, "frozen"))
    ours = found[found["side"] == "ours"].groupby("level")["score"].mean()
    released, paper = both_sides.VOCABULARY
    assert ours.to_dict() == pytest.approx({"connector": 0.0, released: 10.0, paper: -10.0})
    printed = found[(found["side"] == "paper") & (found["group"] == "S")].set_index("method")["score"]
    assert printed.round(1).to_dict() == {"lora": -9.0, "adapter": -3.6, "ia3": -2.2, "prefix-peft": 2.2}
    like = both_sides.likeness(found).set_index("level")
    assert like["signs"].to_dict() == {"connector": 7 / 8, released: 1 / 8, paper: 7 / 8}


def test_both_sides_refuse_what_no_study_or_table_has(main):
    with pytest.raises(PeftkitError, match="unknown study 'zhou2024-vocabulary'"):
        printed_experiment("zhou2024-vocabulary")
    with pytest.raises(PeftkitError, match="runs of study zhou2024-location lack the column placement"):
        experiment(main(), "zhou2024-location")


# ── what the choice of rates decides ──

@pytest.fixture
def rated(main):
    """Every method scores 60 at its own best rate and 50 elsewhere; LoRA 55 and prefix 40, but 70 at the paper's."""
    parts = [main()]
    for rate in GRID:
        part = varied(main(), "zhou2024-rates", learning_rate=rate)
        parts.append(part[part["method"].map(lambda method: RATES[method]["learning_rate"] != rate)])
    frame = pd.concat(parts)
    own = frame["learning_rate"] == frame["method"].map(lambda m: RATES.get(m, {}).get("learning_rate"))
    prefix = frame["method"] == "prefix-peft"
    bonus = 0.1 * own - 0.05 * (frame["method"] == "lora") + 0.2 * (~own & prefix) - 0.2 * (own & prefix)
    return frame.assign(score=frame["score"] + bonus)


@pytest.fixture
def chosen(rated):
    return rates.choices(both_sides.seed_scores(rated, "zhou2024-rates", BASE, {"both": STABILITY}))


def test_the_anchor_is_the_papers_printed_rate_times_fifty():
    printed = printed_table("table11_hyperparameters").query("hyperparameter == 'learning_rate'")
    assert {row.method: float(row.value) * rates.ANCHOR for row in printed.itertuples()} == pytest.approx(PAPER_RATES)


def test_choices_are_runs_at_the_papers_and_at_the_own_rates(chosen):
    ours = chosen[chosen["side"] == "ours"].groupby(["rates", "method"])["level"].unique()
    for method in SIZES:
        assert ours["paper's", method].tolist() == [PAPER_RATES[method]]
        assert ours["own best", method].tolist() == [RATES[method]["learning_rate"]]
    paper = chosen[chosen["side"] == "paper"].set_index(["rates", "method"])["level"]
    assert paper["own best"].to_dict() == {"lora": 5e-5, "adapter": 5e-6, "ia3": 2e-4, "prefix-peft": 1e-5}  # Table 14


def test_a_pair_changes_order_where_both_intervals_say_so(chosen):
    pairs = rates.order_changes(chosen).set_index(["a", "b"])["order"]
    assert len(pairs) == 6
    assert pairs[[("lora", "prefix-peft"), ("adapter", "prefix-peft")]].tolist() == ["changed, resolved"] * 2
    assert pairs["lora", "adapter"] == "changed, resolved" and pairs["adapter", "ia3"] == "kept"


def test_order_needs_two_seeds(chosen):
    assert rates.order_changes(chosen[chosen["seed"] == 42]).empty


# ── drawings ──

def test_curves_have_a_panel_a_side_and_group_and_mark_the_chosen_rates(rated, chosen):
    data = both_sides.marked(both_sides.levels(rated, "zhou2024-rates", BASE, {"both": STABILITY}), chosen)
    axes = varied_plots.curves(data, xlabel="learning rate", xscale="log").axes
    assert [axis.get_title() for axis in axes] == ["paper: both", "ours: both"]
    rings = [line for line in axes[1].lines if line.get_markersize() == 12 and len(line.get_xdata())]
    assert len(rings) == 8  # each method at two choices
    assert {line.get_linestyle() for line in axes[1].lines} >= {"--", ":"}  # untouched base, full fine-tuning


def test_a_forest_has_one_mark_a_row_and_no_bar_without_an_interval():
    data = pd.DataFrame([("p", "LoRA", "ours", 1.0, 0.5, 1.5), ("p", "LoRA", "paper", 2.0, None, None)],
                        columns=["panel", "line", "series", "score", "low", "high"]).astype({"low": float})
    axis = varied_plots.forest(data, xlabel="points", band=0.5).axes[0]
    assert len(axis.containers) == 2
    assert [container.has_xerr for container in axis.containers] == [True, False]


def test_slopes_cross_where_the_ranking_turns(chosen):
    figure = varied_plots.slopes(both_sides.summarize(chosen))
    assert [axis.get_title() for axis in figure.axes] == ["paper: both", "ours: both"]
    assert len(figure.axes[1].containers) == len(SIZES)


def test_one_side_alone_can_be_drawn(main):
    alone = varied(main(), "zhou2024-data", train_size=80).query("seed == 42 and task == 'vizwiz'")
    data = both_sides.levels(alone, "zhou2024-data", BASE, GROUPS)
    assert data.query("side == 'ours'")["low"].isna().all()
    varied_plots.curves(data, xlabel="training examples", xscale="log")
    assert both_sides.spreads(data).empty
    other = both_sides.levels(alone.assign(placement="both", study="zhou2024-location"), "zhou2024-location", RESAMPLER,
                              {"VQA": ("scienceqa", "vizwiz")})
    assert set(other["side"]) == {"paper"}
