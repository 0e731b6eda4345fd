"""Update rules: what happens to chosen weights around an optimizer step. A rule is a transformers TrainerCallback.

`peftkit.train` runs the rule that a model was injected with. Elsewhere: Trainer(..., callbacks=[rule_of(model)]).
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...errors import PeftkitError
from ..method import Method
from .parts import language_part, selective_method
from .tuner import SelectiveConfig, Tuned, tuned


class Rule(TrainerCallback):
    """`after_backward` is called when the gradients of a step are complete and not clipped yet, `after_step` after the
    optimizer's step and before gradients are set to zero. Raises PeftkitError for trained weights that are not float32.
    """

    drops = False  # whether it takes gradients away

    def __init__(self, model: nn.Module, seed: int = 42, adapter_name: str = "default", **options):
        self.tensors: list[Tuned] = tuned(model, adapter_name)
        for tensor in self.tensors:
            if tensor.weight.dtype != torch.float32:
                raise PeftkitError(f"{tensor.name} is trained in {tensor.weight.dtype}; accepted: torch.float32, which "
                                   "inject gives on any base (cast the base first, then inject)")
        self.seed = seed
        for name, value in options.items():
            setattr(self, name, value)

    def after_backward(self) -> None:
        """Change gradients, or do nothing."""

    def after_step(self) -> None:
        """Change weights, or do nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs besides weights and optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if args.max_grad_norm:
            raise PeftkitError(f"max_grad_norm is {args.max_grad_norm}: Trainer clips gradients before a rule sees "
                               "them; accepted: 0 (or peftkit.train)")
        if args.fp16:
            raise PeftkitError("fp16 is True: Trainer scales gradients, and a rule would see scaled ones; accepted: "
                               "bf16 or float32")
        if state.global_step:
            raise PeftkitError(f"a Trainer checkpoint of step {state.global_step} holds no state of the rule "
                               f"{type(self).__name__}; accepted: a run from its start")

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.after_backward()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.after_step()


class MaskRule(Rule):
    """After every step W <- W0 (1 - M) + W M, with a mask M in [0, 1] that a subclass states.

    With `accumulates`, A is the signed sum of all gradients so far, unclipped; a gradient is released after the step.
    """

    accumulates = False

    def __init__(self, model: nn.Module, seed: int = 42, adapter_name: str = "default", **options):
        super().__init__(model, seed, adapter_name, **options)
        self.sums: dict[str, Tensor] = {}  # A, made at the first gradient: the model may move to another device before

    def mask(self, tensor: Tuned) -> Tensor:
        """M, of the tensor's shape, bool or float32."""
        raise NotImplementedError

    def accumulated(self, tensor: Tuned) -> Tensor:
        """A, zeros before the first gradient."""
        if tensor.name not in self.sums:
            self.sums[tensor.name] = torch.zeros_like(tensor.weight, requires_grad=False)
        return self.sums[tensor.name]

    @torch.no_grad()
    def after_backward(self) -> None:
        if all(tensor.weight.grad is None for tensor in self.tensors):
            raise PeftkitError("no selected weight has a gradient; accepted: a call between backward and zero_grad, "
                               "without DeepSpeed or FSDP")
        for tensor in self.tensors if self.accumulates else ():
            if tensor.weight.grad is not None:
                self.accumulated(tensor).add_(tensor.weight.grad)

    @torch.no_grad()
    def after_step(self) -> None:
        for tensor in self.tensors:
            tensor.weight.grad = None
            mask = self.mask(tensor).to(tensor.weight)
            tensor.weight.lerp_(tensor.start(), 1 - mask)  # W + (1 - M) (W0 - W), exact where M is 0 or 1

    def state_dict(self) -> dict[str, Tensor]:
        return {name: total.clone() for name, total in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = {tensor.name: state[tensor.name].to(tensor.weight, copy=True)
                     for tensor in self.tensors if tensor.name in state}


RULES: dict[str, type[Rule]] = {}


def rule_method(name: str, rule: type[Rule], options: type, told: Callable[[object], dict], *, sparse: bool = True,
                formula: str, source: str) -> Method:
    """A method that trains the last blocks of the language model under a rule. told: options -> the rule's own."""
    RULES[name] = rule

    def config(model: nn.Module, given) -> SelectiveConfig:
        return SelectiveConfig(sites={"weights": language_part(model, given.layers)}, rule=name,
                               rule_options=told(given), sparse=sparse)

    return selective_method(name, options, config, formula, source)


def rule_of(model: nn.Module, seed: int = 42, adapter_name: str | None = None) -> Rule | None:
    """The update rule that `model` was injected with, ready to run, or None. seed: of masks that are drawn.

    adapter_name: the active one unless given.
    """
    adapter_name = adapter_name or getattr(model, "active_adapter", "default")
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, SelectiveConfig) or config.rule is None:
        return None
    return RULES[config.rule](model, seed, adapter_name, **config.rule_options)
