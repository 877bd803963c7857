"""Which cell gets the next free slot: the one place that decides, for one driver.

In the plan's order: first what nobody holds. Cells that another driver's worker holds are watched,
and taken when they are given up. A cell that failed comes again after the others, one whose worker
was lost or preempted before them, so that seeds stay balanced; after so many attempts without a
later checkpoint a cell counts as failed. Nothing is kept: the store tells a new driver all that it
needs. Leaves out Ray (`cluster.py`) and what a worker does (`trainable.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from grids.outcome import ENGINE_DIED, FAILED, LOST, OUT_OF_MEMORY, PREEMPTED, STOPPED
from grids.paths import CellPaths, Store
from orchestrator.attempts import (
    BLIND,
    HELD,
    MISTAKE,
    Result,
    attempts,
    checkpoint_round,
    give_up,
)
from orchestrator.holding import asked_to_leave
from orchestrator.ledger import DONE, state_of
from orchestrator.plan import Work
from orchestrator.progress import Progress
from workers import lease

ATTEMPTS: Final = 3  # without a later checkpoint, until a cell counts as failed
BROKEN_STARTS: Final = 5  # workers that died before they had the cell
POLL_SECONDS: Final = 2.0
WAITING, GIVEN, ELSEWHERE, ENDED = "waiting", "given", "elsewhere", "ended"


@dataclass(eq=False)
class Item:
    """A cell on its way.

    Attributes:
        place: waiting, given to a worker of ours, elsewhere (another driver's), or ended.
        state, reason: how it ended, as `ledger.Standing` or `STOPPED`.
        began: a worker of ours had it.
        round, epoch: newest checkpoint and lease when it was given.
        tries: failed attempts since the last that made progress.
        broken: workers that died before they had it.
        engines: that died in it since it last made progress.
        stale: epoch of a dead holder's lease.
        halved: rows_per_pass is, since memory ran out.
        doomed: why it will count as failed as soon as nobody holds it.
    """

    work: Work
    paths: CellPaths
    place: str = WAITING
    state: str = ""
    reason: str = ""
    began: bool = False
    round: int | None = None
    epoch: int = 0
    tries: int = 0
    broken: int = 0
    engines: int = 0
    stale: int | None = None
    halved: bool = False
    doomed: str | None = None

    @property
    def where(self) -> tuple[str, str]:
        return self.work.study, self.work.cell.key


class Queue:
    """Hands out the cells of a plan."""

    def __init__(
        self, works: Iterable[Work], store: Store, progress: Progress,
        slots: Callable[[], int], limit: int = ATTEMPTS,
    ) -> None:  # fmt: skip
        self.items = [Item(work, work.paths(store)) for work in works]
        self._by_key = {item.where: item for item in self.items}
        self._waiting = list(self.items)
        self._elsewhere: list[Item] = []
        self._given: set[tuple[str, str]] = set()
        self._store, self._progress, self._slots, self._limit = store, progress, slots, limit
        self._studies = sorted({item.work.study for item in self.items})
        self._watch = lease.Watch()
        self._looked = 0.0
        self.stopping = False
        self.leaving = False  # its workers' machines are wanted for something else
        self.spent: float | None = None  # GPU-hours, from when they are too many on
        self.more: Callable[[], Iterable[Work]] | None = None  # what follows from those that ended
        self._to_ask = False  # one has ended since `more` was asked

    @property
    def finished(self) -> bool:
        """Nothing waits for a slot, nothing that a worker has can come back or lead to more."""
        return not (self._waiting or self._elsewhere or self._given or self._to_ask)

    def settle(self) -> None:
        """At the end: what the store says of cells whose worker was cut short."""
        for item in self.items:
            if item.place != ENDED:
                cell = item.work.cell
                state = state_of(item.paths, cell.rounds, cell.eval_key)
                item.state = state if state in DONE else ""

    def next(self) -> Item | None:
        """The cell for a free slot; None where there is no slot or no cell just now, or where the
        store does not answer: then later."""
        try:
            self._look_around()
            self._grow()
            if len(self._given) < self._slots():
                return self._first_free()
        except OSError:
            pass
        return None

    def _grow(self) -> None:
        """Take up what follows from cells that have ended, before all that waits."""
        if self._to_ask and self.more is not None:
            works = () if self._is_stopping() else self.more()
            added = [item for work in works if (item := self._taken_up(work)) is not None]
            self._waiting[:0] = added
            self._to_ask = False

    def _taken_up(self, work: Work) -> Item | None:
        """The item of a new cell, or of one that has ended and is to go on."""
        made = Item(work, work.paths(self._store))
        item = self._by_key.setdefault(made.where, made)
        if item is made:
            self.items.append(item)
        elif (
            item.place == ENDED and item.state in DONE and item.work.cell.rounds < work.cell.rounds
        ):
            item.work, item.place, item.state, item.reason = work, WAITING, "", ""
            item.tries = item.broken = item.engines = 0
            item.paths.leave.unlink(missing_ok=True)  # it was for the run before
        else:
            return None
        self._progress.add(work)
        return item

    def _first_free(self) -> Item | None:
        while self._waiting:
            item = self._waiting[0]
            settled = self._settled(item)
            holder = None if settled else lease.read(item.paths)
            free = settled or self._watch.is_free(item.paths, holder)
            given = self._give(item, holder) if free and not settled else None
            self._waiting.remove(item)  # last: until here nothing has changed that cannot again
            if given is not None:
                return given
            if not free:
                self._put_elsewhere(item)
        return None

    def _settled(self, item: Item) -> bool:
        """Another driver's worker has finished it, or somebody does not want it now."""
        cell = item.work.cell
        state = state_of(item.paths, cell.rounds, cell.eval_key)
        if state in DONE:
            self._end(item, state)
        elif item.doomed is not None and item.place == WAITING:
            self._give_up(item)
        elif asked_to_leave(item.paths) == STOPPED or self._is_stopping():
            self._end(item, STOPPED)
        return item.place == ENDED

    def _is_stopping(self) -> bool:
        """Somebody asked for a whole study to be stopped, or the GPU-hours are spent."""
        studies = map(self._store.study, self._studies)
        self.stopping = self.stopping or any(asked_to_leave(s) == STOPPED for s in studies)
        return self.stopping or self.spent is not None

    def _give(self, item: Item, holder: lease.Holder | None) -> Item:
        item.place, item.epoch = GIVEN, holder.epoch if holder else 0
        item.stale = holder.epoch if holder and not holder.released else None
        item.round = checkpoint_round(item.paths)
        item.paths.leave.unlink(missing_ok=True)  # it was for the worker before
        before = attempts(item.paths)
        item.halved |= any(a.get("how") == OUT_OF_MEMORY or a.get("rows_per_pass") for a in before)
        self._given.add(item.where)
        return item

    def given(self) -> list[Item]:
        """Cells that a worker of ours has, or is about to get."""
        return [self._by_key[where] for where in self._given]

    # ---- what becomes of it

    def started(self, where: tuple[str, str]) -> None:
        """A worker process begins."""
        self._by_key[where].began = True
        self._progress.start(*where)

    def returned(self, where: tuple[str, str], result: Result) -> None:
        """The worker is through with the cell, in one of many ways."""
        item, how, reason = self._by_key[where], result["how"], result["reason"]
        self._given.discard(where)
        if how in DONE or how == STOPPED:
            self._is_stopping()
            self._end(item, how, reason)
        elif how == MISTAKE:
            self._end(item, FAILED, reason)
        elif how in (HELD, LOST):
            self._put_elsewhere(item)
        elif how == PREEMPTED:
            self._again(item, "its machine is wanted for something else", first=True)
        elif how == BLIND:
            self._broken_start(item, reason)
        else:
            self._failed(item, how, reason)

    def died(self, where: tuple[str, str], error: str) -> None:
        """The worker process is gone, or out of reach, without a word."""
        item = self._by_key[where]
        if item.place != GIVEN:
            return
        self._given.discard(where)
        if self._settled(item):
            return
        holder = lease.read(item.paths)
        last = next(iter(attempts(item.paths)[::-1]), {})
        if holder is None or holder.epoch == item.epoch:
            self._broken_start(item, error)
        elif last.get("attempt", 0) > item.epoch:  # it could tell, and ended itself then
            how = MISTAKE if last.get("final") else last["how"]
            self.returned(where, Result(how=how, reason=last["reason"]))
        else:
            told = "its worker died (out of memory, a crash, or its host lost)"
            self._failed(item, LOST, told)

    def _failed(self, item: Item, how: str, reason: str) -> None:
        """Once more where there is hope: from a later checkpoint, with less memory, or with another
        engine, that one time whatever else was tried."""
        progress = (checkpoint_round(item.paths) or 0) > (item.round or 0)
        item.tries = 1 if progress else item.tries + 1
        out_again = how == OUT_OF_MEMORY and item.halved
        item.halved |= how == OUT_OF_MEMORY
        if how == ENGINE_DIED:
            item.engines = 1 if progress else item.engines + 1
        spent = item.engines > 1 if how == ENGINE_DIED else item.tries >= self._limit
        if spent or out_again:
            self._doom(item, reason)
        else:
            self._again(item, reason, first=how == LOST)

    def _broken_start(self, item: Item, reason: str) -> None:
        item.broken += 1
        if item.broken >= BROKEN_STARTS:
            self._doom(item, reason)
        else:
            self._again(item, reason)

    def _again(self, item: Item, reason: str, first: bool = False) -> None:
        item.place = WAITING
        self._progress.lose(*item.where, reason)
        self._waiting.insert(0 if first else len(self._waiting), item)

    def _doom(self, item: Item, reason: str) -> None:
        """A cell counts as failed; said in the store as soon as nobody holds it."""
        item.doomed = reason
        if item.paths.failed.exists():  # the worker could say so itself
            self._end(item, FAILED, reason)
        else:
            self._put_elsewhere(item)

    def _give_up(self, item: Item) -> None:
        cell, reason = item.work.cell, item.doomed or ""
        holder = lease.read(item.paths)
        give_up(item.paths, cell.key, cell.label, reason, holder.epoch if holder else None)
        self._end(item, FAILED, reason)

    def _end(self, item: Item, state: str, reason: str = "") -> None:
        item.place, item.state, item.reason = ENDED, state, reason
        self._to_ask = self.more is not None
        self._progress.finish(*item.where, state, reason)

    # ---- other drivers' cells

    def _put_elsewhere(self, item: Item) -> None:
        item.place = ELSEWHERE
        self._elsewhere.append(item)
        if item.doomed is None:
            self._progress.elsewhere(*item.where)

    def _look_around(self) -> None:
        """Every two seconds: is what others hold done, or free?"""
        now = time.monotonic()
        if now - self._looked < POLL_SECONDS:
            return
        self._looked = now
        self._is_stopping()
        for item in list(self._elsewhere):
            if self._watch.is_free(item.paths, lease.read(item.paths)):
                item.place = WAITING
                self._waiting.insert(0, item)
                self._elsewhere.remove(item)
            elif self._settled(item):
                self._elsewhere.remove(item)
