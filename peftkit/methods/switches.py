"""What is trained beside a method: peft's own copies (`modules_to_save`) of the connector, the vision tower or the
vocabulary, kept in float32 on a base of lower precision.

A bfloat16 copy would not move at the connector's small learning rate: an update of 2e-5 is less than half a step of
bfloat16 at the size of its weights.
"""
import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from ..errors import PeftkitError
from ..models.regions import architecture
from .selective.tuner import SelectiveConfig, tuned

SWITCHES = ("connector", "vision", "vocabulary")
STATES = ("frozen", "tuned")
HEAD = "lm_head"  # the path of the output layer in every model type whose vocabulary can be tuned
MISSING = {
    "connector": {"blip": "their picture enters by cross-attention inside the text layers",
                  "t5": "they have no picture"},
    "vision": {"t5": "they have no picture"},
    "vocabulary": {"blip": "their encoder and decoder have a table of words each",
                   "t5": "encoder and decoder share one table of words, and copies of it would come apart"},
}
TIED = "its head is tied to its word embedding, and copies of the two would come apart"


def modules_beside(model: nn.Module, switch: str) -> list[str]:
    """What peft's `modules_to_save` gets for a switch: paths of modules, which match nowhere else in a model.

    Raises PeftkitError for a model type that lacks the part, and for the vocabulary of a model with a tied head.
    """
    arch, kind = architecture(model), model.config.model_type
    if kind in MISSING[switch]:
        raise PeftkitError(f"{switch}='tuned' is not possible for {kind} models: {MISSING[switch][kind]}; "
                           "accepted: 'frozen'")
    if switch == "vocabulary":
        if model.get_input_embeddings().weight is model.get_output_embeddings().weight:
            raise PeftkitError(f"vocabulary='tuned' is not possible for this {kind} model: {TIED}; accepted: 'frozen'")
        paths = [arch.text, HEAD]
    elif switch == "vision":
        paths = _holders(model.get_submodule(arch.vision), arch.vision, without=arch.connector)
    else:
        paths = _holders(model.get_submodule(arch.connector), arch.connector)
        if any(next(model.get_submodule(path).children(), None) is not None for path in paths):
            paths = [arch.connector]
    return [path.removeprefix("model.") for path in paths]


def _holders(module: nn.Module, path: str, without: str | None = None) -> list[str]:
    """Paths of the outermost modules that hold parameters of their own; nothing in `without` is named.

    All but these stay as they are, so that most lists can be merged by every tuner; peft's IA3 cannot merge beside a
    copied module that contains others.
    """
    if path == without:
        return []
    if next(module.parameters(recurse=False), None) is not None:
        return [path]
    return [found for name, child in module.named_children() for found in _holders(child, f"{path}.{name}", without)]


def raise_precision(model: nn.Module, base_dtype: torch.dtype) -> None:
    """Make every trained module copy float32; on another base it casts its input up and its output back."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copy in module.modules_to_save.values():
                copy.float()
                if base_dtype != torch.float32:
                    copy.register_forward_pre_hook(lambda _, args: tuple(
                        a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args))
                    copy.register_forward_hook(lambda _, args, output: output.to(base_dtype))


def trained_beside(model: nn.Module) -> set[int]:
    """Identities of the parameters that the switches added: they learn at the connector's rate, not the method's."""
    saved = {id(p) for module in model.modules() if isinstance(module, ModulesToSaveWrapper)
             for p in module.modules_to_save.parameters()}
    config = getattr(model, "peft_config", {}).get("default")
    if not isinstance(config, SelectiveConfig):
        return saved
    return {id(tensor.weight) for tensor in tuned(model) if config.role(tensor.name) == "connector"}
