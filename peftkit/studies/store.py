"""Records of runs, the folder that keeps them and the file that carries many of them.

A store holds one folder a run, named by the hash of the run's sorted configuration:

    <store>/<hash>/record.json           configuration, training, metrics, versions, machine, checksum
    <store>/<hash>/predictions.parquet   one row a test example: question_id, prediction, score
    <store>/.<hash>-<random>/            a record while it is written; renamed when complete
    <store>/.checkpoints/<hash>/         of a run that takes minutes, until its record is written
    <store>/.locks/<hash>                locked (flock) by the process that does the run, free when that process ends

A bundle is one parquet file with a row a run (hash, record, checksum and the predictions as list columns).
"""
import fcntl
import hashlib
import io
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from .. import __version__
from ..errors import PeftkitError

RECORD = "record.json"
PREDICTIONS = "predictions.parquet"
PARTS = ("train_info", "metrics", "meta_info")
PREDICTION_TYPES = {"question_id": pa.string(), "prediction": pa.string(), "score": pa.float64()}
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)


def canonical(content) -> str:
    """The one JSON text of `content`: sorted keys, no spaces. NumPy scalars become Python numbers."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=lambda number: number.item())


def hash_config(config: dict) -> str:
    """Identity of a run: the first 16 hex digits of the sha256 of its canonical configuration."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """One finished run: `content` is record.json without its checksum, `predictions` one row a test example."""

    content: dict
    predictions: pd.DataFrame

    @property
    def config(self) -> dict:
        return self.content["run_info"]["config"]

    @property
    def hash(self) -> str:
        return self.content["run_info"]["config_hash"]

    def row(self) -> dict:
        """The run as one tidy row: names, options by their own names, score in [0, 1], seconds of training, MB."""
        config, train, metrics = self.config, self.content["train_info"], self.content["metrics"]
        return {
            **{key: config[key] for key in ("study", "base", "method", "task", "seed")},
            "connector": None,
            **config["options"],
            **{key: config[key] for key in ("train_size", "test_size")},
            **{key: config["train"].get(key) for key in ("learning_rate", "connector_learning_rate")},
            **{key: metrics[key] for key in ("score", "metric", "num_examples")},
            "trainable": train["num_trainable_params"],
            "total": train["num_total_params"],
            "seconds": train["train_time"],
            "samples_per_second": train["samples_per_second"],
            "memory": train["peak_memory_mb"],
            "hash": self.hash,
        }


def tabulate(records: Iterable[Record]) -> pd.DataFrame:
    """A tidy frame, one row a record (see `Record.row`); `seed` is a nullable integer, empty for untrained bases."""
    frame = pd.DataFrame([record.row() for record in records])
    return frame.astype({"seed": "Int64"}) if len(frame) else frame


class RunStore:
    """A folder of records. A damaged or half-written one is reported by a warning and counts as absent."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, config: dict) -> Record | None:
        """The record of `config`, or None if there is none that can be trusted."""
        self._discard_drafts(config)
        folder = self.folder / hash_config(config)
        return self._read(folder) if folder.is_dir() else None

    def put(self, config: dict, parts: dict, predictions: pd.DataFrame) -> Record:
        """Write the record of a finished run and return it; an older or damaged one of the same run is replaced.

        `parts` holds train_info, metrics and meta_info; `predictions` holds question_id, prediction and score.
        Raises `PeftkitError` for other parts or columns.
        """
        _require("record parts", parts, PARTS)
        _require("columns of predictions", predictions.columns, PREDICTION_TYPES)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        run_info = {"config": config, "config_hash": hash_config(config), "created_at": now,
                    "peftkit_version": __version__}
        columns = predictions.astype({"question_id": str, "prediction": str, "score": float})
        record = Record(json.loads(canonical({"run_info": run_info, **parts})), columns.reset_index(drop=True))
        self._write(record)
        shutil.rmtree(self.checkpoints(config), ignore_errors=True)
        return record

    @contextmanager
    def claim(self, config: dict, wait: bool = True) -> Iterator[bool]:
        """Hold the run of `config` against all other processes; yields whether it is held: always, unless another
        process has it and `wait` is False. A killed process frees what it held."""
        path = self.folder / ".locks" / hash_config(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                held = False
            yield held

    def checkpoints(self, config: dict) -> Path:
        """Where the run of `config` keeps what it needs to go on after a kill; removed by `put`."""
        return self.folder / ".checkpoints" / hash_config(config)

    def records(self) -> Iterator[Record]:
        """Every record that can be trusted, in the order of the hashes."""
        folders = sorted(path for path in self.folder.glob("[!.]*") if path.is_dir())
        return filter(None, map(self._read, folders))

    def frame(self) -> pd.DataFrame:
        """All records as a tidy frame, one row a run."""
        return tabulate(self.records())

    def predictions(self, config: dict) -> pd.DataFrame:
        """Every test example of a run: question_id, prediction, score. Raises `PeftkitError` if there is no record."""
        record = self.get(config)
        if record is None:
            raise PeftkitError(f"no record of {canonical(config)} in {self.folder}")
        return record.predictions

    def import_bundle(self, path: str | Path) -> int:
        """Write the bundle's records that this store lacks; returns how many. Damaged rows are reported and skipped."""
        lacking = [record for record in read_bundle(path) if self.get(record.config) is None]
        for record in lacking:
            self._write(record)
        return len(lacking)

    def _read(self, folder: Path) -> Record | None:
        try:
            content = json.loads((folder / RECORD).read_text("utf-8"))
            table = (folder / PREDICTIONS).read_bytes()
            if content.pop("checksum") != _checksum(content, table):
                raise ValueError("the checksum does not match")
            if content["run_info"]["config_hash"] != folder.name:
                raise ValueError("it belongs to another run")
            return Record(content, parquet.read_table(io.BytesIO(table)).to_pandas())
        except DAMAGE as error:
            _report(folder, error)

    def _write(self, record: Record) -> None:
        draft = self.folder / f".{record.hash}-{uuid.uuid4().hex[:8]}"
        draft.mkdir(parents=True)
        table = pa.Table.from_pydict(record.predictions.to_dict("list"), schema=pa.schema(PREDICTION_TYPES))
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd")
        content = {**record.content, "checksum": _checksum(record.content, buffer.getvalue())}
        _write_synced(draft / PREDICTIONS, buffer.getvalue())
        _write_synced(draft / RECORD, json.dumps(content, indent=1).encode())
        target = self.folder / record.hash
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)

    def _discard_drafts(self, config: dict) -> None:
        pattern = f".{hash_config(config)}-*"
        if not any(self.folder.glob(pattern)):
            return
        with self.claim(config, wait=False) as held:
            for draft in self.folder.glob(pattern) if held else ():
                _report(draft, "half-written by a process that ended")
                shutil.rmtree(draft)


def bundle(path: str | Path, records: Iterable[Record]) -> None:
    """Write `records` into one parquet file, for instance the committed reference of a study on one base."""
    rows = []
    for record in sorted(records, key=lambda record: (record.config["task"], record.hash)):
        predictions = record.predictions.to_dict("list")
        checksum = _checksum(record.content, canonical(predictions).encode())
        rows.append({"hash": record.hash, "record": canonical(record.content), "checksum": checksum, **predictions})
    texts = {name: pa.string() for name in ("hash", "record", "checksum")}
    lists = {name: pa.list_(kind) for name, kind in PREDICTION_TYPES.items()}
    table = pa.Table.from_pylist(rows, schema=pa.schema(texts | lists))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draft = Path(f"{path}.part")
    parquet.write_table(table, draft, compression="zstd", compression_level=19)
    draft.replace(path)


def read_bundle(path: str | Path) -> list[Record]:
    """The records of a bundle whose checksum matches; a damaged row, or file, is reported by a warning.

    Raises `PeftkitError` if there is no such file.
    """
    if not Path(path).is_file():
        raise PeftkitError(f"no bundle at {path}")
    try:
        rows = parquet.read_table(path).to_pylist()
    except DAMAGE as error:
        _report(path, error)
        return []
    records = []
    for row in rows:
        try:
            content, predictions = json.loads(row["record"]), {name: row[name] for name in PREDICTION_TYPES}
            if row["checksum"] != _checksum(content, canonical(predictions).encode()):
                raise ValueError("the checksum does not match")
            records.append(Record(content, pd.DataFrame(predictions)))
        except DAMAGE as error:
            _report(f"{path}, run {row.get('hash')}", error)
    return records


def _checksum(content: dict, predictions: bytes) -> str:
    return hashlib.sha256(canonical(content).encode() + predictions).hexdigest()


def _report(place, reason) -> None:
    warnings.warn(f"damaged record ignored, its run counts as not done: {place}: {reason}", stacklevel=3)


def _require(kind: str, given: Iterable[str], needed: Iterable[str]) -> None:
    if set(given) != set(needed):
        raise PeftkitError(f"{kind} must be {', '.join(needed)}; got {', '.join(map(str, given))}")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
