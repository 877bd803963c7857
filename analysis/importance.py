"""Which choices matter: how much of the variance of a full grid's runs each factor explains.

Variance shares of a balanced, fully crossed grid, with the noise between seeds as the error. They
are omega-squared (Hays 1963, "Statistics for Psychologists"), a ratio of unbiased components:

    share of A     = (SS_A - df_A MS_seeds) / (SS_total + MS_seeds)
    share of seeds = N MS_seeds             / (SS_total + MS_seeds)

over N runs; SS are sums of squares, MS_seeds the mean square between the seeds of a combination.
They estimate variance of A / (variance of all effects + variance of seeds). The shares of all
effects and of the seeds sum to 1. A share may come out below 0, which says "no sign of an effect":
clipping would bias it and break the sum, so only its interval is held within 0 and 1.

What they are said of: these very levels, on this very test set. The error of a run's evaluation is
in the noise of its seed. So is a shift that a seed gives to all combinations alike: where a grid
pairs its seeds, the factors are told too small rather than too large. Leaves out grids that are not
balanced, for which there is `surrogate.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special, stats

from analysis.intervals import CONFIDENCE, Estimate
from grids.errors import InputError, listed

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Axes = tuple[int, ...]

SEEDS = "seeds"
HIGHER = "higher interactions"
NODES = 16  # of the integration behind an interval: right to .001, to .01 with 2 df of error
FAR = 100.0  # a noncentral chi-square above this many degrees of freedom is taken for far out


@dataclass(frozen=True)
class Factor:
    """A setting that varies, or several that vary as one."""

    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """`advantage`; `batch×rollouts` where settings vary as one."""
        return "×".join(self.names)

    def codes(self, frame: pd.DataFrame) -> Codes:
        """The level of each run as a number: levels are sorted, a missing setting is last."""
        groups = frame.groupby(list(self.names), dropna=False, sort=True)
        return np.asarray(groups.ngroup(), dtype=np.int64)

    def levels(self, frame: pd.DataFrame) -> tuple[str, ...]:
        """What the levels are called, in the order of their codes: `grpo`; `(32,8)`."""
        first = np.unique(self.codes(frame), return_index=True)[1]
        columns = ([_written(x) for x in frame[name].iloc[first]] for name in self.names)
        rows = zip(*columns, strict=True)
        return tuple(f"({','.join(row)})" if len(row) > 1 else row[0] for row in rows)


@dataclass(frozen=True)
class Share:
    """A part of the variance of all runs.

    The estimate has no standard error, for its interval is skewed; its n counts runs, its df are
    those of the error. `f` and `p` test that the part is nothing; NaN for the seeds, which are the
    error, and where neither the part nor the seeds vary.
    """

    name: str  # `model`; `model:advantage` for an interaction; HIGHER; SEEDS
    estimate: Estimate
    f: float
    p: float
    df: int
    df_error: int
    order: int  # 1 a factor, 2 an interaction of two, 3 all higher ones together, 0 the seeds


class _Sum(NamedTuple):
    """A sum of squares and its degrees of freedom."""

    ss: float
    df: int


class Design(NamedTuple):
    """Runs as a design of experiments sees them."""

    shape: tuple[int, ...]  # number of levels of each factor
    cells: Codes  # the combination of levels of each run, as one number
    values: Floats  # of each run


def factors(
    frame: pd.DataFrame, names: Sequence[str], tied: Collection[str] = ()
) -> tuple[Factor, ...]:
    """The factors among the settings `names`, in their order; a setting of one level is none.

    Settings that determine one another over the rows present cannot be told apart and are one
    factor; so are those that the grid's budget has `tied`, such as batch, rollouts and replay, of
    which none can vary alone. One row is one run. Raises `InputError` where the frame has no row
    or lacks a setting.
    """
    _require(frame, names)
    varying = [Factor((name,)) for name in names if frame[name].nunique(dropna=False) > 1]
    apart = _joined(varying, [None if one.name in tied else one.name for one in varying])
    patterns = (pd.factorize(factor.codes(frame))[0] for factor in apart)
    return _joined(apart, [pattern.tobytes() for pattern in patterns])


def variance_shares(
    frame: pd.DataFrame, factors: Sequence[Factor], value: str = "value"
) -> tuple[Share, ...]:
    """Shares of each factor, of each pair of factors, of all higher interactions, of the seeds.

    `frame` has one row a run: the factors' settings, `seed` and `value`. Raises `InputError` where
    the design is not balanced and fully crossed with at least 2 seeds a combination, where a value
    is missing, and where all values are equal.
    """
    values_L_S = _balanced(frame, factors, value)  # one axis a factor, then seeds
    scale = float(np.abs(values_L_S).max())
    means_L = values_L_S.mean(axis=-1)
    noise_L_S = _without_rounding(values_L_S - means_L[..., None], scale)
    noise = _Sum(float((noise_L_S**2).sum()), values_L_S.size - means_L.size)
    parts = {
        axes: _Sum(float((effect_L**2).mean()) * values_L_S.size, _df(axes, means_L.shape))
        for axes, effect_L in _effects(means_L, scale).items()
    }
    every = _Sum(sum(part.ss for part in parts.values()), means_L.size - 1)
    shares = [_share(axes, factors, part, every, noise) for axes, part in parts.items()]
    return (*shares, _noise_share(every, noise))


def design(frame: pd.DataFrame, factors: Sequence[Factor], value: str) -> Design:
    """The runs of a frame; raises `InputError` where they cannot tell one factor's effect."""
    if not factors:
        raise InputError("no factor varies, so there is nothing to compare; widen an axis")
    _require(frame, [*(name for factor in factors for name in factor.names), "seed", value])
    values = frame[value].to_numpy(dtype=np.float64)
    if missing := int((~np.isfinite(values)).sum()):
        raise InputError(
            f"{value} is missing in {missing} of {len(values)} runs; leave them out, and say so"
        )
    if np.ptp(values) == 0:
        raise InputError(f"{value} is {values[0]:g} in all {len(values)} runs: nothing to explain")
    codes = [factor.codes(frame) for factor in factors]
    for factor, levels in zip(factors, codes, strict=True):
        if levels.max() == 0:
            raise InputError(f"{factor.name} has one level in these runs; leave it out")
    shape = tuple(int(levels.max()) + 1 for levels in codes)
    cells = np.ravel_multi_index(tuple(codes), shape)
    if pd.DataFrame({"cell": cells, "seed": frame["seed"].to_numpy()}).duplicated().any():
        raise InputError(
            f"a combination of {_listed(factors)} has a seed twice: a run is given twice, or a "
            "setting varies that is no factor; give each run once and name every such setting"
        )
    return Design(shape, cells.astype(np.int64), values)


def _balanced(frame: pd.DataFrame, factors: Sequence[Factor], value: str) -> Floats:
    """The values as an array: one axis a factor, the last one seeds."""
    shape, cells, values = design(frame, factors, value)
    held, counts = np.unique(cells, return_counts=True)
    low, high, of = counts.min(), counts.max(), f"of {_listed(factors)}"
    if len(held) < math.prod(shape):
        why = f"{len(held)} of the {math.prod(shape)} combinations {of} have runs; all have to"
    elif low < high:
        why = f"combinations {of} have {low} to {high} runs; equally many are needed"
    elif low < 2:
        why = f"combinations {of} have one run each, so there is no noise to compare with"
    else:
        return values[np.argsort(cells, kind="stable")].reshape(*shape, low)
    raise InputError(f"{why}; finish the grid's runs, add seeds, or leave fewer combinations out")


def _effects(means_L: Floats, scale: float) -> dict[Axes, Floats]:
    """Main effects, two-way interactions and the rest, each an array that broadcasts to means_L.

    Their squares, summed over the combinations, add up to those of the means about their mean.
    """
    every = range(means_L.ndim)
    effects: dict[Axes, Floats] = {(): means_L.mean(keepdims=True)}
    for axes in [(axis,) for axis in every] + list(itertools.combinations(every, 2)):
        others = tuple(axis for axis in every if axis not in axes)
        lower = sum(effect for known, effect in effects.items() if set(known) < set(axes))
        effects[axes] = means_L.mean(axis=others, keepdims=True) - lower
    if means_L.ndim > 2:
        effects[tuple(every)] = means_L - sum(effects.values())
    del effects[()]
    return {axes: _without_rounding(effect, scale) for axes, effect in effects.items()}


def _df(axes: Axes, shape: tuple[int, ...]) -> int:
    """Degrees of freedom of an effect; those of the higher interactions are what is left."""
    if len(axes) < 3:
        return math.prod(shape[axis] - 1 for axis in axes)
    lower = [(axis,) for axis in axes] + list(itertools.combinations(axes, 2))
    return math.prod(shape) - 1 - sum(_df(known, shape) for known in lower)


def _share(axes: Axes, factors: Sequence[Factor], part: _Sum, every: _Sum, noise: _Sum) -> Share:
    n, mean_square = every.df + noise.df + 1, noise.ss / noise.df
    share = (part.ss - part.df * mean_square) / (every.ss + noise.ss + mean_square)
    rest = _Sum(max(every.ss - part.ss, 0.0), every.df - part.df)
    low, high = _interval(part, rest, noise)
    f, p = _f_test(part, noise)
    name = HIGHER if len(axes) > 2 else ":".join(factors[axis].name for axis in axes)
    estimate = Estimate(share, math.nan, low, high, float(noise.df), n)
    return Share(name, estimate, f, p, part.df, noise.df, min(len(axes), 3))


def _noise_share(every: _Sum, noise: _Sum) -> Share:
    n, mean_square = every.df + noise.df + 1, noise.ss / noise.df
    share = n * mean_square / (every.ss + noise.ss + mean_square)
    low, high = _interval(every, _Sum(0.0, 0), noise)
    estimate = Estimate(share, math.nan, 1 - high, 1 - low, float(noise.df), n)
    return Share(SEEDS, estimate, math.nan, math.nan, noise.df, noise.df, 0)


def _f_test(part: _Sum, noise: _Sum) -> tuple[float, float]:
    """F and its p-value."""
    if noise.ss == 0:
        return (math.nan, math.nan) if part.ss == 0 else (math.inf, 0.0)
    f = (part.ss / part.df) / (noise.ss / noise.df)
    return f, float(stats.f.sf(f, part.df, noise.df))


def _interval(part: _Sum, rest: _Sum, noise: _Sum) -> tuple[float, float]:
    """The 95% interval of a share: a generalized one (Weerahandi 1993, JASA 88:899).

    The true share is L / (L + L_rest + N), where a sum of squares over the variance of the seeds is
    a noncentral chi-square of noncentrality L. Each of the three sums is inverted at levels of its
    own and the levels are integrated out, on M nodes each. Where there is no other effect this is
    the inversion of the noncentral F distribution, and in any case `low` is above 0 where F is
    significant at 2.5%. scipy's `ncf` is not used, for its cdf is NaN at large noncentralities.
    """
    if noise.ss == 0:
        share = part.ss / (part.ss + rest.ss)
        return share, share
    n = part.df + rest.df + noise.df + 1
    nodes_M, weight_M = np.polynomial.legendre.leggauss(NODES)  # of the interval from -1 to 1
    level_M, weight_M = (nodes_M + 1) / 2, weight_M / 2
    precision_M_1 = (stats.chi2.ppf(level_M, noise.df) / noise.ss)[:, None]
    rest_M_M = _noncentrality(rest.ss * precision_M_1, rest.df, level_M)

    def below(share: float) -> float:
        """How far the runs speak for a true share of at most this."""
        at_M_M = share / (1 - share) * (rest_M_M + n)
        over_M_M = 1 - _chi_square_cdf(part.ss * precision_M_1, part.df, at_M_M)
        return float(weight_M @ over_M_M @ weight_M)

    tail = (1 - CONFIDENCE) / 2
    return _where(below, tail), _where(below, 1 - tail)


def _where(below: Callable[[float], float], level: float) -> float:
    """The share at which a rising function of it reaches the level."""
    least, most = 0.0, 1 - 1e-9
    if below(least) >= level:
        return 0.0
    if below(most) <= level:
        return 1.0
    return float(optimize.brentq(lambda share: below(share) - level, least, most, xtol=1e-6))


def _chi_square_cdf(x: Floats, df: int, noncentrality: Floats) -> Floats:
    """Of the noncentral chi-square; far out its square root is normal, and scipy's series slow."""
    x, noncentrality = np.broadcast_arrays(x, noncentrality)
    far = x > FAR * df
    normal = special.ndtr(np.sqrt(x) - np.sqrt(noncentrality + df - 1))
    return np.where(far, normal, special.chndtr(np.where(far, 1, x), df, noncentrality * ~far))


def _noncentrality(x: Floats, df: int, level: Floats) -> Floats:
    """Where that cdf at x comes down to the level; 0 where it never is above it."""
    x, level = np.broadcast_arrays(x, level)
    if df == 0:
        return np.zeros_like(x)
    far = x > FAR * df
    normal = (np.sqrt(x) - special.ndtri(level)) ** 2 - (df - 1)
    near = special.chndtrinc(np.where(far, 1, x), df, level)
    return np.where(special.chdtr(df, x) <= level, 0.0, np.where(far, normal, near))


def _without_rounding(x: Floats, scale: float) -> Floats:
    """Zeros for what the arithmetic leaves of equal values: it must not pass for an effect."""
    return np.where(np.abs(x) < 1e-12 * scale, 0.0, x)


def _joined(found: Sequence[Factor], keys: Iterable[object]) -> tuple[Factor, ...]:
    """Factors of one key become one."""
    groups: dict[object, tuple[str, ...]] = {}
    for factor, key in zip(found, keys, strict=True):
        groups[key] = groups.get(key, ()) + factor.names
    return tuple(Factor(names) for names in groups.values())


def _require(frame: pd.DataFrame, names: Iterable[str]) -> None:
    if frame.empty:
        raise InputError("no run: got an empty frame")
    if absent := [name for name in names if name not in frame]:
        raise InputError(
            f"no column {', '.join(absent)}; allowed: {listed(map(str, frame.columns))}"
        )


def _listed(factors: Sequence[Factor]) -> str:
    return ", ".join(factor.name for factor in factors)


def _written(value: object) -> str:
    if value is None or value != value:  # None or NaN
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
