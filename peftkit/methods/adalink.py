"""AdaLink: a residual low-rank map on the tokens that enter the language model, one a modality (Wang 2023, section 3).

    E + f(E D + b_D) U + b_U        E (tokens, width), D (width, rank), U (rank, width), U = 0 at start

No block is touched. Without a non-linearity f, the text map folds into a copy of the embedding table, E (I + D U), and
the image map into the connector's last linear layer; a head tied to the table keeps the old one. A tuned connector
contains the image map and takes its place. In a decoder-only model the generated tokens are embedded too, so they pass
the text map in training and in generation. The rows of a batch may belong to several tasks, each with maps of its own.
"""
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PeftkitError, choose, require_count
from ..models.regions import architecture
from .adapter import ACTIVATIONS
from .method import Method, dimensions, require_fits
from .registration import register
from .tuner import SiteConfig, SiteLayer, SiteModel

MODALITIES = ("text", "image", "both")
INITS = ("zero", "random")
BASE = "__base__"  # peft's name for a row without an adapter


@dataclass
class AdaLinkConfig(SiteConfig):
    """sites: "text" names the embedding, "image" the module whose output are the image tokens. rank; activation: None
    or the name of f; bias_terms: with b_D and b_U; init: "zero" (identity) or "random" (D and U)."""

    TYPE: ClassVar[str] = "adalink"
    ROLES: ClassVar[tuple[str, ...]] = ("text", "image")

    rank: int = 16
    activation: str | None = None
    bias_terms: bool = False
    init: str = "zero"

    def __post_init__(self):
        super().__post_init__()
        require_count(rank=self.rank)
        if self.activation is not None:
            choose("activation", self.activation, ACTIVATIONS)
        choose("init", self.init, INITS)


@dataclass(frozen=True)
class Mixture:
    """A batch whose rows belong to several tasks. tasks: an adapter name a row, BASE for none; images: how many image
    tokens each row has, None where that is unknown."""

    tasks: list[str]
    images: Tensor | None

    def row_of(self, tokens: Tensor, role: str) -> Tensor:
        """(...) for tokens (..., width): the row that each token belongs to.

        They come row by row: of text equally many a row, of pictures as many as `images` says; beams repeat all rows.
        """
        share = self.images if role == "image" else torch.ones(len(self.tasks), dtype=torch.long)
        if share is None:
            raise PeftkitError("a mixed batch with pictures needs input_ids to tell whose picture is whose")
        count, total = tokens.shape[:-1].numel(), int(share.sum())
        if not total or count % total:
            raise PeftkitError(f"{count} {role} tokens cannot belong to {len(self.tasks)} rows that ask for {total}")
        rows = torch.arange(len(self.tasks)).repeat_interleave(share.cpu() * (count // total))
        return rows.view(tokens.shape[:-1]).to(tokens.device)


class AdaLinkLayer(SiteLayer):
    """An embedding, or the last module of a connector, with maps on its output."""

    adapter_layer_names = ("adalink_down", "adalink_up")
    other_param_names = ("function",)
    mixture: Mixture | None = None  # of the forward pass that is going on

    def update_layer(self, name: str, config: AdaLinkConfig) -> None:
        width = self._width()
        down, up = (nn.Linear(*sides, bias=config.bias_terms)
                    for sides in ((width, config.rank), (config.rank, width)))
        nn.init.normal_(down.weight, std=width ** -0.5)
        nn.init.zeros_(up.weight) if config.init == "zero" else nn.init.normal_(up.weight, std=config.rank ** -0.5)
        for linear in (down, up) if config.bias_terms else ():
            nn.init.zeros_(linear.bias)
        self.adalink_down[name], self.adalink_up[name] = self.to_base(down), self.to_base(up)
        self.function[name] = ACTIVATIONS[config.activation]() if config.activation else nn.Identity()

    def change(self, name: str, tokens: Tensor) -> Tensor:
        """f(E D + b_D) U + b_U; tokens: (..., width)."""
        down, up = self.adalink_down[name], self.adalink_up[name]
        return up(self.function[name](down(tokens.to(down.weight.dtype)))).to(tokens.dtype)

    def forward(self, *args, **kwargs) -> Tensor:
        tokens = self.base_layer(*args, **kwargs)
        if self.mixture is not None:
            return tokens + self._mixed(tokens)
        for name in self.active:
            tokens = tokens + self.change(name, tokens)
        return tokens

    def _mixed(self, tokens: Tensor) -> Tensor:
        """The change of a mixed batch: all tasks' maps stacked into one, each token keeps the part of its own task."""
        names = sorted(set(self.mixture.tasks) & set(self.adalink_down))
        if not names:
            return torch.zeros_like(tokens)
        downs, ups = ([part[name] for name in names] for part in (self.adalink_down, self.adalink_up))
        functions = {str(self.function[name]): self.function[name] for name in names}
        if len(functions) > 1:
            raise PeftkitError(f"a mixed batch needs maps of one activation; got {', '.join(functions)}")
        inner = F.linear(tokens.to(downs[0].weight.dtype), torch.cat([down.weight for down in downs]),
                         torch.cat([_bias(down) for down in downs]))  # (..., sum of ranks)
        task = torch.tensor([names.index(name) if name in names else len(names) for name in self.mixture.tasks])
        own = torch.eye(len(names) + 1, len(names))[task].to(inner)  # (rows, tasks), zeros for the base
        own = own[self.mixture.row_of(tokens, self.role)]  # (..., tasks)
        ranks = torch.tensor([down.out_features for down in downs], device=own.device)
        inner = self.function[names[0]](inner) * own.repeat_interleave(ranks, dim=-1)
        change = F.linear(inner, torch.cat([up.weight for up in ups], dim=1)) + own @ torch.stack(list(map(_bias, ups)))
        return change.to(tokens.dtype)

    def merged_weights(self, name: str) -> dict[str, Tensor]:
        down, up, base = self.adalink_down[name], self.adalink_up[name], self.base_layer
        if not isinstance(self.function[name], nn.Identity):
            raise ValueError("AdaLink with a non-linearity cannot be merged")
        if not isinstance(base, (nn.Embedding, nn.Linear)):
            raise ValueError(f"AdaLink on a {type(base).__name__} cannot be merged: no linear layer ends there")
        weight = base.weight.to(down.weight.dtype)
        if isinstance(base, nn.Embedding):  # its rows are tokens, up to the factor of some models
            factor = getattr(base, "embed_scale", 1.0)
            return {"weight": weight + self.change(name, weight * factor) / factor}
        merged = {"weight": weight + up.weight @ down.weight @ weight}
        if base.bias is not None:
            bias = base.bias.to(weight.dtype)
            merged["bias"] = bias + self.change(name, bias)
        elif down.bias is not None:
            raise ValueError("AdaLink with biases cannot be merged into a linear layer without one")
        return merged

    def _width(self) -> int:
        if isinstance(self.base_layer, nn.Embedding):
            return self.base_layer.embedding_dim
        return self.base_layer.out_features if isinstance(self.base_layer, nn.Linear) else len(self.base_layer.weight)


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


class AdaLinkModel(SiteModel):
    """The tuner of AdaLink. `model(..., adapter_names=[...])` takes an adapter name a row, and so does `generate`: a
    batch of several tasks, "__base__" for none."""

    prefix = "adalink_"
    tuner_layer_cls = AdaLinkLayer

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        layers = [module for module in self.model.modules() if isinstance(module, AdaLinkLayer)]
        if adapter_names is not None:
            ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
            mixture = self._mixture(layers, adapter_names, ids)
            for layer in layers:
                layer.mixture = mixture
        try:
            yield
        finally:
            for layer in layers:
                layer.mixture = None

    def _mixture(self, layers: list[AdaLinkLayer], tasks: list[str], ids: Tensor | None) -> Mixture:
        for name in tasks:
            choose("adapter name", name, [*self.peft_config, BASE])
        if any(layer.merged for layer in layers):
            raise PeftkitError("a mixed batch needs every task's map apart; accepted: a model without merged adapters")
        if any(self.peft_config[name].modules_to_save for name in set(tasks) - {BASE}):
            raise PeftkitError("a mixed batch needs one connector for all tasks; accepted: adapters made with "
                               "connector='frozen'")
        if ids is not None and len(ids) != len(tasks):
            raise PeftkitError(f"a mixed batch needs an adapter name a row; got {len(tasks)} for {len(ids)} rows")
        image = getattr(self.model.config, "image_token_id", None)
        return Mixture(tasks, None if ids is None or image is None else (ids == image).sum(1))


register(AdaLinkConfig, AdaLinkModel)


@dataclass(frozen=True)
class AdaLinkOptions:
    """rank; modality: "text", "image" or "both" (one map where there is no image token); activation: None, "tanh",
    "relu", "gelu" or "silu"; bias: with biases; init: "zero" or "random"."""

    rank: int = 16
    modality: str = "both"
    activation: str | None = None
    bias: bool = False
    init: str = "zero"

    def __post_init__(self):
        require_count(rank=self.rank)
        choose("modality", self.modality, MODALITIES)
        if self.activation is not None:
            choose("activation", self.activation, ACTIVATIONS)
        choose("init", self.init, INITS)


def _config(model, options: AdaLinkOptions) -> AdaLinkConfig:
    arch = architecture(model)
    require_fits(dimensions(model).width, rank=options.rank)
    paths = {"text": arch.text, "image": arch.image}
    chosen = {role: path for role, path in paths.items() if path and options.modality in (role, "both")}
    if not chosen:
        raise PeftkitError(f"modality='image' does not work on {model.config.model_type} models: no image token enters "
                           "their language model; accepted: 'text', 'both'")
    return AdaLinkConfig(sites={role: path.replace(".", r"\.") for role, path in chosen.items()}, rank=options.rank,
                         activation=options.activation, bias_terms=options.bias, init=options.init)


def _draw(name, tensor, generator, options: AdaLinkOptions) -> None:
    if torch.count_nonzero(tensor):
        tensor.normal_(0.0, tensor.shape[1] ** -0.5, generator=generator)


def _count(model, options: AdaLinkOptions) -> int:
    width = dimensions(model).width
    return len(_config(model, options).sites) * (2 * width * options.rank + options.bias * (width + options.rank))


METHOD = Method("adalink", AdaLinkOptions, _config, _count, draw=_draw, regions=("language", "connector"),
                intrusive=False, merges=True, source="Wang et al. 2023", formula="modalities × 2 × width × rank")
