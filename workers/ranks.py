"""The processes of one cell: which of them this is, and what they tell each other.

A cell of `gpus: N` is N processes of one machine that run the same code over the same data. Each
keeps a share of the weights (`sharding.py`), generates a share of the responses and takes a share
of an update's passes; everything else each computes whole, from what was gathered in their order.
The first alone grades, writes and decides (`told`). In the one process of any other cell there is
nobody to tell and nothing is shared.

Leaves out how the processes are started and ended (`crew.py`). Imports no torch until one joins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from grids.errors import InputError
from workers.lease import FOLDER, UNKNOWN, inode
from workers.writing import Lost, Writing

if TYPE_CHECKING:
    import numpy as np

    from grids.paths import CellPaths
    from workers.engine import Engine, Response

T = TypeVar("T")
R = TypeVar("R")
# In which all must have come to where they wait for each other: the slowest share of a generation,
# or the first's writing of a checkpoint to a store that is slow.
WAITING, WAIT_SECONDS = "BANDITGRID_RANK_SECONDS", 1800.0
MOST_SECONDS = 1e6


@dataclass(frozen=True)
class Here:
    """This process among those of its cell."""

    rank: int = 0
    count: int = 1


_here = Here()


def here() -> Here:
    """This process: the only one, where none has joined."""
    return _here


def is_first() -> bool:
    """Whether this process is the one that grades, writes and decides."""
    return _here.rank == 0


def wait_seconds() -> float:
    """How long processes wait for each other. Raises `InputError` where what is set is no such
    number."""
    text = os.environ.get(WAITING, "").strip() or str(WAIT_SECONDS)
    with suppress(ValueError):
        if 0 < (seconds := float(text)) <= MOST_SECONDS:
            return seconds
    raise InputError(
        f"{WAITING}: seconds that the processes of a cell wait for each other; got {text!r}; "
        f"give a number above 0 and at most {MOST_SECONDS:g}, or unset it for {WAIT_SECONDS:g}"
    )


def join(rank: int, count: int, meeting: Path) -> None:
    """Take part in a cell of `count` processes, which meet at a file that does not exist yet.

    To be called before anything uses a GPU; of those, each process sees one alone.
    """
    global _here
    import torch
    import torch.distributed as dist

    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if Path("/sys/class/net/lo").exists():  # one machine's own: nobody else can join
            os.environ.setdefault(name, "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=count,
        timeout=timedelta(seconds=wait_seconds()),
    )  # fmt: skip
    _here = Here(rank, count)


def leave() -> None:
    """Be one process again."""
    global _here
    if _here.count > 1:
        import torch.distributed as dist

        dist.destroy_process_group()
    _here = Here()


# ---- telling


def gathered(value: T) -> list[T]:
    """Every process's value, in their order."""
    if _here.count == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _here.count
    dist.all_gather_object(found, value)
    return found


def told(make: Callable[[], T]) -> T:
    """What the first makes; the others are told, and do not make it."""
    if _here.count == 1:
        return make()
    import torch.distributed as dist

    held = [make() if is_first() else None]
    dist.broadcast_object_list(held, src=0)
    return held[0]  # type: ignore[return-value]


def shared(items: Sequence[T], work: Callable[[slice], list[R]]) -> list[R]:
    """Results for all items, in their order, of which this process makes those of its part."""
    part = _part(len(items))
    made = work(part) if part.stop > part.start else []
    return list(chain.from_iterable(gathered(made)))


def _part(count: int) -> slice:
    """Of so many items the neighbours that are this process's; parts differ by one at most."""
    each, more = divmod(count, _here.count)
    start = _here.rank * each + min(_here.rank, more)
    return slice(start, start + each + (_here.rank < more))


class SharedEngine:
    """An engine in each process, of which each answers its part of the prompts."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.policy = engine, engine.policy

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        uniforms_R_T: np.ndarray | None = None,
        temperature: float = 1.0,
    ) -> list[Response]:
        """See `Engine.generate`; each process gets all answers."""
        from workers.sharding import whole

        def answers(part: slice) -> list[Response]:
            numbers = None if uniforms_R_T is None else uniforms_R_T[part]
            return self._engine.generate(prompts[part], max_tokens, numbers, temperature)

        with whole(self.policy.model):
            return shared(prompts, answers)


def sharing(engine: Engine) -> Engine:
    """The engine of a process that answers with all others of its cell, or alone."""
    return SharedEngine(engine) if _here.count > 1 else engine


# ---- writing


class Lent(Writing):
    """The lease of the process that started this one, which keeps it. It belongs to the first: what
    the others would write under it is not written."""

    def __init__(self, paths: CellPaths, epoch: int) -> None:
        self.paths, self.epoch = paths, epoch
        self.folder = paths.directory / f"{FOLDER}{epoch}"
        self._inode = inode(self.folder)

    def check(self) -> None:
        """Raise `Lost` where the lease is gone."""
        if inode(self.folder) not in (self._inode, UNKNOWN):
            raise Lost(f"the lease of {self.paths.directory} was taken over by another worker")

    def patiently(self, attempt: Callable[[], T], path: Path) -> T:
        """See `Writing`; every write goes this way."""
        if not is_first():
            return None  # type: ignore[return-value]
        return super().patiently(attempt, path)
