"""Cells on GPUs: which fraction of one each cell takes, from the memory that it is predicted to.

A cell's own `gpus`, or its model's, goes before the prediction. A fraction is of the smallest GPU
of the cluster, for Ray may place a cell on any. Leaves out the prediction (`workers.footprint`) and
holding a worker to its fraction (`workers.memory`).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from grids.cell import Cell
from grids.errors import InputError
from workers.footprint import Predicted, predicted_bytes
from workers.memory import CONTEXT_BYTES

# What PyTorch's allocator cannot use for fragments, as a share of what is predicted.
MARGIN = 0.15
SEVERAL = (2, 4, 8)  # GPUs that nodes have
STEPS = 20  # a fraction is a whole number of these: 0.05, which is the smallest too
LARGEST_NODE = "the largest node of the cluster"
NODE_SECONDS = 120.0  # in which a node has to tell its GPUs' memory


class Gpus(NamedTuple):
    """Memory of a cluster's GPUs, bytes."""

    smallest: int
    largest: int


class Shares(dict[str, float]):
    """The fraction of a GPU that each cell takes, or how many GPUs, by key."""

    def __init__(self, cells: Iterable[Cell], gpus: Gpus | None) -> None:
        super().__init__(shares(cells, gpus))
        self._gpus = gpus

    def of(self, cell: Cell) -> float:
        """A cell's; a search may ask for one that was not there before."""
        if cell.key not in self:
            self |= shares([cell], self._gpus)
        return self[cell.key]


def shares(cells: Iterable[Cell], gpus: Gpus | None) -> dict[str, float]:
    """The fraction of a GPU that each cell takes, by key: 0.05 to 1, in steps of 0.05. Of several
    GPUs a cell takes only what it asks for itself.

    Where it is not known what the GPUs hold (`gpus` is None), a cell that does not say takes one
    whole. The CUDA context of a cell's process and `MARGIN` are counted in.

    Raises `InputError` for the cells that are predicted to need more than one GPU: one message,
    naming the one that needs most.
    """
    taken: dict[str, float] = {}
    too_large: list[tuple[Predicted, Cell]] = []
    for cell in cells:
        if cell.gpus is not None or gpus is None:
            taken[cell.key] = 1.0 if cell.gpus is None else cell.gpus
            continue
        predicted = predicted_bytes(cell)
        if predicted.peak + CONTEXT_BYTES > gpus.smallest:
            too_large.append((predicted, cell))
        taken[cell.key] = share(predicted.peak, gpus.smallest)
    if too_large and gpus is not None:
        raise InputError(_too_large(too_large, gpus))
    return taken


def share(peak_bytes: int, gpu_bytes: int) -> float:
    """The fraction of a GPU for so much memory, with its margin; at most the whole."""
    needed = peak_bytes * (1 + MARGIN) + CONTEXT_BYTES
    return min(STEPS, math.ceil(needed / gpu_bytes * STEPS)) / STEPS


def _too_large(found: Sequence[tuple[Predicted, Cell]], gpus: Gpus) -> str:
    predicted, cell = max(found, key=lambda pair: pair[0].peak)
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    smallest = f" and the smallest {_gb(gpus.smallest)}" if gpus.smallest != gpus.largest else ""
    return (
        f"cell {cell.label}{others}: is predicted to need {_gb(predicted.peak + CONTEXT_BYTES)} of "
        f"a GPU; the cluster's largest has {_gb(gpus.largest)}{smallest}, and a cell must fit on "
        f"any; lower {', '.join(_lower(predicted, cell))}, {_several(cell, gpus)}or give `gpus: 1` "
        "to try it all the same"
    )


def _several(cell: Cell, gpus: Gpus) -> str:
    """Advice to spread a cell over GPUs of one node, where a few would hold it."""
    for less, told in (({}, ""), ({"gradient_checkpointing": True}, " and gradient_checkpointing")):
        for count in SEVERAL:
            spread = predicted_bytes(cell.model_copy(update={"gpus": float(count), **less}))
            if spread.peak * (1 + MARGIN) + CONTEXT_BYTES <= gpus.smallest:
                return f"give `gpus: {count}`{told} to spread it over GPUs of one node, "
    return ""


def check_nodes(cells: Iterable[Cell], most: int, where: str = LARGEST_NODE) -> None:
    """Raise `InputError` where cells ask for more GPUs than the `most` that one node has: Ray would
    wait for such a node without an end."""
    asking = [cell for cell in cells if cell.processes > most]
    if asking and max(cell.processes for cell in asking) > 1:
        cell = max(asking, key=lambda cell: cell.processes)
        others = f" (and {len(asking) - 1} more)" if len(asking) > 1 else ""
        raise InputError(
            f"cell {cell.label}{others}: gpus: {cell.processes}, but {where} has {most}; a cell's "
            "GPUs are of one node: lower gpus, or take a larger node"
        )


def check_cores(cells: Iterable[Cell], most: int) -> None:
    """`check_nodes` where there is no GPU: each process of a cell takes a core."""
    largest = max(cells, key=lambda cell: cell.processes, default=None)
    if largest is not None and 1 < largest.processes > most:
        raise InputError(
            f"cell {largest.label}: gpus: {largest.processes}, and without a GPU each of its "
            f"processes takes a core (with --slots, a slot), of which there are {most} on a node; "
            "lower gpus, or run where there are GPUs"
        )


def _lower(predicted: Predicted, cell: Cell) -> list[str]:
    """The settings that take most memory in this cell, as advice."""
    advice = ["max_prompt or max_response"]
    if predicted.gradients + predicted.activations > predicted.generation:
        advice.insert(0, "rows_per_pass")
        if not cell.gradient_checkpointing:
            advice.append("turn gradient_checkpointing on")
    if predicted.engine:
        advice.append("take `engine: transformers`")
    if predicted.reference:
        advice.append("turn the kl off")
    return advice


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def gpu_bytes() -> Gpus | None:
    """Memory of the GPUs of the Ray cluster that this process is connected to.

    One small task on each node that has any asks there; a node that does not answer in time, or
    on which PyTorch sees no GPU, is left out. None where no GPU is found.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(visible_gpus)
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]
    if not nodes:
        return None
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=NODE_SECONDS)
    found = [total for answer in answered for total in _told(ray, answer)]
    return Gpus(min(found), max(found)) if found else None


def _told(ray: Any, answer: Any) -> list[int]:
    try:
        told: list[int] = ray.get(answer)
    except ray.exceptions.RayError:  # the node is gone
        return []
    return told


def visible_gpus() -> list[int]:
    """Memory of each GPU of this machine, bytes.

    Asked in a process of its own: Ray hides GPUs from tasks that take none, and a process that has
    once used a GPU keeps some of its memory.
    """
    program = (
        "import torch; n = torch.cuda.device_count()\n"
        "print(*(torch.cuda.mem_get_info(i)[1] for i in range(n)))"
    )
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES" or v}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env
    )
    words = done.stdout.split() if done.returncode == 0 else []
    return [int(word) for word in words if word.isdigit()]
