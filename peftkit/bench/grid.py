"""A grid of 200 short runs by the workers of a study, against the same runs one after the other in one process."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from ..errors import PeftkitError
from .pairs import alternate

GRID = """
import json
import sys
from peftkit import Study
if __name__ == "__main__":
    Study("bench", bases=["tiny-llava-s"], methods={"lora": {}, "adapter": {}}, seeds=range(10), store=sys.argv[1],
          tasks=["scienceqa", "vizwiz", "iconqa_txt", "iconqa_blank", "vqav2"], train_size=128, test_size=64,
          settings={"all": {"epochs": 2, "learning_rate": 1e-3}}).run(workers=json.loads(sys.argv[2]), progress=False)
"""


def bench_grid(repeats: int = 5, against: str | Path | None = None) -> pd.DataFrame:
    """Seconds of 200 runs (two methods, connector frozen and tuned, five tasks, ten seeds; 8 steps each).

    Ours: a process with the default workers. Theirs: one process, all its threads, one run after the other; `against`
    names a checkout of another commit, such as the first one with a training loop, whose package does them. Returns
    medians over `repeats` alternated pairs and the ratio ours over theirs. Raises PeftkitError for a folder that is no
    checkout.
    """
    ours = Path(__file__).parents[2]
    theirs = ours if against is None else Path(against).resolve()
    if not (theirs / "peftkit" / "studies").is_dir():
        raise PeftkitError(f"{str(theirs)!r} holds no peftkit with studies; accepted: a checkout of this repository")
    seconds = alternate(lambda: _run(ours, None), lambda: _run(theirs, 0), repeats, "grids")
    shares = {"ours/theirs": 1 / seconds["ratio"], "lowest": 1 / seconds["highest"], "highest": 1 / seconds["lowest"]}
    return pd.DataFrame([{"ours": seconds["ours"], "theirs": seconds["theirs"], **shares}]).round(2)


def _run(checkout: Path, workers: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "grid.py"
        script.write_text(GRID)
        subprocess.run([sys.executable, script, Path(folder) / "runs", json.dumps(workers)], check=True,
                       env=os.environ | {"PYTHONPATH": str(checkout)})
