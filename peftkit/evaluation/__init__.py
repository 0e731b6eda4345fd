"""Evaluation: greedy decoding, the field's metrics, hallucinated objects, and the loss of each example."""
from .chair import Chair, chair
from .decode import Evaluation, evaluate, generate_answers
from .loss import answer_losses
from .metrics import METRICS, score

__all__ = ["METRICS", "Chair", "Evaluation", "answer_losses", "chair", "evaluate", "generate_answers", "score"]
