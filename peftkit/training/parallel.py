"""One run on the processes that `accelerate launch` starts: each computes its part of every batch, all take one step.

Under DDP every process trains the model it was given. Under FSDP (version 2) the processes share out a copy of it, and
the given models get the trained values back. A process alone takes the same path.
"""
import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from ..data import Encoded
from ..errors import PeftkitError
from ..methods.selective.tuner import SelectiveConfig
from .forward import answer_loss
from .towers import unwrap

UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class AnswerLoss(nn.Module):
    """`answer_loss` as a forward pass: all of it, connector and virtual tokens included, is inside what is wrapped."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        present = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(present.intersection(unwrap(model)._no_split_modules or ()))  # FSDP's units

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return answer_loss(self.model, batch)


@dataclass(frozen=True)
class Part:
    """A process's part of a batch. batch: its tensors; tokens: answer tokens in it; all_tokens, all_rows: of the whole
    batch."""

    batch: dict[str, Tensor]
    tokens: int
    all_tokens: int
    all_rows: int


class Parts:
    """The collate function of a process: a batch's rows -> its part, from neighbors; sizes differ by one at most."""

    def __init__(self, encoded: Encoded, tensors: Callable[[list[int]], dict[str, Tensor]], accelerator: Accelerator):
        self.answers, self.tensors, self.accelerator = encoded.answers, tensors, accelerator

    def __call__(self, rows: list[int]) -> Part:
        own = np.array_split(rows, self.accelerator.num_processes)[self.accelerator.process_index].tolist()
        batch = self.tensors(own or rows[:1])  # a process without a row computes one that counts as no token
        return Part(batch, self._tokens(own), self._tokens(rows), len(rows))

    def _tokens(self, rows: list[int]) -> int:
        return sum(len(self.answers[r]) for r in rows)


def start(unused: bool) -> Accelerator:
    """This process's accelerator. unused: whether some trainable parameters take no part in the loss.

    Raises PeftkitError for DeepSpeed, Megatron and the first version of FSDP.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != "no":
        AcceleratorState._reset_state()  # a Trainer's; here precision is the loop's business
    accelerator = Accelerator(mixed_precision="no",
                              kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)])
    kind = accelerator.distributed_type
    if kind in UNSUPPORTED or is_sharded(accelerator) and not accelerator.is_fsdp2:
        raise PeftkitError(f"accelerate was told to use {kind.value}; accepted: DDP, or FSDP with --fsdp_version 2")
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the processes share out the model (FSDP)."""
    return accelerator.distributed_type == DistributedType.FSDP


def placed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model that is trained: `model` on this process's device, or the copy that FSDP is to share out.

    Raises PeftkitError for a selective method under FSDP.
    """
    if not is_sharded(accelerator):
        return model.to(accelerator.device)
    if any(isinstance(config, SelectiveConfig) for config in getattr(model, "peft_config", {}).values()):
        raise PeftkitError("selective methods train copies of whole tensors, which FSDP shares out; accepted: DDP, or "
                           "another method")
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False  # every process has its model already
    return copy.deepcopy(model)


@torch.no_grad()
def hand_back(trained: nn.Module, model: nn.Module) -> None:
    """Put the values of a copy that was shared out into `model`; nothing to do where `model` itself was trained."""
    if trained is model:
        return
    own = dict(model.named_parameters())
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            own[name].copy_(parameter.full_tensor())


def mean(value: float, accelerator: Accelerator) -> float:
    """The mean of a number over all processes."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(torch.tensor(value, device=accelerator.device), "mean").item()
