"""One run, end to end on a bundled base."""
import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.papers.zhou2024 import SIZES
from peftkit.studies import Study
from peftkit.studies.run import run_one


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study("test", bases=("tiny-llava-s",), methods={"none": {}, "lora": SIZES["lora"]}, connectors=("tuned",),
                 tasks=("iconqa_blank",), seeds=(42,), store=tmp_path_factory.mktemp("store"), train_size=32,
                 test_size=20, settings={"all": {"epochs": 1}})


def test_the_same_configuration_twice_gives_the_same_record(study):
    config = study.configs()[1]
    (first, answers), (second, again) = run_one(config), run_one(config)
    assert first["train_info"]["losses"] == second["train_info"]["losses"] and first["train_info"]["steps"] == 1
    pd.testing.assert_frame_equal(answers, again)
    regions = first["train_info"]["parameters"]
    assert regions["vision"]["trainable"] == 0 and regions["connector"]["share"] == 1.0
    assert first["train_info"]["num_trainable_params"] == sum(r["trainable"] for r in regions.values())


def test_zero_shot_trains_nothing(study):
    parts, answers = run_one(study.configs()[0])
    assert parts["train_info"]["num_trainable_params"] == 0 and parts["train_info"]["losses"] == []
    assert len(answers) == 20 and parts["metrics"]["score"] == pytest.approx(answers["score"].mean())


def test_other_weights_under_the_same_name_are_refused(study):
    with pytest.raises(PeftkitError, match="has weights .* the run asks for 0000"):
        run_one(study.configs()[0] | {"base_hash": "0000"})


def test_finished_runs_are_never_redone(study):
    frame = study.run(workers=0, progress=False)
    assert len(frame) == 2 and study.missing() == []
    again = study.run(workers=0, progress=False)
    pd.testing.assert_frame_equal(frame, again)  # seconds of training included: nothing ran
