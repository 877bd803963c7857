"""A chart of rows under headings: names at the left, a picture of numbers, what they are at the right.

Forest plots and variance shares are such charts. Leaves out what is drawn in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from analysis.chart_style import GREY, TEXT, WIDTH, Room, Words, page, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT: Final = 0.162  # inches of a row
HEADING: Final = 1.5  # rows that a heading of one line takes
MARGIN: Final = 0.06  # inches


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
    lines: Sequence[Line], columns: Sequence[Column], words: Words, left: float
) -> tuple[Figure, Axes, list[float]]:
    """The figure with all its text; the axes to draw in, and the height in them of every line.

    The picture begins `left` inches from the left and ends where the first column begins.
    """
    from matplotlib.transforms import blended_transform_factory

    texts = [wrapped(line.text) if line.heading else [line.text] for line in lines]
    heights = [
        HEADING + 0.85 * (len(text) - 1) if line.heading else 1.0
        for line, text in zip(lines, texts, strict=True)
    ]
    ends = [sum(heights[: i + 1]) for i in range(len(heights))]
    room = Room(
        height=max(sum(heights), 1) * HEIGHT, left=left, right=WIDTH - columns[0].left + 0.1
    )
    figure, ((axes,),) = page(1, 1, words, room)
    across = blended_transform_factory(figure.transFigure, axes.transData)
    look = {"transform": across, "va": "center"}
    for column in columns:
        axes.text(column.left / WIDTH, -0.6, column.title, color=GREY, **look)
    for line, text, end in zip(lines, texts, ends, strict=True):
        size = TEXT + 1 if line.heading else TEXT
        y = end - 0.5 * (1 if not line.heading else len(text))
        x = MARGIN if line.heading else 2.5 * MARGIN
        axes.text(x / WIDTH, y, "\n".join(text), size=size, linespacing=1.15, **look)
        for column, entry in zip(columns, line.columns, strict=False):
            axes.text(column.left / WIDTH, y, entry, **look)
    axes.set(ylim=(ends[-1] if ends else 1, 0), yticks=[])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    middles = [end - 0.5 for end in ends]
    return figure, axes, middles
