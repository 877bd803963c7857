"""How every chart looks and is written: palette, an arm's look, files.

Made for print at 7 inches and for colour-blind readers: Okabe and Ito's colours, each with a marker
of its own, text of 7 points and more. A file's bytes depend on what is drawn alone, never on the
time. Leaves out the page around a chart (`chart_page.py`), and what is drawn.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from grids.errors import InputError, listed
from grids.paths import scratch

if TYPE_CHECKING:  # the command starts without matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which colour-blind people can tell apart; yellow is too pale for a line.
COLOURS: Final = ("#000000", "#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7")
MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")
DASHES: Final = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
PALE, GREY, INK = "0.9", "0.45", "0.1"

TEXT: Final = 7.0  # points
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
    width: float

    @staticmethod
    def of(shape: int, kind: int) -> Look:
        """Colour and marker tell the shape, dash and filling the kind.

        Beyond seven shapes markers move on against the colours: 49 shapes of 8 kinds look unlike.
        Later shapes are thinner, so that one that lies upon another hides no part of it.
        """
        turns, place = divmod(shape, len(COLOURS))
        marker = MARKERS[(place + turns) % len(MARKERS)]
        width = 1.6 - 0.8 * place / len(COLOURS)
        return Look(COLOURS[place], marker, DASHES[kind % 4], kind // 4 % 2 == kind % 2, width)

    def line(self) -> dict[str, Any]:
        """matplotlib's words for it."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour, "marker": self.marker, "linestyle": self.dash,
            "linewidth": self.width, "markersize": 2.2 + 1.4 * self.width,
            "markerfacecolor": face, "markeredgewidth": 0.8,
        }  # fmt: skip

    def handle(self, label: str, **changed: Any) -> Line2D:
        """Its entry in a legend."""
        from matplotlib.lines import Line2D

        return Line2D([], [], label=label, **(self.line() | changed))


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
        _without_ligatures(figure)
        with house_style():
            figure.savefig(made, format=form, dpi=dpi, metadata=METADATA[form])
        os.replace(made, out)
    except OSError as error:
        raise InputError(f"{out}: the figure cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            made.unlink()
    return out


def _without_ligatures(figure: Figure) -> None:
    """They would cost a second font in every PDF, and hide words from a search in it."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if hasattr(text, "set_fontfeatures"):  # before matplotlib 3.11 there are none
            text.set_fontfeatures(["-liga"])
