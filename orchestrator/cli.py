"""The command `banditgrid`. Exit codes: 0 all is well, 1 some cell failed, 2 the input is wrong.

130 means stopped by Ctrl-C. Every command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grids.errors import InputError
from grids.load import grid_schema
from grids.paths import Store
from orchestrator import cli_cluster, cli_doctor, cli_rescore, cli_search
from orchestrator.options import (
    STORE,
    AsJson,
    Attempts,
    ComingGpus,
    Data,
    GpuMemory,
    Gpus,
    GridFiles,
    MaxGpuHours,
    Models,
    PricePerHour,
    Slots,
    StoreFolder,
    TrackingUri,
    load,
    print_json,
)

if TYPE_CHECKING:  # analysis takes a second to load
    from analysis.study import Study
    from analysis.tables import Table
    from orchestrator.showing import Verdicts

app = typer.Typer(
    help="Which design choices of reinforcement fine-tuning matter? Grids of cells, trained, "
    "tracked and tabulated.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

Elsewhere = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Read a bundle, a study's folder, a store or MLflow's address instead of --store.",
    ),
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        "--evaluation",
        help="Scores of a named evaluation (`evaluate`, `regrade`) in place of the runs' own.",
    ),
]
NoLog = Annotated[
    bool, typer.Option("--no-log", help="Do not log the files to the study in MLflow (seconds).")
]


@app.command()
def plan(
    grids: GridFiles, store: StoreFolder = STORE, models: Models = None, data: Data = None,
    slots: Slots = None, gpus: Gpus = None, gpu_memory: GpuMemory = None,
    price: PricePerHour = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show cells, what is merged or dropped and why, totals, what they take, and what contrasts
    can find."""
    from analysis.planning import designs
    from orchestrator import cost, cost_place
    from orchestrator.plan import make_plan
    from orchestrator.searches import Searches
    from orchestrator.show import console, plan_json, show_plan
    from orchestrator.show_cost import cost_json, show_cost
    from orchestrator.show_power import show_power
    from orchestrator.show_search import plan_rows, show_searches

    where, place = Store(store), cost_place.place(slots, gpus, gpu_memory)
    made = make_plan(load(grids, models, data), where)
    priced = cost.of_plan(made, where, place)
    rows = [design.row() for design in designs((share.grid for share in made.shares), where)]
    hunts = Searches([share.grid for share in made.shares], made, where).hunts
    if as_json:
        searched = {"searches": plan_rows(hunts)} if hunts else {}
        told = {"cost": cost_json(priced, price, made.totals.disk_bytes)}
        print_json({**plan_json(made), **told, "contrasts": rows, **searched})
    else:
        show_plan(made, console())
        show_cost(priced, console(), price)
        show_searches(hunts, console())
        show_power(rows, console())


@app.command()
def run(
    grids: GridFiles, store: StoreFolder = STORE, models: Models = None, data: Data = None,
    tracking_uri: TrackingUri = None,
    slots: Slots = None, attempts: Attempts = None, max_gpu_hours: MaxGpuHours = None,
    gpus: ComingGpus = None, gpu_memory: GpuMemory = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster. [default: this machine]"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what Ray and its workers say.")
    ] = False,
) -> None:  # fmt: skip
    """Train what the grids want and the store does not have yet. Run again to go on."""
    _leave_from_now_on()
    from orchestrator.capacity import coming
    from orchestrator.driver import Settings
    from orchestrator.driver import run as drive
    from orchestrator.queue import ATTEMPTS

    told = coming(gpus, gpu_memory, address)
    settings = Settings(slots, address, verbose, attempts or ATTEMPTS, max_gpu_hours, told)
    summary = drive(load(grids, models, data), Store(store), tracking_uri, settings)
    raise typer.Exit(summary.exit_code)


cli_cluster.add_to(app)
cli_doctor.add_to(app)
cli_rescore.add_to(app)
cli_search.add_to(app)


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
    ctx: typer.Context, grids: GridFiles, store: StoreFolder = STORE,
    models: Models = None, data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the files. [default: tables, or tables-EVALUATION]"),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Some of md, csv, tex, html, with commas.")
    ] = "md,csv,tex,html",
    elsewhere: Elsewhere = None, evaluation: Evaluation = None,
    tracking_uri: TrackingUri = None, no_log: NoLog = False,
) -> None:  # fmt: skip
    """Write and print one table a grid: arms, contrasts, best arms, variance shares; intervals."""
    from analysis.markdown import markdown
    from analysis.report import formats_of, make_tables, open_studies, write_tables
    from analysis.verdicts import verdicts

    asked, loaded = formats_of(formats), load(grids, models, data)
    studies = open_studies(loaded, elsewhere or Store(store), evaluation or "")
    out = out or Path(_named("tables", evaluation))
    made = make_tables(loaded, studies)
    _note_looks(made, studies)
    written = write_tables(made, out, asked)
    typer.echo("\n".join(markdown(table) for table in made))
    typer.echo("written: " + " ".join(map(str, written)))
    if not no_log:
        below = None if elsewhere else store
        told = None if evaluation else verdicts(made)  # the runs' own scores alone
        _log(ctx, written, out, _named("tables", evaluation), studies, below, told)


@app.command()
def report(
    ctx: typer.Context, grids: GridFiles, store: StoreFolder = STORE,
    models: Models = None, data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page. [default: report.html, or report-EVALUATION.html]"),
    ] = None,
    elsewhere: Elsewhere = None, evaluation: Evaluation = None,
    tracking_uri: TrackingUri = None, no_log: NoLog = False,
) -> None:  # fmt: skip
    """Write one page with tables, figures, findings, settings and versions; it loads nothing."""
    from datetime import UTC, datetime

    from analysis.report import make_tables, open_studies, write_report
    from analysis.verdicts import verdicts

    loaded = load(grids, models, data)
    studies = open_studies(loaded, elsewhere or Store(store), evaluation or "")
    out = out or Path(f"{_named('report', evaluation)}.html")
    made = make_tables(loaded, studies)
    _note_looks(made, studies)
    page, *figures = write_report(made, studies, out, datetime.now(UTC))
    typer.echo(f"written: {page}, and {len(figures)} files of figures beside it")
    if not no_log:
        files, below = [page, *figures], None if elsewhere else store
        told = None if evaluation else verdicts(made)
        _log(ctx, files, out.parent, _named("report", evaluation), studies, below, told)


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
    typer.echo(f'open it: from analysis import Study; Study.open("{path}")')


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


def _named(what: str, evaluation: str | None) -> str:
    """Files of a named evaluation lie beside those of the runs' own scores, and not over them."""
    return f"{what}-{evaluation}" if evaluation else what


def _note_looks(made: list[Table], studies: dict[str, Study]) -> None:
    """Count that outcomes of contrasts are shown, before they are."""
    from analysis.declared import note_looks

    for name, study in studies.items():
        shown = [result for table in made if table.grid.study == name for result in table.results]
        if not note_looks(shown, study):
            where = study.source.place
            typer.echo(f"this look could not be counted: {where} cannot be written", err=True)


def _log(
    ctx: typer.Context, files: list[Path], under: Path, folder: str, studies: Iterable[str],
    store: Path | None, verdicts: Mapping[str, Verdicts] | None,
) -> None:  # fmt: skip
    """Log what was written, and the verdicts, to MLflow, where there is one.

    Of a study from elsewhere (`store` is None) only to a server that the command line names: the
    environment's may have a study of this name, and it is another.
    """
    from orchestrator.publish import publish, tracking_of

    source = ctx.get_parameter_source("tracking_uri")
    if store is None and (source is None or source.name != "COMMANDLINE"):
        return
    uri = tracking_of(None if store is None else Store(store), ctx.params["tracking_uri"])
    if uri is not None and publish(files, under, folder, studies, uri, verdicts):
        typer.echo(f"logged to the run `analysis` of {', '.join(studies)} in MLflow")


def _leave_from_now_on() -> None:
    """A batch system's notice (SIGUSR2) may come before there is anything to save: it then stops
    the command as Ctrl-C does. The driver does more, once there are cells."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR2, signal.default_int_handler)


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


if __name__ == "__main__":  # `python -m orchestrator.cli`, as jobs on a cluster start it
    main()
