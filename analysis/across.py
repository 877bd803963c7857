"""A declared contrast across pairs: how many pairs say what, the mean difference, and whether it
differs between pairs.

The mean is of random effects: tau² by Paule and Mandel (1982, J. Res. NBS 87:377), the interval by
Hartung and Knapp on k - 1 degrees of freedom, never narrower than the pairs' own errors allow
(Knapp and Hartung 2003, Stat. Med. 22:2693; their factor is 1 where tau² > 0, and kept at 1 below).
Heterogeneity is Cochran's Q, judged by Welch's test (1951, Biometrika 38:330): a pair's error is
known from few seeds, and against Q's usual chi-square equal pairs of three noisy seeds would be
called different in a quarter of all cases.

Pairs share base models and questions, so they are no independent sample of pairs: the interval
describes these pairs. Leaves out pairs without a verdict or with one seed, which it names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from analysis.contrasts import ALPHA, Comparison
from analysis.declared import Result
from analysis.intervals import NOTHING, Estimate, with_t

Vector = npt.NDArray[np.float64]

NO_VERDICT: Final = "no verdict"
VERDICTS: Final = ("better", "worse", "equivalent", "inconclusive", NO_VERDICT)


class Heterogeneity(NamedTuple):
    """Whether effects differ by more than their errors.

    Attributes:
        q: Cochran's Q, the weighted sum of squares about the weighted mean.
        p: of equal effects, by Welch's test.
        tau: standard deviation of the true effects, by Paule and Mandel.
        i2: Higgins and Thompson's I², the share of the spread that is no error.
    """

    q: float
    p: float
    tau: float
    i2: float


UNKNOWN: Final = Heterogeneity(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Across:
    """One contrast over pairs, each of which it has once.

    Attributes:
        pairs: all of them. used: those in the numbers, which have a verdict and two seeds or more.
        verdicts: by `VERDICTS`, how many pairs have it.
        mean: of b - a over the used pairs; n counts them. Nothing with fewer than two.
        superiority: P(b > a) of two runs of one pair, averaged over the used pairs.
    """

    contrast: str
    pairs: tuple[str, ...]
    used: tuple[str, ...]
    verdicts: dict[str, int]
    mean: Estimate
    heterogeneity: Heterogeneity
    superiority: float

    @property
    def differs(self) -> bool | None:
        """True where pairs differ; None where no difference between them could be told."""
        return True if self.heterogeneity.p < ALPHA else None

    @property
    def text(self) -> str:
        """What it says, in one sentence."""
        counts = ", ".join(f"{name} {n}" for name, n in self.verdicts.items() if n)
        whole = f"{_counted(len(self.pairs))} ({counts})"
        if len(self.used) < 2:
            return (
                f"{whole}: {len(self.used)} of them can be used, which have a verdict and at "
                "least two seeds; a mean over pairs and a difference between them need two"
            )
        found = self.heterogeneity
        told = "differs between pairs" if self.differs else "no difference between pairs is told"
        return (
            f"{whole}: mean difference {self.mean.format(sign=True)} over "
            f"{_counted(len(self.used))} (random effects, which describe these pairs: they share "
            f"models and questions and are no independent sample); {told} (Q = {found.q:.2f}, "
            f"p = {found.p:.3f}, tau = {found.tau:.3f}, I² = {found.i2:.0%}); "
            f"P(improvement) {self.superiority:.2f}"
        )


def by_contrast(results: Iterable[Result]) -> dict[str, tuple[Result, ...]]:
    """Results that differ in their pair alone, by contrast and what else it leaves free:
    `advantage lr=1e-05`."""
    groups: dict[str, tuple[Result, ...]] = {}
    for result in results:
        name = f"{result.contrast.name} {result.where.removeprefix(result.pair).strip()}".strip()
        groups[name] = (*groups.get(name, ()), result)
    return groups


def across(results: Sequence[Result]) -> Across:
    """One contrast over pairs. Raises `ValueError` where results are of several contrasts or have
    a pair twice, or where there are none."""
    names = {result.contrast.name for result in results}
    pairs = tuple(result.pair for result in results)
    if len(names) != 1 or len(set(pairs)) < len(pairs):
        raise ValueError(
            f"got the contrasts {sorted(names)} in the pairs {list(pairs)}; "
            "expected one contrast, and each pair once"
        )
    said = [result.verdict if result.verdict in VERDICTS else NO_VERDICT for result in results]
    used = {r.pair: c for r in results if (c := r.comparison) is not None and _usable(r, c)}
    mean, found = pooled(
        np.array([c.difference.value for c in used.values()]),
        np.array([_error(c) for c in used.values()]),
        np.array([c.difference.df for c in used.values()]),
    )
    shares = [c.superiority for c in used.values()]
    return Across(
        names.pop(), pairs, tuple(used), {name: said.count(name) for name in VERDICTS},
        mean, found, float(np.mean(shares)) if shares else math.nan,
    )  # fmt: skip


def pooled(effects: Vector, errors: Vector, dfs: Vector) -> tuple[Estimate, Heterogeneity]:
    """The mean of k effects under random effects, and how heterogeneous they are.

    `errors` are their standard errors, above 0, known with `dfs` degrees of freedom. Fewer than
    two effects have neither.
    """
    k = len(effects)
    if k < 2:
        return NOTHING, UNKNOWN
    q = _q(effects, errors**2)
    tau2 = _paule_mandel(effects, errors**2)
    weights = 1 / (errors**2 + tau2)
    mean = float(weights @ effects / weights.sum())
    estimate = with_t(mean, math.sqrt(1 / weights.sum()), k - 1.0, k)
    i2 = max(0.0, 1 - (k - 1) / q) if q else 0.0
    return estimate, Heterogeneity(q, _welch_p(q, errors, dfs), math.sqrt(tau2), i2)


def _q(effects: Vector, variances: Vector) -> float:
    weights = 1 / variances
    mean = weights @ effects / weights.sum()
    return float(weights @ (effects - mean) ** 2)


def _paule_mandel(effects: Vector, variances: Vector) -> float:
    """The tau² at which Q, with it in every weight, equals its k - 1; 0 where Q is lower yet."""
    df = len(effects) - 1

    def excess(tau2: float) -> float:
        return _q(effects, variances + tau2) - df

    if excess(0.0) <= 0:
        return 0.0
    high = float(np.ptp(effects) ** 2)  # there Q < sum of squares / range² <= k / 4 <= k - 1
    root: Any = optimize.brentq(excess, 0.0, high, xtol=1e-14)
    return float(root)


def _welch_p(q: float, errors: Vector, dfs: Vector) -> float:
    k, weights = len(errors), errors**-2.0
    spread = float(((1 - weights / weights.sum()) ** 2 / dfs).sum())
    f = q / (k - 1) / (1 + 2 * (k - 2) / (k**2 - 1) * spread)
    return float(stats.f.sf(f, k - 1, (k**2 - 1) / (3 * spread)))


def _usable(result: Result, comparison: Comparison) -> bool:
    return result.verdict != "none" and not math.isnan(comparison.difference.se)


def _error(comparison: Comparison) -> float:
    """Its standard error, no finer than one answer: arms that never differed are not exact."""
    answers = len(comparison.by_seed) * comparison.questions * comparison.samples
    return max(comparison.difference.se, 1 / answers)


def _counted(pairs: int) -> str:
    return f"{pairs} pair{'' if pairs == 1 else 's'}"
