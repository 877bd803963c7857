"""A sheet: what one table shows, as text, whatever file it is written to.

Markdown, LaTeX and HTML are made of the same sheets, so that their entries are the very same.
Leaves out which sheets a grid has (`sheets.py`) and every markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from analysis.intervals import MISSING, Estimate

LONGEST: Final = 240  # characters of one note
UNITS: Final = (("million", 1e6), ("thousand", 1e3), ("", 1.0))


@dataclass(frozen=True)
class Sheet:
    """Rows under a header, and what must be read with them.

    Attributes:
        name: the kind of sheet: `arms`, `contrasts`.
        keys: how many columns at the left say what a row is of.
        lead: what the columns are, above the rows.
        notes: lines below the rows, under `notes_title`.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 2
    lead: str = ""
    notes: tuple[str, ...] = ()
    notes_title: str = "Notes"

    def without_empty(self) -> Sheet:
        """The columns that say something in some row."""
        kept = [i for i in range(len(self.header)) if any(row[i] for row in self.rows)]
        return self.of_columns(kept)

    def of_columns(self, kept: Sequence[int]) -> Sheet:
        """These columns alone."""
        header = tuple(self.header[i] for i in kept)
        return replace(
            self, header=header, rows=tuple(tuple(row[i] for i in kept) for row in self.rows)
        )


@dataclass(frozen=True)
class Document:
    """All that is shown of one grid.

    Attributes:
        warnings: what would mislead where it is missed.
        text: paragraphs on what the numbers are.
    """

    title: str
    about: str
    warnings: tuple[str, ...]
    text: tuple[str, ...]
    sheets: tuple[Sheet, ...]

    @property
    def heading(self) -> str:
        """Title and subject on one line."""
        return f"{self.title}: {self.about}" if self.about else self.title


class Unit(NamedTuple):
    """What large counts are told in."""

    name: str  # `thousand`; empty for ones
    size: float
    decimals: int

    def told(self, estimate: Estimate) -> str:
        """The estimate in this unit, its name left out."""
        value, se, low, high = (
            x / self.size for x in (estimate.value, estimate.se, estimate.low, estimate.high)
        )
        return Estimate(value, se, low, high, estimate.df, estimate.n).format(self.decimals)


def unit_of(estimates: Iterable[Estimate]) -> Unit:
    """The unit in which the largest of them has one to three digits before the point."""
    largest = max((abs(e.value) for e in estimates if not math.isnan(e.value)), default=0.0)
    name, size = next((u for u in UNITS if largest >= u[1]), UNITS[-1])
    return Unit(name, size, 2 if size > 1 and largest < 100 * size else 0)


def probability(p: float) -> str:
    """`0.034`, `<0.001`; never 0, and a dash where there is none."""
    if math.isnan(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def number(x: float, decimals: int = 3) -> str:
    """The number, or a dash where there is none."""
    return MISSING if math.isnan(x) else f"{x:.{decimals}f}"


def one_line(text: str, longest: int | None = None) -> str:
    """On one line, and no longer than told."""
    flat = " ".join(text.split())
    cut = longest is not None and len(flat) > longest
    return flat[: longest - 1] + "…" if cut and longest else flat


def joined(names: Iterable[object]) -> str:
    """`a or b`, each once."""
    return " or ".join(dict.fromkeys(map(str, names)))
