"""Efficiency (Table 15): operations by the paper's formula, beside the printed ones and those that torch counts; what
our machine measured; and scores against what is trained for them."""
import json
from pathlib import Path

import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from ...data import encode, task
from ...methods import inject, trainable_map
from ...models import load
from .printed import printed_table
from .records import MAIN
from .shares import LANGUAGE, paper_shares
from .study import SIZES
from .tables import MODELS

_BENCH = Path(__file__).resolve().parents[3] / "figures" / "bench" / "methods.json"


def training_flops(frozen: int, trainable: int, tokens: int = 1) -> int:
    """The paper's formula for training: 2 operations a token for a frozen parameter, 4 for a trained one."""
    return (2 * frozen + 4 * trainable) * tokens


def implied_tokens() -> pd.DataFrame:
    """For how many tokens Table 15 was printed: its training FLOPs over the formula's for one token, a row a setting.

    Columns: model, method, connector, printed (FLOPs), a_token (by formula), tokens.
    """
    printed = printed_table("table15_efficiency").query("metric == 'train_flops'").set_index(
        ["model", "method", "connector"])["value"].astype(float)
    rows = []
    for model in LANGUAGE:
        for share in paper_shares(model).itertuples():
            for connector, trained in (("frozen", share.modules), ("tuned", share.modules + share.connector)):
                total = 100 * share.modules / share.frozen
                flops = printed[model, share.method, connector]
                per_token = training_flops(total - trained, trained)
                rows.append({"model": model, "method": share.method, "connector": connector, "printed": flops,
                             "a_token": per_token, "tokens": flops / per_token})
    return pd.DataFrame(rows)


def counted_flops(base_name: str = "tiny-llava-s", rows: int = 32) -> pd.DataFrame:
    """A training step of every method, connector tuned: operations that torch counts (matrix products, forward and
    backward) over those of the paper's formula for the same tokens.

    Columns: method, tokens (positions of the language model, pads included), counted, formula, ratio.
    """
    drawn, found = task("iconqa_blank", train_size=rows, validation_size=1, test_size=1), []
    for method, options in SIZES.items():
        base = load(base_name)
        model = inject(base.model, method, connector="tuned", **options)
        batch = encode(base.processor, drawn.train, drawn.prompt).training_batch(list(range(rows)))
        with FlopCounterMode(display=False) as counter:
            model(**batch).loss.backward()
        total, trained = (int(count) for count in trainable_map(model)[["total", "trainable"]].sum())
        tokens = batch["input_ids"].numel()
        formula = training_flops(total - trained, trained, tokens)
        found.append({"method": method, "tokens": tokens, "counted": counter.get_total_flops(), "formula": formula,
                      "ratio": counter.get_total_flops() / formula})
    return pd.DataFrame(found)


def measured_steps() -> tuple[pd.DataFrame, dict]:
    """The committed table of `peftkit bench methods`, rows the study's methods and full fine-tuning, and what else
    stands in its file: date, packages and machine.

    Columns: trainable, lora_rank, step, fastest, slowest, memory; times and memory relative to a LoRA of that rank.
    """
    made = json.loads(_BENCH.read_text())
    table = pd.DataFrame(made.pop("table")).set_index("method")
    return table.loc[[*SIZES, "language"]], made


def share_and_score(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 15's score beside its share, ours and the paper's, a row a seed: side, method, connector, share (trainable
    percent), seed, score (mean of all tasks, in points). frame: of `tidy`, with the main study in it."""
    runs = frame[frame["study"] == MAIN]
    runs = runs.assign(side="ours, " + runs["base"], share=100 * runs["trainable"] / runs["total"],
                       score=100 * runs["score"], seed=runs["seed"].astype(str))
    keys = ["side", "method", "connector", "seed"]
    ours = runs.groupby(keys, sort=False, dropna=False, as_index=False).agg({"share": "first", "score": "mean"})
    printed = printed_table("table15_efficiency").pivot(
        index=["model", "method", "connector"], columns="metric", values="value").astype(float).reset_index()
    printed = printed.rename(columns={"trainable_percent": "share", "mean_of_8_datasets": "score"})
    printed = printed.sort_values("model", key=lambda names: names.map(list(MODELS).index), kind="stable")
    paper = printed.assign(side="paper, " + printed["model"].map(MODELS), seed="printed")
    return pd.concat([ours, paper])[["side", "method", "connector", "share", "seed", "score"]]
