"""The memory of a worker: held to a cell's share, measured, and given to one start at a time.

`fence` makes PyTorch refuse what lies beyond the share, so that a cell which was predicted wrongly
fails alone and does not take its neighbours with it. Nothing here imports torch before a worker
does. Leaves out the prediction (`footprint.py`) and who shares a GPU with whom (`orchestrator`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

from grids.cell import Cell
from workers.footprint import pass_rows

# What a process takes of a GPU outside of PyTorch's allocator: the CUDA context and its libraries.
CONTEXT_BYTES = 600 * 2**20
# How PyTorch and CUDA tell it where they have no exception of its own.
TOLD = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|std::bad_alloc"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)

_share: float | None = None  # of a GPU, as this process was last told


class Memory(TypedDict):
    """Bytes; of the GPU None where there is none."""

    peak_rss_bytes: int
    peak_gpu_bytes: int | None


_others = Memory(peak_rss_bytes=0, peak_gpu_bytes=None)  # of a cell's processes beside this one


def fence(share: float | None) -> None:
    """Hold this process to a share of its GPU's memory; without a GPU nothing happens.

    The share holds the CUDA context too, which PyTorch does not count: what PyTorch may take is
    less by that. None and 1 stand for a whole GPU. To be called before each cell, for the cells of
    one process may have different shares.
    """
    global _share
    _share = share
    torch = _with_gpu()
    if torch is not None:
        torch.cuda.empty_cache()  # what the last cell left counts as taken
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(fraction(share, total))


def fraction(share: float | None, total_bytes: int) -> float:
    """The fraction of a GPU that PyTorch's allocator may take under a share."""
    whole = share is None or share >= 1
    return 1.0 if whole else max(0.01, float(share or 0) - CONTEXT_BYTES / total_bytes)


def _with_gpu() -> Any | None:
    """torch, where there is a GPU that it can use."""
    import torch

    return torch if torch.cuda.is_available() else None


class Peak:
    """The most memory that this process took since `reset`.

    Of the process's own memory it is the system's high-water mark. Where that cannot be set back
    (it needs Linux and its /proc) it is the most of the process's whole life. Of the GPU it is what
    PyTorch's allocator took from it. `read` may be called from any thread.
    """

    def __init__(self) -> None:
        self._is_marked = False

    def reset(self) -> None:
        """Begin anew."""
        global _others
        _others = Memory(peak_rss_bytes=0, peak_gpu_bytes=None)
        self._is_marked = _set_mark_back()
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()

    def read(self) -> Memory:
        """The peaks by now."""
        rss = _status("VmHWM") if self._is_marked else None
        cuda = _cuda()
        gpu = None if cuda is None else int(cuda.max_memory_reserved())
        gpu = gpu if _others["peak_gpu_bytes"] is None else _others["peak_gpu_bytes"]
        own = rss or _lifetime_peak()
        return Memory(peak_rss_bytes=own + _others["peak_rss_bytes"], peak_gpu_bytes=gpu)


def count_in(rss_bytes: int, gpu_bytes: int | None) -> None:
    """From now on the peak is also that of the processes that train this one's cell: the memory of
    all together, and of one GPU."""
    global _others
    _others = Memory(peak_rss_bytes=rss_bytes, peak_gpu_bytes=gpu_bytes)


def peak_of(pid: int) -> int:
    """The most memory that another process has taken; 0 where the system does not tell."""
    return _status("VmHWM", pid) or 0


def _set_mark_back() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def rss_bytes() -> int:
    """This process's memory now; its peak where the system does not tell."""
    return _status("VmRSS") or _lifetime_peak()


class Now(TypedDict):
    """Bytes of this process at this moment; of the GPU None where it uses none."""

    rss_bytes: int
    gpu_bytes: int | None


def now() -> Now:
    """What this process takes now; of the GPU what PyTorch's allocator holds."""
    cuda = _cuda()
    return Now(
        rss_bytes=rss_bytes(), gpu_bytes=None if cuda is None else int(cuda.memory_reserved())
    )


def _status(field: str, pid: int | str = "self") -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def _lifetime_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> Any | None:
    """torch.cuda where this process uses a GPU by now; begins no use of one.

    Another thread may be just importing torch.
    """
    with suppress(AttributeError):
        cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
        return cuda if cuda is not None and cuda.is_initialized() else None
    return None


def free_bytes() -> int | None:
    """Memory that this process could still take, of its share of a GPU or of the machine; None
    where the system does not tell."""
    torch = _with_gpu()
    if torch is None:
        return available()
    free, total = torch.cuda.mem_get_info()
    share = fraction(_share, total) * total - torch.cuda.memory_reserved()
    return int(max(0, min(free, share)))


def available() -> int | None:
    """Memory of the machine that could still be taken; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the GPU or of the machine, in this error or one that led to it."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if _tells_of_memory(found):
            return True
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return False


def _tells_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    # torch.OutOfMemoryError is a RuntimeError too, and says what it is.
    return isinstance(error, RuntimeError) and bool(TOLD.search(str(error)))


def halved(cell: Cell) -> Cell | None:
    """The cell with half the rows in a pass; None where a pass holds one row already.

    Half of what now binds: of `rows_per_pass`, of the rows of full length that the bound on a
    pass's tokens allows, or of the rows of an update. The key stays as it is.
    """
    rows = pass_rows(cell, gradient=True) // 2
    return cell.model_copy(update={"rows_per_pass": rows}) if rows else None


@contextmanager
def starting() -> Iterator[None]:
    """One engine starts at a time on a GPU that cells share: its start is when it measures, or
    takes, what is free. Without a GPU, or with one to itself, nobody waits."""
    torch = _with_gpu() if _share is not None and _share < 1 else None
    if torch is None:
        yield
        return
    with alone(str(torch.cuda.get_device_properties(0).uuid)):
        yield


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the lock of this name on this machine, among this user's processes.

    Waits for who has it; the system lets go of it when that process ends.
    """
    folder = Path(tempfile.gettempdir()) / f"banditgrid-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; delete it, or set TMPDIR")
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    with (folder / f"gpu-{safe}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
