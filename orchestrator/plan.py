"""Grids and a store -> what is to be trained.

Cells of several grids of one study merge by key: a cell runs once per study, to the largest of the
`rounds` that its grids ask for. Leaves out printing (`show.py`) and running (`driver.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Dropped, Grid
from grids.outcome import DAMAGED, FINISHED
from grids.paths import CellPaths, DamagedError, Store, read_lines
from orchestrator.ledger import DONE, Standing, standing
from orchestrator.order import ordered

# Bytes on disk beside the weights, measured on embedded and real cells and rounded up.
JOURNAL_BYTES = 1024  # one journal line and one line of timings
OUTCOME_BYTES = 512  # one row of outcomes.parquet, its completion compressed
UNCOUNTED_TEST_ROWS = 5000


@dataclass(frozen=True)
class Work:
    """One cell of one study, as all grids together want it."""

    study: str
    cell: Cell
    grids: tuple[str, ...]
    state: str
    round: int = 0  # already trained
    begun: bool = False  # round 0 is in the journal
    reason: str | None = None  # why it diverged or failed, or what is damaged
    rank: int = 0  # the highest priority that its grids give it

    @property
    def todo(self) -> bool:
        """To be trained. What is damaged waits for a person, who may have a copy."""
        return self.state not in (*DONE, DAMAGED)

    @property
    def rounds_left(self) -> int:
        return max(0, self.cell.rounds - self.round) if self.todo else 0

    @property
    def samples_left(self) -> int:
        """Rollouts to generate; replay is filled before round 0 is written."""
        filled = self.cell.filled_samples if self.todo and not self.begun else 0
        return self.cell.generated_per_step * self.rounds_left + filled

    def paths(self, store: Store) -> CellPaths:
        return store.study(self.study).cell(self.cell.key)


@dataclass(frozen=True)
class Share:
    """What one grid contributes to a plan."""

    grid: Grid
    cells: dict[str, Cell]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Totals:
    """Sums over a plan's cells; `todo_*` over those that are left, from where they stand.

    Generated samples are the fresh rollouts of all rounds and what fills a cell's replay before
    its first, which is not counted where the number of train questions is unknown.
    """

    cells: int = 0
    todo: int = 0
    rounds: int = 0
    todo_rounds: int = 0
    generated_samples: int = 0
    todo_generated_samples: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Cells in the order in which they will run (`order.py`)."""

    works: tuple[Work, ...]
    shares: tuple[Share, ...]
    totals: Totals = field(default_factory=Totals)

    @property
    def todo(self) -> tuple[Work, ...]:
        return tuple(work for work in self.works if work.todo)


def make_plan(grids: Sequence[Grid], store: Store) -> Plan:
    """Expand and merge the grids and look up in the store what is done.

    Raises `InputError` where two grids of a study want one cell evaluated in different ways.
    """
    wanted: dict[tuple[str, str], list[tuple[Grid, Cell]]] = {}
    shares = []
    for grid in grids:
        dropped = list(grid.expansion.dropped)
        for cell in grid.cells():
            named = wanted.setdefault((grid.study, cell.key), [])
            if named:
                dropped.append(_shared(grid, cell, named[0]))
            named.append((grid, cell))
        cells = {cell.key: cell for cell in grid.cells()}
        shares.append(Share(grid, cells, tuple(dropped)))
    works = [_work(study, named, store) for (study, _), named in wanted.items()]
    works = ordered(works)
    return Plan(tuple(works), tuple(shares), _totals(works))


def _shared(grid: Grid, cell: Cell, first: tuple[Grid, Cell]) -> Dropped:
    why = f"grid {first[0].name} names the same cell; it runs once in study {grid.study}"
    return Dropped(cell.label, "merged", why, cell.key)


def _work(study: str, named: list[tuple[Grid, Cell]], store: Store) -> Work:
    cell = _merged(study, named)
    paths = store.study(study).cell(cell.key)
    found = standing(paths, cell.rounds, cell.eval_key)
    if found.state == FINISHED:
        try:
            _check_scored(named, paths, found.round or 0)
        except DamagedError as error:
            found = Standing(DAMAGED, reason=str(error))
    names, begun = tuple(grid.name for grid, _ in named), found.round is not None
    rank = max(grid.rank(own) for grid, own in named)
    return Work(study, cell, names, found.state, found.round or 0, begun, found.reason, rank)


def _check_scored(named: list[tuple[Grid, Cell]], paths: CellPaths, trained: int) -> None:
    """A done cell that no grid's table could read at its own horizon will not get better."""
    shorter = [(grid, cell) for grid, cell in named if cell.rounds < trained]
    if not shorter:
        return
    scored = [line["round"] for line in read_lines(paths.journal) if outcome.TEST_PASS in line]
    for grid, cell in shorter:
        if scored and cell.rounds not in scored:
            raise InputError(
                f"grid {grid.name}: asks for rounds: {cell.rounds} of {cell.label}, which was "
                f"trained to {trained} and evaluated at {', '.join(map(str, scored[1:]))}; "
                "ask for one of these, or for more"
            )


def _merged(study: str, named: list[tuple[Grid, Cell]]) -> Cell:
    """One cell that serves every grid which names it.

    Trained to the largest horizon, it is evaluated at the shorter ones too, where their tables
    read it: `every` divides them all.
    """
    (first_grid, first), *others = named
    for grid, cell in others:
        if cell.eval_key != first.eval_key:
            raise InputError(_conflict(study, first_grid, first, grid, cell))
    if not others:
        return first
    cells = [cell for _, cell in named]
    rounds = max(cell.rounds for cell in cells)
    shorter = [cell.rounds for cell in cells if cell.rounds < rounds]
    every = math.gcd(*(cell.eval.every for cell in cells), *shorter)
    changes: dict[str, Any] = {"rounds": rounds}
    changes["eval"] = first.eval.model_copy(update={"every": every})
    changes["keep"] = "weights" if any(c.keep == "weights" for c in cells) else "none"
    return first.model_copy(update=changes)


def _conflict(study: str, first_grid: Grid, first: Cell, grid: Grid, cell: Cell) -> str:
    one, other = (
        {**c.eval.model_dump(exclude={"every", "primary"}, mode="json"), "grader": c.grader,
         "max_response": c.max_response}
        for c in (first, cell)
    )  # fmt: skip
    differ = [name for name in one if one[name] != other[name]]
    told = ", ".join(f"{_dotted(n)} {one[n]!r} and {other[n]!r}" for n in differ)
    return (
        f"study {study}: grids {first_grid.name} and {grid.name} evaluate the cell "
        f"{first.label} in different ways ({told}); a cell is evaluated in one way in a study; "
        f"give both grids the same {', '.join(map(_dotted, differ))}, or another `study:` to one"
    )


def _dotted(name: str) -> str:
    return name if name in ("grader", "max_response") else f"eval.{name}"


def disk_bytes(cell: Cell) -> int:
    """An estimate of what a cell leaves on disk.

    Weights in float32 and Adam's two moments, 4 × parameters × (1 + 2), where the cell keeps its
    last checkpoint (while it runs it holds two, and a third in the making); plus
    `JOURNAL_BYTES` a round, and `OUTCOME_BYTES` a question and answer of the base and the final
    evaluation (test questions and train subset, each once greedily and `eval.samples` times
    sampled).
    """
    weights = 4 * cell.model_spec.parameters * (1 + 2) if cell.keep == "weights" else 0
    rows = cell.dataset_spec.test_rows or UNCOUNTED_TEST_ROWS
    if cell.eval.test_questions is not None:
        rows = min(rows, cell.eval.test_questions)
    answers = 2 * (rows + cell.eval.train_questions) * (1 + cell.eval.samples)
    return int(weights) + JOURNAL_BYTES * cell.rounds + OUTCOME_BYTES * answers


def _totals(works: Sequence[Work]) -> Totals:
    generated = (w.cell.generated_per_step * w.cell.rounds + w.cell.filled_samples for w in works)
    return Totals(
        cells=len(works),
        todo=sum(work.todo for work in works),
        rounds=sum(work.cell.rounds for work in works),
        todo_rounds=sum(work.rounds_left for work in works),
        generated_samples=sum(generated),
        todo_generated_samples=sum(work.samples_left for work in works),
        disk_bytes=sum(disk_bytes(work.cell) for work in works),
    )
