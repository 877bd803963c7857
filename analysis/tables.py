"""One table a grid: a row a declared (pair, arm), its contrasts, and what its choices explain.

A diverged seed counts in the mean at its last evaluation and is named. A seed that failed, waits,
is unfinished or has no usable answers is named and never counted, so that no number stands for it.
Leaves out rendering (`markdown.py`) and the numbers themselves (`estimates.py`, `declared.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.arms import Arm, arms, pair_labels
from analysis.choices import Choices, choices
from analysis.declared import Result, results
from analysis.estimates import COSTS, MEASURES, TOLD, ArmEstimates, arm_estimates
from analysis.intervals import NOTHING, Estimate
from analysis.reported import Reported, arm_unknown, of_arm
from analysis.runs import STATES, Run
from analysis.study import Study
from grids.grid import Grid
from grids.outcome import DAMAGED, DIVERGED, FAILED


@dataclass(frozen=True)
class Row:
    """One arm of one pair."""

    pair: str
    arm: Arm
    runs: tuple[Run, ...]  # one a declared seed
    numbers: ArmEstimates
    reported: tuple[Reported, ...]  # stated by the paper for this pair and arm
    reported_arm_unknown: tuple[Reported, ...]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """By name; a name without a number is not there."""
        return self.numbers.numbers

    @property
    def counted(self) -> tuple[Run, ...]:
        """Runs that the numbers are of: finished and diverged ones whose answers can be used."""
        return tuple(run for run in self.runs if run.cell.seed in self.numbers.seeds)

    def in_state(self, state: str) -> tuple[Run, ...]:
        """The runs in one of `runs.STATES`."""
        return tuple(run for run in self.runs if run.state == state)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of this row, in short."""
        return tuple(_notes(self))

    @property
    def details(self) -> tuple[str, ...]:
        """The reasons behind the notes, a line a seed."""
        runs = [r for r in self.runs if r.state in (FAILED, DAMAGED, DIVERGED) or _odd(r)]
        where = f"{self.pair} {self.arm.label}"
        told = [f"{where} s{run.cell.seed} {run.state}: {run.reason}" for run in runs]
        missing = self.numbers.missing.items()
        return (*told, *(f"{where} s{seed} has no usable answers: {why}" for seed, why in missing))


@dataclass(frozen=True)
class Table:
    """A grid and its rows, pair by pair."""

    grid: Grid
    rows: tuple[Row, ...]
    results: tuple[Result, ...]  # of its declared contrasts
    choices: tuple[Choices, ...]  # pair by pair: which settings matter, which arms may be best
    source: str  # where the numbers come from
    over_questions: bool  # intervals hold for questions like these; else for these questions
    evaluation: str = ""  # a named one whose scores these are; empty: the runs' own
    evaluation_told: str = ""

    @property
    def title(self) -> str:
        """`4.2 minimalist`, or the name of a grid that is no section of the paper."""
        own = f"{self.grid.section or ''} {self.grid.name}".strip()
        return f"{own} ({self.evaluation})" if self.evaluation else own


def make_table(grid: Grid, study: Study) -> Table:
    """The table of a grid from what its study holds now."""
    study.preload(grid.cells())
    declared = arms(grid)
    labels = pair_labels(arm.cell for arm in declared)
    rows = tuple(_row(grid, arm, labels[arm.pair], study) for arm in declared)
    pairs = {
        label: [(row.arm, row.counted) for row in rows if row.pair == label]
        for label in labels.values()
    }
    evaluation = study.evaluation
    return Table(
        grid, rows, results(grid, study),
        choices(grid, pairs, study),
        study.source.place, study.source.has_answers,
        evaluation, study.source.told(grid.cells()) if evaluation else "",
    )  # fmt: skip


def _row(grid: Grid, arm: Arm, pair: str, study: Study) -> Row:
    runs = tuple(study.run(cell) for cell in arm.cells)
    numbers = arm_estimates(runs, study)
    if study.evaluation:  # the paper's numbers are of its own evaluation
        return Row(pair, arm, runs, numbers, (), ())
    return Row(
        pair, arm, runs, numbers,
        of_arm(arm.cell, grid.section), arm_unknown(arm.cell, grid.section),
    )  # fmt: skip


def frame(table: Table) -> pd.DataFrame:
    """One row a (pair, arm): raw numbers, NaN where missing."""
    return pd.DataFrame([_record(table.grid, row, table.evaluation) for row in table.rows])


def _notes(row: Row) -> Iterator[str]:
    if row.arm.twin is not None:
        yield f"same runs as {row.arm.twin}"
    for state in STATES[2:]:
        if runs := row.in_state(state):
            yield f"{len(runs)} of {len(row.runs)} seeds {state}{_which(runs, row)}"
    for run in row.in_state(DIVERGED):
        yield (
            f"diverged: s{run.cell.seed} at round {run.diverged_round} "
            f"(counted at its last evaluation, round {run.scored_round})"
        )
    if row.numbers.missing:
        told = ", ".join(f"s{seed}" for seed in row.numbers.missing)
        yield f"no usable answers of {told}"
    if row.numbers.unscored:
        yield f"{row.numbers.unscored} questions left out: an answer could not be scored"


def _which(runs: tuple[Run, ...], row: Row) -> str:
    """The seeds, and how far they are, where not all are meant."""
    rounds = {run.last_round for run in runs} - {None}
    far = f" at round {max(r or 0 for r in rounds)} of {row.arm.cell.rounds}" if rounds else ""
    if len(rounds) > 1:
        far = far.replace(" at round ", " at most at round ")
    if len(runs) == len(row.runs):
        return far
    return f"{far} ({_seeds(runs)})"


def _seeds(runs: Iterable[Run]) -> str:
    return ", ".join(f"s{run.cell.seed}" for run in runs)


def _odd(run: Run) -> bool:
    """Neither counted nor merely on its way."""
    return not run.counted and bool(run.reason) and not run.reason.startswith("at round ")


def _sampled(row: Row) -> list[str]:
    samples = max(run.cell.eval.samples for run in row.runs)
    return [f"pass_at_{2**i}" for i in range(samples.bit_length())]


def _record(grid: Grid, row: Row, evaluation: str) -> dict[str, Any]:
    cell = row.arm.cell
    record: dict[str, Any] = {
        "study": grid.study, "grid": grid.name, "section": grid.section,
        **({"evaluation": evaluation} if evaluation else {}), "pair": row.pair,
        "model": cell.model, "dataset": cell.dataset, "arm": row.arm.label,
        "batch": cell.batch, "rollouts": cell.rollouts, "replay": cell.replay,
        "advantage": cell.advantage, "settings": row.arm.extra, "same_runs_as": row.arm.twin,
        "arm_key": cell.arm_key, "decoding": cell.eval.primary, "rounds": cell.rounds,
        "seeds_declared": len(row.runs), "seeds_counted": len(row.counted),
    }  # fmt: skip
    record |= {f"seeds_{state}": len(row.in_state(state)) for state in STATES}
    record["seeds_without_answers"] = len(row.numbers.missing)
    for name in (*MEASURES, *_sampled(row), *TOLD, *COSTS):
        estimate = row.estimates.get(name, NOTHING)
        parts = ("value", "se", "low", "high", "df", "n")
        record |= {f"{name}_{part}": getattr(estimate, part) for part in parts}
    record["final_test_seed_sd"] = row.numbers.seed_sd
    finals = ((run.cell.seed, run.primary("final", "test")) for run in row.counted)
    record["final_test_by_seed"] = " ".join(f"s{seed}={value!r}" for seed, value in finals)
    for measure in ("gain", "test"):
        values = [number.value for number in row.reported if number.measure == measure]
        record[f"reported_{measure}"] = values[0] if values else math.nan
    unknown = (f"{n.subject} {n.what}: {n.text}" for n in row.reported_arm_unknown)
    record["reported_arm_unknown"] = "; ".join(unknown)
    record["notes"] = "; ".join(row.notes)
    return record | {"details": "; ".join(row.details)}
