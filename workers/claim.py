"""A worker's claim on a cell's directory: is there anything to do, and may it be done here?

Leaves out a lease that holds between machines which do not share locks.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths, read_mark, write_json
from workers import checkpoint
from workers.journal import Journal

LOCK, SCRATCH = ".lock", ".scratch-"


def done(cell: Cell, paths: CellPaths) -> dict[str, Any] | None:
    """The mark of a cell that needs nothing more, or None."""
    mark = read_mark(paths.done)
    if mark is None or mark.get("key") != cell.key:
        return None
    return mark if outcome.reached(mark, cell.rounds, cell.eval_key) else None


@contextmanager
def claimed(cell: Cell, paths: CellPaths) -> Iterator[None]:
    """Hold the cell's directory, for one process at a time; the system lets go when it ends.

    Raises `InputError` where another process holds it, or it holds another cell.
    """
    paths.directory.mkdir(parents=True, exist_ok=True)
    with (paths.directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{cell.label}: another process is training this cell in {paths.directory}; "
                "wait for it, or stop it"
            ) from None
        _take(cell, paths)
        _sweep(paths)
        yield


def _take(cell: Cell, paths: CellPaths) -> None:
    """Write cell.json. Before it the scores of another evaluation leave the journal, and before
    them the mark that stands for them: a kill in between loses nothing."""
    other = _other(paths) or cell
    if other.key != cell.key:
        raise InputError(
            f"{paths.directory} holds another cell ({other.label}, key {other.key}), "
            f"not {cell.label} (key {cell.key}); give each cell a directory of its own"
        )
    _refuse_what_is_gone(cell, paths)
    if other.eval_key != cell.eval_key:
        paths.done.unlink(missing_ok=True)
        Journal(paths).strip_scores()
        paths.outcomes.unlink(missing_ok=True)
    write_json(paths.cell, cell.model_dump(mode="json"))


def _other(paths: CellPaths) -> Cell | None:
    """The cell that the directory holds; None where there is none, or none that can be read."""
    try:
        kept = read_mark(paths.cell)
        return Cell.model_validate(kept) if kept else None
    except ValidationError:
        return None


def _refuse_what_is_gone(cell: Cell, paths: CellPaths) -> None:
    """A finished cell without its weights cannot go on: training it anew must be asked for."""
    mark = read_mark(paths.done) or {}
    if mark.get("status") == outcome.FINISHED and not checkpoint.exists(paths.checkpoint):
        raise InputError(
            f"{cell.label}: finished at round {mark['rounds']} and its weights were not kept, so "
            "it can neither go on nor be scored anew; ask for the rounds and evaluation that it "
            f"has, or delete {paths.directory} to train it again"
        )


def refuse_a_shorter_run(cell: Cell, paths: CellPaths, trained: int) -> None:
    """Going back would throw away rounds that another grid may want."""
    if trained > cell.rounds:
        raise InputError(
            f"{cell.label}: has trained to round {trained}, beyond rounds: {cell.rounds}; ask for "
            f"at least {trained} rounds, or delete {paths.directory} to train it again"
        )


def _sweep(paths: CellPaths) -> None:
    """Take away what killed attempts left half written; only workers write under these names."""
    checkpoint.sweep(paths.checkpoint)
    files = (paths.cell, paths.journal, paths.timings, paths.samples, paths.outcomes)
    for path in (*files, paths.provenance, paths.done):
        for left in paths.directory.glob(f".{path.name}.*"):
            left.unlink(missing_ok=True)
    for folder in paths.directory.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)


def leave(cell: Cell, paths: CellPaths) -> None:
    """Take away what a cell that is done need not keep: all but its last checkpoint, or all."""
    checkpoint.prune(paths.checkpoint, kept=1)
    if cell.keep == "none":
        shutil.rmtree(paths.checkpoint, ignore_errors=True)
