"""AdaLink: a residual low-rank map on the tokens that enter the language model, one a modality (Wang 2023, section 3).

    E + f(E D + b_D) U + b_U        E (tokens, width), D (width, rank), U (rank, width), U = 0 at start

No block is touched. Without a non-linearity f, the text map folds into a copy of the embedding table, E (I + D U), and
the image map into the connector's last linear layer. A tuned connector contains the image map and takes its place. In a
decoder-only model the generated tokens are embedded too, so they pass the text map in training and in generation.
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
        choose("activation", self.activation, (None, *ACTIVATIONS))
        choose("init", self.init, INITS)


class AdaLinkLayer(SiteLayer):
    """An embedding, or the last module of a connector, with maps on its output."""

    adapter_layer_names = ("adalink_down", "adalink_up")
    other_param_names = ("function",)
    task_of_row: list[str] | None = None  # adapter names, one a row of the batch

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
        if self.task_of_row is not None and not self._disable_adapters:
            return tokens + self._mixed(tokens)
        return tokens + sum(self.change(name, tokens) for name in self.active)

    def _mixed(self, tokens: Tensor) -> Tensor:
        """The change of a batch whose rows belong to several tasks: the tasks' maps are stacked, each row picks its own.

        tokens: (batch, length, width). Rows of "__base__" stay as they are.
        """
        if len(tokens) != len(self.task_of_row):
            raise PeftkitError(f"a mixed batch needs one picture a row: {len(self.task_of_row)} adapter names for "
                               f"{len(tokens)} rows of {tuple(tokens.shape)}")
        names = [name for name in dict.fromkeys(self.task_of_row) if name in self.adalink_down]
        maps = {name: k for k, name in enumerate(names)}
        row = torch.tensor([maps.get(name, len(names)) for name in self.task_of_row], device=tokens.device)
        ranks = [self.adalink_down[name].out_features for name in names]
        if len(set(ranks)) > 1 or any(not isinstance(self.function[name], nn.Identity) for name in names):
            raise PeftkitError("a mixed batch needs maps of one rank without a non-linearity; got ranks "
                               + ", ".join(map(str, ranks)))
        down, up = (torch.stack([part[name].weight for name in names] + [torch.zeros_like(part[names[0]].weight)])
                    for part in (self.adalink_down, self.adalink_up))  # (tasks + 1, rank, width), (.., width, rank)
        inner = torch.einsum("blw,brw->blr", tokens.to(down.dtype), down[row])
        change = torch.einsum("blr,bwr->blw", inner, up[row])
        return change.to(tokens.dtype)

    def merged_weights(self, name: str) -> dict[str, Tensor]:
        if not isinstance(self.function[name], nn.Identity):
            raise ValueError("AdaLink with a non-linearity cannot be merged")
        if not isinstance(self.base_layer, (nn.Embedding, nn.Linear)):
            raise ValueError(f"AdaLink on a {type(self.base_layer).__name__} cannot be merged: no linear layer ends there")
        down, up = self.adalink_down[name], self.adalink_up[name]
        weight = self.base_layer.weight.to(down.weight.dtype)
        if isinstance(self.base_layer, nn.Embedding):  # rows are tokens: E + E D U
            if down.bias is not None:
                return {"weight": weight + up(down(weight))}
            return {"weight": weight + F.linear(F.linear(weight, down.weight), up.weight)}
        change = up.weight @ down.weight  # (width, width)
        merged = {"weight": weight + change @ weight}
        if self.base_layer.bias is not None:
            bias = self.base_layer.bias.to(weight.dtype)
            merged["bias"] = bias + up(down(bias)) if down.bias is not None else bias + change @ bias
        elif down.bias is not None:
            raise ValueError("AdaLink with biases cannot be merged into a linear layer without one")
        return merged

    def _width(self) -> int:
        if isinstance(self.base_layer, nn.Embedding):
            return self.base_layer.embedding_dim
        return self.base_layer.out_features if isinstance(self.base_layer, nn.Linear) else len(self.base_layer.weight)


class AdaLinkModel(SiteModel):
    """The tuner of AdaLink. `model(..., adapter_names=[...])` takes one adapter name a row: a mixed-task batch."""

    prefix = "adalink_"
    tuner_layer_cls = AdaLinkLayer

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        layers = [module for module in self.model.modules() if isinstance(module, AdaLinkLayer)]
        for layer in layers:
            layer.task_of_row = kwargs.get("adapter_names")
        try:
            yield
        finally:
            for layer in layers:
                layer.task_of_row = None


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
        choose("activation", self.activation, (None, *ACTIVATIONS))
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
