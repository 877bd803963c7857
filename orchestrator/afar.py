"""What the commands do with `--address`: studies that are jobs of a cluster, stores that only its
nodes may see.

A store that this machine sees under the same path is read here. For any other the same command
runs as a short job on the cluster.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from grids.errors import InputError, listed
from grids.grid import Grid
from grids.load import grid_files, load_grid
from grids.paths import Store
from orchestrator import here, remote
from orchestrator.following import STOPPED_CODE, Follower, exit_code, why
from orchestrator.jobs import Cluster, Job, Sent
from orchestrator.shipping import Order, Shipped
from orchestrator.show_jobs import hints, job_rows, show_jobs, show_sent, told_jobs
from orchestrator.show_status import show_status

END_SECONDS = 20.0  # that a driver has to end by itself when its cells have left


@dataclass(frozen=True)
class Place:
    """A store that jobs of a cluster write to, and the newest of these jobs."""

    store: str
    job: Job | None

    def sees(self, study: str | None = None) -> bool:
        """This machine has the store, or the study in it, under the same path."""
        return Path(self.store, study or "").is_dir()


def orders(pairs: Iterable[tuple[Grid, Path]], **settings: Any) -> list[Order]:
    """One order a study; `settings` are those of all."""
    studies: dict[str, list[Shipped]] = {}
    for grid, path in pairs:
        studies.setdefault(grid.study, []).append(Shipped.of(grid, path))
    return [Order(study, shipped, **settings) for study, shipped in studies.items()]


def submit(orders: Sequence[Order], address: str, follow: bool, out: Console) -> int:
    """Send the orders, and follow their jobs one after another; the worst exit code."""
    cluster = Cluster(address)
    sent = []
    for order in orders:
        sent.append(cluster.send(order))
        show_sent(sent[-1], cluster.address, out)
    return max((_follow(cluster, one, out) for one in sent), default=0) if follow else 0


def _follow(cluster: Cluster, sent: Sent, out: Console) -> int:
    job = sent.job
    out.print(f"log of {job.id} (Ctrl-C leaves it running):", highlight=False)
    try:
        ended = Follower(cluster, job.id, write).until_end()
    except KeyboardInterrupt:
        out.print(f"\n{job.id} goes on without this command")
        for line in hints(job.study, cluster.address):
            out.print(Text(line), soft_wrap=True)
        return STOPPED_CODE
    if told := why(ended):
        out.print(Text(f"{told}; submit again to go on from the last checkpoints"), soft_wrap=True)
    return exit_code(ended)


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def places(jobs: Sequence[Job], store: Path | None) -> list[Place]:
    """The stores of some jobs, or the one that is named."""
    if store is not None:
        path = str(store.absolute())
        return [Place(path, next((job for job in jobs if job.store == path), None))]
    newest = {job.store: job for job in reversed(jobs)}
    return [Place(path, job) for path, job in newest.items()]


def one_study(jobs: Sequence[Job], name: str | None, address: str) -> str:
    """The study that is meant; the only one where none is named."""
    known = {job.study for job in jobs}
    if name in known:
        return str(name)
    if name is None and len(known) == 1:
        return known.pop()
    wrong = "name a study" if name is None else f"no study {name!r}"
    allowed = f"allowed: {listed(known)}" if known else "none was submitted to it"
    raise InputError(f"{wrong} of the cluster at {address}; {allowed}")


def status(
    address: str, store: Path | None, grids: Sequence[Path], models: Path | None,
    data: Path | None, out: Console | None, everything: bool = False, slots: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Jobs, cells, and stores that could not be read with the reason; shown on `out` too."""
    cluster = Cluster(address)
    loaded = [(load_grid(path), path) for path in grid_files(grids)]
    names = {grid.study for grid, _ in loaded}
    jobs = told_jobs(job for job in cluster.jobs() if not names or job.study in names)
    told: dict[str, Any] = {"jobs": job_rows(jobs), "cells": [], "unread": [], "left": {}}
    if out is not None:
        show_jobs(jobs, out)
    for place in places(jobs, store):
        try:
            rows, left = _rows(cluster, place, loaded, models, data, slots)
        except InputError as error:
            told["unread"].append({"store": place.store, "why": str(error)})
            if out is not None:
                out.print(Text(str(error)), soft_wrap=True)
            continue
        told["cells"] += [{"store": place.store, **row} for row in rows]
        told["left"][place.store] = left
        if out is not None:
            out.print(Text(f"\nstore {place.store}"), soft_wrap=True)
            show_status(rows, out, everything, left)
    return told


def _rows(
    cluster: Cluster, place: Place, loaded: list[tuple[Grid, Path]], models: Path | None,
    data: Path | None, slots: int | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """The cells of a store and what is left of its studies, as they are seen here, or as `status
    --json` tells them there."""
    if place.sees():
        paths = [path for _, path in loaded]
        told = here.told(Store(Path(place.store)), paths, models, data, slots)
        return told["cells"], told["left"]
    shipped = [Shipped.of(grid, path) for grid, path in loaded]
    local = (("--models", models), ("--data", data))
    given = [word for name, path in local if path for word in (name, str(path.absolute()))]
    given += [] if slots is None else ["--slots", str(slots)]
    arguments = ["status", "--json", "--store", place.store, *given, *(s.path for s in shipped)]
    printed: list[str] = []
    code = remote.ask(cluster, arguments, printed.append, place.job, shipped)
    text = "".join(printed)
    try:
        read = json.loads(text)
        return list(read["cells"]), dict(read["left"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"the cluster could not read the store {place.store} (exit code {code}): "
            f"{text.strip().removeprefix('error: ')}"
        ) from None


def logs(
    address: str, store: Path | None, what: str | None, follow: bool, lines: int, out: Console
) -> int:
    """The log of a study's newest job, or what a cell left for people to read."""
    cluster = Cluster(address)
    jobs = told_jobs(cluster.jobs())
    if what is None or what in {job.study for job in jobs}:
        study = one_study(jobs, what, cluster.address)
        newest = max((job for job in jobs if job.study == study), key=lambda job: job.number)
        _job_log(cluster, newest, follow, out)
        return 0
    place = _one_place(places(jobs, store), cluster)
    if place.sees():
        here.logs(Store(Path(place.store)), what, follow, lines, out)
        return 0
    more = ["--follow"] if follow else []
    arguments = ["logs", "--store", place.store, "--lines", str(lines), *more, "--", what]
    return remote.ask(cluster, arguments, write, place.job)


def _one_place(found: list[Place], cluster: Cluster) -> Place:
    if len(found) == 1:
        return found[0]
    allowed = f"allowed: {listed(place.store for place in found)}" if found else "it has no job yet"
    raise InputError(
        f"--store: name the store of the cluster at {cluster.address} that is meant; {allowed}"
    )


def _job_log(cluster: Cluster, job: Job, follow: bool, out: Console) -> None:
    follower = Follower(cluster, job.id, write)
    if not follow:
        follower.so_far()
        return
    ended = follower.until_end()
    told = why(ended) or f"{job.id} ended with exit code {exit_code(ended)}"
    out.print(Text(told), soft_wrap=True)


def stop(address: str, store: Path | None, which: here.Which, seconds: float, out: Console) -> int:
    """Ask cells to leave, wait for them, and end the jobs of a study that is stopped whole."""
    cluster = Cluster(address)
    path = None if store is None else str(store.absolute())
    jobs = told_jobs(job for job in cluster.jobs() if path in (None, job.store))
    if which.host is None and (store is None or jobs):
        meant = jobs if which.study else [job for job in jobs if not job.over] or jobs
        which = replace(which, study=one_study(meant, which.study, cluster.address))
    jobs = [job for job in jobs if which.study in (None, job.study)]
    codes = [_stop(cluster, place, which, seconds, out) for place in places(jobs, store)]
    return max(codes, default=0)


def _stop(cluster: Cluster, place: Place, which: here.Which, seconds: float, out: Console) -> int:
    whole = which.cell is None and which.host is None
    try:
        if place.sees(which.study):
            code = int(not here.stop(Store(Path(place.store)), which, seconds, out))
        else:
            words = ["stop", "--store", place.store, "--timeout", str(seconds), *which.arguments]
            code = remote.ask(cluster, words, write, place.job)
    except InputError as error:  # nothing of the study is in the store yet; its job is there
        if not whole:
            raise
        out.print(Text(str(error)), soft_wrap=True)
        code = 2
    if whole and which.study and _end_jobs(cluster, which.study, place.store, out):
        return int(code == 1)
    return code


def _end_jobs(cluster: Cluster, study: str, store: str, out: Console) -> bool:
    """Have a study's jobs end: by themselves, for its cells have left, or by Ray; if any ran."""
    until = time.monotonic() + END_SECONDS
    running = left = _running(cluster, study, store)
    while left and time.monotonic() < until:
        time.sleep(1)
        left = _running(cluster, study, store)
    for job in left:
        cluster.stop(job.id)
    for job in running:
        how = "stopped" if job.id in {other.id for other in left} else "ended by itself"
        out.print(f"{job.id}: {how}", highlight=False)
    return bool(running)


def _running(cluster: Cluster, study: str, store: str) -> list[Job]:
    return [job for job in cluster.jobs(study) if not job.over and job.store == store]
