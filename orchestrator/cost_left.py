"""What is left of the studies of a store: the time, on the slots that are running, and GPU-hours.

Of each cell that is not done `planned.json` tells what decides its cost. One that an older run
noted there without that is counted as unknown. Leaves out the prices themselves (`cost.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grids.outcome import DAMAGED, RUNNING
from grids.paths import Store, StudyPaths
from orchestrator.cost import Todo, price
from orchestrator.cost_place import Place
from orchestrator.cost_sizes import Sized, Stretch, sized
from orchestrator.ledger import DONE, planned, planned_sizes
from orchestrator.plan import Plan
from orchestrator.show import counted
from orchestrator.show_cost import cost_json, source_line, time_line

Row = dict[str, Any]
Sizes = Mapping[str, Sized]


def left(
    rows: Sequence[Row], store: Store, slots: int | None = None, plan: Plan | None = None
) -> dict[str, Row]:
    """Study -> what is left of its rows, and lines that say so; nothing of one that is done.

    `slots`: cells at a time; None: as many as run now. `plan`: of the rows, where grids were named.
    """
    made = {}
    for study in dict.fromkeys(row["study"] for row in rows):
        own = [row for row in rows if row["study"] == study]
        if any(row["state"] not in (*DONE, DAMAGED) for row in own):
            known = _of_plan(plan, study) if plan else sizes(store.study(study))
            made[study] = _left(study, own, store, slots, known)
    return made


def _of_plan(plan: Plan, study: str) -> Sizes:
    return {work.cell.key: sized(work.cell) for work in plan.todo if work.study == study}


def sizes(study: StudyPaths) -> Sizes:
    """Of a study's planned cells, by key; without those that older runs noted."""
    found, made = planned_sizes(study), {}
    for grid, cells in planned(study).items():
        read = {number: _read(told) for number, told in found.get(grid, {}).items()}
        for key, cell in cells.items():
            size = read.get(str(cell.get("size")))
            if size is not None:
                made[key] = size
    return made


def _read(told: Any) -> Sized | None:
    try:
        return Sized(**told)
    except TypeError:  # of another version
        return None


def _left(study: str, rows: Sequence[Row], store: Store, slots: int | None, known: Sizes) -> Row:
    going = [row for row in rows if row["state"] not in (*DONE, DAMAGED)]
    usable = [row for row in going if row["key"] in known and row["rounds"]]
    running = sum(row["state"] == RUNNING for row in going)
    # As the queue hands them out: what runs, then seed by seed, the longest first.
    usable.sort(key=lambda row: (row["state"] != RUNNING, _seed(row), -_rollouts(row, known)))
    begun = {known[row["key"]].base for row in rows
             if row["round"] is not None and row["key"] in known}  # fmt: skip
    todos = [_todo(study, row, known[row["key"]], begun) for row in usable]
    priced = price(todos, store, Place(slots or running or None), started=running > 0)
    lines = [f"left: {time_line(priced)}", *map(source_line, priced.sources)] if todos else []
    unknown = len(going) - len(usable)
    if unknown:
        lines.append(f"left: {counted(unknown, 'cell')} of unknown cost; the next run notes it")
    return {**cost_json(priced), "cells": len(usable), "unknown_cells": unknown, "told": lines}


def _todo(study: str, row: Row, size: Sized, bases: set[Any]) -> Todo:
    """Of a row; `bases` are those whose evaluation is there, or comes with an earlier row."""
    begun, rounds = row["round"] is not None, row["rounds"]
    bare = not begun and size.base not in bases
    bases.add(size.base)
    fills = size.filled > 0 and not begun
    return Todo(study, size, Stretch(row["round"] or 0, rounds, fills, bare, rounds=rounds))


def _seed(row: Row) -> int:
    seed = str(row["label"]).rpartition(" s")[2]
    return int(seed) if seed.isdigit() else 0


def _rollouts(row: Row, known: Sizes) -> int:
    return known[row["key"]].rows * (row["rounds"] - (row["round"] or 0))
