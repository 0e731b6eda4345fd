"""Load a saved adapter strictly: everything in the folder must fit the base, nothing may be left out.

`peft.PeftModel.from_pretrained` and transformers' `load_adapter` load the same folders after `import peftkit`, but drop
what they do not know with a warning and round a tuned connector to the base's precision.
"""
import json
from pathlib import Path

from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import PeftkitError
from ..models.regions import architecture, region_of
from .inject import wrap
from .selective.tuner import SelectiveConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """Put the adapter that `save_pretrained` wrote into `folder` on a base, in place.

    trainable: whether to go on training it. Raises PeftkitError for a folder without an adapter, a setting that this
    peft does not know, or weights that do not fit the base (with the regions and shapes that were found and expected).
    """
    folder = Path(folder)
    config = _config(folder)
    config.inference_mode = not trainable
    if isinstance(config, SelectiveConfig):
        config.kept = {}  # peft's way of loading makes room for packed weights; here they are unpacked at once
    weights = load_file(folder / WEIGHTS)
    try:
        loaded = wrap(model, config)
    except ValueError as error:
        raise PeftkitError(f"the adapter in {str(folder)!r} does not fit this {model.config.model_type} model: "
                           f"{error}") from error
    _check_fit(loaded, weights, folder)
    set_peft_model_state_dict(loaded, weights)
    return loaded if trainable else loaded.requires_grad_(False).eval()


def _config(folder: Path) -> PeftConfig:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise PeftkitError(f"the folder {str(folder)!r} has no {', '.join(missing)}; accepted: a folder into which "
                           "save_pretrained wrote an adapter")
    content = json.loads((folder / CONFIG).read_text())
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(content.get("peft_type"))
    if kind is None:
        raise PeftkitError(f"unknown adapter type {content.get('peft_type')!r} in {str(folder)!r}; accepted: "
                           + ", ".join(sorted(str(name.value) for name in PEFT_TYPE_TO_CONFIG_MAPPING)))
    unknown = set(content) - set(kind.__dataclass_fields__)
    if unknown:
        raise PeftkitError(f"unknown settings {', '.join(sorted(unknown))} in {str(folder / CONFIG)!r}: written by "
                           "another version of peft or peftkit; accepted: " + ", ".join(kind.__dataclass_fields__))
    return PeftConfig.from_pretrained(str(folder))


def _check_fit(model: PeftModel, found: dict[str, Tensor], folder: Path) -> None:
    arch = architecture(model)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = []
    for name in sorted(set(found) | set(expected)):
        shapes = [tuple(side[name].shape) if name in side else "nothing" for side in (found, expected)]
        if shapes[0] != shapes[1] and not name.endswith("_values"):
            wrong.append(f"{region_of(arch, name) or 'prefix'}: {name} is {shapes[0]}, the base asks for {shapes[1]}")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise PeftkitError(f"the adapter in {str(folder)!r} was made for another base: {'; '.join(wrong[:3])}{more}")
