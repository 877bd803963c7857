"""Learning curves: greedy test Pass@1 against rounds, and against the tokens generated until then.

A panel a pair, an arm a line: the mean over seeds with a 95% t band over seeds. Where a pair has
more arms than a panel shows legibly, each kind of arm has a panel of its own. What an evaluation
does not tell is a gap. Leaves out where the numbers come from (`chart_evaluations.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from analysis.chart_evaluations import At, Curve, Seeds, curve_of, mean, seeds_of, spent, tokens
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
    Lines,
    crowded,
    heading,
    kind_of,
    laid,
    legend_of,
    looks,
    missing,
    of_pairs,
    remarks,
    seeds,
    twins,
)
from analysis.chart_style import GREY, styled
from analysis.figures import Journal, draw_mean, values_of
from analysis.intervals import Estimate, mean_t
from analysis.sheet import unit_of
from analysis.study import Study
from analysis.tables import Table
from grids.outcome import DIVERGED, TEST_PASS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR: Final = 8.0  # a span of costs beyond which an axis is logarithmic
LEAST: Final = 0.05  # of Pass@1, that a panel is high


@styled
def against_rounds(table: Table, study: Study) -> Figure:
    """Learning curves over rounds."""
    lines = lines_in(table)
    words = Words(
        heading(table, "learning curves"), _caption(table, lines), "round", "greedy test Pass@1",
        remarks(table),
    )  # fmt: skip
    return _figure(lines, seeds_of(lines, study), words, lambda round, _: float(round))


@styled
def against_tokens(table: Table, study: Study) -> Figure:
    """Learning curves over the tokens that training generated until then."""
    lines = lines_in(table)
    panels = seeds_of(lines, study)
    costs = [cost for cost in spent(panels) if not math.isnan(cost)]
    unit, log = unit_of(mean_t([cost]) for cost in costs), far_apart(costs)
    scale = ", ".join([f"{unit.name}s"] * bool(unit.name) + ["log scale"] * log)
    untold = len(spent(panels)) - len(costs)
    caption = joined([
        _caption(table, lines),
        "Dotted level: the base policy, for which nothing was generated." if log else "",
        f"Not drawn, for what they generated is not known: {untold} runs." if untold else "",
    ])  # fmt: skip
    words = Words(
        heading(table, "learning curves by tokens"), caption,
        f"tokens generated until then{scale and f' ({scale})'}",
        "greedy test Pass@1", remarks(table),
    )  # fmt: skip
    return _figure(lines, panels, words, lambda _, scores: tokens(scores) / unit.size, log)


def lines_in(table: Table) -> Lines:
    """A panel a pair; or, where that would be too full, one a pair and kind of arm."""
    return of_pairs(table, kind_of if crowded(table) else None)


def far_apart(costs: Sequence[float]) -> bool:
    """Costs span more than a linear axis shows."""
    known = [cost for cost in costs if cost > 0]
    return bool(known) and max(known) > FAR * min(known)


def _figure(
    lines: Lines, panels: Sequence[Seeds], words: Words, at: At, log: bool = False
) -> Figure:
    styles = looks(lines)
    figure, placed = laid(lines, words, Room(HEIGHTS[len(lines[0])]), legend_of(lines))
    made = [{label: curve_of(arm, at) for label, arm in arms.items()} for arms in panels]
    limits = _limits([panel.pair for panel, _ in placed], made)
    for (panel, axes), arms, curves in zip(placed, panels, made, strict=True):
        axes.set_xscale("log" if log else "linear")
        for label, found in curves.items():
            _draw(axes, found.beyond(0) if log else found, styles[label].line())
            _draw_broken(axes, arms[label], at, styles[label].line())
        if not axes.lines:
            counted = any(found.seeds for found in curves.values())
            say_nothing(axes, "no evaluation is known" if counted else NO_RUN)
            continue
        if log:
            _draw_base(axes, curves.values())
        axes.set_ylim(limits[panel.pair])
    _share_x([axes for _, axes in placed if axes.lines], log)
    return figure


def _draw(axes: Axes, found: Curve, line: Mapping[str, Any]) -> None:
    """An arm's mean and band, with a ring about every mean that lacks a seed."""
    known = zip(found.x, found.means, strict=True)
    if not any(mean.n and math.isfinite(x) for x, mean in known):
        return
    draw_mean(axes, found.x, found.means, found.solid, line)
    if few := found.lacking:
        ring = {"color": line["color"], "markerfacecolor": "none", "markeredgewidth": 0.6}
        axes.plot(*zip(*few, strict=True), "o", markersize=7, gid="ring", **ring)


def _draw_broken(axes: Axes, arm: Iterable[Journal], at: At, line: Mapping[str, Any]) -> None:
    """By itself each run that broke, with a cross where it ends."""
    ends = {"marker": "x", "markevery": [-1], "linewidth": 0.6, "markersize": 5}
    for journal in arm:
        if journal.state == DIVERGED and (values := values_of(journal, TEST_PASS)):
            points = [(at(round, journal.lines[round]), value) for round, value in values]
            points = [point for point in points if point[0] > 0 or axes.get_xscale() == "linear"]
            axes.plot([x for x, _ in points], [y for _, y in points], **{**line, **ends})


def _draw_base(axes: Axes, curves: Iterable[Curve]) -> None:
    """The level of the base policy: that nothing was generated has no place on a log axis."""
    values = [c.means[0].value for c in curves if c.x and c.x[0] == 0 and c.means[0].n]
    if values:
        axes.axhline(mean(values), color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)


def _limits(
    pairs: Sequence[str], made: Sequence[Mapping[str, Curve]]
) -> dict[str, tuple[float, float]]:
    """A pair's ends of the y axis: of equal length in all pairs, so that slopes compare."""
    means: dict[str, list[Estimate]] = {}
    for pair, curves in zip(pairs, made, strict=True):
        found = [mean for c in curves.values() for mean in c.means if mean.n]
        means[pair] = means.get(pair, []) + found
    ends = {pair: shown(found, LEAST) for pair, found in means.items() if found}
    length = 1.08 * max((high - low for low, high in ends.values()), default=0)
    return {pair: _centred((low + high) / 2, length) for pair, (low, high) in ends.items()}


def _centred(middle: float, length: float) -> tuple[float, float]:
    """So long, about the middle, and no further than Pass@1 goes."""
    low = min(max(middle - length / 2, -0.02), 1.02 - length)
    return low, low + length


def _share_x(panels: Sequence[Axes], log: bool) -> None:
    """One x axis for all: from its start to the furthest point."""
    if not panels:
        return
    lows, highs = zip(*(axes.get_xlim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_xlim(min(lows), max(highs))
        even_ticks(axes.yaxis)
        if log:
            log_ticks(axes.xaxis)
        else:
            even_ticks(axes.xaxis, (1, 2.5, 5, 10))


def _caption(table: Table, lines: Lines) -> str:
    own = [row for row in table.rows if row.arm.twin is None]
    return joined([
        f"Mean over seeds; {seeds(own)}; band: 95% t interval over seeds on these questions, cut "
        "off at the frame; a seed alone has none. All panels are equally high in Pass@1. Ring or "
        "dotted: fewer seeds; thin line to a cross: a run that broke.",
        twins(lines), missing(own),
    ])  # fmt: skip
