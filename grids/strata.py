"""Where a grid makes a declared contrast: each pair, and each value of what else the grid varies.

The cells of both arms come from the grid itself, so that an arm which was merged into another is
found by what it trains. Leaves out what became of the cells (`analysis`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from grids.cell import SPECS, Cell
from grids.contrast import Contrast
from grids.errors import InputError
from grids.grid import Grid


@dataclass(frozen=True)
class Stratum:
    """One comparison of a contrast: two arms, equal in all but what the contrast names.

    Attributes:
        settings: axes that the contrast leaves free, model and data set among them -> value.
        a, b: the cells of either arm, one a seed, in the order of the grid's seeds.
    """

    contrast: Contrast
    settings: dict[str, object]
    a: tuple[Cell, ...]
    b: tuple[Cell, ...]

    @property
    def identical(self) -> bool:
        """Both arms train the same policies, so that there is nothing to compare."""
        return self.a[0].arm_key == self.b[0].arm_key

    @property
    def arm_keys(self) -> tuple[str, str]:
        """What is compared, by content."""
        return (self.a[0].arm_key, self.b[0].arm_key)


def strata(grid: Grid, contrast: Contrast) -> tuple[Stratum, ...]:
    """Every stratum of which the grid has both arms, in the order of its cells."""
    arms: dict[str, dict[int, Cell]] = {}  # arm_key -> seed -> cell, of all seeds
    for cell in grid.cells():
        arms.setdefault(cell.arm_key, {})[cell.seed] = cell
    named = {*contrast.a, *contrast.b, *contrast.with_}
    free = [axis for axis, values in grid.varied.items() if len(values) > 1 and axis not in named]
    found: dict[tuple[str, str], None] = {}
    for given in _settings(grid, arms.values(), named):
        try:
            a, b = (grid.other(given, grid.arm(contrast, side)).arm_key for side in ("a", "b"))
        except (ValidationError, InputError):  # an arm that is no cell, as one that is excluded
            continue
        if a in arms and b in arms:
            found.setdefault((a, b))
    made = []
    for a, b in found:
        a_S, b_S = (tuple(arms[arm][seed] for seed in grid.seeds) for arm in (a, b))
        settings = {axis: getattr(a_S[0], axis) for axis in ("model", "dataset")}
        settings |= {axis: _free(axis, a_S[0], b_S[0]) for axis in free}
        made.append(Stratum(contrast, settings, a_S, b_S))
    return tuple(made)


def _free(axis: str, a: Cell, b: Cell) -> object:
    """The stratum's value of an axis: b's, where the axis exists for b alone."""
    ours, theirs = getattr(a, axis), getattr(b, axis)
    return theirs if ours == Cell.model_fields[axis].default else ours


def _settings(
    grid: Grid, arms: Iterable[dict[int, Cell]], named: set[str]
) -> list[dict[str, object]]:
    """What the grid's arms set beside a contrast's own settings, each combination once.

    All seeds of an arm have its settings, so that the first stands for them.
    """
    every: dict[str, dict[str, object]] = {}
    for by_seed in arms:
        given = next(iter(by_seed.values())).model_dump(exclude=SPECS | named)
        if not grid.writes_micro_batch:  # lowered to each shape's own rows
            given.pop("micro_batch", None)
        every.setdefault(repr(given | {"seed": None}), given)
    return list(every.values())
