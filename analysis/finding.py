"""Finding: what the data says or cannot say, and the rule of three values behind it.

Leaves out every signature and contrast (`signatures.py`, `steps.py`, `findings.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from analysis.declared import Result
from analysis.intervals import Estimate
from analysis.study import Study
from analysis.tables import Row


@dataclass(frozen=True)
class Finding:
    """Something that the data says, or cannot say.

    Attributes:
        name: what is claimed. where: of which pair and arms.
        holds: None where the data cannot tell.
        text: one sentence with its numbers, their intervals and n.
        evidence: what lies behind it, a line each.
    """

    name: str
    where: str
    holds: bool | None
    text: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """What one table has of one pair."""

    name: str
    rows: tuple[Row, ...]
    results: tuple[Result, ...]  # of the declared contrasts
    study: Study

    @property
    def arms(self) -> tuple[Row, ...]:
        """Each trained policy once: an arm that was merged into another says nothing new."""
        found: dict[tuple[object, ...], Row] = {}
        for row in self.rows:
            cell = row.arm.cell
            found.setdefault((cell.arm_key, cell.rounds, cell.eval_key), row)
        return tuple(found.values())

    def where(self, *rows: Row) -> str:
        """`OLMo-MATH (32,1,0) raw`; several arms with `to` between them."""
        return f"{self.name} {' to '.join(row.arm.label for row in rows)}"


def below(estimate: Estimate, bound: float) -> bool | None:
    """Whether the truth is below a bound, as far as the 95% interval tells."""
    if estimate.high < bound:  # NaN fails both
        return True
    return False if estimate.low > bound else None


def above(estimate: Estimate, bound: float) -> bool | None:
    """Whether the truth is above a bound, as far as the 95% interval tells."""
    told = below(estimate, bound)
    return None if told is None else not told


def every(signs: Collection[bool | None]) -> bool | None:
    """All hold; one that surely does not decides, else one that cannot be told does."""
    if False in signs:
        return False
    return None if None in signs else True


def either(signs: Collection[bool | None]) -> bool | None:
    """Some holds; that decides, else one that cannot be told does."""
    if True in signs:
        return True
    return None if None in signs else False


def seeds_told(n: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} seed{'' if n == 1 else 's'}"


def untold(estimate: Estimate) -> str:
    """Why an interval decides nothing."""
    if estimate.n == 0:
        return "no counted seed has the number"
    return "one seed tells of a run alone" if estimate.n == 1 else "the interval leaves it open"
