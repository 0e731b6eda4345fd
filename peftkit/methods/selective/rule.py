"""Update rules: what happens to chosen weights around an optimizer step. A rule is a transformers TrainerCallback.

`peftkit.train` runs the rule that a model was injected with. Elsewhere: Trainer(..., callbacks=[rule_of(model)]).
"""
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...errors import PeftkitError
from .tuner import SelectiveConfig, Tuned, tuned


class Rule(TrainerCallback):
    """Called after the gradients of a step are complete and not clipped yet, and after the optimizer's step."""

    def __init__(self, model: nn.Module, seed: int = 42, **options):
        self.tensors: list[Tuned] = tuned(model)
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
                               "them, which changes what they are compared with; accepted: 0 (or peftkit.train)")
        if state.global_step:
            raise PeftkitError(f"a Trainer checkpoint of step {state.global_step} holds no state of the rule "
                               f"{type(self).__name__}; accepted: a run from its start")

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.after_backward()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.after_step()


class MaskRule(Rule):
    """After every step W <- W0 (1 - M) + W M, with a mask M in [0, 1] that a subclass states. With `accumulates`, A is
    the sum of all gradients so far; a gradient is released as soon as it is added."""

    accumulates = False

    def __init__(self, model: nn.Module, seed: int = 42, **options):
        super().__init__(model, seed, **options)
        self.sums = {t.name: torch.zeros_like(t.weight) for t in self.tensors} if self.accumulates else {}

    def mask(self, tensor: Tuned, accumulated: Tensor | None) -> Tensor:
        """M, of the tensor's shape; accumulated is A."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self) -> None:
        for tensor in self.tensors:
            accumulated = self.sums.get(tensor.name)
            if self.accumulates and tensor.weight.grad is not None:
                accumulated.add_(tensor.weight.grad)
                tensor.weight.grad = None
            mask = self.mask(tensor, accumulated)
            tensor.weight.mul_(mask).add_(tensor.start() * (1 - mask.to(tensor.weight)))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: total.clone() for name, total in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, total in self.sums.items():
            total.copy_(state[name])


RULES: dict[str, type[Rule]] = {}


def rule_of(model: nn.Module, seed: int = 42) -> Rule | None:
    """The update rule that `model` was injected with, ready to run, or None. seed: of masks that are drawn."""
    config = getattr(model, "peft_config", {}).get("default")
    if not isinstance(config, SelectiveConfig) or config.rule is None:
        return None
    return RULES[config.rule](model, seed, **config.rule_options)
