"""At which learning rates a contrast was made, and whether a search chose each arm's own.

A verdict holds at the learning rates of its arms. Where both arms got theirs from an override that
names a search (`found:`), and the study's record of that search says that it is complete and that
these settings are the best it tried on that very arm, on held-out train questions, the verdict is
no longer tied to one rate: each arm has its own. Leaves out making searches (the orchestrator).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grids import expand
from grids.cell import Cell
from grids.grid import Grid
from grids.search import arm_digest
from grids.strata import Stratum

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Rates:
    """What the learning rates say of a verdict.

    Attributes:
        told: follows the verdict: ` at lr 1e-06`, or `, each arm at its own lr (search lr, ...)`.
        lifted: a search chose each arm's.
        notes: why not, where an override says so.
    """

    told: str
    lifted: bool = False
    notes: tuple[str, ...] = ()


def rates_of(grid: Grid, stratum: Stratum, searches: Sequence[Record]) -> Rates:
    """The learning rates of a contrast's arms. `searches` are the study's records of searches."""
    a, b = stratum.a[0], stratum.b[0]
    if "lr" in {*stratum.contrast.a, *stratum.contrast.b}:
        return Rates("")  # it is what the contrast is about
    names = [_found(grid, cell) for cell in (a, b)]
    notes, told = [], []
    for side, cell, name in zip("ab", (a, b), names, strict=True):
        if name is None:
            continue
        try:
            cells = chosen_by(grid, cell, name, searches)
        except LookupError as error:
            notes.append(f"arm {side}: its lr is not taken as found by search {name}: {error}")
        else:
            told.append(f"search {name}, {cells} cells")
    if len(told) == 2:
        both = told[0] if told[0] == told[1] else "; ".join(told)
        return Rates(f", each arm at its own lr ({both})", lifted=True)
    if not notes and len(told) == 1:
        notes.append(f"arm {'b' if names[0] else 'a'}: its lr was not searched for")
    at = f"{a.lr:g}" if a.lr == b.lr else f"{a.lr:g} and {b.lr:g}"
    return Rates(f" at lr {at}", notes=tuple(notes))


def _found(grid: Grid, cell: Cell) -> str | None:
    """The search that the last override of the cell's learning rate names."""
    settings = {name: getattr(cell, name) for name in Cell.model_fields}
    rules = (r for r in grid.overrides if "lr" in r.set and expand.holds(grid, r.for_, settings))
    last = None
    for last in rules:  # noqa: B007
        pass
    return None if last is None else last.found


def chosen_by(grid: Grid, cell: Cell, name: str, searches: Iterable[Record]) -> int:
    """The cells of a search that chose the learning rate of a cell's arm.

    Raises `LookupError`, with the reason, where the records do not say so.
    """
    own = [s for s in searches if s.get("search") == name]
    own = [s for s in own if s.get("grid") == grid.name] or own
    if not own:
        raise LookupError("the study has no record of it")
    reasons = []
    for record in own:
        try:
            return _chosen(cell, record)
        except LookupError as error:
            reasons.append(str(error))
        except (KeyError, TypeError, ValueError, IndexError):
            reasons.append("its record cannot be read")
    raise LookupError(reasons[0])


def _chosen(cell: Cell, record: Record) -> int:
    searched = list(record["declared"]["over"])
    if "lr" not in searched:
        raise LookupError("it is not over lr")
    digest = arm_digest(cell, searched)
    arm = next((one for one in record["arms"] if one["arm"] == digest), None)
    if arm is None:
        raise LookupError("it was made on other arms")
    if not arm["complete"]:
        raise LookupError("it is not over")
    best = next((one for one in arm["trials"] if one["number"] == arm["best"]), None)
    if best is None:
        raise LookupError("no trial of it finished")
    for setting, value in best["settings"].items():
        if getattr(cell, setting) != value:
            raise LookupError(f"it found {setting} {value}, the arm has {getattr(cell, setting)}")
    return len(arm["trials"]) * len(record["declared"]["seeds"])
