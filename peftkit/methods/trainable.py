"""The trainable map: what is trained, region by region."""
import pandas as pd
from torch import nn

from ..models.regions import REGIONS, architecture, region_of
from .selective.tuner import out_of_use

PREFIX = "prefix"  # a prefix lives outside the base model, before its language model


def trainable_map(model: nn.Module) -> pd.DataFrame:
    """One row a region: tensors, trainable, total (parameters), dtype (of what is trained), share (trainable / total).

    A tied head counts once, in the language model. Where a copy is trained, the copy counts and the original, which is
    out of use, does not. Virtual tokens have a region of their own, "prefix".
    """
    arch, replaced = architecture(model), out_of_use(model)
    rows = {region: {"tensors": 0, "trainable": 0, "total": 0, "dtype": set()} for region in (*REGIONS, PREFIX)}
    for name, parameter in model.named_parameters():
        if ".original_module." in name or id(parameter) in replaced:
            continue
        row = rows[PREFIX if name.startswith("prompt_encoder.") else region_of(arch, name) or "language"]
        row["total"] += parameter.numel()
        if parameter.requires_grad:
            row["tensors"] += 1
            row["trainable"] += parameter.numel()
            row["dtype"].add(str(parameter.dtype).removeprefix("torch."))
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("region")
    frame = frame[(frame["total"] > 0)]
    frame["dtype"] = frame["dtype"].map(lambda kinds: ", ".join(sorted(kinds)))
    frame["share"] = frame["trainable"] / frame["total"]
    return frame
