"""The one error type of the kit, and the one way to refuse an unknown name."""
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
