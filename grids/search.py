"""`search:` of a grid: which settings are searched for beside its tables, on which arms, how long.

A search is of one arm of one model and data set: its trials differ in the searched settings alone.
It reads `val/pass_at_1` and nothing else, of train questions that its cells hold out. Leaves out
what a declaration must not say (`search_checks.py`), and asking for trials and reading what became
of them (`orchestrator.searching`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from grids.cell import Cell
from grids.outcome import VAL_PASS
from grids.rules import Settings
from grids.vocabulary import RESOLVED

if TYPE_CHECKING:
    from grids.grid import Grid


class Optuna(BaseModel):
    """Which of Optuna's samplers suggests the trials, and its seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sampler: Literal["tpe", "random"] = Field(
        "tpe",
        description="tpe: the first wave at random, then from what was told; or all at random",
    )
    seed: int = Field(0, ge=0, description="equal seeds, equal suggestions")


class Space(BaseModel):
    """The values of one searched setting: a range, or a list of choices."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: float | None = Field(None, description="of a range")
    high: float | None = Field(None, description="of a range")
    log: bool = Field(False, description="a range in factors, as of a learning rate")
    choices: list[Any] | None = Field(None, description="in place of a range")


class Search(BaseModel):
    """One search, made anew for each model, data set and arm."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    optuna: Optuna = Optuna()
    over: dict[str, Space] = Field(min_length=1, description="searched setting -> its values")
    each: list[str] | None = Field(
        None, description="one search for each value of these settings; null: for every arm"
    )
    where: Settings = Field({}, description="settings (value or list) of the arms to search on")
    cells: int = Field(gt=0, description="budget of each search, in cells")
    wave: int = Field(4, gt=0, description="cells trained side by side and told together")
    metric: str = Field(VAL_PASS, description=f"{VAL_PASS}: no other may be read")
    holdout: int = Field(100, description="train questions held out, which the metric is over")
    rounds: int | None = Field(None, gt=0, description="of a trial; null: the grid's")
    seeds: list[int] = Field([1000], min_length=1, description="of training; trials tell the mean")
    rungs: list[int] = Field(
        [], description="rounds after which the better half of a wave alone goes on"
    )


@dataclass(frozen=True)
class Problem:
    """A search on one arm.

    Attributes:
        settings: model, data set and what else tells the arm from the grid's others.
        arm: one of the grid's cells, whose searched settings are replaced.
    """

    grid: Grid
    name: str
    settings: Settings
    arm: Cell

    @property
    def search(self) -> Search:
        return self.grid.search[self.name]

    @property
    def trials(self) -> int:
        """How many settings the budget tries: each takes a cell a seed."""
        return self.search.cells // len(self.search.seeds)

    @property
    def wave(self) -> int:
        """Trials told together."""
        return self.search.wave // len(self.search.seeds)

    @property
    def stages(self) -> tuple[int, ...]:
        """The rungs, and last the whole horizon."""
        return (*self.search.rungs, self.search.rounds or self.arm.rounds)

    @property
    def label(self) -> str:
        """For people: `search lr of tiny-qwen2 tiny-sums advantage=raw`."""
        model, dataset, *rest = (f"{name}={value}" for name, value in self.settings.items())
        pair = (part.split("=", 1)[1] for part in (model, dataset))
        return " ".join((f"search {self.name} of", *pair, *rest))

    def cell(self, found: Settings, seed: int, rounds: int) -> Cell:
        """A trial's cell."""
        own: Settings = {"seed": seed, "holdout": self.search.holdout, "rounds": rounds}
        if self.search.rungs:
            own["keep"] = "weights"  # it may have to go on
        return self.grid.cell({**self.arm.model_dump(exclude=RESOLVED), **found, **own})

    def values(self, name: str) -> list[Any]:
        """The choices of a searched setting, or the ends of its range, as a cell holds them."""
        space = self.search.over[name]
        given = [space.low, space.high] if space.choices is None else space.choices
        return [self.grid.held(name, value) for value in given]

    @cached_property
    def sampler_seed(self) -> int:
        """Of the suggestions: of the declared seed and of what is searched, whatever its name, its
        budget and its place in the grid."""
        over = {name: space.model_dump() for name, space in self.search.over.items()}
        form = [self.search.optuna.model_dump(), over, arm_digest(self.arm, over)]
        text = json.dumps(form, sort_keys=True, default=str)
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def arm_digest(cell: Cell, searched: Iterable[str]) -> str:
    """What tells an arm from others whatever its searched settings, seed and held-out questions."""
    neutral = {name: Cell.model_fields[name].default for name in (*searched, "holdout")}
    return cell.model_copy(update=neutral).arm_key


def problems(grid: Grid) -> tuple[Problem, ...]:
    """Every search of a grid, arm by arm.

    Raises `ValueError`, beginning with the dotted key, where one has no arm or several, or where
    its values make no valid cell.
    """
    return tuple(problem for name in grid.search for problem in _problems(grid, name))


def _problems(grid: Grid, name: str) -> list[Problem]:
    search = grid.search[name]
    each = _each(grid, search)
    groups: dict[str, list[Cell]] = {}
    for cell in grid.cells():
        if all(getattr(cell, n) in _held(grid, n, value) for n, value in search.where.items()):
            told = json.dumps([cell.model, cell.dataset, *(getattr(cell, n) for n in each)])
            groups.setdefault(told, []).append(cell)
    if not groups:
        raise ValueError(f"search.{name}.where: no cell of the grid has {search.where}")
    found = []
    for cells in groups.values():
        settings = {n: getattr(cells[0], n) for n in ("model", "dataset", *each)}
        problem = Problem(grid, name, settings, cells[0])
        _check_one_arm(problem, cells)
        _check_horizon(problem)
        _check_corners(problem)
        found.append(problem)
    return found


def _each(grid: Grid, search: Search) -> list[str]:
    """The settings by which searches are told apart, model and data set left out."""
    pair = {"model", "dataset"}
    if search.each is not None:
        return [name for name in search.each if name not in pair]
    varied = [name for name, values in grid.varied.items() if len(values) > 1]
    return [name for name in varied if name not in pair | search.over.keys()]


def _held(grid: Grid, name: str, value: Any) -> list[Any]:
    return [grid.held(name, one) for one in (value if isinstance(value, list) else [value])]


def _check_one_arm(problem: Problem, cells: list[Cell]) -> None:
    """A trial is of one arm: what else varies would have to be averaged over."""
    over = problem.search.over
    arms = {arm_digest(cell, over): cell for cell in cells}
    if len(arms) == 1:
        return
    one, other = list(arms.values())[:2]
    axes = [n for n in problem.grid.varied if getattr(one, n) != getattr(other, n)]
    raise ValueError(
        f"search.{problem.name}.each: {problem.search.each} leaves {', '.join(axes)} open, and a "
        f"search is on one arm; name {'it' if len(axes) == 1 else 'them'} too, or choose one value "
        "with `where:`"
    )


def _check_horizon(problem: Problem) -> None:
    """Trials are read where the grid evaluates, and not beyond what its own cells train."""
    every, whole, where = problem.arm.eval.every, problem.arm.rounds, f"search.{problem.name}"
    for rounds in problem.stages:
        key = "rungs" if rounds in problem.search.rungs else "rounds"
        if key == "rungs" and rounds >= problem.stages[-1]:
            raise ValueError(f"{where}.rungs: got {rounds}; all lie before {problem.stages[-1]}")
        if rounds > whole:
            raise ValueError(f"{where}.{key}: got {rounds}; the grid's rounds are {whole}: at most")
        if rounds % every and rounds != whole:
            raise ValueError(
                f"{where}.{key}: got {rounds}; cells are evaluated every {every} rounds "
                f"(eval.every) and at {whole}; take one of these"
            )


def _check_corners(problem: Problem) -> None:
    """Every choice and end of a range makes a cell that can be trained."""
    over = list(problem.search.over)
    first = {name: problem.values(name)[0] for name in over}
    for name in over:
        for value in problem.values(name):
            try:
                problem.cell({**first, name: value}, problem.search.seeds[0], problem.stages[-1])
            except ValueError as error:
                told = _plain(error)
                raise ValueError(f"search.{problem.name}.over.{name}: {value}: {told}") from None


def _plain(error: ValueError) -> str:
    """What a validator said, without pydantic's frame around it."""
    told = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
    return told.removeprefix("Value error, ")


def fields_at(where: Iterable[Any]) -> dict[str, FieldInfo]:
    """The keys allowed beside one that is unknown, at a place such as search.lr.optuna.x."""
    parts = list(where)
    models: dict[str, type[BaseModel]] = {"optuna": Optuna, "over": Space}
    return models.get(str(parts[2]) if len(parts) > 3 else "", Search).model_fields
