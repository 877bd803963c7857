"""The sheets of what a grid's choices explain: the arms that may be best, the variance shares.

Leaves out every computation (`choices.py`, `bestset.py`, `importance.py`, `surrogate.py`).
"""

from __future__ import annotations

import math

from analysis.choices import Choices
from analysis.importance import Share
from analysis.intervals import MISSING, Estimate
from analysis.sheet import LONGEST, Sheet, number, one_line, probability
from analysis.tables import Table


def best_sheet(table: Table) -> Sheet | None:
    """A row an arm: whether it may be the best of its pair; None where no arms can be ranked."""
    ranked = [(made.pair, made.best) for made in table.choices if made.best is not None]
    if not ranked:
        return None
    rows = tuple(
        (
            pair, arm.label, arm.mean.format(), "yes" if arm.in_set else "no", arm.rival or "",
            probability(arm.p), f"{best.seeds} × {best.questions:,}",
        )
        for pair, best in ranked for arm in best.arms
    )  # fmt: skip
    header = (
        "pair", "arm", "mean test Pass@1", "may be best", "strongest rival",
        "p that it is no better", "seeds × questions",
    )  # fmt: skip
    levels = ", ".join(f"{1 - x:.0%}" for x in dict.fromkeys(best.alpha for _, best in ranked))
    lead = (
        f"In place of a bold maximum: the arms that no other arm of the pair beats at {levels} "
        "(paired one-sided t over seeds and questions, p times the number of rivals), on the seeds "
        "and questions that all its arms share. An arm in the set is not shown to be good."
    )
    reasons = [(pair, best.reason) for pair, best in ranked if best.reason]
    reasons += [(made.pair, made.no_best) for made in table.choices if made.no_best]
    return Sheet("best", "Arms that may be best", header, rows, lead=lead, notes=_notes(reasons))


def shares_sheet(table: Table) -> Sheet | None:
    """A row a factor: how much of the variance of runs it explains; None without a share."""
    header = ("runs of", "factor", "share", "F", "p", "runs", "method")
    rows = tuple(_row(made, share) for made in table.choices for share in made.shares)
    if not rows:
        return None
    readings = dict.fromkeys((made.method, made.reading) for made in table.choices if made.shares)
    told = "; ".join(f"{method}: {reading}" for method, reading in readings)
    lead = f"How much each choice explains of final test Pass@1 over runs. {told}."
    reasons = [(made.pair, made.no_shares) for made in table.choices if made.no_shares]
    return Sheet(
        "shares", "Which choices matter", header, rows, lead=lead, notes=_notes(reasons)
    ).without_empty()


def _row(made: Choices, share: Share) -> tuple[str, ...]:
    tested = not math.isnan(share.f)
    return (
        made.pair, share.name, _share(share.estimate), number(share.f, 2) if tested else "",
        probability(share.p) if tested else "", f"{share.estimate.n:,}", made.method,
    )  # fmt: skip


def _share(estimate: Estimate) -> str:
    """Its n is of runs, so that a share without an interval is not one of a single seed."""
    if math.isnan(estimate.value):
        return MISSING
    return f"{estimate.value:.2f}" if math.isnan(estimate.low) else estimate.format(2)


def _notes(reasons: list[tuple[str, str]]) -> tuple[str, ...]:
    """Each reason once, with the pairs that it is of."""
    pairs: dict[str, list[str]] = {}
    for pair, reason in reasons:
        pairs.setdefault(one_line(reason, LONGEST), []).append(pair)
    return tuple(f"{', '.join(where)}: {reason}" for reason, where in pairs.items())
