"""What commands share: the types of their options, and the grids that they name.

Leaves out the commands (`cli.py`, `cli_cluster.py`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from grids import catalog
from grids.errors import InputError
from grids.grid import Grid
from grids.load import load_grids

GridFiles = Annotated[
    list[Path],
    typer.Argument(metavar="GRID...", help="Grid files (YAML), or folders: all *.yaml there."),
]
StoreFolder = Annotated[
    Path, typer.Option("--store", envvar="BANDITGRID_STORE", help="Folder of all results.")
]
Models = Annotated[
    Path | None,
    typer.Option(
        "--models", envvar="BANDITGRID_MODELS",
        help="Folder with local copies of models, by catalogue name. [default: ./models if there]",
    ),
]  # fmt: skip
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="BANDITGRID_DATA",
        help="Folder with local copies of data sets, by catalogue name. [default: ./data if there]",
    ),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", show_envvar=True,
        help="MLflow server. [default: the store's own SQLite file]",
    ),
]  # fmt: skip
Slots = Annotated[
    int | None,
    typer.Option("--slots", min=1, help="Cells at a time. [default: what GPUs or cores hold]"),
]
Attempts = Annotated[
    int | None,
    typer.Option(
        "--attempts", min=1,
        help="At a cell, without a later checkpoint, until it is failed. [default: 3]",
    ),
]  # fmt: skip


def _above_zero(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a number above 0")
    return value


MaxGpuHours = Annotated[
    float | None,
    typer.Option(
        "--max-gpu-hours", callback=_above_zero,
        help="Cells save and leave when this run has taken so many. Without a GPU a slot is one.",
    ),
]  # fmt: skip
Gpus = Annotated[
    int | None, typer.Option("--gpus", min=0, help="GPUs to plan for; 0: none, cells on cores.")
]
GpuMemory = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory", callback=_above_zero, help="GB of each of --gpus, which cells then share."
    ),
]
ComingGpus = Annotated[
    int | None,
    typer.Option(
        "--gpus", min=1,
        help="GPUs of a cluster that starts them as cells ask for them. [default: those that run]",
    ),
]  # fmt: skip
PricePerHour = Annotated[
    float | None,
    typer.Option(
        "--price", callback=_above_zero, help="Money for a GPU-hour; without GPUs for a slot-hour."
    ),
]
STORE = Path("store")


def load(paths: list[Path], models: Path | None, data: Path | None) -> list[Grid]:
    """The grids, with local copies of models and data sets in place of the hub's."""
    chosen = _folder(models, "--models", "models"), _folder(data, "--data", "data")
    if any(chosen):
        catalog.use_local(*chosen)
    return load_grids(paths)


def _folder(given: Path | None, option: str, default: str) -> Path | None:
    if given is None:
        usual = Path(default)
        return usual.resolve() if usual.is_dir() else None
    if not given.is_dir():
        raise InputError(f"{option}: no folder {given}; name one with local copies")
    return given.resolve()


def print_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, indent=1, allow_nan=False))
