"""A chart of rows under headings: names at the left, a picture in the middle, numbers at the right.

Forest plots and variance shares are such charts. Leaves out what is drawn in a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from analysis.chart_page import WIDTH, Room, Words, page, width_of, wrapped
from analysis.chart_style import GREY, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT: Final = 0.162  # inches of a row
HEADING: Final = 1.5  # rows that a heading of one line takes
MORE: Final = 0.85  # rows that every further line of it takes
MARGIN: Final = 0.06  # inches
LONGEST: Final = 2.4  # inches of a name; a longer one runs into the picture
OPAQUE: Final = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


class Line(NamedTuple):
    """A row, or a heading, which has the whole width for itself."""

    text: str
    columns: tuple[str, ...] = ()
    heading: bool = False


class Column(NamedTuple):
    """What stands at the right: its title, and how far from the left it begins, in inches."""

    title: str
    left: float


def rows_chart(
    lines: Sequence[Line], columns: Sequence[Column], words: Words
) -> tuple[Figure, Axes, list[float]]:
    """The figure with all its text; the axes to draw in, and the height in them of every line.

    The picture reaches from the longest name to the first column. Without a line the figure says
    that there is nothing to show.
    """
    given = lines or [Line("nothing to show")]
    texts = [wrapped(line.text, size=TEXT + 1) if line.heading else [line.text] for line in given]
    heights = [
        HEADING + MORE * (len(text) - 1) if line.heading else 1.0
        for line, text in zip(given, texts, strict=True)
    ]
    ends = list(itertools.accumulate(heights))
    named = [width for line in given if line.columns and (width := width_of(line.text)) < LONGEST]
    room = Room(
        height=ends[-1] * HEIGHT, left=4 * MARGIN + max([1.0, *named]),
        right=WIDTH - columns[0].left + 0.1,
    )  # fmt: skip
    figure, ((axes,),) = page(1, 1, words, room)
    axes.set(ylim=(ends[-1], 0), yticks=[])
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    for column in columns:
        _write(axes, column.left, -0.6, column.title, color=GREY)
    for line, text, end in zip(given, texts, ends, strict=True):
        _write_line(axes, line, text, end, columns)
    return figure, axes, [end - 0.5 for end in ends[: len(lines)]]


def _write_line(
    axes: Axes, line: Line, text: Sequence[str], end: float, columns: Sequence[Column]
) -> None:
    """A row's or a heading's text; what crosses the picture hides it."""
    look: dict[str, Any] = {} if line.columns else {"bbox": OPAQUE}
    if line.heading:
        middle = end - 0.5 - MORE * (len(text) - 1) / 2
        _write(axes, MARGIN, middle, "\n".join(text), size=TEXT + 1, linespacing=1.15, **look)
        return
    _write(axes, 2.5 * MARGIN, end - 0.5, line.text, **look)
    for column, entry in zip(columns, line.columns, strict=bool(line.columns)):
        _write(axes, column.left, end - 0.5, entry)


def _write(axes: Axes, left: float, y: float, text: str, **look: Any) -> None:
    """Text that begins so many inches from the left of the figure, at a height of the axes."""
    from matplotlib.transforms import blended_transform_factory

    across = blended_transform_factory(axes.figure.transFigure, axes.transData)
    axes.text(left / WIDTH, y, text, transform=across, va="center", zorder=5, **look)
