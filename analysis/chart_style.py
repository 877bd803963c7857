"""How every chart looks and is written: palette, an arm's look, the page around the panels, files.

Made for print at 7 inches and for colour-blind readers: Okabe and Ito's colours, each with a marker
of its own, text of 7 points and more. A file's bytes depend on what is drawn alone, never on the
time. Leaves out what is drawn.
"""

from __future__ import annotations

import functools
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from analysis.intervals import Estimate
from grids.errors import InputError, listed
from grids.paths import scratch

if TYPE_CHECKING:  # the command starts without matplotlib
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which colour-blind people can tell apart; yellow is too pale for a line.
COLOURS: Final = ("#000000", "#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7")
MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")
DASHES: Final = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
PALE, GREY, INK = "0.9", "0.45", "0.1"

WIDTH: Final = 7.0  # inches
TEXT: Final = 7.0  # points
LINE: Final = TEXT * 1.25 / 72  # inches from one line of text to the next
LETTERS: Final = 19.0  # of `TEXT` points that surely fit into an inch
HEIGHTS: Final = {1: 2.8, 2: 2.0, 3: 1.5}  # inches of a panel of points, by how many share a line
BEYOND: Final = 0.6  # of the height of what is drawn, that a panel shows of intervals beyond it
NO_RUN: Final = "no finished run"
RC: Final[dict[str, Any]] = {
    "font.size": TEXT, "axes.titlesize": TEXT + 1, "axes.labelsize": TEXT + 1,
    "xtick.labelsize": TEXT, "ytick.labelsize": TEXT, "legend.fontsize": TEXT,
    "text.color": INK, "axes.edgecolor": GREY, "axes.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": PALE,
    "grid.linewidth": 0.5, "xtick.color": INK, "ytick.color": INK, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "text.parse_math": False, "pdf.fonttype": 42,
    "axes.unicode_minus": False, "svg.hashsalt": "banditgrid",
}  # fmt: skip
# Nothing of the time and place in a file.
METADATA: Final[dict[str, dict[str, Any]]] = {
    "png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None},
}  # fmt: skip

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


@contextmanager
def house_style() -> Iterator[None]:
    """Our look, whatever the reader's own settings of matplotlib are."""
    from matplotlib import style

    with style.context(["default", RC]):
        yield


def styled(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """A maker of figures, in the house's style."""

    @functools.wraps(make)
    def inside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        with house_style():
            return make(*args, **kwargs)

    return inside


# ---- an arm's look


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, in all panels alike."""

    colour: str
    marker: str
    dash: Any
    filled: bool
    width: float = 1.1

    @staticmethod
    def of(shape: int, kind: int) -> Look:
        """Colour and marker tell the shape, dash and filling the kind.

        Beyond seven shapes markers move on against the colours: 49 shapes of 8 kinds look unlike.
        Later shapes are thinner, so that one that lies upon another hides no part of it.
        """
        turns, place = divmod(shape, len(COLOURS))
        marker = MARKERS[(place + turns) % len(MARKERS)]
        width = 2.0 - 1.0 * place / len(COLOURS)
        return Look(COLOURS[place], marker, DASHES[kind % 4], kind // 4 % 2 == kind % 2, width)

    def line(self) -> dict[str, Any]:
        """matplotlib's words for it."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour, "marker": self.marker, "linestyle": self.dash,
            "linewidth": self.width, "markersize": 2.4 + 1.2 * self.width,
            "markerfacecolor": face, "markeredgewidth": 0.8,
        }  # fmt: skip

    def handle(self, label: str, **changed: Any) -> Line2D:
        """Its entry in a legend."""
        from matplotlib.lines import Line2D

        return Line2D([], [], label=label, **(self.line() | changed))


# ---- the page around the panels


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
    """A figure of rows × columns of panels between its title above and legend and caption below.

    All lengths are counted in inches here: matplotlib's own layouts take a second a figure.
    """
    from matplotlib.figure import Figure  # without pyplot: no window and no state of its own

    title = wrapped(words.title, WIDTH * 0.88)
    remarks = [line for remark in words.remarks for line in wrapped(remark)]
    caption = wrapped(words.caption)
    ncols = _legend_columns(legend)
    legend_height = -(-len(legend) // ncols) * LINE * 1.12 + (0.1 if legend else 0)
    top = 0.08 + 0.165 * len(title) + LINE * len(remarks) + 0.34
    axis = 0.24 + (0.17 if words.x else 0)
    bottom = axis + legend_height + 0.06 + LINE * len(caption) + 0.05
    panels = rows * room.height + (rows - 1) * room.down
    height = top + panels + bottom
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    width = (WIDTH - room.left - room.right - (columns - 1) * room.across) / columns
    axes = [
        [
            figure.add_axes((
                (room.left + j * (width + room.across)) / WIDTH,
                (bottom + panels - room.height - i * (room.height + room.down)) / height,
                width / WIDTH, room.height / height,
            ))
            for j in range(columns)
        ]
        for i in range(rows)
    ]  # fmt: skip
    y = height - 0.08
    _write(figure, title, y, size=TEXT + 2.5, linespacing=1.2)
    _write(figure, remarks, y - 0.165 * len(title) - 0.02, color=GREY)
    _write(figure, caption, LINE * len(caption) + 0.05, gid="caption")
    middle = (room.left + (WIDTH - room.left - room.right) / 2) / WIDTH
    figure.text(middle, (bottom - axis) / height, words.x, ha="center", va="bottom", size=TEXT + 1)
    figure.text(
        0.06 / WIDTH, (bottom + panels / 2) / height, words.y, rotation=90, va="center",
        size=TEXT + 1,
    )  # fmt: skip
    if legend:
        figure.legend(
            handles=list(legend), loc="upper center", ncols=ncols, frameon=False,
            bbox_to_anchor=(0.5, (bottom - axis) / height), handlelength=2.6, borderpad=0.2,
            columnspacing=1.4, labelspacing=0.3,
        )  # fmt: skip
    return figure, axes


def wrapped(text: str, inches: float = WIDTH - 0.12) -> list[str]:
    """The text in lines of `TEXT` points that fit."""
    lines = (textwrap.wrap(line, int(inches * LETTERS)) for line in text.splitlines())
    return [line for part in lines for line in part]


def caption_of(figure: Figure) -> str:
    """The caption that stands in a figure, on one line: for those who cannot see it."""
    found = [text.get_text() for text in figure.texts if text.get_gid() == "caption"]
    return " ".join(" ".join(found).split())


def say_nothing(axes: Axes, why: str) -> None:
    """A panel in which there is nothing to draw says so."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


def name_panel(axes: Axes, name: str, remark: str = "") -> None:
    """The name above a panel, and below it in small what limits it."""
    axes.set_title(name, loc="left", pad=3 + (TEXT * 1.25 if remark else 0))
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


def _write(figure: Figure, lines: Sequence[str], inches: float, **look: Any) -> None:
    """Lines from a height downwards."""
    x, y = 0.06 / WIDTH, inches / figure.get_figheight()
    figure.text(x, y, "\n".join(lines), va="top", **({"linespacing": 1.25} | look))


def _legend_columns(legend: Sequence[Line2D]) -> int:
    longest = max((len(str(handle.get_label())) for handle in legend), default=0)
    return max(1, min(len(legend), 4, int((WIDTH - 0.1) / (longest / LETTERS + 0.55))))


# ---- files


def save(figure: Figure, out: Path, dpi: int = 150) -> Path:
    """Write a figure in the format of its name: a reader sees the old file or the new, whole.

    Raises `InputError` for another format than png, pdf or svg, or where `out` cannot be written.
    """
    form = out.suffix.removeprefix(".")
    if form not in METADATA:
        raise InputError(f"{out.name}: figures are written as {listed(METADATA)}")
    made = scratch(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with house_style():
            figure.savefig(made, format=form, dpi=dpi, metadata=METADATA[form])
        os.replace(made, out)
    except OSError as error:
        raise InputError(f"{out}: the figure cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            made.unlink()
    return out


def joined(parts: Iterable[str]) -> str:
    """Sentences of a caption, those that say something."""
    return " ".join(part for part in parts if part)
