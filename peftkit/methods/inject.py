"""Put a PEFT method on a model: `inject` returns an ordinary `peft.PeftModel`."""
import warnings
from dataclasses import fields

from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import PeftkitError, choose
from ..models.regions import ARCHITECTURES, Architecture, architecture, region_of
from . import adalink, adapter, dora, ia3, lora, multiway, prefix, prefix_peft, prompt, side
from .method import Dimensions, Method
from .seeding import seed_for
from .selective import half, l2sp, masks, parts, spider
from .selective.tuner import SelectiveConfig
from .switches import HEAD, STATES, SWITCHES, modules_beside, raise_precision
from .tuner import matches

METHODS: dict[str, Method] = {method.name: method for method in (
    *parts.METHODS, lora.METHOD, dora.METHOD, ia3.METHOD, adapter.METHOD, multiway.METHOD, adalink.METHOD,
    prompt.METHOD, prefix.METHOD, prefix_peft.METHOD, side.METHOD, spider.METHOD, *masks.METHODS, l2sp.METHOD,
    half.METHOD)}
INSTEAD = {"vision": "method 'full', which trains the tower too",
           "vocabulary": "method 'language', which trains the embedding, 'head' or 'full'"}
MAPS = {"image": "connector", "text": "vocabulary"}  # a map of AdaLink: the switch that takes its place


def inject(model: nn.Module, method: str, *, connector: str = "frozen", vision: str = "frozen",
           vocabulary: str = "frozen", seed: int = 42, **options) -> PeftModel:
    """Put `method` on `model`, in place, and return the peft model around it.

    connector, vision, vocabulary: "frozen", or "tuned" to train a float32 copy of the whole connector, of the vision
    tower (Zhou 2024, Table 12), or of word embedding and output head (what its released code for Qwen trains as the
    connector) beside the method. Any of them may be combined; all such copies learn at the connector's rate. seed:
    initial values are drawn from it and each parameter's name, so two configurations start shared parameters alike.
    options: the method's own (rank, bottleneck, tokens, placement, ...).
    Raises PeftkitError for an unknown method, option, value or model type, and for combinations that cannot work: of
    selective methods with the tower or the vocabulary, of the vocabulary with a head that is tied to the embedding.
    """
    chosen, given = METHODS[choose("method", method, METHODS)], method_options(method, options)
    states = dict(zip(SWITCHES, (connector, vision, vocabulary)))
    tuned = [switch for switch, state in states.items() if choose(switch, state, STATES) == "tuned"]
    architecture(model)  # raises for a type that is not supported
    kind = model.config.model_type
    if any(isinstance(module, (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in model.modules()):
        raise PeftkitError("the model holds a peft method already; accepted: a base model without one")
    if kind in chosen.refuses:
        accepted = [name for name in ARCHITECTURES if name not in chosen.refuses]
        raise PeftkitError(f"{method} does not work on {kind} models: {chosen.refuses[kind]}; "
                           f"accepted: {', '.join(accepted)}")
    config = chosen.peft_config(model, given)
    _train_beside(config, chosen, model, tuned)
    _check_targets(model, config)
    peft_model = wrap(model, config)
    _draw_initial_values(peft_model, chosen, given, seed)
    _assert_parts(peft_model, chosen.regions, tuned)
    return peft_model


def wrap(model: nn.Module, config: PeftConfig) -> PeftModel:
    """peft's own injection, with what is trained beside the method in float32."""
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
        choose(f"option of {method}", name, [*(f.name for f in fields(kind)), *SWITCHES])
    return kind(**options)


def trainable_count(model_or_size: nn.Module | Dimensions, method: str, **options) -> int:
    """Trainable parameters of a method by its formula, what is trained beside it not included."""
    return METHODS[choose("method", method, METHODS)].count(model_or_size, method_options(method, options))


def _train_beside(config: PeftConfig, method: Method, model: nn.Module, tuned: list[str]) -> None:
    """Write into `config` what the tuned switches ask for."""
    copied = []
    for switch in tuned:
        _check_combination(config, method, switch)
        if isinstance(config, SelectiveConfig) and "connector" in architecture(model).patterns:
            config.sites["connector"] = architecture(model).region("connector")
        else:
            copied += modules_beside(model, switch)
    sites = list(getattr(config, "sites", None) or ())
    if sites and all(MAPS.get(site) in tuned for site in sites):
        given = " and ".join(f"{switch}='tuned'" for switch in map(MAPS.get, sites))
        raise PeftkitError(f"modality={'both' if len(sites) > 1 else sites[0]!r} has nothing left to adapt with "
                           f"{given}, which takes the map's place; accepted: 'frozen', or another modality")
    if copied:
        config.modules_to_save = copied


def _check_combination(config: PeftConfig, method: Method, switch: str) -> None:
    if method.refuses_connector:
        raise PeftkitError(f"{method.name} cannot be combined with {switch}='tuned': {method.refuses_connector}; "
                           "accepted: 'frozen'")
    if isinstance(config, SelectiveConfig) and switch in INSTEAD:
        raise PeftkitError(f"{method.name} trains chosen weights and cannot be combined with {switch}='tuned'; "
                           f"accepted: 'frozen', or {INSTEAD[switch]}")
    if config.peft_type == PeftType.PROMPT_TUNING and switch == "vocabulary":
        raise PeftkitError("prompt cannot be combined with vocabulary='tuned': peft embeds the words behind its prompt "
                           "by the frozen table; accepted: 'frozen', or method 'prefix' or 'prefix-peft'")


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


def _assert_parts(model: PeftModel, regions: tuple[str, ...], tuned: list[str]) -> None:
    """Every tuned switch trains something, and nothing outside these and the method's regions is trained."""
    arch, expected = architecture(model), {*regions, *tuned}
    trained = {_part(arch, name) for name, p in model.named_parameters() if p.requires_grad}
    if not trained or not set(tuned) <= trained <= expected:
        raise RuntimeError(f"injection trained {sorted(map(str, trained))} where {sorted(expected)} was intended; "
                           "this is a bug in peftkit's targets")


def _part(arch: Architecture, name: str) -> str | None:
    """The region of a parameter, "prefix" for virtual tokens, or, of copies in language and head, "vocabulary" for
    these two tables and the path for any other."""
    if name.startswith("prompt_encoder."):
        return "prefix"
    region = region_of(arch, name)
    path, copied, _ = name.partition(".modules_to_save.")
    if not copied or region in ("connector", "vision"):
        return region
    tables = [f"base_model.{inner}{table}" for inner in ("", "model.") for table in (arch.text, HEAD)]
    return "vocabulary" if path in tables else path
