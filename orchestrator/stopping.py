"""Asking cells to leave: each saves a checkpoint at the end of its round and lets go of its lease.

The request is a file beside the cell, or beside the study, so that it reaches every worker that
sees the store, whoever drives it and wherever. What asks here waits until the leases are free.
Leaves out ending the driver (`jobs.py` stops jobs) and the worker's side.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from grids.errors import InputError, listed
from grids.outcome import PREEMPTED, STOPPED
from grids.paths import CellPaths, Store, StudyPaths, write_json
from orchestrator import lookup
from orchestrator.lookup import Found

if TYPE_CHECKING:
    from workers.lease import Holder, Watch

POLL_SECONDS = 0.5
REMIND_SECONDS = 15.0


@dataclass(frozen=True)
class Held:
    """A cell and the worker that has it."""

    cell: Found
    holder: Holder

    def __str__(self) -> str:
        return f"{self.cell.label} on {self.holder.host or 'a host that has not told'}"


@dataclass
class Watcher:
    """Finds cells with a living worker. A dead one is recognised by its silence, which takes time.

    It looks again only at cells that had a worker when it last looked at them all.
    """

    store: Store
    studies: Sequence[str]
    _watch: Watch | None = None

    def all(self) -> list[Held]:
        """Cells with a worker, of all."""
        return self.among(lookup.cells(self.store, self.studies))

    def among(self, cells: Iterable[Found]) -> list[Held]:
        from workers import lease

        self._watch = watch = self._watch or lease.Watch()
        found = []
        for cell in cells:
            holder = lease.read(cell.paths)
            if holder is not None and not watch.is_free(cell.paths, holder):
                found.append(Held(cell, holder))
        return found


def ask(place: CellPaths | StudyPaths, why: str) -> None:
    """Leave the request. Raises `InputError` where the store cannot be written."""
    by = f"{socket.gethostname()}, process {os.getpid()}"
    try:
        write_json(place.leave, {"why": why, "time": _now(), "by": by})
    except OSError as error:
        raise InputError(
            f"{place.leave} cannot be written: {error.strerror}; mend the folder's permissions, "
            "or ask from a machine that can write the store"
        ) from None


def stop_study(store: Store, name: str, seconds: float, out: Console) -> bool:
    """Ask all of a study's workers to leave; whether all did in time."""
    watcher = Watcher(store, [name])
    held = watcher.all()
    ask(store.study(name), STOPPED)
    held = held or watcher.all()  # one may have come between the look and the request
    told = f"asked {_count(held)} to leave" if held else "no cell runs; no more will be begun"
    out.print(f"study {name}: {told}", highlight=False)
    # A driver that has not seen the request yet may give out another cell: so all, once more.
    return _wait(watcher, held, seconds, out, everything=True)


def stop_cell(store: Store, cell: Found, seconds: float, out: Console) -> bool:
    """Ask the worker of one cell to leave; whether it did in time."""
    watcher = Watcher(store, [cell.study])
    held = watcher.among([cell])
    ask(cell.paths, STOPPED)
    out.print(f"{cell}: " + ("asked to leave" if held else "no worker has it"), highlight=False)
    return _wait(watcher, held, seconds, out)


def vacate(store: Store, names: Sequence[str], host: str, seconds: float, out: Console) -> bool:
    """Ask all workers on a host to leave, for it is wanted for something else."""
    watcher = Watcher(store, names)
    held = watcher.all()
    here = [one for one in held if _same_host(one.holder.host, host)]
    for one in here:
        ask(one.cell.paths, PREEMPTED)
    others = listed({one.holder.host for one in held if one not in here})
    also = f"; cells run on: {others}" if others and not here else ""
    told = f"asked {_count(here)} to leave" if here else "no cell runs there"
    out.print(f"host {host}: {told}{also}", highlight=False)
    return _wait(watcher, here, seconds, out)


def _same_host(one: str, other: str) -> bool:
    """Equal names; a short name is its long one, for batch systems know either."""
    short = one.partition(".")[0] == other.partition(".")[0]
    return one == other or (short and not ("." in one and "." in other))


def _wait(
    watcher: Watcher, held: list[Held], seconds: float, out: Console, everything: bool = False
) -> bool:
    """Wait until no worker is left, telling who went; False where the time is over."""
    began = told = time.monotonic()
    while held:
        now = time.monotonic()
        if now - began > seconds:
            _tell_left(held, seconds, out)
            return False
        if now - told > REMIND_SECONDS:
            told = now
            out.print(f"waiting for {_count(held)}: {held[0]}", soft_wrap=True, highlight=False)
        time.sleep(POLL_SECONDS)
        still = watcher.among(one.cell for one in held)
        for one in held:
            if one.cell not in {other.cell for other in still}:
                out.print(f"left: {one}", soft_wrap=True, highlight=False)
        held = still or (watcher.all() if everything else [])
    return True


def _tell_left(held: list[Held], seconds: float, out: Console) -> None:
    out.print(f"after {seconds:.0f} s {_count(held)} still there:", highlight=False)
    for one in held:
        ago = one.holder.seconds_ago
        beat = "" if ago is None else f", last heard of {ago:.0f} s ago"
        out.print(f"  {one}, process {one.holder.pid}{beat}", soft_wrap=True, highlight=False)
    out.print("each leaves at the end of its round; ask again to wait longer (--timeout)")


def _count(held: Sequence[Held]) -> str:
    return "1 running cell" if len(held) == 1 else f"{len(held)} running cells"


def _now() -> str:
    from workers.lease import now

    return now()
