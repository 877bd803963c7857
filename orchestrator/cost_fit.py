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
from orchestrator.cost_sizes import Amounts, Seen, Sized, Stretch, amounts

Array = npt.NDArray[np.float64]

# Seconds of one of each amount. On a CPU: of the embedded models on one core, as measured. On a
# GPU: assumed, at a third of what such a card can do, with some milliseconds a launch of a pass.
PHASES: Final[dict[str, tuple[str, ...]]] = {
    "generate": ("steps", "steps × parameters", "tokens × parameters"),
    "update": ("updates", "rows", "tokens × parameters"),
    "score": ("rounds", "rows", "tokens × parameters"),
    "evaluate": (
        "evaluations", "answers", "steps", "steps × parameters", "tokens × parameters",
        "looked at × parameters",
    ),
    "other": ("starts", "rounds", "rows"),
    "outside": ("starts", "rounds", "new processes"),
}  # fmt: skip
DEFAULTS: Final[dict[bool, dict[str, tuple[float, ...]]]] = {
    False: {
        "generate": (2.2e-3, 0.4, 0.10),
        "update": (7e-3, 1e-3, 0.06),
        "score": (3e-3, 3.3e-4, 0.02),
        "evaluate": (0.15, 1e-4, 3e-3, 0.4, 0.10, 0.4),
        "other": (0.3, 7e-3, 2.5e-5),
        "outside": (0.2, 2e-3, 7.0),
    },
    True: {
        "generate": (3e-2, 6e-3, 3e-5),
        "update": (0.1, 2e-3, 1e-4),
        "score": (5e-2, 5e-4, 3e-5),
        "evaluate": (1.0, 1e-3, 3e-2, 6e-3, 3e-5, 1e-4),
        "other": (2.0, 0.1, 1e-4),
        "outside": (2.0, 2e-2, 20.0),
    },
}
PULL: Final = 0.01
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
        return {
            phase: factor * float(np.dot(found[phase], self.coefficients[phase]))
            for phase in PHASES
        }


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
    data = _Data.of(runs)
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
    return Fit(coefficients, factors[0], Errors(by_arm, _drift([error_of[i] for i in sorted(error_of)])))


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
    """Amounts and seconds of N runs, by phase."""

    def __init__(self, amounts_N: list[Amounts], seconds: dict[str, Array], total_N: Array) -> None:
        self.seconds, self.total_N = seconds, total_N
        self.amounts = {p: np.array([found[p] for found in amounts_N]) for p in PHASES}

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Data:
        found = [amounts(run.size, run.stretch, run.seen) for run in runs]
        # The base's evaluation is outside of the rounds that were timed.
        timed = [r.stretch._replace(bases=False) for r in runs]
        inside = [amounts(r.size, s, r.seen) for r, s in zip(runs, timed, strict=True)]
        for whole, part in zip(found, inside, strict=True):
            whole["evaluate"] = part["evaluate"]
        seconds = {
            p: np.array([r.seconds.get(p, 0.0) for r in runs]) for p in PHASES if p != "outside"
        }
        total = np.array(sum(seconds.values()))
        seconds["outside"] = np.array(
            [math.nan if r.wall is None else max(0.0, r.wall - t)
             for r, t in zip(runs, total, strict=True)]
        )  # fmt: skip
        return cls(found, seconds, np.maximum(total, 1e-3))

    def solve(self, keep_K_N: npt.NDArray[np.bool_], on_gpus: bool) -> dict[str, Array]:
        """Coefficients of each phase, for each of K choices of runs: shapes (K, F)."""
        defaults = {p: np.array(d) for p, d in DEFAULTS[on_gpus].items()}
        inner = [p for p in PHASES if p != "outside"]
        guessed_N = sum(self.amounts[p] @ defaults[p] for p in inner)
        whole_K = _ratio(np.broadcast_to(guessed_N, keep_K_N.shape), self.total_N, keep_K_N)
        return {p: self._phase(p, keep_K_N, whole_K[:, None] * defaults[p]) for p in PHASES}

    def _phase(self, phase: str, keep_K_N: npt.NDArray[np.bool_], default_K_F: Array) -> Array:
        told_N = self.seconds[phase]
        known_N = np.isfinite(told_N) & (self.amounts[phase].sum(1) > 0)
        use_K_N = (keep_K_N & known_N) / self.total_N
        y_N, x_N_F = np.where(known_N, told_N, 0.0), self.amounts[phase]
        guessed_K_N = default_K_F @ x_N_F.T
        some_K = (keep_K_N & known_N).any(1) & (phase != "outside")
        scale_K = np.where(some_K, _ratio(guessed_K_N * use_K_N, y_N * use_K_N, keep_K_N), 1.0)
        unit_K_F = default_K_F * np.maximum(scale_K, 1e-3)[:, None]
        z_K_N_F = x_N_F * unit_K_F[:, None, :] * use_K_N[:, :, None]
        return unit_K_F * nonnegative(z_K_N_F, y_N * use_K_N)

    def predict(self, by_phase: Mapping[str, Array]) -> Array:
        """Seconds of the timed rounds, of each choice of runs: (K, N)."""
        inner = [by_phase[p] @ self.amounts[p].T for p in PHASES if p != "outside"]
        return np.maximum(np.array(sum(inner)), 1e-3)


def _ratio(x_K_N: Array, y_N: Array, keep_K_N: npt.NDArray[np.bool_]) -> Array:
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
