"""The command that says what is ready and what is not.

Leaves out looking (`doctor.py`) and the screen (`show_doctor.py`).
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from grids.paths import Store
from orchestrator import options
from orchestrator.options import STORE, AsJson, Data, Models, StoreFolder, TrackingUri


def add_to(app: typer.Typer) -> None:
    """Put the command on the app of the command line."""
    app.command()(doctor)


def doctor(
    grids: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[GRID]...", help="Whose models, data and engines to look at."),
    ] = None,
    store: StoreFolder = STORE, models: Models = None, data: Data = None,
    tracking_uri: TrackingUri = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="A cluster: http://HOST:8265 as for `submit`, or HOST:6379 as for `run`. "
            "[default: this machine]",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=1,
            help="Longest time for all checks, seconds. [default: 30; of a cluster 120]",
        ),
    ] = None,
    as_json: AsJson = False,
    inside: Annotated[bool, typer.Option("--inside", hidden=True)] = False,
) -> None:  # fmt: skip
    """Say what is ready and what is not, each line with its remedy; nothing is changed.

    Exit code 0 without a fault, else 2.
    """
    from orchestrator.doctor import SECONDS, SECONDS_OF_A_CLUSTER, Asked, examine
    from orchestrator.show import console
    from orchestrator.show_doctor import show_report

    warnings.simplefilter("ignore")  # of libraries, about themselves
    seconds = timeout or (SECONDS if address is None else SECONDS_OF_A_CLUSTER)
    asked = Asked(grids or [], Store(store), models, data, tracking_uri, address, seconds)
    if inside:
        _tell(asked)
        return
    report = examine(asked)
    if as_json:
        options.print_json(report.row())
    else:
        show_report(report, console())
    if report.late:  # a thread waits for a host that is silent: nobody waits for it
        sys.stdout.flush()
        os._exit(report.exit_code)
    raise typer.Exit(report.exit_code)


def _tell(asked: object) -> None:
    """As a part of a cluster: what its nodes answer, for the command that sent this one there."""
    from orchestrator import doctor, doctor_child, doctor_nodes

    assert isinstance(asked, doctor.Asked) and asked.address is not None
    doctor_child.end_after(asked.seconds * 1.5)
    if asked.address != "auto":  # a job's process is Ray's
        doctor_child.end_with_parent()
    loaded = options.load(asked.grids, asked.models, asked.data)
    cells = [cell for grid in loaded for cell in grid.cells()]
    studies = list(dict.fromkeys(grid.study for grid in loaded))
    doctor_nodes.tell(
        doctor_nodes.Wanted(
            cells, studies, asked.store, asked.tracking_uri, asked.address, asked.seconds
        )
    )
