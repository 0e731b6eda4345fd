"""Put a PEFT method on a model: `inject` returns an ordinary `peft.PeftModel`."""
import warnings
from dataclasses import fields

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import PeftkitError, choose
from ..models.regions import ARCHITECTURES, architecture, region_of
from . import adalink, adapter, dora, ia3, lora, multiway, prefix, prefix_peft, prompt, side
from .connector import connector_modules, raise_precision
from .method import Dimensions, Method
from .seeding import seed_for
from .selective import half, l2sp, masks, parts, spider
from .selective.tuner import SelectiveConfig
from .tuner import matches

METHODS: dict[str, Method] = {method.name: method for method in (
    *parts.METHODS, lora.METHOD, dora.METHOD, ia3.METHOD, adapter.METHOD, multiway.METHOD, adalink.METHOD,
    prompt.METHOD, prefix.METHOD, prefix_peft.METHOD, side.METHOD, spider.METHOD, *masks.METHODS, l2sp.METHOD,
    half.METHOD)}
CONNECTORS = ("frozen", "tuned")
NO_CONNECTOR = {
    "blip": "their picture enters by cross-attention inside the text layers",
    "t5": "they have no picture",
}


def inject(model: nn.Module, method: str, *, connector: str = "frozen", seed: int = 42, **options) -> PeftModel:
    """Put `method` on `model`, in place, and return the peft model around it.

    connector: "frozen", or "tuned" to train a float32 copy of the whole connector as well. seed: initial values are
    drawn from it and each parameter's name, so two configurations start shared parameters alike.
    options: the method's own (rank, bottleneck, tokens, placement, ...).
    Raises PeftkitError for an unknown method, option, value or model type, and for combinations that cannot work.
    """
    chosen, given = METHODS[choose("method", method, METHODS)], method_options(method, options)
    choose("connector", connector, CONNECTORS)
    architecture(model)  # raises for a type that is not supported
    kind = model.config.model_type
    if any(isinstance(module, (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in model.modules()):
        raise PeftkitError("the model holds a peft method already; accepted: a base model without one")
    if kind in chosen.refuses:
        accepted = [name for name in ARCHITECTURES if name not in chosen.refuses]
        raise PeftkitError(f"{method} does not work on {kind} models: {chosen.refuses[kind]}; "
                           f"accepted: {', '.join(accepted)}")
    config = chosen.peft_config(model, given)
    if connector == "tuned":
        _tune_connector(config, chosen, model)
    _check_targets(model, config)
    peft_model = wrap(model, config)
    _draw_initial_values(peft_model, chosen, given, seed)
    _assert_regions(peft_model, {*chosen.regions, *(["connector"] if connector == "tuned" else [])})
    return peft_model


def wrap(model: nn.Module, config: PeftConfig) -> PeftModel:
    """peft's own injection, with a tuned connector in float32."""
    base_dtype = model.dtype
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft uses its old name
        warnings.filterwarnings("ignore", message=".*tied layer is part of the adapter.*")  # ours stay apart when tied
        peft_model = get_peft_model(model, config)
    raise_precision(peft_model, base_dtype)
    return peft_model


def method_options(method: str, options: dict):
    """The options dataclass of a method, filled; unknown names are refused with the accepted ones."""
    kind = METHODS[choose("method", method, METHODS)].options
    for name in options:
        choose(f"option of {method}", name, [*(f.name for f in fields(kind)), "connector"])
    return kind(**options)


def trainable_count(model_or_size: nn.Module | Dimensions, method: str, **options) -> int:
    """Trainable parameters of a method by its formula, the connector not included."""
    return METHODS[choose("method", method, METHODS)].count(model_or_size, method_options(method, options))


def _tune_connector(config: PeftConfig, method: Method, model: nn.Module) -> None:
    arch, kind = architecture(model), model.config.model_type
    if method.refuses_connector:
        raise PeftkitError(f"{method.name} cannot be combined with connector='tuned': {method.refuses_connector}; "
                           "accepted: 'frozen'")
    if isinstance(config, SelectiveConfig) and "connector" in arch.patterns:
        config.sites["connector"] = arch.region("connector")
        return
    if arch.connector is None:
        raise PeftkitError(f"connector='tuned' is not possible for {kind} models: {NO_CONNECTOR[kind]}; "
                           "accepted: 'frozen'")
    if set(getattr(config, "sites", ())) == {"image"}:
        raise PeftkitError("modality='image' has nothing left to adapt with connector='tuned', which takes the map's "
                           "place; accepted: 'text' or 'both', or connector='frozen'")
    config.modules_to_save = connector_modules(model)


def _check_targets(model: nn.Module, config: PeftConfig) -> None:
    """Each pattern of a configuration matches something."""
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for role, pattern in getattr(config, "sites", {}).items():
        if role != "added_bias" and not any(matches(pattern, name) for name in names):
            raise PeftkitError(f"nothing in this {model.config.model_type} model matches {pattern!r} ({role}); "
                               f"accepted: a pattern for its paths, such as {names[-1]}")


def _draw_initial_values(model: PeftModel, method: Method, options, seed: int) -> None:
    for name, parameter in model.named_parameters():
        copied = "modules_to_save" in name or "selective_weights" in name  # these start as the base is
        if parameter.requires_grad and not copied and not parameter.is_meta:
            start = parameter.detach().to("cpu", copy=True)
            method.draw(name, start, seed_for(seed, name), options)
            parameter.data.copy_(start)


def _assert_regions(model: PeftModel, expected: set[str]) -> None:
    """Nothing outside the intended regions is trained."""
    arch = architecture(model)
    trained = {"prefix" if name.startswith("prompt_encoder.") else region_of(arch, name)
               for name, p in model.named_parameters() if p.requires_grad}
    if not trained or trained - expected:
        raise RuntimeError(f"injection trained {sorted(map(str, trained))} where {sorted(expected)} was intended; "
                           "this is a bug in peftkit's targets")
