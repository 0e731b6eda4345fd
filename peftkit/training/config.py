"""Settings of one training run."""
from dataclasses import dataclass

from ..errors import choose, require_count, require_positive, require_share

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("fp32", "bf16")
EXECUTION = ("packing", "compile", "progress")  # settings that change how a run is done and not what it computes


@dataclass(frozen=True)
class TrainConfig:
    """epochs; batch_size (rows of a batch; under `accelerate launch`, of each process); learning_rate (peak, of the
    method); connector_learning_rate (peak, of what is trained beside the method: connector, vision tower, vocabulary;
    a tenth of learning_rate unless given, the ratio of Zhou 2024); schedule; warmup_ratio (share of all steps);
    weight_decay; max_grad_norm; accumulation (batches a step; the loss is the mean over all their answer tokens);
    precision ("fp32", "bf16" autocast); seed (of data order and
    dropout); max_length (tokens of an example); cache_features (run the frozen vision tower once a picture, see
    `features`); packing (questions about one picture share a sequence, see `data.packing`; the same losses,
    faster); compile (generated code for the blocks, see `compiled`: for long runs); progress (show a bar)."""

    epochs: float = 3
    batch_size: int = 32
    learning_rate: float = 2e-4
    connector_learning_rate: float | None = None
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulation: int = 1
    precision: str = "fp32"
    seed: int = 42
    max_length: int = 2048
    cache_features: bool = True
    packing: bool = True
    compile: bool = False
    progress: bool = True

    def __post_init__(self):
        choose("schedule", self.schedule, SCHEDULES)
        choose("precision", self.precision, PRECISIONS)
        require_count(batch_size=self.batch_size, accumulation=self.accumulation, max_length=self.max_length)
        require_positive(epochs=self.epochs, learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm)
        if self.connector_learning_rate is not None:
            require_positive(connector_learning_rate=self.connector_learning_rate)
        require_share(warmup_ratio=self.warmup_ratio)

    @property
    def connector_rate(self) -> float:
        """The connector's peak learning rate."""
        return self.learning_rate / 10 if self.connector_learning_rate is None else self.connector_learning_rate
