"""Studies: a grid of runs, the store that keeps their records, and the processes that do them."""
from .store import Record, RunStore, bundle, read_bundle, tabulate
from .study import Study

__all__ = ["Record", "RunStore", "Study", "bundle", "read_bundle", "tabulate"]
