"""What the commands do with a store that this machine sees.

Leaves out clusters (`afar.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from grids.errors import InputError
from grids.paths import Store
from orchestrator import logs as files
from orchestrator import lookup, options, stopping
from orchestrator.cost_left import left
from orchestrator.ledger import studies
from orchestrator.plan import make_plan
from orchestrator.show_status import plan_rows, status_rows


@dataclass(frozen=True)
class Which:
    """Whom to stop: a study, one of its cells, or the cells on a host.

    Raises `InputError` where both a cell and a host are named.
    """

    study: str | None = None
    cell: str | None = None
    host: str | None = None

    def __post_init__(self) -> None:
        if self.cell is not None and self.host is not None:
            raise InputError("--cell and --host: give one of them")

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        named = (("--cell", self.cell), ("--host", self.host))
        words = [word for name, value in named if value is not None for word in (name, value)]
        return [*([] if self.study is None else [self.study]), *words]


def told(
    store: Store, grids: list[Path], models: Path | None, data: Path | None,
    slots: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Where cells stand, those of grids or all that the store knows of, and what is left of them.

    `slots`: cells at a time, where not as many as run now are meant.
    """
    if grids:
        plan = make_plan(options.load(grids, models, data), store)
        rows = plan_rows(plan, store)
        return {"cells": rows, "left": left(rows, store, slots, plan)}
    if not store.root.is_dir():
        raise InputError(f"no store {store.root}; run a grid first, or name one with --store")
    rows = status_rows(store)
    return {"cells": rows, "left": left(rows, store, slots)}


def logs(store: Store, what: str | None, follow: bool, lines: int, out: Console) -> None:
    """What one cell left for people to read."""
    known = studies(store)
    if what is None or what in known:
        told = "name a cell" if what is None else f"{what} is a study"
        raise InputError(
            f"{told}: of a cell the store has a log (its key, the beginning of it, or its label, "
            "as `banditgrid status` shows them), of a study its cluster: give --address too"
        )
    if not store.root.is_dir():
        raise InputError(f"no store {store.root}; name the right one with --store")
    cell = lookup.cell(store, what, known)
    files.show_cell(cell, lines, out)
    if follow:
        files.follow(cell)


def stop(store: Store, which: Which, seconds: float, out: Console) -> bool:
    """Ask cells to leave and wait for them; whether all did in time."""
    if which.host is not None:
        names = studies(store) if which.study is None else [lookup.study(store, which.study)]
        return stopping.vacate(store, names, which.host, seconds, out)
    if which.cell is not None:
        names = studies(store) if which.study is None else [lookup.study(store, which.study)]
        return stopping.stop_cell(store, lookup.cell(store, which.cell, names), seconds, out)
    return stopping.stop_study(store, lookup.study(store, which.study), seconds, out)
