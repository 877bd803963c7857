"""Power: the smallest effect that a contrast could find, and the seeds that its margin needs.

A contrast's difference between two arms, seed by seed and question by question, is noisy in four
ways (`Noise`; Miller 2024, arXiv 2411.00640, eq. 9, with training seeds added). Tests are Student's
t with S - 1 degrees of freedom over S paired seeds, two-sided for a difference and two one-sided
ones (TOST) for an equivalence. They speak of questions of this kind, not of this test set alone, so
`question` is noise too and sets a floor that no number of seeds removes.

Power is E[normal tail] over the chi-squared distribution of the estimated variance:
`scipy.stats.nct.cdf` answers NaN for ordinary inputs. All of the variance counts as estimated with
S - 1 degrees of freedom. Contrasts' two-way clustered t is a little different: simulated, it has a
power of 0.74 to 0.86 where 0.80 is told here, the more the larger the noise between questions.

Leaves out where outcomes are read from and which contrasts there are (`planning.py`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.integrate import fixed_quad
from scipy.optimize import brentq

Claim = Literal["superior", "equivalent", "non-inferior"]
Array = npt.NDArray[np.floating[Any]]

POWER: Final = 0.8
ALPHA: Final = 0.05
MOST_SEEDS: Final = 1000
NODES: Final = 100  # of the quadrature: its error is below 1e-5 from one degree of freedom on


@dataclass(frozen=True)
class Noise:
    """Variances of one contrast's difference, a seed's and question's mean over K samples.

    Attributes:
        seed: between training seeds, of the true difference over all questions.
        question: between questions, of the true difference over all seeds.
        interaction: of what a seed does to a question's difference beyond the two.
        sampling: of one answer in arm b minus one in arm a, within seed and question: E[p(1 - p)]
            of either arm together, less where both draw their answers with the same random numbers.
    """

    seed: float
    question: float
    interaction: float
    sampling: float

    def variance(self, seeds: int, questions: int, samples: int = 1) -> float:
        """Of the mean difference over S seeds, n questions and K samples a question."""
        if min(seeds, questions, samples) < 1:
            raise ValueError(
                f"got {seeds} seeds, {questions} questions, {samples} samples; expected at least 1"
            )
        answers = (self.interaction + self.sampling / samples) / (seeds * questions)
        return self.seed / seeds + self.question / questions + answers


# Where no run has told: training seeds move an arm's Pass@1 by an SD of 0.01, independently in both
# arms; one answer each is right in exactly one arm at 30% of questions, of which 4 points are true
# differences between the arms (an SD of 0.2 between questions) and the rest is chance.
ASSUMED: Final = Noise(seed=2 * 0.01**2, question=0.2**2, interaction=0.0, sampling=0.30 - 0.2**2)


class Observed(NamedTuple):
    """Noise estimated from runs; `df` says how well they know its part between seeds."""

    noise: Noise
    df: int


# ---- power of a test, given the standard error of the difference


def power_of_t(effect: float, se: float, df: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t test where the true difference is `effect`."""
    shift, critical = _ratio(effect, se), _critical(alpha / 2, df)

    def rejects(u: Array) -> Array:
        upper, lower = special.ndtr(shift - critical * u), special.ndtr(-shift - critical * u)
        return np.asarray(upper + lower)

    return _expected(rejects, df)


def power_of_tost(margin: float, se: float, df: int, alpha: float = ALPHA) -> float:
    """Power of two one-sided t tests at ± margin where the true difference is 0."""
    shift, critical = _ratio(margin, se), _critical(alpha, df)

    def rejects(u: Array) -> Array:
        return np.asarray(special.ndtr(shift - critical * u) * 2 - 1)

    return _expected(rejects, df, shift / critical)  # a larger estimate never passes both


def power_of_non_inferiority(margin: float, se: float, df: int, alpha: float = ALPHA) -> float:
    """Power of the one-sided t test at - margin where the true difference is 0."""
    shift, critical = _ratio(margin, se), _critical(alpha, df)
    return _expected(lambda u: np.asarray(special.ndtr(shift - critical * u)), df)


def power_of(claim: Claim, margin: float, se: float, df: int, alpha: float = ALPHA) -> float:
    """Power to show a claim: a true difference of `margin` for superior, of 0 for the others."""
    return _TESTS[claim](margin, se, df, alpha)


_TESTS: Final = {
    "superior": power_of_t,
    "equivalent": power_of_tost,
    "non-inferior": power_of_non_inferiority,
}


def _ratio(effect: float, se: float) -> float:
    """The effect in standard errors."""
    if not (effect >= 0 and se >= 0 and effect + se > 0):
        raise ValueError(f"got an effect of {effect} with standard error {se}; expected above 0")
    return effect / se if se > 0 else math.inf


def _critical(tail: float, df: int) -> float:
    if df < 1 or not 0 < tail < 0.5:
        raise ValueError(f"got {df} degrees of freedom, a tail of {tail}; expected 1 and (0, 0.5)")
    return float(-special.stdtrit(df, tail))


def _expected(rejects: Callable[[Array], Array], df: int, most: float = math.inf) -> float:
    """E[rejects(u)] over u = estimated / true standard error = sqrt(chi2 / df), up to `most`."""
    share = float(special.gammainc(df / 2, df / 2 * most**2))

    def at(quantile: Array) -> Array:
        return rejects(np.sqrt(special.gammaincinv(df / 2, quantile) * 2 / df))

    return float(fixed_quad(at, 0.0, share, n=NODES)[0])


# ---- what a design can find


def smallest_effect(
    noise: Noise, seeds: int, questions: int, samples: int = 1,
    power: float = POWER, alpha: float = ALPHA,
) -> float:  # fmt: skip
    """The difference that this many seeds, questions and samples find with this power.

    NaN for one seed, which finds nothing of a method.
    """
    return smallest_effect_of(
        math.sqrt(noise.variance(seeds, questions, samples)), seeds, power, alpha
    )


def smallest_effect_of(se: float, seeds: int, power: float = POWER, alpha: float = ALPHA) -> float:
    """The same from the standard error of a contrast that has been made over `seeds` pairs.

    NaN for one seed or without a standard error.
    """
    if seeds < 2 or math.isnan(se):
        return math.nan
    return se * _effect_in_errors(seeds - 1, power, alpha)


@cache
def _effect_in_errors(df: int, power: float, alpha: float) -> float:
    """The effect, in standard errors, which the two-sided t test finds with this power."""
    if not alpha < power < 1:
        raise ValueError(f"got power {power} at alpha {alpha}; expected alpha < power < 1")
    root = math.sqrt(power)  # the estimated error is below `large`, and the difference above it
    large = math.sqrt(float(special.gammaincinv(df / 2, root)) * 2 / df)
    most = _critical(alpha / 2, df) * large + max(0.0, float(special.ndtri(root)))
    return float(brentq(lambda effect: power_of_t(effect, 1.0, df, alpha) - power, 0.0, most))


def seeds_needed(
    noise: Noise, margin: float, questions: int, samples: int = 1, claim: Claim = "superior",
    power: float = POWER, alpha: float = ALPHA, most: int = MOST_SEEDS,
) -> int | None:  # fmt: skip
    """The fewest paired seeds that show the claim at this margin with this power.

    None where `most` do not: at or below `floor` no number of seeds does.
    """

    def enough(seeds: int) -> bool:
        se = math.sqrt(noise.variance(seeds, questions, samples))
        return power_of(claim, margin, se, seeds - 1, alpha) >= power

    candidates = range(2, most + 1)
    found = bisect_left(candidates, True, key=enough)  # power grows with seeds
    return candidates[found] if found < len(candidates) else None


def floor(
    noise: Noise, questions: int, claim: Claim = "superior",
    power: float = POWER, alpha: float = ALPHA,
) -> float:  # fmt: skip
    """The margin that no number of seeds gets below: what is left is noise between questions."""
    tails = {
        "superior": (1 - alpha / 2, power),
        "equivalent": (1 - alpha, (1 + power) / 2),
        "non-inferior": (1 - alpha, power),
    }[claim]
    return float(sum(special.ndtri(tails))) * math.sqrt(noise.question / questions)


# ---- noise from runs


def noise_of(a_S_Q_K: Array, b_S_Q_K: Array) -> Noise:
    """Noise of a contrast from both arms' outcomes; see `pooled_noise`."""
    return pooled_noise([(a_S_Q_K, b_S_Q_K)]).noise


def pooled_noise(strata: Sequence[tuple[Array, Array]]) -> Observed:
    """Unbiased moment estimates, averaged over strata by their degrees of freedom, then floored.

    Args:
        strata: for each, correct_S_Q_K of arm a and of arm b, 1 or 0, NaN = unscored: the same
            seeds, questions and samples in the same order. A question without a sample that both
            arms have scored in every seed is left out of its stratum. With one sample a question,
            sampling and interaction are one term, told as `interaction`: more samples then promise
            nothing.

    Raises `ValueError` without strata, for one seed, and below two questions.
    """
    if not strata:
        raise ValueError("no outcomes to estimate noise from; expected at least one stratum")
    parts = np.array([_moments(_paired(a, b)) for a, b in strata])
    dfs = [np.shape(a)[0] - 1 for a, _ in strata]
    pooled = np.average(parts, axis=0, weights=dfs).clip(min=0.0)
    return Observed(Noise(*(float(part) for part in pooled)), sum(dfs))


def sd_range(df: int, confidence: float = 0.95) -> tuple[float, float]:
    """By which factors of its estimate a standard deviation may be off, low and high."""
    tail = (1 - confidence) / 2
    low, high = (float(special.gammaincinv(df / 2, q)) * 2 for q in (tail, 1 - tail))
    return math.sqrt(df / high), math.sqrt(df / low)


def _paired(a_S_Q_K: Array, b_S_Q_K: Array) -> Array:
    """diff_S_Q_K over the questions with a sample that both arms have scored, in every run."""
    a, b = (np.asarray(arm, dtype=np.float64) for arm in (a_S_Q_K, b_S_Q_K))
    if a.ndim != 3 or a.shape != b.shape:
        raise ValueError(
            f"got outcomes of shapes {a.shape} and {b.shape}; expected seeds × questions × "
            "samples, equal in both arms"
        )
    diff_S_Q_K = b - a
    known_Q = np.isfinite(diff_S_Q_K).any(axis=2).all(axis=0)
    seeds, questions = len(diff_S_Q_K), int(known_Q.sum())
    if seeds < 2 or questions < 2:
        raise ValueError(
            f"got {seeds} seeds and {questions} questions that all runs have scored; "
            "expected at least 2 of each"
        )
    return np.asarray(diff_S_Q_K[:, known_Q])


def _moments(diff_S_Q_K: Array) -> tuple[float, float, float, float]:
    """Seed, question, interaction, sampling by the mean squares of a two-way table; may be < 0."""
    diff_S_Q = np.nanmean(diff_S_Q_K, axis=2)
    seeds, questions = diff_S_Q.shape
    by_seed_S, by_question_Q = diff_S_Q.mean(axis=1), diff_S_Q.mean(axis=0)
    rest_S_Q = diff_S_Q - by_seed_S[:, None] - by_question_Q + diff_S_Q.mean()
    rest = float((rest_S_Q**2).sum()) / ((seeds - 1) * (questions - 1))
    seed = float(by_seed_S.var(ddof=1)) - rest / questions
    question = float(by_question_Q.var(ddof=1)) - rest / seeds
    scored_S_Q = np.isfinite(diff_S_Q_K).sum(axis=2)
    if not (several_S_Q := scored_S_Q > 1).any():
        return seed, question, rest, 0.0
    sampling = float(np.nanvar(diff_S_Q_K[several_S_Q], axis=1, ddof=1).mean())
    return seed, question, rest - sampling * float((1 / scored_S_Q).mean()), sampling
