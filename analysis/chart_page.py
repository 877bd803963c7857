"""The page around a chart's panels: title, legend, caption, axes' ticks, and what fits where.

Lengths are counted in inches here: matplotlib's own layouts take a second a figure. Leaves out
colours and files (`chart_style.py`), and what is drawn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from analysis.chart_style import GREY, TEXT
from analysis.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH: Final = 7.0  # inches
LINE: Final = TEXT * 1.25 / 72  # inches from one line of text to the next
TITLE: Final = 0.165  # inches from one line of the title to the next
EDGE: Final = 0.06  # inches that stay free
HANDLE: Final = 0.6  # inches of a legend's line and the gaps about it
HEIGHTS: Final = {1: 2.8, 2: 2.0, 3: 1.5}  # inches of a panel of points, by how many share a line
BEYOND: Final = 0.6  # of the height of what is drawn, that a panel shows of intervals beyond it
NO_RUN: Final = "no finished run"


@dataclass(frozen=True)
class Words:
    """What is written around the panels.

    Attributes:
        x, y: what the axes show, with the unit.
        remarks: lines under the title.
        caption: how to read it: n, kind of interval, what is missing.
    """

    title: str
    caption: str
    x: str = ""
    y: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Room:
    """Inches: a panel's height, between panels, and left and right of them."""

    height: float = 1.45
    across: float = 0.42
    down: float = 0.52
    left: float = 0.58
    right: float = 0.08


def page(
    rows: int, columns: int, words: Words, room: Room, legend: Sequence[Line2D] = ()
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows × columns of panels between its title above and legend and caption below."""
    from matplotlib.figure import Figure  # without pyplot: no window and no state of its own

    title, caption = wrapped(words.title, size=TEXT + 2.5), wrapped(words.caption)
    remarks = [line for remark in words.remarks for line in wrapped(remark)]
    wide = _legend_columns(legend)
    below = LINE * len(caption) + 0.11
    axis = below + (-(-len(legend) // wide) * LINE * 1.12 + 0.1 if legend else 0)
    bottom = axis + 0.24 + (0.17 if words.x else 0)
    top = bottom + rows * room.height + (rows - 1) * room.down
    height = top + 0.34 + LINE * len(remarks) + TITLE * len(title) + EDGE
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    _write(figure, title, height - EDGE, TITLE, size=TEXT + 2.5)
    _write(figure, remarks, height - EDGE - TITLE * len(title) - 0.02, color=GREY)
    _write(figure, caption, below - EDGE, gid="caption")
    centre = (room.left + WIDTH - room.right) / 2 / WIDTH
    name: dict[str, Any] = {"size": TEXT + 1, "ha": "center"}
    figure.text(centre, axis / height, words.x, va="bottom", **name)
    left, middle = 0.11 / WIDTH, (bottom + top) / 2 / height
    figure.text(left, middle, words.y, rotation=90, va="center", **name)
    if legend:
        _add_legend(figure, legend, wide, axis / height)
    return figure, _panels(figure, rows, columns, room, top)


def _add_legend(figure: Figure, legend: Sequence[Line2D], columns: int, top: float) -> None:
    figure.legend(
        handles=list(legend), loc="upper center", bbox_to_anchor=(0.5, top), ncols=columns,
        frameon=False, handlelength=3.2, borderpad=0.2, columnspacing=1.4, labelspacing=0.3,
    )  # fmt: skip


def _panels(figure: Figure, rows: int, columns: int, room: Room, top: float) -> list[list[Axes]]:
    """Equal panels from a height downwards."""
    width = (WIDTH - room.left - room.right - (columns - 1) * room.across) / columns
    lefts = [room.left + j * (width + room.across) for j in range(columns)]
    lows = [top - room.height - i * (room.height + room.down) for i in range(rows)]
    height = figure.get_figheight()
    size = (width / WIDTH, room.height / height)
    return [[figure.add_axes((x / WIDTH, y / height, *size)) for x in lefts] for y in lows]


def wrapped(text: str, inches: float = WIDTH - 2 * EDGE, size: float = TEXT) -> list[str]:
    """The text in lines that fit, by the widths of its letters."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".lstrip()
            if line and width_of(longer, size) > inches:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return [line for line in lines if line]


def width_of(text: str, size: float = TEXT) -> float:
    """Inches that a line surely fits into: letters are drawn a little wider than designed."""
    return 1.05 * sum(map(_advance, text)) * size / 72


@functools.cache
def _advance(letter: str) -> float:
    """How far a letter reaches in matplotlib's own font, in its size."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    font.set_size(10, 72)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536 / 10


def caption_of(figure: Figure) -> str:
    """The caption that stands in a figure, on one line: for those who cannot see it."""
    found = [text.get_text() for text in figure.texts if text.get_gid() == "caption"]
    return " ".join(" ".join(found).split())


def say_nothing(axes: Axes, why: str) -> None:
    """A panel in which there is nothing to draw says so."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


def name_panel(axes: Axes, name: str, remark: str, apart: bool) -> None:
    """The name above a panel, below it in small what limits it; `apart` leaves room for that."""
    axes.set_title(name, loc="left", pad=3 + (TEXT * 1.25 if apart else 0))
    axes.annotate(
        remark, (0, 1), (0, 2.5), xycoords="axes fraction", textcoords="offset points",
        color=GREY,
    )  # fmt: skip


def shown(estimates: Sequence[Estimate], least: float) -> tuple[float, float]:
    """The ends of an axis that holds all values, at least so far apart, and most of each interval.

    An interval of few seeds can be so wide that values would lie on one line: it is cut off.
    """
    values = [estimate.value for estimate in estimates]
    known = [estimate for estimate in estimates if not math.isnan(estimate.low)]
    room = BEYOND * max(least, max(values) - min(values))
    low = max(min(values) - room, min([*values, *(estimate.low for estimate in known)]))
    high = min(max(values) + room, max([*values, *(estimate.high for estimate in known)]))
    lacking = max(0.0, least - (high - low)) / 2
    return low - lacking, high + lacking


def log_ticks(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def even_ticks(axis: Axis, steps: Sequence[float] = (1, 2, 5, 10)) -> None:
    """About five, at round numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=list(steps)))


def _write(
    figure: Figure, lines: Sequence[str], top: float, step: float = LINE, **look: Any
) -> None:
    """Lines from a height downwards, each a text of its own."""
    for i, line in enumerate(lines):
        y = (top - i * step) / figure.get_figheight()
        figure.text(EDGE / WIDTH, y, line, va="top", **look)


def _legend_columns(legend: Sequence[Line2D]) -> int:
    """As few lines as fit, equally full."""
    if not legend:
        return 1
    longest = max(width_of(str(handle.get_label())) for handle in legend)
    most = max(1, int((WIDTH - 2 * EDGE) / (longest + HANDLE)))
    return -(-len(legend) // -(-len(legend) // most))


def joined(parts: Iterable[str]) -> str:
    """Sentences of a caption, those that say something."""
    return " ".join(part for part in parts if part)
