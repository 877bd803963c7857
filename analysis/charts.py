"""The figures of a table: which there are, and their files as PNG, PDF or SVG.

Equal tables give equal bytes. What is drawn is in `chart_*.py`; `figures.py` has curves of any
metric of training. Leaves out pages that show them (`page.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from analysis.chart_cost import gain_against_cost, has_choice
from analysis.chart_curves import against_rounds, against_tokens
from analysis.chart_forest import declares, forest
from analysis.chart_heat import has_plane, heat_map
from analysis.chart_page import caption_of
from analysis.chart_shares import variance_shares, varies
from analysis.chart_style import save
from analysis.study import Study
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "Chart", "caption_of", "figures_of", "forest", "save", "write_figures"]


class Chart(NamedTuple):
    """A kind of figure.

    Attributes:
        applies: whether a grid is such that the figure can say anything; not whether it has runs.
        make: draws it; what is missing is told in it.
    """

    applies: Callable[[Table], bool]
    make: Callable[[Table, Study], Figure]


FIGURES: Final[dict[str, Chart]] = {
    "curves": Chart(lambda table: True, against_rounds),
    "curves-by-tokens": Chart(lambda table: True, against_tokens),
    "batch-by-rollouts": Chart(has_plane, lambda table, _: heat_map(table)),
    "gain-by-cost": Chart(has_choice, lambda table, _: gain_against_cost(table)),
    "contrasts": Chart(declares, lambda table, _: forest(table)),
    "variance-shares": Chart(varies, lambda table, _: variance_shares(table)),
}


def figures_of(table: Table, study: Study) -> dict[str, Figure]:
    """The figures that apply to a table, by name."""
    return {
        name: chart.make(table, study) for name, chart in FIGURES.items() if chart.applies(table)
    }


def write_figures(
    table: Table, study: Study, out: Path, formats: Sequence[str] = ("png", "pdf")
) -> dict[str, list[Path]]:
    """Write the figures of a table into the folder `out`; the files of each, as formats go.

    Files are called `4.6-tradeoff-curves.png`. Raises `InputError` for another format than png, pdf
    and svg, and where a file cannot be written.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", table.title).strip("-.")
    return {
        name: [save(figure, out / f"{stem}-{name}.{form}") for form in formats]
        for name, figure in figures_of(table, study).items()
    }
