"""One Tune trial: one cell, trained by `workers.run_cell`, its MLflow run brought level.

A class trainable, so that the cell runs in the worker's main thread, and that one process serves
many cells: it imports torch and TRL once. One `step` is the whole cell; `run_cell` goes on from
the cell's own checkpoint, so Tune's checkpoints are not used. A cell that fails leaves
`failed.json`; unless a person's mistake was the cause, the next cell gets a fresh process.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TypedDict

import ray
from ray import tune
from ray.tune.result import DONE

from grids.cell import Cell
from grids.errors import InputError
from grids.outcome import Progress
from grids.paths import CellPaths, write_json
from orchestrator.marks import redacted
from orchestrator.tracking import Writer


class Task(TypedDict):
    """A cell as Tune carries it: small, and without credentials."""

    study: str
    key: str
    cell: str  # Cell.model_dump_json()
    directory: str
    shared: str
    run_id: str
    grids: list[str]
    attempts: int


class Result(TypedDict):
    """What a trial answers."""

    status: str  # finished | diverged | failed
    reason: str
    broken: bool  # the process is not to be used again


def train(task: Task, uri: str) -> Result:
    """Train one cell. Every way in which a cell can fail ends in a `Result`."""
    paths = CellPaths(Path(task["directory"]))
    paths.failed.unlink(missing_ok=True)
    writer = Writer(uri, task["run_id"], paths, task["grids"])
    writer.begin(task["attempts"])

    def report(progress: Progress) -> None:
        writer.write(progress.line)

    try:
        from workers.run import run_cell

        cell = Cell.model_validate_json(task["cell"])
        done = run_cell(cell, paths.directory, report, shared=Path(task["shared"]))
    except Exception as error:
        return _failed(error, task, paths, writer)
    paths.failed.unlink(missing_ok=True)
    writer.finish(done)
    return Result(status=done["status"], reason=done.get("reason") or "", broken=False)


def _failed(error: Exception, task: Task, paths: CellPaths, writer: Writer) -> Result:
    mended = isinstance(error, InputError)  # its text is the whole message
    told = redacted(error if mended else f"{type(error).__name__}: {error}")
    note_failure(paths, task["key"], told, redacted(traceback.format_exc()), task["attempts"])
    writer.end("FAILED", told.splitlines()[0] if told else type(error).__name__)
    return Result(status="failed", reason=told, broken=not mended)


def note_failure(paths: CellPaths, key: str, error: str, trace: str, attempts: int) -> None:
    """Leave `failed.json`: the next run tries the cell again."""
    content = {"key": key, "error": error, "traceback": trace, "attempts": attempts}
    write_json(paths.failed, content)


class CellTrial(tune.Trainable):
    """See the module."""

    def setup(
        self, config: dict[str, Any], uri: str = "", env: dict[str, str] | None = None
    ) -> None:
        # Before torch and mlflow are imported: both read their settings then.
        os.environ.update(env or {})
        self._task: Task = config["task"]
        self._uri = uri

    def step(self) -> dict[str, Any]:
        result = train(self._task, self._uri)
        if result["broken"]:
            # A failed CUDA context or half-changed library must not reach the next cell.
            # `failed.json` is written: the driver finds the reason there.
            ray.actor.exit_actor()
        return {**result, "key": self._task["key"], DONE: True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._task = new_config["task"]
        _tidy()
        return True


def _tidy() -> None:
    """Give back what the last cell held, so that the next one finds the memory free."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
