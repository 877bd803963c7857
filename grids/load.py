"""A grid file -> Grid. An error names file, line, key, what was got, what is allowed.

Leaves out reading YAML (`source.py`) and what the keys mean (`grid.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from grids.catalog import DatasetSpec, ModelSpec
from grids.cell import SPECS, Cell
from grids.contrast import Contrast
from grids.errors import InputError, listed, nearest
from grids.grid import Budget, Grid
from grids.plugin import located
from grids.rules import Override, Priority, When
from grids.search import fields_at, problems
from grids.source import Source, Where, dotted, text_of
from grids.vocabulary import NOT_AXES, RESOLVED


def load_grid(path: str | Path) -> Grid:
    """The grid in a YAML file.

    Raises `InputError` naming file, line and key for anything that is wrong with it.
    """
    source = Source(Path(path))
    data = _extended(source, ())
    _check_axes(source, data)
    try:
        grid = Grid.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(_told(source, error))) from None
    _check_cells(source, grid)
    return grid


def grid_files(paths: Iterable[str | Path]) -> list[Path]:
    """Each file once; a folder stands for the *.yaml in it, by name."""
    return list(dict.fromkeys(file for path in paths for file in _files(Path(path))))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.glob("*.yaml") if file.is_file())
    if not found:
        raise InputError(
            f"{path}: a folder without a grid: no file there ends in .yaml; name a grid file, or "
            "a folder of them"
        )
    return found


def load_grids(paths: Iterable[str | Path]) -> list[Grid]:
    """Several grids, a folder's too; two of one study must not share a name."""
    seen: dict[tuple[str, str], Path] = {}
    grids = []
    for path in grid_files(paths):
        grid = load_grid(path)
        if (first := seen.setdefault((grid.study, grid.name), path)) != path:
            raise InputError(
                f"{path}: name: duplicate name; got {grid.name!r}, which {first} has too "
                f"in study {grid.study!r}; rename one"
            )
        grids.append(grid)
    return grids


def resolved(path: str | Path, plugins: str | None = None) -> str:
    """A grid file as one that stands alone: `extends` merged in, paths of local copies absolute.

    Plug-ins are to lie in the folder `plugins`, relative to the new file; None: where they are.
    Raises `InputError` where the file cannot be read; whether it is a grid is `load_grid`'s to say.
    """
    data = _extended(Source(Path(path)), ())
    alone = {key: value for key, value in data.items() if key != "extends"}
    if plugins is not None and "plugins" in alone:
        alone["plugins"] = [f"{plugins}/{Path(one).name}" for one in alone["plugins"]]
    return text_of(alone)


def grid_schema() -> dict[str, Any]:
    """JSON Schema of a grid file: an editor completes and checks by it."""
    schema = Grid.model_json_schema(by_alias=True)
    cell = Cell.model_json_schema()
    schema["$defs"] = {**schema.get("$defs", {}), **cell.pop("$defs", {})}
    settings = {k: v for k, v in cell["properties"].items() if k not in RESOLVED}
    base = {"type": "object", "properties": settings, "additionalProperties": False}
    axes = {k: {"type": "array", "items": v} for k, v in settings.items() if k not in NOT_AXES}
    schema["properties"]["base"] |= base
    schema["properties"]["axes"] |= base | {"properties": axes}
    schema["properties"]["zip"]["items"] |= base | {"properties": axes}
    schema["$defs"]["When"]["properties"]["axes"] |= base | {"properties": axes}
    schema["$defs"]["Override"]["properties"]["set"] |= base
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "banditgrid grid"
    return schema


def _extended(source: Source, chain: tuple[Path, ...]) -> dict[str, Any]:
    """The file's keys over those of the grid that it extends, mapping by mapping."""
    here = source.path.resolve()
    if here in chain:
        raise InputError(
            f"{source.path}:{source.line(('extends',))}: extends: the grid extends itself "
            f"({' -> '.join(p.name for p in (*chain, here))}); take one `extends` away"
        )
    own = _located(source)
    parent = own.get("extends")
    if parent is None:
        return own
    if not isinstance(parent, str):
        raise InputError(
            f"{source.path}:{source.line(('extends',))}: extends: got {parent!r}; "
            "expected the path of a grid file, relative to this one"
        )
    above = _extended(Source(source.path.parent / parent), (*chain, here))
    return _overlaid({k: v for k, v in above.items() if k != "extends"}, own)


def _overlaid(below: dict[str, Any], above: dict[str, Any], named: bool = True) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping; a list replaces a list.

    Where keys are `named` parts of a grid (its keys, its axes) a null takes one away; a setting's
    null is a value, as in a file of its own.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _overlaid(old, value, named=named and key == "axes")
        merged[key] = value
    return {k: v for k, v in merged.items() if v is not None or not named}


def _located(source: Source) -> dict[str, Any]:
    """A file's content with paths of models, data sets and plug-ins, relative to it, absolute."""
    data, folder = dict(source.data), source.path.parent
    for kind in ("models", "datasets"):
        if isinstance(specs := data.get(kind), dict):
            data[kind] = {name: _placed(spec, folder) for name, spec in specs.items()}
    if isinstance(named := data.get("plugins"), list):
        data["plugins"] = [_plugin(source, i, one) for i, one in enumerate(named)]
    return data


def _placed(spec: Any, folder: Path) -> Any:
    if isinstance(spec, dict) and isinstance(spec.get("path"), str):
        return spec | {"path": str((folder / spec["path"]).resolve())}
    return spec


def _plugin(source: Source, place: int, named: Any) -> str:
    where = ("plugins", place)
    try:
        return str(located(str(named), source.path.parent))
    except InputError as error:
        told = f"{source.path}:{source.line(where)}: {dotted(where)}: {error}"
        raise InputError(told) from None


def _check_axes(source: Source, data: dict[str, Any]) -> None:
    axes = data.get("axes")
    if not isinstance(axes, dict):
        return
    for axis, values in axes.items():
        if not isinstance(values, list):
            raise InputError(
                f"{source.path}:{source.line(('axes', axis))}: axes.{axis}: an axis is a list; "
                f"got {values!r}; write [{values}], or move it to `base:`"
            )


def _check_cells(source: Source, grid: Grid) -> None:
    """Expand the grid, so that a bad value is told with its line before anything starts."""
    try:
        grid.cells()
    except ValidationError as error:
        raise InputError("\n".join(_told_cell(source, grid, error))) from None
    except InputError as error:
        raise InputError(f"{source.path}:{source.line(('axes',))}: {error}") from None
    try:
        problems(grid)
    except ValueError as error:
        raise InputError(_with_line(source, str(error), f"{source.path}: ")) from None
    for i, contrast in enumerate(grid.contrasts):
        for side in ("a", "b"):
            _check_arm(source, grid, i, grid.arm(contrast, side), side)


def _check_arm(source: Source, grid: Grid, i: int, arm: dict[str, Any], side: str) -> None:
    keys = {cell.key for cell in grid.cells()}
    for cell in grid.cells():
        given = cell.model_dump(exclude=SPECS)
        try:
            if grid.other(given, arm).key in keys:
                return
        except (ValidationError, InputError):  # its other settings do not go with the arm
            continue
    raise InputError(
        f"{source.path}:{source.line(('contrasts', i, side))}: contrasts.{i}.{side}: "
        f"no cell of the grid has the arm {arm}; add its values to the axes"
    )


def _told(source: Source, error: ValidationError) -> list[str]:
    """pydantic's findings as our messages: file, line, key, got, allowed."""
    told = []
    for finding in error.errors():
        where = tuple(finding["loc"])
        key = dotted(where)
        place = f"{source.path}:{source.line(where)}: "
        place += f"{key}: " if key else ""
        if finding["type"] == "extra_forbidden":
            allowed = _allowed_beside(where)
            told.append(
                f"{place}unknown key; allowed: {listed(allowed)}{nearest(where[-1], allowed)}"
            )
        elif finding["type"] == "value_error":
            told.append(_with_line(source, str(finding["ctx"]["error"]), place))
        else:
            told.append(f"{place}{_lower(finding['msg'])}; got {finding['input']!r}")
    return told


def _told_cell(source: Source, grid: Grid, error: ValidationError) -> list[str]:
    """Findings about one cell, told at the line of the setting that brought them."""
    told = []
    for finding in error.errors():
        text = _lower(finding["msg"]).removeprefix("value error, ")
        if finding["loc"]:
            text = f"{dotted(finding['loc'])}: {text}; got {finding['input']!r}"
        where = _set_at(source, re.findall(r"\w+", text))
        told.append(f"{source.path}:{source.line(where)}: grid {grid.name}: {text}")
    return list(dict.fromkeys(told))


def _set_at(source: Source, names: list[str]) -> Where:
    """The place that sets the first of some settings which the file sets at all."""
    parts = ("axes", "base", "zip", "when", "overrides")
    for name in names:
        for place in source.lines:
            if place[-1:] == (name,) and place[0] in parts:
                return place
    return ()


def _with_line(source: Source, text: str, place: str) -> str:
    """A validator's own message often begins with the key: tell it at that key's line."""
    head = text.split(":", 1)[0]
    where: Where = tuple(int(p) if p.isdigit() else p for p in head.split("."))
    if where[:1] in source.lines:
        return f"{source.path}:{source.line(where)}: {text}"
    return place + text


def _allowed_beside(where: Where) -> list[str]:
    of: dict[str, type[BaseModel]] = {"budget": Budget, "contrasts": Contrast}
    of |= {"models": ModelSpec, "datasets": DatasetSpec}
    of |= {"when": When, "overrides": Override, "priority": Priority}
    fields = of.get(str(where[0]) if len(where) > 1 else "", Grid).model_fields
    fields = fields_at(where) if where[0] == "search" and len(where) > 2 else fields
    return [field.alias or name for name, field in fields.items()]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
