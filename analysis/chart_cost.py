"""Gain in test Pass@1 against what training generated: a panel a pair, with its Pareto front.

The front is that of the means: an arm is on it if no other arm of the pair gained as much for as
little. What intervals leave open is for contrasts to say. Leaves out other costs (the tables have
them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from analysis.chart_heat import gain_of
from analysis.chart_page import (
    HEIGHTS,
    NO_RUN,
    Room,
    Words,
    even_ticks,
    joined,
    log_ticks,
    say_nothing,
    shown,
)
from analysis.chart_panels import (
    heading,
    laid,
    legend_of,
    looks,
    missing,
    of_pairs,
    over,
    remarks,
    seeds,
)
from analysis.chart_style import GREY, Look, styled
from analysis.intervals import NOTHING, Estimate
from analysis.sheet import unit_of
from analysis.tables import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE: Final = 0.35  # how opaque a dominated arm is
EQUAL: Final = 1.05  # costs within this factor are equal: lengths of responses vary by chance
LEAST: Final = 0.05  # of gain, that a panel is high
APART: Final = 0.045  # of the axis, from one point to the next where they are equally dear


class Point(NamedTuple):
    """What an arm cost and gained."""

    label: str
    cost: Estimate  # tokens, of a unit
    gain: Estimate


Ends = tuple[float, float]


def has_choice(table: Table) -> bool:
    """Some pair has two arms or more that train other policies."""
    pairs = [row.pair for row in table.rows if row.arm.twin is None]
    return len(set(pairs)) < len(pairs)


@styled
def gain_against_cost(table: Table) -> Figure:
    """Gain over generated tokens."""
    unit = unit_of(map(cost_of, table.rows))
    lines = of_pairs(table)
    styles = looks(lines)
    words = Words(
        heading(table, "gain against cost"), _caption(table),
        f"generated tokens ({unit.name + 's, ' if unit.name else ''}log scale)",
        "gain in test Pass@1", remarks(table),
    )  # fmt: skip
    legend = legend_of(lines, linestyle="", markersize=5)
    figure, placed = laid(lines, words, Room(HEIGHTS[len(lines[0])] + 0.1), legend)
    made = [points_of(panel.drawn, unit.size) for panel, _ in placed]
    every = [point for points in made for point in points]
    for (panel, axes), points in zip(placed, made, strict=True):
        if points:
            axes.set(xscale="log", xlim=_costs(every), ylim=_gains(every))
            _draw(axes, points, styles)
            log_ticks(axes.xaxis)
            even_ticks(axes.yaxis)
        else:
            gained = any(gain_of(row).n for row in panel.drawn)
            say_nothing(axes, "no cost is known" if gained else NO_RUN)
    return figure


def cost_of(row: Row) -> Estimate:
    """The tokens that its training generated; NOTHING where that is not known."""
    return row.estimates.get("generated_tokens", NOTHING)


def points_of(rows: Sequence[Row], size: float) -> list[Point]:
    """Arms of which both cost and gain are known; costs in units of so many tokens."""
    found = []
    for row in rows:
        cost, gain = cost_of(row), gain_of(row)
        if gain.n and cost.n and cost.value > 0:
            found.append(Point(row.arm.label, scaled(cost, size), gain))
    return found


def scaled(estimate: Estimate, size: float) -> Estimate:
    """The estimate in units of this size."""
    value, se, low, high = (
        x / size for x in (estimate.value, estimate.se, estimate.low, estimate.high)
    )
    return replace(estimate, value=value, se=se, low=low, high=high)


def levels(costs: Sequence[float]) -> list[list[int]]:
    """Places of the points by what they cost, those that are equally dear together."""
    found: list[list[int]] = []
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        if found and costs[i] < EQUAL * costs[found[-1][0]]:
            found[-1].append(i)
        else:
            found.append([i])
    return [sorted(level) for level in found]


def front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Places of the points that no other dominates, by cost.

    One dominates another if it is cheaper or equally dear, gains no less, and is better in one of
    the two.
    """
    kept: list[int] = []
    for level in levels(costs):
        most = max(gains[i] for i in level)
        if not kept or most > gains[kept[-1]]:
            kept += [i for i in level if gains[i] == most]
    return kept


def _draw(axes: Axes, points: Sequence[Point], styles: Mapping[str, Look]) -> None:
    """Points with their intervals both ways; the front as steps, what it dominates pale."""
    costs, gains = [p.cost.value for p in points], [p.gain.value for p in points]
    on, x = front(costs, gains), _side_by_side(costs, axes.get_xlim())
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.plot(
        [x[i] for i in on], [gains[i] for i in on], gid="front", drawstyle="steps-post",
        color=GREY, linewidth=0.9, zorder=1.5,
    )  # fmt: skip
    for i, point in enumerate(points):
        look = styles[point.label].line() | {"linestyle": "", "markersize": 5}
        axes.errorbar(
            x[i], point.gain.value, yerr=_arms(point.gain), xerr=_arms(point.cost),
            ecolor=look["color"], elinewidth=0.9, alpha=1 if i in on else PALE, label=point.label,
            zorder=3 if i in on else 2, **look,
        )  # fmt: skip


def _side_by_side(costs: Sequence[float], ends: Ends) -> list[float]:
    """Where each is drawn: at its cost, or in a row about that of all that are equally dear."""
    step = (ends[1] / ends[0]) ** APART
    drawn = list(costs)
    for level in levels(costs):
        middle = math.prod(costs[i] for i in level) ** (1 / len(level))
        for place, i in enumerate(level) if len(level) > 1 else ():
            drawn[i] = middle * step ** (place - (len(level) - 1) / 2)
    return drawn


def _arms(estimate: Estimate) -> tuple[list[float], list[float]] | None:
    """How far its interval reaches down and up; None where it has none."""
    if math.isnan(estimate.low):
        return None
    return [estimate.value - estimate.low], [estimate.high - estimate.value]


def _costs(points: Sequence[Point]) -> Ends:
    """The x axis of all panels, with room for points that stand side by side."""
    costs = [point.cost.value for point in points]
    room = max(1.5, (max(costs) / min(costs)) ** 0.15)
    return min(costs) / room, max(costs) * room


def _gains(points: Sequence[Point]) -> Ends:
    """The y axis of all panels, which holds 0."""
    low, high = shown([Estimate(0, 0, 0, 0, 0, 1), *(point.gain for point in points)], LEAST)
    edge = 0.05 * (high - low)
    return low - edge, high + edge


def _caption(table: Table) -> str:
    own = [row for row in table.rows if row.arm.twin is None]
    untold = sum(bool(gain_of(row).n) and not cost_of(row).n for row in own)
    return joined([
        f"Means over seeds with 95% t intervals, cut off at the frame: of gains over {over(own)}, "
        f"of costs over seeds; {seeds(own)}; one alone has no interval. Steps: the Pareto front of "
        f"the means; pale: dominated. Costs within {EQUAL - 1:.0%} count as equal, and such arms "
        "stand side by side. Tokens of training alone, evaluations left out.",
        f"Not drawn, for the cost is not known: {untold} arms." if untold else "", missing(own),
    ])  # fmt: skip
