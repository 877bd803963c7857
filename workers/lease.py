"""A cell's lease: one worker at a time writes in a cell's directory, whoever drives it.

The lease is a folder in the cell's directory, `.lease.<epoch>`. Taking it over is renaming it to
the next epoch, which the file system lets one contender do. Everything that a worker writes is made
inside its lease folder and moved from there to its place, so that after a take-over no move of the
old worker succeeds: it gets `Lost`, and nothing that it does counts. Lines are appended to a file
that was opened before the lease is looked at; a successor's first act is to replace these files.

No clock is compared with another. A holder writes a beat into its folder every few seconds; whoever
sees none for `LEASE_SECONDS` by a clock of its own takes the holder for dead. On the holder's own
machine a lock tells at once: the system lets go of it when a process ends.

Imports no torch. Leaves out how files are written under it (`writing.py`) and what they hold
(`claim.py`, `journal.py`, `checkpoint.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from grids.errors import InputError
from grids.paths import CellPaths, read_mark
from workers.writing import Lost, Writing, remove

FOLDER: Final = ".lease."
HOLDER, LOCK = "holder.json", "lock"
LEASE_SECONDS = float(os.environ.get("BANDITGRID_LEASE_SECONDS", "60"))
BEATS = 12  # in the time after which a silent holder is taken for dead
LOOK_SECONDS = 0.2
UNKNOWN: Final = -1


class Held(InputError):
    """Another worker has the cell."""


@dataclass(frozen=True)
class Holder:
    """Who has, or had, a cell. What a worker tells beyond that is None until it does."""

    epoch: int
    beat: int = -1  # -1: the holder has not told yet
    released: bool = False
    host: str = ""
    node: str = ""  # what Ray calls the machine
    pid: int = 0
    kernel: str = ""
    locks: bool = False  # whether the holder's death frees a lock
    began: str = ""
    seconds_ago: float | None = field(default=None, compare=False)  # since the last beat
    from_round: int | None = None
    gpus: float | None = None
    rows_per_pass: int | None = None
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None


_TOLD: Final = {f.name for f in fields(Holder)} - {"epoch", "seconds_ago"}


def read(paths: CellPaths) -> Holder | None:
    """The newest holder of a cell; None where it never had one."""
    for _ in range(3):  # a take-over between listing and reading is read again
        epoch = _epoch(paths)
        if epoch is None:
            return None
        file = _folder(paths, epoch) / HOLDER
        try:
            age = max(0.0, time.time() - file.stat().st_mtime)
        except OSError:
            age = None
        told = read_mark(file) or {}
        if told.get("epoch") == epoch:
            told = {name: value for name, value in told.items() if name in _TOLD}
            return Holder(epoch, seconds_ago=age, **told)
        if _epoch(paths) == epoch:
            return Holder(epoch)
    return Holder(epoch or 0)


def _epoch(paths: CellPaths) -> int | None:
    try:
        names = os.listdir(paths.directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    told = (name.removeprefix(FOLDER) for name in names if name.startswith(FOLDER))
    return max((int(text) for text in told if text.isdigit()), default=None)


def _folder(paths: CellPaths, epoch: int) -> Path:
    return paths.directory / f"{FOLDER}{epoch}"


@dataclass
class Watch:
    """Tells which holders are dead, from what it has seen of them. One for many cells."""

    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[tuple[int, int], float]] = field(default_factory=dict)

    def is_free(self, paths: CellPaths, holder: Holder | None) -> bool:
        """Nobody holds the cell, or its holder is dead as far as can be told."""
        if holder is None or holder.released or _is_dead_here(paths, holder):
            self._seen.pop(paths.directory, None)
            return True
        told, now = (holder.epoch, holder.beat), self.clock()
        before = self._seen.get(paths.directory)
        if before is None or before[0] != told:
            self._seen[paths.directory] = (told, now)
            return False
        return now - before[1] > LEASE_SECONDS

    def is_alive(self, paths: CellPaths, holder: Holder) -> bool:
        """The holder has beaten since it was first looked at."""
        before = self._seen.get(paths.directory)
        return before is not None and before[0] != (holder.epoch, holder.beat)


def _is_dead_here(paths: CellPaths, holder: Holder) -> bool:
    """The holder ran on this machine and its lock is free."""
    if not holder.locks or holder.kernel != kernel():
        return False
    try:
        with (_folder(paths, holder.epoch) / LOCK).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:  # it is held, or somebody else was faster
        return False


def kernel() -> str:
    """Names the running system: another after a restart, and on another machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def acquire(
    paths: CellPaths, label: str, about: Callable[[], dict[str, Any]] | None = None,
    stale: int | None = None,
) -> Lease:  # fmt: skip
    """Take the cell, from a holder that is dead too; wait no longer than it takes to tell.

    Args:
        paths: of the cell.
        label: what people call it.
        about: what to tell with each beat: fields of `Holder`.
        stale: epoch of a holder that a `Watch` has found dead.

    Raises:
        Held: where another worker has it.
    """
    paths.directory.mkdir(parents=True, exist_ok=True)
    watch = Watch()
    while True:
        holder = read(paths)
        if holder is not None and holder.epoch != stale and _is_there_still(paths, holder, watch):
            raise Held(
                f"{label}: another process is training this cell in {paths.directory} "
                f"(host {holder.host}, process {holder.pid}); wait for it, or stop it"
            )
        if holder is None or holder.epoch == stale or watch.is_free(paths, holder):
            if (lease := _take(paths, holder, about)) is not None:
                return lease
        time.sleep(LOOK_SECONDS)


def _is_there_still(paths: CellPaths, holder: Holder, watch: Watch) -> bool:
    """The holder's process is on this machine, or has beaten while we looked."""
    if holder.released:
        return False
    if holder.locks and holder.kernel == kernel():
        return not _is_dead_here(paths, holder)
    return watch.is_alive(paths, holder)


def _take(
    paths: CellPaths, holder: Holder | None, about: Callable[[], dict[str, Any]] | None
) -> Lease | None:
    """Rename the lease folder, or make the first; None where somebody else was faster."""
    epoch = 1 if holder is None else holder.epoch + 1
    folder = _folder(paths, epoch)
    try:
        if holder is None:
            folder.mkdir()
            if _epoch(paths) != epoch:  # made while another went from the first to the next
                folder.rmdir()
                return None
        else:
            _folder(paths, holder.epoch).rename(folder)
    except (FileExistsError, FileNotFoundError):
        return None
    return Lease(paths, epoch, holder, about or dict)


@contextmanager
def held(
    paths: CellPaths, label: str, about: Callable[[], dict[str, Any]] | None = None,
    stale: int | None = None,
) -> Iterator[Lease]:  # fmt: skip
    """`acquire`, and let go at the end."""
    lease = acquire(paths, label, about, stale)
    try:
        yield lease
    finally:
        lease.release()


class Lease(Writing):
    """A cell's directory, to be written by this process alone.

    Attributes:
        epoch: number of this attempt at the cell; later ones have larger ones.
        before: the holder before; None for the first.
    """

    def __init__(
        self, paths: CellPaths, epoch: int, before: Holder | None,
        about: Callable[[], dict[str, Any]],
    ) -> None:  # fmt: skip
        self.paths, self.epoch, self.before = paths, epoch, before
        self.folder = _folder(paths, epoch)
        self.began = now()
        self.is_lost = False
        self._inode = inode(self.folder)
        self._about, self._beat = about, 0
        self._sweep()
        self._lock = self._locked()
        self._stop = threading.Event()
        self._tell()
        self._thread = threading.Thread(target=self._beats, name="lease", daemon=True)
        self._thread.start()

    def _sweep(self) -> None:
        """Take away what killed attempts left half written, and lease folders made anew."""
        for other in self.paths.directory.glob(f"{FOLDER}*"):
            if other != self.folder:
                remove(other)
        for left in self.folder.iterdir():
            if left.name != HOLDER:
                remove(left)

    def _locked(self) -> IO[str] | None:
        """A lock of this process on a file of its own, or None where there are no locks."""
        made = self.scratch(LOCK)
        file = made.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        os.replace(made, self.folder / LOCK)
        return file

    # ---- beats

    def _beats(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / BEATS):
            try:
                self._tell()
            except FileNotFoundError:
                self.is_lost = True
                return
            except Exception:
                pass  # a store that nobody can write is a store that nobody can take over

    def _tell(self, released: bool = False) -> None:
        self._beat += 1
        content = {
            "epoch": self.epoch, "beat": self._beat, "released": released,
            "host": socket.gethostname(), "pid": os.getpid(), "kernel": kernel(),
            "locks": self._lock is not None, "began": self.began,
        }  # fmt: skip
        file = self.folder / HOLDER
        made = self.scratch(HOLDER)
        made.write_text(json.dumps(content | self._about()), encoding="utf-8")
        os.replace(made, file)

    def release(self) -> None:
        """Let go: the next worker need not wait. Harmless where the lease was lost."""
        self._stop.set()
        self._thread.join()
        try:
            self._tell(released=True)
        except OSError:
            pass  # lost, or the store is away: whoever wants the cell sees no more beats
        if self._lock is not None:
            self._lock.close()

    def check(self) -> None:
        """Raise `Lost` where the lease was taken over."""
        if self.is_lost or inode(self.folder) not in (self._inode, UNKNOWN):
            self.is_lost = True
            raise Lost(f"the lease of {self.paths.directory} was taken over by another worker")


def now() -> str:
    """The time for people, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def inode(folder: Path) -> int | None:
    """Of the folder; None where there is none, `UNKNOWN` where the file system does not answer."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN  # writing will tell
