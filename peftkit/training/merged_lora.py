"""LoRA in one matrix product: y = x (W + s B A)^T, the same function as peft's x W^T + s (x A^T) B^T.

With few weights and many tokens, adding s B A to W costs less than carrying two products of output size. The backward
pass writes the gradients of A and B without that of W:

    dx = g (W + s B A)      dA = s (g B)^T x      dB = s g^T (x A^T)

Sums are made in another order than in peft: outputs agree to rounding (1e-6 relative in float32).
"""
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Inside, plain float32 LoRA layers of `model` run as one product; all others, and peft's own switches, as ever."""
    layers = [module for module in model.modules() if isinstance(module, Linear) and _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: Linear) -> bool:
    """One active LoRA of the textbook kind on a frozen float32 nn.Linear."""
    base = layer.get_base_layer()
    if len(layer.active_adapters) != 1 or (name := layer.active_adapters[0]) not in layer.lora_A:
        return False
    float32 = {base.weight.dtype, layer.lora_A[name].weight.dtype} == {torch.float32}
    return (type(base) is nn.Linear and type(layer) is Linear and float32 and not layer.disable_adapters
            and not layer.merged and not layer.lora_variant and not layer.lora_bias[name]
            and not base.weight.requires_grad and isinstance(layer.lora_dropout[name], nn.Identity))


def _forward(layer: Linear, x: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        return Linear.forward(layer, x)
    name, base = layer.active_adapters[0], layer.get_base_layer()
    y = _Product.apply(x, base.weight, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
    return y if base.bias is None else y + base.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return x @ torch.addmm(weight, b, a, alpha=scale).t()  # (..., in) -> (..., out)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        x, g = x.flatten(0, -2), gradient.flatten(0, -2)  # (n, in), (n, out)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (g @ torch.addmm(weight, b, a, alpha=ctx.scale)).view(*gradient.shape[:-1], -1)
        return dx, None, (g @ b).t() @ x * ctx.scale, g.t() @ (x @ a.t()) * ctx.scale, None
