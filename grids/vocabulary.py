"""The names in a grid and their values: which settings, models, data sets and plug-ins it may name.

Every finding is a `ValueError` whose text begins with the dotted place in the file. Leaves out what
only a whole cell can tell (`limits.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from grids import expand, limits
from grids.catalog import DATASETS, MODELS, SOURCES, DatasetSpec, ModelSpec
from grids.cell import SPECS, Cell, check_setting
from grids.errors import InputError, listed, nearest
from grids.plugin import FUNCTIONS, Plugin, read
from grids.rules import matched

if TYPE_CHECKING:
    from grids.grid import Grid

T = TypeVar("T", ModelSpec, DatasetSpec)
RESOLVED = SPECS | {"seed"}
NOT_AXES = {
    "rounds", "eval", "rows_per_pass", "gradient_checkpointing", "liger", "gpus", "keep",
    "max_unscored",
}  # fmt: skip


HORIZON = {"rounds", "eval"}


@dataclass(frozen=True)
class Vocabulary:
    """The plug-ins of a grid, and all models and data sets that it can name."""

    plugins: tuple[Plugin, ...]
    models: Mapping[str, ModelSpec]
    datasets: Mapping[str, DatasetSpec]


def of(grid: Grid) -> Vocabulary:
    """The catalogue's names, the plug-ins', the grid's own."""
    plugins = tuple(_plugin(i, path) for i, path in enumerate(grid.plugins))
    _check_claims(plugins)
    models = _joined(grid, "models", dict(MODELS), plugins)
    datasets = _joined(grid, "datasets", dict(DATASETS), plugins)
    return Vocabulary(plugins, models, {n: _sourced(d, plugins) for n, d in datasets.items()})


def _plugin(place: int, path: str) -> Plugin:
    try:
        return read(Path(path))
    except InputError as error:
        raise ValueError(f"plugins.{place}: {error}") from None


def _check_claims(plugins: tuple[Plugin, ...]) -> None:
    """Two that register one name would leave open which is meant."""
    own = {registry: limits.NAMED[setting] for registry, setting in FUNCTIONS.items()}
    own |= {"SOURCES": SOURCES, "MODELS": MODELS, "DATASETS": DATASETS}
    claimed: dict[tuple[str, str], str] = {}
    for i, plugin in enumerate(plugins):
        for (registry, name), place in plugin.places.items():
            first = "banditgrid itself" if name in own[registry] else claimed.get((registry, name))
            if first is not None:
                raise ValueError(
                    f"plugins.{i}: {registry}: {name!r} is claimed twice: by {first} and by "
                    f"{place}; rename one"
                )
            claimed[registry, name] = place
    packages = [plugin.spec.name for plugin in plugins]
    for i, package in enumerate(packages):
        if package in packages[:i]:
            raise ValueError(f"plugins.{i}: two plug-ins are called {package!r}; rename one")


def _joined(
    grid: Grid, kind: str, known: dict[str, T], plugins: tuple[Plugin, ...]
) -> dict[str, T]:
    made: type[Any] = ModelSpec if kind == "models" else DatasetSpec
    for i, plugin in enumerate(plugins):
        for name, fields in getattr(plugin, kind).items():
            place = plugin.places[kind.upper(), name]
            try:
                known[name] = made.model_validate({"name": name, **_pinned(fields, plugin)})
            except ValueError as error:
                told = str(error).splitlines()
                raise ValueError(f"plugins.{i}: {place}: {name!r}: {told[-2:][0]}") from None
            if name in getattr(grid, kind):
                raise ValueError(f"{kind}.{name}: duplicate name; {place} has it too; rename one")
    own: dict[str, T] = getattr(grid, kind)
    return known | own


def _pinned(fields: dict[str, Any], plugin: Plugin) -> dict[str, Any]:
    """Rows that a plug-in's own function makes change with its source."""
    own = plugin.spec.has("SOURCES", fields.get("source"))
    return fields | ({"revision": plugin.spec.digest} if own else {})


def _sourced(spec: DatasetSpec, plugins: tuple[Plugin, ...]) -> DatasetSpec:
    """A data set of the grid file whose rows a plug-in makes."""
    for plugin in plugins:
        if plugin.spec.has("SOURCES", spec.source):
            return spec.model_copy(update={"revision": plugin.spec.digest})
    return spec


# ---- settings


def given(grid: Grid) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """(where, setting -> values) of all that settings are set to or compared with."""
    yield "base", {name: [value] for name, value in grid.base.items()}
    yield "axes", grid.axes
    for i, group in enumerate(grid.zip_):
        yield f"zip.{i}", group
    for i, rule in enumerate(grid.when):
        yield f"when.{i}.if", matched(rule.if_)
        yield f"when.{i}.axes", rule.axes
    for i, override in enumerate(grid.overrides):
        yield f"overrides.{i}.for", matched(override.for_)
        yield f"overrides.{i}.set", {name: [value] for name, value in override.set.items()}
    for i, ranked in enumerate(grid.priority):
        yield f"priority.{i}.for", matched(ranked.for_)
    for i, excluded in enumerate(grid.exclude):
        yield f"exclude.{i}", matched(excluded)
    for i, contrast in enumerate(grid.contrasts):
        for part, arm in (("a", contrast.a), ("b", contrast.b), ("with", contrast.with_)):
            yield f"contrasts.{i}.{part}", {name: [value] for name, value in arm.items()}


def _vary(grid: Grid) -> Iterator[tuple[str, str, list[Any]]]:
    """(where, setting, values) of axes of every kind."""
    yield from (("axes", name, values) for name, values in grid.axes.items())
    for i, group in enumerate(grid.zip_):
        yield from ((f"zip.{i}", name, values) for name, values in group.items())
    for i, rule in enumerate(grid.when):
        yield from ((f"when.{i}.axes", name, values) for name, values in rule.axes.items())


def check(grid: Grid) -> None:
    """Raise `ValueError` for the first name or value that the grid must not have."""
    for where, axis, _ in _vary(grid):
        if axis in NOT_AXES:
            raise ValueError(
                f"{where}.{axis}: cannot be an axis: it is no part of what a cell trains, so all "
                "its values would be one cell; set it in `base:`"
            )
    vocabulary = grid.names
    for where, settings in given(grid):
        _check_names(where, settings)
        for name, values in settings.items():
            for value in values:
                _check_value(grid, vocabulary, f"{where}.{name}", name, value)
    for where, axis, values in _vary(grid):
        if not values:
            raise ValueError(f"{where}.{axis}: no values; give at least one")
        if not where.startswith("zip"):
            _check_unique(f"{where}.{axis}", values)
    _check_rules(grid)
    for i, seed in enumerate(grid.seeds):
        _check_value(grid, vocabulary, f"seeds.{i}", "seed", seed)
    _check_unique("seeds", grid.seeds)
    _check_unique("contrasts", [contrast.name for contrast in grid.contrasts])


def _check_rules(grid: Grid) -> None:
    """Each setting has one place that decides it."""
    decided: dict[str, str] = {name: "axes" for name in grid.axes}
    for i, group in enumerate(grid.zip_):
        expand.check_lengths(f"zip.{i}", group)
        _check_unique(f"zip.{i}", expand.rows(group))
        for name in group:
            if (first := decided.setdefault(name, f"zip.{i}")) != f"zip.{i}":
                raise ValueError(f"zip.{i}.{name}: is an axis under {first} too; keep one")
    for i, rule in enumerate(grid.when):
        for name in rule.axes:
            if name in decided or name in rule.if_:
                first = decided.get(name, f"when.{i}.if")
                raise ValueError(
                    f"when.{i}.axes.{name}: is under {first} too; keep one: an axis under a "
                    "condition takes the base's value, or the default, elsewhere"
                )
    varied = {name: where for where, name, _ in _vary(grid)}
    for i, override in enumerate(grid.overrides):
        if override.set.keys() & HORIZON and override.for_.keys() - {"model", "dataset"}:
            name = min(override.set.keys() & HORIZON)
            raise ValueError(
                f"overrides.{i}.set.{name}: is of a model, a data set or a pair, whose arms are "
                f"compared at one; take {', '.join(override.for_.keys() - {'model', 'dataset'})} "
                "out of `for:`"
            )
        for name in override.set:
            if name in varied or name in ("model", "dataset"):
                why = f"an axis ({varied[name]})" if name in varied else "what a pair is made of"
                raise ValueError(
                    f"overrides.{i}.set.{name}: is {why}, which no override changes; take it out"
                )
    _check_conditions(grid)


def _check_conditions(grid: Grid) -> None:
    """A condition on what overrides set would depend on their order."""
    by_rule = {name for override in grid.overrides for name in override.set}
    conditions = [(f"when.{i}.if", rule.if_) for i, rule in enumerate(grid.when)]
    conditions += [(f"overrides.{i}.for", rule.for_) for i, rule in enumerate(grid.overrides)]
    for where, condition in conditions:
        for name in condition:
            if name in by_rule:
                raise ValueError(
                    f"{where}.{name}: is set by overrides, so it cannot be a condition; name the "
                    "settings that they hold for"
                )
    later = {name for rule in grid.when for name in rule.axes}
    for i, rule in enumerate(grid.when):
        if waiting := later & rule.if_.keys():
            raise ValueError(
                f"when.{i}.if.{min(waiting)}: exists under a condition that comes later or is its "
                "own; put that one first"
            )
        later -= rule.axes.keys()


def _check_value(grid: Grid, known: Vocabulary, where: str, name: str, value: Any) -> None:
    if name in ("model", "dataset"):
        allowed: Iterable[str] = known.models if name == "model" else known.datasets
        if value not in allowed:
            raise ValueError(
                f"{where}: unknown name; got {value!r}; "
                f"allowed: {listed(allowed)}{nearest(value, allowed)}"
            )
        return
    try:
        check_setting(name, value, (plugin.spec for plugin in known.plugins))
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix(f'{name}: ')}") from None


def _check_names(where: str, names: Iterable[str]) -> None:
    axis = where == "axes" or where.startswith("zip") or where.endswith(".axes")
    allowed = set(Cell.model_fields) - RESOLVED - (NOT_AXES if axis else set())
    for name in names:
        if name == "seed":
            raise ValueError(f"{where}.seed: seeds are listed under `seeds:`")
        if name not in allowed:
            raise ValueError(
                f"{where}.{name}: unknown key; allowed: {listed(allowed)}{nearest(name, allowed)}"
            )


def _check_unique(where: str, values: list[Any]) -> None:
    for i, value in enumerate(values):
        if value in itertools.islice(values, i):
            raise ValueError(f"{where}: {value!r} is there twice; name each once")
