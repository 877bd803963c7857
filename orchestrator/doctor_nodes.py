"""What `banditgrid doctor` learns on the nodes of a cluster, run by a process that is one of them.

One small task on each node that is alive looks at the store, at what is installed there, and, where
cells would be placed on it, at what the grids need. Whether all see one folder as the store is
found by a file: this process writes it, each node must find it. Leaves out how this process is
started, and what its answer means (`doctor_cluster.py`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grids.cell import Cell
from grids.paths import Store
from orchestrator import doctor_files, doctor_machine, doctor_mlflow, doctor_packages
from orchestrator import doctor_software as software
from orchestrator.doctor_child import JOINED, MARK
from orchestrator.doctor_lines import READY, Check, Line, broken, gather
from orchestrator.doctor_store import PROBE_BYTES, REMEDY, anchor, database_line, probed
from orchestrator.marks import sqlite_path
from workers.memory import available

SEEN_SECONDS = 3.0  # in which a network's file system shows a new file


@dataclass(frozen=True)
class Wanted:
    """What is asked of the cluster."""

    cells: Sequence[Cell]
    studies: Sequence[str]
    store: Store
    tracking_uri: str | None
    address: str
    seconds: float


def tell(wanted: Wanted) -> None:
    """Join the cluster, ask, and print the answer.

    Raises `InputError` where the cluster does not let us in.
    """
    from orchestrator import cluster
    from orchestrator.driver import Settings

    cluster.check(wanted.address)
    cluster.start(Settings(address=wanted.address))
    print(f"\n{JOINED}", flush=True)
    try:
        told = asked(wanted)
    finally:
        cluster.stop()
    print(f"\n{MARK}{json.dumps(told)}", flush=True)


def asked(wanted: Wanted) -> dict[str, Any]:
    """What the nodes answer, and lines on the store, in JSON's types."""
    place = anchor(wanted.store.root)
    told: dict[str, Any] = {"store": [], "place": str(place)}
    with ExitStack() as stack:
        probe: str | None = None
        try:
            probe = stack.enter_context(probed(place)).name
        except OSError as error:
            why = "is no folder" if not place.is_dir() else f"cannot be written: {error.strerror}"
            line = Line("store", "fault", f"on {socket.gethostname()}: {place} {why}", REMEDY)
            told["store"].append(line.row())
        told["nodes"] = _nodes(wanted, str(place), probe)
    path = sqlite_path(wanted.tracking_uri or wanted.store.tracking_uri)
    if path is not None and probe is not None:
        told["store"].append(database_line(path, wanted.tracking_uri is not None).row())
    return told


def _nodes(wanted: Wanted, place: str, probe: str | None) -> list[dict[str, Any]]:
    """The answer of each node; of one that is silent, its name alone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    kind = "GPU" if any(node["Resources"].get("GPU") for node in alive) else "CPU"
    look = ray.remote(num_cpus=0, max_retries=0)(probe_node)
    asked: dict[Any, dict[str, Any]] = {}
    for node in alive:
        trains = bool(node["Resources"].get(kind))
        request = _request(wanted, place, probe, trains)
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        told = {"id": node["NodeID"], "host": node["NodeManagerHostname"], "trains": trains,
                "ray_gpus": node["Resources"].get("GPU", 0)}  # fmt: skip
        asked[look.options(scheduling_strategy=there).remote(request)] = told
    until = time.monotonic() + wanted.seconds
    waiting = list(asked)
    while waiting and (left := until - time.monotonic()) > 0:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        for answer in ready:
            asked[answer] |= _answer(ray, answer)
    return list(asked.values())


def _answer(ray: Any, answer: Any) -> dict[str, Any]:
    try:
        told: dict[str, Any] = ray.get(answer)
    except ray.exceptions.RayError as error:
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    return told | {"apart": told["clock"] - time.time()}


def _request(wanted: Wanted, place: str, probe: str | None, trains: bool) -> dict[str, Any]:
    """What a node is to look at. MLflow's user goes with it, as it goes to workers."""
    from orchestrator.cluster import worker_env

    file = sqlite_path(wanted.tracking_uri or wanted.store.tracking_uri) is not None
    known = {k: v for k, v in worker_env(True).items() if k.startswith("MLFLOW_")}
    return {
        "place": place, "probe": probe, "here": os.getcwd(),
        "cells": [cell.model_dump_json() for cell in unlike(wanted.cells)] if trains else [],
        "uri": wanted.tracking_uri if trains and not file else None,
        "studies": list(wanted.studies), "env": known, "seconds": wanted.seconds * 0.7,
    }  # fmt: skip


def unlike(cells: Sequence[Cell]) -> list[Cell]:
    """One of the cells that need the same of a machine."""
    found: dict[Any, Cell] = {}
    for cell in cells:
        needs = (cell.model_spec.revision, cell.dataset_spec.revision, cell.dataset, cell.engine,
                 cell.liger, tuple(spec.digest for spec in cell.plugin_specs))  # fmt: skip
        found.setdefault(needs, cell)
    return list(found.values())


# ---- on a node


def probe_node(request: dict[str, Any]) -> dict[str, Any]:
    """Runs on a node."""
    os.environ.update(request["env"])
    cells = [_placed(Cell.model_validate_json(text), request["here"]) for text in request["cells"]]
    gpus = doctor_machine.gpus()
    here = doctor_packages.installed()
    checks = list(_checks(request, cells, bool(gpus.seen), here)) if cells else []
    if request["uri"]:
        studies = request["studies"]
        look = lambda: list(doctor_mlflow.look(request["uri"], studies))  # noqa: E731
        checks.append(Check("mlflow", look, request["seconds"]))
    lines, _ = gather(checks)
    lines += [line for line in doctor_machine.limit_lines() if line.grade != READY]
    unseen = "" if request["probe"] is None else _sees(Path(request["place"]), request["probe"])
    return {
        "python": platform.python_version(), "versions": here, "gpus": list(map(list, gpus.found)),
        "seen": list(gpus.seen), "trouble": gpus.trouble, "memory": available(), "unseen": unseen,
        "disk": None if unseen else shutil.disk_usage(request["place"]).free,
        "lines": [line.row() for line in lines], "clock": time.time(),
    }  # fmt: skip


def _checks(
    request: dict[str, Any], cells: list[Cell], on_gpu: bool, here: dict[str, str]
) -> Iterator[Check]:
    seconds = request["seconds"]
    wrong = broken([doctor_packages.packages_line(here, doctor_packages.asked())]) if here else True
    yield Check("engine", lambda: software.look(cells, on_gpu, wrong, seconds * 0.9), seconds)
    yield Check("models", lambda: doctor_files.look(cells, seconds * 0.9), seconds)


def _placed(cell: Cell, before: str) -> Cell:
    """The cell with plug-ins that travelled with the job where this node has them."""
    specs = tuple(
        spec.model_copy(update={"path": str(Path.cwd() / Path(spec.path).relative_to(before))})
        if not Path(spec.path).exists() and Path(spec.path).is_relative_to(before)
        else spec
        for spec in cell.plugin_specs
    )
    return cell.model_copy(update={"plugin_specs": specs}) if specs else cell


def _sees(place: Path, probe: str) -> str:
    """Why this node does not share the folder; empty where it does."""
    until = time.monotonic() + SEEN_SECONDS
    try:
        while True:
            try:
                whole = (place / probe).stat().st_size == PROBE_BYTES
            except FileNotFoundError:
                whole = False
            if whole:
                break
            if time.monotonic() > until:
                return "no such folder" if not place.is_dir() else "another folder of that name"
            time.sleep(0.2)
        with probed(place):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"
