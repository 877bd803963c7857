"""One running cell, watched from outside: its journal as it grows, its timings, its lease.

Nothing is asked of the worker, so a lost one cannot block who looks. What cannot be read just now
keeps its last value. Leaves out how it is shown (`progress.py`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from grids import outcome
from grids.paths import Store
from orchestrator.holding import seconds_left
from orchestrator.plan import Work
from workers import lease

STARTING: Final = "starting"
BASE: Final = "base evaluation"
FILLING: Final = "filling replay"


@dataclass
class Tail:
    """The newest values of a journal, of which only what was added is read.

    A worker that goes on from a checkpoint puts a shorter file in its place: it is read anew.
    """

    path: Path
    round: int | None = None
    reward: float | None = None
    test_pass: float | None = None
    _file: int = -1
    _read: int = 0

    def look(self) -> None:
        """Raises `OSError` where the store does not answer."""
        try:
            with self.path.open("rb") as file:
                self._begin_anew_where_replaced(file.fileno())
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def _begin_anew_where_replaced(self, descriptor: int) -> None:
        stat = os.fstat(descriptor)
        if stat.st_ino != self._file or stat.st_size < self._read:
            self._file, self._read = stat.st_ino, 0
            self.round = self.reward = self.test_pass = None

    def _take(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            self.round = int(told["round"])
        except (ValueError, TypeError, KeyError):
            return  # damaged: the worker, which must go on from it, says so
        self.reward = told.get(outcome.REWARD, self.reward)
        self.test_pass = told.get(outcome.TEST_PASS, self.test_pass)


@dataclass
class Seen:
    """One running cell, from the moment that the driver saw it start."""

    work: Work
    store: Store
    since: float
    told_at: float
    told: str = ""
    doing: str = STARTING  # before round 0 is in the journal
    left: float | None = None  # seconds
    peak_bytes: int | None = None
    tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        self.tail = Tail(self.work.paths(self.store).journal)

    @property
    def share(self) -> float:
        """Of what was left when it was planned, what is done by now."""
        todo = self.work.rounds_left
        made = (self.tail.round or 0) - self.work.round
        return min(1.0, max(0, made) / todo) if todo else 0.0

    def look(self) -> None:
        """Read what the cell's files tell now."""
        paths = self.work.paths(self.store)
        try:
            self.tail.look()
            holder = lease.read(paths)
            if self.tail.round is None:
                self.doing = STARTING if _is_free(holder) else self._before_the_first()
        except OSError:
            return
        self.left = seconds_left(paths, self.tail.round, self.work.cell.rounds)
        if holder is not None and not holder.released:
            self.peak_bytes = holder.peak_gpu_bytes or holder.peak_rss_bytes or self.peak_bytes

    def _before_the_first(self) -> str:
        """What takes a worker's time before it writes round 0."""
        cell, study = self.work.cell, self.store.study(self.work.study)
        if not (study.shared / cell.base_key / "metrics.json").exists():
            return BASE
        return FILLING if cell.replay and cell.replay_fill == "base" else STARTING


def _is_free(holder: lease.Holder | None) -> bool:
    return holder is None or holder.released
