"""MultiWay-Adapter: a New Knowledge Extractor a modality and an Alignment Enhancer for both (Long 2023, facts 1.2).

    y = h + MLP(norm(h)) + s A_m(h)      A_m(h) = U relu(D h + b) + c, one for image tokens, one for text tokens
    z = y + AE(y)                        AE: a bottleneck like A, or the released code's W_2 norm(gelu(W_1 y + b)) + c

h is the residual stream between attention and MLP. The paper wraps BEiT-3's blocks, where each token belongs to one
modality; here the blocks are those of the language model, and the image tokens in input_ids say which is which, so
prepared embeddings alone are refused. U and W_2 start at zero, so nothing changes at first; init="released" starts a
full AE as the released code does.
"""
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PeftkitError, choose, require_count, require_positive, require_share
from ..models.regions import architecture
from .method import Method, dimensions, require_fits
from .registration import register
from .tuner import SiteConfig, SiteLayer, SiteModel

ENHANCERS = ("bottleneck", "ffn", "none")
INITS = ("zero", "released")
EXPANSION, STD = 4, 0.02  # of the released AE: inner width over width, and its normal distribution cut at one sigma

REFUSES = {
    "t5": "it has one modality, and the method is about two",
    "blip": "its blocks normalize after adding the MLP's output, so nothing can be added beside the MLP",
}


@dataclass
class MultiwayConfig(SiteConfig):
    """sites: "block" names transformer blocks. norm: the module in a block that reads h; width of the model;
    bottleneck; enhancer; init; scale (s); dropout of A; image_token: the id that stands for pictures in input_ids."""

    TYPE: ClassVar[str] = "multiway"
    ROLES: ClassVar[tuple[str, ...]] = ("block",)

    norm: str = "post_attention_layernorm"
    width: int = 0
    bottleneck: int = 64
    enhancer: str = "bottleneck"
    init: str = "zero"
    scale: float = 1.0
    dropout: float = 0.1
    image_token: int = -1


class Bottleneck(nn.Module):
    """s (U dropout(relu(D x + b)) + c), U zero at start."""

    def __init__(self, width: int, inner: int, scale: float = 1.0, dropout: float = 0.0):
        super().__init__()
        self.down, self.up, self.scale, self.dropout = nn.Linear(width, inner), nn.Linear(inner, width), scale, dropout
        for start_at_zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start_at_zero)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.dropout(self.down(x.to(self.down.weight.dtype)).relu(), self.dropout, self.training)
        return (self.scale * self.up(inner)).to(x.dtype)


class FeedForward(nn.Module):
    """W_2 norm(gelu(W_1 x + b)) + c, four times as wide inside."""

    def __init__(self, width: int, init: str):
        super().__init__()
        inner = EXPANSION * width
        self.fc1, self.norm, self.fc2 = nn.Linear(width, inner), nn.LayerNorm(inner), nn.Linear(inner, width)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=STD, a=-STD, b=STD)
            nn.init.zeros_(linear.bias)
        if init == "zero":
            nn.init.zeros_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))))).to(x.dtype)


class MultiwayLayer(SiteLayer):
    """A block with both modules."""

    adapter_layer_names = ("multiway_image", "multiway_text", "multiway_align")
    other_param_names = ("norm", "image_token")
    unmergeable = "its modules are not linear"
    ids: Tensor | None = None  # (batch, length): input_ids of the forward pass that is going on

    def update_layer(self, name: str, config: MultiwayConfig) -> None:
        self.norm[name], self.image_token[name] = config.norm, config.image_token
        for extractor in (self.multiway_image, self.multiway_text):
            extractor[name] = self.to_base(Bottleneck(config.width, config.bottleneck, config.scale, config.dropout))
        if config.enhancer == "bottleneck":
            self.multiway_align[name] = self.to_base(Bottleneck(config.width, config.bottleneck))
        elif config.enhancer == "ffn":
            self.multiway_align[name] = self.to_base(FeedForward(config.width, config.init))

    def forward(self, *args, **kwargs) -> Tensor:
        if not self.active:
            return self.base_layer(*args, **kwargs)
        if self.ids is None:
            raise PeftkitError("multiway needs input_ids to tell image tokens from text; got prepared embeddings alone")
        run = partial(self._run, self.ids, **kwargs)
        if self.training and self.base_layer.gradient_checkpointing:  # the block's own would hide how h was made
            return self.base_layer._gradient_checkpointing_func(run, *args)
        return run(*args)

    def _run(self, ids: Tensor, *args, **kwargs) -> Tensor:
        """z of the block; ids: (batch, length)."""
        h, y = self._watched(*args, **kwargs)
        for name in self.active:
            images = (ids == self.image_token[name])[..., None]  # (batch, length, 1)
            y = y + torch.where(images, self.multiway_image[name](h), self.multiway_text[name](h))
            if name in self.multiway_align:
                y = y + self.multiway_align[name](y)
        return y

    def _watched(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """h, as the block's second norm gets it, and what the block returns; both (batch, length, width)."""
        seen, block = [], self.base_layer
        norm = block.get_submodule(self.norm[self.active[0]])
        watching = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        checkpointing, block.gradient_checkpointing = block.gradient_checkpointing, False
        try:
            y = block(*args, **kwargs)
        finally:
            watching.remove()
            block.gradient_checkpointing = checkpointing
        return seen[0], y


def _route(model: nn.Module, args: tuple, kwargs: dict) -> None:
    """Before a forward pass, give every layer its ids (a module hook, so that a copy of the model routes to itself)."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    for layer in model.modules():
        if isinstance(layer, MultiwayLayer):
            layer.ids = ids


class MultiwayModel(SiteModel):
    """The tuner of MultiWay-Adapter."""

    prefix = "multiway_"
    tuner_layer_cls = MultiwayLayer

    def _post_injection_hook(self, model, config, adapter_name) -> None:
        if _route not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(_route, with_kwargs=True)

    def unload(self) -> nn.Module:
        base = super().unload()
        for key, hook in list(base._forward_pre_hooks.items()):
            if hook is _route:
                del base._forward_pre_hooks[key], base._forward_pre_hooks_with_kwargs[key]
        return base


register(MultiwayConfig, MultiwayModel)


@dataclass(frozen=True)
class MultiwayOptions:
    """bottleneck; enhancer: "bottleneck", "ffn" (the released code's, ten times as large) or "none"; init: "zero" or,
    for "ffn", "released"; scale of the extractors; dropout in them (0.1 in the released code)."""

    bottleneck: int = 16
    enhancer: str = "bottleneck"
    init: str = "zero"
    scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self):
        require_count(bottleneck=self.bottleneck)
        choose("enhancer", self.enhancer, ENHANCERS)
        choose("init", self.init, INITS if self.enhancer == "ffn" else ("zero",))
        require_positive(scale=self.scale)
        require_share(dropout=self.dropout)


def _config(model, options: MultiwayOptions) -> MultiwayConfig:
    arch, width = architecture(model), dimensions(model).width
    require_fits(width, bottleneck=options.bottleneck)
    return MultiwayConfig(
        sites={"block": arch.every_block}, norm=arch.mlp_norm, width=width, bottleneck=options.bottleneck,
        enhancer=options.enhancer, init=options.init, scale=options.scale, dropout=options.dropout,
        image_token=model.config.image_token_id)


def _draw(name, tensor, generator, options: MultiwayOptions) -> None:
    if name.endswith("down.weight"):
        bound = tensor.shape[1] ** -0.5  # Kaiming uniform with a = sqrt(5)
        tensor.uniform_(-bound, bound, generator=generator)
    elif name.endswith(("fc1.weight", "fc2.weight")) and torch.count_nonzero(tensor):
        nn.init.trunc_normal_(tensor, std=STD, a=-STD, b=STD, generator=generator)


def _count(model, options: MultiwayOptions) -> int:
    d = dimensions(model)
    bottleneck = 2 * d.width * options.bottleneck + options.bottleneck + d.width
    enhancer = {"none": 0, "bottleneck": bottleneck, "ffn": 8 * d.width ** 2 + 13 * d.width}[options.enhancer]
    return d.mlps * (2 * bottleneck + enhancer)


METHOD = Method("multiway", MultiwayOptions, _config, _count, draw=_draw, refuses=REFUSES, source="Long et al. 2023",
                formula="layers × 3 × (2 × width × bottleneck + bottleneck + width)")
