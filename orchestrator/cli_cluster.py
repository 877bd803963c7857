"""The commands that send, watch and stop what runs, here or on a cluster.

Leaves out what they do: `logs.py`, `stopping.py`, and for a cluster `afar.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from grids import catalog
from grids.grid import Grid
from grids.load import grid_files, load_grids
from grids.paths import Store
from orchestrator import options
from orchestrator.options import (
    STORE,
    AsJson,
    Attempts,
    ComingGpus,
    Data,
    GpuMemory,
    GridFiles,
    MaxGpuHours,
    Models,
    Slots,
    TrackingUri,
)

Address = Annotated[
    str | None,
    typer.Option("--address", help="A cluster's dashboard, http://HOST:8265. [default: none]"),
]
AnyStore = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="BANDITGRID_STORE",
        help="Folder of all results. [default: store; with --address that of the jobs]",
    ),
]  # fmt: skip
WAIT_SECONDS = 120.0


def add_to(app: typer.Typer) -> None:
    """Put the commands on the app of the command line."""
    for command in (submit, status, logs, stop):
        app.command()(command)


def submit(
    grids: GridFiles,
    address: Annotated[
        str,
        typer.Option(
            "--address", envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], show_envvar=True,
            help="The cluster's dashboard, http://HOST:8265.",
        ),
    ],
    store: Annotated[
        Path,
        typer.Option(
            "--store", envvar="BANDITGRID_STORE",
            help="Folder of all results, as the cluster's nodes see it.",
        ),
    ] = STORE,
    models: Models = None, data: Data = None, tracking_uri: TrackingUri = None,
    slots: Slots = None,
    attempts: Attempts = None,
    max_gpu_hours: MaxGpuHours = None,
    gpus: ComingGpus = None, gpu_memory: GpuMemory = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not follow the log until the job ends.")
    ] = False,
) -> None:  # fmt: skip
    """Run grids on a Ray cluster, one job a study; a study that runs already is attached to."""
    from orchestrator import afar
    from orchestrator.capacity import coming
    from orchestrator.plan import make_plan
    from orchestrator.show import console

    coming(gpus, gpu_memory, address)  # raises where they contradict each other
    loaded = seen_by_nodes(grids, models, data)
    make_plan(loaded, Store(store))  # what contradicts itself is told before anything is sent
    orders = afar.orders(
        zip(loaded, grid_files(grids), strict=True), store=_absolute(store),
        models=_absolute(models), data=_absolute(data), tracking_uri=_absolute_uri(tracking_uri),
        slots=slots, attempts=attempts, max_gpu_hours=max_gpu_hours, gpus=gpus,
        gpu_memory=gpu_memory,
    )  # fmt: skip
    raise typer.Exit(afar.submit(orders, address, not no_wait, console()))


def seen_by_nodes(grids: list[Path], models: Path | None, data: Path | None) -> list[Grid]:
    """The grids; local copies may lie where only the cluster's nodes see them."""
    catalog.use_local(*(path if path and path.is_dir() else None for path in (models, data)))
    return load_grids(grids)


def _absolute(path: Path | None) -> Any:
    return None if path is None else os.path.abspath(path)


def _absolute_uri(uri: str | None) -> str | None:
    """A job runs in a folder of its own: a file's address must not depend on it."""
    from orchestrator.marks import sqlite_path

    path = None if uri is None else sqlite_path(uri)
    return uri if path is None else f"sqlite:///{_absolute(path)}"


def status(
    grids: Annotated[
        list[Path] | None, typer.Argument(metavar="[GRID]...", help="Only the cells of these.")
    ] = None,
    store: AnyStore = None, models: Models = None, data: Data = None, as_json: AsJson = False,
    address: Address = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots", min=1, help="Cells at a time, for what is left. [default: as many as run]"
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every cell of a large study, in a terminal too.")
    ] = False,
) -> None:  # fmt: skip
    """Show each cell's state, last round and last Pass@1, what is left, and which jobs of a cluster
    run."""
    from orchestrator import afar, here
    from orchestrator.show import console
    from orchestrator.show_status import show_status

    out = None if as_json else console()
    if address is not None:
        told = afar.status(address, store, grids or [], models, data, out, everything, slots)
    else:
        told = here.told(Store(store or STORE), grids or [], models, data, slots)
        if out is not None:
            show_status(told["cells"], out, everything, told["left"])
    if as_json:
        options.print_json(told)


def logs(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]",
            help="A study, whose newest job's log it is; or a cell: key, its beginning, or label.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until it ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", min=0, help="Of the end of a cell's log.")] = 40,
    store: AnyStore = None, address: Address = None,
) -> None:  # fmt: skip
    """Show a job's log, or a cell's attempts, why it failed, and what its workers printed."""
    from orchestrator import afar, here
    from orchestrator.show import console

    if address is not None:
        raise typer.Exit(afar.logs(address, store, what, follow, lines, console()))
    here.logs(Store(store or STORE), what, follow, lines, console())


def stop(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Default: the only one there.")
    ] = None,
    cell: Annotated[
        str | None, typer.Option("--cell", help="Only this cell: key, its beginning, or label.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Only cells on this host, as before its preemption."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Longest wait, seconds.")
    ] = WAIT_SECONDS,
    store: AnyStore = None, address: Address = None,
) -> None:  # fmt: skip
    """Have cells save a checkpoint and leave; a study's jobs end with them."""
    from orchestrator import afar, here
    from orchestrator.show import console

    which = here.Which(study, cell, host)
    if address is not None:
        raise typer.Exit(afar.stop(address, store, which, timeout, console()))
    raise typer.Exit(int(not here.stop(Store(store or STORE), which, timeout, console())))
