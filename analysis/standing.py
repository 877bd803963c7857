"""How far a declared contrast may be believed, from what was registered when and who had looked.

A contrast is confirmatory where it was registered before outcomes of both arms were known and has
not changed since in the light of them. Anything else is exploratory, with the reason and the number
of looks: distinct states of the data in which a table, report or comparison showed its outcome.
Leaves out registering (the orchestrator's) and what MLflow's pages show, which nobody counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grids.grid import Grid
from grids.strata import Stratum

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """What is known of a contrast's declaration.

    Attributes:
        exploratory: why it is; empty where it is confirmatory.
        looks: how often its outcome was shown, at distinct states of the data.
        registered: the time of its first registration; None where there is none.
        declared_seeds: how many seeds it was to have; None where it was not registered.
    """

    exploratory: tuple[str, ...]
    looks: int
    registered: str | None = None
    declared_seeds: int | None = None

    @property
    def label(self) -> str:
        """`registered 2026-01-02T03:04:05+00:00`, or `exploratory (2 looks): ...`."""
        if not self.exploratory:
            return f"registered {self.registered}"
        looks = f"{self.looks} look{'' if self.looks == 1 else 's'}"
        return f"exploratory ({looks}): {'; '.join(self.exploratory)}"


def standing_of(
    grid: Grid, stratum: Stratum, registrations: Sequence[Line], looks: Sequence[Line],
    evaluation: str = "",
) -> Standing:  # fmt: skip
    """The standing of a contrast in one stratum, as the grid declares it now; `evaluation` names
    one that its runs are read under in place of their own."""
    contrast = stratum.contrast
    seen = [line for line in looks if line.get("contrast") == contrast.registration]
    lines = [
        line
        for line in registrations
        if (line.get("registration"), line.get("grid")) == (contrast.registration, grid.name)
        and list(stratum.arm_keys) in line.get("arms", [])
    ]
    if not lines:
        return Standing(("as it is declared now it was never registered",), len(seen))
    first = lines[0]
    seeds = contrast.seeds or len(first["seeds"])
    reasons = tuple(_reasons(grid, stratum, lines))
    if evaluation:
        reasons = (f"read under evaluation {evaluation}, which was not registered", *reasons)
    return Standing(reasons, len(seen), str(first["time"]), seeds)


def _reasons(grid: Grid, stratum: Stratum, lines: Sequence[Line]) -> Iterable[str]:
    first, cell = lines[0], stratum.a[0]
    if first["after_first_outcome"]:
        yield "registered when outcomes of both arms were known"
    if first["primary"] != [cell.eval.primary]:
        told = " and ".join(first["primary"])
        yield f"registered with {told} Pass@1 as its primary, read with {cell.eval.primary}"
    now = _line_of(lines, "rounds", [cell.rounds])
    if now is None or (first["rounds"] != [cell.rounds] and now["after_first_outcome"]):
        told = " and ".join(map(str, first["rounds"]))
        yield f"registered for {told} rounds, read at {cell.rounds}"
    yield from _added_seeds(grid, lines)


def _added_seeds(grid: Grid, lines: Sequence[Line]) -> Iterable[str]:
    """Seeds that came after the first registration, where somebody had looked by then."""
    known = set(lines[0]["seeds"])
    for line in lines[1:]:
        added = [seed for seed in line["seeds"] if seed not in known and seed in grid.seeds]
        if added and line["looks"]:
            looks = f"{line['looks']} look{'' if line['looks'] == 1 else 's'}"
            yield f"gained {_told(added)} after {looks}"
        known |= set(line["seeds"])
    if never := [seed for seed in grid.seeds if seed not in known]:
        yield f"{_told(never)} never registered"


def _line_of(lines: Sequence[Line], name: str, value: Any) -> Line | None:
    """The first line that declares this value."""
    return next((line for line in lines if line.get(name) == value), None)


def _told(seeds: Sequence[int]) -> str:
    return ", ".join(f"s{seed}" for seed in seeds)
