"""The figures of a table: which there are, and how each is drawn.

Equal tables give equal bytes. What is drawn is in `chart_*.py`; `figures.py` has curves of any
metric of training. Leaves out pages that show them (`page.py`).
"""

from __future__ import annotations

from collections.abc import Callable
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

__all__ = ["FIGURES", "Chart", "caption_of", "figures_of", "forest", "save"]


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
