"""A user's own package as a grid names it: what it registers, and a digest of its source.

A plug-in is a package or a module with some of these at its top level, each a dict whose names are
written out:

    ADVANTAGES LOSSES AGGREGATIONS KLS REWARDS GRADERS SOURCES   name -> function
    MODELS DATASETS                                              name -> spec, as in a grid file

Reading it runs none of its code: the syntax tree tells all that a plan needs, on a machine without
torch too. The digest is over the source of the whole package, its own name left out, so that
renaming the package changes no key. Leaves out importing it, which is the workers' (`plugins.py`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from grids.errors import InputError, listed

# What holds functions -> the setting of a cell that names one of them.
FUNCTIONS: Final = {
    "ADVANTAGES": "advantage",
    "LOSSES": "loss",
    "AGGREGATIONS": "aggregation",
    "KLS": "kl_form",
    "REWARDS": "reward",
    "GRADERS": "grader",
}
SOURCES: Final = "SOURCES"  # named by a data set's `source`
SPECS: Final = {"MODELS": "model", "DATASETS": "dataset"}
REGISTRIES: Final = (*FUNCTIONS, SOURCES, *SPECS)
OWN: Final = ("grids", "workers", "orchestrator", "analysis")
SKIPPED: Final = (".pyc", ".pyo", ".pyd", ".so")


class PluginSpec(BaseModel):
    """A plug-in as a cell holds it: content, not names."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(description="of the package or module, by which its own code imports it")
    path: str = Field(description="the package's folder, or the module's file")
    digest: str = Field(description="of its source: enters the keys of cells that use it")
    provides: dict[str, tuple[str, ...]] = Field(description="registry -> names")

    def has(self, registry: str, name: object) -> bool:
        return name in self.provides.get(registry, ())


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was read.

    Attributes:
        places: (registry, name) -> `file:line`.
        models, datasets: name -> the spec's fields, paths made absolute.
    """

    spec: PluginSpec
    places: dict[tuple[str, str], str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)


def located(named: str, folder: Path) -> Path:
    """The package's folder or the module's file: beside the grid file, or installed.

    Raises `InputError` where there is neither.
    """
    tried = folder / named
    for path in (tried, tried.with_name(f"{tried.name}.py")):
        if path.is_file() and path.suffix == ".py" or (path / "__init__.py").is_file():
            return Path(os.path.abspath(path))
    if named.isidentifier() and (found := importlib.util.find_spec(named)) is not None:
        if found.origin is not None and found.origin.endswith(".py"):
            origin = Path(found.origin)
            return (origin.parent if origin.name == "__init__.py" else origin).absolute()
    raise InputError(
        f"no plug-in {named!r}: neither {tried} (a folder with __init__.py, or {tried.name}.py) "
        "nor an installed package of this name; give its path, relative to the grid file"
    )


def read(path: Path) -> Plugin:
    """What the plug-in at a path registers; none of its code runs.

    Raises `InputError`, naming file and line, for source that does not parse, a registry that is
    not a dict with written-out names, or a plug-in that registers nothing.
    """
    root = path / "__init__.py" if path.is_dir() else path
    _check_name(path)
    places: dict[tuple[str, str], str] = {}
    specs: dict[str, dict[str, dict[str, Any]]] = {registry: {} for registry in SPECS}
    for registry in REGISTRIES:
        if (found := _registry(root, path, registry)) is None:
            continue
        file, value = found
        for key, node in _entries(file, registry, value):
            places[registry, key] = f"{file}:{node.lineno}"
            if registry in SPECS:
                specs[registry][key] = _literal(file, registry, key, node, path)
    if not places:
        raise InputError(
            f"{root}: registers nothing; allowed: {listed(REGISTRIES)}, each a dict of names at "
            "the top level"
        )
    provides: dict[str, tuple[str, ...]] = {}
    for registry, name in places:
        provides[registry] = (*provides.get(registry, ()), name)
    name = path.stem if path.is_file() else path.name
    spec = PluginSpec(name=name, path=str(path), digest=digest(path), provides=provides)
    return Plugin(spec, places, specs["MODELS"], specs["DATASETS"])


def _check_name(path: Path) -> None:
    """A name that Python itself or banditgrid imports would take the other's place."""
    name = path.stem if path.is_file() else path.name
    if not name.isidentifier():
        raise InputError(f"{path}: {name!r} cannot be imported; letters, digits and _ make a name")
    if name in sys.stdlib_module_names or name in OWN:
        whose = "banditgrid's own" if name in OWN else "Python's own"
        raise InputError(f"{path}: {name!r} is {whose} package; rename the plug-in")


def digest(path: Path) -> str:
    """`sha256:` and 16 digits over names and contents of a plug-in's files, its own name left out.

    Hidden files, README and compiled code are left out: they cannot change a policy.
    """
    name = path.stem if path.is_file() else path.name
    made = hashlib.sha256()
    for file in files(path):
        inner = "" if file == path else file.relative_to(path).as_posix()
        content = file.read_bytes()
        if file.suffix == ".py":
            content = _nameless(content, name.encode())
        made.update(f"{inner} {len(content)}\n".encode() + content)
    return f"sha256:{made.hexdigest()[:16]}"


def _nameless(source: bytes, name: bytes) -> bytes:
    """Python source without its package's own name, in imports and at the head of a dotted one."""
    own = re.escape(name)
    source = re.sub(rb"(?m)^(\s*(?:from|import)\s+)" + own + rb"(?=[\s.,]|$)", rb"\1", source)
    return re.sub(rb"(?<![\w.])" + own + rb"(?=\.\w)", b"", source)


def files(path: Path) -> list[Path]:
    """All files of a plug-in that count, in the order of their names; links are followed."""
    if path.is_file():
        return [path]
    walked = os.walk(path, followlinks=True)
    found = (Path(folder, name) for folder, _, names in walked for name in names)
    return [
        file
        for file in sorted(found)
        if file.is_file()
        and not any(p.startswith((".", "__pycache__")) for p in file.relative_to(path).parts)
        and file.suffix not in SKIPPED
        and not file.name.startswith("README")
    ]


def used(specs: Iterable[PluginSpec], settings: Mapping[str, Any]) -> tuple[PluginSpec, ...]:
    """Those of which a cell with these settings uses something."""
    source = getattr(settings.get("dataset_spec"), "source", None)
    return tuple(
        spec
        for spec in specs
        if any(spec.has(registry, settings.get(name)) for registry, name in FUNCTIONS.items())
        or spec.has(SOURCES, source)
    )


def provider(specs: Iterable[PluginSpec], registry: str, name: object) -> PluginSpec | None:
    """The plug-in that has a name; None where it is one of banditgrid's own."""
    return next((spec for spec in specs if spec.has(registry, name)), None)


# ---- the syntax tree


def _registry(file: Path, root: Path, name: str, seen: int = 0) -> tuple[Path, ast.expr] | None:
    """Where a registry is written: in this file, or where in the package it is imported from."""
    found: tuple[Path, ast.expr] | None = None
    for node in _parsed(file).body:
        if isinstance(node, ast.Assign) and any(_is_name(t, name) for t in node.targets):
            found = file, node.value
        elif isinstance(node, ast.AnnAssign) and _is_name(node.target, name) and node.value:
            found = file, node.value
        elif isinstance(node, ast.ImportFrom) and any(a.name == name for a in node.names):
            module = _module(node, file, root)
            if module is None or seen > 8:
                raise InputError(
                    f"{file}:{node.lineno}: {name}: comes from outside of the plug-in, so that its "
                    "source would not be part of a cell's key; write it in the plug-in itself"
                )
            found = _registry(module, root, name, seen + 1)
    return found


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        told = getattr(error, "msg", None) or str(error)
        raise InputError(f"{file}:{line}: not valid Python: {told}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _module(node: ast.ImportFrom, file: Path, root: Path) -> Path | None:
    """The file of the plug-in that an import names; None where it is of another package."""
    if root.is_file():
        return None
    parts = node.module.split(".") if node.module else []
    if node.level:
        start = file.parent
        for _ in range(node.level - 1):
            start = start.parent
    elif parts[:1] == [root.name]:
        start, parts = root, parts[1:]
    else:
        return None
    found = start.joinpath(*parts)
    inside = found == root or root in found.parents
    choices = (found / "__init__.py", found.with_name(f"{found.name}.py"))
    return next((p for p in choices if inside and p.is_file()), None)


def _entries(file: Path, registry: str, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    told = (
        f"{registry}: the names of a plug-in are read without running it; write a dict with each "
        'name in quotes: {"name": function}'
    )
    if not isinstance(value, ast.Dict):
        raise InputError(f"{file}:{value.lineno}: {told}")
    seen: set[str] = set()
    for key, node in zip(value.keys, value.values, strict=True):
        if not (isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value):
            raise InputError(f"{file}:{node.lineno}: {told}")
        if key.value in seen:
            raise InputError(f"{file}:{key.lineno}: {registry}: {key.value!r} is there twice")
        seen.add(key.value)
        yield key.value, node


def _literal(file: Path, registry: str, name: str, node: ast.expr, root: Path) -> dict[str, Any]:
    try:
        spec = ast.literal_eval(node)
    except ValueError:
        spec = None
    if not isinstance(spec, dict) or not all(isinstance(key, str) for key in spec):
        raise InputError(
            f"{file}:{node.lineno}: {registry}: {name!r}: a spec is a dict of plain values, as "
            'under `models:` and `datasets:` of a grid file: {"path": "data/mine", ...}'
        )
    if isinstance(spec.get("path"), str):
        spec["path"] = str(((root if root.is_dir() else root.parent) / spec["path"]).resolve())
    return spec
