"""Learning curves: greedy test Pass@1 against rounds, and against the tokens generated until then.

A panel a pair, an arm a line: the mean over seeds with a 95% t band over seeds. Where a pair has
more arms than a panel shows legibly, each kind of arm has a panel of its own. What an evaluation
does not tell is a gap. Leaves out metrics of training (`figures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from analysis.chart_panels import (
    Lines,
    Panel,
    crowded,
    heading,
    laid,
    looks,
    missing,
    names,
    of_pairs,
    remarks,
    seeds,
    twins,
)
from analysis.chart_style import GREY, Look, Room, Words, joined, say_nothing, styled
from analysis.figures import Journal, curve, draw_mean, values_of, whole
from analysis.intervals import NOTHING, Estimate
from analysis.records import Numbers
from analysis.sheet import unit_of
from analysis.tables import Row, Table
from grids.outcome import DIVERGED, GENERATED_TOKENS, TEST_PASS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR: Final = 8.0  # a span of costs beyond which an axis is logarithmic
BEYOND: Final = 0.6  # of the lines' own height, that panels show of bands above and below them
HEIGHTS: Final = {1: 2.8, 2: 2.0, 3: 1.5}  # inches of a panel, by how many share a line

At = Callable[[int, Numbers], float]  # where the evaluation of a round lies on the x axis
Ends = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """An arm's mean at every evaluation; NOTHING where no seed has a finite number.

    `solid` counts the evaluations up to the last that all counted seeds have.
    """

    x: tuple[float, ...]
    means: tuple[Estimate, ...]
    solid: int

    def beyond(self, start: float) -> Curve:
        """What lies right of a place."""
        first = sum(x <= start for x in self.x)
        return Curve(self.x[first:], self.means[first:], max(self.solid - first, 0))


@styled
def against_rounds(table: Table) -> Figure:
    """Learning curves over rounds."""
    return _figure(table, "learning curves", "round", lambda round, _: float(round))


@styled
def against_tokens(table: Table) -> Figure:
    """Learning curves over the tokens that training generated until then."""
    spent = [row.estimates.get("generated_tokens", NOTHING) for row in table.rows]
    unit, log = unit_of(spent), far_apart(estimate.value for estimate in spent)
    told = ", ".join([*([f"{unit.name}s"] if unit.name else []), *(["log scale"] if log else [])])
    return _figure(
        table, "learning curves by tokens", f"tokens generated until then{told and f' ({told})'}",
        lambda _, scores: scores.get(GENERATED_TOKENS, math.nan) / unit.size, log,
    )  # fmt: skip


def far_apart(costs: Iterable[float]) -> bool:
    """Costs span more than a linear axis shows."""
    known = [cost for cost in costs if cost > 0]
    return bool(known) and max(known) > FAR * min(known)


def curve_of(row: Row, at: At) -> Curve:
    """An arm's curve over its counted seeds; a mean lies at the mean of where its seeds lie."""
    journals = journals_of(row)
    points = {point.round: point for point in curve(journals, TEST_PASS)}
    rounds = sorted({r for journal in journals for r, x in journal.lines.items() if TEST_PASS in x})
    means = tuple(points[r].estimate if r in points else NOTHING for r in rounds)
    whole_to = whole(tuple(points.values()), len(row.counted))
    last = list(points)[whole_to - 1] if whole_to else -1
    x = tuple(_mean([at(r, j.lines[r]) for j in journals if r in j.lines]) for r in rounds)
    return Curve(x, means, sum(r <= last for r in rounds))


def journals_of(row: Row) -> list[Journal]:
    """Its runs' evaluations; none of a run that does not count."""
    counted = {run.cell.seed for run in row.counted}
    return [
        Journal(r.cell.seed, r.state, r.training.curve if r.cell.seed in counted else {})
        for r in row.runs
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _figure(table: Table, what: str, x: str, at: At, log: bool = False) -> Figure:
    lines = of_pairs(table, split=crowded(table))
    called = names(lines)
    styles = looks(row for row in table.rows if row.arm.label in called)
    words = Words(
        heading(table, what), _caption(table, lines, log), x, "greedy test Pass@1", remarks(table)
    )
    legend = [styles[label].handle(name) for label, name in called.items()]
    room = Room(height=HEIGHTS[len(lines[0])])
    figure, placed = laid(lines, words, room, legend)
    made = [{row.arm.label: curve_of(row, at) for row in panel.drawn} for panel, _ in placed]
    limits = _limits([panel.pair for panel, _ in placed], made)
    for (panel, axes), curves in zip(placed, made, strict=True):
        axes.set_xscale("log" if log else "linear")
        _draw(axes, panel, curves, styles, at)
        if not axes.lines:
            say_nothing(axes, "no finished run")
        elif panel.pair in limits:
            axes.set_ylim(limits[panel.pair])
    _share_x([axes for _, axes in placed if axes.lines], log)
    return figure


def _draw(
    axes: Axes, panel: Panel, curves: Mapping[str, Curve], styles: Mapping[str, Look], at: At
) -> None:
    """Every arm's mean and band, and by itself each run that broke."""
    log = axes.get_xscale() == "log"
    base = [c.means[0].value for c in curves.values() if c.x and c.x[0] == 0 and c.means[0].n]
    if log and base:  # nothing was generated yet: it has no place on the axis
        axes.axhline(_mean(base), color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for row in panel.drawn:
        found, line = curves[row.arm.label], styles[row.arm.label].line()
        found = found.beyond(0) if log else found
        draw_mean(axes, found.x, found.means, found.solid, line)
        few = [(x, m.value) for x, m in zip(found.x, found.means, strict=True)
               if 0 < m.n < len(row.counted)]  # fmt: skip
        axes.plot(
            [x for x, _ in few], [y for _, y in few], "o", color=line["color"],
            markerfacecolor="none", markersize=7, markeredgewidth=0.6,
        )  # fmt: skip
        for journal in journals_of(row):
            if journal.state == DIVERGED and (values := values_of(journal, TEST_PASS)):
                ends = {"marker": "x", "markevery": [-1], "linewidth": 0.6, "markersize": 5}
                x = [at(r, journal.lines[r]) for r, _ in values]
                axes.plot(x, [value for _, value in values], **(line | ends))


def _limits(pairs: Sequence[str], made: Sequence[Mapping[str, Curve]]) -> dict[str, Ends]:
    """A pair's ends of the y axis: of equal length in all pairs, so that slopes compare.

    A band of few seeds may be wider than all that is to be seen: it is cut off there.
    """
    means: dict[str, list[Estimate]] = {}
    for pair, curves in zip(pairs, made, strict=True):
        found = [mean for c in curves.values() for mean in c.means if mean.n]
        means[pair] = means.get(pair, []) + found
    lines = {
        pair: (min(m.value for m in of_pair), max(m.value for m in of_pair))
        for pair, of_pair in means.items() if of_pair
    }  # fmt: skip
    if not lines:
        return {}
    room = BEYOND * max(0.05, *(high - low for low, high in lines.values()))
    shown = {
        pair: (
            max(low - room, min([low, *(m.low for m in means[pair] if not math.isnan(m.low))])),
            min(high + room, max([high, *(m.high for m in means[pair] if not math.isnan(m.high))])),
        )
        for pair, (low, high) in lines.items()
    }
    length = 1.08 * max(0.05, *(high - low for low, high in shown.values()))
    return {pair: _centred(ends, length) for pair, ends in shown.items()}


def _centred(ends: Ends, length: float) -> Ends:
    """So long, about the middle of the ends, and no further than Pass@1 goes."""
    low = (ends[0] + ends[1] - length) / 2
    low = min(max(low, -0.02), 1.02 - length)
    return low, low + length


def _share_x(panels: Sequence[Axes], log: bool) -> None:
    """One x axis for all: from its start to the furthest point."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if not panels:
        return
    lows, highs = zip(*(axes.get_xlim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_xlim(min(lows), max(highs))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if log:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2.5, 5, 10]))


def _caption(table: Table, lines: Lines, log: bool) -> str:
    drawn = [row for row in table.rows if row.arm.twin is None]
    spaced = "Dotted level: the base policy, which generated nothing." if log else ""
    return joined([
        f"Mean over seeds; {seeds(drawn)}; band: 95% t interval over seeds on these questions, "
        "cut off at the frame; a seed alone has none. All panels are equally high in Pass@1.",
        "Ring or dotted: fewer seeds; thin line to a cross: a run that broke.",
        spaced, twins(lines), missing(drawn),
    ])  # fmt: skip
