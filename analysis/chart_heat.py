"""Batch × rollouts: the gain in test Pass@1 of every shape, a panel a pair and kind of arm.

Colours share one scale over all panels, and every entry is written out with the half-width of its
interval; the arms that may be best have a frame. A combination that the grid does not hold is
empty. Leaves out what the entries cost (`chart_cost.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from analysis.arms import Arm
from analysis.chart_page import WIDTH, Room, Words, joined
from analysis.chart_panels import (
    COLUMNS,
    Lines,
    Panel,
    heading,
    kind_of,
    laid,
    missing,
    of_pairs,
    over,
    remarks,
    seeds,
    twins,
)
from analysis.chart_style import GREY, INK, styled
from analysis.choices import Choices
from analysis.intervals import NOTHING, Estimate
from analysis.tables import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE: Final = "PuOr"  # two hues that colour-blind people tell apart, white between them
REACH: Final = 2.0  # of the largest gain: where the palette ends, so that entries stay legible
ENTRY: Final = (0.38, 0.36)  # inches that an entry takes


def has_plane(table: Table) -> bool:
    """Both batch and rollouts vary."""
    cells = [row.arm.cell for row in table.rows]
    return len({c.batch for c in cells}) > 1 and len({c.rollouts for c in cells}) > 1


@styled
def heat_map(table: Table) -> Figure:
    """Gain over batch × rollouts."""
    batches = sorted({row.arm.cell.batch for row in table.rows})
    rollouts = sorted({row.arm.cell.rollouts for row in table.rows})
    columns = min(COLUMNS, max(1, int((WIDTH - 0.6) / (ENTRY[0] * len(rollouts) + 0.2))))
    lines = of_pairs(table, plane_of, columns)
    words = Words(
        heading(table, "gain in test Pass@1 over batch × rollouts"), _caption(table, lines),
        "rollouts a query", "batch (queries a round)", remarks(table),
    )  # fmt: skip
    room = Room(height=ENTRY[1] * len(batches), across=0.34)
    figure, placed = laid(lines, words, room)
    best = {choices.pair: best_of(choices) for choices in table.choices}
    gains = [abs(gain_of(row).value) for row in table.rows if gain_of(row).n]
    reach = REACH * max([0.01, *gains])
    usual = max((gain_of(row).n for row in table.rows), default=0)
    for panel, axes in placed:
        _draw(axes, panel, (batches, rollouts), best.get(panel.pair, frozenset()), reach, usual)
    return figure


def plane_of(arm: Arm) -> str:
    """All that tells arms apart but batch and rollouts."""
    return f"{kind_of(arm)}{f' replay={arm.cell.replay}' if arm.cell.replay else ''}"


def best_of(choices: Choices) -> frozenset[str]:
    """Labels of the arms that may be best; none where the set is not known."""
    return frozenset(choices.best.labels if choices.best else ())


def gain_of(row: Row) -> Estimate:
    """The row's gain in test Pass@1; NOTHING where it has none."""
    return row.estimates.get("gain_test", NOTHING)


def _draw(
    axes: Axes, panel: Panel, ticks: tuple[Sequence[int], Sequence[int]], best: Iterable[str],
    reach: float, usual: int,
) -> None:  # fmt: skip
    """A square a shape; `usual` is the n that is not written into it."""
    import matplotlib
    from matplotlib.patches import Rectangle

    batches, rollouts = ticks
    palette = matplotlib.colormaps[PALETTE]
    for row in panel.rows:
        x, y = rollouts.index(row.arm.cell.rollouts), batches.index(row.arm.cell.batch)
        gain, labels = gain_of(row), {row.arm.label, row.arm.twin}
        look: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.5}
        if gain.n:
            look["facecolor"] = palette(0.5 + 0.5 * gain.value / reach)
        if labels & set(best):
            look |= {"edgecolor": INK, "linewidth": 1.8, "zorder": 3}
        axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, gid=row.arm.label, **look))
        axes.text(x, y, entry(gain, usual), ha="center", va="center", zorder=4, linespacing=1.15)
    axes.grid(False)
    axes.set(xlim=(-0.5, len(rollouts) - 0.5), ylim=(-0.5, len(batches) - 0.5))
    axes.set_xticks(range(len(rollouts)), list(map(str, rollouts)))
    axes.set_yticks(range(len(batches)), list(map(str, batches)))
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def entry(gain: Estimate, usual: int) -> str:
    """`+.123` over `±.045`, and n where it is not the usual one."""
    if not gain.n:
        return "no run"
    if math.isnan(gain.low):
        return f"{_short(gain.value, '+')}\nn = {gain.n}"
    n = f"\nn = {gain.n}" if gain.n != usual else ""
    return f"{_short(gain.value, '+')}\n±{_short(gain.high - gain.value)}{n}"


def _short(x: float, sign: str = "") -> str:
    """Without the zero before the point, as there is little room."""
    text = f"{x:{sign}.3f}"
    return text.replace("0.", ".", 1) if abs(x) < 0.9995 else text


def _caption(table: Table, lines: Lines) -> str:
    own = [row for row in table.rows if row.arm.twin is None]
    unknown = [
        c.pair for c in table.choices if c.best is None and any(r.pair == c.pair for r in own)
    ]
    return joined([
        f"Gain over the base with the half-width of its 95% t interval over {over(own)}; "
        f"{seeds(own)}, written where it is fewer. White is no gain, violet more, orange less; the "
        "scale is that of all panels.",
        "Frame: no other arm of the pair beats this one (95% set of what may be best).",
        f"That set is not known in {', '.join(unknown)}." if unknown else "",
        "Empty: not in the grid.", twins(lines), missing(own),
    ])  # fmt: skip
