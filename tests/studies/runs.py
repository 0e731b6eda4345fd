"""Runs that need no model: a configuration and what does it, in this process or in another that imports this module."""
import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd

from peftkit.studies.execution import execute
from peftkit.studies.store import RunStore

FAKE_RUN = f"{__name__}:fake_run"
GPUS = "CUDA_VISIBLE_DEVICES"
ANSWERS = pd.DataFrame({"question_id": ["a"], "prediction": ["red"], "score": [1.0]})


def config(folder, task="vizwiz", seed=0, base="tiny", method="lora", epochs=1, **options):
    return {
        "study": str(folder), "base": base, "base_hash": "0", "method": method, "options": options, "task": task,
        "train_size": 1, "test_size": 1, "seed": seed, "train": {"epochs": epochs},
    }  # fmt: skip


def fake_run(config, checkpoints=None):
    """Leave a line in the study's log; fail, die or dawdle if an option says so. The score is a hundredth of the seed.

    `die` is how many times it dies; the lines in the log count them.
    """
    options, log = config["options"], Path(config["study"]) / "log"
    threads, device = "torch" in sys.modules and sys.modules["torch"].get_num_threads(), os.environ.get(GPUS)
    with log.open("a") as file:
        file.write(f"{config['task']} {config['seed']} {os.getpid()} {threads} {device} {os.getppid()}\n")
    if "fail" in options:
        raise FloatingPointError("loss is nan at step 3")
    times = sum(line.startswith(f"{config['task']} {config['seed']} ") for line in log.read_text().splitlines())
    if times <= options.get("die", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(options.get("sleep", 0))
    train = {
        "status": "success", "train_time": 1.0, "num_trainable_params": 1, "num_total_params": 2, "parameters": {},
        "peak_memory_mb": 1.0, "losses": [], "samples_per_second": 1.0, "steps": 1,
    }  # fmt: skip
    metrics = {"metric": "exact_match", "score": config["seed"] / 100, "num_examples": 1, "eval_time": 1.0}
    return {"train_info": train, "metrics": metrics, "meta_info": {}}, ANSWERS


def log_of(folder):
    """The words of each line of the log: task, seed, process, torch's threads, GPUs shown, parent."""
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def run(configs, folder, **options):
    return execute(configs, RunStore(folder / "store"), progress=False, run_one=FAKE_RUN, **options)
