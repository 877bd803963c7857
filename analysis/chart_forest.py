"""Forest plot: every declared contrast in every stratum, its difference, interval and verdict.

Contrasts of one family stand together; below a contrast stands its mean over pairs. Nothing here
concludes: verdicts are `declared.py`'s and the mean is `across.py`'s. Leaves out what lies behind
a verdict, which tables have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from analysis.across import Across, across, by_contrast
from analysis.chart_page import BEYOND, Words, joined
from analysis.chart_panels import heading, remarks
from analysis.chart_rows import Column, Line, rows_chart
from analysis.chart_style import COLOURS, GREY, INK, styled
from analysis.declared import Result
from analysis.intervals import MISSING, Estimate
from analysis.sheet import one_line, probability
from analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS: Final = (
    Column("b minus a [95%]", 3.9), Column("n", 5.36), Column("Holm p", 5.58),
    Column("verdict", 6.06),
)  # fmt: skip
BAND: Final = "#DCEBF5"
REASON: Final = 220  # letters of a reason why there is no verdict
LOOKS: Final[Mapping[str, tuple[str, str, str]]] = {  # verdict -> marker, colour, face
    "better": ("^", COLOURS[5], COLOURS[5]),
    "worse": ("v", COLOURS[4], COLOURS[4]),
    "equivalent": ("s", COLOURS[2], COLOURS[2]),
    "inconclusive": ("o", INK, "white"),
    "none": ("o", GREY, "white"),
}


@dataclass
class Notes:
    """Reasons, numbered as they come; one that comes again keeps its number."""

    found: dict[str, int] = field(default_factory=dict)

    def number(self, reason: str) -> int:
        """Of a reason."""
        return self.found.setdefault(one_line(reason, REASON), len(self.found) + 1)

    @property
    def text(self) -> str:
        """`(1) ... (2) ...`."""
        return " ".join(f"({number}) {reason}." for reason, number in self.found.items())


def declares(table: Table) -> bool:
    """The grid declares a contrast that it makes somewhere."""
    return bool(table.results)


@styled
def forest(*tables: Table) -> Figure:
    """The contrasts of a grid, or of several, which are then named in every heading."""
    notes = Notes()
    rows = [row for table in tables for row in _rows(table, len(tables) > 1, notes)]
    title = heading(tables[0], "contrasts") if len(tables) == 1 else "Contrasts of all grids"
    marks = dict.fromkeys(remark for table in tables for remark in remarks(table))
    words = Words(
        title, _caption(tables, notes), "difference in test Pass@1, b minus a", remarks=tuple(marks)
    )
    figure, axes, heights = rows_chart([line for line, _ in rows], COLUMNS, words)
    for (_, item), y in zip(rows, heights, strict=True):
        if isinstance(item, Result):
            _draw(axes, item, y)
        elif isinstance(item, Across):
            _draw_mean(axes, item.mean, y)
    axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    axes.set_xlim(*_ends([result for table in tables for result in table.results]))
    return figure


def _rows(table: Table, name: bool, notes: Notes) -> Iterator[tuple[Line, Result | Across | None]]:
    """A table's lines, with what is drawn in each; with the table's name where that is asked."""
    for found in by_contrast(_by_family(table.results)).values():
        where = f"{table.title}, " if name else ""
        yield Line(where + _heading(found), heading=True), None
        yield from ((_line(result, notes), result) for result in found)
        if len(found) > 1:
            mean = across(found)
            yield _mean_line(mean), mean


def _by_family(results: Sequence[Result]) -> list[Result]:
    """Families in the order of their first contrasts."""
    families = list(dict.fromkeys(result.family for result in results))
    return sorted(results, key=lambda result: families.index(result.family))


def _heading(found: Sequence[Result]) -> str:
    """`batch: b: batch=64, a: batch=8, both: rollouts=1; claim: superior, margin 0.02`."""
    contrast = found[0].contrast
    both = f", both: {_settings(contrast.with_)}" if contrast.with_ else ""
    family = f" [family {contrast.family}]" if contrast.family else ""
    return (
        f"{contrast.name}{family}: b: {_settings(contrast.b)}, a: {_settings(contrast.a)}{both}; "
        f"claim: {contrast.claim}, margin {contrast.margin:g}"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _line(result: Result, notes: Notes) -> Line:
    """Its name, and its numbers with the verdict and what limits it."""
    verdict = "no verdict" if result.verdict == "none" else result.verdict
    reasons = [result.withheld or result.absent] if result.verdict == "none" else []
    reasons += [result.standing.label] if result.standing.exploratory else []
    numbers = ",".join(str(notes.number(reason)) for reason in reasons)
    marks = f" ({numbers})" if numbers else ""
    comparison = result.comparison
    if comparison is None:
        return Line(result.where, (MISSING, "0", MISSING, verdict + marks))
    p = probability(comparison.p_family)
    seeds = str(len(comparison.by_seed))
    difference = comparison.difference.format(sign=True).removesuffix(" (n=1)")
    return Line(result.where, (difference, seeds, p, verdict + marks))


def _mean_line(mean: Across) -> Line:
    """Over pairs; whether they differ stands where a verdict would."""
    if not mean.mean.n:
        return Line("mean over pairs", (MISSING, str(len(mean.used)), "", "needs 2 pairs"))
    differ = f"differ: p {probability(mean.heterogeneity.p)}"
    return Line("mean over pairs", (mean.mean.format(sign=True), str(mean.mean.n), "", differ))


def _draw(axes: Axes, result: Result, y: float) -> None:
    """The margin as a band, the difference with its interval, and it with broken runs at 0."""
    margin = result.contrast.margin
    axes.barh(y, 2 * margin, left=-margin, height=1.0, color=BAND, zorder=0, gid="margin")
    if result.comparison is None:
        return
    marker, colour, face = LOOKS[result.verdict]
    estimate = result.comparison.difference
    axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.2)
    axes.plot(
        [estimate.value], [y], marker=marker, color=colour, markerfacecolor=face, markersize=5,
        gid=result.where,
    )  # fmt: skip
    if result.at_zero is not None:
        zero, y = result.at_zero.difference, y + 0.3
        axes.plot([zero.low, zero.high], [y, y], color=GREY, linewidth=0.6)
        axes.plot([zero.value], [y], marker="x", color=GREY, markersize=3.5, gid="broken at 0")


def _draw_mean(axes: Axes, mean: Estimate, y: float) -> None:
    """A diamond from end to end of its interval."""
    if mean.n:
        x = [mean.low, mean.value, mean.high, mean.value]
        axes.fill(x, [y, y - 0.32, y, y + 0.32], color=INK, gid="mean")


def _ends(results: Sequence[Result]) -> tuple[float, float]:
    """Alike on both sides: all differences and margins, and most of every interval."""
    found = [r.comparison.difference for r in results if r.comparison is not None]
    inner = max([0.01, *(r.contrast.margin for r in results), *(abs(e.value) for e in found)])
    outer = [abs(x) for e in found for x in (e.low, e.high) if not math.isnan(x)]
    end = 1.05 * max(1.3 * inner, min((1 + 3 * BEYOND) * inner, max(outer, default=0.0)))
    return -end, end


def _caption(tables: Sequence[Table], notes: Notes) -> str:
    results = [result for table in tables for result in table.results]
    over = all(table.over_questions for table in tables)
    how = "clustered by seed and question" if over else "over seeds on these questions"
    rates = {r.stratum.a[0].lr for r in results if r.stratum.a[0].lr == r.stratum.b[0].lr}
    at = f" Verdicts hold at lr {' or '.join(f'{x:g}' for x in sorted(rates))}." if rates else ""
    broken = any(result.at_zero is not None for result in results)
    return joined([
        f"Paired differences with 95% t intervals, {how}, cut off at the frame; n: paired seeds, "
        f"one alone has no interval. Band: the margin declared.{at} Better or worse: the interval "
        "excludes 0 and Holm's p over the family is below 0.05; equivalent: within the margin by "
        "two one-sided tests; else inconclusive. Diamond: mean over pairs, of random effects; its "
        "n counts pairs; differ: p of equal effects in all pairs.",
        "Grey below: with diverged runs counted as wrong throughout." if broken else "",
        notes.text,
    ])  # fmt: skip
