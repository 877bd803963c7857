"""What a grid set, as a reader of its tables wants to know it: the grid, its cells, its contrasts.

Leaves out results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from analysis.sheet import Sheet
from analysis.study import Study
from grids.cell import SPECS, Cell
from grids.grid import Grid


def grid_text(grid: Grid) -> str:
    """The grid as YAML, with what it inherits; settings left at their default are left out, but of
    its contrasts all is told."""
    told = grid.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"extends"})
    if grid.contrasts:
        told["contrasts"] = [
            contrast.model_dump(mode="json", by_alias=True, exclude_none=True)
            for contrast in grid.contrasts
        ]
    made = yaml.safe_dump(
        told, sort_keys=False, allow_unicode=True, width=90, default_flow_style=None
    )
    return str(made)


def shared_sheet(cells: Sequence[Cell]) -> Sheet:
    """Every setting of the cells: its value where all have the same, else all values."""
    values: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, value in _flat(cell).items():
            values.setdefault(name, {})[_told(value)] = None
    rows = tuple((name, ", ".join(found)) for name, found in sorted(values.items()))
    return Sheet("settings", "", ("setting", "value"), rows, keys=1)


def registered_sheet(grid: Grid, study: Study) -> Sheet | None:
    """What was registered of the grid's contrasts, as they are declared now, in order of time."""
    names = {contrast.registration: contrast.name for contrast in grid.contrasts}
    lines = [
        line for line in study.source.registrations()
        if line.get("grid") == grid.name and line.get("registration") in names
    ]  # fmt: skip
    if not lines:
        return None
    header = ("contrast", "registered", "places", "seeds", "rounds", "primary", "outcomes known",
              "looks by then")  # fmt: skip
    rows = tuple(
        (
            names[str(line["registration"])], str(line.get("time", "")),
            str(len(line.get("arms", ()))), _told(line.get("seeds")), _told(line.get("rounds")),
            _told(line.get("primary")), "yes" if line.get("after_first_outcome") else "no",
            str(line.get("looks", "")),
        )
        for line in lines
    )  # fmt: skip
    return Sheet("registered", "", header, rows, keys=1)


def _flat(cell: Cell) -> dict[str, Any]:
    settings = cell.model_dump(exclude={*SPECS, "eval"})
    settings |= {f"eval.{name}": value for name, value in cell.eval.model_dump().items()}
    settings["model revision"] = cell.model_spec.revision
    settings |= {f"plug-in {spec.name}": spec.digest for spec in cell.plugin_specs}
    return settings | {"data set revision": cell.dataset_spec.revision}


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
