"""The sheets of a grid's declared contrasts: their verdicts, and what lies behind them.

Each row is one contrast in one stratum; differences are b - a. Leaves out every computation
(`declared.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from analysis.across import Across, across, by_contrast
from analysis.contrasts import Comparison
from analysis.declared import Result
from analysis.intervals import MISSING
from analysis.sheet import LONGEST, Sheet, number, one_line, probability
from analysis.tables import Table
from grids.cell import Cell

COSTS = {
    "rollouts": "rollouts b/a", "updates": "updates b/a",
    "generated_tokens": "tokens generated b/a", "trained_tokens": "tokens trained b/a",
    "seconds": "seconds b/a",
}  # fmt: skip
CLAIMS = {True: "shown", False: "not shown", None: "open"}


def contrasts_sheet(table: Table) -> Sheet | None:
    """A row a contrast and stratum, up to its verdict; None where the grid declares none."""
    if not table.results:
        return None
    header = (
        "contrast", "where", "seeds", "b - a [95%]", "smallest effect", "p", "Holm p (family)",
        "TOST p (margin)", "non-inferior p (margin)", "verdict", "claim", "standing",
    )  # fmt: skip
    return Sheet(
        "contrasts", "Contrasts", header, tuple(map(_verdict_row, table.results)),
        lead=_lead(table), notes=tuple(_notes(table)),
    ).without_empty()  # fmt: skip


def behind_sheet(table: Table) -> Sheet | None:
    """What the differences are made of and what they cost; None without a comparison."""
    compared = [(r, r.comparison) for r in table.results if r.comparison is not None]
    if not compared:
        return None
    header = (
        "contrast", "where", "by seed", "a alone right", "b alone right", "of answers",
        "noise: seeds", "questions", "rest", "seed correlation", *COSTS.values(),
    )  # fmt: skip
    lead = (
        "By seed: b - a. A alone right: answers that arm a got right and b did not; K samples of "
        "a question count as their mean. Noise: what the variance of the difference is made of. "
        "Costs: b over a, geometric mean over paired seeds with its 95% t interval."
    )
    rows = tuple(_behind_row(result, comparison) for result, comparison in compared)
    return Sheet("behind", "Behind the contrasts", header, rows, lead=lead).without_empty()


def across_sheet(table: Table) -> Sheet | None:
    """Each contrast over the pairs that it was made in; None where none has several."""
    groups = {name: across(found) for name, found in by_contrast(table.results).items()}
    rows = tuple(_across_row(name, made) for name, made in groups.items() if len(made.pairs) > 1)
    if not rows:
        return None
    header = (
        "contrast", "pairs", "verdicts", "mean b - a [95%]", "p that pairs are equal",
        "sd of true effects", "I²", "P(b > a)",
    )  # fmt: skip
    lead = (
        "The mean is of random effects (Paule and Mandel; Hartung and Knapp) over pairs that have "
        "a verdict and two seeds or more. Pairs share models and questions: its interval describes "
        "these pairs. P(b > a): of two runs of one pair, averaged over pairs."
    )
    return Sheet("across", "Contrasts across pairs", header, rows, keys=1, lead=lead)


def _across_row(name: str, made: Across) -> tuple[str, ...]:
    found = made.heterogeneity
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in made.verdicts.items() if n)
    return (
        name, f"{len(made.used)}/{len(made.pairs)}", verdicts, made.mean.format(sign=True),
        probability(found.p), number(found.tau), _percent(found.i2), number(made.superiority, 2),
    )  # fmt: skip


def _lead(table: Table) -> str:
    if not table.over_questions:
        return f"Contrasts need answers to single questions, which {table.source} does not have."
    return (
        "Differences in Pass@1 are b - a, paired by seed and by question, with 95% t interval on "
        "seeds - 1 degrees of freedom, clustered by both. Holm's p is corrected over the declared "
        "family, TOST's is of a true difference beyond the margin; the smallest effect is what "
        "this design with this noise finds in 80 of 100 repetitions. Better or worse: the interval "
        "excludes 0 and Holm's p is below 0.05; equivalent: TOST's p is; else inconclusive."
    )


def _verdict_row(result: Result) -> tuple[str, ...]:
    names = (result.contrast.name, result.where)
    standing = result.standing
    last = (_verdict(result), _claim(result), _standing(standing.exploratory, standing.registered))
    comparison = result.comparison
    if comparison is None:
        return (*names, f"0/{len(result.stratum.a)}", *[MISSING] * 5, "", *last)
    family = f"{result.family}, {comparison.family_size}"
    margin = f"±{comparison.margin:g}"
    claimed = result.contrast.claim == "non-inferior"
    return (
        *names, f"{len(comparison.by_seed)}/{len(result.stratum.a)}",
        comparison.difference.format(sign=True), number(comparison.smallest_effect),
        probability(comparison.p), f"{probability(comparison.p_family)} ({family})",
        f"{probability(comparison.tost_p)} ({margin})",
        f"{probability(comparison.non_inferior_p)} ({comparison.margin:g})" if claimed else "",
        *last,
    )  # fmt: skip


def _verdict(result: Result) -> str:
    return "no verdict" if result.verdict == "none" else result.told


def _claim(result: Result) -> str:
    return f"{result.contrast.claim}: {CLAIMS[result.claim_holds]}"


def _standing(exploratory: Sequence[str], registered: str | None) -> str:
    return "exploratory" if exploratory else f"registered {(registered or '')[:10]}"


def _behind_row(result: Result, comparison: Comparison) -> tuple[str, ...]:
    noise, discordant = comparison.noise, comparison.discordant
    by_seed = (f"s{seed} {x:+.3f}" for seed, x in comparison.by_seed.items())
    costs = (result.cost_ratios.get(name) for name in COSTS)
    return (
        result.contrast.name, result.where, ", ".join(by_seed),
        f"{discordant.a_only:g}", f"{discordant.b_only:g}", f"{discordant.pairs:,}",
        *(_percent(share) for share in (noise.seed, noise.question, noise.rest)),
        number(comparison.seed_correlation, 2),
        *(ratio.format(2) if ratio else "" for ratio in costs),
    )  # fmt: skip


def _percent(share: float) -> str:
    return MISSING if math.isnan(share) else f"{share:.0%}"


# ---- notes


def _notes(table: Table) -> Iterator[str]:
    """What was declared and how the arms differ; then, place by place, what limits a verdict."""
    by_name: dict[str, list[Result]] = {}
    for result in table.results:
        by_name.setdefault(result.contrast.name, []).append(result)
    for name, found in by_name.items():
        for declared, places in _places((_declaration(r), r.where) for r in found).items():
            everywhere = len(places) == len(found)
            yield f"{name}: {declared}" + ("" if everywhere else f" ({'; '.join(places)})")
    if table.over_questions:
        yield from _limited(table.results, several=len(by_name) > 1)


def _limited(results: Sequence[Result], several: bool) -> Iterator[str]:
    """Each limit once, with the places that it is of."""
    limits = _places(
        (limit, f"{r.contrast.name}, {r.where}" if several else r.where)
        for r in results for limit in _limits(r)
    )  # fmt: skip
    for limit, places in limits.items():
        everywhere = len(places) == len(results) > 1
        where = "everywhere" if everywhere else "; ".join(places)
        yield f"{where}: {one_line(limit, LONGEST)}"


def _places(told: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Each text once, with the places that it is of."""
    places: dict[str, list[str]] = {}
    for text, place in told:
        places.setdefault(text, []).append(place)
    return places


def _declaration(result: Result) -> str:
    contrast, a, b = result.contrast, result.stratum.a[0], result.stratum.b[0]
    differ = ", ".join(f"{n} ({_short(x)}, {_short(y)})" for n, (x, y) in result.differ.items())
    held = ", ".join(result.held) or "nothing that is planned"
    both = ", ".join(f"{name} {_short(value)}" for name, value in contrast.with_.items())
    return (
        f"a is {_arm(a)}, b is {_arm(b)}{f', both with {both}' if both else ''}; "
        f"declared {contrast.claim} with margin "
        f"{contrast.margin:g}, matched on {contrast.match}. Everything in which a and b differ: "
        f"{differ or 'nothing'}. Held equal: {held}"
    )


def _arm(cell: Cell) -> str:
    b, n, m = cell.shape
    return f"({b},{n},{m}) {cell.advantage}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _limits(result: Result) -> Iterator[str]:
    if result.verdict == "none":
        yield result.told
    if result.standing.exploratory:
        yield result.standing.label
    if (zero := result.at_zero) is not None:
        yield (
            "with every diverged run counted as wrong throughout: "
            f"{zero.difference.format(sign=True)}, p {probability(zero.p)}, "
            f"Holm p {probability(zero.p_family)}, TOST p {probability(zero.tost_p)}, "
            f"{zero.verdict}"
        )
    if result.comparison is not None:
        yield from result.notes
