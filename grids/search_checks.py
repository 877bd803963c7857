"""What a `search:` must not say: an axis searched, the test set read, a wave beyond its budget.

What tables and contrasts compare cannot be searched. Every finding is a `ValueError` whose text
begins with the dotted key. Leaves out what only the grid's cells can tell (`search.problems`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from grids.cell import Cell
from grids.errors import listed, nearest
from grids.outcome import VAL_PASS
from grids.search import Search, Space
from grids.vocabulary import NOT_AXES, RESOLVED

if TYPE_CHECKING:
    from grids.grid import Grid

# Settings with values between any two others; all others are searched by `choices`.
RANGED = frozenset({
    "lr", "kl", "clip", "clip_high", "dual_clip", "weight_decay", "adam_beta1", "adam_beta2",
    "max_grad_norm", "ema_decay", "temperature",
})  # fmt: skip
# What a search must not choose, with the reason.
COMPARED = "is a design choice, which tables compare: make it an axis"
SCORED = "changes how answers are made or scored, so that trials could not be compared"
NOT_SEARCHED = {
    **dict.fromkeys(("model", "dataset", "batch", "rollouts", "replay", "advantage"), COMPARED),
    **dict.fromkeys(("max_prompt", "max_response", "grader", "engine", "precision"), SCORED),
    **dict.fromkeys(NOT_AXES, "is no part of what a cell trains"),
    "micro_batch": "follows from the rows of an update; set it in `base:`",
    "reward_noise": "is part of the question that a grid asks; set it in `base:`",
    "holdout": "is a key of the search itself",
}


def check(grid: Grid) -> None:
    """Raise `ValueError`, beginning with the dotted key, for the first thing that is wrong."""
    for name, search in grid.search.items():
        where = f"search.{name}"
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{where}: got {name!r}; a name is letters, digits, - and _")
        if search.metric != VAL_PASS:
            raise ValueError(
                f"{where}.metric: got {search.metric!r}; allowed: {VAL_PASS!r} alone: questions "
                "that tables are over must not choose settings, so a search reads train questions "
                "that its cells hold out"
            )
        if search.holdout < 1:
            raise ValueError(
                f"{where}.holdout: got {search.holdout}; {VAL_PASS} is over train questions that "
                "are never trained on: hold out at least 1 (100 is usual)"
            )
        _check_names(f"{where}.over", search.over)
        _check_names(f"{where}.where", search.where)
        for setting, space in search.over.items():
            _check_setting(grid, name, setting)
            _check_space(grid, f"{where}.over.{setting}", setting, space)
        _check_where(grid, where, search)
        _check_budget(where, search)


def _check_names(where: str, names: Iterable[str]) -> None:
    allowed = set(Cell.model_fields) - RESOLVED
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"{where}.{name}: unknown key; allowed: {listed(allowed)}{nearest(name, allowed)}"
            )


def _check_setting(grid: Grid, name: str, setting: str) -> None:
    where = f"search.{name}.over.{setting}"
    if setting in NOT_SEARCHED:
        allowed = listed(RANGED)
        raise ValueError(f"{where}: {NOT_SEARCHED[setting]}; a search is over such as {allowed}")
    if setting in grid.varied:
        raise ValueError(
            f"{where}: is an axis of this grid: its tables compare the values among which the "
            "search would choose; search over it in a grid without that axis"
        )
    for contrast in grid.contrasts:
        if setting in {*contrast.a, *contrast.b, *contrast.with_}:
            raise ValueError(
                f"{where}: the contrast {contrast.name!r} is declared at values of it, among which "
                "a search would choose; take it out of one of the two"
            )
    for i, rule in enumerate(grid.when):
        if setting in rule.if_:
            raise ValueError(f"{where}: when.{i}.if depends on it; take it out of one of the two")


def _check_space(grid: Grid, where: str, setting: str, space: Space) -> None:
    if (space.choices is None) == (space.low is None and space.high is None):
        raise ValueError(f"{where}: give either low and high, or choices")
    if space.choices is not None:
        held = [_checked(grid, where, setting, value) for value in space.choices]
        if len(held) < 2 or any(value in held[:i] for i, value in enumerate(held)):
            raise ValueError(f"{where}: choices: got {space.choices}; give two or more, each once")
        return
    if setting not in RANGED:
        raise ValueError(f"{where}: has no range; list its values: choices: [...]")
    if space.low is None or space.high is None or not space.low < space.high:
        raise ValueError(f"{where}: got low {space.low} and high {space.high}; low lies below high")
    if space.log and space.low <= 0:
        raise ValueError(f"{where}: log: a range in factors begins above 0; got low {space.low}")
    for value in (space.low, space.high):
        _checked(grid, where, setting, value)


def _checked(grid: Grid, where: str, setting: str, value: Any) -> Any:
    try:
        return grid.held(setting, value)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix(f'{setting}: ')}") from None


def _check_where(grid: Grid, where: str, search: Search) -> None:
    _check_names(f"{where}.each", search.each or [])
    if search.each and (no_choice := NOT_AXES & set(search.each)):
        raise ValueError(
            f"{where}.each: {min(no_choice)} is no part of what a cell trains; take it out"
        )
    for setting, value in search.where.items():
        for one in value if isinstance(value, list) else [value]:
            _checked(grid, f"{where}.where.{setting}", setting, one)
    for key, names in (("each", search.each or []), ("where", search.where)):
        if both := [name for name in names if name in search.over]:
            raise ValueError(f"{where}.{key}: {both[0]} is what is searched; take it out")


def _check_budget(where: str, search: Search) -> None:
    seeds = len(search.seeds)
    if min(search.seeds) < 0 or len(set(search.seeds)) < seeds:
        raise ValueError(f"{where}.seeds: got {search.seeds}; each once, 0 or more")
    if search.wave > search.cells:
        raise ValueError(
            f"{where}.wave: got {search.wave}, and the budget is cells: {search.cells}; a wave is "
            "a part of it"
        )
    for key, count in (("cells", search.cells), ("wave", search.wave)):
        if count % seeds:
            raise ValueError(
                f"{where}.{key}: got {count}; each trial takes {seeds} cells, one a seed: give a "
                f"multiple of {seeds}"
            )
    if search.rungs != sorted(set(search.rungs)) or min(search.rungs, default=1) < 1:
        raise ValueError(f"{where}.rungs: got {search.rungs}; rounds, each beyond the one before")
    if search.rungs and search.rounds is not None and search.rungs[-1] >= search.rounds:
        raise ValueError(
            f"{where}.rungs: got {search.rungs}; all lie before rounds {search.rounds}"
        )
