"""`make bench`: what the embedded models learn, how long a round and an evaluation take, alone and
against TRL's, a real model's under each engine, and what many cells cost beside their training.

Prints each figure beside what it should be. The runs are kept in ./bench, so that a second call
measures times anew and trains nothing again. Leaves out anything that fails a build.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from analysis.intervals import mean_t
from grids import load_grid, outcome
from grids.paths import Store, read_json, read_lines
from tests.benchmarks import real_model
from tests.benchmarks.told import COMMAND, HERE, ONE_CORE, ROOT, outside_work, told

ROUND = """
import sys, time
from pathlib import Path
from grids.cell import Cell
from workers import run
cell = Cell(model="tiny-qwen2", dataset="tiny-sums", rounds=60, eval={"every": 1000})
run.run_cell(cell, Path(sys.argv[1]), lambda progress: None)
started = run._Run(cell, run.CellPaths(Path(sys.argv[1])), lambda p: None, Path(sys.argv[1]))
began = time.perf_counter()
prompts = [q.prompt_ids for q in started.questions.test]
started.engine.generate(prompts, cell.max_response)
print(len(prompts), time.perf_counter() - began)
"""


def main() -> None:
    """Measure and print."""
    learning()
    one_core()
    ratios = [sys.executable, "-m", "tests.benchmarks.ratios"]
    subprocess.run(ratios, env=ONE_CORE, check=True, cwd=ROOT)
    real_model.main()
    commands()
    for module in ("engines", "scale", "short_cells", "shell_loop"):
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{module}"], check=True, cwd=ROOT)


def learning() -> None:
    """Base Pass@1 and gain of each embedded pair over 300 rounds of (32, 1, 0) raw."""
    grid, store = load_grid(HERE / "learning.yaml"), Store(ROOT / "bench")
    words = ["run", str(HERE / "learning.yaml"), "--store", str(store.root)]
    subprocess.run([COMMAND, *words], check=True, cwd=ROOT)
    gains: dict[str, list[float]] = {}
    bases: dict[str, float] = {}
    for cell in grid.cells():
        done = read_json(store.study(grid.study).cell(cell.key).done) or {}
        base, final = (done[part][outcome.TEST_PASS] for part in ("base", "final"))
        pair = f"{cell.model} {cell.dataset}"
        bases[pair] = base
        gains.setdefault(pair, []).append(final - base)
    print(
        "\nWhat the embedded pairs learn: greedy test Pass@1, 300 rounds of (32,1,0) raw, 3 seeds"
    )
    for pair, values in gains.items():
        print(f"  {pair:22} base {bases[pair]:.3f}   gain {mean_t(values).format(3, sign=True)}")
    means = [statistics.mean(values) for values in gains.values()]
    told("bases between 0.05 and 0.7", sum(0.05 <= b <= 0.7 for b in bases.values()), "6 of 6")
    told("pairs that gain 0.05 or more", sum(mean >= 0.05 for mean in means), "at least 3 of 6")
    told("pairs that gain less than 0.02", sum(mean < 0.02 for mean in means), "1 of 6")


def one_core() -> None:
    """Seconds of a (32, 1, 0) round and of a greedy evaluation, in one process with one thread."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-c", ROUND, scratch]
        made = subprocess.run(
            words, env=ONE_CORE, check=True, cwd=ROOT, capture_output=True, text=True
        )
        lines = read_lines(Path(scratch) / outcome.TIMINGS_FILE)[5:-1]  # the last is evaluated
    rounds = [line["seconds"] for line in lines]
    questions, seconds = made.stdout.split()[-2:]
    print("\nOn one core")
    told("median seconds of a round", statistics.median(x["all"] for x in rounds), "at most 0.2")
    for phase in ("generate", "reference", "update"):
        share = sum(x[phase] for x in rounds) / sum(x["all"] for x in rounds)
        print(f"  {'of which ' + phase:42} {share:8.0%}")
    told("of which outside these", outside_work(rounds), "at most 0.2")
    told(f"greedy evaluation of {questions} questions, seconds", float(seconds), "at most 5")


def commands() -> None:
    """Seconds of the commands that people wait for."""
    paper = [str(p) for p in sorted((ROOT / "grids" / "paper").glob("*.yaml"))]
    again = ["run", str(HERE / "learning.yaml"), "--store", str(ROOT / "bench")]
    print("\nCommands")
    told("banditgrid plan grids/paper/*.yaml, seconds", timed(["plan", *paper]), "at most 3")
    told("banditgrid run of what is done, seconds", timed(again), "seconds")


def timed(words: list[str]) -> float:
    """Wall seconds of one command."""
    began = time.perf_counter()
    subprocess.run([COMMAND, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
