"""`banditgrid run` for real: local Ray, MLflow's SQLite store, the embedded models.

Two runs into one store: the smoke grid beside a longer cell, interrupted; and the next day's with
the interrupted cell, more rounds, a new seed and a cell that cannot train.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from grids.catalog import MODELS
from grids.load import load_grid
from grids.paths import CellPaths, Store, read_json, read_lines
from orchestrator.plan import make_plan
from orchestrator.tracking import quiet_client

SMOKE = Path(__file__).resolve().parent.parent / "grids" / "smoke.yaml"
BROKEN = """
name: broken
study: smoke
base: {rounds: 4, max_prompt: 32, max_response: 32, eval: {every: 2, test_questions: 16}}
models: {broken: {path: broken}}
axes: {model: [broken], dataset: [tiny-sums]}
"""
LONG = """
name: long
study: smoke
base: {rounds: 150, batch: 4, eval: {every: 20, test_questions: 8, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
"""
WIDER = """
name: wider
study: smoke
base: {rounds: 6, batch: 8, eval: {every: 2, test_questions: 16, train_questions: 8}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], rollouts: [1]}
seeds: [0, 1]
"""


ONE_ROLLOUT = "tiny-qwen2 tiny-sums (8,1,0) raw s0"


@dataclass
class Bench:
    """A store and what the runs into it left."""

    folder: Path
    ended: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    journals: dict[str, list[str]] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def grid(self, name: str, text: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def command(self, *grids: Path) -> list[str]:
        code = "from orchestrator.cli import main; main()"
        return [
            sys.executable,
            "-c",
            code,
            "run",
            *map(str, grids),
            "--store",
            str(self.store.root),
        ]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        return {**kept, "BANDITGRID_TEST": self.mark}

    def run(self, *grids: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*grids), cwd=self.folder, env=self.environment(), capture_output=True,
            text=True, timeout=180,
        )  # fmt: skip

    def left_behind(self) -> list[str]:
        """Processes of any run that are still there."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes()
                alive = (process / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
            except OSError:
                continue
            if alive and self.mark.encode() in environment:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        return found

    def cells(self, path: Path) -> dict[str, CellPaths]:
        works = make_plan([load_grid(path)], self.store).works
        return {work.cell.label: work.paths(self.store) for work in works}

    def tracked(self) -> dict[str, Any]:
        """MLflow runs of the study by cell key."""
        client = quiet_client(self.store.tracking_uri)
        experiment = client.get_experiment_by_name("smoke")
        runs = client.search_runs([experiment.experiment_id])
        keys = [run.data.tags["banditgrid.cell_key"] for run in runs]
        assert len(keys) == len(set(keys)), "a cell has one run"
        return dict(zip(keys, runs, strict=True))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The smoke grid and a longer cell, stopped by Ctrl-C when only the latter is not done."""
    bench = Bench(tmp_path_factory.mktemp("driver"))
    path = bench.grid("long", LONG)
    (cell,) = bench.cells(path).values()
    smoke = bench.cells(SMOKE)
    with subprocess.Popen(
        bench.command(SMOKE, path), cwd=bench.folder, env=bench.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_interruptible,
    ) as run:  # fmt: skip
        deadline = time.monotonic() + 180
        while len(read_lines(cell.journal)) < 25 or not all(
            c.done.exists() for c in smoke.values()
        ):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    bench.ended["interrupted"] = subprocess.CompletedProcess(run.args, run.returncode, out, "")
    bench.journals = {name: read(c) for name, c in (("long", cell), ("smoke", smoke[ONE_ROLLOUT]))}
    return bench


def read(paths: CellPaths) -> list[str]:
    return paths.journal.read_text(encoding="utf-8").splitlines()


def _interruptible() -> None:
    """Test runners started in the background ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def continued(bench: Bench) -> Bench:
    """The next day: the interrupted cell, more rounds, a new seed, and a cell that cannot train."""
    broken = bench.folder / "broken"
    shutil.copytree(MODELS["tiny-qwen2"].path or "", broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    grids = [bench.folder / "long.yaml", bench.grid("wider", WIDER), bench.grid("broken", BROKEN)]
    bench.ended["continued"] = bench.run(*grids)
    return bench


def assert_history_tells_the_journal(bench: Bench, paths: CellPaths, *ends: int) -> None:
    """`ends` are the rounds with which the cell ended, on the first day and the next."""
    client = quiet_client(bench.store.tracking_uri)
    run = bench.tracked()[paths.directory.name]
    lines = read_lines(paths.journal)
    for metric in {name for line in lines for name in line} - {"round"}:
        points = client.get_metric_history(run.info.run_id, metric)
        sent = {point.step: point.value for point in points}
        assert len(sent) == len(points), f"{metric} has a step twice"
        wanted = told(
            metric, {line["round"]: line[metric] for line in lines if metric in line}, ends
        )
        assert sent.keys() == wanted.keys(), metric
        assert all(
            a == pytest.approx(wanted[step], rel=1e-12) or math.isnan(a) for step, a in sent.items()
        ), metric


def told(metric: str, values: dict[int, float], ends: tuple[int, ...]) -> dict[int, float]:
    """What MLflow should have: evaluations as they are, training as means of ten rounds."""
    if metric.startswith(("test/", "train/pass_at_1")):
        return values
    made = {}
    for end in {*range(0, max(ends) + 1, 10), *ends}:
        window = [value for r, value in values.items() if (end - 1) // 10 * 10 < r <= end]
        if window:
            made[end] = sum(window) / len(window)
    return made


def test_ctrl_c_says_so_and_leaves_nothing_behind(bench: Bench) -> None:
    ran = bench.ended["interrupted"]
    assert ran.returncode == 130, ran.stdout
    assert "goes on from its last checkpoint" in ran.stdout
    assert "3 finished, 1 not done" in ran.stdout
    assert bench.left_behind() == []
    (paths,) = bench.cells(bench.folder / "long.yaml").values()
    assert not paths.done.exists() and not paths.failed.exists()
    assert bench.tracked()[paths.directory.name].info.status == "KILLED"


def test_mlflow_has_the_journal_of_each_cell(bench: Bench) -> None:
    runs = bench.tracked()
    for label, paths in bench.cells(SMOKE).items():
        assert_history_tells_the_journal(bench, paths, 4)
        run = runs[paths.directory.name]
        assert (run.info.status, run.info.run_name) == ("FINISHED", label)
        assert run.data.tags["banditgrid.grid.smoke"] == "yes"
        done = read_json(paths.done)
        assert done is not None
        assert run.data.metrics["final/test/pass_at_1"] == done["final"]["test/pass_at_1"]


def test_a_second_run_trains_nothing_and_ends_in_seconds(bench: Bench) -> None:
    cells = bench.cells(SMOKE).values()
    before = [paths.journal.stat().st_mtime_ns for paths in cells]
    began = time.monotonic()
    ran = bench.run(SMOKE)
    assert time.monotonic() - began < 20
    assert ran.returncode == 0 and "nothing to train: all 3 cells are done" in ran.stdout
    assert [paths.journal.stat().st_mtime_ns for paths in cells] == before


def test_one_bad_cell_does_not_stop_the_others(continued: Bench) -> None:
    ran = continued.ended["continued"]
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "of 4 cells: 3 finished, 1 failed" in ran.stdout
    ((label, paths),) = continued.cells(continued.folder / "broken.yaml").items()
    failed = read_json(paths.failed)
    assert failed is not None and failed["attempts"] == 3 and failed["traceback"]
    reason = failed["error"].splitlines()[0]
    assert f"{label}  failed: {reason}" in ran.stdout
    assert f"banditgrid logs {paths.directory.name}" in ran.stdout
    assert [line["how"] for line in read_lines(paths.attempts)] == ["failed"] * 3
    run = continued.tracked()[paths.directory.name]
    assert run.info.status == "FAILED"
    assert run.data.tags["banditgrid.status_reason"] == reason


def test_an_interrupted_cell_goes_on_and_is_whole(continued: Bench) -> None:
    (paths,) = continued.cells(continued.folder / "long.yaml").values()
    assert [line["round"] for line in read_lines(paths.journal)] == list(range(151))
    assert read(paths)[:21] == continued.journals["long"][:21]
    assert "started, from round" in continued.ended["continued"].stdout
    assert_history_tells_the_journal(continued, paths, 150)
    assert continued.tracked()[paths.directory.name].info.status == "FINISHED"


def test_more_rounds_continue_a_cell_and_a_new_seed_is_trained(continued: Bench) -> None:
    old, new = continued.cells(continued.folder / "wider.yaml").values()
    assert len(read(old)) == len(read(new)) == 7
    assert read(old)[:5] == continued.journals["smoke"]
    assert_history_tells_the_journal(continued, old, 4, 6)
    assert_history_tells_the_journal(continued, new, 6)
    tags = continued.tracked()[old.directory.name].data.tags
    assert tags["banditgrid.grid.smoke"] == tags["banditgrid.grid.wider"] == "yes"


def test_ui_serves_the_store_on_loopback_until_ctrl_c(bench: Bench) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from orchestrator.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "ui", "--store", str(bench.store.root), "--port", str(port)],
        env=bench.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=_interruptible,
    ) as ui:  # fmt: skip
        assert wait_for(f"http://127.0.0.1:{port}/health") == b"OK"
        ui.send_signal(signal.SIGINT)
        out, _ = ui.communicate(timeout=30)
    assert ui.returncode == 0 and f"http://127.0.0.1:{port}" in out
    assert bench.left_behind() == []


def wait_for(address: str) -> bytes:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)
