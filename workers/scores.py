"""A cell's evaluations: its base's, which cells share, and its policy's after some round.

Leaves out how answers are made and graded (`evaluate.py`) and when they are due (`run.py`).
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from grids import outcome
from grids.cell import Cell
from grids.paths import read_mark
from workers import ranks
from workers.data import Questions
from workers.engine import Engine
from workers.evaluate import Evaluated, Evaluator
from workers.journal import read_outcomes, write_outcomes
from workers.lease import Lease
from workers.sampling import prompt_stream

METRICS_FILE = "metrics.json"  # of a shared base evaluation; written last


class Scores:
    """Evaluates the policy that an engine holds, as a cell says."""

    def __init__(
        self, cell: Cell, questions: Questions, engine: Engine, lease: Lease | ranks.Lent,
        shared: Path,
    ) -> None:  # fmt: skip
        self.cell, self.lease, self.shared = cell, lease, shared
        self.train_rows = len(questions.train)
        self.evaluator = Evaluator(cell, questions, engine)

    def base(self) -> Evaluated:
        """The base model's evaluation: found where another cell left it, else made and left.

        To be made, the engine must hold the base.
        """
        if (found := ranks.told(lambda: kept_base(self.cell, self.shared))) is not None:
            return found
        folder = self.shared / self.cell.base_key
        evaluated = self._whole("base", 0, None, None)
        folder.mkdir(parents=True, exist_ok=True)
        rows = folder / outcome.OUTCOMES_FILE
        self.lease.make(rows, lambda made: write_outcomes(made, evaluated.rows))
        self.lease.write_json(folder / METRICS_FILE, evaluated.metrics)
        return evaluated

    def final(self, round: int, with_seen: bool = True) -> Evaluated:
        """Greedy, and sampled where the cell asks; `with_seen` where it was trained on this set."""
        return self._whole("final", round, self.cell.seed, self.seen(round) if with_seen else None)

    def greedy(self, round: int) -> Evaluated:
        """Greedy alone, as between the base and the end."""
        return self.evaluator.greedy("final", round, self.seen(round))

    def _whole(self, phase: str, round: int, seed: int | None, seen: set[int] | None) -> Evaluated:
        greedy = self.evaluator.greedy(phase, round, seen)
        if not self.cell.eval.samples:
            return greedy
        sampled = self.evaluator.sampled(phase, round, seed)
        return Evaluated(greedy.rows + sampled.rows, greedy.metrics | sampled.metrics)

    def seen(self, round: int) -> set[int]:
        """The train questions, by index, that training has drawn."""
        cell, count = self.cell, self.train_rows
        drawn = min(round * cell.batch, count)  # an epoch has seen all
        return set(prompt_stream(cell.dataset_spec.revision, cell.seed, count, 0, drawn).tolist())


def kept_base(cell: Cell, shared: Path) -> Evaluated | None:
    """The base evaluation that some cell left for all of its kind, or None where none is whole."""
    folder = shared / cell.base_key
    if (metrics := read_mark(folder / METRICS_FILE)) is None:
        return None
    try:
        return Evaluated(read_outcomes(folder / outcome.OUTCOMES_FILE), metrics)
    except (pa.ArrowException, OSError):  # damaged or gone: to be made again
        return None
