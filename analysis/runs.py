"""Runs of a study, read from its files: one `Run` a cell, and a frame with one row a cell.

The journal is the truth and `done.json` the mark that it is whole. A file that cannot be trusted
makes its cell `damaged`, with a reason that names the file: never a number. Leaves out per-question
outcomes (`outcomes.py`), and the server that people browse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from analysis import records
from analysis.records import Damaged, Numbers
from analysis.training import Training, training
from grids import outcome
from grids.cell import SPECS, Cell
from grids.outcome import DAMAGED, DIVERGED, FAILED, FINISHED, UNFINISHED, WAITING
from grids.paths import CellPaths

STATES = (FINISHED, DIVERGED, FAILED, DAMAGED, UNFINISHED, WAITING)

# Columns of the frame -> metrics; each is read of the base and of the final policy.
METRICS = {
    "test": outcome.TEST_PASS,
    "train": outcome.TRAIN_PASS,
    "test_sampled": outcome.TEST_PASS + outcome.SAMPLED_SUFFIX,
    "train_sampled": outcome.TRAIN_PASS + outcome.SAMPLED_SUFFIX,
    "test_flexible": outcome.TEST_PASS_FLEXIBLE,
    "test_parsed": outcome.TEST_PARSED,
    "test_truncated": outcome.TEST_TRUNCATED,
}


@dataclass(frozen=True)
class Run:
    """What is known of one cell at its own horizon."""

    cell: Cell
    state: str
    reason: str = ""
    last_round: int | None = None  # of the journal
    scored_round: int | None = None  # of `final`
    diverged_round: int | None = None
    base: Numbers = field(default_factory=dict)
    final: Numbers = field(default_factory=dict)
    training: Training = field(default_factory=Training)

    @cached_property
    def key(self) -> str:
        """Of the cell, computed once."""
        return self.cell.key

    @property
    def counted(self) -> bool:
        """Its final number belongs in its arm's mean; a diverged run is a result."""
        return self.state in (FINISHED, DIVERGED)

    def read(self, phase: str, metric: str) -> float:
        """A number of the base or the final policy; NaN where there is none."""
        numbers = self.base if phase == "base" else self.final
        return numbers.get(metric, math.nan)

    def primary(self, phase: str, split: str) -> float:
        """Pass@1 on test or train in the decoding that the cell's grid compares by."""
        sampled = self.cell.eval.primary == "sampled"
        return self.read(phase, METRICS[f"{split}_sampled" if sampled else split])


def frame_of(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run: its settings, state and numbers, NaN where missing."""
    return pd.DataFrame([_row(run) for run in runs])


def read_run(cell: Cell, paths: CellPaths) -> Run:
    """The run of a cell, its final numbers at the cell's own `rounds`."""
    try:
        lines = records.journal(paths)
        done = records.done(paths, cell)
        if done is None or not _ended(done, cell):
            return _open_run(cell, paths, lines)
        if done["eval_key"] != cell.eval_key:
            why = "scored by another evaluation than this grid's; run the grid to re-score it"
            return Run(cell, UNFINISHED, why, max(lines, default=None))
        return _ended_run(cell, paths, lines, done)
    except Damaged as error:
        return Run(cell, DAMAGED, str(error))


def _open_run(cell: Cell, paths: CellPaths, lines: dict[int, Numbers]) -> Run:
    """A cell that has not reached its horizon; its base evaluation may be known."""
    last = max(lines, default=None)
    base = lines.get(0, {}) if _scored_alike(cell, paths) else {}
    failed = records.record(paths, outcome.FAILED_FILE)
    if failed is not None:
        return Run(cell, FAILED, str(failed.get("error", "no reason given")), last, base=base)
    if last is None and not paths.checkpoint.exists():
        return Run(cell, WAITING)
    return Run(cell, UNFINISHED, f"at round {last or 0} of {cell.rounds}", last, base=base)


def _ended_run(
    cell: Cell, paths: CellPaths, lines: dict[int, Numbers], done: dict[str, Any]
) -> Run:
    """A cell that reached its horizon, or broke down on the way to it."""
    last, broke = max(lines, default=None), _broke_at(done)
    diverged = broke is not None and broke <= cell.rounds
    scored = _last_scored(lines, broke) if diverged else cell.rounds
    whole = diverged or done["rounds"] == cell.rounds  # done.json speaks of this very horizon
    base = records.merged(paths, lines.get(0, {}), done["base"], "base")
    final = lines.get(scored, {})
    final = records.merged(paths, final, done["final"], f"round {scored}") if whole else final
    if outcome.TEST_PASS not in final:
        had = ", ".join(str(r) for r, x in lines.items() if outcome.TEST_PASS in x) or "none"
        why = f"no evaluation at round {scored}; rounds evaluated: {had}"
        return Run(cell, UNFINISHED, why, last, base=base)
    reason = f"at round {broke}: {done.get('reason') or 'no reason given'}" if diverged else ""
    end = broke if diverged and broke is not None else cell.rounds
    return Run(
        cell, DIVERGED if diverged else FINISHED, reason, last, scored,
        broke if diverged else None, base, final,
        training(cell, lines, records.seconds(paths), end),
    )  # fmt: skip


def _ended(done: dict[str, Any], cell: Cell) -> bool:
    broke = _broke_at(done)
    return done["rounds"] >= cell.rounds or (broke is not None and broke <= cell.rounds)


def _broke_at(done: dict[str, Any]) -> int | None:
    """The round at which the run diverged, or None."""
    if done["status"] != DIVERGED:
        return None
    broke = done.get("diverged_round")
    return int(done["rounds"] if broke is None else broke)


def _last_scored(lines: dict[int, Numbers], end: int | None) -> int:
    """The last round with a test Pass@1, which is where a diverged run is counted."""
    scored = (r for r, x in lines.items() if not math.isnan(x.get(outcome.TEST_PASS, math.nan)))
    return max((r for r in scored if end is None or r <= end), default=0)


def _scored_alike(cell: Cell, paths: CellPaths) -> bool:
    """The journal was written under this cell's evaluation, as far as cell.json tells."""
    written = records.record(paths, outcome.CELL_FILE)
    if written is None:
        return True
    try:
        return Cell.model_validate(written).eval_key == cell.eval_key
    except ValueError:
        return False


def _row(run: Run) -> dict[str, Any]:
    cell = run.cell
    row: dict[str, Any] = {"key": cell.key, "arm_key": cell.arm_key, "eval_key": cell.eval_key}
    row |= {"label": cell.label, "arm_label": cell.arm_label}
    settings = cell.model_dump(exclude={*SPECS, "eval"})
    row |= settings | {f"eval.{name}": value for name, value in cell.eval.model_dump().items()}
    row |= {"state": run.state, "reason": run.reason, "last_round": run.last_round}
    row |= {"scored_round": run.scored_round, "diverged_round": run.diverged_round}
    for phase in ("base", "final"):
        row |= {f"{phase}_{name}": run.read(phase, metric) for name, metric in METRICS.items()}
        row[f"{phase}_test_primary"] = run.primary(phase, "test")
        row[f"{phase}_train_primary"] = run.primary(phase, "train")
    return row | {f"spent_{name}": x for name, x in asdict(run.training.costs).items()}
