"""Half fine-tuning: in every round a random half of the tensors is frozen (Hui et al. 2024, facts of Huang 2024, 4).

Whole tensors are chosen, half of each group that lies side by side in a block: two of four in the attention, one of
three in the MLP, one of two norms. Frozen tensors keep what earlier rounds gave them.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..seeding import seed_for
from .checks import require_optional_count
from .rule import Rule, rule_method


class HalfFineTuning(Rule):
    """Drops the gradients of the frozen half, so that the optimizer does not touch it."""

    drops = True
    steps_a_round: int | None = None

    def __init__(self, model, seed: int = 42, adapter_name: str = "default", **options):
        super().__init__(model, seed, adapter_name, **options)
        self.steps = 0

    def frozen(self) -> set[str]:
        """Names of the tensors that are frozen in the present round."""
        number = self.steps // self.steps_a_round if self.steps_a_round else 0
        groups: dict[str, list[str]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.name.rsplit(".", 2)[0], []).append(tensor.name)
        frozen = set()
        for group, names in groups.items():
            order = torch.randperm(len(names), generator=seed_for(self.seed, f"{group}/round {number}"))
            frozen |= {names[i] for i in order[:len(names) // 2]}
        return frozen

    def after_backward(self) -> None:
        frozen = self.frozen()
        for tensor in self.tensors:
            if tensor.name in frozen:
                tensor.weight.grad = None

    def after_step(self) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])


@dataclass(frozen=True)
class HalfOptions:
    """layers: the last so many blocks of the language model; steps_a_round: one round for all of training unless
    given."""

    layers: int | None = 2
    steps_a_round: int | None = None

    def __post_init__(self):
        require_optional_count(layers=self.layers, steps_a_round=self.steps_a_round)


METHOD = rule_method("half", HalfFineTuning, HalfOptions, lambda options: {"steps_a_round": options.steps_a_round},
                     formula="all of the last blocks; half of it a round", source="Hui et al. 2024; Huang et al. 2024")
