"""In which order cells run: by priority, seed by seed, and within a seed the longest first.

A study that is stopped early is then balanced: every arm of a seed, of every contrast and grid, is
before every cell of the next seed, in the order in which the grids list seeds. The longest first
keeps all slots busy to the end. Cells that cost the same run model by model, so that a warm worker
finds its model again; else they keep their grid's order. Leaves out where they run (`cluster.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from grids.cell import Cell
from workers.footprint import UNCOUNTED_ROWS

if TYPE_CHECKING:
    from orchestrator.plan import Work

T = TypeVar("T")
# What a token costs, in forward passes of the model over one token of a wide pass. Sampling goes
# token by token, and its passes are narrow.
SAMPLED, SCORED, TRAINED = 4.0, 1.0, 3.0
# Of the longest allowed, what a response takes.
USED = 0.5


def ordered(works: Sequence[Work]) -> list[Work]:
    """The works in the order in which they are to run."""
    seeds = _ranks(work.cell.seed for work in works)
    models = _ranks(work.cell.model for work in works)
    return sorted(
        works,
        key=lambda work: (
            -work.rank, seeds[work.cell.seed], -work_estimate(work), models[work.cell.model]
        ),
    )  # fmt: skip


def _ranks(values: Iterable[T]) -> dict[T, int]:
    """Each value's place by its first appearance."""
    return {value: place for place, value in enumerate(dict.fromkeys(values))}


def work_estimate(work: Work) -> float:
    """The cost of what is left of a cell, to compare cells with; its unit is no second.

    Parameters × tokens, by what is done with them: rollouts still to draw, the rows that take
    gradient, those whose reference is scored for a KL, evaluations. A model whose number of
    parameters is unknown counts as one of one parameter.
    """
    cell = work.cell
    if not work.todo:
        return 0.0
    filled = cell.filled_samples if not work.begun else 0
    tokens = work.rounds_left * _round_tokens(cell) + filled * SAMPLED * _response(cell)
    tokens += _answers(work) * SAMPLED * _response(cell)
    return tokens * (cell.model_spec.parameters or 1.0)


def _round_tokens(cell: Cell) -> float:
    trained = cell.rows_per_update * cell.updates_per_round
    row = cell.max_prompt * USED + _response(cell)
    passes = TRAINED + (SCORED if cell.kl else 0.0)
    return cell.generated_per_step * SAMPLED * _response(cell) + trained * passes * row


def _response(cell: Cell) -> float:
    return cell.max_response * USED


def _answers(work: Work) -> int:
    """Answers that are left to evaluations: greedy ones each time, samples at base and final."""
    cell, base = work.cell, 0 if work.begun else 1
    tests = cell.eval.test_questions or cell.dataset_spec.test_rows or UNCOUNTED_ROWS
    due = max(1, cell.rounds // cell.eval.every - work.round // cell.eval.every)
    times = due + base + cell.eval.samples * (1 + base)
    return (tests + cell.eval.train_questions) * times
