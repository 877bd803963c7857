"""Which choices matter: the share of the runs' variance that every factor explains, pair by pair.

Leaves out which levels are better, and every computation (`importance.py`, `surrogate.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from analysis.chart_page import Words, joined
from analysis.chart_panels import heading, missing, remarks
from analysis.chart_rows import Column, Line, rows_chart
from analysis.chart_style import COLOURS, GREY, INK, styled
from analysis.choices import Choices
from analysis.importance import SEEDS, Share
from analysis.intervals import MISSING, Estimate
from analysis.sheet import one_line
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS: Final = (Column("share [95%]", 5.72),)
FACTOR: Final = COLOURS[1]
TOGETHER: Final = "#C9E4F5"  # of an interaction
REASON: Final = 160  # letters


def varies(table: Table) -> bool:
    """Some setting varies between the arms."""
    return len({row.arm.cell.arm_key for row in table.rows}) > 1


@styled
def variance_shares(table: Table) -> Figure:
    """A bar a factor under every pair, and over all pairs where the table has that."""
    lines: list[Line] = []
    shares: list[Share | None] = []  # of each line; None for a heading
    for made in (choices for choices in table.choices if choices.shares):
        lines.append(Line(_heading(made), heading=True))
        lines += [Line(share.name, (told(share.estimate),)) for share in made.shares]
        shares += [None, *made.shares]
    words = Words(
        heading(table, "which choices matter"), _caption(table),
        "share of the variance of final test Pass@1 over runs", remarks=remarks(table),
    )  # fmt: skip
    figure, axes, heights = rows_chart(lines, COLUMNS, words)
    for share, y in zip(shares, heights, strict=True):
        if share is not None:
            _draw(axes, share, y)
    low = min([0.0, *(s.estimate.value for s in shares if s and s.estimate.value < 0)])
    axes.set_xlim(1.05 * low - 0.005, 1.0)
    axes.axvline(0, color=INK, linewidth=0.6)
    return figure


def told(estimate: Estimate) -> str:
    """`0.62 [0.30, 0.81]`. Its n is of runs: a share without an interval is no single seed's."""
    if math.isnan(estimate.value):
        return MISSING
    return f"{estimate.value:.2f}" if math.isnan(estimate.low) else estimate.format(2)


def _draw(axes: Axes, share: Share, y: float) -> None:
    """A bar, and its interval as a line in it."""
    estimate = share.estimate
    colour = GREY if share.name == SEEDS else FACTOR if share.order == 1 else TOGETHER
    axes.barh(y, estimate.value, height=0.62, color=colour, gid=share.name)
    axes.plot([estimate.low, estimate.high], [y, y], color=INK, linewidth=1.0)
    for end in (estimate.low, estimate.high):
        axes.plot([end, end], [y - 0.18, y + 0.18], color=INK, linewidth=1.0)


def _heading(made: Choices) -> str:
    runs = max(share.estimate.n for share in made.shares)
    return f"{made.pair} ({made.method}, n = {runs} runs)"


def _caption(table: Table) -> str:
    with_shares = [made for made in table.choices if made.shares]
    shares = [share for made in with_shares for share in made.shares]
    kinds = {
        "pale": "an interaction" if any(share.order > 1 for share in shares) else "",
        "grey": "the noise between seeds" if any(s.name == SEEDS for s in shares) else "",
    }
    told = "; ".join(f"{colour}: {what}" for colour, what in kinds.items() if what)
    return joined([
        *(f"{text[0].upper()}{text[1:]}." for text in readings(with_shares)),
        f"Blue: a factor; {told}. A share is told as it comes out, below 0 too." if told else "",
        *_without(table),
        missing([row for row in table.rows if row.arm.twin is None]),
    ])  # fmt: skip


def _without(table: Table) -> list[str]:
    """The pairs that have no shares, by the reason."""
    pairs: dict[str, list[str]] = {}
    for made in table.choices:
        if not made.shares:
            pairs.setdefault(one_line(made.no_shares, REASON), []).append(made.pair)
    return [f"No shares in {', '.join(where)}: {reason}." for reason, where in pairs.items()]


def readings(choices: Iterable[Choices]) -> list[str]:
    """`factorial: share of the variance ...`: what the shares are, by the way they were made."""
    ways = dict.fromkeys((made.method, made.reading) for made in choices)
    return [f"{method}: {reading}" for method, reading in ways]
