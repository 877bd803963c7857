"""What tests of scoring anew share: a cell that was really trained, and a look at its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from grids.cell import Cell
from grids.paths import CellPaths

SMALL = {"every": 2, "samples": 2, "test_questions": 16, "train_questions": 8}


class Trained(NamedTuple):
    cell: Cell
    paths: CellPaths
    shared: Path


def trained(study: Path, **settings: Any) -> Trained:
    """The smallest cell, trained in a study's folder."""
    from workers.run import run_cell

    given = {"model": "tiny-qwen2", "dataset": "tiny-sums", "batch": 8, "rounds": 4, "eval": SMALL}
    cell = Cell(**given | settings)
    paths = CellPaths(study / "cells" / cell.key)
    run_cell(cell, paths.directory, lambda progress: None, study / "shared")
    return Trained(cell, paths, study / "shared")


def own_files(paths: CellPaths) -> dict[str, str]:
    """Digests of all that a cell had of itself: not its leases, not its named evaluations."""
    return {
        str(path.relative_to(paths.directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths.directory.rglob("*"))
        if path.is_file() and path.relative_to(paths.directory).parts[0] != "evaluations"
        and not path.relative_to(paths.directory).parts[0].startswith(".lease")
    }  # fmt: skip
