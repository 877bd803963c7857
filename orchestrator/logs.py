"""What a cell left for people to read: its attempts, why it failed, what its workers printed.

Leaves out the log of a job (`following.py`) and the numbers of its journal (`banditgrid status`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from grids.outcome import FAILED
from grids.paths import DamagedError, read_lines, read_mark
from orchestrator.ledger import DONE, state_of
from orchestrator.lookup import Found
from orchestrator.show import bytes_for_people, duration, table

TAIL_BYTES: Final = 1 << 18
POLL_SECONDS = 0.5


def show_cell(cell: Found, lines: int, out: Console) -> None:
    """Where the cell is, its attempts, the traceback of its failure, the end of its log."""
    out.print(Text(f"{cell} of study {cell.study}", style="bold"), soft_wrap=True)
    out.print(Text(str(cell.paths.directory)), soft_wrap=True)
    _show_holder(cell, out)
    _show_attempts(cell, out)
    _show_failure(cell, out)
    last = list(_last(cell.paths.log, lines))
    if last:
        out.print(Text(f"\nend of {cell.paths.log.name}:", style="bold"))
    for line in last:
        out.print(Text(line), soft_wrap=True)
    if not (last or cell.paths.directory.exists()):
        out.print("no worker has begun it")


def _show_holder(cell: Found, out: Console) -> None:
    from workers import lease

    holder = lease.read(cell.paths)
    if holder is None or holder.released:
        return
    ago = "" if holder.seconds_ago is None else f", last heard of {holder.seconds_ago:.0f} s ago"
    told = f"attempt {holder.epoch} on {holder.host or '?'}, process {holder.pid}{ago}"
    out.print(Text(told), soft_wrap=True)


def _show_attempts(cell: Found, out: Console) -> None:
    try:
        attempts = read_lines(cell.paths.attempts)
    except DamagedError as error:
        out.print(Text(str(error)), soft_wrap=True)
        return
    if not attempts:
        return
    columns = ("#attempt", "host", "began", "took", "rounds", "ended", "#rows", "memory", "reason")
    made = table(*columns)
    for attempt in attempts:
        made.add_row(*map(Text, _row(attempt)))
    out.print(made)


def _row(attempt: dict[str, Any]) -> list[str]:
    """What an attempt does not tell stays empty."""

    def told(name: str) -> str:
        return "" if attempt.get(name) is None else str(attempt[name])

    rounds = f"{told('from_round') or 0}-{told('to_round')}" if told("to_round") else ""
    return [
        told("attempt"), told("host"), told("began")[:16].replace("T", " "), _took(attempt), rounds,
        told("how").replace("_", " "), told("rows_per_pass"), _memory(attempt),
        told("reason").partition("\n")[0],
    ]  # fmt: skip


def _took(attempt: dict[str, Any]) -> str:
    try:
        began, ended = (datetime.fromisoformat(attempt[name]) for name in ("began", "ended"))
    except (KeyError, TypeError, ValueError):  # one who was lost has told no end
        return ""
    return duration((ended - began).total_seconds())


def _memory(attempt: dict[str, Any]) -> str:
    """Peak of the process, and of the GPU where there is one."""
    pairs = (("", "peak_rss_bytes"), (" GPU", "peak_gpu_bytes"))
    known = ((unit, attempt[name]) for unit, name in pairs if attempt.get(name) is not None)
    return ", ".join(f"{bytes_for_people(size)}{unit}" for unit, size in known)


def _show_failure(cell: Found, out: Console) -> None:
    failed = read_mark(cell.paths.failed)
    if failed is None:
        return
    out.print(Text(f"\nfailed: {failed.get('error') or 'no reason was told'}", style="red"))
    if trace := str(failed.get("traceback") or "").rstrip():
        out.print(Text(trace), soft_wrap=True)


def _last(path: Path, lines: int) -> Iterator[str]:
    """The last lines of a file, read from its end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from text.splitlines()[-lines:] if lines else ()


@dataclass
class Tail:
    """Reads what is added to a file, which a new worker may replace by a longer or another one."""

    path: Path
    at: int = 0

    def read(self, rest: bool = False) -> str:
        """Lines that are new, all where the file got shorter; `rest`: a part of a line too."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self.at = self.at if size >= self.at else 0
                file.seek(self.at)
                new = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        whole = new if rest else new[: new.rfind(b"\n") + 1]
        self.at += len(whole)
        return whole.decode(errors="replace")


def follow(cell: Found, write: Callable[[str], Any] = sys.stdout.write) -> None:
    """Write what the cell's workers print until it is done or failed."""
    from workers import lease

    tail = Tail(cell.paths.log)
    while True:
        holder = lease.read(cell.paths)
        is_held = holder is not None and not holder.released
        ended = not is_held and state_of(cell.paths, None, None) in (*DONE, FAILED)
        if text := tail.read(rest=ended):
            write(text)
            sys.stdout.flush()
        if ended:  # as it was before the last reading: nothing was printed since
            return
        time.sleep(POLL_SECONDS)
