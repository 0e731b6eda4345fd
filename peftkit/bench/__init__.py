"""Benchmarks: ratios of speeds measured in one process, alternated, so that a machine's mood cancels out."""
from .methods import bench_methods
from .trainer import bench_trainer

__all__ = ["bench_methods", "bench_trainer"]
