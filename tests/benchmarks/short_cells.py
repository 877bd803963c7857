"""Many short cells: what a second of training costs beside that second.

`python -m tests.benchmarks.short_cells [CELLS]`. First 200 cells (or CELLS) of about a second on
two slots, against the floor: the cells' own seconds, measured on some of them one after the other
in one warm process, over two. Then 20 of them in a warm worker on one slot against a fresh process
for each. All share one base evaluation, which none of the measured cells makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from grids.cell import Cell
from grids.load import load_grid
from tests.benchmarks.told import COMMAND, ONE_CORE, ROOT, load, told

CELLS, ALONE, FEW, SLOTS = 200, 20, 20, 2
BASE: dict[str, Any] = {
    "batch": 16, "rounds": 14, "eval": {"every": 14, "test_questions": 64, "train_questions": 0},
}  # fmt: skip
ENDED = "  finished"  # what `run` prints after a cell's label; before that `  started`
STARTED = "  started"

WARM = """
import json, sys, time
from pathlib import Path
from grids.cell import Cell
from workers.run import run_cell
folder, shared = Path(sys.argv[1]), Path(sys.argv[2])
seconds = []
for i, line in enumerate(sys.stdin):
    began = time.perf_counter()
    run_cell(Cell.model_validate_json(line), folder / str(i), lambda progress: None, shared)
    seconds.append(time.perf_counter() - began)
print(json.dumps(seconds))
"""


def main(cells: int = CELLS) -> None:
    """Measure once and print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"\nShort cells, measured once; {load()}", flush=True)
        alone = in_one_process(cells_of(write_grid(folder, "alone", ALONE + 1)), folder)
        own = sum(alone[1:]) / ALONE  # the first loads what the others find loaded
        told("seconds of a cell alone, warm", own, "about 1")
        wall = wall_after_start(write_grid(folder, "many", cells), folder, SLOTS)
        floor = own * cells / SLOTS
        told(f"{cells} cells on {SLOTS} slots, seconds", wall)
        told("of which the floor", floor)
        told("wall over floor", wall / floor, "at most 2")
        print(f"  then: {load()}", flush=True)
        few = write_grid(folder, "few", FEW)
        warm = seconds_a_cell(few, folder) * FEW
        fresh = in_fresh_processes(cells_of(few), folder)
        told(f"{FEW} cells in a warm worker, seconds", warm)
        told(f"{FEW} cells in fresh processes, seconds", fresh)
        told("fresh over warm", fresh / warm, "at least 5")
        print(f"  then: {load()}", flush=True)


def write_grid(folder: Path, name: str, cells: int) -> Path:
    """A grid of cells that differ in their seed alone."""
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}
    grid = {"name": name, "study": name, "base": BASE, "axes": axes, "seeds": list(range(cells))}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(grid), encoding="utf-8")
    return path


def cells_of(grid: Path) -> list[Cell]:
    return list(load_grid(grid).cells())


def in_one_process(cells: list[Cell], folder: Path) -> list[float]:
    """Seconds of each cell, one after the other."""
    words = [sys.executable, "-c", WARM, str(folder / "alone"), str(folder / "shared")]
    given = "".join(cell.model_dump_json() + "\n" for cell in cells)
    made = subprocess.run(
        words, env=ONE_CORE, cwd=ROOT, check=True, input=given, stdout=subprocess.PIPE, text=True
    )
    return list(json.loads(made.stdout.splitlines()[-1]))


def timeline(grid: Path, folder: Path, slots: int) -> list[tuple[float, str]]:
    """What `run` says, and after how many seconds."""
    words = [COMMAND, "run", str(grid), "--store", str(folder / "store"), "--slots", str(slots)]
    began = time.perf_counter()
    process = subprocess.Popen(words, env=ONE_CORE, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [(time.perf_counter() - began, line) for line in process.stdout]
    if process.wait():
        raise SystemExit(f"banditgrid run failed: {''.join(line for _, line in said[-20:])}")
    return said


def wall_after_start(grid: Path, folder: Path, slots: int) -> float:
    """Seconds from the first cell's start to the last one's end."""
    said = timeline(grid, folder, slots)
    first = next(seconds for seconds, line in said if STARTED in line)
    return max(seconds for seconds, line in said if ENDED in line) - first


def seconds_a_cell(grid: Path, folder: Path) -> float:
    """On one slot, from the first cell's end to the last one's."""
    ends = [seconds for seconds, line in timeline(grid, folder, 1) if ENDED in line]
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def in_fresh_processes(cells: list[Cell], folder: Path) -> float:
    """Seconds of all of them, one after the other."""
    written = []
    for cell in cells:
        path = folder / f"{cell.key}.json"
        path.write_text(cell.model_dump_json(), encoding="utf-8")
        written.append((path, folder / "fresh" / cell.key))
    began = time.perf_counter()
    for path, directory in written:
        words = [sys.executable, "-m", "tests.benchmarks.one_cell", str(path), str(directory)]
        shared = str(folder / "shared")
        subprocess.run([*words, shared], env=ONE_CORE, cwd=ROOT, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
