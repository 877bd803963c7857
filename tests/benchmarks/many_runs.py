"""Tables and report of 2,112 finished runs: the paper's seven grids with sixteen seeds.

`python -m tests.benchmarks.many_runs [FOLDER]` writes a synthetic store there (some minutes, once:
100 journal lines a run; 1,319 test and 500 train questions, greedy and K = 4), then measures
`banditgrid tables` and `banditgrid report` as whole processes, and reads 200 of the runs from
MLflow, once with our one paged search and once with a plain loop over its client.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from analysis.sources import StoreSource
from analysis.study import Study
from grids import outcome
from grids.cell import Cell
from grids.load import load_grids
from grids.paths import CellPaths, Store, write_json
from orchestrator.marks import is_level
from orchestrator.plan import Work
from orchestrator.register import register
from orchestrator.tracking import ensure_experiment, quiet_client
from orchestrator.writer import bring_level
from tests.benchmarks.told import COMMAND, ROOT, told

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SEEDS = 16
TEST, TRAIN, SAMPLES, POINTS = 1319, 500, 4, 100
COMPARED = 200  # runs that both ways of reading MLflow are timed on


def write_grids(folder: Path) -> list[Path]:
    """The paper's grids, widened to sixteen seeds."""
    paths = []
    for path in sorted((ROOT / "grids" / "paper").glob("*.yaml")):
        given = {"extends": str(path), "seeds": list(range(SEEDS))}
        made = folder / path.name
        made.write_text(yaml.safe_dump(given), encoding="utf-8")
        paths.append(made)
    return paths


def write_store(store: Store, grids: list[Path]) -> int:
    """Finish every cell of the grids; the number of runs."""
    cells: dict[str, Cell] = {}
    for grid in load_grids(grids):
        store.study(grid.study).directory.mkdir(parents=True, exist_ok=True)
        register(grid, {cell.key: cell for cell in grid.cells()}, store)
        cells |= {cell.key: cell for cell in grid.cells()}
    began = time.monotonic()
    for i, (key, cell) in enumerate(cells.items()):
        paths = store.study("paper").cell(key)
        if not paths.done.exists():
            finish(cell, paths)
        if i % 200 == 0:
            print(f"  {i} of {len(cells)} runs, {time.monotonic() - began:.0f} s", flush=True)
    return len(cells)


def finish(cell: Cell, paths: CellPaths) -> None:
    """Leave what a worker leaves, its numbers drawn."""
    rng = np.random.default_rng(int(cell.key, 16))
    paths.directory.mkdir(parents=True, exist_ok=True)
    skill = np.random.default_rng(int(cell.arm_key, 16)).normal(0.2, 0.1) + rng.normal(0, 0.05)
    columns, means = answers(cell, rng, skill)
    pq.write_table(pa.table(columns), paths.outcomes, compression="zstd")
    every = cell.rounds // POINTS
    lines = [{"round": 0, **means["base"]}]
    lines += [{"round": i * every, **line(rng, i)} for i in range(1, POINTS)]
    lines += [{"round": cell.rounds, **line(rng, POINTS), **means["final"]}]
    paths.journal.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    seconds = {"generate": 1.0, "update": 1.0, "all": 2.0}
    timings = ({"round": x["round"], "attempt": 1, "seconds": seconds} for x in lines[1:])
    paths.timings.write_text("".join(json.dumps(x) + "\n" for x in timings), encoding="utf-8")
    paths.cell.write_text(cell.model_dump_json(), encoding="utf-8")
    write_json(paths.provenance, {"device": "cpu", "versions": {"torch": "2.13.0"}})
    done = {"key": cell.key, "eval_key": cell.eval_key, "rounds": cell.rounds, "reason": None}
    done |= {"status": "finished", "diverged_round": None, **means}
    done |= {"generated_tokens": 8000 * POINTS, "updates": POINTS}
    write_json(paths.done, done)


def line(rng: np.random.Generator, point: int) -> dict[str, float]:
    """One line of a journal, with a greedy evaluation."""
    names = [
        outcome.REWARD, outcome.REWARD_SD, outcome.PARSED, outcome.TRUNCATED, outcome.KL,
        outcome.GRAD_NORM, outcome.LOSS, outcome.RESPONSE_TOKENS, outcome.CORRECT, outcome.ENTROPY,
        outcome.GROUPS_MIXED, outcome.GROUPS_ALL_RIGHT, outcome.GROUPS_ALL_WRONG,
    ]  # fmt: skip
    made = dict(zip(names, rng.random(len(names)).tolist(), strict=True))
    made |= {outcome.GENERATED_TOKENS: 8000.0, outcome.TRAINED_TOKENS: 4000.0, outcome.UPDATES: 1.0}
    scores = {outcome.TEST_PASS: 0.3 + 0.003 * point, outcome.TRAIN_PASS: 0.3 + 0.004 * point}
    return made | {outcome.GROUP_SIZE: 8.0} | scores


def answers(cell: Cell, rng: np.random.Generator, skill: float) -> tuple[dict, dict]:
    """Columns of outcomes.parquet, and the means that they come to."""
    parts: list[dict] = []
    means: dict[str, dict[str, float]] = {"base": {}, "final": {}}
    for phase, split, decoding in EVALUATIONS:
        questions = TEST if split == "test" else TRAIN
        samples = SAMPLES if decoding else 1
        fixed = np.random.default_rng([questions, len(cell.model), len(cell.dataset)])
        easy_Q = fixed.normal(0, 2.5, questions) - 1 + (skill if phase == "final" else 0)
        right = rng if phase == "final" else fixed
        correct = right.random((questions, samples)) < 1 / (1 + np.exp(-easy_Q))[:, None]
        suffix = outcome.SAMPLED_SUFFIX if decoding else ""
        means[phase][f"{split}/pass_at_1{suffix}"] = float(correct.mean())
        count = questions * samples
        parts.append({
            "phase": np.full(count, phase), "split": np.full(count, split),
            "round": np.full(count, 0 if phase == "base" else cell.rounds),
            "decoding": np.full(count, "sampled" if decoding else "greedy"),
            "question": np.repeat(NAMES[split], samples),
            "sample": np.tile(np.arange(samples), questions),
            "correct": correct.ravel().astype(float),
        })  # fmt: skip
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = len(columns["round"])
    columns |= {"parsed": np.ones(rows, bool), "truncated": np.zeros(rows, bool)}
    text = rng.integers(0, 10**9, rows).astype(str)  # stands for completions: read by nobody
    return columns | {"tokens": np.full(rows, 100), "completion": text}, means


EVALUATIONS = [
    (phase, split, decoding)
    for phase in ("base", "final") for decoding in (False, True) for split in ("test", "train")
]  # fmt: skip
NAMES = {
    "test": np.array([f"{i:016x}" for i in range(TEST)]),
    "train": np.array([f"{i:016x}" for i in range(10**6, 10**6 + TRAIN)]),
}


def commands(store: Store, grids: list[Path], out: Path) -> None:
    """Wall seconds and peak memory of the two commands."""
    words = [*map(str, grids), "--store", str(store.root)]
    for name, least in (("tables", "at most 20"), ("report", "at most 60")):
        target = out / ("tables" if name == "tables" else "report.html")
        seconds, gigabytes = measured([name, *words, "--no-log", "--out", str(target)])
        told(f"banditgrid {name}, seconds", seconds, least)
        told(f"banditgrid {name}, peak GB", gigabytes, "at most 2")


def measured(words: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident gigabytes of one command, its output discarded."""
    began = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen([COMMAND, *words], cwd=ROOT, stdout=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"banditgrid {words[0]} failed: {status}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9


# ---- MLflow


def against_a_loop(store: Store, folder: Path, cells: Sequence[Cell]) -> None:
    """Reading runs from MLflow into a frame: one paged search, and a loop over the client."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = quiet_client(uri)
    experiment = ensure_experiment(client, "paper")
    for cell in cells:
        work = Work("paper", cell, ("many",), outcome.FINISHED)
        if not is_level(work, work.paths(store), uri):
            bring_level(work, work.paths(store), uri, experiment)
    seconds, frame = timed(lambda: Study.open(uri, "paper").runs())
    loop_seconds, rows = timed(lambda: loop(client, experiment))
    told(f"a loop over MLflow's client, {len(rows)} runs, s", loop_seconds)
    told(f"our one search, {len(frame)} runs, seconds", seconds)
    told("the loop over ours", loop_seconds / seconds, "at least 10")
    source = StoreSource(store.study("paper"))
    seconds, _ = timed(lambda: [source.run(cell) for cell in cells])
    told(f"from the store, {len(cells)} runs, seconds", seconds)


def loop(client: MlflowClient, experiment: str) -> list[dict[str, Any]]:
    """What a script does: every metric of every run, one by one."""
    rows = []
    for run in client.search_runs([experiment], max_results=50000):
        histories = {
            name: [point.value for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        rows.append(
            {**run.data.params, **run.data.tags, **{k: v[-1] for k, v in histories.items()}}
        )
    return rows


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of some work, and what it made."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def main() -> None:
    """Write, measure, compare."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench" / "many"
    folder.mkdir(parents=True, exist_ok=True)
    grids, store = write_grids(folder), Store(folder / "store")
    print(f"{write_store(store, grids)} runs")
    commands(store, grids, folder)
    against_a_loop(store, folder, load_grids(grids)[0].cells()[:COMPARED])


if __name__ == "__main__":
    main()
