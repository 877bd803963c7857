"""What a store says of its cells: the marks that workers leave are the ledger.

A cell is finished or diverged by its `done.json`, failed by its `failed.json`, unfinished where it
has a journal or a checkpoint, else waiting. Where one of these files cannot be read the cell is
damaged: it is named with the file and the line, it is not trained over, and all others go on.
Leaves out which cells are wanted (`plan.py`) and who is at work on them (`holding.py`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grids import outcome
from grids.cell import Cell
from grids.grid import Grid
from grids.outcome import DAMAGED, DIVERGED, FAILED, FINISHED, RUNNING, UNFINISHED, WAITING
from grids.paths import (
    CellPaths,
    DamagedError,
    Store,
    StudyPaths,
    read_json,
    read_lines,
    read_mark,
    write_json,
)  # fmt: skip
from orchestrator.cost_sizes import Sized, sized

DONE: Final = (FINISHED, DIVERGED)
STATES: Final = (*DONE, RUNNING, FAILED, DAMAGED, UNFINISHED, WAITING)

# Why a cell that is trained is to be scored anew.
OTHERWISE: Final = "scored under another evaluation"

TAIL_BYTES = 1 << 16
PLANNED_FILE = "planned.json"


@dataclass(frozen=True)
class Standing:
    """Where one cell stands, as its files tell it."""

    state: str
    round: int | None = None  # of the last journal line; None before round 0 is there
    test_pass: float | None = None  # at the last evaluation
    reason: str | None = None  # why it diverged or failed, or what is damaged
    seconds_ago: float | None = None  # since the journal's last line


def state_of(paths: CellPaths, rounds: int | None, eval_key: str | None) -> str:
    """The state of a cell that should reach `rounds` under `eval_key`; None asks for neither."""
    return standing(paths, rounds, eval_key).state


def standing(paths: CellPaths, rounds: int | None = None, eval_key: str | None = None) -> Standing:
    """Where one cell stands. Raises nothing: what cannot be read is in `state` and `reason`.

    Of a cell that is done the mark alone is read; of any other its whole journal, for training is
    to go on from it.
    """
    try:
        return _standing(paths, rounds, eval_key)
    except DamagedError as error:
        return Standing(DAMAGED, reason=str(error))
    except OSError as error:
        told = f"{error.filename or paths.directory} cannot be read: {error.strerror or error}"
        return Standing(DAMAGED, reason=f"{told}; mend its permissions, or put it back from a copy")


def _standing(paths: CellPaths, rounds: int | None, eval_key: str | None) -> Standing:
    done = _done(paths)
    if done is not None and outcome.reached(done, rounds, eval_key):
        return _of_done(done, paths)
    journal = read_lines(paths.journal)
    last = journal[-1].get("round") if journal else None
    scored = (line[outcome.TEST_PASS] for line in reversed(journal) if outcome.TEST_PASS in line)
    at = (last, next(scored, None))
    if paths.failed.exists():
        reason = (read_mark(paths.failed) or {}).get("error")
        return Standing(FAILED, *at, reason, _age(paths.journal))
    if done is not None or journal or paths.journal.exists() or paths.checkpoint.exists():
        trained = done is not None and outcome.reached(done, rounds, None)
        return Standing(UNFINISHED, *at, OTHERWISE if trained else None, _age(paths.journal))
    return Standing(WAITING)


def _done(paths: CellPaths) -> dict[str, Any] | None:
    """The content of `done.json`. Raises `DamagedError` where it is there and says nothing."""
    try:
        done = read_json(paths.done)
    except NotADirectoryError:
        return None
    except ValueError:  # no JSON, no UTF-8
        done = {}
    if done is not None and not (isinstance(done, dict) and done.get("status") in DONE):
        raise DamagedError(
            f"{paths.done} is damaged; put it back from a copy, or delete it, and the next run "
            "makes it again from the cell's checkpoint"
        )
    return done


def _of_done(done: dict[str, Any], paths: CellPaths) -> Standing:
    """A result: its mark holds what the journal ends with."""
    state, final = str(done["status"]), done.get("final") or {}
    at = done.get("diverged_round") if state == DIVERGED else done.get("rounds")
    reason = done.get("reason") if state == DIVERGED else None
    return Standing(state, at, final.get(outcome.TEST_PASS), reason, _age(paths.journal))


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def last_line(journal: Path) -> dict[str, Any] | None:
    """The last whole line of a journal, read from its end. Raises `ValueError` for a damaged one.

    For what is looked at often; `standing` reads all lines.
    """
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


def cell_keys(study: StudyPaths) -> list[str]:
    """Keys of the cells that have a folder; none where they cannot be listed."""
    try:
        return sorted(os.listdir(study.cells))
    except OSError:
        return []


def planned(study: StudyPaths) -> dict[str, Any]:
    """What `run` was last asked for: grid -> cell key -> label, rounds and eval_key."""
    found = read_mark(study.directory / PLANNED_FILE) or {}
    return dict(found.get("grids", {}))


def note_planned(study: StudyPaths, grid: Grid, cells: dict[str, Cell]) -> None:
    """Remember a grid's cells, so that `status` can name those that no worker has begun."""
    note_cells(study, grid.name, cells)


def note_cells(study: StudyPaths, name: str, cells: dict[str, Cell]) -> None:
    """Remember the cells that a grid or one of its searches wants, and what decides their cost."""
    entry, sizes = {}, dict[Sized, str]()  # cells that differ in their seed alone share a size
    for key, cell in cells.items():
        size = sizes.setdefault(sized(cell), str(len(sizes)))
        about = {"label": cell.label, "rounds": cell.rounds, "eval_key": cell.eval_key}
        entry[key] = {**about, "size": size}
    known, costs = planned(study), planned_sizes(study)
    told = {number: size._asdict() for size, number in sizes.items()}
    if known.get(name) != entry or costs.get(name) != told:
        content = {"grids": {**known, name: entry}, "sizes": {**costs, name: told}}
        write_json(study.directory / PLANNED_FILE, content)


def planned_sizes(study: StudyPaths) -> dict[str, Any]:
    """What decides the cost of the cells that `run` was last asked for: grid -> number -> size."""
    found = read_mark(study.directory / PLANNED_FILE) or {}
    return dict(found.get("sizes", {}))
