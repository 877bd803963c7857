"""Where cells are to run, and the share of a GPU that each takes there.

Loads neither torch nor Ray. Leaves out GPUs of a cluster's nodes, which a person tells.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from grids.cell import Cell
from grids.errors import InputError
from orchestrator import packing
from orchestrator.cost_schedule import Room
from workers.footprint import predicted_bytes


class Place(NamedTuple):
    """Where cells run; None: not told. `gpus` of 0: on processors, whatever finished runs had."""

    slots: int | None = None
    gpus: int | None = None
    gpu_bytes: int | None = None

    @property
    def kind(self) -> bool | None:
        """Whether on GPUs, where that is told."""
        return None if self.gpus is None else self.gpus > 0

    @property
    def room(self) -> Room | None:
        if self.gpus:
            return Room(self.gpus, 1.0, self.slots)
        return Room(1, float(self.slots)) if self.slots else None

    def shares(self, cells: Iterable[Cell]) -> dict[str, float]:
        """Of a GPU, by key; a whole one where neither the grid nor its memory tells.

        Raises `InputError` for a cell of more GPUs than there are, or that is predicted to need
        more memory than one has, as a run does.
        """
        if not self.gpus:
            return {}
        cells = list(cells)
        packing.check_nodes(cells, self.gpus, "the place that is planned for (see --gpus)")
        known = None if self.gpu_bytes is None else packing.Gpus(self.gpu_bytes, self.gpu_bytes)
        told = packing.shares((cell for cell in cells if _has_size(cell)), known)
        return {cell.key: cell.gpus or told.get(cell.key, 1.0) for cell in cells}


def _has_size(cell: Cell) -> bool:
    """Whether the size of the cell's model is known here."""
    try:
        predicted_bytes(cell)
    except InputError:
        return False
    return True


def place(slots: int | None, gpus: int | None, gpu_gigabytes: float | None) -> Place:
    """As the command line tells; without `gpus`: this machine. Raises `InputError`."""
    if gpu_gigabytes is not None and not gpus:
        raise InputError("--gpu-memory: is of the GPUs that --gpus counts; give --gpus too")
    if gpus is None:
        here = this_machine()
        return here if slots is None else here._replace(slots=slots)
    return Place(slots, gpus, None if gpu_gigabytes is None else int(gpu_gigabytes * 1e9))


def this_machine() -> Place:
    """Its GPUs, as their driver tells; else its cores."""
    from orchestrator.cluster import cores

    memory = _gpu_memory()
    return Place(None, len(memory), min(memory)) if memory else Place(cores())


def _gpu_memory() -> list[int]:
    """Bytes of each GPU that may be used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [p for p in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)]
    if chosen == "" or not devices or shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    if chosen:
        words.append(f"--id={chosen}")
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(word) << 20 for word in done.stdout.split() if word.isdigit()]
