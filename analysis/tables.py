"""One table a grid: a row for each declared (pair, arm), with what its seeds came to.

A diverged seed counts in the mean at its last evaluation and is named. A seed that failed, waits or
is unfinished is named and never counted, so that no number stands for it. Leaves out rendering
(`markdown.py`) and comparisons of arms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.arms import Arm, arms, pair_labels
from analysis.intervals import Estimate, mean_t
from analysis.reported import Reported, arm_unknown, of_arm
from analysis.runs import STATES, Run, read_run
from grids.grid import Grid
from grids.outcome import DAMAGED, DIVERGED, FAILED
from grids.paths import Store

MEASURES = ("base_test", "final_test", "gain_test", "base_train", "final_train", "gain_train")
NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Row:
    """One arm of one pair."""

    pair: str
    arm: Arm
    runs: tuple[Run, ...]  # one a declared seed
    estimates: dict[str, Estimate]  # by MEASURES
    reported: tuple[Reported, ...]  # stated by the paper for this pair and arm
    reported_arm_unknown: tuple[Reported, ...]

    @property
    def counted(self) -> tuple[Run, ...]:
        """Runs that the means may hold: finished and diverged ones."""
        return tuple(run for run in self.runs if run.counted)

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
        told = (FAILED, DAMAGED, DIVERGED)
        runs = (run for run in self.runs if run.state in told or _odd(run))
        where = f"{self.pair} {self.arm.label}"
        return tuple(f"{where} s{run.cell.seed} {run.state}: {run.reason}" for run in runs)


@dataclass(frozen=True)
class Table:
    """A grid and its rows, pair by pair."""

    grid: Grid
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """`4.2 minimalist`, or the name of a grid that is no section of the paper."""
        return f"{self.grid.section or ''} {self.grid.name}".strip()


def make_table(grid: Grid, store: Store) -> Table:
    """The table of a grid from what is in the store now."""
    declared = arms(grid)
    labels = pair_labels(arm.cell for arm in declared)
    study = store.study(grid.study)
    rows = []
    for arm in declared:
        runs = tuple(read_run(cell, study.cell(cell.key)) for cell in arm.cells)
        rows.append(
            Row(
                labels[arm.pair], arm, runs, _estimates(runs),
                of_arm(arm.cell, grid.section), arm_unknown(arm.cell, grid.section),
            )
        )  # fmt: skip
    return Table(grid, tuple(rows))


def frame(table: Table) -> pd.DataFrame:
    """One row a (pair, arm): raw numbers, NaN where missing."""
    return pd.DataFrame([_record(table.grid, row) for row in table.rows])


def _estimates(runs: tuple[Run, ...]) -> dict[str, Estimate]:
    """Means over seeds. The base is known before a seed ends; all the rest of counted runs only."""
    counted = [run for run in runs if run.counted]
    found: dict[str, Estimate] = {}
    for split in ("test", "train"):
        base = [run.primary("base", split) for run in runs]
        final = [run.primary("final", split) for run in counted]
        gain = [run.primary("final", split) - run.primary("base", split) for run in counted]
        found |= {f"base_{split}": _shared(base), f"final_{split}": _mean(final)}
        found[f"gain_{split}"] = _mean(gain)
    return {name: found[name] for name in MEASURES}


def _mean(values: Iterable[float]) -> Estimate:
    """Over the seeds that have the number; how many they are is its n."""
    known = [value for value in values if not math.isnan(value)]
    return mean_t(known) if known else NOTHING


def _shared(values: Iterable[float]) -> Estimate:
    """One evaluation that the seeds share: its spread over them is no interval."""
    known = [value for value in values if not math.isnan(value)]
    if len(set(known)) != 1:
        return _mean(known)
    return Estimate(known[0], math.nan, math.nan, math.nan, math.nan, len(known))


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
    for phase in ("base", "final"):
        unscored = [run for run in row.counted if math.isnan(run.primary(phase, "test"))]
        if unscored:
            decoding = row.arm.cell.eval.primary
            yield f"no {decoding} {phase} test Pass@1 of {_seeds(unscored)}"


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


def _record(grid: Grid, row: Row) -> dict[str, Any]:
    cell = row.arm.cell
    record: dict[str, Any] = {
        "study": grid.study, "grid": grid.name, "section": grid.section, "pair": row.pair,
        "model": cell.model, "dataset": cell.dataset, "arm": row.arm.label,
        "batch": cell.batch, "rollouts": cell.rollouts, "replay": cell.replay,
        "advantage": cell.advantage, "settings": row.arm.extra, "same_runs_as": row.arm.twin,
        "arm_key": cell.arm_key, "decoding": cell.eval.primary, "rounds": cell.rounds,
        "seeds_declared": len(row.runs), "seeds_counted": len(row.counted),
    }  # fmt: skip
    record |= {f"seeds_{state}": len(row.in_state(state)) for state in STATES}
    for name, estimate in row.estimates.items():
        parts = ("value", "se", "low", "high", "n")
        record |= {f"{name}_{part}": getattr(estimate, part) for part in parts}
    finals = ((run.cell.seed, run.primary("final", "test")) for run in row.counted)
    record["final_test_by_seed"] = " ".join(f"s{seed}={value!r}" for seed, value in finals)
    for measure in ("gain", "test"):
        values = [number.value for number in row.reported if number.measure == measure]
        record[f"reported_{measure}"] = values[0] if values else math.nan
    unknown = (f"{n.subject} {n.what}: {n.text}" for n in row.reported_arm_unknown)
    record["reported_arm_unknown"] = "; ".join(unknown)
    record["notes"] = "; ".join(row.notes)
    return record | {"details": "; ".join(row.details)}
