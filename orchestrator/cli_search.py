"""The command that shows what searches have found, with intervals, and what to write into a grid.

Leaves out the searches themselves, which `run` makes (`searches.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from grids.grid import Grid
from grids.paths import Store
from orchestrator.options import STORE, Data, GridFiles, Models, StoreFolder, load

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.searching import Hunt, Tried

OPTIMISTIC = (
    "The best of several trials looks better on the questions that chose it than it is: what it is "
    "worth, the tables tell on the test set."
)


def add_to(app: typer.Typer) -> None:
    """Put the command on the app of the command line."""
    app.command()(found)


def found(
    grids: GridFiles, store: StoreFolder = STORE, models: Models = None, data: Data = None,
) -> None:  # fmt: skip
    """Show the trials of the grids' searches and the `overrides:` that give what they found."""
    from grids.errors import InputError
    from orchestrator.plan import make_plan
    from orchestrator.searches import Searches
    from orchestrator.show import console

    loaded, where = load(grids, models, data), Store(store)
    searches, out = Searches(loaded, make_plan(loaded, where), where), console()
    if not searches.hunts:
        raise InputError("no grid declares a `search:`; its keys are in docs/search.md")
    for hunt in searches.hunts:
        _show(hunt, out)
    out.print(f"\n{OPTIMISTIC}", soft_wrap=True)
    for grid in loaded:
        _show_overrides(grid, [h for h in searches.hunts if h.problem.grid is grid], out)


def _show(hunt: Hunt, out: Console) -> None:
    from rich.text import Text

    from orchestrator.show import table
    from orchestrator.show_search import settings

    problem, best = hunt.problem, hunt.best
    over = "over" if hunt.complete else f"not over: `run` takes it to {problem.trials} trials"
    made = table("#trial", "settings", "val Pass@1", "#rounds", "state", title=None)
    for tried in hunt.trials:
        rounds = str(max(tried.seen, default="")) if tried.seen else ""
        state = f"{tried.state or 'on its way'}{', best' if tried is best else ''}"
        row = (str(tried.number), settings(tried.settings), val(hunt, tried), rounds, state)
        made.add_row(*map(Text, row))
    seeds = problem.search.seeds
    about = f"{problem.search.holdout} held-out questions, {len(seeds)} " + (
        "seed: the interval is over questions" if len(seeds) == 1 else
        "seeds: the interval is over seeds"
    )  # fmt: skip
    out.print()
    out.print(Text(f"{problem.label} ({over}); {about}", style="bold"), soft_wrap=True)
    out.print(made)


def val(hunt: Hunt, tried: Tried) -> str:
    """`0.640 [0.542, 0.728]`: over questions where one seed was trained, else over seeds."""
    from analysis.intervals import mean_t, wilson

    questions = hunt.problem.search.holdout
    values = list(tried.by_seed.values())
    if not values or tried.val != tried.val:
        return ""
    if len(values) > 1:
        return str(mean_t(values))
    return str(wilson(round(values[0] * questions), questions))


def _show_overrides(grid: Grid, hunts: list[Hunt], out: Console) -> None:
    from orchestrator.show_search import override

    if lines := [line for hunt in hunts if (line := override(hunt)) is not None]:
        out.print(f"\nfor grid {grid.name}:\noverrides:", highlight=False)
        for line in lines:
            out.print(line, markup=False, highlight=False, soft_wrap=True)
