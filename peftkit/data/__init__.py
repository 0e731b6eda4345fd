"""Data: the drawn world and its tasks, as ordinary `datasets.Dataset` objects."""
from .collate import Encoded, encode
from .gallery import gallery
from .tasks import SPECS, ZHOU2024, Task, task

__all__ = ["SPECS", "ZHOU2024", "Encoded", "Task", "encode", "gallery", "task"]
