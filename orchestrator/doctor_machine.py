"""This machine: its GPUs and memory, and the limits that Ray meets.

PyTorch is asked in a process of its own, and only where the driver names a GPU: to import it takes
seconds. Leaves out a cluster's nodes, which run the same checks on themselves (`doctor_nodes.py`).
"""

from __future__ import annotations

import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from grids.cell import Cell
from grids.errors import InputError
from orchestrator import packing
from orchestrator.cluster import OBJECT_STORE_BYTES, cores
from orchestrator.doctor_lines import Line, fault, note, of_error, ready
from orchestrator.show import bytes_for_people
from workers.memory import available

SMI: Final = "nvidia-smi"
QUERY: Final = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
SMI_SECONDS = 10.0
FEW_FILES = 4096  # below it Ray itself warns
LITTLE_MEMORY = 2e9
UI_PORT = 5000
HERE: Final = "this machine"
CORES: Final = "cells compute on processors"


class Gpu(NamedTuple):
    """One GPU as its driver tells it; bytes."""

    name: str
    total: int
    free: int


class Gpus(NamedTuple):
    """What the driver tells, why it does not, and the memory of those that PyTorch sees."""

    found: list[Gpu]
    trouble: str = ""
    seen: Sequence[int] = ()


def gpus() -> Gpus:
    """The GPUs of the machine that this runs on."""
    if shutil.which(SMI) is None:
        return Gpus([])
    try:
        ran = subprocess.run(
            [SMI, *QUERY], capture_output=True, text=True, timeout=SMI_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpus([], f"{SMI} does not answer ({type(error).__name__})")
    if ran.returncode:
        said = (ran.stdout + ran.stderr).strip().splitlines()
        return Gpus([], f"{SMI} fails: {said[-1][:200] if said else ran.returncode}")
    found = [_gpu(line) for line in ran.stdout.splitlines() if line.count(",") == 2]
    return Gpus(found, "", packing.visible_gpus() if found else ())


def _gpu(line: str) -> Gpu:
    name, *sizes = (word.strip() for word in line.split(","))
    total, free = (int(size) * 2**20 if size.isdigit() else 0 for size in sizes)
    return Gpu(name, total, free)


def gpu_lines(
    here: Gpus, cells: Sequence[Cell], torch: str, where: str = HERE, most: int | None = None
) -> Line:
    """Whether the GPUs are what the cells need; without one it is no fault unless a grid asks.

    Args:
        here: what was found.
        cells: to be trained.
        torch: version of PyTorch, which names its build.
        where: whose GPUs these are.
        most: GPUs of one node, where `here` are those of several.
    """
    asking = [cell for cell in cells if cell.gpus is not None]
    elsewhere = "run where there are GPUs (--address)" if where == HERE else "add nodes with GPUs"
    if here.found and not here.seen:
        why = f"PyTorch {torch} sees none of them"
        remedy = "install PyTorch's build for CUDA, and look at CUDA_VISIBLE_DEVICES and the driver"
        return fault("gpu", f"{_named(here.found)}, but {why}: {CORES}", remedy)
    if here.trouble:
        remedy = "mend the driver (after its upgrade: restart the machine)"
        return (fault if asking else note)("gpu", f"{here.trouble}: {CORES}", remedy)
    if not here.found and asking:
        told = f"none, and {asking[0].label} asks for one (gpus: {asking[0].gpus:g})"
        remedy = f"{elsewhere}, or take `gpus:` out of the grid"
        return fault("gpu", told, remedy)
    if not here.found:
        remedy = f"nothing for tiny models; for real ones {elsewhere}"
        return note("gpu", f"none: {CORES}", remedy)
    return fitting(cells, here, where, most) or ready("gpu", _named(here.found))


def fitting(cells: Sequence[Cell], here: Gpus, where: str, most: int | None) -> Line | None:
    """The fault of cells that the GPUs are too few or too small for; None where all fit."""
    try:
        packing.check_nodes(cells, most or len(here.seen), where)
        packing.shares(cells, packing.Gpus(min(here.seen), max(here.seen)))
    except InputError as error:
        return of_error("gpu", error)
    return None


def _named(found: Sequence[Gpu]) -> str:
    return ", ".join(
        f"{gpu.name}, {bytes_for_people(gpu.free)} free of {bytes_for_people(gpu.total)}"
        for gpu in found
    )


def look() -> Iterator[Line]:
    """Memory, files and shared memory, and the port of `banditgrid ui`."""
    yield memory_line(available(), cores())
    yield from limit_lines()
    yield ui_line(UI_PORT)


def limit_lines() -> Iterator[Line]:
    """What a system, or a container, may hold back from Ray."""
    yield files_line(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield shared_line(shared_memory())


def memory_line(free: int | None, processors: int) -> Line:
    told = "unknown" if free is None else f"{bytes_for_people(free)} free"
    told = f"{told}, {processors} processors"
    if free is not None and free < LITTLE_MEMORY:
        return note("memory", told, "end what else runs here, or run fewer cells (--slots)")
    return ready("memory", told)


def files_line(limit: int) -> Line:
    """Ray raises its own limit as far as the hard one lets it."""
    told = "any number" if limit == resource.RLIM_INFINITY else f"{limit}"
    if limit != resource.RLIM_INFINITY and limit < FEW_FILES:
        remedy = "ulimit -n 65536 (limits.conf; for a container --ulimit nofile=65536)"
        return note("open files", f"at most {told}: Ray may lose connections", remedy)
    return ready("open files", f"at most {told}")


def shared_memory() -> int | None:
    """Free bytes of /dev/shm; None where the system has none."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def shared_line(free: int | None) -> Line:
    if free is None:
        return ready("/dev/shm", "none on this system: Ray takes the disk")
    told = f"{bytes_for_people(free)} free"
    if free < OBJECT_STORE_BYTES:
        remedy = "delete what is left there, or give the container --shm-size=1g"
        return note("/dev/shm", f"{told}: Ray takes the disk in its place, which is slower", remedy)
    return ready("/dev/shm", told)


def ui_line(port: int) -> Line:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            told = f"port {port} cannot be used ({error.strerror})"
            return note("ui", told, f"banditgrid ui --port {port + 1}")
    return ready("ui", f"port {port} is free for `banditgrid ui`")
