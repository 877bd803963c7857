"""Where a study's runs are read from: one interface, and the store that implements it.

A source reads; what it read is checked and kept by `study.Study`. Leaves out bundles, parquet files
and MLflow, which implement the same interface (`bundle.py`, `from_mlflow.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from analysis import records
from analysis.outcomes import Answers, Which, read_answers
from analysis.records import Damaged
from analysis.runs import Run, read_run
from grids import outcome
from grids.cell import Cell
from grids.paths import StudyPaths, read_lines


class Source(Protocol):
    """A study as it lies somewhere."""

    name: str
    has_answers: bool  # to single questions

    @property
    def place(self) -> str:
        """For people: where the numbers come from."""

    def cells(self) -> tuple[Cell, ...]:
        """The cells that have left anything there."""

    def run(self, cell: Cell) -> Run:
        """What is known of a cell, at its own horizon."""

    def answers(self, cell: Cell) -> dict[Which, Answers]:
        """Its graded answers. Raises `Unusable` where there are none that can be used."""

    # What a place does not keep it does not have: a source that inherits need not say so.

    evaluation: str = ""  # a named one whose scores it tells; empty: the runs' own

    def told(self, cells: Iterable[Cell]) -> str:
        """Of the named evaluation, for people."""
        return ""

    def hardware(self, cell: Cell) -> str | None:
        """The device that it was trained on, or None where nothing tells."""
        return None

    def registrations(self) -> list[dict[str, Any]]:
        """What grids declared, in the order of time."""
        return []

    def looks(self) -> list[dict[str, Any]]:
        """Who was shown which contrast, in the order of time."""
        return []

    def note_looks(self, looks: list[dict[str, Any]]) -> bool:
        """Add looks, with the time; False where this place cannot be written."""
        return False

    def searches(self) -> list[dict[str, Any]]:
        """What searches beside grids have found, each as `orchestrator.searches` writes it."""
        return []


class StoreSource:
    """A study's folder in a store: journals, marks and outcomes. No server is asked."""

    has_answers = True
    evaluation = ""

    def __init__(self, paths: StudyPaths) -> None:
        self.paths = paths
        self.name = paths.directory.name

    @property
    def place(self) -> str:
        return f"study {self.name} of the store"

    def cells(self) -> tuple[Cell, ...]:
        """By label; a cell whose `cell.json` cannot be read is left out, for it has no name."""
        found = []
        for folder in self.paths.cells.iterdir() if self.paths.cells.is_dir() else ():
            try:
                written = records.record(self.paths.cell(folder.name), outcome.CELL_FILE)
                found += [Cell.model_validate(written)] if written is not None else []
            except (Damaged, ValueError):
                continue
        return tuple(sorted(found, key=lambda cell: (cell.arm_label, cell.arm_key, cell.seed)))

    def run(self, cell: Cell) -> Run:
        return read_run(cell, self.paths.cell(cell.key))

    def answers(self, cell: Cell) -> dict[Which, Answers]:
        return read_answers(self.paths.cell(cell.key).outcomes)

    def told(self, cells: Iterable[Cell]) -> str:
        return ""

    def hardware(self, cell: Cell) -> str | None:
        try:
            told = records.record(self.paths.cell(cell.key), outcome.PROVENANCE_FILE) or {}
        except Damaged:
            return None
        device = told.get("device")
        return str(device) if device else None

    def registrations(self) -> list[dict[str, Any]]:
        return read_lines(self.paths.registrations)

    def looks(self) -> list[dict[str, Any]]:
        return read_lines(self.paths.looks)

    def searches(self) -> list[dict[str, Any]]:
        """A file that cannot be read is left out: it lifts nothing from a verdict."""
        folder, found = self.paths.searches, []
        for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            found += [content] if isinstance(content, dict) else []
        return found

    def note_looks(self, looks: list[dict[str, Any]]) -> bool:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps({**look, "time": now}, sort_keys=True) + "\n" for look in looks]
        try:
            with self.paths.looks.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError:
            return False
        return True
