"""Put a PEFT method on a model: `inject` returns an ordinary `peft.PeftModel`."""
import hashlib
import warnings
from dataclasses import fields

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from ..errors import PeftkitError, choose
from ..models.regions import architecture, region_of
from . import adapter, ia3, lora, prefix
from .method import Dimensions, Method, dimensions

METHODS: dict[str, Method] = {module.METHOD.name: module.METHOD for module in (lora, ia3, prefix, adapter)}
CONNECTORS = ("frozen", "tuned")


def inject(model: nn.Module, method: str, *, connector: str = "frozen", seed: int = 42, **options) -> PeftModel:
    """Put `method` on the language model of `model`, in place, and return the peft model around it.

    connector: "frozen", or "tuned" to train a float32 copy of the whole connector as well. seed: initial values are
    drawn from it and each parameter's name, so two configurations start shared parameters alike.
    options: the method's own (rank, bottleneck, tokens, placement, ...).
    Raises PeftkitError for an unknown method, option, value or model type, and for combinations that cannot work.
    """
    chosen = METHODS[choose("method", method, METHODS)]
    choose("connector", connector, CONNECTORS)
    arch = architecture(model)
    if any(isinstance(module, (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in model.modules()):
        raise PeftkitError("the model holds a peft method already; accepted: a base model without one")
    config = chosen.peft_config(model, method_options(method, options))
    if connector == "tuned":
        if arch.connector is None:
            raise PeftkitError(f"connector='tuned' is not possible for {model.config.model_type} models: their picture "
                               "enters by cross-attention inside the text layers; accepted: 'frozen'")
        config.modules_to_save = [arch.connector.removeprefix("model.")]
    base_dtype = model.dtype
    with warnings.catch_warnings():  # peft asks transformers a question under its old name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        peft_model = get_peft_model(model, config)
    _raise_connector_precision(peft_model, base_dtype)
    _draw_initial_values(peft_model, chosen, seed)
    _assert_regions(peft_model, tuned=connector == "tuned")
    return peft_model


def method_options(method: str, options: dict):
    """The options dataclass of a method, filled; unknown names are refused with the accepted ones."""
    kind = METHODS[choose("method", method, METHODS)].options
    for name in options:
        choose(f"option of {method}", name, [*(f.name for f in fields(kind)), "connector"])
    return kind(**options)


def trainable_count(model_or_size: nn.Module | Dimensions, method: str, **options) -> int:
    """Trainable parameters of a method by its formula, the connector not included."""
    size = model_or_size if isinstance(model_or_size, Dimensions) else dimensions(model_or_size)
    return METHODS[choose("method", method, METHODS)].count(size, method_options(method, options))


def seed_for(seed: int, name: str) -> torch.Generator:
    """A random generator that depends on the seed and the parameter's name only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


def _draw_initial_values(model: PeftModel, method: Method, seed: int) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "modules_to_save" not in name and not parameter.is_meta:
            start = parameter.detach().to("cpu", torch.float32, copy=True)
            method.draw(name, start, seed_for(seed, name))
            parameter.data.copy_(start)


def _raise_connector_precision(model: PeftModel, base_dtype: torch.dtype) -> None:
    """Train the connector's copy in float32: a bfloat16 copy would not move at its small learning rate.

    On a base of lower precision the copy casts its input up and its output back.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copy in module.modules_to_save.values():
                copy.float()
                if base_dtype != torch.float32:
                    copy.register_forward_pre_hook(lambda _, args: tuple(
                        a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args))
                    copy.register_forward_hook(lambda _, args, output: output.to(base_dtype))


def _assert_regions(model: PeftModel, tuned: bool) -> None:
    """Nothing outside the intended regions is trained, and each intended region is."""
    arch = architecture(model)
    trained = {region_of(arch, name) for name, p in model.named_parameters()
               if p.requires_grad and not name.startswith("prompt_encoder.")}
    wrong = trained - {"language", "connector" if tuned else "language"}
    if wrong or (tuned and "connector" not in trained):
        raise RuntimeError(f"injection trained {sorted(map(str, trained))}; this is a bug in peftkit's targets")
