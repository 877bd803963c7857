"""Two arms compared: the difference b - a in Pass@1, paired over seeds and questions.

`compare` is the whole statistics of one comparison; a verdict follows from it by a rule, never from
a person. A difference of arms holds for questions and seeds like these (two-way clustered t); for
this very test set `fixed_questions` is the paired t over seeds. Training seeds are what a claim
about a method is made of: one seed gives a difference and no verdict but "inconclusive".

Leaves out which contrasts a grid declares and what becomes of them there (`declared.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.intervals import Estimate, Matrix, mean_t, two_way, two_way_variances
from analysis.outcomes import Outcomes, Unusable, differing_samples, reordering
from analysis.power import smallest_effect_of

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
ALPHA: Final = 0.05
MARGIN: Final = 0.02


@dataclass(frozen=True)
class Discordant:
    """Answers, over all paired seeds, that one arm alone got right; K samples count as their mean.

    `pairs` is seeds × questions.
    """

    a_only: float
    b_only: float
    pairs: int


@dataclass(frozen=True)
class NoiseShares:
    """What the variance of the difference is made of, in shares that sum to 1; NaN for one seed."""

    seed: float
    question: float
    rest: float  # their interaction and the sampling of answers


@dataclass(frozen=True)
class Comparison:
    """`b` against `a`: every difference is b - a, of one Pass@1.

    Attributes:
        difference: seeds and questions both random; its df is seeds - 1.
        fixed_questions: the same value with a paired t over seeds, for this very test set.
        by_seed: the difference of each paired seed.
        unpaired: seeds that only one arm has, which count in nothing.
        questions: answered and scored by both arms in every paired seed.
        unscored: questions left out, because an arm's answer could not be scored.
        samples: a question, K.
        seed_correlation: of the arms' Pass@1 over seeds; NaN below three seeds.
        p: two-sided, of no difference. p_family: the same after Holm over the declared family.
        tost_p: of a true difference beyond the margin; small says equivalent.
        non_inferior_p: of b being worse by the margin or more; small says non-inferior.
        superiority: share of all pairs of one b and one a run in which b is higher, ties half.
        smallest_effect: that a design with this noise finds in 80 of 100 repetitions.
    """

    difference: Estimate
    fixed_questions: Estimate
    by_seed: dict[int, float]
    unpaired: tuple[tuple[int, ...], tuple[int, ...]]
    questions: int
    unscored: int
    samples: int
    discordant: Discordant
    noise: NoiseShares
    seed_correlation: float
    margin: float
    p: float
    tost_p: float
    non_inferior_p: float
    superiority: float
    smallest_effect: float
    p_family: float
    family_size: int = 1

    @property
    def verdict(self) -> Verdict:
        """By the rule: better or worse where the interval excludes 0 and the family's p is below
        0.05; else equivalent where TOST's is; else inconclusive, as one seed always is."""
        estimate = self.difference
        if len(self.by_seed) < 2 or math.isnan(estimate.low):
            return "inconclusive"
        if self.p_family < ALPHA and (estimate.low > 0 or estimate.high < 0):
            return "better" if estimate.value > 0 else "worse"
        return "equivalent" if self.tost_p < ALPHA else "inconclusive"

    def __str__(self) -> str:
        """For people. A declared contrast has its own words (`declared.Result.told`)."""
        seeds = f"{len(self.by_seed)} seed{'' if len(self.by_seed) == 1 else 's'}"
        return (
            f"b - a {self.difference.format(sign=True)}, {seeds}, {self.questions} questions, "
            f"margin {self.margin:g}: {self.verdict} (exploratory: no grid declares it)"
        )

    def in_family(self, p_family: float, size: int) -> Comparison:
        """The same comparison, its p corrected for the others of its family."""
        return replace(self, p_family=p_family, family_size=size)


def compare(
    a: Outcomes | npt.ArrayLike, b: Outcomes | npt.ArrayLike, *, margin: float = MARGIN
) -> Comparison:
    """Compare two arms on their common seeds and equal questions.

    Arms are `Outcomes`, or arrays correct_S_Q_K (or correct_S_Q) whose rows and columns pair by
    position, 1 right, 0 wrong, NaN not scored. Raises `Unusable` where the arms have no seed in
    common, other questions, or another number of samples; `ValueError` for a margin that is none.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin: got {margin}; expected a share above 0 and below 1")
    a, b = _outcomes(a), _outcomes(b)
    seeds = tuple(seed for seed in a.seeds if seed in b.seeds)
    if not seeds:
        raise Unusable(f"no common seed: a has {_told(a.seeds)}, b has {_told(b.seeds)}")
    unpaired = (
        tuple(seed for seed in a.seeds if seed not in seeds),
        tuple(seed for seed in b.seeds if seed not in seeds),
    )
    a, b = a.of_seeds(seeds), b.of_seeds(seeds)
    if a.samples != b.samples:
        raise Unusable(differing_samples(a.correct_S_Q_K, b.correct_S_Q_K, ("a", "b")))
    order = reordering(a.questions, b.questions, ("a", "b"))
    a_S_Q, b_S_Q = a.means_S_Q, b.means_S_Q[:, order]
    scored = np.flatnonzero(np.isfinite(b_S_Q - a_S_Q).all(axis=0))
    if len(scored) < 2:
        raise Unusable(f"{len(scored)} questions were scored in every run; at least 2 are needed")
    made = _compared(a_S_Q[:, scored], b_S_Q[:, scored], seeds, margin)
    left_out = len(a.questions) - len(scored)
    return replace(made, unpaired=unpaired, samples=a.samples, unscored=left_out)


def _compared(a_S_Q: Matrix, b_S_Q: Matrix, seeds: tuple[int, ...], margin: float) -> Comparison:
    diff_S_Q = b_S_Q - a_S_Q
    diff_S = diff_S_Q.mean(axis=1)
    difference = two_way(diff_S_Q)
    tost_p, non_inferior_p = tost(difference, margin)
    return Comparison(
        difference, mean_t(diff_S), dict(zip(seeds, diff_S.tolist(), strict=True)),
        ((), ()), diff_S_Q.shape[1], 0, 1, _discordant(diff_S_Q), noise_shares(diff_S_Q),
        _correlation(a_S_Q.mean(axis=1), b_S_Q.mean(axis=1)), margin,
        difference.p, tost_p, non_inferior_p,
        superiority(a_S_Q.mean(axis=1), b_S_Q.mean(axis=1)),
        smallest_effect_of(difference.se, len(seeds)), difference.p,
    )  # fmt: skip


def tost(difference: Estimate, margin: float) -> tuple[float, float]:
    """p-values of "beyond the margin" on either side, and of "worse by the margin or more".

    Two one-sided t tests (Schuirmann 1987); the first is the larger of the two. NaN without an
    interval.
    """
    if math.isnan(difference.se):
        return math.nan, math.nan
    below = _upper_tail(difference.value + margin, difference)
    above = _upper_tail(margin - difference.value, difference)
    return max(below, above), below


def _upper_tail(distance: float, difference: Estimate) -> float:
    """P(T > distance / se): small where the estimate is far on the right side of a bound."""
    if difference.se == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / difference.se, difference.df))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down p-values, in the order given.

    A comparison without a p-value keeps its place in the family, as if it were 1, and stays NaN:
    what could not be computed makes the others no easier.
    """
    p = np.asarray(p_values, dtype=np.float64)
    filled = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(filled, kind="stable")
    steps = filled[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(x) for x in np.where(np.isnan(p), np.nan, adjusted)]


def superiority(a_S: npt.NDArray[Any], b_S: npt.NDArray[Any]) -> float:
    """P(b > a) + P(b = a)/2 over all pairs of runs (Mann and Whitney's U over its maximum)."""
    above = (b_S[:, None] > a_S[None, :]).mean() + 0.5 * (b_S[:, None] == a_S[None, :]).mean()
    return float(above)


def noise_shares(diff_S_Q: Matrix) -> NoiseShares:
    """Seed, question and the rest in the variance of the mean difference, none below 0.

    V_seed holds V_cell once, as V_question does: what is the clusters' own is the excess over it.
    """
    if diff_S_Q.shape[0] < 2:
        return NoiseShares(math.nan, math.nan, math.nan)
    parts = two_way_variances(diff_S_Q)
    own = [max(parts.seed - parts.cell, 0.0), max(parts.question - parts.cell, 0.0), parts.cell]
    whole = sum(own)
    seed, question, rest = (part / whole if whole else math.nan for part in own)
    return NoiseShares(seed, question, rest)


def _discordant(diff_S_Q: Matrix) -> Discordant:
    a_only, b_only = np.maximum(-diff_S_Q, 0).sum(), np.maximum(diff_S_Q, 0).sum()
    return Discordant(float(a_only), float(b_only), int(diff_S_Q.size))


def _correlation(a_S: npt.NDArray[Any], b_S: npt.NDArray[Any]) -> float:
    if len(a_S) < 3 or np.ptp(a_S) == 0 or np.ptp(b_S) == 0:
        return math.nan
    return float(np.corrcoef(a_S, b_S)[0, 1])


def _outcomes(arm: Outcomes | npt.ArrayLike) -> Outcomes:
    if isinstance(arm, Outcomes):
        return arm
    array = np.asarray(arm, dtype=np.float32)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"got an array of shape {array.shape}; expected S × Q × K or S × Q")
    names = tuple(str(i) for i in range(array.shape[1]))
    return Outcomes(tuple(range(array.shape[0])), names, array)


def _told(seeds: tuple[int, ...]) -> str:
    return ", ".join(f"s{seed}" for seed in seeds) or "none"
