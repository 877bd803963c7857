"""A finished cell's kept weights under another evaluation: other questions, samples, lengths.

The evaluation is the workers' own, of the base (shared, as all base evaluations are) and of the
newest checkpoint; it is left under a name beside the cell's own scores (`named.py`). Leaves out
which cells, and where they are scored (the orchestrator).
"""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging as transformers_logging

from grids.cell import Cell
from grids.paths import CellPaths
from workers import named, warm
from workers.checkpoint import newest_weights, restore_weights
from workers.evaluate import Evaluated
from workers.journal import write_outcomes
from workers.lease import Lease, held
from workers.models import Policy, check_context
from workers.named import Record
from workers.preflight import scorable
from workers.provenance import provenance
from workers.scores import Scores


def evaluate_cell(cell: Cell, asked: Cell, name: str, directory: Path, shared: Path) -> Record:
    """Score the weights that a cell has kept, and leave the scores under a name.

    Args:
        cell: as it was trained.
        asked: the same cell with what is to be another: its evaluation, data set, grader, lengths.
        name: of the evaluation; one of that name gives way.
        directory: the cell's own.
        shared: folder of base evaluations that cells share.

    Returns:
        The content of evaluation.json.

    Raises:
        InputError: where the weights are gone or damaged, and for all that `run_cell` raises it
            for. `Held`, one of them, where a worker has the cell.
        Lost: a worker took the cell over; nothing was written after that.
    """
    transformers_logging.disable_progress_bar()
    with held(CellPaths(directory), cell.label, named.told_of_lease) as lease:
        policy = warm.policy(asked)
        check_context(asked, policy.folder)
        questions = warm.questions(scorable(asked), policy)
        engine = warm.engine(asked, policy)
        scores = Scores(asked, questions, engine, lease, shared)
        base = scores.base()
        round = _take_weights(cell, lease, policy)
        trained_on = named.same_questions(asked, cell)
        final = scores.final(round, with_seen=trained_on)
        scored = {"base": base, "final": final}
        record = _record(cell, asked, name, round, scored, questions.notes)
        rows = base.rows + final.rows
        made = provenance(questions.notes)
        named.write(lease, record, lambda path: write_outcomes(path, rows), made)
        return record


def _take_weights(cell: Cell, lease: Lease, policy: Policy) -> int:
    """Put the newest checkpoint's weights into the policy; its round."""
    found = newest_weights(lease.paths.checkpoint, cell.key)
    restore_weights(found, policy.model)
    return found.round


def _record(
    cell: Cell, asked: Cell, name: str, round: int, scored: dict[str, Evaluated],
    notes: tuple[str, ...],
) -> Record:  # fmt: skip
    scores = {phase: evaluated.metrics for phase, evaluated in scored.items()}
    form = named.asked_of_weights(asked)
    return named.record_of(name, cell.key, asked, form, {"round": round}, round, scores, notes)
