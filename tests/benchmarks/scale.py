"""A study of 10,000 cells of which 9,000 are done: `plan`, `status`, and `run` to its first trial.

`python -m tests.benchmarks.scale [FOLDER]` writes a synthetic store there (a minute or two, once:
100 journal lines a cell, graded answers to 500 questions, and a run of MLflow each, as a worker
leaves them), then measures each command as a process of its own: wall seconds, and the peak memory
of that process alone. `run` is stopped as soon as it says that a cell started; what Ray's own
processes and the workers take is no part of its memory. Leaves out what a round costs.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from grids import outcome
from grids.cell import Cell
from grids.grid import Grid
from grids.load import load_grid
from grids.paths import CellPaths, Store, write_json
from orchestrator import marks, tracking
from orchestrator.register import register
from tests.benchmarks.many_runs import line
from tests.benchmarks.told import COMMAND, ONE_CORE, ROOT, load, told

STUDY, SEEDS, DONE_SEEDS, POINTS, QUESTIONS = "scale", 100, 90, 100, 500
GRID: dict[str, Any] = {
    "name": "scale",
    "study": STUDY,
    "base": {"rounds": POINTS, "rollouts": 4, "batch": 8, "eval": {"every": 50}},
    "axes": {
        "model": ["tiny-qwen2", "tiny-llama"],
        "dataset": ["tiny-sums"],
        "lr": [round(1e-6 * 1.2**i, 10) for i in range(25)],
        "advantage": ["raw", "grpo"],
    },
    "seeds": list(range(SEEDS)),
    "contrasts": [
        {"name": "grpo", "a": {"advantage": "raw"}, "b": {"advantage": "grpo"}, "family": "all"},
        {
            "name": "rate", "family": "all", "with": {"advantage": "raw"},
            "a": {"lr": 1e-6}, "b": {"lr": round(1e-6 * 1.2**24, 10)},
        },
    ],
}  # fmt: skip
VARIANTS = 16  # journals that differ
STARTING = "starting Ray"  # how the line of `run` begins, and what it prints after a cell's label
STARTED = "  started"


# ---- the store


def write_store(folder: Path) -> Path:
    """The grid's file; beside it, once, the store with its finished cells."""
    path, ready = folder / "scale.yaml", folder / "ready"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(GRID), encoding="utf-8")
    if ready.exists():
        return path
    grid, store = load_grid(path), Store(folder / "store")
    began = time.monotonic()
    store.study(STUDY).directory.mkdir(parents=True, exist_ok=True)
    register(grid, {cell.key: cell for cell in grid.cells()}, store)
    done = [cell for cell in grid.cells() if cell.seed < DONE_SEEDS]
    runs = write_runs(grid, store, done)
    journals = [journal(np.random.default_rng(i)) for i in range(VARIANTS)]
    for i, cell in enumerate(done):
        finish(cell, store, journals[i % VARIANTS], runs[cell.key])
        if i % 1000 == 0:
            print(f"  {i} of {len(done)} cells, {time.monotonic() - began:.0f} s", flush=True)
    ready.touch()
    return path


def journal(rng: np.random.Generator) -> list[dict[str, float]]:
    """The lines of one cell."""
    base = {"round": 0, outcome.TEST_PASS: 0.3, outcome.TRAIN_PASS: 0.3}
    return [base, *({"round": i, **line(rng, i)} for i in range(1, POINTS + 1))]


def finish(cell: Cell, store: Store, lines: list[dict[str, float]], run_id: str) -> None:
    """Leave what a worker leaves."""
    paths = store.study(STUDY).cell(cell.key)
    paths.directory.mkdir(parents=True, exist_ok=True)
    paths.journal.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    seconds = {"generate": 1.0, "update": 1.0, "all": 2.0}
    timings = ({"round": x["round"], "attempt": 1, "seconds": seconds} for x in lines[1:])
    paths.timings.write_text("".join(json.dumps(x) + "\n" for x in timings), encoding="utf-8")
    paths.cell.write_text(cell.model_dump_json(), encoding="utf-8")
    paths.provenance.write_text('{"device": "cpu"}', encoding="utf-8")
    write_answers(cell, paths)
    done = {"key": cell.key, "eval_key": cell.eval_key, "rounds": cell.rounds, "reason": None}
    done |= {"status": outcome.FINISHED, "diverged_round": None, "updates": POINTS}
    done |= {"base": scores(lines[0]), "final": scores(lines[-1]), "generated_tokens": 800_000}
    paths.done.write_text(json.dumps(done), encoding="utf-8")
    mark = {"place": marks.place(store.tracking_uri), "run_id": run_id, "round": cell.rounds}
    write_json(
        marks.mark_path(paths), mark | {"done": marks.mark_of_done(paths), "grids": [GRID["name"]]}
    )


def scores(line: dict[str, float]) -> dict[str, float]:
    return {name: line[name] for name in (outcome.TEST_PASS, outcome.TRAIN_PASS)}


def write_answers(cell: Cell, paths: CellPaths) -> None:
    """The test set's answers by the base and the final policy."""
    rng = np.random.default_rng(int(cell.key, 16))
    both, rows = ("base", "final"), 2 * QUESTIONS
    columns = {
        "phase": np.repeat(both, QUESTIONS), "round": np.repeat([0, cell.rounds], QUESTIONS),
        "split": np.full(rows, "test"), "decoding": np.full(rows, "greedy"),
        "question": np.tile([f"{i:016x}" for i in range(QUESTIONS)], 2),
        "sample": np.zeros(rows, int), "correct": (rng.random(rows) < 0.5).astype(float),
        "parsed": np.ones(rows, bool), "truncated": np.zeros(rows, bool),
        "tokens": np.full(rows, 10), "completion": np.full(rows, "#### 1"),
    }  # fmt: skip
    pq.write_table(pa.table(columns), paths.outcomes, compression="zstd")


def write_runs(grid: Grid, store: Store, cells: list[Cell]) -> dict[str, str]:
    """Cell key -> the id of its finished run; rows written at once, for its client takes hours."""
    from mlflow.store.tracking.dbmodels.models import SqlParam, SqlRun, SqlTag
    from sqlalchemy import create_engine, insert

    client = tracking.quiet_client(store.tracking_uri)
    experiment = tracking.ensure_experiment(client, STUDY)
    ids = {cell.key: f"{i:032x}" for i, cell in enumerate(cells)}
    shared = {
        "experiment_id": int(experiment), "status": "FINISHED", "lifecycle_stage": "active",
        "source_type": "UNKNOWN", "start_time": tracking.START_MS, "user_id": "",
        "artifact_uri": str(store.root),
    }  # fmt: skip
    runs, tags, params = [], [], []
    for cell in cells:
        run_id = ids[cell.key]
        runs.append({**shared, "run_uuid": run_id, "name": cell.label})
        given = {**tracking.run_tags(cell, [grid.name]), outcome.TAG_STATUS: outcome.FINISHED}
        tags += [{"key": k, "value": v, "run_uuid": run_id} for k, v in given.items()]
        given = tracking.params(cell)
        params += [{"key": k, "value": v, "run_uuid": run_id} for k, v in given.items()]
    with create_engine(store.tracking_uri).begin() as connection:
        for table, rows in ((SqlRun, runs), (SqlTag, tags), (SqlParam, params)):
            connection.execute(insert(table), rows)
    return ids


# ---- what is measured


class Cost(NamedTuple):
    """What a command took; `cpu` is of its own process, and other load changes it little."""

    seconds: float
    cpu: float
    megabytes: float
    begun: float  # seconds until it began to start Ray; NaN where it did not


def measured(words: list[str], until: str | None = None) -> Cost:
    """One command, or it up to a line of output. Then it is asked to stop, as by Ctrl-C."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [COMMAND, *words], cwd=ROOT, env=ONE_CORE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    peak = Peak(process.pid)
    assert process.stdout is not None
    seconds, begun = math.nan, math.nan
    for text in process.stdout:
        if text.startswith(STARTING):
            begun = time.perf_counter() - began
        if until and math.isnan(seconds) and until in text:
            seconds = time.perf_counter() - began
            peak.stop()
            process.send_signal(signal.SIGINT)
    code = process.wait()
    peak.stop()
    if until is None and code == 0:
        seconds = time.perf_counter() - began
    if math.isnan(seconds):
        raise SystemExit(f"banditgrid {words[0]} ended with {code}; it did not say {until!r}")
    return Cost(seconds, peak.cpu, peak.bytes / 1e6, begun)


class Peak:
    """The largest resident memory of a process and its CPU seconds, looked at 20 times a second."""

    def __init__(self, pid: int) -> None:
        self.bytes, self.cpu = 0, 0.0
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self.bytes = max(self.bytes, self._process.memory_info().rss)
                times = self._process.cpu_times()
            except psutil.Error:
                return
            self.cpu = max(self.cpu, times.user + times.system)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def show(name: str, cost: Cost) -> None:
    """Each figure of a command beside what it should be."""
    told(f"{name}, seconds", cost.seconds, "at most 15")
    if not math.isnan(cost.begun):
        told("  of which before Ray is started", cost.begun)
    told("  CPU seconds of its process", cost.cpu)
    told("  peak MB of its process", cost.megabytes, "at most 1000")


def main(folder: Path | None = None) -> None:
    """Write, measure, print."""
    folder = folder or ROOT / "bench" / "scale"
    grid, store = str(write_store(folder)), str(folder / "store")
    cells = 2 * 25 * 2 * SEEDS
    print(f"\n{cells:,} cells of which {cells * DONE_SEEDS // SEEDS:,} are done; {load()}")
    show("plan", measured(["plan", grid, "--store", store]))
    show("status", measured(["status", "--store", store]))
    show("status of a grid", measured(["status", grid, "--store", store]))
    begin = ["run", grid, "--store", store, "--slots", "1"]
    show("run to its first trial", measured(begin, STARTED))
    forget_what_began(folder)


def forget_what_began(folder: Path) -> None:
    """Take away the cell that `run` began, so that the next measurement finds the same study."""
    for cell in (folder / "store" / STUDY / "cells").iterdir():
        if not (cell / outcome.DONE_FILE).exists():
            shutil.rmtree(cell)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
