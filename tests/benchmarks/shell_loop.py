"""The demo's cells through banditgrid on two slots, against a shell loop of training scripts.

`python -m tests.benchmarks.shell_loop [--cells N]`: the loop trains the same cells one after the
other, a process of one thread each, on the same two cores; N cells are rounded up to whole seeds.
Both times are of whole commands, the start of Ray and MLflow's database among them; the loop's
cells share their base evaluations, as banditgrid's do. Journals, outcomes and weights must be equal
to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from grids import outcome
from grids.cell import Cell
from grids.load import load_grid
from grids.paths import CellPaths, Store
from tests.benchmarks.told import COMMAND, ONE_CORE, ROOT, load, told

DEMO = ROOT / "grids" / "demo.yaml"
SLOTS = 2
LOOP = """
for cell in "$1"/cells/*.json; do
    key=$(basename "$cell" .json)
    "$0" -m tests.benchmarks.one_cell "$cell" "$1/loop/$key" "$1/shared" || exit 1
done
"""


def main(cells: int | None = None) -> None:
    """Measure once and print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = write_grid(folder, cells)
        grid, store = load_grid(path), Store(folder / "store")
        print(f"\n{len(grid.cells())} of the demo's cells, measured once; {load()}", flush=True)
        words = [COMMAND, "run", str(path), "--store", str(store.root), "--slots", str(SLOTS)]
        ours = seconds_of(words)
        told(f"banditgrid run on {SLOTS} slots, seconds", ours)
        print(f"  then: {load()}", flush=True)
        write_cells(folder, grid.cells())
        loop = seconds_of(["sh", "-c", LOOP, sys.executable, str(folder)])
        told("a shell loop, seconds", loop)
        told("banditgrid over the loop", ours / loop, "at most 0.55")
        print(f"  then: {load()}", flush=True)
        study = store.study(grid.study)
        unequal = [
            f"{cell.label}: {name}" for cell in grid.cells()
            for name in differing(study.cell(cell.key), CellPaths(folder / "loop" / cell.key))
        ]  # fmt: skip
        told("files that differ", len(unequal), "0")
        print("".join(f"    {name}\n" for name in unequal), end="")


def write_grid(folder: Path, cells: int | None) -> Path:
    """The demo's grid, or its first seeds with at least so many cells."""
    demo = load_grid(DEMO)
    a_seed = len(demo.cells()) // len(demo.seeds)
    seeds = demo.seeds if cells is None else demo.seeds[: -(-cells // a_seed)]
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump({"extends": str(DEMO), "seeds": seeds}), encoding="utf-8")
    return path


def write_cells(folder: Path, cells: tuple[Cell, ...]) -> None:
    (folder / "cells").mkdir()
    for cell in cells:
        path = folder / "cells" / f"{cell.key}.json"
        path.write_text(cell.model_dump_json(), encoding="utf-8")


def seconds_of(words: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(words, env=ONE_CORE, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def differing(ours: CellPaths, theirs: CellPaths) -> list[str]:
    """Names of a cell's results that are not the same bytes."""
    names = [outcome.JOURNAL_FILE, outcome.OUTCOMES_FILE]
    names += [
        str(p.relative_to(theirs.directory)) for p in theirs.checkpoint.rglob("*.safetensors")
    ]
    assert len(names) > 2, f"no weights in {theirs.directory}"
    return [n for n in names if digest(ours.directory / n) != digest(theirs.directory / n)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "absent"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int)
    main(parser.parse_args().cells)
