"""Which choices matter in one pair of a grid, and which of its arms may be the best.

Variance shares are factorial where the arms cross fully with equal seeds, else a surrogate's;
settings that the budget ties together count as one. In place of a bold maximum stands the set of
arms that nothing in the data says are worse than the best. Leaves out the statistics
(`importance.py`, `bestset.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from analysis.arms import Arm
from analysis.bestset import BestSet, best_set
from analysis.importance import Factor, Share, factors, variance_shares
from analysis.intervals import Matrix
from analysis.outcomes import Outcomes, Unusable, reordering
from analysis.runs import Run
from analysis.study import Study
from analysis.surrogate import surrogate_importance
from grids.errors import InputError
from grids.grid import Grid

EVERY_PAIR: Final = "all pairs"
SHAPE: Final = ("batch", "rollouts", "replay")
FACTORIAL: Final = "factorial"
FANOVA: Final = "fanova"
FACTORIAL_READING: Final = (
    "share of the variance over runs (omega squared, the noise between seeds as the error); "
    "95% intervals"
)
REPEATS: Final = 10  # of a surrogate: each costs a forest
Arms = Sequence[tuple[Arm, Sequence[Run]]]  # with the runs that count


@dataclass(frozen=True)
class Choices:
    """One pair.

    Attributes:
        shares: of the variance of primary test Pass@1 over runs, by factor.
        method: how they were made: `factorial`, `fanova`; empty where there are none.
        reading: what the shares and their intervals are, for people.
        no_shares: why there are none; with `fanova`, why they are not factorial.
        best: the arms that may be best; None for the reason `no_best`.
    """

    pair: str
    shares: tuple[Share, ...] = ()
    method: str = ""
    reading: str = ""
    no_shares: str = ""
    best: BestSet | None = None
    no_best: str = ""


def choices(grid: Grid, pairs: Mapping[str, Arms], study: Study) -> tuple[Choices, ...]:
    """What each pair's arms say; where there are several pairs, over all of them too.

    Arms come with their runs that count. One that was merged into another is left out: its runs are
    there already. Over all pairs model and data set are among the factors, which tells where
    choices matter; a surrogate is made of all runs together: a forest learns nothing from a few.
    """
    own = {pair: [x for x in arms if x[0].twin is None] for pair, arms in pairs.items()}
    alone = len(pairs) == 1
    made = [
        _with_best(_with_shares(Choices(pair), grid, arms, surrogate=alone), arms, study)
        for pair, arms in own.items()
    ]
    if not alone:
        every = [arm for arms in own.values() for arm in arms]
        why = "arms of different pairs are not ranked against each other"
        together = Choices(EVERY_PAIR, no_best=why)
        made.append(_with_shares(together, grid, every, surrogate=True))
    return tuple(made)


def _with_shares(made: Choices, grid: Grid, arms: Arms, surrogate: bool) -> Choices:
    rows = [_row(grid, run) for _, runs in arms for run in runs]
    frame = pd.DataFrame(rows).dropna(subset=["value"]) if rows else pd.DataFrame()
    if len(frame) < 2:
        return replace(made, no_shares=f"{len(frame)} runs have a Pass@1; at least 2 are needed")
    found = factors(frame, list(grid.varied), tied=SHAPE if grid.budget else ())
    if not found:
        return replace(made, no_shares="no setting varies among its finished runs")
    try:
        shares = variance_shares(frame, found)
        return replace(made, shares=shares, method=FACTORIAL, reading=FACTORIAL_READING)
    except InputError as error:
        made = replace(made, no_shares=str(error))
    if len(found) == 1 or not surrogate:  # it gives a lone factor everything
        return made
    return _with_surrogate(made, frame, found)


def _with_surrogate(made: Choices, frame: pd.DataFrame, found: Sequence[Factor]) -> Choices:
    rng = np.random.default_rng(0)  # of the forests: equal runs give equal tables
    try:
        told = surrogate_importance(frame, found, rng, repeats=REPEATS)
    except InputError as error:
        reasons = dict.fromkeys((made.no_shares, str(error)))
        return replace(made, no_shares="; ".join(reasons))
    shares = tuple(
        Share(one.name, one.estimate, math.nan, math.nan, 0, 0, 1) for one in told.factors
    )
    reading = f"{told.answers}; intervals: {told.spread}"
    return replace(made, shares=shares, method=FANOVA, reading=reading)


def _row(grid: Grid, run: Run) -> dict[str, Any]:
    settings = {axis: getattr(run.cell, axis) for axis in grid.varied}
    return settings | {"seed": run.cell.seed, "value": run.primary("final", "test")}


def _with_best(made: Choices, arms: Arms, study: Study) -> Choices:
    """The best set over the seeds and questions that all arms share."""
    if not study.source.has_answers:
        return replace(made, no_best="needs answers to single questions")
    stacks: dict[str, Outcomes] = {}
    for arm, runs in arms:
        outcomes = study.stacked(runs, "final", "test", arm.cell.eval.primary).outcomes
        if outcomes is None:
            return replace(made, no_best=f"{arm.label} has no finished run with answers")
        stacks[arm.label] = outcomes
    if len(stacks) < 2:
        return replace(made, no_best="one arm alone")
    try:
        return replace(made, best=best_set(_aligned(stacks)))
    except InputError as error:
        return replace(made, no_best=str(error))


def _aligned(stacks: dict[str, Outcomes]) -> dict[str, Matrix]:
    """Means over samples, on the seeds that all arms have and questions scored in all of them."""
    (name, first), *_ = stacks.items()
    seeds = tuple(s for s in first.seeds if all(s in other.seeds for other in stacks.values()))
    if not seeds:
        raise Unusable("no seed is common to all arms")
    values = {
        label: arm.of_seeds(seeds).means_S_Q[
            :, reordering(first.questions, arm.questions, (name, label))
        ]
        for label, arm in stacks.items()
    }
    scored_Q = np.isfinite(sum(values.values())).all(axis=0)
    return {label: values_S_Q[:, scored_Q] for label, values_S_Q in values.items()}
