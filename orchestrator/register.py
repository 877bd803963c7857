"""Notes in a study what a grid declares, with the time, before its first outcome where that is so.

A line says which arms, seeds, primary and horizon a contrast was declared with, whether outcomes of
both arms were known by then, and how often somebody had looked at it. A contrast gets another line
where any of these changes later: more seeds, another primary. Lines are only ever added. Leaves out
what follows from them (`analysis.standing`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from grids.cell import Cell
from grids.contrast import Contrast
from grids.grid import Grid
from grids.paths import Store, StudyPaths, read_lines
from grids.strata import Stratum, strata
from orchestrator.ledger import last_line, note_planned

DECLARED = ("registration", "grid", "seeds", "arms", "primary", "rounds")


def register(grid: Grid, cells: dict[str, Cell], store: Store) -> None:
    """Add a line for every contrast of a grid that is not yet registered as it is declared now."""
    study = store.study(grid.study)
    known = read_lines(study.registrations)
    made = (_line(grid, contrast, study) for contrast in grid.contrasts)
    if new := [line for line in made if not any(_same(line, old) for old in known)]:
        with study.registrations.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, sort_keys=True) + "\n" for line in new))
    note_planned(study, grid, cells)


def _same(line: dict[str, Any], old: dict[str, Any]) -> bool:
    return all(line[name] == old.get(name) for name in DECLARED)


def _line(grid: Grid, contrast: Contrast, study: StudyPaths) -> dict[str, Any]:
    where = strata(grid, contrast)
    looks = [line for line in read_lines(study.looks) if line["contrast"] == contrast.registration]
    return {
        "registration": contrast.registration,
        "grid": grid.name,
        "contrast": contrast.model_dump(by_alias=True, mode="json"),
        "seeds": grid.seeds,
        "arms": [list(stratum.arm_keys) for stratum in where],
        "primary": sorted({cell.eval.primary for s in where for cell in s.a}),
        "rounds": sorted({cell.rounds for s in where for cell in s.a}),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_first_outcome": any(_known(stratum, study) for stratum in where),
        "looks": len(looks),
    }


def _known(stratum: Stratum, study: StudyPaths) -> bool:
    """Both arms have trained: their difference could have been seen."""
    return all(any(_trained(study, cell) for cell in arm) for arm in (stratum.a, stratum.b))


def _trained(study: StudyPaths, cell: Cell) -> bool:
    """A journal that cannot be read may have shown something to somebody who could."""
    try:
        return bool((last_line(study.cell(cell.key).journal) or {}).get("round", 0) > 0)
    except (OSError, ValueError):
        return True
