"""What selective methods refuse in common."""
from collections.abc import Iterable

from ...errors import PeftkitError, require_count, require_share


def require_part(share: float) -> None:
    """Raise PeftkitError for a share that is not a number above 0 and below 1."""
    require_share(share=share)
    if share == 0:
        raise PeftkitError("share is 0; accepted: above 0 up to, not including, 1")


def require_optional_count(**values: int | None) -> None:
    """Raise PeftkitError for a value that is neither None nor a whole number above zero."""
    require_count(**{name: value for name, value in values.items() if value is not None})


def all_batches(batches: Iterable) -> list:
    """The batches, which may be gone through several times. Raises PeftkitError if there are none."""
    found = list(batches)
    if not found:
        raise PeftkitError("there are no batches; accepted: one or more")
    return found
