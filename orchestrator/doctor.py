"""`banditgrid doctor`: what is ready and what is not, each line with its remedy.

It says the one thing that is wrong: what could not be looked at for a fault that another line tells
is told as not checked. It changes nothing: a probe in the store is taken away, and MLflow is asked
for leave only. Leaves out the checks (`doctor_*.py`) and the screen (`show_doctor.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from grids.load import grid_files
from grids.paths import Store
from orchestrator import doctor_machine as machine
from orchestrator import doctor_packages as packages
from orchestrator.doctor_lines import (
    FAULT,
    NOTE,
    Check,
    Line,
    broken,
    fault,
    gather,
    note,
    of_error,
    ready,
    unchecked,
)

SECONDS = 30.0  # that all checks may take together
SECONDS_OF_A_CLUSTER = 120.0  # its job and tasks start processes on each node
READ_SHARE = 0.5  # of it, for reading grids: local copies of models are hashed
BESIDE = ("engine", "models", "data")  # what cannot be looked at without grids that can be read


@dataclass(frozen=True)
class Asked:
    """The command line."""

    grids: list[Path]
    store: Store
    models: Path | None = None
    data: Path | None = None
    tracking_uri: str | None = None
    address: str | None = None
    seconds: float = SECONDS


@dataclass
class Report:
    """What was found.

    Attributes:
        late: a check did not end: whoever has the report should not wait for its thread.
    """

    lines: list[Line]
    seconds: float
    late: bool = False

    @property
    def exit_code(self) -> int:
        return 2 if broken(self.lines) else 0

    def count(self, grade: str) -> int:
        return sum(line.grade == grade for line in self.lines)

    def row(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ready": not self.exit_code, "faults": self.count(FAULT), "notes": self.count(NOTE),
            "seconds": round(self.seconds, 2), "lines": [line.row() for line in self.lines],
        }  # fmt: skip


@dataclass
class _Read:
    """The grids, once they are read."""

    pairs: list[tuple[Grid, Path]] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    needed: int = 0

    @property
    def studies(self) -> list[str]:
        return list(dict.fromkeys(grid.study for grid, _ in self.pairs))


def examine(asked: Asked) -> Report:
    """Look at everything. Never raises for what it finds."""
    began, read = time.monotonic(), _Read()
    share = asked.seconds * READ_SHARE
    first = [Check("packages", packages.look, share)]
    first.append(Check("grids", lambda: _grids(asked, read), share))
    lines, late = gather(first)
    left = max(1.0, asked.seconds - (time.monotonic() - began))
    if asked.address is None:
        more, later = gather(list(_here(asked, read, lines, left)))
    else:
        more, later = gather([Check("ray", lambda: _there(asked, read, left), left)])
    return Report(_ordered(lines + more), time.monotonic() - began, late or later)


def _ordered(lines: list[Line]) -> list[Line]:
    """As they came, but what was not checked last."""
    return sorted(lines, key=lambda line: line.grade == "not checked")


def _grids(asked: Asked, read: _Read) -> Iterator[Line]:
    """The grids, read, and what they are predicted to leave on disk."""
    from orchestrator.plan import disk_bytes, make_plan

    if not asked.grids:
        remedy = "banditgrid doctor GRID..."
        yield note("grids", "none named: models, data and engines are theirs", remedy)
        return
    try:
        grids = _loaded(asked)
        made = make_plan(grids, asked.store)
    except InputError as error:
        yield of_error("grids", error)
        yield from (unchecked(name, "the grids cannot be read") for name in BESIDE)
        return
    read.pairs = list(zip(grids, grid_files(asked.grids), strict=True))
    read.cells = [work.cell for work in made.works]
    read.needed = sum(disk_bytes(work.cell) for work in made.todo)
    left = f"{len(made.todo)} to train" if made.todo else "all trained"
    yield ready(
        "grids", f"{', '.join(grid.name for grid in grids)}: {len(read.cells)} cells, {left}"
    )


def _loaded(asked: Asked) -> list[Grid]:
    """As `run` reads them; for a cluster as `submit` does, for local copies may lie there."""
    from orchestrator import cli_cluster, options

    if asked.address is None:
        return options.load(asked.grids, asked.models, asked.data)
    return cli_cluster.seen_by_nodes(asked.grids, asked.models, asked.data)


def _here(asked: Asked, read: _Read, lines: list[Line], seconds: float) -> Iterator[Check]:
    """The checks of a machine that trains by itself."""
    from orchestrator import doctor_files, doctor_mlflow, doctor_software, doctor_store
    from orchestrator.marks import sqlite_path

    wrong = any(line.check == "packages" and line.grade == FAULT for line in lines)
    unread = any(line.check == "grids" and line.grade == FAULT for line in lines)

    def software() -> Iterator[Line]:
        gpus, torch = machine.gpus(), packages.installed().get("torch", "")
        yield machine.gpu_lines(gpus, read.cells, torch)
        if not unread:
            yield from doctor_software.look(read.cells, bool(gpus.seen), wrong, seconds * 0.8)

    yield Check("machine", machine.look, seconds)
    yield Check("gpu", software, seconds)
    if read.cells:
        yield Check("models", lambda: doctor_files.look(read.cells, seconds * 0.8), seconds)
    uri, store = asked.tracking_uri, asked.store
    yield Check("store", lambda: doctor_store.look(store, uri, read.needed), seconds)
    if uri is not None and sqlite_path(uri) is None:
        yield Check("mlflow", lambda: doctor_mlflow.look(uri, read.studies), seconds)
    yield Check("ray", _own_ray, seconds)


def _own_ray() -> Iterator[Line]:
    """`run` without an address starts one; its settings must not be those of a cluster."""
    from orchestrator import tokens

    version = packages.installed().get("ray")
    if version is None:
        yield unchecked("ray", "the package ray is not installed")
        return
    mode = os.environ.get(tokens.MODE, "").strip().lower() or "token"
    if mode not in tokens.MODES:
        told = f"{tokens.MODE}: got {mode!r}"
        yield fault("ray", told, f"unset it, or take one of {', '.join(tokens.MODES)}")
        return
    yield ready("ray", f"{version}: `run` starts its own here, on loopback; no --address was given")


def _there(asked: Asked, read: _Read, seconds: float) -> Iterator[Line]:
    """The checks of a cluster, and of the store and MLflow as its nodes see them."""
    from orchestrator import doctor_cluster

    assert asked.address is not None
    options = [
        word
        for name, path in (("--models", asked.models), ("--data", asked.data))
        if path is not None
        for word in (name, str(path.absolute()))
    ]
    store = str(asked.store.root.absolute())
    yield from doctor_cluster.look(
        doctor_cluster.There(
            asked.address,
            store,
            asked.tracking_uri,
            read.pairs,
            read.needed,
            packages.asked(),
            options,
            seconds,
        )  # fmt: skip
    )
