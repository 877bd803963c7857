"""Study: the runs of one study, each read once, with their graded answers.

    study = Study.open("store/paper")
    study.runs()                                   # one row a run
    study.outcomes(model="tiny-qwen2", ...)        # correct_S_Q_K of one arm
    study.compare({...settings of a}, {...of b})   # a Comparison, with a verdict

A run that failed, is missing, diverged, ended early or was evaluated otherwise has a state and a
reason and is never averaged in unseen. Leaves out declared contrasts (`declared.py`) and tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.contrasts import MARGIN, Comparison, compare
from analysis.outcomes import Answers, Outcomes, Unusable, Which, stack
from analysis.runs import Run, frame_of
from analysis.sources import Source
from grids.cell import SPECS, Cell
from grids.errors import InputError, listed
from grids.outcome import SAMPLED_SUFFIX, TEST_PASS, TRAIN_PASS, VAL_PASS

AGREE = 1e-6  # between the journal's Pass@1 and the mean of the answers


class OtherRound(Unusable):
    """Answers were kept, but of another round than a grid reads."""


class Stacked(NamedTuple):
    """Outcomes of the seeds that have them, and why the others have none.

    `other_round` are those whose only lack is that their answers are of another round.
    """

    outcomes: Outcomes | None
    missing: dict[int, str]
    other_round: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Asked:
    """What identifies a reading: the cell, at a horizon, under an evaluation."""

    key: str
    eval_key: str
    rounds: int


class Study:
    """One study's runs. `open` finds them; a `Source` reads them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._runs: dict[_Asked, Run] = {}
        self._answers: dict[str, dict[Which, Answers] | Unusable] = {}
        self._stacks: dict[tuple[object, ...], Stacked] = {}

    @property
    def name(self) -> str:
        """The study's name."""
        return self.source.name

    @property
    def evaluation(self) -> str:
        """The named evaluation whose scores it tells; empty: the runs' own."""
        return self.source.evaluation

    @classmethod
    def open(cls, where: str | Path, study: str | None = None) -> Study:
        """The study at `where`: a study's folder or a store, a bundle, a parquet file of outcomes,
        or an MLflow address. `study` names one where there are several.

        Raises `InputError` where there is none.
        """
        from analysis.opening import source_at

        return cls(source_at(where, study))

    # ---- reading

    def run(self, cell: Cell) -> Run:
        """What is known of a cell at its own horizon and evaluation."""
        asked = _Asked(cell.key, cell.eval_key, cell.rounds)
        if asked not in self._runs:
            self._runs[asked] = self.source.run(cell)
        return self._runs[asked]

    def answers(self, run: Run, phase: str, split: str, decoding: str) -> Answers:
        """A run's graded answers at the evaluation that it counts with.

        Raises `Unusable` where they are missing, of another round, or contradict the journal.
        """
        key = run.key
        if phase == "final" and run.scored_round == 0:  # it broke before its first evaluation
            phase = "base"
        found = self._read(run)
        which = Which(phase, split, decoding)
        if (answers := found.get(which)) is None:
            raise Unusable(f"{key}/outcomes.parquet: has no {' '.join(which)} answers")
        due = 0 if phase == "base" else run.scored_round
        if answers.round != due:
            raise OtherRound(
                f"{key}/outcomes.parquet: its {phase} answers are of round {answers.round}; "
                f"this grid reads round {due}"
            )
        _check_agreement(run, which, answers)
        return answers

    def preload(self, cells: Iterable[Cell]) -> None:
        """Read many cells, answers behind journals in a thread: decoding leaves Python free."""
        runs = (run for cell in cells if (run := self.run(cell)).counted)
        with ThreadPoolExecutor(max_workers=1) as pool:  # one: a source need not bear several
            for run in runs:
                if run.key not in self._answers:
                    pool.submit(self._keep_answers, run)

    def _keep_answers(self, run: Run) -> None:
        try:
            self._answers[run.key] = self.source.answers(run.cell)
        except Unusable as error:
            self._answers[run.key] = error

    def _read(self, run: Run) -> dict[Which, Answers]:
        if run.key not in self._answers:
            self._keep_answers(run)
        found = self._answers[run.key]
        if isinstance(found, Unusable):
            raise found
        return found

    def stacked(self, runs: Iterable[Run], phase: str, split: str, decoding: str) -> Stacked:
        """An arm's counted runs side by side; a seed without usable answers is named."""
        runs = list(runs)
        asked = (*((run.key, run.state, run.scored_round) for run in runs), phase, split, decoding)
        if asked not in self._stacks:
            self._stacks[asked] = self._stack(runs, phase, split, decoding)
        return self._stacks[asked]

    def _stack(self, runs: list[Run], phase: str, split: str, decoding: str) -> Stacked:
        by_seed: dict[int, Answers] = {}
        missing: dict[int, str] = {}
        other_round = set()
        for run in runs:
            if not run.counted:
                missing[run.cell.seed] = run.state
                continue
            try:
                by_seed[run.cell.seed] = self.answers(run, phase, split, decoding)
            except Unusable as error:
                missing[run.cell.seed] = str(error)
                if isinstance(error, OtherRound):
                    other_round.add(run.cell.seed)
        stacked: Outcomes | None = None
        try:
            stacked = stack(by_seed) if by_seed else None
        except Unusable as error:
            missing |= dict.fromkeys(by_seed, str(error))
        return Stacked(stacked, missing, frozenset(other_round))

    # ---- for notebooks

    def runs(self) -> pd.DataFrame:
        """One row a run: settings, state and reason, scores of base and final, what it cost."""
        own = getattr(self.source, "frame", None)  # of a source without cells
        if own is not None:
            found: pd.DataFrame = own()
            return found
        return frame_of(self.run(cell) for cell in self.source.cells())

    def outcomes(
        self, decoding: str | None = None, split: str = "test", **settings: Any
    ) -> Outcomes:
        """correct_S_Q_K of the one arm that has these settings; the primary decoding by default.

        Arms of a file of outcomes have a name in place of settings: `outcomes(arm="a")`.
        Raises `InputError` where no arm or several have them, or where no seed has answers.
        """
        if "arm" in settings:
            return self._of(settings["arm"])
        cells = self.arm(settings)
        runs = [self.run(cell) for cell in cells]
        decoding = decoding or cells[0].eval.primary
        stacked = self.stacked(runs, "final", split, decoding)
        if stacked.outcomes is None:
            told = "; ".join(f"s{seed}: {why}" for seed, why in stacked.missing.items())
            raise InputError(
                f"{cells[0].arm_label}: no seed has {decoding} {split} answers ({told})"
            )
        return stacked.outcomes

    def arm(self, settings: dict[str, Any]) -> Sequence[Cell]:
        """The cells of the one arm that has these settings, by seed."""
        unknown = [name for name in settings if name not in Cell.model_fields]
        if unknown:
            allowed = listed(set(Cell.model_fields) - SPECS)
            raise InputError(f"{unknown[0]}: no such setting of a cell; allowed: {allowed}")
        fit = [c for c in self.source.cells() if _has(c, settings)]
        arms = {cell.arm_key: cell.arm_label for cell in fit}
        if len(arms) != 1:
            told = "; ".join(arms.values()) or "none"
            raise InputError(
                f"study {self.name}: the settings {settings} are those of {len(arms)} arms "
                f"({told}); give those of one"
            )
        return fit

    def compare(
        self, a: dict[str, Any] | str, b: dict[str, Any] | str, margin: float = MARGIN
    ) -> Comparison:
        """Two arms by their settings, `b` minus `a`. It is exploratory, for nothing declared it."""
        return compare(self._of(a), self._of(b), margin=margin)

    def _of(self, arm: dict[str, Any] | str) -> Outcomes:
        if isinstance(arm, dict):
            return self.outcomes(**arm)
        named = getattr(self.source, "named", None)
        if named is None:
            raise InputError(f"{arm!r}: arms of {self.source.place} are given by settings, a dict")
        found: Outcomes = named(arm)
        return found


def _has(cell: Cell, settings: dict[str, Any]) -> bool:
    return all(getattr(cell, name) == value for name, value in settings.items())


def _check_agreement(run: Run, which: Which, answers: Answers) -> None:
    metric = {"test": TEST_PASS, "train": TRAIN_PASS, "val": VAL_PASS}[which.split]
    metric += SAMPLED_SUFFIX if which.decoding == "sampled" else ""
    told = (run.base if which.phase == "base" else run.final).get(metric, math.nan)
    if abs(told - answers.mean) > AGREE:  # not where either is NaN: there is nothing to contradict
        raise Unusable(
            f"{run.key}/outcomes.parquet: its {' '.join(which)} answers have the mean "
            f"{answers.mean:.6f}; the journal says {told:.6f}"
        )
