"""After the last attention only positions that learn go on: the rest of the last block, the norm and the head skip
the others, whose outputs no loss reads. Loss and gradients are those of the whole pass."""
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

from ..models.regions import architecture
from .towers import unwrap

BLOCKS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2VLDecoderLayer, GemmaDecoderLayer)  # norm, attend, norm, MLP


@contextmanager
def learned_only(model: nn.Module, index: Tensor) -> Iterator[None]:
    """Inside, `model` returns logits (1, N, vocabulary) of N positions alone.

    index: (N,) positions in the flattened batch, row × length + column. Blocks that do more than their kind, because a
    method wraps them, run whole; the head then gets N positions.
    """
    base = unwrap(model)
    *_, block = plain_blocks(base) or [None]
    with ExitStack() as stack:
        if block is None:
            handle = base.get_output_embeddings().register_forward_pre_hook(
                lambda module, inputs: (select(inputs[0], index),))
            stack.callback(handle.remove)
        else:
            tail = partial(getattr(block, "compiled_tail", last_block), block, index)
            if block.training and block.gradient_checkpointing:  # the block's own would recompute it whole
                tail = partial(_recomputed, block._gradient_checkpointing_func, tail)
            stack.enter_context(patch.multiple(block, forward=tail, gradient_checkpointing=False))
        yield


def _recomputed(checkpoint: Callable, tail: Callable[..., Tensor], hidden: Tensor, **kwargs) -> Tensor:
    return checkpoint(partial(tail, **kwargs), hidden)


def last_block(block: nn.Module, index: Tensor, hidden: Tensor, **kwargs) -> Tensor:
    """The block on (B, L, width), but (1, N, width) from its MLP on."""
    attended, _ = block.self_attn(hidden_states=block.input_layernorm(hidden), **kwargs)
    hidden = select(hidden + attended, index)
    return hidden + block.mlp(block.post_attention_layernorm(hidden))


def select(hidden: Tensor, index: Tensor) -> Tensor:
    """(B, L, width) -> (1, N, width)."""
    return hidden.flatten(0, 1).index_select(0, index)[None]


def plain_blocks(base: nn.Module) -> list[nn.Module]:
    """The blocks of the language model, if all are of a kind that `last_block` writes out and no method wraps them."""
    language = base.get_submodule(architecture(base).language)
    blocks = list(language.layers) if isinstance(language, PreTrainedModel) else []  # else a method reads all states
    return blocks if all(type(block) in BLOCKS for block in blocks) else []
