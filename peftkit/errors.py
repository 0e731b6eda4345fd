"""The one error type of the kit, and the ways to refuse a wrong name or number."""
from collections.abc import Iterable
from difflib import get_close_matches


class PeftkitError(ValueError):
    """Wrong input: the message names the value and what would have been accepted."""


def choose(kind: str, value, accepted: Iterable[str]):
    """Return `value` if it is one of `accepted`, else raise `PeftkitError` that lists them, close matches first."""
    names = list(accepted)
    if value in names:
        return value
    close = get_close_matches(str(value), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ";"
    ordered = close + [name for name in names if name not in close]
    raise PeftkitError(f"unknown {kind} {value!r}{hint} accepted: {', '.join(ordered)}")


def require_positive(**values: float) -> None:
    """Raise PeftkitError for a value that is not a number above zero."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise PeftkitError(f"{name} is {value!r}; accepted: a number above 0")


def require_count(**values: int) -> None:
    """Raise PeftkitError for a value that is not a whole number above zero."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise PeftkitError(f"{name} is {value!r}; accepted: a whole number above 0")


def require_share(**values: float) -> None:
    """Raise PeftkitError for a value that is not a number from 0 up to, not including, 1."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise PeftkitError(f"{name} is {value!r}; accepted: 0 up to, not including, 1")
