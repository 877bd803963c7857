"""Progress of running cells, read from the ends of their journals.

A live display where there is a terminal, else plain lines: one a cell at its start and end, and at
most one in ten seconds between. Nothing is asked of the workers, so a lost worker cannot block it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from grids import outcome
from grids.paths import Store
from orchestrator.ledger import DONE, FAILED, Standing, last_value, standing
from orchestrator.plan import Work
from orchestrator.show import duration, table

POLL_SECONDS = 2.0
LINE_SECONDS = 10.0


@dataclass
class _Seen:
    """One running cell, from the moment that the driver saw it start."""

    work: Work
    since: float
    told_at: float
    told_round: int = -1
    standing: Standing = field(default_factory=lambda: Standing("running"))
    reward: float | None = None
    anchor: tuple[float, int] | None = None  # time and round from which its speed is taken

    def look(self, found: Standing, reward: float | None, now: float) -> None:
        """Take what the journal tells; a worker that goes on may first have cut it back."""
        self.standing, self.reward = found, reward
        if found.round is not None and (self.anchor is None or found.round < self.anchor[1]):
            self.anchor = (now, found.round)

    def left(self, now: float) -> float | None:
        """Seconds left at the speed since the anchor, or None before a round has passed."""
        at = self.standing.round
        if at is None or self.anchor is None or at <= self.anchor[1]:
            return None
        return (now - self.anchor[0]) / (at - self.anchor[1]) * (self.work.cell.rounds - at)


class Progress:
    """Watches the cells that were started and not yet finished; a context manager."""

    def __init__(self, works: Iterable[Work], store: Store, out: Console) -> None:
        self._store, self._out = store, out
        self._works = {(work.study, work.cell.key): work for work in works}
        self._running: dict[tuple[str, str], _Seen] = {}
        self._finished: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._live = Live(console=out, auto_refresh=False) if out.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self._live:
            self._live.update(Text(""), refresh=True)
            self._live.stop()

    def start(self, study: str, key: str) -> None:
        """A worker has the cell."""
        work, now = self._works[study, key], time.monotonic()
        with self._lock:
            self._running[study, key] = _Seen(work, now, now)
        again = f", from round {work.round}" if work.round else ""
        self._say(f"{work.cell.label}  started{again}")

    def finish(self, study: str, key: str, status: str, reason: str) -> None:
        """A worker is through with the cell."""
        with self._lock:
            seen = self._running.pop((study, key), None)
            self._finished.add((study, key))
        work = self._works[study, key]
        found = standing(work.paths(self._store))
        scored = "" if found.test_pass is None else f"  Pass@1 {found.test_pass:.3f}"
        took = f"  {duration(time.monotonic() - seen.since)}" if seen else ""
        why = f": {reason.splitlines()[0]}" if reason else ""
        told = f"  {status}{why}{scored if status in DONE else ''}{took}"
        style = "red" if status == FAILED else ""
        self._say(f"{work.cell.label}{told}  [{len(self._finished)}/{len(self._works)}]", style)

    def lose(self, study: str, key: str) -> None:
        """The worker is gone: after a failure that it noted itself, or without a word."""
        work = self._works[study, key]
        found = standing(work.paths(self._store))
        if found.state == FAILED:
            self.finish(study, key, FAILED, found.reason or "")
            return
        with self._lock:
            self._running.pop((study, key), None)
        self._say(f"{work.cell.label}  lost its worker; it is given another later", "red")

    def running(self) -> list[Work]:
        with self._lock:
            return [seen.work for seen in self._running.values()]

    def _say(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style=style), soft_wrap=True)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with self._lock:
                seen = list(self._running.values())
            for one in seen:
                self._look(one)
            if self._live:
                self._live.update(self._display(seen), refresh=True)
            else:
                self._tell(seen)

    def _look(self, seen: _Seen) -> None:
        """A journal that cannot be read just now is read the next time."""
        paths = seen.work.paths(self._store)
        try:
            found, reward = standing(paths), last_value(paths.journal, outcome.REWARD)
        except (OSError, ValueError):
            return
        seen.look(found, reward, time.monotonic())

    def _tell(self, seen: list[_Seen]) -> None:
        now = time.monotonic()
        for one in seen:
            moved = one.standing.round is not None and one.standing.round != one.told_round
            if moved and now - one.told_at >= LINE_SECONDS:
                one.told_at, one.told_round = now, one.standing.round or 0
                self._say(f"{one.work.cell.label}  {'  '.join(self._parts(one, now))}")

    def _parts(self, seen: _Seen, now: float) -> list[str]:
        left, at = seen.left(now), seen.standing
        return [
            f"round {at.round or 0}/{seen.work.cell.rounds}",
            "" if seen.reward is None else f"reward {seen.reward:.3f}",
            "" if at.test_pass is None else f"Pass@1 {at.test_pass:.3f}",
            "" if left is None else f"{duration(left)} left",
        ]

    def _display(self, seen: list[_Seen]) -> Table:
        made = table(f"{len(self._finished)} of {len(self._works)} cells", "", "", "", "")
        for one in seen:
            made.add_row(escape(one.work.cell.label), *self._parts(one, time.monotonic()))
        return made
