"""A frame of made-up records of the main study: what `peftkit.studies.tabulate` gives, without any training."""
import pandas as pd
import pytest

from peftkit.papers.zhou2024 import SEEN, UNSEEN

METHODS = ("lora", "adapter", "ia3", "prefix-peft")


@pytest.fixture
def frame_of():
    """Make one: score(method, connector, task, seed) is what a run scores, method "none" is the untrained base."""
    def build(score, *, base="tiny-llava-s", tasks=UNSEEN + SEEN, seeds=(42, 43, 44)):
        arms = [("none", None, None), *((m, c, s) for m in METHODS for c in ("frozen", "tuned") for s in seeds)]
        rows = [{"base": base, "method": method, "connector": connector, "task": task, "seed": seed,
                 "score": score(method, connector, task, seed)} for task in tasks for method, connector, seed in arms]
        return pd.DataFrame(rows).astype({"seed": "Int64"})

    return build
