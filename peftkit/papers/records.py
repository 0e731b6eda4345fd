"""Where the records of a paper's studies are: files that the repository ships, or a store in which runs are done."""
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import PeftkitError, choose
from ..studies import Record, RunStore, Study, read_bundle

CHECKOUT = Path(__file__).resolve().parents[2]
Grids = Callable[[RunStore | str | Path], list[Study]]


def records_of(name: str, grids: Grids, tier: str, runs: str = "committed") -> list[Record]:
    """The records of a study.

    grids: store -> the study's grids at this tier. runs: "committed" reads those that the repository ships
    (figures/runs, made by `peftkit figures --accept`); "live" trains what the store lacks (the folder that
    PEFTKIT_STORE names, else `runs` in the checkout). The smoke tier is always live, in a store of its own unless
    PEFTKIT_STORE names one. Raises PeftkitError for an unknown value of runs and for records that are not there.
    """
    choose("value of runs", runs, ("committed", "live"))
    named = os.environ.get("PEFTKIT_STORE")
    if tier == "smoke":
        with tempfile.TemporaryDirectory() as folder:
            return _train(grids(named or folder), workers=0)  # starting processes would take longer
    if runs == "live":
        return _train(grids(named or CHECKOUT / "runs"))
    paths = dict.fromkeys(record_file(name, base) for grid in grids(CHECKOUT / "runs") for base in grid.bases)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise PeftkitError(f"no committed records {', '.join(missing)}; `peftkit figures --accept` makes them")
    return [record for path in paths for record in read_bundle(path)]


def record_file(name: str, base: str) -> Path:
    """Where the repository keeps the committed records of a study on `base`."""
    return CHECKOUT / "figures" / "runs" / f"{name}-{base}.parquet"


def _train(grids: list[Study], workers: int | None = None) -> list[Record]:
    for grid in grids:
        grid.run(workers=workers)
    return [grid.store.get(config) for grid in grids for config in grid.configs()]
