"""Curves of a grid's runs by round: a column of panels a learning rate, a colour an arm.

A point is the mean over seeds with its 95% t interval. What a round does not measure is not drawn,
and a mean over rounds says so. Only runs that a table would count are drawn: finished ones, and
diverged ones up to where they broke; the others are named. Leaves out which metrics a study shows.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis import records
from analysis.arms import arms, is_embedded, pair_labels
from analysis.chart_style import COLOURS, MARKERS, save
from analysis.intervals import Estimate, mean_t
from analysis.markdown import PIPELINE_CHECK
from analysis.records import Numbers
from analysis.runs import STATES, read_run
from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from grids.outcome import DIVERGED, FINISHED
from grids.paths import CellPaths, Store

if TYPE_CHECKING:  # the command starts without matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = 12  # points of a curve with a marker, at most
WORDS = {"lr": "learning rate"}
READING = "band: 95% t interval; dotted: fewer seeds left; thin line to a cross: a run that broke"


@dataclass(frozen=True)
class Journal:
    """One run as a figure needs it: its lines by round, none where it does not count."""

    seed: int
    state: str
    lines: Mapping[int, Numbers] = field(default_factory=dict)


class Point(NamedTuple):
    """A metric's mean over the seeds that have it in a round."""

    round: int
    estimate: Estimate


@dataclass(frozen=True)
class Measure:
    """A row of panels.

    Attributes:
        metric: of the journal.
        label: what to call it.
        low, high: the values that it can take.
        log: whether the axis is logarithmic.
        window: rounds that a point is the mean of, within each seed.
    """

    metric: str
    label: str
    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    window: int = 1


Arms = Mapping[str, Sequence[Journal]]  # what to call an arm -> its seeds
Panels = Mapping[str, Arms]  # what to call a column -> its arms


# ---- what is drawn


def read_journal(cell: Cell, paths: CellPaths) -> Journal:
    """A run's journal as far as its grid asks for, or as far as the round that it broke in."""
    run = read_run(cell, paths)
    if not run.counted:
        return Journal(cell.seed, run.state)
    end = cell.rounds if run.diverged_round is None else run.diverged_round
    lines = {r: numbers for r, numbers in records.journal(paths).items() if r <= end}
    return Journal(cell.seed, run.state, lines)


def read_panels(grid: Grid, store: Store, by: str = "lr") -> dict[str, dict[str, list[Journal]]]:
    """The journals of a grid: by the setting that a column has for itself, then by arm.

    Raises `InputError` where two arms of a column would have one name.
    """
    study = store.study(grid.study)
    panels: dict[str, dict[str, list[Journal]]] = {}
    for arm in arms(grid):
        title = f"{WORDS.get(by, by)} {_written(getattr(arm.cell, by))}"
        column, name = panels.setdefault(title, {}), arm_name(arm.cell)
        if name in column:
            raise InputError(
                f"grid {grid.name}: two arms of one panel are called {name!r}; "
                f"a figure tells arms apart by shape, advantage and replay, and panels by {by}"
            )
        column[name] = [read_journal(cell, study.cell(cell.key)) for cell in arm.cells]
    return panels


def arm_name(cell: Cell) -> str:
    """`(32,1,7) grpo, replay in train mode, base-filled`."""
    b, n, m = cell.shape
    fill = "cold" if cell.replay_fill == "cold" else "base-filled"
    replay = f", replay in {cell.replay_mode} mode, {fill}" if m else ""
    return f"({b},{n},{m}) {cell.advantage}{replay}"


def curve(journals: Sequence[Journal], metric: str, window: int = 1) -> tuple[Point, ...]:
    """Mean over seeds by round, at the rounds in which some seed has a finite number."""
    by_round: dict[int, list[float]] = defaultdict(list)
    for journal in journals:
        for round, value in values_of(journal, metric, window):
            by_round[round].append(value)
    return tuple(Point(round, mean_t(by_round[round])) for round in sorted(by_round))


def curves(journals: Arms, metric: str, window: int = 1) -> dict[str, tuple[Point, ...]]:
    """The curve of every arm."""
    return {name: curve(seeds, metric, window) for name, seeds in journals.items()}


def values_of(journal: Journal, metric: str, window: int = 1) -> list[tuple[int, float]]:
    """A run's finite numbers by round; or their means by window, told at its last round.

    A window that the run did not end is left out.
    """
    windows: dict[int, list[float]] = defaultdict(list)
    for round, numbers in sorted(journal.lines.items()):
        if math.isfinite(value := numbers.get(metric, math.nan)):
            windows[math.ceil(round / window) * window].append(value)
    last = max(journal.lines, default=0)
    return [(end, statistics.mean(found)) for end, found in windows.items() if end <= last]


def whole(points: Sequence[Point], seeds: int) -> int:
    """How many points there are up to the last that is a mean over all seeds."""
    return max((i for i, p in enumerate(points, start=1) if p.estimate.n == seeds), default=0)


def notes(journals: Sequence[Journal]) -> str:
    """`1 of 3 diverged`: what became of seeds that did not finish; empty where all did."""
    states = Counter(journal.state for journal in journals if journal.state != FINISHED)
    return ", ".join(f"{states[s]} of {len(journals)} {s}" for s in STATES if states[s])


def heading(grid: Grid) -> str:
    """What a figure shows, of whom, over how many seeds; and what it cannot say."""
    cells = grid.cells()
    pairs = ", ".join(pair_labels(cells).values())
    about = f"{grid.name}: {grid.about}" if grid.about else grid.name
    seeds = f"{len(grid.seeds)} seed{'s' if len(grid.seeds) > 1 else ''}"
    lines = [f"{about} ({pairs})", f"mean over {seeds}; {READING}"]
    return "\n".join([*lines, PIPELINE_CHECK] if any(map(is_embedded, cells)) else lines)


def _written(value: Any) -> str:
    """A small number as `3e-4`, in which a factor of ten is seen at once."""
    small = isinstance(value, float) and 0 < value < 0.01
    return np.format_float_scientific(value, trim="-", exp_digits=1) if small else str(value)


# ---- how it is drawn


def draw(panels: Panels, measures: Sequence[Measure], title: str, out: Path) -> Path:
    """Write the figure as a PNG: a reader sees the old file or the new, never a part.

    Raises `InputError` where there are more arms than colours, or where `out` cannot be written.
    """
    return save(make_figure(panels, measures, title), out)


def make_figure(panels: Panels, measures: Sequence[Measure], title: str) -> Figure:
    """A row a measure, a column a panel; axes are shared, the legend lies below."""
    from matplotlib.figure import Figure  # without pyplot: no window and no state of its own

    names = list(dict.fromkeys(name for column in panels.values() for name in column))
    if len(names) > len(COLOURS):
        raise InputError(f"{len(names)} arms in one figure; at most {len(COLOURS)} are told apart")
    styles = {name: _Style.of(i, len(names)) for i, name in enumerate(names)}
    size = (max(4.2 * len(panels), 7.5), 2.3 * len(measures) + 1.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(measures), len(panels), squeeze=False, sharex=True, sharey="row")
    for row, measure in zip(grid, measures, strict=True):
        for axes, column in zip(row, panels.values(), strict=True):
            _draw_panel(axes, measure, column, styles)
        _finish_row(row, measure)
    for top, bottom, (name, column) in zip(grid[0], grid[-1], panels.items(), strict=True):
        top.set_title(name, fontsize=10)
        bottom.set_xlabel("round", fontsize=9)
        _write_notes(top, column)
    _frame(figure, title, styles)
    return figure


class _Style(NamedTuple):
    """How an arm looks, in all panels alike."""

    colour: str
    marker: str
    width: float
    turn: float  # where in a step between markers its own lie

    @staticmethod
    def of(i: int, count: int) -> _Style:
        """Later arms are thinner, so that one that lies upon another hides no part of it."""
        return _Style(COLOURS[i], MARKERS[i], 3.0 - 1.8 * i / max(count - 1, 1), i / count)

    def line(self, points: int) -> dict[str, Any]:
        """matplotlib's words for it, for a curve of so many points."""
        step = max(1, math.ceil(points / MARKED))
        own = {"color": self.colour, "marker": self.marker, "linewidth": self.width}
        return own | {"markersize": 4, "markevery": (int(self.turn * step), step)}


def _draw_panel(axes: Axes, measure: Measure, journals: Arms, styles: Mapping[str, _Style]) -> None:
    """Every arm's mean and band, and by itself each run that broke."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_yscale("log" if measure.log else "linear")
    axes.tick_params(which="both", labelsize=8)
    for name, points in curves(journals, measure.metric, measure.window).items():
        counted = [journal for journal in journals[name] if journal.lines]
        rounds, means = [p.round for p in points], [p.estimate for p in points]
        line = styles[name].line(len(points))
        draw_mean(axes, rounds, means, whole(points, len(counted)), line)
        for journal in counted:
            values = values_of(journal, measure.metric, measure.window)
            if journal.state == DIVERGED and values:  # with a cross where it ends
                end = {"marker": "x", "markersize": 7, "markevery": [-1], "linewidth": 0.7}
                axes.plot(*zip(*values, strict=True), **(styles[name].line(1) | end))


def draw_mean(
    axes: Axes, at: Sequence[float], means: Sequence[Estimate], whole: int, line: Mapping[str, Any]
) -> None:
    """Means and their band; by itself and dotted, the means of the seeds that are left later.

    `at` is where each lies, `whole` how many are drawn in full, `line` matplotlib's words for how.
    """
    if not means:
        return
    values = [mean.value for mean in means]
    axes.plot(at[:whole], values[:whole], **line)
    axes.plot(at[whole:], values[whole:], **{**line, "linestyle": ":", "marker": ""})
    lows, highs = ([getattr(mean, end) for mean in means[:whole]] for end in ("low", "high"))
    # One seed's ends are NaN, which leave no band.
    axes.fill_between(at[:whole], lows, highs, color=line["color"], alpha=0.13, linewidth=0)


def _finish_row(row: Sequence[Axes], measure: Measure) -> None:
    """The axis that a row shares: what it is, and no further than what is possible."""
    means = f"\n(mean of {measure.window} rounds)" if measure.window > 1 else ""
    row[0].set_ylabel(measure.label + means, fontsize=9)
    low, high = row[0].get_ylim()
    if measure.log:  # a band that reaches 0 has no end there: the axis follows the lines
        lines = [np.asarray(line.get_ydata(), float) for axes in row for line in axes.lines]
        drawn = [y for line in lines for y in line if y > 0]
        low, high = (min(drawn) / 1.5, max(drawn) * 1.5) if drawn else (low, high)
    row[0].set_ylim(max(low, measure.low), min(high, measure.high))


def _write_notes(axes: Axes, journals: Arms) -> None:
    """Whose mean is not over all its seeds, and why."""
    told = [f"{note}: {name}" for name, seeds in journals.items() if (note := notes(seeds))]
    if told:
        axes.text(
            0.02, 0.03, "\n".join(told), transform=axes.transAxes, fontsize=6.5,
            bbox={"color": "white", "alpha": 0.75, "pad": 1},
        )  # fmt: skip


def _frame(figure: Figure, title: str, styles: Mapping[str, _Style]) -> None:
    """Title and legend, outside the panels."""
    from matplotlib.lines import Line2D

    width = int(12.5 * figure.get_figwidth())  # letters that fit
    lines = [textwrap.fill(line, width) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=10)
    handles = [Line2D([], [], label=name, **style.line(1)) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
