"""Bottleneck adapter: h + scale * U f(D h), with D (bottleneck, width) and U (width, bottleneck), no biases.

Sequential, in the placements of Zhou 2024: "attention" adds one adapter after the layer that leaves the attention;
"mlp" adds three, before each layer that enters the MLP and after the one that leaves it (the released code, facts
section 2); "both" adds all four. Adapters are not linear, so they cannot be merged.
"""
from dataclasses import dataclass, field

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from ..errors import choose, require_count, require_positive, require_share
from ..models.regions import architecture
from .method import PLACEMENTS, Dimensions, Method
from .registration import register

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
INITS = ("zero", "released")
INIT_STD = 0.02  # of the released code, for D and U


@dataclass
class AdapterConfig(PeftConfig):
    """Configuration of bottleneck adapters as peft stores it.

    target_modules: the linear layers that get an adapter, a list of name ends or a regular expression. before: name
    ends of those whose adapter acts on their input instead of their output. init: "zero" (U starts at zero: identity)
    or "released" (U as random as D).
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    before: list[str] = field(default_factory=list)
    bottleneck: int = 16
    activation: str = "tanh"
    scale: float = 1.0
    dropout: float = 0.0
    init: str = "zero"
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType["BOTTLENECK"]  # the member: transformers asks it for its value
        choose("activation", self.activation, ACTIVATIONS)
        choose("init", self.init, INITS)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A linear layer with adapters before or after it, one an adapter name."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("scale", "function", "dropout")

    def __init__(self, base_layer: nn.Linear, before: bool):
        super().__init__()
        self.base_layer, self.before = base_layer, before
        self.width = base_layer.in_features if before else base_layer.out_features
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.scale, self.function, self.dropout = {}, {}, {}
        self._disable_adapters, self.merged_adapters = False, []

    def update_layer(self, name: str, config: AdapterConfig) -> None:
        """Add the adapter `name` with its initial values."""
        self.bottleneck_down[name] = nn.Linear(self.width, config.bottleneck, bias=False)
        self.bottleneck_up[name] = nn.Linear(config.bottleneck, self.width, bias=False)
        nn.init.normal_(self.bottleneck_down[name].weight, std=INIT_STD)
        up = self.bottleneck_up[name].weight
        nn.init.zeros_(up) if config.init == "zero" else nn.init.normal_(up, std=INIT_STD)
        self.scale[name], self.function[name] = config.scale, ACTIVATIONS[config.activation]()
        self.dropout[name] = config.dropout
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def adapt(self, h: Tensor) -> Tensor:
        """h + scale * U f(D h) for every active adapter in turn; h: (..., width)."""
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                down, up = self.bottleneck_down[name], self.bottleneck_up[name]
                inner = self.function[name](down(h.to(down.weight.dtype)))  # (..., bottleneck)
                change = nn.functional.dropout(up(inner), self.dropout[name], self.training)
                h = h + self.scale[name] * change.to(h.dtype)
        return h

    def forward(self, x: Tensor) -> Tensor:
        if self.disable_adapters:
            return self.base_layer(x)
        return self.base_layer(self.adapt(x)) if self.before else self.adapt(self.base_layer(x))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Always raises: an adapter has a non-linearity inside."""
        raise ValueError("bottleneck adapters cannot be merged: a non-linearity stands between their two matrices")


class AdapterModel(BaseTuner):
    """The tuner: which layers are wrapped, and how."""

    prefix = "bottleneck_"
    tuner_layer_cls = AdapterLayer
    target_module_mapping: dict = {}

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key) -> None:
        if isinstance(target, AdapterLayer):
            target.update_layer(adapter_name, config)
            return
        if not isinstance(target, nn.Linear):
            raise TypeError(f"{current_key} is a {type(target).__name__}; adapters go on torch.nn.Linear")
        layer = AdapterLayer(target, before=current_key.endswith(tuple(config.before)))
        layer._active_adapter = [adapter_name]
        layer.update_layer(adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent, child_name, new_module, child) -> None:
        setattr(parent, child_name, new_module)  # peft's version copies a .weight that composite modules do not have


register("bottleneck", AdapterConfig, AdapterModel)


@dataclass(frozen=True)
class AdapterOptions:
    """bottleneck; placement: "attention", "mlp" or "both"; activation; scale; dropout; init: "zero", "released"."""

    bottleneck: int = 16
    placement: str = "mlp"
    activation: str = "tanh"
    scale: float = 1.0
    dropout: float = 0.0
    init: str = "zero"

    def __post_init__(self):
        choose("placement", self.placement, PLACEMENTS)
        choose("activation", self.activation, ACTIVATIONS)
        choose("init", self.init, INITS)
        require_count(bottleneck=self.bottleneck)
        require_positive(scale=self.scale)
        require_share(dropout=self.dropout)


def _config(model, options: AdapterOptions) -> AdapterConfig:
    arch = architecture(model)
    layers = {"attention": (arch.attention_out,), "mlp": arch.mlp, "both": (arch.attention_out, *arch.mlp)}
    return AdapterConfig(
        target_modules=arch.targets(layers[options.placement]), before=list(arch.mlp_in),
        bottleneck=options.bottleneck, activation=options.activation, scale=options.scale, dropout=options.dropout,
        init=options.init)


def _draw(name, tensor, generator) -> None:
    if torch.count_nonzero(tensor):  # U stays at zero where it starts there
        tensor.normal_(0.0, INIT_STD, generator=generator)


def _count(d: Dimensions, options: AdapterOptions) -> int:
    sites = {"attention": 1, "mlp": d.mlp_in + 1, "both": d.mlp_in + 2}[options.placement]
    return d.layers * sites * 2 * d.width * options.bottleneck


METHOD = Method("adapter", AdapterOptions, _config, _draw, _count, "Houlsby et al. 2019; Zhou et al. 2024")
