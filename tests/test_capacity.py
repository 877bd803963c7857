"""orchestrator.capacity: cells at a time, by what is up or by what is told to come.

Ray's own fake provider starts nodes on this machine as they are asked for; the GPUs of its nodes
are numbers. Leaves out shares themselves (`test_packing.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grids.errors import InputError
from grids.load import load_grid
from grids.outcome import FINISHED
from grids.paths import Store, read_lines
from orchestrator.capacity import Coming, coming, held, memory, slots
from orchestrator.driver import Settings
from orchestrator.packing import Gpus
from tests import heads
from tests.conftest import ROOT

GB = 10**9
GRID = """
name: two
base: {rounds: 30, batch: 4, rollouts: 2, eval: {every: 30, test_questions: 8, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
seeds: [0, 1]
"""


def test_gpus_are_told_of_a_cluster_alone_and_memory_of_gpus() -> None:
    assert coming(None, None, None) is None
    assert coming(8, None, "auto") == Coming(8)
    assert coming(8, 24.0, "auto") == Coming(8, 24 * GB)
    with pytest.raises(InputError, match="give --gpus too"):
        coming(None, 24.0, "auto")
    with pytest.raises(InputError, match="give --address"):
        coming(8, 24.0, None)


@pytest.mark.parametrize(
    ("told", "up", "expected"),
    [
        (None, None, None),
        (None, Gpus(24, 80), Gpus(24, 80)),
        (Coming(8), None, None),
        (Coming(8), Gpus(24, 80), Gpus(24, 80)),
        (Coming(8, 40), None, Gpus(40, 40)),
        (Coming(8, 40), Gpus(24, 24), Gpus(24, 40)),  # a cell may come to lie on either
        (Coming(8, 40), Gpus(80, 80), Gpus(40, 80)),
    ],
)
def test_memory_is_that_of_gpus_that_are_up_and_to_come(
    told: Coming | None, up: Gpus | None, expected: Gpus | None
) -> None:
    assert memory(told, up) == expected


@pytest.mark.parametrize(
    ("share", "cells"), [(0.05, 160), (0.1, 80), (0.35, 16), (0.6, 8), (1.0, 8), (2.0, 4), (3.0, 2)]
)
def test_so_many_cells_lie_on_eight_gpus(share: float, cells: int) -> None:
    assert held(8, share) == cells


def test_slots_are_of_the_told_gpus_before_one_is_up() -> None:
    shares = {"a": 0.5}
    now = slots(Settings(coming=Coming(8, 24 * GB)), shares)
    assert now() == 16
    shares["b"] = 0.25  # a search asked for a smaller cell
    assert now() == 32
    assert slots(Settings(slots=3, coming=Coming(8)), shares)() == 3
    assert slots(Settings(coming=Coming(1)), {"a": 4.0})() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resources", "options", "on_gpus"),
    [
        ({"CPU": 1}, ["--slots", "2"], False),
        # Of 1 GB a cell takes more than a half: each asks for a node of its own.
        ({"CPU": 2, "GPU": 1}, ["--gpus", "2", "--gpu-memory", "1"], True),
    ],
    ids=["cpu", "gpu"],
)
def test_nodes_come_because_cells_ask_for_them(
    resources: dict[str, int], options: list[str], on_gpus: bool, tmp_path: Path
) -> None:
    """From none up, two cells train at the same time on two nodes that Ray started for them."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID, encoding="utf-8")
    store = Store(tmp_path / "store")
    node = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 3}
    with heads.started(cpus=0, workers={"worker": node}) as head:
        words = [sys.executable, "-m", "orchestrator.cli", "run", str(grid), *options]
        words += ["--address", head.address, "--store", str(store.root)]
        done = subprocess.run(
            words, env={**os.environ, **head.environment}, cwd=ROOT, timeout=300,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    cells = [store.study("default").cell(cell.key) for cell in load_grid(grid).cells()]
    one, two = sorted(
        (line for cell in cells for line in read_lines(cell.attempts)), key=lambda x: x["began"]
    )
    assert one["how"] == two["how"] == FINISHED
    assert one["node"] != two["node"] and two["began"] < one["ended"]
    assert one["gpus"] == two["gpus"]
    assert one["gpus"] is None if not on_gpus else 0.5 < one["gpus"] < 1
