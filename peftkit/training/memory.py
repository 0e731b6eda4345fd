"""Peak memory of a stretch of work."""
import resource
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Start on creation; `megabytes()` is the peak since then.

    On a GPU: allocated by torch on the current device. On Linux: resident memory of the process. Elsewhere the
    process's highest resident memory since it started, an upper bound.
    """

    def __init__(self):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            _RESET.write_text("5")  # resets the high-water mark
        except OSError:
            pass

    def megabytes(self) -> float:
        """Peak in units of 10^6 bytes."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
        if _STATUS.exists():
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024 / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
