"""A tuned connector: peft's trained copy of it (`modules_to_save`), kept in float32 on a base of lower precision.

A bfloat16 copy would not move at the connector's small learning rate: an update of 2e-5 is less than half a step of
bfloat16 at the size of its weights.
"""
import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from ..models.regions import architecture
from .selective.tuner import SelectiveConfig, tuned


def connector_modules(model: nn.Module) -> list[str]:
    """What peft's `modules_to_save` gets: the connector's layers if they hold all its parameters, else all of it.

    A list of layers can be merged by every tuner; peft's IA3 cannot merge beside a module that contains others.
    """
    path = architecture(model).connector
    modules = dict(model.get_submodule(path).named_modules(prefix=path.removeprefix("model.")))
    holders = {name: module for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None}
    inner = any(next(module.children(), None) is not None for module in holders.values())
    return [path.removeprefix("model.")] if inner else list(holders)


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


def connector_copies(model: nn.Module) -> set[int]:
    """Identities of the parameters that connector="tuned" added, which have a learning rate of their own."""
    saved = {id(p) for module in model.modules() if isinstance(module, ModulesToSaveWrapper)
             for p in module.modules_to_save.parameters()}
    config = getattr(model, "peft_config", {}).get("default")
    if not isinstance(config, SelectiveConfig):
        return saved
    return {id(tensor.weight) for tensor in tuned(model) if config.role(tensor.name) == "connector"}
