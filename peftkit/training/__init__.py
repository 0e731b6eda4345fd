"""Training: one loop for all methods, with the frozen vision tower run once."""
from .checkpoint import Checkpoints
from .config import TrainConfig
from .loop import TrainResult, train

__all__ = ["Checkpoints", "TrainConfig", "TrainResult", "train"]
