"""Gated prefix: every attention also reads learned keys and values, through a gate that starts closed.

    out = W_o (attention(x) + tanh(g) * softmax(q P_k' / sqrt(d)) P_v),   q = W_q x,   g = 0 at start

P_k and P_v (tokens, heads, head width) are Li & Liang's prefix (2021); the softmax of their own and the gate g, one a
head, are Zhang et al.'s zero-initialized attention (LLaMA-Adapter, 2023). q carries no position. So a new prefix is an
exact no-op, needs no cache and no mask, and does not care about padding, about how positions are counted, or about
gradient checkpointing. reparametrization makes P_k and P_v the output of an MLP during training; what is saved is
always the plain prefix, so training that goes on from a saved adapter goes on without the MLP and with a new optimizer.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require_count
from ..models.regions import architecture
from .method import Method, attention_heads, dimensions
from .registration import register
from .tuner import SiteConfig, SiteLayer, SiteModel


@dataclass
class PrefixConfig(SiteConfig):
    """sites: "attention" names attention modules. tokens; heads and groups: attention heads, and those that keys and
    values have; query and out: the linear layers in the attention module, out None if the module ends before it;
    reparametrization: inner width of the MLP, or None."""

    TYPE: ClassVar[str] = "gated_prefix"
    ROLES: ClassVar[tuple[str, ...]] = ("attention",)

    tokens: int = 20
    heads: int = 1
    groups: int = 1
    query: str = "q_proj"
    out: str | None = "o_proj"
    reparametrization: int | None = None

    def to_dict(self) -> dict:
        return super().to_dict() | {"reparametrization": None}  # what is on disk is the plain prefix


class Prefix(nn.Module):
    """Keys and values (tokens, groups, head width) and a gate (heads,); with `inner`, an MLP makes keys and values."""

    def __init__(self, config: PrefixConfig, head_width: int):
        super().__init__()
        self.shape = config.tokens, 2, config.groups, head_width
        self.repeats = config.heads // config.groups
        self.gate = nn.Parameter(torch.zeros(config.heads))
        if config.reparametrization is None:
            self.tokens = nn.Parameter(torch.randn(self.shape))
        else:
            inner = config.reparametrization
            self.seed = nn.Parameter(torch.randn(config.tokens, inner))
            self.mlp = nn.Sequential(nn.Linear(inner, inner), nn.Tanh(),
                                     nn.Linear(inner, 2 * config.groups * head_width))

    def keys_and_values(self) -> Tensor:
        """(tokens, 2, groups, head width)"""
        return self.mlp(self.seed).view(self.shape) if hasattr(self, "mlp") else self.tokens

    def fold(self) -> None:
        """Replace the MLP, if there is one, by what it computes."""
        if hasattr(self, "mlp"):
            tokens = nn.Parameter(self.keys_and_values().detach(), requires_grad=self.seed.requires_grad)
            del self.seed, self.mlp
            self.tokens = tokens

    def forward(self, query: Tensor) -> Tensor:
        """The gated context (batch, length, heads * head width) that queries of the same shape find in the prefix."""
        batch, length, width = query.shape
        keys, values = self.keys_and_values().repeat_interleave(self.repeats, dim=2).unbind(1)  # (tokens, heads, d)
        q = query.to(keys.dtype).view(batch, length, keys.shape[1], keys.shape[2])
        weights = torch.einsum("blhd,thd->bhlt", q, keys * keys.shape[2] ** -0.5).softmax(-1)
        context = torch.einsum("bhlt,thd->blhd", weights, values) * self.gate.tanh()[:, None]
        return context.reshape(batch, length, width).to(query.dtype)


class PrefixLayer(SiteLayer):
    """An attention module that reads a prefix too."""

    adapter_layer_names = ("gated_prefix_of",)
    other_param_names = ("paths",)
    unmergeable = "it adds keys and values, which no weight of the attention holds"

    def update_layer(self, name: str, config: PrefixConfig) -> None:
        head_width = self.base_layer.get_submodule(config.query).out_features // config.heads
        self.gated_prefix_of[name] = self.to_base(Prefix(config, head_width))
        self.paths[name] = config.query, config.out

    def forward(self, *args, **kwargs):
        output, *rest = self.base_layer(*args, **kwargs)
        x = args[0] if args else kwargs["hidden_states"]  # (batch, length, width)
        for name in self.active:
            query, out = self.paths[name]
            context = self.gated_prefix_of[name](self.base_layer.get_submodule(query)(x))
            output = output + (F.linear(context, self.base_layer.get_submodule(out).weight) if out else context)
        return output, *rest


class PrefixModel(SiteModel):
    """The tuner of gated prefixes."""

    prefix = "gated_prefix_"
    tuner_layer_cls = PrefixLayer

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names) -> dict:
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        for path, prefix in _prefixes(model, adapter_name):
            for key in [key for key in found if key.startswith((f"{path}.seed", f"{path}.mlp."))]:
                del found[key]
                found[f"{path}.tokens"] = prefix.keys_and_values().detach()
        return found

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict) -> dict:
        for _, prefix in _prefixes(model, adapter_name):
            prefix.fold()
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _prefixes(model: nn.Module, adapter_name: str):
    return [(name, module) for name, module in model.named_modules()
            if isinstance(module, Prefix) and name.endswith(f".{adapter_name}")]


register(PrefixConfig, PrefixModel)


@dataclass(frozen=True)
class PrefixOptions:
    """tokens: number of virtual tokens; reparametrization: inner width of the MLP that makes them, or None."""

    tokens: int = 20
    reparametrization: int | None = None

    def __post_init__(self):
        require_count(tokens=self.tokens)
        if self.reparametrization is not None:
            require_count(reparametrization=self.reparametrization)


def _config(model, options: PrefixOptions) -> PrefixConfig:
    arch, d, heads = architecture(model), dimensions(model), attention_heads(model)
    query, out = (path.removeprefix(f"{arch.attention_module}.") for path in (arch.query, arch.attention_out))
    inside = arch.attention_out.startswith(f"{arch.attention_module}.")
    return PrefixConfig(sites={"attention": arch.targets((arch.attention_module,))}, tokens=options.tokens, heads=heads,
                        groups=heads * d.key_value // d.query, query=query, out=out if inside else None,
                        reparametrization=options.reparametrization)


def _draw(name, tensor, generator, options) -> None:
    if name.endswith((".tokens", ".seed")):
        tensor.normal_(0.0, 1.0, generator=generator)
    elif ".mlp." in name:  # nn.Linear's own distribution; in and inner width are the same
        bound = options.reparametrization ** -0.5
        tensor.uniform_(-bound, bound, generator=generator)


def _count(model, options: PrefixOptions) -> int:
    d = dimensions(model)
    heads = _config(model, options).heads
    inner = options.reparametrization
    made = 2 * d.key_value
    each = options.tokens * made if inner is None else options.tokens * inner + (inner + 1) * (inner + made)
    return d.attentions * (each + heads)


METHOD = Method("prefix", PrefixOptions, _config, _count, draw=_draw,
                source="Li & Liang 2021; Zhang et al. 2023", formula="layers × (tokens × 2 × key-value width + heads)")
