"""Which choices matter in a partial grid: optuna's importances, which need no balanced design.

fANOVA (Hutter et al. 2014, PMLR 32) fits a random forest to the runs and splits the variance of its
predictions over all combinations of levels, those that nobody ran included. PED-ANOVA (Watanabe et
al. 2023, arXiv 2304.10255) compares the levels of the best runs with those of all runs. Neither
takes out the noise of the seeds, and neither has a confidence interval: what stands beside its
numbers is their spread over resampled seeds. Leaves out interactions. Of a balanced, fully crossed
grid `importance.variance_shares` says more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from analysis.importance import Codes, Design, Factor, Floats, design
from analysis.intervals import CONFIDENCE, Estimate
from grids.errors import InputError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

Method = Literal["fanova", "ped_anova"]

TREES = 8  # a forest; how much another one would have differed is in the spread
TOP = 0.25  # the share of runs that PED-ANOVA takes for the best

ANSWERS = {
    "fanova": "share of the variance of a random forest's predictions over all combinations of "
    "levels; what the shares lack to 1 is interactions; the seeds' noise is not taken out, so a "
    "factor without any effect gets more than 0",
    "ped_anova": f"how much a factor decides whether a run is among the best {TOP:.0%}, as a part "
    "of what all factors decide; not a share of variance",
}
SPREAD = {
    "fanova": "middle 95% of {} repeats, each with the seeds resampled within their combination "
    "and with another forest; not a confidence interval",
    "ped_anova": "middle 95% of {} repeats, each with the seeds resampled within their "
    "combination; not a confidence interval",
}


@dataclass(frozen=True)
class Importance:
    """The importance of one factor: its interval is a spread, its n counts runs."""

    name: str
    estimate: Estimate


@dataclass(frozen=True)
class Importances:
    """The importance of each factor, with what has to be told beside the numbers."""

    method: str
    answers: str  # what the numbers say
    spread: str  # what their intervals are
    factors: tuple[Importance, ...]


def surrogate_importance(
    frame: pd.DataFrame,
    factors: Sequence[Factor],
    rng: np.random.Generator,
    method: Method = "fanova",
    repeats: int = 20,
    value: str = "value",
) -> Importances:
    """Importances by one of ANSWERS; larger values are better; a lone factor always gets 1.

    `frame` has one row a run: the factors' settings, `seed` and `value`. The spread is widened to
    hold the number itself, and is NaN where no combination has a second run. Raises `InputError`
    for another method, where a value is missing and where all values are equal.
    """
    if method not in ANSWERS or repeats < 2:
        raise InputError(
            f"got method {method!r} and {repeats} repeats; "
            f"allowed: {' or '.join(ANSWERS)}, and at least 2 repeats"
        )
    runs = design(frame, factors, value)
    with _quiet():
        study = _study(frame, factors, runs, method)
        told_F = _importances(study, factors, runs.values, method, rng)
        told_R_F = [
            _importances(study, factors, _resampled(runs, rng), method, rng) for _ in range(repeats)
        ]
    if len(np.unique(runs.cells)) == len(runs.cells):  # the forests alone would pass for noise
        told_R_F = []
    told_F_R = np.array(told_R_F).T if told_R_F else np.empty((len(factors), 0))
    found = tuple(
        Importance(factor.name, _estimate(float(told_F[i]), told_F_R[i], len(runs.values)))
        for i, factor in enumerate(factors)
    )
    return Importances(method, ANSWERS[method], SPREAD[method].format(repeats), found)


def _estimate(value: float, repeats_R: Floats, runs: int) -> Estimate:
    known_R = repeats_R[~np.isnan(repeats_R)]
    if known_R.size == 0:
        return Estimate(value, math.nan, math.nan, math.nan, math.nan, runs)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known_R, [tail, 1 - tail])
    return Estimate(
        value, math.nan, min(float(low), value), max(float(high), value), math.nan, runs
    )


def _study(frame: pd.DataFrame, factors: Sequence[Factor], runs: Design, method: Method) -> Study:
    """The runs as completed trials of a study in memory, in their order."""
    import optuna

    spaces = {
        factor.name: _space(levels, method)
        for factor, levels in zip(factors, runs.shape, strict=True)
    }
    codes_N_F = np.column_stack([factor.codes(frame) for factor in factors])
    study = optuna.create_study()
    study.add_trials(
        optuna.trial.create_trial(
            params=dict(zip(spaces, codes_F.tolist(), strict=True)),
            distributions=spaces,
            value=float(value),
        )
        for codes_F, value in zip(codes_N_F, runs.values, strict=True)
    )
    return study


def _space(levels: int, method: Method) -> BaseDistribution:
    """Levels by number: categories for PED-ANOVA; for fANOVA a line, of which each has length 1.

    optuna's fANOVA turns a category into one column a level and averages over all settings of these
    columns, 2^levels of them, most of which are no level at all. On a line, trees cut between
    levels, so that only real ones count, each for the same.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if method == "fanova":
        return FloatDistribution(-0.5, levels - 0.5)
    return CategoricalDistribution(range(levels))


def _importances(
    study: Study,
    factors: Sequence[Factor],
    values: Floats,
    method: Method,
    rng: np.random.Generator,
) -> Floats:
    """One number a factor for these values of the study's runs; NaN where they are all equal."""
    from optuna import importance

    evaluator: importance.BaseImportanceEvaluator
    if method == "fanova":
        forest = int(rng.integers(2**32))
        evaluator = importance.FanovaImportanceEvaluator(n_trees=TREES, seed=forest)
    else:
        evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
    if np.ptp(values) == 0:
        return np.full(len(factors), math.nan)
    names = [factor.name for factor in factors]
    found = importance.get_param_importances(
        study,
        evaluator=evaluator,
        params=names,
        target=lambda trial: -float(values[trial.number]),  # PED-ANOVA takes low for good
        normalize=False,
    )
    told_F = np.array([found[name] for name in names], dtype=np.float64)
    if method == "fanova":
        return told_F
    return told_F / told_F.sum() if told_F.sum() > 0 else np.full(len(factors), math.nan)


def _resampled(runs: Design, rng: np.random.Generator) -> Floats:
    """For each run the value of a random run of its combination."""
    order = np.argsort(runs.cells, kind="stable")
    _, cell, count = np.unique(runs.cells, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count
    drawn: Codes = order[first[cell] + rng.integers(count[cell])]
    return runs.values[drawn]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's log and its warnings of what is meant here."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
