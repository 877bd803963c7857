"""Which arms may be the best: the arms that no other arm beats, in place of a bold maximum.

An arm is left out if some rival beats it in a paired one-sided t test over seeds and questions
(`intervals.two_way`, S - 1 degrees of freedom) at the level alpha / (J - 1) among J arms. The truly
best arm is then in the set with a probability of at least 1 - alpha: it is left out only if one of
its J - 1 rivals, none of which is better, beats it, and each does so by chance with a probability
of at most alpha / (J - 1) (Bonferroni; subset selection in the sense of Gupta 1965, Technometrics
7:225, without his common variance). This holds as far as the t test does, and for one best arm: of
several equally good ones each is kept with that probability, not all at once. An arm in the set is
not shown to be good: with few seeds nearly all arms are in it. Leaves out a ranking.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.intervals import Estimate, Matrix, two_way
from grids.errors import InputError


@dataclass(frozen=True)
class Candidate:
    """An arm and whether it may be the best."""

    label: str
    mean: Estimate  # over seeds and questions
    in_set: bool
    rival: str | None  # the arm that speaks most against this one; None where there was no test
    p: float  # one-sided, that the rival is no better, times J - 1; NaN where there was no test


@dataclass(frozen=True)
class BestSet:
    """All arms, in the order they were given, and how many seeds and questions told them apart."""

    arms: tuple[Candidate, ...]
    alpha: float
    seeds: int
    questions: int
    reason: str  # why nothing could be left out; empty where arms were compared

    @property
    def labels(self) -> tuple[str, ...]:
        """The arms that may be the best."""
        return tuple(arm.label for arm in self.arms if arm.in_set)


def best_set(values_by_label: Mapping[str, Matrix], alpha: float = 0.05) -> BestSet:
    """The arms not worse than the best with confidence 1 - alpha.

    Each arm has an array, seeds × questions, of its means over samples; row s and column q are the
    same seed and question in every arm. One seed leaves all arms in. Raises `InputError` without
    an arm, with one question, where shapes differ, where a value is missing, and for alpha outside
    (0, 0.5).
    """
    arrays: dict[str, Matrix] = {
        label: np.asarray(values, dtype=np.float64) for label, values in values_by_label.items()
    }
    _check(arrays, alpha)
    seeds, questions = next(iter(arrays.values())).shape
    p_J_J = _p_values(list(arrays.values()))
    arms = tuple(
        _candidate(label, two_way(values_S_Q), dict(zip(arrays, p_J, strict=True)), alpha)
        for (label, values_S_Q), p_J in zip(arrays.items(), p_J_J, strict=True)
    )
    return BestSet(arms, alpha, seeds, questions, _reason(len(arms), seeds))


def _p_values(arrays: list[Matrix]) -> Matrix:
    """[i, j]: the one-sided p of arm j being no better than arm i; NaN: not tested."""
    p_J_J = np.full((len(arrays), len(arrays)), math.nan)
    for (i, this), (j, other) in itertools.combinations(enumerate(arrays), 2):
        gap = two_way(other - this)
        p_J_J[i, j] = gap.p / 2 if gap.value > 0 else 1 - gap.p / 2
        p_J_J[j, i] = 1 - gap.p / 2 if gap.value > 0 else gap.p / 2
    return p_J_J


def _candidate(label: str, mean: Estimate, p_by_rival: dict[str, float], alpha: float) -> Candidate:
    tested = {rival: float(p) for rival, p in p_by_rival.items() if not math.isnan(p)}
    if not tested:
        return Candidate(label, mean, True, None, math.nan)
    rival = min(tested, key=lambda name: tested[name])
    p = min(tested[rival] * len(tested), 1.0)
    return Candidate(label, mean, p >= alpha, rival, p)


def _reason(arms: int, seeds: int) -> str:
    if arms == 1:
        return "one arm: there is nothing to compare it with"
    return "one seed says nothing about a method, so no arm is left out" if seeds == 1 else ""


def _check(arrays: dict[str, Matrix], alpha: float) -> None:
    if not arrays:
        raise InputError("no arm to choose from: got 0, expected at least 1")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha: got {alpha:g}; expected a number between 0 and 0.5")
    first, expected = next((label, values.shape) for label, values in arrays.items())
    for label, values in arrays.items():
        if values.shape != expected or values.ndim != 2 or len(values) < 1 or values.shape[1] < 2:
            raise InputError(
                f"{label} has values of shape {values.shape}, {first} of {expected}; expected the "
                "same seeds × questions in every arm, 1 × 2 at least; keep what they share"
            )
        if not np.isfinite(values).all():
            raise InputError(
                f"{label} lacks {(~np.isfinite(values)).sum()} values of some seed and question; "
                "leave these out in every arm, and say so"
            )
