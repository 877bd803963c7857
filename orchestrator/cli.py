"""The command `banditgrid`. Exit codes: 0 all is well, 1 some cell failed, 2 the input is wrong.

130 means stopped by Ctrl-C. Every command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from grids import catalog
from grids.errors import InputError
from grids.grid import Grid
from grids.load import grid_schema, load_grids
from grids.paths import Store

app = typer.Typer(
    help="Which design choices of reinforcement fine-tuning matter? Grids of cells, trained, "
    "tracked and tabulated.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

GridFiles = Annotated[list[Path], typer.Argument(metavar="GRID...", help="Grid files (YAML).")]
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
STORE = Path("store")


@app.command()
def plan(
    grids: GridFiles, store: StoreFolder = STORE, models: Models = None, data: Data = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show cells, what is merged or dropped and why, totals, and what contrasts can find."""
    from analysis.planning import designs
    from orchestrator.plan import make_plan
    from orchestrator.show import console, plan_json, show_plan
    from orchestrator.show_power import show_power

    where = Store(store)
    made = make_plan(_load(grids, models, data), where)
    rows = [design.row() for share in made.shares for design in designs(share.grid, where)]
    if as_json:
        _print_json({**plan_json(made), "contrasts": rows})
    else:
        show_plan(made, console())
        show_power(rows, console())


@app.command()
def run(
    grids: GridFiles, store: StoreFolder = STORE, models: Models = None, data: Data = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri", envvar="MLFLOW_TRACKING_URI", show_envvar=True,
            help="MLflow server. [default: the store's own SQLite file]",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", min=1, help="Cells at a time. [default: what GPUs or cores hold]"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster. [default: this machine]"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what Ray and its workers say.")
    ] = False,
) -> None:  # fmt: skip
    """Train what the grids want and the store does not have yet. Run again to go on."""
    from orchestrator.driver import Settings
    from orchestrator.driver import run as drive

    settings = Settings(slots, address, verbose)
    summary = drive(_load(grids, models, data), Store(store), tracking_uri, settings)
    raise typer.Exit(summary.exit_code)


@app.command()
def status(
    grids: Annotated[
        list[Path] | None, typer.Argument(metavar="[GRID]...", help="Only the cells of these.")
    ] = None,
    store: StoreFolder = STORE, models: Models = None, data: Data = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show each cell's state, last round and last Pass@1, as the store tells them."""
    from orchestrator.plan import make_plan
    from orchestrator.show import console, plan_rows, show_status, status_rows

    where = Store(store)
    if not store.is_dir() and not grids:
        raise InputError(f"no store {store}; run a grid first, or name one with --store")
    rows = plan_rows(make_plan(_load(grids, models, data), where), where) if grids else None
    rows = status_rows(where) if rows is None else rows
    if as_json:
        _print_json({"cells": rows})
    else:
        show_status(rows, console())


@app.command()
def ui(
    store: StoreFolder = STORE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
) -> None:
    """Serve MLflow's pages over the store's database on this machine, until Ctrl-C."""
    from orchestrator.show import console
    from orchestrator.ui import serve

    raise typer.Exit(serve(Store(store), port, console()))


@app.command()
def tables(
    grids: GridFiles, store: StoreFolder = STORE, models: Models = None, data: Data = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for Markdown and CSV.")
    ] = Path("tables"),
) -> None:  # fmt: skip
    """Write and print one table a grid: base, final, gain, each with its interval over seeds."""
    from analysis.report import write_tables

    written = write_tables(_load(grids, models, data), Store(store), out)
    typer.echo(written[-1].read_text(encoding="utf-8"))  # all of them, in one file
    typer.echo("written: " + " ".join(str(path) for path in written))


@app.command()
def export(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Default: the only one there.")
    ] = None,
    store: StoreFolder = STORE,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: STUDY.banditgrid.zip.")
    ] = None,
    completions: Annotated[
        bool, typer.Option("--completions", help="With the texts that were graded.")
    ] = False,
) -> None:
    """Write a study as one file to pass on: settings, journals, graded answers."""
    from analysis.bundle import SUFFIX, BundleSource, write_bundle
    from analysis.opening import store_at
    from orchestrator.show import bytes_for_people

    source = store_at(store, study)
    path = write_bundle(source, out or Path(f"{source.name}{SUFFIX}"), completions)
    made, size = BundleSource(path), bytes_for_people(path.stat().st_size)
    answered, cells = len(made.row_groups), len(made.row_groups) + len(made.unusable)
    typer.echo(f"written: {path} ({size}): {cells} cells, {answered} of them with graded answers")
    typer.echo(f'open it: from analysis.study import Study; Study.open("{path}")')


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. [default: standard output]")
    ] = None,
) -> None:
    """Print the JSON Schema of a grid file, by which editors complete and check."""
    text = json.dumps(grid_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None


def _load(paths: list[Path], models: Path | None, data: Path | None) -> list[Grid]:
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


def _print_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, indent=1, allow_nan=False))


def main() -> None:
    """Entry of the command; a person's mistake ends in one message and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `banditgrid plan ... | head`
        sys.stderr.close()
        sys.exit(1)
