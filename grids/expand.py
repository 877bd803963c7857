"""A grid's axes, zipped axes and conditional axes -> the settings of each of its combinations.

Every value of an axis that a combination does not get because of a condition is named with the
reason. Leaves out budget, exclusions and what becomes a cell (`grid.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grids.errors import InputError
from grids.rules import Settings, When, matched, told

if TYPE_CHECKING:
    from grids.grid import Grid


@dataclass(frozen=True)
class Removed:
    """A value that a combination does not get, and why."""

    settings: Settings  # of the combination
    reason: str


def combinations(grid: Grid) -> tuple[list[Settings], list[Removed]]:
    """The settings of every combination, each as a cell holds it; and what `when` removed."""
    parts: list[list[Settings]] = [
        [{axis: value} for value in values] for axis, values in grid.axes.items()
    ]
    parts += [rows(group) for group in grid.zip_]
    base = {name: grid.held(name, value) for name, value in grid.base.items()}
    made = [base | _joined(grid, chosen) for chosen in itertools.product(*parts)]
    removed: list[Removed] = []
    for rule in grid.when:
        made = [one for settings in made for one in _branches(grid, rule, settings, removed)]
    return [overridden(grid, settings) for settings in made], removed


def rows(group: Mapping[str, list[Any]]) -> list[Settings]:
    """The settings of axes that move together, value by value."""
    return [dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True)]


def _joined(grid: Grid, chosen: Iterable[Settings]) -> Settings:
    return {name: grid.held(name, value) for part in chosen for name, value in part.items()}


def _branches(
    grid: Grid, rule: When, settings: Settings, removed: list[Removed]
) -> Iterator[Settings]:
    """A combination with each value of a condition's axes, or as it is where it does not hold."""
    values = {name: [grid.held(name, v) for v in rule.axes[name]] for name in rule.axes}
    whole = grid.whole(overridden(grid, settings))
    if holds(grid, rule.if_, whole):
        for chosen in itertools.product(*values.values()):
            yield settings | dict(zip(values, chosen, strict=True))
        return
    why = f"; {rule.why}" if rule.why else ""
    for name, listed in values.items():
        for value in listed:
            if value != whole[name]:
                reason = f"{name} {value} only where {told(rule.if_)}{why}"
                removed.append(Removed(settings, reason))
    yield settings


def overridden(grid: Grid, settings: Settings) -> Settings:
    """The settings with what the grid's overrides set for such a combination; the last one wins."""
    if not grid.overrides:
        return settings
    whole, changed = grid.whole(settings), dict(settings)
    for rule in grid.overrides:
        if holds(grid, rule.for_, whole):
            changed |= {name: grid.held(name, value) for name, value in rule.set.items()}
    return changed


def holds(grid: Grid, condition: Settings, whole: Mapping[str, Any]) -> bool:
    """Whether every setting of a condition has one of its values."""
    return all(
        whole[name] in [grid.held(name, value) for value in values]
        for name, values in matched(condition).items()
    )


def settled(grid: Grid, given: Settings, named: Iterable[str] = ()) -> Settings:
    """Settings of another combination, of which some (`named`) were changed, as this grid's.

    What the grid sets by rule follows: axes that move together with a changed one, conditional axes
    whose condition no longer holds, overrides.
    """
    names, settings = set(named), dict(given)
    by_rule = {name for rule in grid.overrides for name in rule.set} - names
    for name in by_rule:
        settings.pop(name, None)
        if name in grid.base:
            settings[name] = grid.held(name, grid.base[name])
    for group in grid.zip_:
        if moved := names & group.keys():
            settings |= _partners(grid, group, settings, moved)
    for rule in grid.when:
        if not holds(grid, rule.if_, grid.whole(overridden(grid, settings))):
            for name in rule.axes.keys() - names:
                settings.pop(name, None)
                if name in grid.base:
                    settings[name] = grid.held(name, grid.base[name])
    made = overridden(grid, settings)
    return made | {name: settings[name] for name in names if name in settings}


def _partners(
    grid: Grid, group: Mapping[str, Any], settings: Settings, moved: set[str]
) -> Settings:
    """What moves together with the settings that were changed; of several rows that fit, the one
    that changes least."""
    every = [{name: grid.held(name, value) for name, value in row.items()} for row in rows(group)]
    fit = [held for held in every if all(held[name] == settings[name] for name in moved)]
    if not fit:
        return {}
    return max(fit, key=lambda held: sum(settings.get(n) == v for n, v in held.items()))


def check_lengths(where: str, group: Mapping[str, list[Any]]) -> None:
    """Raise `InputError` where axes that move together have different lengths."""
    lengths = {name: len(values) for name, values in group.items()}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise InputError(
            f"{where}: zipped axes move together and need as many values each; got: {described}"
        )
    if len(lengths) < 2:
        raise InputError(f"{where}: one axis alone moves with nothing; put it under `axes:`")
