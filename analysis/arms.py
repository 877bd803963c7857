"""A grid's declared arms, the merged ones among them, and what to call them and their pairs.

The planner trains an arm once where two are the same; a table shows both. Leaves out numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from grids.cell import Cell
from grids.grid import Grid

# Axes that a label names anyway.
NAMED_AXES = frozenset({"model", "dataset", "batch", "rollouts", "replay", "advantage"})


@dataclass(frozen=True)
class Arm:
    """A pair's cells that differ in their seed alone."""

    cells: tuple[Cell, ...]  # in the order of the grid's seeds
    extra: str  # other settings that vary in the grid: `lr=1e-05`
    twin: str | None = None  # the arm that trains the same policies, where merged into it

    @property
    def cell(self) -> Cell:
        """One of the cells, for what they have in common."""
        return self.cells[0]

    @property
    def label(self) -> str:
        """`(32,8,0) grpo`, and what else varies."""
        b, n, m = self.cell.shape
        return f"({b},{n},{m}) {self.cell.advantage} {self.extra}".rstrip()

    @property
    def pair(self) -> tuple[str, str]:
        """Model and data set by their catalogue names."""
        return (self.cell.model, self.cell.dataset)


def arms(grid: Grid) -> tuple[Arm, ...]:
    """Every arm that the grid declares and keeps, pair by pair, in the order of the axes.

    An arm whose cells are those of an earlier one names it as its `twin`. It has cells of its own
    all the same: what is not in a key, such as the horizon, may differ.
    """
    grid.cells()  # a grid that does not expand fails here, with its own message
    varying = [axis for axis, values in grid.varied.items() if len(values) > 1]
    extras = [axis for axis in varying if axis not in NAMED_AXES]
    first: dict[str, str] = {}
    found: list[Arm] = []
    for settings in grid.combinations:
        if cells := grid.cells_of(settings):
            arm = Arm(cells, " ".join(f"{name}={_setting(cells[0], name)}" for name in extras))
            twin = first.get(arm.cell.arm_key)
            found.append(Arm(cells, arm.extra, twin))
            first.setdefault(arm.cell.arm_key, arm.label)
    return _by_pair(found)


def pair_labels(cells: Iterable[Cell]) -> dict[tuple[str, str], str]:
    """(model, data set) -> `OLMo-GSM8K`, where the paper has the pair; else the catalogue's names.

    An embedded model only stands in for the paper's, so it keeps its own name.
    """
    labels: dict[tuple[str, str], str] = {}
    for cell in cells:
        model, dataset = cell.model_spec, cell.dataset_spec
        named = is_papers(cell)
        label = f"{model.paper}-{dataset.paper}" if named else f"{cell.model} {cell.dataset}"
        labels[(cell.model, cell.dataset)] = label
    if len(set(labels.values())) < len(labels):  # two models of one paper name
        return {pair: " ".join(pair) for pair in labels}
    return labels


def is_papers(cell: Cell) -> bool:
    """The cell's pair is one of the paper's."""
    specs = (cell.model_spec, cell.dataset_spec)
    return all(spec.paper and not spec.embedded for spec in specs)


def is_embedded(cell: Cell) -> bool:
    """The cell is a pipeline check."""
    return cell.model_spec.embedded or cell.dataset_spec.embedded


def _setting(cell: Cell, name: str) -> str:
    value = getattr(cell, name)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _by_pair(found: list[Arm]) -> tuple[Arm, ...]:
    pairs = list(dict.fromkeys(arm.pair for arm in found))
    return tuple(sorted(found, key=lambda arm: pairs.index(arm.pair)))
