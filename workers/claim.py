"""A worker's claim on a cell's directory: is there anything to do, and may it be done here?

Leaves out how a claim is held and lost (`lease.py`).
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths, read_mark
from workers import checkpoint
from workers.journal import Journal
from workers.lease import Lease
from workers.ranks import Lent


def done(cell: Cell, paths: CellPaths) -> dict[str, Any] | None:
    """The mark of a cell that needs nothing more, or None."""
    mark = read_mark(paths.done)
    if mark is None or mark.get("key") != cell.key:
        return None
    return mark if outcome.reached(mark, cell.rounds, cell.eval_key) else None


def take(cell: Cell, lease: Lease) -> None:
    """Write cell.json, and take away what killed attempts left.

    Before cell.json the scores of another evaluation leave the journal, and before them the mark
    that stands for them: a kill in between loses nothing. Raises `InputError` where the directory
    is another cell's.
    """
    paths = lease.paths
    other = _other(paths) or cell
    if other.key != cell.key:
        raise InputError(
            f"{paths.directory} holds another cell ({other.label}, key {other.key}), "
            f"not {cell.label} (key {cell.key}); give each cell a directory of its own"
        )
    _refuse_what_is_gone(cell, paths)
    if other.eval_key != cell.eval_key:
        lease.discard(paths.done)
        Journal(lease).strip_scores()
        lease.discard(paths.outcomes)
    lease.write_json(paths.cell, cell.model_dump(mode="json"))
    checkpoint.sweep(lease)


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
    if mark.get("status") == outcome.FINISHED and not checkpoint.count(paths.checkpoint):
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


def is_tidy(cell: Cell, paths: CellPaths) -> bool:
    """A cell that is done keeps no more than it should: no kill came before `leave`."""
    kept = checkpoint.count(paths.checkpoint)
    return kept <= (1 if cell.keep == "weights" else 0)


def leave(cell: Cell, lease: Lease | Lent) -> None:
    """Take away what a cell that is done need not keep: all but its last checkpoint, or all."""
    checkpoint.prune(lease, kept=1)
    if cell.keep == "none":
        lease.discard(lease.paths.checkpoint)
