"""Seconds from amounts: a cost model, fitted by phase to finished runs and pulled toward defaults.

A phase's seconds are a sum of its amounts (`cost_sizes.amounts`) with coefficients that are not
negative. They minimise the squared errors as shares of the runs' whole seconds, plus `PULL` times
the squared distances from the defaults, which are first scaled to these runs: so five cells suffice
for other shapes, and what no run shows keeps its default. A model that has runs gets a factor.

Errors are those of each arm's runs as the others predict them, as logarithms. The interval of a sum
of cells takes the errors of one arm's cells as one, for a wrong shape is wrong in every seed, and
adds the drift of the machine's speed, as far as runs show it. Without runs it is `ASSUMED_FACTOR`
both ways, and is no interval of anything measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.cost_runs import Run
from orchestrator.cost_sizes import PHASES, Seen, Sized, Stretch, amounts

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Seconds of one of each amount. On a CPU: of the embedded models on one core, as measured (vLLM's
# with SmolLM2 too). On a GPU: assumed, at a third of what such a card can do, with some
# milliseconds a launch of a pass; vLLM's steps, which replay CUDA graphs, at a third or so of what
# transformers' take, and its start, which compiles and captures them, at a minute.
OUTSIDE: Final = "outside"  # of the rounds
INNER: Final = tuple(phase for phase in PHASES if phase != OUTSIDE)
DEFAULTS: Final[dict[bool, dict[str, tuple[float, ...]]]] = {
    False: {
        "generate": (2.2e-3, 0.4, 0.10, 2.2, 3e-3, 0.4, 0.10),
        "update": (7e-3, 1e-3, 0.06),
        "score": (3e-3, 3.3e-4, 0.02),
        "evaluate": (0.15, 1e-4, 3e-3, 0.4, 0.10, 0.4, 2.2, 3e-3, 0.4, 0.10),
        "other": (0.3, 7e-3, 2.5e-5),
        "outside": (0.3, 2e-3, 10.0, 6.0),
    },
    True: {
        "generate": (3e-2, 6e-3, 2e-5, 0.1, 8e-3, 2e-3, 1e-5),
        "update": (0.1, 2e-3, 6e-5),
        "score": (5e-2, 5e-4, 2e-5),
        "evaluate": (1.0, 1e-3, 3e-2, 6e-3, 2e-5, 6e-5, 0.1, 8e-3, 2e-3, 1e-5),
        "other": (2.0, 0.1, 1e-4),
        "outside": (2.0, 2e-2, 20.0, 60.0),
    },
}
PULL: Final = 0.01
LEAST: Final = 1e-3
SWEEPS: Final = 400
FOLDS: Final = 24
FACTOR_PULL: Final = 2.0  # runs' worth of belief that a model is as the others
ANY: Final = ""  # the factor of a model without runs
ASSUMED_FACTOR: Final = 3.0
# What is believed of an error before there are runs, and how many it counts for.
BELIEVED_SD, BELIEVED_DF = 0.25, 2
# How much faster or slower a machine is later, for other load: believed before it is seen.
DRIFT_SD: Final = 0.1
BLOCK: Final = 5  # consecutive runs of which one is seen


class Estimate(NamedTuple):
    """A number with its 95% interval; `n` counts the finished runs that it rests on."""

    value: float
    low: float
    high: float
    n: int

    def times(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.n)


@dataclass(frozen=True)
class Errors:
    """How far predictions were from what was: log(actual / predicted), by the runs' arms."""

    by_arm: tuple[tuple[float, ...], ...] = ()
    drift: float = DRIFT_SD  # by which the machine's speed changes, as a logarithm

    @property
    def all(self) -> list[float]:
        return [error for arm in self.by_arm for error in arm]

    @property
    def n(self) -> int:
        return len(self.all)

    @property
    def typical(self) -> float:
        """The median of |actual / predicted - 1|; NaN without runs."""
        return float(np.median(np.abs(np.expm1(self.all)))) if self.n else math.nan

    @property
    def largest(self) -> float:
        return float(np.abs(np.expm1(self.all)).max()) if self.n else math.nan

    def interval(self, parts: Mapping[Any, float]) -> Estimate:
        """Of the sum of some parts, whose errors are independent; the scale's error they share."""
        value = sum(parts.values())
        if not self.n:
            return Estimate(value, value / ASSUMED_FACTOR, value * ASSUMED_FACTOR, 0)
        means = [sum(arm) / len(arm) for arm in self.by_arm]
        squares, df = sum(m * m for m in means), BELIEVED_DF + len(means) - 1
        variance = (BELIEVED_DF * BELIEVED_SD**2 + squares) / (BELIEVED_DF + len(means))
        weights = sum((part / value) ** 2 for part in parts.values()) if value else 0.0
        variance = variance * (1 / len(means) + weights) + self.drift**2
        wide = math.exp(t_975(df) * math.sqrt(variance))
        return Estimate(value, value / wide, value * wide, self.n)


def t_975(df: int) -> float:
    """Student's t at 97.5%, to 3% from two degrees of freedom on: a series about the normal's.

    scipy, which would tell it exactly, takes half a second to load.
    """
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / df**power for power, term in enumerate(terms, 1))


@dataclass(frozen=True)
class Fit:
    """Coefficients by phase, a factor by model, and the errors on the runs."""

    coefficients: Mapping[str, Array]
    factors: Mapping[str, float]
    errors: Errors

    def seconds(self, size: Sized, stretch: Stretch, seen: Seen) -> float:
        """Of a stretch of a cell, with its worker's start and end."""
        return sum(self.phases(size, stretch, seen).values())

    def phases(self, size: Sized, stretch: Stretch, seen: Seen) -> dict[str, float]:
        factor = _factor(self.factors, size.model)
        found = amounts(size, stretch, seen)
        told = {p: float(np.dot(found[p], self.coefficients[p])) for p in PHASES}
        return {p: value * (1.0 if p == OUTSIDE else factor) for p, value in told.items()}


def assumed(on_gpus: bool) -> Fit:
    """The defaults, where there is no run."""
    return Fit({phase: np.array(d) for phase, d in DEFAULTS[on_gpus].items()}, {}, Errors())


def fitted(runs: Sequence[Run], on_gpus: bool) -> Fit:
    """A model of some runs' seconds, with its errors; without any the defaults."""
    if not runs:
        return assumed(on_gpus)
    arms: dict[Any, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        arms[run.size].append(i)
    groups = list(arms.values()) if len(arms) > 1 else [[i] for i in range(len(runs))]
    # Few folds of many arms are as good as one for each.
    folds = [sum(groups[k::FOLDS], []) for k in range(min(FOLDS, len(groups)))]
    left_out = [[], *folds] if len(groups) > 1 else [[]]
    data = _Data(runs)
    keep_K_N = np.ones((len(left_out), len(runs)), bool)
    for k, out in enumerate(left_out):
        keep_K_N[k, out] = False
    by_phase = data.solve(keep_K_N, on_gpus)
    predicted_K_N = data.predict(by_phase)
    factors = [_factors(runs, data.total_N / predicted_K_N[k], keep_K_N[k]) for k in
               range(len(left_out))]  # fmt: skip
    coefficients = {phase: found_K_F[0] for phase, found_K_F in by_phase.items()}
    if len(left_out) == 1:  # one run tells nothing of errors beyond what is believed
        return Fit(coefficients, factors[0], Errors(((0.0,) * len(runs),)))
    error_of = {
        i: math.log(data.total_N[i] / predicted_K_N[k, i] / _factor(factors[k], runs[i].size.model))
        for k, out in enumerate(left_out)
        for i in out
    }
    by_arm = tuple(tuple(error_of[i] for i in group) for group in groups)
    drift = _drift([error_of[i] for i in sorted(error_of)])
    return Fit(coefficients, factors[0], Errors(by_arm, drift))


def _drift(errors: Sequence[float]) -> float:
    """What the errors of runs that followed each other have in common, as a standard deviation."""
    blocks = [errors[i : i + BLOCK] for i in range(0, len(errors) - BLOCK + 1, BLOCK)]
    seen = 0.0
    if len(blocks) > 1:
        within = sum(float(np.var(block, ddof=1)) for block in blocks) / len(blocks)
        between = float(np.var([sum(block) / BLOCK for block in blocks], ddof=1))
        seen = max(0.0, between - within / BLOCK)
    df = max(0, len(blocks) - 1)
    return math.sqrt((BELIEVED_DF * DRIFT_SD**2 + df * seen) / (BELIEVED_DF + df))


class _Data:
    """Amounts and seconds of N runs, by phase; `total_N` are of the rounds that were timed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        # The base's evaluation is outside of the rounds.
        timed = [run.stretch._replace(bases=False) for run in runs]
        whole = [amounts(run.size, run.stretch, run.seen) for run in runs]
        inside = [amounts(r.size, s, r.seen) for r, s in zip(runs, timed, strict=True)]
        self.amounts = {p: np.array([found[p] for found in inside]) for p in PHASES}
        evaluated = np.array([found["evaluate"] for found in whole])
        self.base_N_F = evaluated - self.amounts["evaluate"]
        self.seconds = {p: np.array([run.seconds.get(p, 0.0) for run in runs]) for p in INNER}
        self.total_N = np.maximum(np.array(sum(self.seconds.values())), LEAST)
        walls = [math.nan if run.wall is None else run.wall for run in runs]
        self.outside_N = np.array(walls) - self.total_N

    def solve(self, keep_K_N: Mask, on_gpus: bool) -> dict[str, Array]:
        """Coefficients of each phase, for each of K choices of runs: shapes (K, F)."""
        defaults = {p: np.array(d) for p, d in DEFAULTS[on_gpus].items()}
        guessed_N = sum(self.amounts[p] @ defaults[p] for p in INNER)
        whole_K = _ratio(np.broadcast_to(guessed_N, keep_K_N.shape), self.total_N, keep_K_N)
        found = {}
        for phase in INNER:
            told_K_N = np.broadcast_to(self.seconds[phase], keep_K_N.shape)
            default_K_F = whole_K[:, None] * defaults[phase]
            found[phase] = self._phase(phase, told_K_N, keep_K_N, default_K_F)
        # Told by some attempts alone, and by a few new processes: not scaled by themselves.
        beside_K_N = np.maximum(self.outside_N - found["evaluate"] @ self.base_N_F.T, 0.0)
        default_K_F = whole_K[:, None] * defaults[OUTSIDE]
        found[OUTSIDE] = self._phase(OUTSIDE, beside_K_N, keep_K_N, default_K_F)
        return found

    def _phase(self, phase: str, told_K_N: Array, keep_K_N: Mask, default_K_F: Array) -> Array:
        x_N_F = self.amounts[phase]
        known_K_N = keep_K_N & np.isfinite(told_K_N) & (x_N_F.sum(1) > 0)
        y_K_N = np.where(known_K_N, told_K_N, 0.0) / self.total_N
        use_K_N = known_K_N / self.total_N
        scale_K = np.ones(len(keep_K_N))
        if phase != OUTSIDE:
            scale_K = _ratio((default_K_F @ x_N_F.T) * use_K_N, y_K_N, known_K_N)
        unit_K_F = default_K_F * np.maximum(scale_K, LEAST)[:, None]
        z_K_N_F = x_N_F * unit_K_F[:, None, :] * use_K_N[:, :, None]
        return unit_K_F * nonnegative(z_K_N_F, y_K_N)

    def predict(self, by_phase: Mapping[str, Array]) -> Array:
        """Seconds of the timed rounds, of each choice of runs: (K, N)."""
        return np.maximum(np.array(sum(by_phase[p] @ self.amounts[p].T for p in INNER)), LEAST)


def _ratio(x_K_N: Array, y_N: Array, keep_K_N: Mask) -> Array:
    """The factor of x that is nearest to y in relative errors; 1 where there is nothing."""
    x_K_N, y_K_N = np.where(keep_K_N, x_K_N, 0.0), np.where(keep_K_N, y_N, 0.0)
    size_K_N = np.maximum(np.maximum(x_K_N, y_K_N), 1e-12)
    over, under = ((a * x_K_N / size_K_N**2).sum(1) for a in (y_K_N, x_K_N))
    return np.where(under > 0, over / np.maximum(under, 1e-12), 1.0)


def nonnegative(x_K_N_F: Array, y_K_N: Array, pull: float = PULL) -> Array:
    """K regressions with coefficients of at least 0, pulled toward 1: shape (K, F).

    The pull makes each strictly convex, so that coordinate descent ends at its one solution.
    """
    many = x_K_N_F.shape[2]
    a_K_F_F = np.einsum("knf,kng->kfg", x_K_N_F, x_K_N_F) + pull * np.eye(many)
    b_K_F = np.einsum("knf,kn->kf", x_K_N_F, y_K_N) + pull
    found_K_F = np.ones_like(b_K_F)
    for _ in range(SWEEPS):
        for f in range(many):
            rest_K = (a_K_F_F[:, f] * found_K_F).sum(1) - a_K_F_F[:, f, f] * found_K_F[:, f]
            found_K_F[:, f] = np.maximum(0.0, (b_K_F[:, f] - rest_K) / a_K_F_F[:, f, f])
    return found_K_F


def _factor(factors: Mapping[str, float], model: str) -> float:
    return factors.get(model, factors.get(ANY, 1.0))


def _factors(runs: Sequence[Run], ratio_N: Array, keep_N: Iterable[np.bool_]) -> dict[str, float]:
    """By model, what its runs took over what is predicted, drawn toward that of all (`ANY`).

    Means, not medians: it is sums of cells that are predicted, and slow ones weigh in them.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    for run, ratio, keep in zip(runs, ratio_N, keep_N, strict=True):
        if keep:
            ratios[run.size.model].append(float(ratio))
    every = [ratio for found in ratios.values() for ratio in found]
    mean = sum(every) / len(every)
    drawn = {m: (sum(f) + FACTOR_PULL * mean) / (len(f) + FACTOR_PULL) for m, f in ratios.items()}
    return {**drawn, ANY: mean}
