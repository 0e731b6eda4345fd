"""Benchmarks: ratios of speeds measured in one process, alternated, so that a machine's mood cancels out."""
from .compile import bench_compile
from .evaluation import bench_evaluation
from .gpu import bench_gpu
from .grid import bench_grid
from .methods import bench_methods
from .packing import bench_packing
from .record import record
from .spider import bench_spider
from .trainer import bench_trainer

__all__ = ["bench_compile", "bench_evaluation", "bench_gpu", "bench_grid", "bench_methods", "bench_packing",
           "bench_spider", "bench_trainer", "record"]
