"""Estimate: a number that never travels without its interval and its n; the ways to make one.

What a number is said of decides its interval:

- these very checkpoints, on questions of this kind: `wilson`, `over_questions`;
- the method, on this very test set: `mean_t` over training seeds, paired where the values are
  differences;
- the method, on questions of this kind: `two_way`, in which seeds and questions are both random.
  It is the default for every statement about a method.

One seed never says anything of a method: it has a value and no interval. Missing is NaN or an
error, never 0. Leaves out bootstraps, which are too narrow over three to five seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Vector = npt.NDArray[np.floating[Any]]
Matrix = npt.NDArray[np.floating[Any]]

CONFIDENCE = 0.95
MISSING = "—"


@dataclass(frozen=True)
class Estimate:
    """A point estimate with its 95% interval; `n` counts what it is a mean over."""

    value: float
    se: float
    low: float
    high: float
    df: float
    n: int

    def format(self, decimals: int = 3, sign: bool = False) -> str:
        """`0.667 [0.612, 0.721]`; a lone value says `(n=1)`, for it has no interval."""
        if math.isnan(self.value):
            return MISSING
        spec = f"{'+' if sign else ''}.{decimals}f"
        value, low, high = (_written(x, spec) for x in (self.value, self.low, self.high))
        return f"{value} (n=1)" if math.isnan(self.low) else f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return self.format()

    @property
    def p(self) -> float:
        """Two-sided p-value of "the truth is 0"; NaN where there is no interval."""
        if math.isnan(self.se):
            return math.nan
        if self.se == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.value) / self.se, self.df))


NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, 0)


def with_t(value: float, se: float, df: float, n: int) -> Estimate:
    """The 95% interval from a standard error and Student's t."""
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, df)) * se
    return Estimate(value, se, value - half, value + half, df, n)


def mean_t(values: Iterable[float]) -> Estimate:
    """Mean over independent seeds with a t interval of n - 1 degrees of freedom.

    One seed has a value and NaN for the rest. Raises `ValueError` without a seed, or where a value
    is missing: leaving a seed out is for the caller to decide and to say.
    """
    x_S = np.asarray(list(values), dtype=np.float64)
    if x_S.size == 0:
        raise ValueError("no seed to average: got 0 values, expected at least 1")
    if not np.isfinite(x_S).all():
        raise ValueError(f"a seed's value is missing: got {x_S.tolist()}; leave it out, and say so")
    n, mean = int(x_S.size), float(x_S.mean())
    if n == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 0.0, 1)
    # Equal values: their mean may round, which must not look like a spread.
    se = 0.0 if np.ptp(x_S) == 0 else float(x_S.std(ddof=1)) / math.sqrt(n)
    mean = float(x_S[0]) if se == 0 else mean
    return with_t(mean, se, float(n - 1), n)


class Variances(NamedTuple):
    """The parts of a two-way clustered variance of a mean, each the variance that it would have."""

    seed: float  # clusters are seeds
    question: float  # clusters are questions
    cell: float  # no clusters: in both of the others, so taken away once

    @property
    def total(self) -> float:
        """Never below either one-way variance, as the plain sum can be with few clusters."""
        return max(self.seed + self.question - self.cell, self.seed, self.question)


def two_way_variances(values_S_Q: Matrix) -> Variances:
    """Cameron, Gelbach and Miller (2011), "Robust inference with multiway clustering", eq. 2.7.

    With residuals R = values - mean over S seeds and n questions:
    V_seed = S/(S-1) sum_s (sum_q R)^2 / (Sn)^2; V_question = n/(n-1) sum_q (sum_s R)^2 / (Sn)^2;
    V_cell = sum R^2 / (Sn)^2. NaN for the part of which there is one cluster alone.
    """
    seeds, questions = values_S_Q.shape
    rest_S_Q = values_S_Q - values_S_Q.mean()
    whole = float(values_S_Q.size) ** 2
    by_seed = float((rest_S_Q.sum(axis=1) ** 2).sum()) / whole
    by_question = float((rest_S_Q.sum(axis=0) ** 2).sum()) / whole
    return Variances(
        by_seed * seeds / (seeds - 1) if seeds > 1 else math.nan,
        by_question * questions / (questions - 1) if questions > 1 else math.nan,
        float((rest_S_Q**2).sum()) / whole,
    )


def two_way(values_S_Q: Matrix) -> Estimate:
    """Mean over seeds and questions, both random, with t on S - 1 degrees of freedom; n is S.

    Values are a seed's and question's mean over samples, or a difference of two such means. One
    seed has a value and no interval. Raises `ValueError` without a seed or with one question, and
    where a value is missing: leaving it out is for the caller to decide and to say.
    """
    values_S_Q = np.asarray(values_S_Q, dtype=np.float64)
    if values_S_Q.ndim != 2 or values_S_Q.shape[0] < 1 or values_S_Q.shape[1] < 2:
        raise ValueError(
            f"got values of shape {values_S_Q.shape}; expected at least 1 seed × 2 questions"
        )
    if not np.isfinite(values_S_Q).all():
        raise ValueError("a value of some seed and question is missing; leave it out, and say so")
    seeds, mean = values_S_Q.shape[0], float(values_S_Q.mean())
    if seeds == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 0.0, 1)
    return with_t(mean, math.sqrt(two_way_variances(values_S_Q).total), seeds - 1.0, seeds)


def over_questions(values_Q: Vector) -> Estimate:
    """Mean of one checkpoint over questions that stand for their kind; n is the questions.

    Each value is a mean over the question's samples, which one question thus clusters (Miller 2024,
    arXiv 2411.00640). It says nothing of training seeds.
    """
    return mean_t(values_Q)


def wilson(correct: int, n: int) -> Estimate:
    """Share of right answers of one checkpoint with Wilson's interval over its n questions.

    It says how well the questions fix this checkpoint's share, and nothing of training seeds.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"got {correct} correct of {n}; expected 0 <= correct <= n and n >= 1")
    interval = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    share = correct / n
    se = math.sqrt(share * (1 - share) / n)
    return Estimate(share, se, float(interval.low), float(interval.high), math.inf, n)


def _written(x: float, spec: str) -> str:
    """The number without a minus before zeros."""
    text = format(x, spec)
    return text.replace("-", "+" if "+" in spec else "") if float(text) == 0 else text
