"""Studies: a grid of runs, the store that keeps their records, and the processes that do them."""
from .store import RunStore
from .study import Study

__all__ = ["RunStore", "Study"]
