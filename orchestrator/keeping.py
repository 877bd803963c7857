"""Plug-ins of a run, kept in the store: what its workers import, whatever becomes of the original.

`STORE/STUDY/plugins/DIGEST/NAME` holds a plug-in's source as it was planned, so that editing it
while cells train changes nothing for them, that every host of a cluster has it, and that what
trained a cell can be read beside its results. Before the first cell it is imported and tried in a
process of its own. Leaves out reading a plug-in (`grids.plugin`) and importing it
(`workers.plugins`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grids.catalog import DatasetSpec, ModelSpec
from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from grids.paths import Store, StudyPaths
from grids.plugin import FUNCTIONS, PluginSpec, digest, files, provider

TRY_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Kept:
    """Where the plug-ins of a run are now: (study, path as planned) -> path in the store."""

    places: dict[tuple[str, str], Path]

    def cell(self, study: str, cell: Cell) -> Cell:
        """The cell with its plug-ins, and models and data inside one, as its study keeps them."""
        changes: dict[str, object] = {}
        if cell.plugin_specs:
            changes["plugin_specs"] = tuple(
                spec.model_copy(update={"path": str(self.places[study, spec.path])})
                for spec in cell.plugin_specs
            )
        for name, spec in (("model_spec", cell.model_spec), ("dataset_spec", cell.dataset_spec)):
            if (moved := self._moved(study, spec)) is not None:
                changes[name] = spec.model_copy(update={"path": moved})
        return cell.model_copy(update=changes) if changes else cell

    def _moved(self, study: str, spec: ModelSpec | DatasetSpec) -> str | None:
        path = None if spec.path is None else Path(spec.path)
        for (of, planned), kept in self.places.items():
            if path is not None and of == study and Path(planned) in path.parents:
                return str(kept / path.relative_to(planned))
        return None


def keep(grids: Iterable[Grid], store: Store) -> Kept:
    """Copy the grids' plug-ins into their studies' folders, each whole or not at all."""
    places = {}
    for grid in grids:
        for spec in grid.plugin_specs:
            places[grid.study, spec.path] = keep_one(store.study(grid.study), spec)
    return Kept(places)


def keep_one(study: StudyPaths, spec: PluginSpec) -> Path:
    """Copy one plug-in into a study's folder, where it is not there yet; its place."""
    kept = place(study, spec)
    if not kept.exists():
        _copy(spec, kept)
    return kept.resolve()


def place(study: StudyPaths, spec: PluginSpec) -> Path:
    """Where a study keeps a plug-in."""
    return study.plugins / spec.digest.replace(":", "-") / Path(spec.path).name


def _copy(spec: PluginSpec, kept: Path) -> None:
    source = Path(spec.path)
    kept.parent.parent.mkdir(parents=True, exist_ok=True)
    made = kept.parent.with_name(f".{uuid.uuid4().hex[:12]}")
    try:
        copied(source, made)
        if digest(made / source.name) != spec.digest:
            raise InputError(
                f"plug-in {spec.name}: {source} has changed since the plan was made; run again, "
                "and cells of the new source are planned"
            )
        if kept.parent.exists():  # the same source under another name
            os.replace(made / source.name, kept)
        else:
            os.replace(made, kept.parent)
    except OSError:
        if not kept.exists():  # else another driver was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def copied(source: Path, folder: Path) -> None:
    """Copy a plug-in, all that counts of it, into a folder."""
    for file in files(source):
        target = folder / source.name / ("" if file == source else file.relative_to(source))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def check(cells: Iterable[Cell]) -> None:
    """Import the plug-ins that cells use, and try their functions on a few numbers.

    Raises `InputError` with the first finding: the plug-in, what it did and what is expected.
    """
    asked: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        for registry, setting in FUNCTIONS.items():
            name = getattr(cell, setting)
            if (spec := provider(cell.plugin_specs, registry, name)) is not None:
                asked.setdefault((spec.digest, registry, name), cell)
    if not asked:
        return
    with tempfile.TemporaryDirectory(prefix="banditgrid-") as folder:
        lines = [
            json.dumps({"registry": registry, "name": name, "cell": _elsewhere(cell, Path(folder))})
            for (_, registry, name), cell in asked.items()
        ]
        specs = (spec for cell in asked.values() for spec in cell.plugin_specs)
        _try("\n".join(lines), {str(_copy_of(s, Path(folder))): s.path for s in specs})


def _copy_of(spec: PluginSpec, folder: Path) -> Path:
    return folder / spec.digest.replace(":", "-") / Path(spec.path).name


def _elsewhere(cell: Cell, folder: Path) -> str:
    """The cell as JSON, its plug-ins copied: what counts of them must do without the rest."""
    specs = []
    for spec in cell.plugin_specs:
        place = _copy_of(spec, folder)
        if not place.exists():
            copied(Path(spec.path), place.parent)
        specs.append(spec.model_copy(update={"path": str(place)}))
    return cell.model_copy(update={"plugin_specs": tuple(specs)}).model_dump_json()


def _try(lines: str, planned: Mapping[str, str]) -> None:
    """Paths of copies are told as those that people know."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.trying"], input=lines, text=True,
            capture_output=True, timeout=TRY_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(
            f"trying the plug-ins took more than {TRY_SECONDS:g} s; mend what takes so long"
        ) from None
    if done.returncode == 2:
        told = done.stderr.strip().rpartition("error: ")[2]
        for copy, path in planned.items():
            told = told.replace(copy, path)
        raise InputError(told)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise InputError(f"trying the plug-ins ended with code {done.returncode}: {last}")
