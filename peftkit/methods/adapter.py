"""Bottleneck adapter: h + s U f(D h), with D (bottleneck, width) and U (width, bottleneck).

insertion says what h is. "after": the output of a sub-layer (Houlsby 2019, Pfeiffer 2021). "parallel": h inside f is
the sub-layer's input, and the rest its output (He et al. 2022). "zhou": the released code of Zhou 2024 (facts, section
2), which adapts the output of the attention, the input of each layer that enters the MLP, and the MLP's output.
placement says which sub-layers: "attention", "mlp" or "both". Adapters are not linear, so they cannot be merged.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft import PeftConfig
from torch import Tensor, nn

from ..errors import PeftkitError, choose, require_count, require_positive, require_share
from ..models.regions import architecture
from .method import PLACEMENTS, Method, dimensions, require_fits
from .registration import register
from .tuner import SiteConfig, SiteLayer, SiteModel

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
STD = {"released": 0.02, "near-zero": 1e-3}  # of D and U: Zhou's released code; Houlsby
INITS = ("zero", *STD)
INSERTIONS = ("zhou", "after", "parallel")
PRESETS = {
    "zhou": {"placement": "mlp", "insertion": "zhou", "activation": "tanh", "scale": 1.0, "bias": False,
             "init": "zero"},
    "houlsby": {"placement": "both", "insertion": "after", "activation": "gelu", "scale": 1.0, "bias": True,
                "init": "near-zero"},
    "pfeiffer": {"placement": "mlp", "insertion": "after", "activation": "relu", "scale": 1.0, "bias": True,
                 "init": "near-zero"},
    "parallel": {"placement": "mlp", "insertion": "parallel", "activation": "relu", "scale": 4.0, "bias": True,
                 "init": "zero"},
}


@dataclass
class AdapterConfig(SiteConfig):
    """Configuration of bottleneck adapters as peft stores it.

    sites: "after" and "before" name linear layers whose output or input is adapted, "parallel" whole sub-layers. init:
    "zero" (U starts at zero: identity), "near-zero" (D and U of standard deviation 1e-3) or "released" (0.02).
    """

    TYPE: ClassVar[str] = "bottleneck"
    ROLES: ClassVar[tuple[str, ...]] = ("after", "before", "parallel")

    bottleneck: int = 16
    activation: str = "tanh"
    scale: float = 1.0
    dropout: float = 0.0
    bias_terms: bool = False
    init: str = "zero"

    def __post_init__(self):
        super().__post_init__()
        choose("activation", self.activation, ACTIVATIONS)
        choose("init", self.init, INITS)
        require_count(bottleneck=self.bottleneck)


class AdapterLayer(SiteLayer):
    """A module with adapters before it, after it or beside it, one an adapter name."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("scale", "function", "dropout")
    unmergeable = "a non-linearity stands between its two matrices"

    def update_layer(self, name: str, config: AdapterConfig) -> None:
        inner = next(module for module in self.base_layer.modules() if isinstance(module, nn.Linear))
        width = inner.out_features if self.role == "after" else inner.in_features
        down, up = (nn.Linear(*sides, bias=config.bias_terms)
                    for sides in ((width, config.bottleneck), (config.bottleneck, width)))
        nn.init.normal_(down.weight, std=STD.get(config.init, STD["released"]))
        nn.init.normal_(up.weight, std=STD.get(config.init, 0.0))
        for linear in (down, up) if config.bias_terms else ():
            nn.init.zeros_(linear.bias)
        self.bottleneck_down[name], self.bottleneck_up[name] = self.to_base(down), self.to_base(up)
        self.scale[name], self.function[name] = config.scale, ACTIVATIONS[config.activation]()
        self.dropout[name] = config.dropout

    def change(self, name: str, h: Tensor) -> Tensor:
        """s U f(D h); h: (..., width)."""
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        inner = self.function[name](down(h.to(down.weight.dtype)))  # (..., bottleneck)
        change = nn.functional.dropout(up(inner), self.dropout[name], self.training)
        return self.scale[name] * change.to(h.dtype)

    def adapt(self, h: Tensor) -> Tensor:
        """h + s U f(D h) for every active adapter in turn."""
        for name in self.active:
            h = h + self.change(name, h)
        return h

    def forward(self, *args, **kwargs):
        if self.role == "before":
            return self.base_layer(self.adapt(args[0]), *args[1:], **kwargs)
        output = self.base_layer(*args, **kwargs)
        if self.role == "after":
            return self.adapt(output)
        x = args[0] if args else kwargs["hidden_states"]
        h, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        h = h + sum(self.change(name, x) for name in self.active)
        return h if rest is None else (h, *rest)


class AdapterModel(SiteModel):
    """The tuner of bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = AdapterLayer


register(AdapterConfig, AdapterModel)


@dataclass(frozen=True)
class AdapterOptions:
    """bottleneck; preset: "zhou", "houlsby", "pfeiffer" or "parallel", which fills what is not given of placement
    ("attention", "mlp", "both"), insertion ("zhou", "after", "parallel"), activation ("tanh", "relu", "gelu", "silu"),
    scale (s), bias and init ("zero", "near-zero", "released"); dropout of the change."""

    bottleneck: int = 16
    preset: str = "zhou"
    placement: str | None = None
    insertion: str | None = None
    activation: str | None = None
    scale: float | None = None
    bias: bool | None = None
    init: str | None = None
    dropout: float = 0.0

    def __post_init__(self):
        for name, value in PRESETS[choose("preset", self.preset, PRESETS)].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        choose("placement", self.placement, PLACEMENTS)
        choose("insertion", self.insertion, INSERTIONS)
        choose("activation", self.activation, ACTIVATIONS)
        choose("init", self.init, INITS)
        require_count(bottleneck=self.bottleneck)
        require_positive(scale=self.scale)
        require_share(dropout=self.dropout)


def _config(model, options: AdapterOptions) -> PeftConfig:
    arch = architecture(model)
    require_fits(dimensions(model).width, bottleneck=options.bottleneck)
    if options.insertion == "parallel" and arch.mlp_module is None:
        raise PeftkitError(f"insertion='parallel' does not work on {model.config.model_type} models: no single module "
                           "holds a whole sub-layer; accepted: 'zhou', 'after'")
    attention, mlp = options.placement != "mlp", options.placement != "attention"
    if options.insertion == "parallel":
        modules = {"parallel": attention * (arch.attention_module,) + mlp * (arch.mlp_module,)}
    else:
        modules = {"after": attention * (arch.attention_out,) + mlp * (arch.mlp_out,),
                   "before": arch.mlp_in if mlp and options.insertion == "zhou" else ()}
    return AdapterConfig(
        sites={role: arch.targets(paths) for role, paths in modules.items() if paths}, bottleneck=options.bottleneck,
        activation=options.activation, scale=options.scale, dropout=options.dropout, bias_terms=options.bias,
        init=options.init)


def _draw(name, tensor, generator, options: AdapterOptions) -> None:
    if torch.count_nonzero(tensor):  # U and biases stay at zero where they start there
        tensor.normal_(0.0, STD.get(options.init, STD["released"]), generator=generator)


def _count(model, options: AdapterOptions) -> int:
    d = dimensions(model)
    in_mlp = d.mlp_in + 1 if options.insertion == "zhou" else 1
    sites = d.attentions * (options.placement != "mlp") + d.mlps * in_mlp * (options.placement != "attention")
    return sites * (2 * d.width * options.bottleneck + options.bias * (d.width + options.bottleneck))


METHOD = Method("adapter", AdapterOptions, _config, _count, draw=_draw, source="Houlsby et al. 2019; Zhou et al. 2024",
                formula="sites × 2 × width × bottleneck")
