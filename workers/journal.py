"""A cell's journal, timings, samples and outcomes on disk.

The journal holds only what is reproducible, one JSON line a round, and is the truth about a cell;
`timings.jsonl` holds what is not. Both are cut back to the checkpoint when a cell goes on. Leaves
out names of files and metrics (`grids.outcome`) and sending them anywhere (the orchestrator).
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from grids.outcome import OUTCOME_COLUMNS
from grids.paths import read_lines
from workers import memory, ranks
from workers.lease import Lease
from workers.ranks import Lent

_SCHEMA = pa.schema(
    [
        ("phase", pa.string()), ("round", pa.int64()), ("split", pa.string()),
        ("decoding", pa.string()), ("question", pa.string()), ("sample", pa.int64()),
        ("correct", pa.float64()), ("parsed", pa.bool_()), ("truncated", pa.bool_()),
        ("tokens", pa.int64()), ("completion", pa.string()),
    ]
)  # fmt: skip


class _Clocks(NamedTuple):
    """Seconds of the wall and of this process's processors, from some beginning."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> _Clocks:
        return cls(time.perf_counter(), time.process_time())


class Journal:
    """Writes the line-by-line files of one cell, under its lease."""

    def __init__(self, lease: Lease | Lent) -> None:
        self.lease, self.paths = lease, lease.paths
        self._last = _Clocks.now()

    def rounds(self) -> list[dict[str, Any]]:
        """The lines so far; a half-written last line is not one. All processes of a cell ask."""
        return ranks.told(lambda: read_lines(self.paths.journal))

    def cut_back(self, last_round: int) -> None:
        """Drop all lines of later rounds, for they will be written again.

        The files are new ones, where there is nothing to drop too: a former holder of the lease may
        still have the old ones open.
        """
        for path in (self.paths.journal, self.paths.timings, self.paths.samples):
            kept = [line for line in read_lines(path) if line["round"] <= last_round]
            self.lease.replace_text(path, "".join(map(_line, kept)))

    def strip_scores(self) -> None:
        """Take the scores of all rounds away, for they are of another evaluation."""
        lines = [{k: v for k, v in line.items() if not is_evaluation(k)} for line in self.rounds()]
        self.lease.replace_text(self.paths.journal, "".join(map(_line, lines)))

    def score(self, round: int, scores: dict[str, float]) -> None:
        """Put scores into the line of a round that is already written."""
        lines = [line | (scores if line["round"] == round else {}) for line in self.rounds()]
        self.lease.replace_text(
            self.paths.journal, "".join(_line(_ordered(line)) for line in lines)
        )

    def write(self, round: int, metrics: dict[str, float]) -> dict[str, Any]:
        """Append a round's line, on disk when this returns."""
        line = _ordered({"round": round} | metrics)
        self._append(self.paths.journal, [line], durable=True)
        return line

    def time(self, number: int, seconds: dict[str, float], attempt: int) -> None:
        """Append a round's seconds by phase, to the millisecond, and what this process took:
        seconds of its own and of processors since the line before, bytes now; and when it was."""
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        before, self._last = self._last, _Clocks.now()
        line = {"round": number, "host": socket.gethostname(), "attempt": attempt}
        took = {
            "seconds": round(self._last.wall - before.wall, 3),
            "cpu_seconds": round(self._last.cpu - before.cpu, 3),
            **memory.now(),
            "time": round(time.time(), 3),
        }
        self._append(self.paths.timings, [line | {"seconds": rounded, "process": took}])

    def show(self, samples: Iterable[dict[str, Any]]) -> None:
        """Append samples for people to read."""
        self._append(self.paths.samples, samples)

    def _append(self, path: Path, lines: Iterable[dict[str, Any]], durable: bool = False) -> None:
        self.lease.append(path, map(_line, lines), durable)


def is_evaluation(metric: str) -> bool:
    """Whether a journal's metric is of an evaluation and not of training."""
    return metric.startswith(("test/", "val/", "train/pass_at_1"))


def write_outcomes(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write graded answers as parquet."""
    columns = {name: [row[name] for row in rows] for name in OUTCOME_COLUMNS}
    pq.write_table(pa.table(columns, schema=_SCHEMA), path, compression="zstd")


def read_outcomes(path: Path) -> list[dict[str, Any]]:
    """The rows of an outcomes file."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _ordered(line: dict[str, Any]) -> dict[str, Any]:
    """The round first, then metrics by name: equal content gives equal lines."""
    return {"round": line["round"]} | dict(sorted(line.items()))


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=True) + "\n"
