"""Efficiency (Table 15): operations by the paper's formula, beside the printed ones and those that torch counts."""
import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from ...data import encode, task
from ...methods import inject, trainable_map
from ...models import load
from .printed import printed_table
from .shares import LANGUAGE, paper_shares
from .study import SIZES


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
