"""The store keeps a record or reports it: never a damaged one, never the same run twice."""
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.studies.store import PREDICTIONS, RECORD, RunStore, bundle, hash_config, read_bundle

CONFIG = {
    "study": "test", "base": "tiny", "base_hash": "0", "method": "lora", "options": {"rank": 8, "connector": "tuned"},
    "task": "vizwiz", "train_size": 10, "test_size": 3, "seed": 42, "train": {"learning_rate": 1e-3},
}  # fmt: skip
PARTS = {
    "train_info": {
        "status": "success", "train_time": 1.5, "num_trainable_params": 7, "num_total_params": 70, "parameters": {},
        "peak_memory_mb": 3.0, "losses": [0.1, 0.30000000000000004], "samples_per_second": 5.0, "steps": 2,
    },
    "metrics": {"metric": "exact_match", "score": 2 / 3, "num_examples": 3, "eval_time": 0.1},
    "meta_info": {"packages": {}, "machine": {}, "git_hash": None},
}  # fmt: skip
ANSWERS = pd.DataFrame(
    {"question_id": ["a", "b", "c"], "prediction": ["red", "", "größer"], "score": [1.0, 0.1 + 0.2, 1.0]}
)


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "store")
    store.put(CONFIG, PARTS, ANSWERS)
    return store


def folder_of(store):
    return store.folder / hash_config(CONFIG)


def test_round_trip(store):
    record = store.get(CONFIG)
    assert record.config == CONFIG and record.content["train_info"] == PARTS["train_info"]
    pd.testing.assert_frame_equal(store.predictions(CONFIG), ANSWERS)
    assert {path.name for path in folder_of(store).iterdir()} == {RECORD, PREDICTIONS}
    assert not list(store.folder.glob(".*-*"))


def test_frame_is_tidy(store):
    store.put({**CONFIG, "method": "none", "options": {}, "seed": None}, PARTS, ANSWERS)
    frame = store.frame().set_index("method")
    assert frame.loc["lora", ["connector", "rank", "seed", "trainable"]].tolist() == ["tuned", 8, 42, 7]
    assert pd.isna(frame.loc["none", "seed"]) and frame["seed"].dtype == "Int64"
    assert RunStore(store.folder / "empty").frame().empty


def test_absent_is_silent_and_named_when_asked_for(store, recwarn):
    other = {**CONFIG, "seed": 43}
    assert store.get(other) is None and not recwarn
    with pytest.raises(PeftkitError, match='"seed":43'):
        store.predictions(other)


def test_other_parts_or_columns_are_refused(store):
    with pytest.raises(PeftkitError, match="train_info, metrics, meta_info"):
        store.put(CONFIG, {"metrics": {}}, ANSWERS)
    with pytest.raises(PeftkitError, match="question_id, prediction, score"):
        store.put(CONFIG, PARTS, ANSWERS.drop(columns="score"))


def truncate(name, size):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


def flip(name, position):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[int(position * len(data))] ^= 1
        (folder / name).write_bytes(data)

    return damage


def replace(name, text):
    return lambda folder: (folder / name).write_text(text)


def belongs_to_another(folder):
    other = RunStore(folder.parent / "other")
    other.put({**CONFIG, "seed": 43}, PARTS, ANSWERS)
    shutil.rmtree(folder)
    next(other.folder.glob("[!.]*")).rename(folder)
    shutil.rmtree(other.folder)


@pytest.mark.parametrize("damage", [
    truncate(RECORD, 100), truncate(RECORD, 0), truncate(PREDICTIONS, 50), truncate(PREDICTIONS, 0),
    flip(RECORD, 0.5), flip(PREDICTIONS, 0.1), flip(PREDICTIONS, 0.5), flip(PREDICTIONS, 0.9),
    replace(RECORD, "[]"), replace(RECORD, "5"), replace(RECORD, "{}"),
    lambda folder: (folder / RECORD).unlink(), lambda folder: (folder / PREDICTIONS).unlink(), belongs_to_another,
])  # fmt: skip
def test_damage_is_reported_and_redone(store, damage):
    damage(folder_of(store))
    with pytest.warns(UserWarning, match=hash_config(CONFIG)):
        assert store.get(CONFIG) is None
    with pytest.warns(UserWarning, match="damaged record"):
        assert store.frame().empty
    store.put(CONFIG, PARTS, ANSWERS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(store.get(CONFIG).predictions, ANSWERS)


def test_any_flipped_byte_of_the_predictions_is_noticed(store):
    path = folder_of(store) / PREDICTIONS
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with pytest.warns(UserWarning, match="checksum"):
            assert store.get(CONFIG) is None


def test_leftover_of_a_killed_process_is_reported_and_removed(store):
    leftover = folder_of(store).rename(store.folder / f".{hash_config(CONFIG)}-12345678")
    with pytest.warns(UserWarning, match="half-written"):
        assert store.get(CONFIG) is None
    assert not leftover.exists()


def test_a_record_that_is_being_written_is_left_alone(store, recwarn):
    draft = folder_of(store).rename(store.folder / f".{hash_config(CONFIG)}-12345678")
    with store.claim(CONFIG):
        assert store.get(CONFIG) is None
    assert draft.exists() and not recwarn


def test_claim_excludes_and_frees(store):
    with store.claim(CONFIG) as held, store.claim(CONFIG, wait=False) as again:
        assert held and not again
    with store.claim(CONFIG, wait=False) as held:
        assert held


def test_a_killed_process_frees_its_claim(store):
    script = (
        "import sys, time\nfrom peftkit.studies.store import RunStore\n"
        f"with RunStore({str(store.folder)!r}).claim({CONFIG!r}):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with store.claim(CONFIG, wait=False) as held:
        assert not held
    process.kill()
    process.wait()
    with store.claim(CONFIG, wait=False) as held:
        assert held


def test_hash_is_stable_across_processes_and_key_order():
    def elsewhere(seed):
        script = f"from peftkit.studies.store import hash_config; print(hash_config({CONFIG!r}))"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout

    with ThreadPoolExecutor() as pool:
        assert set(pool.map(elsewhere, "012")) == {hash_config(CONFIG) + "\n"}
    assert hash_config(dict(reversed(CONFIG.items()))) == hash_config(CONFIG) == "83c59cdf5d6564a9"
    assert hash_config({**CONFIG, "seed": 43}) != hash_config(CONFIG)


def test_bundle_restores_records_exactly(store, tmp_path):
    store.put({**CONFIG, "seed": 43}, PARTS, ANSWERS.iloc[:2])
    bundle(tmp_path / "runs.parquet", store.records())
    bundle(tmp_path / "again.parquet", store.records())
    assert (tmp_path / "runs.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    copy = RunStore(tmp_path / "copy")
    assert copy.import_bundle(tmp_path / "runs.parquet") == 2
    assert copy.import_bundle(tmp_path / "runs.parquet") == 0
    pd.testing.assert_frame_equal(copy.frame(), store.frame())
    pd.testing.assert_frame_equal(copy.predictions(CONFIG), ANSWERS)
    assert copy.get(CONFIG).content == store.get(CONFIG).content


def test_a_bundle_that_cannot_be_written_leaves_the_one_before(store, tmp_path, monkeypatch):
    path = tmp_path / "runs.parquet"
    bundle(path, store.records())
    before = path.read_bytes()

    def fail(table, file, **more):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("peftkit.studies.store.parquet.write_table", fail)
    with pytest.raises(OSError):
        bundle(path, [])
    assert path.read_bytes() == before


def test_damaged_bundle_never_yields_a_wrong_record(store, tmp_path):
    path, truth = tmp_path / "runs.parquet", store.get(CONFIG)
    bundle(path, [truth])
    whole = path.read_bytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for position in range(0, len(whole), 11):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
            for record in read_bundle(path):
                assert record.content == truth.content
                pd.testing.assert_frame_equal(record.predictions, truth.predictions)
    assert caught
    path.write_bytes(whole[:200])
    with pytest.warns(UserWarning, match="runs.parquet"):
        assert RunStore(tmp_path / "copy").import_bundle(path) == 0
    with pytest.raises(PeftkitError, match="no bundle"):
        read_bundle(tmp_path / "other.parquet")
