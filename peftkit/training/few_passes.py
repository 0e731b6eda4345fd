"""Rotary positions and RMS norms in fewer passes over memory, which is what they cost on a CPU.

    rotary, on the halves of a head:  y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin   (Su et al. 2021)
    norm:  y = x r w,  r = 1 / sqrt(mean(x^2) + eps)                                (Zhang & Sennrich 2019)

transformers writes both as chains of small operations, each of which autograd undoes by one or two more. Here each is
one node of the graph; the backward pass of a rotation is the rotation by the opposite angle.
"""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2_vl import modeling_qwen2_vl

ROTARY = (modeling_llama, modeling_mistral)  # modules whose attention turns queries and keys as above
PLAIN_ROTARY = modeling_llama.apply_rotary_pos_emb
NORMS = (modeling_llama.LlamaRMSNorm, modeling_mistral.MistralRMSNorm, modeling_qwen2_vl.Qwen2VLRMSNorm)


@contextmanager
def few_passes(model: nn.Module) -> Iterator[None]:
    """Inside, frozen norms of `model`, and rotations in Llama and Mistral models, run as one node each.

    In float32 alone: in bfloat16 another order of operations would round otherwise.
    """
    norms = [module for module in model.modules() if type(module) in NORMS]
    with ExitStack() as stack:
        for module in ROTARY:
            stack.enter_context(patch.object(module, "apply_rotary_pos_emb", rotate))
        for norm in norms:
            stack.enter_context(patch.object(norm, "forward", MethodType(_normalize, norm)))
        yield


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """q, k: (B, heads, L, head); cos, sin: (B, L, head), both halves of a head alike."""
    if {q.dtype, cos.dtype} != {torch.float32}:
        return PLAIN_ROTARY(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)


def _normalize(norm: nn.Module, x: Tensor) -> Tensor:
    if {x.dtype, norm.weight.dtype} != {torch.float32} or norm.weight.requires_grad:
        return type(norm).forward(norm, x)
    return _Norm.apply(x, norm.weight, norm.variance_epsilon)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        r = (squares / x.shape[-1] + epsilon).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        g = gradient * weight
        along = torch.linalg.vecdot(g, x).unsqueeze(-1) * r ** 3 / -x.shape[-1]  # (..., 1)
        return g.mul_(r).addcmul_(x, along), None, None
