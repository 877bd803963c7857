"""What the driver does before the first worker, and after the last: the store probed, MLflow's
experiments made, runs of done cells brought level, runs of lost workers closed.

Leaves out Ray, and the runs of cells that are trained: their workers find or make them.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from grids.errors import InputError
from grids.paths import Store, read_mark, write_json
from orchestrator import access, attempts, cluster, marks, tracking
from orchestrator.ledger import DONE
from orchestrator.plan import Plan, Work
from orchestrator.queue import Item
from orchestrator.showing import show_study
from orchestrator.writer import Writer, bring_level
from workers import lease

FREE_SECONDS = 3.0
MANY_RUNS = 20  # from this number on, making them is worth a line
A_LINE = 200  # so many are worth another
IN_A_ROW = 3  # failures, each of some seconds, after which MLflow is taken to be away


@contextmanager
def writable(store: Store, studies: Iterable[str]) -> Iterator[None]:
    """The store's folders, made and proven writable; taken away again if what follows fails.

    Raises `InputError` naming the folder and the fix.
    """
    folders = [store.root, *(store.study(name).directory for name in dict.fromkeys(studies))]
    made: list[Path] = []
    try:
        for folder in folders:
            made += _make(folder)
            probe = folder / f".probe.{os.getpid()}"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        yield
    except BaseException as error:
        for folder in reversed(made):
            _remove_empty(folder)
        if isinstance(error, OSError):
            raise InputError(
                f"the store {store.root} cannot be written: {error.strerror}: {error.filename}; "
                "mend its permissions or free space, or name another folder with --store"
            ) from None
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; answer those that were not there."""
    absent = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return absent[::-1]


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # somebody put something there: it stays


def identify(store: Store) -> None:
    """Give the store an identity, by which workers know it from another folder of its name."""
    if not (read_mark(store.identity) or {}).get("id"):
        write_json(store.identity, {"id": uuid.uuid4().hex})


def wanted_again(plan: Plan, store: Store) -> None:
    """Requests to leave were for the runs before this one."""
    for study in dict.fromkeys(work.study for work in plan.works):
        store.study(study).leave.unlink(missing_ok=True)
    for work in plan.todo:
        work.paths(store).leave.unlink(missing_ok=True)


def tracking_of(plan: Plan, store: Store, uri: str) -> cluster.Tracking | None:
    """Where the runs of the plan's cells are; experiments are made where there are none.

    None where nothing is to be done and MLflow does not answer: then nothing is wrong. Raises
    `InputError` where something is.
    """
    needed = bool(plan.todo) or any(
        w.state in DONE and not marks.is_level(w, w.paths(store), uri) for w in plan.works
    )
    try:
        client = tracking.connect(uri)
        experiments = _experiments(client, plan, store, uri)
        access.require_writing(client, experiments, uri)
        _show(client, plan, experiments, uri)
        return cluster.Tracking(uri, experiments)
    except InputError:
        if needed:
            raise
        return None
    except Exception as error:
        if told := access.refusal(error):
            raise InputError(f"MLflow at {marks.redacted(uri)}: {told}") from None
        raise InputError(
            f"MLflow at {marks.redacted(uri)} stopped answering before training began "
            f"({tracking.brief(error)}); nothing was trained: mend it and run again"
        ) from None


def _experiments(client: Any, plan: Plan, store: Store, uri: str) -> dict[str, str]:
    # A SQLite store has no server to keep artifacts; they go beside the store's cells.
    inside = marks.sqlite_path(uri) is not None
    artifacts = (store.root.resolve() / "artifacts").as_uri() if inside else None
    studies = dict.fromkeys(work.study for work in plan.works)
    return {study: tracking.ensure_experiment(client, study, artifacts) for study in studies}


def _show(client: Any, plan: Plan, experiments: dict[str, str], uri: str) -> None:
    """Descriptions and views. What only people read stops nothing."""
    for study, experiment in experiments.items():
        shares = [share for share in plan.shares if share.grid.study == study]
        try:
            show_study(client, experiment, [(share.grid, len(share.cells)) for share in shares])
        except Exception as error:
            print(
                f"MLflow at {marks.redacted(uri)} did not take the description and the views of "
                f"{study} ({tracking.brief(error)}); the next run sends them",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def level(plan: Plan, where: cluster.Tracking, store: Store, out: Console) -> None:
    """Bring the runs of done cells level with their journals; a deleted run is made anew."""
    try:
        client = tracking.quiet_client(where.uri)
        asked = (tracking.deleted_runs(client, study) for study in where.experiments.values())
        deleted = set().union(*asked)
    except Exception as error:
        out.print(f"MLflow did not answer ({tracking.brief(error)}); the next run looks again")
        return
    lacking = [
        work for work in plan.works
        if work.state in DONE and not marks.is_level(work, work.paths(store), where.uri, deleted)
    ]  # fmt: skip
    if len(lacking) >= MANY_RUNS:
        out.print(f"bringing {len(lacking)} MLflow runs level with their journals")
    failed = 0
    for number, work in enumerate(lacking, 1):
        experiment = where.experiments[work.study]
        if bring_level(work, work.paths(store), where.uri, experiment):
            failed = 0
        else:
            out.print(f"{work.cell.label}: MLflow lacks its history; the next run sends it")
            failed += 1
        if failed == IN_A_ROW:
            left = len(lacking) - number
            out.print(f"MLflow takes nothing now: {left} more runs are left to the next run")
            return
        if number % A_LINE == 0:
            out.print(f"  {number} of {len(lacking)}")


def make_up(works: Iterable[Work], where: cluster.Tracking, store: Store) -> None:
    """Send what MLflow did not take while cells ended; where it does not answer, the next run."""
    for work in works:
        paths = work.paths(store)
        if not marks.is_level(work, paths, where.uri):
            experiment = where.experiments[work.study]
            if not bring_level(work, paths, where.uri, experiment):
                return


def close(
    item: Item, where: cluster.Tracking, status: str, reason: str, telling: bool = True
) -> bool:
    """End the MLflow run of a cell of ours whose worker could not: it is gone. Whether MLflow took
    that; not `telling`, what is to be noted beside the cell alone is.

    A cell that is not free soon has another driver's worker, or a worker of ours on a host that has
    yet to fall silent: it is left alone.
    """
    work = item.work
    try:
        if not _soon_free(item):
            return True
        with lease.held(item.paths, work.cell.label) as held:
            attempts.note_lost(held)
            if not telling:
                return False
            experiment = where.experiments[work.study]
            ours = Writer(where.uri, experiment, work.cell, work.grids, item.paths, held)
            if (done := read_mark(item.paths.done)) and item.state in DONE:
                ours.finish(done)
            else:
                ours.end(status, reason)
            return ours.failures == 0
    except (lease.Held, lease.Lost, OSError):
        return True  # another has the cell, or the store is away: its next worker tells


def _soon_free(item: Item) -> bool:
    """Whether the cell's worker lets go while Ray ends it."""
    watch, until = lease.Watch(), time.monotonic() + FREE_SECONDS
    while not watch.is_free(item.paths, lease.read(item.paths)):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
