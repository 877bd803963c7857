"""All searches of a run beside its tables: which cells they want next, and what they have found.

Searches go on side by side, each wave by wave. A cell that a grid's tables need too is trained as
the plan has it, whatever a search's rungs say. What is found is written as one file a search,
`STORE/STUDY/searches/GRID.NAME.json`: equal cells give an equal file. Leaves out one search's own
course (`searching.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from grids.outcome import DAMAGED, SEARCH
from grids.paths import Store, replace_text
from grids.search import Problem, arm_digest, problems
from orchestrator.ledger import note_cells, standing
from orchestrator.plan import Plan, Work
from orchestrator.searching import Hunt, Reading, Tried, reading


class Searches:
    """The searches that some grids declare."""

    def __init__(self, grids: Sequence[Grid], plan: Plan, store: Store) -> None:
        self._store = store
        self._planned = {(work.study, work.cell.key): work for work in plan.works}
        self.hunts = [self._hunt(problem) for grid in grids for problem in problems(grid)]
        self._wanted: dict[int, list[Cell]] = {}
        self._look()

    def _hunt(self, problem: Problem) -> Hunt:
        study = self._store.study(problem.grid.study)

        def read(cell: Cell) -> Reading | None:
            return reading(study.cell(cell.key), cell)

        return Hunt(problem, read)

    def _look(self) -> None:
        for place, hunt in enumerate(self.hunts):
            self._wanted[place] = hunt.wanted()

    @property
    def works(self) -> tuple[Work, ...]:
        """The cells of all trials so far which no table needs."""
        own = [(hunt, cell) for hunt in self.hunts for t in hunt.trials for cell in hunt.cells(t)]
        return tuple(w for w in self._works(own) if (w.study, w.cell.key) not in self._planned)

    def more(self) -> list[Work]:
        """What is to be trained next, after cells have ended; what was found is written."""
        self._look()
        self.write()
        wanted = [(hunt, cell) for i, hunt in enumerate(self.hunts) for cell in self._wanted[i]]
        return [work for work in self._works(wanted) if work.todo]

    def _works(self, wanted: Iterable[tuple[Hunt, Cell]]) -> list[Work]:
        """Each cell once, to the longest horizon that anybody asks for."""
        made: dict[tuple[str, str], Work] = {}
        for hunt, cell in wanted:
            grid, name = hunt.problem.grid, hunt.problem.name
            where = (grid.study, cell.key)
            names: tuple[str, ...] = (f"{grid.name}{SEARCH}{name}",)
            if (other := made.get(where) or self._planned.get(where)) is not None:
                cell = _longer(other.cell, cell)
                names = tuple(dict.fromkeys((*other.grids, *names)))
            found = standing(self._store.study(grid.study).cell(cell.key), cell.rounds,
                             cell.eval_key)  # fmt: skip
            begun = found.round is not None
            made[where] = Work(
                grid.study, cell, names, found.state, found.round or 0, begun, found.reason
            )
        return list(made.values())

    @property
    def damaged(self) -> list[Work]:
        """Cells with a file that cannot be read: their search waits for a person."""
        return [work for work in self.works if work.state == DAMAGED]

    # ---- what is written

    def write(self) -> None:
        """One file a search, where it says something new; the cells, for `status` to name."""
        for (study, grid, name), hunts in self._by_search().items():
            path = self._store.study(study).searches / f"{grid}.{name}.json"
            text = json.dumps(content(hunts), indent=1) + "\n"
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_text(path, text)
            cells = [cell for hunt in hunts for tried in hunt.trials for cell in hunt.cells(tried)]
            known = {cell.key: cell for cell in cells}
            note_cells(self._store.study(study), f"{grid}{SEARCH}{name}", known)

    def _by_search(self) -> dict[tuple[str, str, str], list[Hunt]]:
        found: dict[tuple[str, str, str], list[Hunt]] = {}
        for hunt in self.hunts:
            grid = hunt.problem.grid
            found.setdefault((grid.study, grid.name, hunt.problem.name), []).append(hunt)
        return found


def _longer(wanted: Cell, cell: Cell) -> Cell:
    """One cell for both: to the longer horizon, and evaluated at the shorter.

    Raises `InputError` where the two are evaluated in different ways.
    """
    if cell.eval_key != wanted.eval_key:
        raise InputError(
            f"a search asks for {cell.label}, which another grid or search of the study evaluates "
            "in another way; give both the same `eval`, grader and max_response, or one another "
            "`study:`"
        )
    rounds, shorter = max(cell.rounds, wanted.rounds), min(cell.rounds, wanted.rounds)
    every = math.gcd(cell.eval.every, wanted.eval.every)
    every = math.gcd(every, shorter) if shorter < rounds else every
    changes = {"rounds": rounds, "eval": wanted.eval.model_copy(update={"every": every})}
    return wanted.model_copy(update=changes)


def content(hunts: Sequence[Hunt]) -> dict[str, Any]:
    """What a search of a grid has found, for its file."""
    problem = hunts[0].problem
    declared = problem.search.model_dump(mode="json")
    text = json.dumps(declared, sort_keys=True)
    return {
        "grid": problem.grid.name,
        "search": problem.name,
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "declared": declared,
        "arms": [arm_row(hunt) for hunt in hunts],
    }


def arm_row(hunt: Hunt) -> dict[str, Any]:
    """One arm's trials, and which of them is the best."""
    problem, best = hunt.problem, hunt.best
    return {
        "settings": problem.settings,
        "arm": arm_digest(problem.arm, problem.search.over),
        "complete": hunt.complete,
        "trials": [_trial_row(hunt, tried) for tried in hunt.trials],
        "best": None if best is None else best.number,
    }


def _trial_row(hunt: Hunt, tried: Tried) -> dict[str, Any]:
    cells = hunt.cells(tried)
    return {
        "number": tried.number,
        "settings": tried.settings,
        "state": tried.state or "on its way",
        "val": _number(tried.val),
        "seen": {str(rounds): _number(value) for rounds, value in tried.seen.items()},
        "cells": [
            {"key": cell.key, "seed": cell.seed, "rounds": cell.rounds,
             "val": _number(tried.by_seed.get(cell.seed, math.nan))}
            for cell in cells
        ],
    }  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
