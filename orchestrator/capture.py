"""What a worker prints while it has a cell, kept in the cell's `log.txt` too.

Leaves out what native code prints: that goes to the worker's own log in Ray.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any


class _Tee:
    """Writes to a stream and to a file; what the file does not take is not worth a failure."""

    def __init__(self, stream: IO[str], file: IO[str]) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        for target in (self._file, self._stream):
            try:
                target.write(text)
                target.flush()
            except (OSError, ValueError):
                pass
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def captured(path: Path) -> Iterator[None]:
    """Within it, standard output and error go to the file as well, line by line."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a", encoding="utf-8"))
        except OSError:
            yield
            return
        stack.enter_context(redirect_stdout(_Tee(sys.stdout, file)))
        stack.enter_context(redirect_stderr(_Tee(sys.stderr, file)))
        yield
