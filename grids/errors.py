"""The one exception for input that a person can mend: what, where, got, allowed, the fix.

The command line prints it as it is and exits with 2; a traceback is never shown for it.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input. Its text is the whole message for the user."""


def nearest(got: object, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the closest allowed name, or nothing where none is close."""
    close = get_close_matches(str(got), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Allowed names, sorted, for the end of a message."""
    return ", ".join(sorted(names))
