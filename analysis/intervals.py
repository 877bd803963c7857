"""Estimate: a number that never travels without its interval and its n; two ways to make one.

`mean_t` is for an arm's mean over training seeds, `wilson` for one checkpoint's share of questions.
Missing is NaN or an error, never 0. Leaves out paired and clustered intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

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
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * se
    return Estimate(mean, se, mean - half, mean + half, float(n - 1), n)


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
