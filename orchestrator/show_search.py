"""Searches for people: how far each is, and the trials of those that are asked for.

Leaves out intervals, which `cli_search.py` gets from analysis, and everything that runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from grids.outcome import DIVERGED
from orchestrator.plan import Work
from orchestrator.searches import SEARCH
from orchestrator.searching import Hunt
from orchestrator.show import counted, table


def show_searches(hunts: Sequence[Hunt], out: Console) -> None:
    """A line an arm: its budget and waves, what is known, the best so far."""
    if not hunts:
        return
    out.print()
    made = table("search", "#cells", "#wave", "#told", "best so far", title="searches, on val")
    for hunt in hunts:
        problem = hunt.problem
        told = sum(bool(tried.state) for tried in hunt.trials) * len(problem.search.seeds)
        made.add_row(
            Text(problem.label.removeprefix("search ")), f"{problem.search.cells}",
            f"{problem.search.wave}", f"{told}", Text(best(hunt)),
        )  # fmt: skip
    out.print(made)
    cells = sum(hunt.problem.search.cells for hunt in hunts)
    out.print(f"{counted(len(hunts), 'search').replace('searchs', 'searches')}, at most "
              f"{counted(cells, 'cell')} beside those of the tables")  # fmt: skip


def show_waiting(failed: Iterable[Work], out: Console) -> None:
    """Which searches wait for a cell that failed: they end until a run gets it done."""
    for work in failed:
        for name in work.grids:
            if SEARCH in name:
                grid, _, search = name.partition(SEARCH)
                told = f"search {search} of grid {grid} waits for {work.cell.label}, which failed"
                out.print(f"{told}; the next run tries it again", markup=False, soft_wrap=True)


def best(hunt: Hunt) -> str:
    """`lr=9.1e-05: val 0.612`, and whether more is to come."""
    found = hunt.best
    if found is None:
        broke = any(tried.state == DIVERGED for tried in hunt.trials)
        return "all diverged" if broke and hunt.complete else ""
    more = "" if hunt.complete else " (not over)"
    return f"{settings(found.settings)}: val {found.val:.3f}{more}"


def settings(given: dict[str, Any]) -> str:
    """`lr=9.1e-05 kl=0`."""
    return " ".join(f"{name}={short(value)}" for name, value in given.items())


def short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan_rows(hunts: Sequence[Hunt]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "study": hunt.problem.grid.study, "grid": hunt.problem.grid.name,
            "search": hunt.problem.name, "settings": hunt.problem.settings,
            "cells": hunt.problem.search.cells, "wave": hunt.problem.search.wave,
            "trials": len(hunt.trials), "complete": hunt.complete,
            "best": None if hunt.best is None else hunt.best.settings,
        }
        for hunt in hunts
    ]  # fmt: skip


def override(hunt: Hunt) -> str | None:
    """The line of `overrides:` that gives the arm what was found; None without a best trial."""
    if hunt.best is None:
        return None
    problem = hunt.problem
    where = {**problem.settings, **dict.fromkeys(problem.search.where)}
    held = {name: getattr(problem.arm, name) for name in where}
    return (
        f"  - {{for: {{{_flow(held)}}}, set: {{{_flow(hunt.best.settings)}}}, "
        f"found: {problem.name}}}"
    )


def _flow(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {_yaml(value)}" for name, value in values.items())


def _yaml(value: Any) -> str:
    """As `grids.load` reads it back: a number with its exponent and a point."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return str(value)
