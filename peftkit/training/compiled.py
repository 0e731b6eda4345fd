"""Compiled steps: the blocks of the language model as generated code, one compilation for batches of every shape.

It pays in long runs only: see `peftkit bench compile` for the seconds that it takes and the steps that earn them back.
"""
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import PeftkitError
from .last_block import last_block, plain_blocks
from .towers import unwrap

RECOMPILE_LIMIT = 64  # kinds of blocks in one process: a few a method, and a study has many methods


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Inside, plain blocks of `model` are compiled; those that a method wraps run as ever.

    Raises PeftkitError on a CPU without a C++ compiler.
    """
    if next(model.parameters()).device.type == "cpu" and not shutil.which("g++") and not shutil.which("clang++"):
        raise PeftkitError("compile is True and there is no C++ compiler; accepted: False, or a g++ on the PATH")
    *blocks, last = plain_blocks(unwrap(model)) or [None]
    for block in blocks:
        block.compile(dynamic=True)
    if last is not None:
        last.compiled_tail = torch.compile(last_block, dynamic=True)
    try:
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        if last is not None:
            del last.compiled_tail
