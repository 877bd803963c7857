"""Functions by name: banditgrid's own, and those of the plug-ins that a cell uses.

A plug-in is imported where a cell first needs it, from the path that the cell names, after its
source was found to be what the plan saw. What its functions return is checked at every call: a
wrong shape or a NaN ends the cell with one message, and is never trained on. Leaves out reading a
plug-in without running it (`grids.plugin`).
"""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grids.cell import Cell
from grids.errors import InputError
from grids.plugin import PluginSpec, digest, provider

if TYPE_CHECKING:
    import torch  # a driver that reads a plug-in's questions does without

_loaded: dict[str, tuple[str, ModuleType]] = {}  # name -> digest, module


def function(cell: Cell, registry: str, name: str) -> Callable[..., Any]:
    """The function of this name in a registry: the cell's plug-in's, or banditgrid's own.

    Raises `InputError`, naming plug-in, file and host, where a plug-in cannot be imported, is not
    what the plan saw, or lacks the function; the function raises it for what it must not return.
    """
    spec = provider(cell.plugin_specs, registry, name)
    if spec is None:
        own: Callable[..., Any] = _own(registry)[name]
        return own
    return _checked(spec, registry, name)


def function_of(spec: PluginSpec, registry: str, name: str) -> Callable[..., Any]:
    """A plug-in's function; its errors are as `function` tells them."""
    return _checked(spec, registry, name)


def _own(registry: str) -> dict[str, Callable[..., Any]]:
    if registry == "ADVANTAGES":
        from workers.advantages import ADVANTAGES

        return ADVANTAGES
    if registry == "REWARDS":
        from workers.rewards import REWARDS

        return REWARDS
    if registry == "GRADERS":
        from workers.grading import GRADERS

        return GRADERS
    from workers import losses

    found: dict[str, Callable[..., Any]] = getattr(losses, registry)
    return found


def module(spec: PluginSpec) -> ModuleType:
    """The plug-in, imported; another version that this process had is let go."""
    known = _loaded.get(spec.name)
    if known is not None and known[0] == spec.digest:
        return known[1]
    path = Path(spec.path)
    if not path.exists():
        raise InputError(
            f"plug-in {spec.name}: no {path} on host {socket.gethostname()}; keep it where every "
            "worker sees it, or send it with `banditgrid submit`"
        )
    if digest(path) != spec.digest:
        raise InputError(
            f"plug-in {spec.name}: {path} has changed since the plan was made; run again, and "
            "cells of the new source are planned"
        )
    _loaded[spec.name] = spec.digest, _imported(spec, path)
    return _loaded[spec.name][1]


def _imported(spec: PluginSpec, path: Path) -> ModuleType:
    for name in [n for n in sys.modules if n == spec.name or n.startswith(f"{spec.name}.")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    before = sys.dont_write_bytecode, list(sys.path)
    sys.dont_write_bytecode = True  # an old cache in the store would be read for an edited file
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(spec.name)
    except Exception as error:  # anybody's code
        raise InputError(
            f"plug-in {spec.name} cannot be imported on host {socket.gethostname()} "
            f"({path}): {type(error).__name__}: {error}; mend it, or install what it needs there"
        ) from error
    finally:
        sys.dont_write_bytecode, sys.path[:] = before[0], before[1]


def _checked(spec: PluginSpec, registry: str, name: str) -> Callable[..., Any]:
    made = getattr(module(spec), registry, {}).get(name)
    where = f"plug-in {spec.name} ({spec.path}): {registry}[{name!r}]"
    if not callable(made):
        raise InputError(f"{where} is {made!r}; expected a function")
    if registry == "GRADERS":
        return _grading(made, where)
    if registry in ("ADVANTAGES", "LOSSES", "AGGREGATIONS", "KLS"):
        return _over_tensors(made, where, masked=registry == "ADVANTAGES")
    checked: Callable[..., Any] = made
    return checked


def _over_tensors(
    call: Callable[..., Any], where: str, masked: bool
) -> Callable[..., torch.Tensor]:
    """The function, its result of its first argument's shape and finite: an advantage where its
    mask (the second argument) is True, all else everywhere."""
    import torch

    def checked(*given: Any, **named: Any) -> torch.Tensor:
        try:
            made = call(*given, **named)
        except InputError:
            raise
        except Exception as error:  # anybody's code
            raise InputError(f"{where} raised {type(error).__name__}: {error}") from error
        expected = tuple(given[0].shape)
        if not isinstance(made, torch.Tensor) or tuple(made.shape) != expected:
            got = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise InputError(f"{where} returned {got}; expected a tensor of shape {expected}")
        if not made.is_floating_point():
            raise InputError(f"{where} returned {made.dtype}; expected floating-point numbers")
        counted = made[given[1]] if masked else made
        if not counted.isfinite().all():
            bad = int((~counted.isfinite()).sum())
            raise InputError(
                f"{where} returned {bad} of {counted.numel()} values that are NaN or infinite; "
                "every value must be finite"
            )
        return torch.where(given[1], made, 0.0) if masked else made

    return checked


def _grading(call: Callable[..., Any], where: str) -> Callable[..., Any]:
    def checked(completion: str, gold: str) -> Any:
        from workers.grading import Grade

        made = call(completion, gold)
        if not isinstance(made, Grade):
            raise InputError(f"{where} returned {made!r}; expected a workers.grading.Grade")
        return made

    return checked
