"""SPIDER's study: grids, the four measures, rows made of one full run, equal target score, verdicts."""
import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from peftkit import inject, load, task
from peftkit.data import encode
from peftkit.data.questions import caption_by_color
from peftkit.data.scenes import Thing
from peftkit.errors import PeftkitError
from peftkit.methods import rule_of
from peftkit.methods.selective.tuner import tuned
from peftkit.papers.claims import NOT_PRINTED, RUNS_MISSING, claims
from peftkit.papers.huang2024 import (
    AFTERWARDS, PATHS, PUT_BACK, RELEASED, ROWS, SOURCES, STUDIES, TARGETS, equal_t, measures, merge_at_the_end,
    pull_as_released, row_of, studies, study_records, summed_gradients, tidy)
from peftkit.papers.huang2024.afterwards import each_afterwards, put_projector_back
from peftkit.papers.huang2024.claims import CLAIMS, HALVES
from peftkit.papers.huang2024.records import source_at
from peftkit.papers.huang2024.run import run_one
from peftkit.papers.huang2024.study import GENERAL, PATH_TARGETS
from peftkit.studies import Record
from peftkit.studies.store import hash_config

BASES = ("tiny-llava-s", "tiny-llava-m", "tiny-idefics2")


@pytest.fixture
def configs(monkeypatch, tmp_path):
    """Make the configurations of a study: name, tier -> list; no model is loaded."""
    monkeypatch.setattr("peftkit.models.load", lambda name: SimpleNamespace(hash=f"hash of {name}"))
    return lambda name, tier="laptop": [c for grid in studies(name, tier, tmp_path) for c in grid.configs()]


# ---- grids ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, runs", [
    ("huang2024", 4 * (13 * 5 + 1) + 2 * 4 * (3 * 5 + 1)), ("huang2024-released", 4 * 5),
    ("huang2024-paths", 5 * 2 * 2 * 5), ("huang2024-layers", 2 * 2 * 2 * 5)])
def test_every_study_has_its_runs_once(name, runs, configs):
    hashes = [hash_config(config) for config in configs(name)]
    assert len(hashes) == len(set(hashes)) == runs


def test_every_configuration_is_of_one_row(configs):
    main = pd.DataFrame([{"row": row_of(c), "base": c["base"], "method": c["method"]} for c in configs("huang2024")])
    assert [set(main[main["base"] == base]["row"]) for base in BASES] == [set(ROWS), set(GENERAL), set(GENERAL)]
    assert (main["method"] == main["row"].map(lambda row: ROWS[row][0])).all()
    assert {row_of(config) for config in configs("huang2024-released")} == {RELEASED}
    assert {row_of(config) for config in configs("huang2024-paths")} == set(PATHS)


def test_all_but_three_rows_tune_the_last_two_blocks_and_all_rows_have_the_connectors_rate(configs):
    for config in configs("huang2024"):
        if config["method"] != "none":
            whole = config["method"] in ("lora", "dora", "adapter")
            assert config["options"].get("layers") == (None if whole else 2)
            assert config["train"]["connector_learning_rate"] == 5e-4
            assert config["train"]["learning_rate"] == (1e-2 if whole else 3e-3)
    assert {config["options"]["layers"] for config in configs("huang2024-layers")} == {1, 4}


def test_half_fine_tuning_draws_anew_in_every_epoch(configs):
    half = next(config for config in configs("huang2024") if config["method"] == "half")
    assert half["options"]["steps_a_round"] * half["train"]["batch_size"] == half["train_size"]


def test_the_smoke_tier_has_one_target_and_one_seed(configs):
    for name in STUDIES:
        assert {(config["task"], config["seed"] or 42) for config in configs(name, "smoke")} == {("flickr30k", 42)}


@pytest.mark.parametrize("call, message", [
    (lambda: studies("huang2024-path", "laptop", "runs"), "unknown study 'huang2024-path'; did you mean"),
    (lambda: studies("huang2024", "desk", "runs"), "unknown tier 'desk'"),
    (lambda: study_records("huang2024-path", "laptop"), "unknown study 'huang2024-path'"),
    (lambda: study_records("huang2024", "laptop", "life"), "unknown value of runs 'life'"),
    (lambda: row_of({"study": "huang2024", "method": "ia3", "options": {}}), "unknown configuration of a row 'ia3")])
def test_unknown_names_are_refused(call, message):
    with pytest.raises(PeftkitError, match=message):
        call()


# ---- tasks -----------------------------------------------------------------------------------------------------------

def test_the_second_caption_style_goes_color_by_color():
    things = [Thing("shape", "star", "red", "top left"), Thing("word", "cat", "blue", "top right"),
              Thing("number", "7", "red", "bottom left")]
    assert caption_by_color(things, None).answer == "in red star and 7 , in blue cat"


@pytest.mark.parametrize("name, first_words", [("textvqa", ("what word",)), ("gqa", ("where is", "what shape is at the",
                                                                                     "what color is the", "is there"))])
def test_the_answers_of_the_new_sources_follow_from_the_picture(name, first_words, read_scene, oracle):
    rows = task(name, train_size=1, validation_size=1, test_size=40).test
    for row in rows:
        assert row["question"].startswith(first_words)
        assert set(row["answers"]) == {oracle(row["question"], read_scene(np.asarray(row["image"])))}
    assert all(any(question.startswith(words) for question in rows["question"]) for words in first_words)


# ---- measures -------------------------------------------------------------------------------------------------------

def test_the_four_measures_by_hand():
    found = measures(0.9, (0.2, 0.4, 0.3, 0.3))
    assert found == pytest.approx({"T": 0.9, "S": 0.3, "H": 2 * 0.3 * 0.9 / 1.2, "O": 0.6})
    assert measures(0.0, (0.0,) * 4)["H"] == 0


def test_o_is_the_average_of_the_sister_papers_rerun():
    assert measures(0.8626, (0.5271, 0.5470, 0.5634, 0.5164))["O"] == pytest.approx(0.7005375)  # facts, section 3


# ---- real runs at the smallest size ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def ran():
    """A real run at the smallest size: row, study, target -> its record. 8 examples, two steps of two epochs."""
    kept, base_hash = {}, load("tiny-llava-s").hash

    def run(row, study="huang2024", target="scienceqa"):
        if (row, study, target) not in kept:
            method, options = ROWS[row]
            train = {"epochs": 2, "batch_size": 4, "learning_rate": 3e-3} if method != "none" else {}
            options = {"connector": "tuned", "layers": 2} | options if method != "none" else {}
            config = {"study": study, "base": "tiny-llava-s", "base_hash": base_hash, "method": method,
                      "options": options, "task": target, "train_size": 8, "test_size": 8,
                      "seed": 7 if train else None, "train": train}
            parts, predictions = run_one(config)
            content = {"run_info": {"config": config, "config_hash": hash_config(config)}, **parts}
            kept[row, study, target] = Record(content, predictions)
        return kept[row, study, target]

    return run


def test_a_full_run_is_tested_on_five_tasks_and_serves_the_rows_that_are_made_of_it(ran):
    record, untouched = ran("full"), ran("zero-shot")
    frame = tidy([untouched, record])
    assert list(frame["row"]) == ["zero-shot", "full", *AFTERWARDS]
    assert frame["seed"].isna().tolist() == [True] + [False] * (1 + len(AFTERWARDS)) and set(frame["target"]) == {"scienceqa"}
    assert (frame[list(SOURCES)].mean(axis=1) - frame["S"]).abs().max() < 1e-12
    assert frame.set_index("row").loc["full", "T"] == pytest.approx(record.predictions["score"].mean())
    assert frame.set_index("row").loc["zero-shot", ["trainable", "epoch"]].tolist() == [0, 0]
    assert len(record.content["train_info"]["losses"]) == 4


def test_only_full_tuning_serves_them_and_only_paths_are_tested_after_every_epoch(ran):
    spider, path = ran("SPIDER"), ran("SPIDER", "huang2024-paths", "scienceqa")
    assert tidy([spider])["row"].tolist() == ["SPIDER"] and tidy([path])["epoch"].tolist() == [1, 2]
    assert tidy([path])["S"].tolist()[-1] == tidy([spider])["S"].item()  # looking changes nothing
    assert path.content["train_info"]["losses"] == spider.content["train_info"]["losses"]


def test_a_run_of_the_main_study_that_lies_on_a_path_is_a_run_of_the_paths_too(ran):
    both = tidy([ran("SPIDER", target="iconqa_txt")])
    alone = tidy([ran("SPIDER", "huang2024-paths", "iconqa_txt")])
    assert both["study"].tolist() == ["huang2024-paths", "huang2024-paths", "huang2024"]
    assert both["epoch"].tolist() == [1, 2, 2]
    pd.testing.assert_frame_equal(both.head(2).drop(columns="seconds"), alone.drop(columns="seconds"))
    assert both["S"].tolist()[1] == both["S"].tolist()[2]


def test_the_released_penalty_is_applied_in_its_study_alone(ran, monkeypatch):
    pulled = []
    monkeypatch.setattr("peftkit.papers.huang2024.run.pull_as_released", pulled.append)
    ran("full")
    assert not pulled
    ran("full", "huang2024-released")
    assert len(pulled) == 1


def test_spiders_selected_shares_are_recorded_tensor_by_tensor(ran):
    first, last = (look["selected"] for look in ran("SPIDER").content["metrics"]["looks"])
    assert len(first) == 2 * 9 + 4 and first != last
    frame = tidy([ran("SPIDER")])
    assert frame["smallest_share"].item() == min(*first.values(), *last.values()) > 0
    assert frame["largest_share"].item() == max(*first.values(), *last.values()) < 1
    assert tidy([ran("full")])["smallest_share"].isna().all()


# ---- what rows are made of, on a random model ------------------------------------------------------------------------

def loss_of(model, data):
    return sum((tensor.weight * part).sum() + ((tensor.weight - tensor.start()) ** 3).sum()
               for tensor, part in zip(tuned(model), data))


def trained(base, method, steps=6, prepare=None, **options):
    """A model after some steps of Adam on a made-up loss, with what prepare(model) gave."""
    model = inject(copy.deepcopy(base), method, connector="tuned", layers=1, **options)
    given, rule = prepare and prepare(model), rule_of(model)
    weights = [tensor.weight for tensor in tuned(model)]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        loss_of(model, [torch.randn(weight.shape, generator=draw) for weight in weights]).backward()
        if rule:
            rule.after_backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if rule:
            rule.after_step()
        optimizer.zero_grad()
    return model, given, rule


def vector(model):
    return torch.cat([tensor.weight.detach().flatten() for tensor in tuned(model)])


def test_the_sums_are_of_gradients_before_clipping_and_equal_spiders(tiny_llava):
    _, sums, _ = trained(tiny_llava.model, "language", steps=1, prepare=summed_gradients)
    _, _, rule = trained(tiny_llava.model, "spider", steps=1)
    assert sums.keys() == rule.sums.keys()
    for name, total in sums.items():
        torch.testing.assert_close(total, rule.sums[name], rtol=0, atol=0)
    assert torch.cat([total.flatten() for total in sums.values()]).norm() > 2  # they were clipped to 1 afterwards


def test_a_merge_at_the_end_is_spider_for_one_step_and_another_method_for_more(tiny_llava):
    for steps, same in ((1, True), (6, False)):
        merged, sums, _ = trained(tiny_llava.model, "language", steps, prepare=summed_gradients)
        merge_at_the_end(merged, sums)
        spider, _, _ = trained(tiny_llava.model, "spider", steps)
        start = torch.cat([tensor.start().flatten() for tensor in tuned(spider)])
        apart = (vector(merged) - vector(spider)).abs().max() / (vector(spider) - start).abs().max()
        assert (apart < 1e-4) if same else (apart > 0.1)


def test_sums_are_those_of_single_passes_where_gradients_accumulate(tiny_llava):
    model = inject(copy.deepcopy(tiny_llava.model), "language", layers=1)
    sums, (first, *_) = summed_gradients(model), tuned(model)
    for factor in (1.0, 3.0):
        (factor * first.weight).sum().backward()
    torch.testing.assert_close(sums[first.name], torch.full_like(first.weight, 4.0))


def test_only_the_projector_is_put_back(tiny_llava):
    model, _, _ = trained(tiny_llava.model, "language")
    before = {tensor.name: tensor.weight.detach().clone() for tensor in tuned(model)}
    put_projector_back(model)
    for tensor in tuned(model):
        kept = tensor.start() if "projector" in tensor.name else before[tensor.name]
        assert torch.equal(tensor.weight, kept) and not torch.equal(before[tensor.name], tensor.start())


def test_every_row_made_of_a_model_leaves_it_as_it_was(tiny_llava):
    drawn = task("iconqa_txt", train_size=4, validation_size=1, test_size=1)
    rows = encode(tiny_llava.processor, drawn.train, drawn.prompt)
    model, sums, _ = trained(tiny_llava.model, "language", prepare=summed_gradients)
    before, changed = vector(model), {}
    for name in each_afterwards(model, sums, rows, seed=1):
        changed[name] = vector(model)
    assert tuple(changed) == AFTERWARDS and torch.equal(vector(model), before)
    assert not any(torch.equal(weights, before) for weights in changed.values())


def test_the_released_l2_penalty_is_inert_and_a_proper_one_is_not(tiny_llava):
    full, _, _ = trained(tiny_llava.model, "language")
    released, _, _ = trained(tiny_llava.model, "language", prepare=pull_as_released)
    proper, _, _ = trained(tiny_llava.model, "l2-sp", strength=10.0)
    start = torch.cat([tensor.start().flatten() for tensor in tuned(full)])
    drift = (vector(full) - start).abs().max()
    assert (vector(released) - vector(full)).abs().max() < 1e-4 * drift
    assert (vector(proper) - vector(full)).abs().max() > 0.1 * drift


def test_the_released_penaltys_gradient_is_that_of_its_formula(tiny_llava):
    model = inject(copy.deepcopy(tiny_llava.model), "language", layers=1)
    pull_as_released(model, strength=5.0)
    with torch.no_grad():
        for tensor in tuned(model):
            tensor.weight.add_(0.1)
    sum(0 * tensor.weight.sum() for tensor in tuned(model)).backward()
    found = [tensor.weight.grad.clone() for tensor in tuned(model)]
    plain = inject(copy.deepcopy(tiny_llava.model), "language", layers=1)
    with torch.no_grad():
        for tensor in tuned(plain):
            tensor.weight.add_(0.1)
    penalty = 5.0 * torch.stack([torch.nn.functional.mse_loss(tensor.weight, tensor.start())
                                 for tensor in tuned(plain)]).mean()
    penalty.backward()
    for gradient, tensor in zip(found, tuned(plain)):
        torch.testing.assert_close(gradient, tensor.weight.grad)


# ---- equal target score ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("level, kept", [(0.1, 1.0), (0.2, 0.95), (0.5, 0.8), (0.6, 0.7), (0.7, None)])
def test_sources_at_a_level_of_t_lie_on_the_line_between_two_looks(level, kept):
    path = pd.DataFrame({"T": [0.1, 0.5, 0.4, 0.6], "S": [1.0, 0.8, 0.9, 0.7]})
    assert source_at(level, path) == (kept if kept is None else pytest.approx(kept))


def test_a_path_that_starts_above_the_level_reaches_it_at_once():
    assert source_at(0.2, pd.DataFrame({"T": [0.3, 0.1, 0.5], "S": [1.0, 0.8, 0.4]})) == 1.0


def looks(row, rate, scores, **more):
    """Looks of two seeds on paths: scores is [(T, S), ...] by epoch; seed 2 keeps 0.1 less."""
    return [{"study": "huang2024-paths", "base": BASES[0], "row": row, "target": "flickr30k", "seed": seed, "epoch": e,
             "learning_rate": rate, "T": t, "S": s - 0.1 * (seed == 2)} | more
            for seed in (1, 2) for e, (t, s) in enumerate(scores, start=1)]


START = {"study": "huang2024", "base": BASES[0], "row": "zero-shot", "target": "flickr30k", "epoch": 0, "T": 0.0,
         "S": 1.0}


def test_rows_are_compared_at_the_t_that_all_reach_and_at_their_best_rate():
    frame = pd.DataFrame([START, *looks("full", 1e-3, [(0.4, 0.9)]), *looks("full", 3e-3, [(0.8, 0.6), (0.9, 0.5)]),
                          *looks("full", 2e-3, [(0.7, 0.5)]), *looks("SPIDER", 1e-3, [(0.6, 0.9)]), *looks("SPIDER", 3e-3, [(0.5, 0.99)])])
    found = equal_t(frame).set_index(["row", "seed"])
    assert found["T"].tolist() == pytest.approx([0.6] * 4)  # SPIDER's highest; full reaches 0.9
    assert found["S"].to_dict() == pytest.approx({
        ("full", 1): 0.7, ("full", 2): 0.625, ("SPIDER", 1): 0.9, ("SPIDER", 2): 0.8})
    assert found["learning_rate"].to_dict()["full", 1] == 3e-3 and found["learning_rate"]["SPIDER", 1] == 1e-3
    half = equal_t(frame, 0.5).set_index(["row", "seed"])
    assert half["T"].tolist() == pytest.approx([0.3] * 4)  # half of the way from 0 to 0.6
    assert half["S"]["SPIDER", 1] == pytest.approx(0.994) and half["S"]["full", 1] == pytest.approx(0.925)
    assert equal_t(frame[frame["row"] != "zero-shot"]).empty


def test_a_rate_that_lacks_a_seed_is_no_rate_of_its_row():
    frame = pd.DataFrame([START, *looks("full", 1e-3, [(0.5, 0.6)]), *looks("full", 3e-3, [(0.5, 0.9)])[:1],
                          *looks("SPIDER", 1e-3, [(0.5, 0.8)])])
    found = equal_t(frame).set_index(["row", "seed"])
    assert found["learning_rate"]["full"].to_dict() == {1: 1e-3, 2: 1e-3} and len(found) == 4


def test_no_row_gets_lost_where_one_never_reaches_the_untouched_bases_t():
    frame = pd.DataFrame([START | {"T": 0.3}, *looks("full", 1e-3, [(0.28, 0.9)]), *looks("SPIDER", 1e-3, [(0.25, 0.8)])])
    assert len(equal_t(frame, 0.5)) == 4


# ---- the ledger on made-up records -----------------------------------------------------------------------------------

def made_up(scores, seeds=(1, 2, 3, 4, 5), bases=BASES):
    """A frame of all studies: scores(row) -> (T, S); a little noise by seed, shares of SPIDER near a half."""
    rng = np.random.default_rng(0)
    cells = [("huang2024", base, row, target) for base in bases for target in TARGETS
             for row in ((*ROWS, *AFTERWARDS) if base == BASES[0] else GENERAL)]
    cells += [("huang2024-released", BASES[0], RELEASED, target) for target in TARGETS]
    cells += [("huang2024-paths", BASES[0], row, target) for row in PATHS for target in PATH_TARGETS]
    rows = []
    for study, base, row, target in cells:
        for seed in (None,) if row == "zero-shot" else seeds:
            t, s = np.array(scores(row)) + (rng.normal(0, 0.001, 2) if seed else 0)
            rows.append({"study": study, "base": base, "row": row, "target": target, "seed": seed, "epoch": 1,
                         "learning_rate": 1e-3, **measures(t, [s]), "smallest_share": 0.45, "largest_share": 0.55})
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def as_claimed(row):
    """What the paper says: full forgets, SPIDER is best, the discrepancy mask second."""
    return {"zero-shot": (0.1, 0.99), "full": (0.8, 0.6), RELEASED: (0.8, 0.6), "SPIDER": (0.85, 0.9),
            "full, frozen projector": (0.8, 0.9), PUT_BACK: (0.7, 0.9), "discrepancy mask": (0.8, 0.85), "random mask": (0.75, 0.7),
            "magnitude mask": (0.7, 0.7), "gradient mask": (0.72, 0.7)}.get(row, (0.7, 0.7))


def verdicts(frame):
    table = claims("huang2024", frame)
    assert set(table["verdict_paper"]) == {NOT_PRINTED}
    return table.set_index("id")["verdict_ours"].to_dict()


def test_records_as_the_paper_says_support_every_claim():
    assert verdicts(made_up(as_claimed)) == dict.fromkeys(CLAIMS, "supported")


@pytest.mark.parametrize("changed, contradicted", [
    ({"full": (0.8, 1.0), RELEASED: (0.8, 1.0)}, {"C1", "C2", "C4", "C8", "T1", "P1", "P1.frozen"}),
    ({"SPIDER": (0.79, 0.9)}, {"C3", "C3.strict", "C8"}), ({"DARE": (0.99, 0.99)}, {"C4"}),
    ({"random mask": (0.84, 0.86)}, {"C5.best"}), ({"merge at the end": (0.9, 0.9)}, {"C4", "M1"}), ({"discrepancy mask": (0.86, 0.91)}, {"C4", "C6"}),
    ({RELEASED: (0.82, 0.6)}, {"R1"}), ({PUT_BACK: (0.8, 0.62)}, {"P1"}),
    ({"full, frozen projector": (0.8, 0.62)}, {"P1.frozen"})])
def test_a_change_in_the_records_contradicts_its_claims_alone(changed, contradicted):
    found = verdicts(made_up(lambda row: changed.get(row) or as_claimed(row)))
    assert {name for name, word in found.items() if word == "contradicted"} == contradicted


def test_halves_that_differ_by_noise_do_not_matter():
    same = dict.fromkeys(HALVES, (0.8, 0.8))
    assert verdicts(made_up(lambda row: same.get(row) or as_claimed(row)))["C5"] != "supported"


@pytest.mark.parametrize("share", ["smallest_share", "largest_share"])
def test_one_tensor_outside_the_shares_is_enough(share):
    frame = made_up(as_claimed)
    one = frame.index[frame["row"] == "SPIDER"][3]
    frame.loc[one, share] = 0.39 if share == "smallest_share" else 0.61
    assert {name for name, word in verdicts(frame).items() if word == "contradicted"} == {"C7"}


def test_rows_on_one_path_that_is_only_further_along_are_equal_at_equal_t():
    frame = made_up(as_claimed)
    paths = frame["study"] == "huang2024-paths"
    for row, t in (("full", 0.8), ("SPIDER", 0.5)):  # S falls by 0.4 for each 0.7 of T, whoever trains
        where = paths & (frame["row"] == row)
        noise = frame.loc[where, "S"] - as_claimed(row)[1]
        frame.loc[where, "T"], frame.loc[where, "S"] = t, 0.99 - 0.5 * (t - 0.1) + noise
    assert verdicts(frame)["T1"] in ("unresolved", "contradicted")


def test_missing_runs_are_named_and_unknown_names_refused(tmp_path):
    frame = made_up(as_claimed)
    table = claims("huang2024", frame[frame["row"] != "gradient mask"]).set_index("id")
    assert table.loc["C5", "verdict_ours"] == RUNS_MISSING and "method gradient mask" in table.loc["C5", "note"]
    assert table.loc["C2", "verdict_ours"] == "supported"
    with pytest.raises(PeftkitError, match="unknown row 'spyder'"):
        claims("huang2024", frame.replace({"row": {"SPIDER": "spyder"}}))
    with pytest.raises(PeftkitError, match="runs lack the columns S; needed"):
        claims("huang2024", frame.drop(columns="S"))
    with pytest.raises(PeftkitError, match="runs lack the columns smallest_share, largest_share; needed"):
        claims("huang2024", frame.drop(columns=["smallest_share", "largest_share"]))
    frame.replace({"base": {BASES[0]: "tiny"}}).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(PeftkitError, match="runs.csv, line 2: unknown base 'tiny'"):
        claims("huang2024", tmp_path / "runs.csv")


def test_a_written_frame_gives_the_same_verdicts(tmp_path):
    frame = made_up(as_claimed)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    assert verdicts(tmp_path / "runs.csv") == verdicts(frame)
