"""How many cells run at a time, and the share of a GPU that each takes.

By what is up in Ray; or, on a cluster that starts its GPUs as cells ask for them, by what a person
tells is to come: such a cluster starts nothing that nobody asks for. Leaves out the shares
themselves (`packing.py`) and the GPUs that a plan is made for (`cost_place.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from grids.cell import Cell
from grids.errors import InputError
from orchestrator import packing

if TYPE_CHECKING:
    from orchestrator.driver import Settings

TOLD = "--gpus"


class Coming(NamedTuple):
    """GPUs that a cluster has, or starts as they are asked for."""

    gpus: int
    gpu_bytes: int | None = None  # of each; None: not told


def coming(gpus: int | None, gpu_gigabytes: float | None, address: str | None) -> Coming | None:
    """As the command line tells. Raises `InputError`."""
    if gpus is None:
        if gpu_gigabytes is not None:
            raise InputError("--gpu-memory: is of the GPUs that --gpus counts; give --gpus too")
        return None
    if address is None:
        raise InputError(
            "--gpus: is of a cluster that starts its GPUs as they are asked for; this machine's "
            "are all here: leave --gpus out, or give --address"
        )
    return Coming(gpus, None if gpu_gigabytes is None else int(gpu_gigabytes * 1e9))


def shares(cells: Sequence[Cell], settings: Settings) -> packing.Shares | None:
    """The share of a GPU that each cell takes, by key; None where there is no GPU, and none is
    told to come.

    Raises `InputError` for cells that no node has room for.
    """
    import ray

    told = settings.coming
    kind = "GPU" if told or ray.cluster_resources().get("GPU") else "CPU"
    there = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
    most = int(max(there, default=0))
    if kind == "CPU":
        packing.check_cores(cells, most or settings.slots or 0)  # 0: no worker is up yet
        return None
    if told is None:
        packing.check_nodes(cells, most)
    else:
        packing.check_nodes(cells, max(most, told.gpus), f"the cluster that {TOLD} tells of")
    return packing.Shares(cells, memory(told, packing.gpu_bytes()))


def memory(told: Coming | None, up: packing.Gpus | None) -> packing.Gpus | None:
    """Of the GPUs that are up and of those to come; None where neither is known."""
    if told is None or told.gpu_bytes is None:
        return up
    both = (told.gpu_bytes, *(up or ()))
    return packing.Gpus(min(both), max(both))


def slots(settings: Settings, shares: dict[str, float] | None) -> Callable[[], int]:
    """Cells at a time: as many as the GPUs hold, or one a core where there is none."""
    import ray

    def now() -> int:
        if settings.slots:
            return settings.slots
        least = min(shares.values(), default=1.0) if shares else 1.0
        if shares is not None and settings.coming:
            return max(1, held(settings.coming.gpus, least))
        there = ray.cluster_resources()  # nodes come and go
        if shares is None:
            return max(1, int(there.get("CPU", 1)))
        return max(1, int(there.get("GPU", 1) / least))

    return now


def held(gpus: int, share: float) -> int:
    """Cells of a share that so many GPUs hold: one lies on one GPU, or takes several."""
    return int(gpus / share) if share > 1 else gpus * int(1 / share + 1e-9)
