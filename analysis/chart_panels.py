"""A table's rows as panels: a panel a pair, split where it would hold too many arms; arms' looks.

Also what every caption says: how many seeds, and what became of runs that are not drawn. Leaves out
drawing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.arms import Arm, is_embedded
from analysis.chart_page import Room, Words, joined, name_panel, page
from analysis.chart_style import Look
from analysis.runs import STATES, Run
from analysis.sheets import PIPELINE_CHECK
from analysis.tables import Row, Table
from grids.outcome import DIVERGED, FINISHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Item = TypeVar("Item")
FULL = 5  # arms that one panel shows legibly
COLUMNS = 3
NAMED = 3  # diverged runs that a caption names


@dataclass(frozen=True)
class Panel:
    """Arms of one pair."""

    pair: str
    kind: str  # that all its arms have; empty where the panel holds all of the pair's
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """`OLMo-GSM8K, grpo`."""
        return f"{self.pair}, {self.kind}" if self.kind else self.pair

    @property
    def drawn(self) -> tuple[Row, ...]:
        """The rows but those that train the same policies as another of the panel."""
        rounds = {row.arm.label: row.arm.cell.rounds for row in self.rows}
        return tuple(r for r in self.rows if rounds.get(r.arm.twin or "") != r.arm.cell.rounds)

    @property
    def remark(self) -> str:
        """`1 failed, 4 waiting of 9 runs`; empty where all runs finished."""
        return _states(unique(self.drawn))


Lines = list[list[Panel | None]]  # None: this pair has no such panel
Kind = Callable[[Arm], str]


def of_pairs(table: Table, kind: Kind | None = None, columns: int = COLUMNS) -> Lines:
    """Panels as they lie on the page; with `kind`, one for every kind of arm that a pair has."""
    pairs = {pair: [r for r in table.rows if r.pair == pair] for pair in in_order(table)}
    if kind is None:
        return lines_of([Panel(pair, "", tuple(rows)) for pair, rows in pairs.items()], columns)
    kinds = list(dict.fromkeys(kind(row.arm) for row in table.rows))
    by_kind = [
        [
            _of_kind(pair, name, [r for r in rows if kind(r.arm) == name])
            for pair, rows in pairs.items()
        ]
        for name in kinds
    ]
    if len(pairs) == 1:
        return lines_of([panels[0] for panels in by_kind], columns)
    blocks = zip(*(lines_of(panels, columns) for panels in by_kind), strict=True)
    return [line for block in blocks for line in block if any(line)]


def in_order(table: Table) -> tuple[str, ...]:
    """The pairs; up to three models on all of the data sets stand in columns, a model each."""
    by_pair = {row.arm.pair: row.pair for row in table.rows}
    models, datasets = (list(dict.fromkeys(names)) for names in zip(*by_pair, strict=True))
    if len(models) <= COLUMNS and len(by_pair) == len(models) * len(datasets):
        return tuple(by_pair[model, dataset] for dataset in datasets for model in models)
    return tuple(by_pair.values())


def lines_of(panels: Sequence[Item | None], columns: int = COLUMNS) -> list[list[Item | None]]:
    """So many a line, or two where there are four; the last line is filled up."""
    columns = 2 if len(panels) == 4 and columns == 3 else min(columns, len(panels))
    lines = [list(panels[i : i + columns]) for i in range(0, len(panels), columns)]
    lines[-1] += [None] * (columns - len(lines[-1]))
    return lines


def crowded(table: Table) -> bool:
    """A pair has more arms than a panel shows legibly."""
    return any(len(panel.drawn) > FULL for panel in panels_in(of_pairs(table)))


def kind_of(arm: Arm) -> str:
    """What tells arms of one shape apart: `grpo`, `raw lr=3e-05`."""
    return f"{arm.cell.advantage} {arm.extra}".rstrip()


def panels_in(lines: Lines) -> list[Panel]:
    """Those that there are, in reading order."""
    return [panel for line in lines for panel in line if panel is not None]


def looks(lines: Lines) -> dict[str, Look]:
    """Every arm's look by its label: colour by shape, dash by kind; by kind alone, of one shape."""
    found = {row.arm.label: row.arm for panel in panels_in(lines) for row in panel.drawn}
    shapes = list(dict.fromkeys(arm.cell.shape for arm in found.values()))
    kinds = list(dict.fromkeys(kind_of(arm) for arm in found.values()))
    places = {k: (shapes.index(a.cell.shape), kinds.index(kind_of(a))) for k, a in found.items()}
    if len(shapes) == 1:
        places = {label: (kind, shape) for label, (shape, kind) in places.items()}
    return {label: Look.of(*places[label]) for label in sorted(places, key=places.__getitem__)}


def legend_of(lines: Lines, **changed: Any) -> list[Line2D]:
    """An entry for every arm that is drawn, shape by shape."""
    called = names(lines)
    return [look.handle(called[label], **changed) for label, look in looks(lines).items()]


def names(lines: Lines) -> dict[str, str]:
    """What a legend calls every drawn arm: with those that are the same runs and not drawn."""
    panels = panels_in(lines)
    called = {row.arm.label: [row.arm.label] for panel in panels for row in panel.drawn}
    drawn = frozenset(called)
    for arm in (row.arm for panel in panels for row in panel.rows):
        same = called.get(arm.twin or "", [])
        if arm.label not in drawn and arm.label not in same:
            same.append(arm.label)
    return {label: " = ".join(same) for label, same in called.items()}


def laid(
    lines: Lines, words: Words, room: Room, legend: Sequence[Line2D] = ()
) -> tuple[Figure, list[tuple[Panel, Axes]]]:
    """A figure with the panels where they lie, each under its name."""
    figure, axes = page(len(lines), len(lines[0]), words, room, legend)
    remarked = any(panel.remark for panel in panels_in(lines))
    placed = []
    for line, row in zip(lines, axes, strict=True):
        for panel, place in zip(line, row, strict=True):
            if panel is None:
                place.remove()
            else:
                name_panel(place, panel.name, panel.remark, remarked)
                placed.append((panel, place))
    return figure, placed


# ---- what captions say


def remarks(table: Table) -> tuple[str, ...]:
    """What the whole figure is marked with."""
    embedded = any(is_embedded(row.arm.cell) for row in table.rows)
    return (PIPELINE_CHECK,) if embedded else ()


def heading(table: Table, what: str) -> str:
    """`4.6 tradeoff: gain against cost`."""
    return f"{table.title}: {what}"


def seeds(rows: Sequence[Row]) -> str:
    """`n = 3 seeds an arm`, or `n = 1 to 3 of 3 seeds an arm`."""
    counts = sorted({len(row.counted) for row in rows if row.counted})
    declared = sorted({len(row.runs) for row in rows})
    told = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "0"
    most = " to ".join(map(str, dict.fromkeys((declared[0], declared[-1]))))
    return f"n = {told} seeds an arm" if told == most else f"n = {told} of {most} seeds an arm"


def over(rows: Sequence[Row]) -> str:
    """What the intervals of Pass@1 and gains hold for."""
    of_seeds = {row.numbers.over_seeds for row in rows if row.counted}
    if of_seeds == {True}:
        return "seeds on these questions"
    some = " (some arms: seeds on these questions)" if True in of_seeds else ""
    return f"questions and seeds{some}"


def twins(lines: Lines) -> str:
    """Which arms are drawn in two panels though they are the same runs."""
    drawn = {row.arm.label: row for panel in panels_in(lines) for row in panel.drawn}
    told = [f"{row.arm.twin} and {label}" for label, row in drawn.items() if row.arm.twin in drawn]
    return f"The same runs: {'; '.join(told)}." if told else ""


def missing(rows: Sequence[Row]) -> str:
    """Runs that are in no number, by state, and those that broke, by name."""
    runs = unique(rows)
    lost = Counter(run.state for run in runs if not run.counted)
    told = ", ".join(f"{lost[state]} {state}" for state in STATES if lost[state])
    unusable = sum(len(row.numbers.missing) for row in rows if row.arm.twin is None)
    broke = [
        f"{row.pair} {row.arm.label} s{run.cell.seed}"
        for row in rows if row.arm.twin is None for run in row.in_state(DIVERGED)
    ]  # fmt: skip
    more = f" and {len(broke) - NAMED} more" if len(broke) > NAMED else ""
    return joined([
        f"Not drawn, of {len(runs)} runs: {told}." if told else "",
        f"Without usable answers, hence not drawn: {unusable}." if unusable else "",
        f"Diverged, counted at their last evaluation: {', '.join(broke[:NAMED])}{more}."
        if broke else "",
    ])  # fmt: skip


def unique(rows: Iterable[Row]) -> list[Run]:
    """Their runs, each once though two rows are of it."""
    runs = {(run.key, run.cell.rounds): run for row in rows for run in row.runs}
    return list(runs.values())


def _states(runs: Sequence[Run]) -> str:
    states = Counter(run.state for run in runs if run.state != FINISHED)
    if not states:
        return ""
    told = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    return f"{told} of {len(runs)} runs"


def _of_kind(pair: str, kind: str, rows: Sequence[Row]) -> Panel | None:
    return Panel(pair, kind, tuple(rows)) if rows else None
