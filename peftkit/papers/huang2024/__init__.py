"""SPIDER: Huang et al. 2024, "Learn from Downstream and Be Yourself in Multimodal Large Language Model Fine-Tuning"."""
from .afterwards import merge_at_the_end, pull_as_released, summed_gradients
from .records import averages, equal_t, every_run, measures, study_records, tidy
from .study import (
    AFTERWARDS, CAPTIONS, CONNECTOR_RATE, CONTROLS, LEVELS, PATH_TARGETS, PATHS, PUT_BACK, QUESTIONS, RATE, RELEASED,
    ROWS, SOURCES, STUDIES, TARGETS, TIERS, row_of, studies)

__all__ = ["AFTERWARDS", "CAPTIONS", "CONNECTOR_RATE", "CONTROLS", "LEVELS", "PATHS", "PATH_TARGETS", "PUT_BACK",
           "QUESTIONS", "RATE", "RELEASED", "ROWS", "SOURCES", "STUDIES", "TARGETS", "TIERS", "averages", "equal_t",
           "every_run", "measures", "merge_at_the_end", "pull_as_released", "row_of", "studies", "study_records",
           "summed_gradients", "tidy"]
