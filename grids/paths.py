"""Where everything of a study lies: one class owns every path of a store.

A store is a folder that all workers share. It holds `mlflow.db` and, for each study, its cells by
key, the base evaluations that cells share, and the registered contrasts. Leaves out what the files
hold (`outcome.py` names them).
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grids import outcome
from grids.errors import InputError


class DamagedError(InputError):
    """A file of a store does not hold what was written."""


@dataclass(frozen=True)
class EvaluationPaths:
    """The files of a named evaluation of one cell, which lies beside the cell's own scores."""

    directory: Path

    @property
    def record(self) -> Path:
        return self.directory / outcome.EVALUATION_FILE

    @property
    def outcomes(self) -> Path:
        return self.directory / outcome.OUTCOMES_FILE

    @property
    def provenance(self) -> Path:
        return self.directory / outcome.PROVENANCE_FILE


@dataclass(frozen=True)
class CellPaths:
    """The files of one cell."""

    directory: Path

    @property
    def cell(self) -> Path:
        return self.directory / outcome.CELL_FILE

    @property
    def journal(self) -> Path:
        return self.directory / outcome.JOURNAL_FILE

    @property
    def timings(self) -> Path:
        return self.directory / outcome.TIMINGS_FILE

    @property
    def outcomes(self) -> Path:
        return self.directory / outcome.OUTCOMES_FILE

    @property
    def samples(self) -> Path:
        return self.directory / outcome.SAMPLES_FILE

    @property
    def provenance(self) -> Path:
        return self.directory / outcome.PROVENANCE_FILE

    @property
    def checkpoint(self) -> Path:
        return self.directory / outcome.CHECKPOINT_DIR

    @property
    def done(self) -> Path:
        return self.directory / outcome.DONE_FILE

    @property
    def failed(self) -> Path:
        return self.directory / outcome.FAILED_FILE

    @property
    def attempts(self) -> Path:
        return self.directory / outcome.ATTEMPTS_FILE

    @property
    def log(self) -> Path:
        return self.directory / outcome.LOG_FILE

    @property
    def leave(self) -> Path:
        """There while somebody wants the cell's worker to leave it."""
        return self.directory / outcome.LEAVE_FILE

    def evaluation(self, name: str) -> EvaluationPaths:
        return EvaluationPaths(self.directory / outcome.EVALUATIONS_DIR / name)


@dataclass(frozen=True)
class StudyPaths:
    """The files of one study."""

    directory: Path

    @property
    def cells(self) -> Path:
        return self.directory / "cells"

    @property
    def shared(self) -> Path:
        """Base evaluations that cells of this study share."""
        return self.directory / "shared"

    @property
    def plugins(self) -> Path:
        """Source of plug-ins that cells of this study use, by its digest."""
        return self.directory / "plugins"

    @property
    def searches(self) -> Path:
        """One JSON file a search of a grid: what it tried and found."""
        return self.directory / "searches"

    @property
    def registrations(self) -> Path:
        """One JSON line a declared contrast, with the time of its registration."""
        return self.directory / "contrasts.jsonl"

    @property
    def looks(self) -> Path:
        """One JSON line a contrast that somebody was shown the outcome of, with the time."""
        return self.directory / "looks.jsonl"

    @property
    def leave(self) -> Path:
        """There while somebody wants all of the study's workers to leave."""
        return self.directory / outcome.LEAVE_FILE

    def cell(self, key: str) -> CellPaths:
        return CellPaths(self.cells / key)


@dataclass(frozen=True)
class Store:
    """A store: `./store` unless told otherwise."""

    root: Path

    def study(self, name: str) -> StudyPaths:
        return StudyPaths(self.root / name)

    @property
    def identity(self) -> Path:
        """Tells one store from another of the same name on another machine: `{"id": ...}`."""
        return self.root / "store.json"

    @property
    def tracking_uri(self) -> str:
        """MLflow's database in the store."""
        return f"sqlite:///{(self.root / 'mlflow.db').resolve()}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no file."""
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return loaded


def read_mark(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is none that can be read.

    A mark that a crash of the machine left damaged counts as absent: what it stands for is done
    again.
    """
    try:
        return read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError, NotADirectoryError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json_text(content))


def json_text(content: dict[str, Any]) -> str:
    """What `write_json` writes: equal content gives equal text."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole, and on disk when this returns, or not at all."""
    made = scratch(path)
    with made.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)


def scratch(path: Path) -> Path:
    """A hidden name beside a file for what will replace it: no other process has it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line without its newline is not yet written.

    Raises `DamagedError` naming the line that cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    return [_object(line, path, number) for number, line in enumerate(whole.splitlines(), 1)]


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        loaded = json.loads(line)
        if isinstance(loaded, dict):
            return loaded
        told = "not a JSON object"
    except ValueError as error:
        told = str(error)
    raise DamagedError(
        f"{path}: line {number} is damaged ({told}); put the file back from a copy, or delete "
        f"{path.parent} to train its cell again"
    )
