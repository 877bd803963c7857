"""Plans for people (rich tables, plain where there is no terminal) and for programs.

Leaves out what runs: `show_status.py`, and the live lines of a run (`progress.py`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grids.cell import SPECS, Cell
from grids.grid import Grid
from grids.outcome import DAMAGED
from orchestrator.ledger import OTHERWISE, STATES
from orchestrator.plan import Plan, Share, Work

TWIN = re.compile(r"\S+ \S+ (\(\d+,\d+,\d+\)) (\S+) s\d+")
MOST_DAMAGED = 20  # cells that a plan names
WIDTH = 110  # where there is no terminal to ask
# Settings that an arm's name already tells, or that are no setting of the training.
NAMED = {"model", "dataset", "seed", "batch", "rollouts", "replay", "advantage"}
UNTOLD = NAMED | {
    *SPECS, "eval", "rows_per_pass", "gpus", "keep", "max_unscored",
}  # fmt: skip


def console(stderr: bool = False) -> Console:
    """A console that wraps nothing away where output goes to a file or a pipe."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH)


def bytes_for_people(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(*columns: str, title: str | None = None) -> Table:
    """A plain table; columns that begin with `#` hold numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith("#")
        made.add_column(column.lstrip("#"), justify="right" if right else "left", overflow="fold")
    return made


def show_plan(plan: Plan, out: Console) -> None:
    """Each grid with what it drops and why, the arms of each study, the totals."""
    for share in plan.shares:
        _show_share(share, out)
    for study in dict.fromkeys(work.study for work in plan.works):
        out.print()
        out.print(_arms(study, [work for work in plan.works if work.study == study]))
    out.print()
    for line in _local_copies(plan):
        out.print(Text(line), soft_wrap=True)
    _show_totals(plan, out)
    _show_scored_otherwise(plan, out)
    show_damaged(plan, out)


def _show_scored_otherwise(plan: Plan, out: Console) -> None:
    """What a change of `eval` alone brings about: it takes the place of scores that are there."""
    cells = sum(work.reason == OTHERWISE for work in plan.works)
    if cells:
        told = (
            f"{counted(cells, 'cell')} trained already, {OTHERWISE} (`eval`, grader or "
            "max_response differ): the weights are scored anew and the scores replaced; to keep "
            "them, take the study's `eval`, or score beside it with `banditgrid evaluate`"
        )
        out.print(Text(told, style="yellow"), soft_wrap=True)


def _local_copies(plan: Plan) -> list[str]:
    """Models and data sets that are read from a folder: its content, not the hub's, counts."""
    specs = (spec for w in plan.works for spec in (w.cell.model_spec, w.cell.dataset_spec))
    local = {spec.name: spec.path for spec in specs if spec.path and not spec.embedded}
    return [f"{name}: local copy at {path}" for name, path in sorted(local.items())]


def _show_share(share: Share, out: Console) -> None:
    grid = share.grid
    section = f", section {grid.section}" if grid.section else ""
    assumed = " (what it compares is assumed)" if grid.assumed else ""
    head = f"grid {grid.name}{section}{assumed}: {counted(len(share.cells), 'cell')}{_budget(grid)}"
    out.print(Text(head, style="bold"), soft_wrap=True)
    for line in dropped_lines(share):
        out.print(Text(f"  {line}"), soft_wrap=True)


def _budget(grid: Grid) -> str:
    bounds = grid.budget.model_dump(exclude_none=True) if grid.budget else {}
    told = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in bounds.items())
    return f"; budget: {told}" if told else ""


def dropped_lines(share: Share) -> list[str]:
    """One line a kind and reason, its seeds counted, not listed."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for dropped in share.dropped:
        told = TWIN.sub(r"\1 \2", dropped.reason)
        if dropped.kind == "merged" and (own := TWIN.search(dropped.label)):
            told = f"{own[1]} {own[2]}: {told}"
        groups[dropped.kind, told].append(dropped.label)
    lines = []
    for (kind, told), labels in groups.items():
        arms = len({label.rsplit(" s", 1)[0] for label in labels})
        seeds = len({label.rsplit(" s", 1)[1] for label in labels})
        shapes = "" if kind == "merged" else f" [{_shapes(labels)}]"
        lines.append(f"{kind}, {counted(arms, 'arm')} × {counted(seeds, 'seed')}: {told}{shapes}")
    return lines


def _shapes(labels: list[str]) -> str:
    """`(16,1,0) raw, (16,1,0) grpo`: what the dropped arms are, whatever model and data set."""
    found = (TWIN.search(label) for label in labels)
    return ", ".join(dict.fromkeys(f"{match[1]} {match[2]}" for match in found if match))


def _arms(study: str, works: list[Work]) -> Table:
    """Arms by shape and advantage, over all pairs of model and data set that have them."""
    varying = _varying([work.cell for work in works])
    groups: dict[tuple[Any, ...], list[Work]] = defaultdict(list)
    for work in works:
        cell = work.cell
        extra = " ".join(f"{name}={_short(getattr(cell, name))}" for name in varying)
        groups[cell.shape, cell.advantage, extra, cell.rounds].append(work)
    columns = ("(B,n,m)", "advantage", "#rounds", "models × data sets", "seeds")
    made = table(*columns, "#cells", "#to do", "grids", title=f"study {study}")
    for (shape, advantage, extra, rounds), group in groups.items():
        made.add_row(
            f"({','.join(map(str, shape))})", f"{advantage} {extra}".strip(), str(rounds),
            _pairs(group), _ranges(sorted({w.cell.seed for w in group})), str(len(group)),
            str(sum(w.todo for w in group)),
            ", ".join(dict.fromkeys(name for w in group for name in w.grids)),
        )  # fmt: skip
    return made


def _varying(cells: list[Cell]) -> list[str]:
    """Settings beyond the arm's name that differ between cells of one model and data set."""

    def varies(name: str) -> bool:
        values: dict[tuple[str, str, int], set[Any]] = defaultdict(set)
        for cell in cells:
            # A default micro-batch follows the update's rows, which the arm's name tells.
            rows = cell.rows_per_update if name == "micro_batch" else 0
            values[cell.model, cell.dataset, rows].add(getattr(cell, name))
        return any(len(found) > 1 for found in values.values())

    return [name for name in Cell.model_fields if name not in UNTOLD | {"rounds"} and varies(name)]


def _pairs(group: list[Work]) -> str:
    pairs = list(dict.fromkeys((w.cell.model, w.cell.dataset) for w in group))
    if len(pairs) == 1:
        return " ".join(pairs[0])
    models, datasets = ({pair[i] for pair in pairs} for i in (0, 1))
    if len(models) * len(datasets) == len(pairs):
        return f"{len(models)} × {len(datasets)}"
    return f"{len(pairs)} pairs"


def _show_totals(plan: Plan, out: Console) -> None:
    totals = plan.totals
    states = Counter(work.state for work in plan.works)
    told = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    out.print(Text(f"{counted(totals.cells, 'cell')}: {told}", style="bold"), soft_wrap=True)
    left = (
        f"to do: {counted(totals.todo, 'cell')}, {totals.todo_rounds:,} rounds, "
        f"{totals.todo_generated_samples:,} generated samples "
        f"(of {totals.rounds:,} and {totals.generated_samples:,} in all); "
        f"disk for all: about {bytes_for_people(totals.disk_bytes)}"
    )
    out.print(Text(left), soft_wrap=True)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "grids": [_share_json(share) for share in plan.shares],
        "cells": [_work_json(work) for work in plan.works],
        "dropped": [
            {"grid": share.grid.name, **asdict(dropped)}
            for share in plan.shares
            for dropped in share.dropped
        ],
        "totals": asdict(plan.totals),
    }


def show_damaged(plan: Plan, out: Console) -> None:
    """Each cell with a file that cannot be read, and what to do."""
    damaged = [work for work in plan.works if work.state == DAMAGED]
    for work in damaged[:MOST_DAMAGED]:
        told = f"damaged, not to be trained: {work.cell.label}: {work.reason}"
        out.print(Text(told, style="red"), soft_wrap=True)
    if len(damaged) > MOST_DAMAGED:
        out.print(Text(f"and {len(damaged) - MOST_DAMAGED} more damaged cells", style="red"))


def _share_json(share: Share) -> dict[str, Any]:
    grid = share.grid
    budget = grid.budget.model_dump(exclude_none=True) if grid.budget else None
    names = {"name": grid.name, "study": grid.study, "section": grid.section}
    return {**names, "budget": budget, "cells": len(share.cells), "dropped": len(share.dropped)}


def _work_json(work: Work) -> dict[str, Any]:
    cell = work.cell
    names = ("key", "arm_key", "label", "model", "dataset", "batch", "rollouts", "replay")
    told = {name: getattr(cell, name) for name in (*names, "advantage", "seed", "rounds")}
    state = {"state": work.state, "reason": work.reason}
    return {"study": work.study, **told, "grids": list(work.grids), **state}


def counted(number: int, noun: str) -> str:
    """`1 cell`, `1,000 cells`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ranges(numbers: list[int]) -> str:
    """`0-4, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
