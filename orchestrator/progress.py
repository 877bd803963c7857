"""The cells of a run as they go: counts, the time left, and a line for each that is running.

A live table where there is a terminal that can redraw, else plain lines: one a cell at its start
and end, at most one in ten seconds between, and once a minute one for all. Only running cells are
read from the store. Leaves out what a cell's files tell (`watching.py`) and the summary at the end.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from grids.outcome import DAMAGED, FAILED, FINISHED, PREEMPTED, STOPPED
from grids.paths import Store
from orchestrator.ledger import DONE, standing
from orchestrator.order import work_estimate
from orchestrator.plan import Work
from orchestrator.show import bytes_for_people, counted, duration
from orchestrator.watching import Seen

POLL_SECONDS: Final = 2.0
LINE_SECONDS: Final = 10.0
OVERALL_SECONDS: Final = 60.0
NARROW: Final = 60  # columns, below which a table is no help

Where = tuple[str, str]


class Progress:
    """Watches the cells that were started and not yet finished; a context manager."""

    def __init__(self, works: Iterable[Work], store: Store, out: Console) -> None:
        self._store, self._out = store, out
        self._works: dict[Where, Work] = {(work.study, work.cell.key): work for work in works}
        self._cost = {where: work_estimate(work) for where, work in self._works.items()}
        self._running: dict[Where, Seen] = {}
        self._elsewhere: set[Where] = set()
        self._ended: dict[Where, str] = {}
        self._began: float | None = None
        self._overall_at = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        redraws = out.is_terminal and not out.is_dumb_terminal and out.width >= NARROW
        self._live = Live(console=out, auto_refresh=False) if redraws else None

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

    # ---- what the driver tells

    def add(self, work: Work) -> None:
        """One more cell, or one that has ended, to a longer horizon."""
        where = (work.study, work.cell.key)
        with self._lock:
            self._works[where], self._cost[where] = work, work_estimate(work)
            self._ended.pop(where, None)

    def start(self, study: str, key: str) -> None:
        """A worker has the cell."""
        where, now = (study, key), time.monotonic()
        work = self._works[where]
        with self._lock:
            self._began = self._began or now
            self._elsewhere.discard(where)
            self._running[where] = Seen(work, self._store, now, now)
        if self._live is None:
            again = f", from round {work.round}" if work.round else ""
            self._say(f"{work.cell.label}  started{again}")

    def finish(self, study: str, key: str, status: str, reason: str) -> None:
        """The cell needs no worker any more in this run."""
        where = (study, key)
        with self._lock:
            seen = self._running.pop(where, None)
            self._elsewhere.discard(where)
            self._ended[where] = status
        if seen is None and status in (STOPPED, PREEMPTED):
            return  # never begun: the counts tell it
        work = self._works[where]
        took = f"  {duration(time.monotonic() - seen.since)}" if seen else ""
        why = f": {reason.splitlines()[0]}" if reason else ""
        told = f"{work.cell.label}  {status}{why}{self._score(work, status)}{took}"
        style = "red" if status in (FAILED, DAMAGED) else ""
        self._say(f"{told}  [{len(self._ended)}/{len(self._works)}]", style)

    def _score(self, work: Work, status: str) -> str:
        if status not in DONE:
            return ""
        scored = standing(work.paths(self._store)).test_pass
        return "" if scored is None else f"  Pass@1 {scored:.3f}"

    def lose(self, study: str, key: str, told: str) -> None:
        """The worker is gone, for the reason that is told; the cell is given another later."""
        with self._lock:
            self._running.pop((study, key), None)
            self._elsewhere.discard((study, key))
        why = f": {told.splitlines()[0]}" if told else ""
        self._say(f"{self._works[study, key].cell.label}  given another worker later{why}", "red")

    def elsewhere(self, study: str, key: str) -> None:
        """Another driver's worker has the cell."""
        where = (study, key)
        with self._lock:
            known = where in self._elsewhere
            self._elsewhere.add(where)
            self._running.pop(where, None)
        if not known:
            self._say(f"{self._works[where].cell.label}  another driver's worker has it")

    def running(self) -> list[Work]:
        """Cells that a worker of this driver has."""
        with self._lock:
            return [seen.work for seen in self._running.values()]

    # ---- what people see

    def _say(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style=style), soft_wrap=True)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with self._lock:
                running = list(self._running.values())
            for seen in running:
                seen.look()
            if self._live:
                self._live.update(self._display(running), refresh=True)
            else:
                self._tell(running)

    def _tell(self, running: list[Seen]) -> None:
        now = time.monotonic()
        for seen in running:
            parts = "  ".join(filter(None, _parts(seen)))
            if parts != seen.told and now - seen.told_at >= LINE_SECONDS:
                seen.told_at, seen.told = now, parts
                self._say(f"{seen.work.cell.label}  {parts}")
        if now - self._overall_at >= OVERALL_SECONDS:
            self._overall_at = now
            self._say(self.headline())

    def _display(self, running: list[Seen]) -> Group:
        made = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(6):
            made.add_column(no_wrap=True, overflow="ellipsis")
        room = max(1, self._out.height - 4)
        for seen in running[:room]:
            made.add_row(*map(Text, [seen.work.cell.label, *_parts(seen)]))
        hidden = len(running) - room
        more = [Text(f"and {hidden} more running")] if hidden > 0 else []
        return Group(Text(self.headline(), style="bold"), made, *more)

    def headline(self) -> str:
        """Counts of all cells of the run, and the time left."""
        with self._lock:
            ended = Counter(self._ended.values())
            counts = {"running": len(self._running), "elsewhere": len(self._elsewhere)}
            waiting = len(self._works) - len(self._ended) - sum(counts.values())
        done = {"done": ended.pop(FINISHED, 0), **ended}
        parts = {"waiting": waiting, **counts, **done}
        told = ", ".join(f"{number:,} {name}" for name, number in parts.items() if number)
        left = self._seconds_left()
        about = "" if left is None else f"; about {duration(left)} left"
        return f"{counted(len(self._works), 'cell')}: {told}{about}"

    def _seconds_left(self) -> float | None:
        """At the speed of this run so far, but no less than what its slowest running cell needs.

        None before anything is made. Cells that another driver's worker has are not counted.
        """
        with self._lock:
            running, ended = dict(self._running), dict(self._ended)
            apart = self._elsewhere | ended.keys()
        if self._began is None:
            return None
        made = sum(self._cost[where] for where, status in ended.items() if status == FINISHED)
        made += (partly := sum(self._cost[w] * seen.share for w, seen in running.items()))
        if made <= 0:
            return None
        left = sum(cost for where, cost in self._cost.items() if where not in apart) - partly
        slowest = max((seen.left or 0.0 for seen in running.values()), default=0.0)
        return max(slowest, left * (time.monotonic() - self._began) / made)


def _parts(seen: Seen) -> list[str]:
    """What is known of a running cell; empty where it is not."""
    tail, rounds = seen.tail, seen.work.cell.rounds
    return [
        seen.doing if tail.round is None else f"round {tail.round}/{rounds}",
        "" if tail.reward is None else f"reward {tail.reward:.3f}",
        "" if tail.test_pass is None else f"Pass@1 {tail.test_pass:.3f}",
        "" if seen.left is None else f"{duration(seen.left)} left",
        "" if seen.peak_bytes is None else bytes_for_people(seen.peak_bytes),
    ]
