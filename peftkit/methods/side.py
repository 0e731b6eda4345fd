"""Side tuning: a small ladder network beside a frozen base, which gradients never enter (LST, Sung et al. 2022).

    s_0 = D_0 h_0      m_l = sigmoid(g_l) s_{l-1} + (1 - sigmoid(g_l)) D_l h_l      s_l = m_l + W_l relu(V_l m_l)
    out = h + U s_L,   U zero at start

h_0 ... h_L are the hidden states that enter and leave the base's blocks, normalized over their width; the side network
is `bottleneck` wide. Its blocks are MLPs, not pruned transformer blocks: the hidden states have been mixed over tokens
already, and so the ladder needs no cache. The base runs without a graph, which is what saves memory, and why a
connector in front of it cannot be trained along.
"""
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require_count
from ..models.regions import architecture
from .method import Method, dimensions, last_layers, require_fits
from .registration import register
from .tuner import SiteConfig, SiteLayer, SiteModel


@dataclass
class SideConfig(SiteConfig):
    """sites: "model" names the module whose hidden states end in the head. width and layers of it; bottleneck: width
    of the side network."""

    TYPE: ClassVar[str] = "ladder"
    ROLES: ClassVar[tuple[str, ...]] = ("model",)

    width: int = 0
    layers: int = 0
    bottleneck: int = 16


class Ladder(nn.Module):
    """The side network: layers + 1 rungs."""

    def __init__(self, width: int, layers: int, bottleneck: int):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, bottleneck, bias=False) for _ in range(layers + 1))
        self.inner = nn.ModuleList(nn.Linear(bottleneck, bottleneck, bias=False) for _ in range(layers))
        self.outer = nn.ModuleList(nn.Linear(bottleneck, bottleneck, bias=False) for _ in range(layers))
        self.gate = nn.Parameter(torch.zeros(layers))
        self.up = nn.Linear(bottleneck, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: tuple[Tensor, ...]) -> Tensor:
        """hidden: layers + 1 tensors (batch, length, width). Returns U s_L of that shape."""
        rungs = [down(F.layer_norm(h.to(down.weight.dtype), h.shape[-1:])) for down, h in zip(self.down, hidden)]
        side, *rungs = rungs  # (batch, length, bottleneck) each
        for gate, rung, inner, outer in zip(self.gate.sigmoid(), rungs, self.inner, self.outer):
            side = gate * side + (1 - gate) * rung
            side = side + outer(inner(side).relu())
        return self.up(side)


class SideLayer(SiteLayer):
    """A language model with a ladder beside it."""

    adapter_layer_names = ("ladder_side",)
    unmergeable = "it is a network beside the base"

    def update_layer(self, name: str, config: SideConfig) -> None:
        self.ladder_side[name] = self.to_base(Ladder(config.width, config.layers, config.bottleneck))

    def forward(self, *args, **kwargs):
        if not self.active:
            return self.base_layer(*args, **kwargs)
        asked = kwargs.get("output_hidden_states")
        with torch.no_grad():
            output = self.base_layer(*args, **kwargs | {"output_hidden_states": True, "return_dict": True})
        h, hidden = output.last_hidden_state, output.hidden_states
        h = h + sum(self.ladder_side[name](hidden) for name in self.active).to(h.dtype)
        shown = self.base_layer.config.output_hidden_states if asked is None else asked
        return replace(output, last_hidden_state=h, hidden_states=(*hidden[:-1], h) if shown else None)


class SideModel(SiteModel):
    """The tuner of ladder side networks."""

    prefix = "ladder_"
    tuner_layer_cls = SideLayer


register(SideConfig, SideModel)


@dataclass(frozen=True)
class SideOptions:
    """bottleneck: width of the side network."""

    bottleneck: int = 16

    def __post_init__(self):
        require_count(bottleneck=self.bottleneck)


def _config(model, options: SideOptions) -> SideConfig:
    width = dimensions(model).width
    require_fits(width, bottleneck=options.bottleneck)
    return SideConfig(sites={"model": architecture(model).context.replace(".", r"\.")}, width=width,
                      layers=last_layers(model), bottleneck=options.bottleneck)


def _draw(name, tensor, generator, options) -> None:
    if torch.count_nonzero(tensor):  # nn.Linear's own distribution; U and the gates stay at zero
        bound = tensor.shape[1] ** -0.5
        tensor.uniform_(-bound, bound, generator=generator)


def _count(model, options: SideOptions) -> int:
    width, layers, m = dimensions(model).width, last_layers(model), options.bottleneck
    return (layers + 2) * width * m + layers * (2 * m * m + 1)


METHOD = Method("side", SideOptions, _config, _count, draw=_draw, intrusive=False, source="Sung et al. 2022",
                refuses_connector="gradients never enter its base, and the connector's would have to pass through it",
                formula="(layers + 2) × width × bottleneck + layers × (2 × bottleneck² + 1)")
