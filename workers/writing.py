"""How a worker writes in its cell's directory: made in its lease folder, then moved to its place.

The move fails when the lease is gone, so that nothing late counts (`lease.py` says why). A write
that fails for another reason (a full disk, a server that restarts) is tried again for
`PATIENCE_SECONDS`, with a word each minute. Leaves out who holds the lease.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from grids.paths import json_text, replace_text

T = TypeVar("T")
PATIENCE_SECONDS = float(os.environ.get("BANDITGRID_PATIENCE_SECONDS", "300"))
RETRY_SECONDS = 5.0
WORD_SECONDS = 60.0


class Lost(Exception):
    """The lease was taken over, or the cell's directory taken away: nothing written now counts."""


class Writing(ABC):
    """Writes files and folders whole or not at all. Every method raises `Lost` when it is too late.

    Attributes:
        folder: the lease folder.
    """

    folder: Path

    @abstractmethod
    def check(self) -> None:
        """Raise `Lost` where the lease is gone."""

    def scratch(self, name: str) -> Path:
        """A path in the lease folder for what will be moved elsewhere."""
        return self.folder / f"{name}.{uuid.uuid4().hex[:12]}"

    def put(self, made: Path, path: Path) -> None:
        """Move a finished file or folder from `scratch` to its place; a folder's place is free.

        Some libraries make the folders above what they write, and so the lease folder anew after it
        was taken over: the look before the move finds that out.
        """
        self.check()
        try:
            os.rename(made, path)
        except FileNotFoundError:
            self.check()
            raise

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """`grids.paths.write_json`, under the lease."""
        self.replace_text(path, json_text(content))

    def replace_text(self, path: Path, text: str) -> None:
        """`grids.paths.replace_text`, under the lease."""
        self.make(path, lambda made: replace_text(made, text))

    def make(self, path: Path, write: Callable[[Path], None]) -> None:
        """Have `write` make a file at the path that it is given, and move it to its place."""

        def attempt() -> None:
            made = self.scratch(path.name)
            try:
                write(made)
                self.put(made, path)
            except BaseException:
                made.unlink(missing_ok=True)
                raise

        self.patiently(attempt, path)

    def append(self, path: Path, lines: Iterable[str], durable: bool = False) -> None:
        """Append whole lines; a part that a failed attempt wrote is taken away."""
        data = "".join(lines).encode()
        size: list[int] = []  # before the first attempt

        def attempt() -> None:
            with path.open("ab") as file:
                self.check()  # after opening: a successor's file is another than this
                size.append(file.tell())
                file.truncate(size[0])
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())

        self.patiently(attempt, path)

    def discard(self, path: Path) -> None:
        """Take a file or folder away, whole or not at all; nothing where there is none."""
        gone = self.scratch(path.name)

        def attempt() -> None:
            try:
                os.rename(path, gone)
            except FileNotFoundError:
                self.check()

        self.patiently(attempt, path)
        remove(gone)

    def patiently(self, attempt: Callable[[], T], path: Path) -> T:
        """Do what writes to the store, again while it fails, for `PATIENCE_SECONDS`."""
        began = told = time.monotonic()
        while True:
            try:
                return attempt()
            except FileNotFoundError:
                self.check()
                raise
            except OSError as error:
                now = time.monotonic()
                if now - began > PATIENCE_SECONDS:
                    raise
                if now - told > WORD_SECONDS or told == began:
                    told = now
                    left = PATIENCE_SECONDS - (now - began)
                    print(
                        f"cannot write {path}: {error.strerror or error}; free space or mend the "
                        f"folder: training waits {left:.0f} s more",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
                time.sleep(min(RETRY_SECONDS, PATIENCE_SECONDS / 10))


def remove(path: Path) -> None:
    """Take a file or folder away, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
