"""Evaluation: greedy decoding and the field's metrics."""
from .decode import Evaluation, evaluate, generate_answers
from .metrics import METRICS, score

__all__ = ["METRICS", "Evaluation", "evaluate", "generate_answers", "score"]
