"""What a store says of its cells: the marks that workers leave are the ledger.

A cell is finished or diverged by its `done.json`, failed by its `failed.json`, unfinished where it
has a journal or a checkpoint, else waiting. Leaves out which cells are wanted (`plan.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grids import outcome
from grids.cell import Cell
from grids.grid import Grid
from grids.outcome import DIVERGED, FAILED, FINISHED, UNFINISHED, WAITING
from grids.paths import CellPaths, Store, StudyPaths, read_mark, write_json

DONE: Final = (FINISHED, DIVERGED)
STATES: Final = (*DONE, FAILED, UNFINISHED, WAITING)

TAIL_BYTES = 1 << 16
PLANNED_FILE = "planned.json"


@dataclass(frozen=True)
class Standing:
    """Where one cell stands, as its files tell it."""

    state: str
    round: int | None = None  # of the last journal line
    test_pass: float | None = None  # at the last evaluation
    reason: str | None = None  # why it diverged or failed
    seconds_ago: float | None = None  # since the journal's last line


def state_of(paths: CellPaths, rounds: int | None, eval_key: str | None) -> str:
    """The state of a cell that should reach `rounds` under `eval_key`; None asks for neither.

    A `done.json` that does not parse counts as absent: the worker then goes on from its checkpoint.
    """
    done = read_mark(paths.done)
    if done is not None and outcome.reached(done, rounds, eval_key):
        return str(done["status"])
    if paths.failed.exists():
        return FAILED
    if done is not None or paths.journal.exists() or paths.checkpoint.exists():
        return UNFINISHED
    return WAITING


def standing(paths: CellPaths, rounds: int | None = None, eval_key: str | None = None) -> Standing:
    """State, last round and last Pass@1 of one cell."""
    state = state_of(paths, rounds, eval_key)
    last = last_line(paths.journal) or {}
    reason = None
    if state == FAILED:
        reason = (read_mark(paths.failed) or {}).get("error")
    elif state == DIVERGED:
        reason = (read_mark(paths.done) or {}).get("reason")
    return Standing(
        state, last.get("round"), last_value(paths.journal, outcome.TEST_PASS), reason,
        _age(paths.journal),
    )  # fmt: skip


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def last_line(journal: Path) -> dict[str, Any] | None:
    """The last whole line of a journal, read from its end."""
    return next(_backwards(journal, TAIL_BYTES), None)


def last_value(journal: Path, metric: str) -> float | None:
    """The newest value of a metric that only some lines hold."""
    for limit in (TAIL_BYTES, None):
        for line in _backwards(journal, limit):
            if metric in line:
                return float(line[metric])
    return None


def _backwards(journal: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    """Whole lines within the last `limit` bytes, newest first."""
    try:
        with journal.open("rb") as file:
            size = file.seek(0, 2)
            start = 0 if limit is None else max(0, size - limit)
            file.seek(start)
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    for line in reversed(lines[1:] if start else lines):  # the first may be cut
        yield json.loads(line)


def studies(store: Store) -> list[str]:
    """Names of the studies in a store."""
    folders = sorted(store.root.iterdir()) if store.root.is_dir() else []
    return [f.name for f in folders if (f / "cells").is_dir() or (f / PLANNED_FILE).is_file()]


def planned(study: StudyPaths) -> dict[str, Any]:
    """What `run` was last asked for: grid -> cell key -> label, rounds and eval_key."""
    found = read_mark(study.directory / PLANNED_FILE) or {}
    return dict(found.get("grids", {}))


def note_planned(study: StudyPaths, grid: Grid, cells: dict[str, Cell]) -> None:
    """Remember a grid's cells, so that `status` can name those that no worker has begun."""
    entry = {
        key: {"label": cell.label, "rounds": cell.rounds, "eval_key": cell.eval_key}
        for key, cell in cells.items()
    }
    known = planned(study)
    if known.get(grid.name) != entry:
        write_json(study.directory / PLANNED_FILE, {"grids": {**known, grid.name: entry}})
