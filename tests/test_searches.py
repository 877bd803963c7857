"""A search for real: local Ray, training, a stop between two waves; and the queue that it feeds."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from analysis.study import Study
from grids.grid import Grid
from grids.load import load_grid
from grids.outcome import FINISHED
from grids.paths import Store, read_json, read_lines, write_json
from orchestrator.attempts import Result
from orchestrator.plan import Plan, Work, make_plan
from orchestrator.progress import Progress
from orchestrator.queue import Queue
from orchestrator.tracking import quiet_client

TUNED = """
name: tuned
study: s
base: {rounds: 3, batch: 8, rollouts: 2, eval: {every: 3, test_questions: 8, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], advantage: [raw, grpo]}
search:
  lr:
    over: {lr: {low: 1.0e-5, high: 1.0e-3, log: true}}
    where: {advantage: grpo}
    cells: 4
    wave: 2
    holdout: 40
"""


def write(folder: Path, text: str = TUNED) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "tuned.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class Ran(NamedTuple):
    """A whole process: Ray ends with it."""

    code: int
    out: str


def train(path: Path, store: Store) -> Ran:
    words = command("run", str(path), "--store", str(store.root), "--slots", "2")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    return Ran(ran.returncode, ran.stdout)


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from orchestrator.cli import main; main()", *words]


def found(store: Store) -> Any:
    content = read_json(store.study("s").searches / "tuned.lr.json")
    assert content is not None
    return content["arms"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A search that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder / "store")
    ran = train(write(folder), store)
    assert ran.code == 0, ran.out
    assert "of 6 cells: 6 finished" in ran.out
    return store


def test_a_search_trains_its_budget_wave_by_wave_and_reads_held_out_questions(whole: Store) -> None:
    (arm,) = found(whole)
    assert arm["complete"] and arm["settings"]["advantage"] == "grpo"
    assert [trial["state"] for trial in arm["trials"]] == [FINISHED] * 4
    waves = []
    for trial in arm["trials"]:
        (cell,) = trial["cells"]
        paths = whole.study("s").cell(cell["key"])
        assert trial["val"] == read_lines(paths.journal)[-1]["val/pass_at_1"]
        written = read_json(paths.cell)
        assert written is not None
        assert (written["lr"], written["holdout"]) == (trial["settings"]["lr"], 40)
        waves.append((paths.provenance.stat().st_mtime, paths.done.stat().st_mtime))
    assert min(began for began, _ in waves[2:]) > max(ended for _, ended in waves[:2])


def test_its_runs_are_tagged_and_its_cells_named(whole: Store) -> None:
    client = quiet_client(whole.tracking_uri)
    experiment = client.get_experiment_by_name("s")
    runs = client.search_runs([experiment.experiment_id])
    tagged = {
        run.data.tags["banditgrid.cell_key"]: run for run in runs
        if "banditgrid.grid.tuned.search.lr" in run.data.tags
    }  # fmt: skip
    (arm,) = found(whole)
    for trial in arm["trials"]:
        history = client.get_metric_history(
            tagged[trial["cells"][0]["key"]].info.run_id, "val/pass_at_1"
        )
        assert [(point.step, point.value) for point in history][-1] == (3, trial["val"])
    assert len(tagged) == 4 and len(runs) == 6


def test_answers_to_held_out_questions_are_read_as_any_others(whole: Store) -> None:
    study = Study.open(whole.study("s").directory)
    (arm,) = found(whole)
    for trial in arm["trials"]:
        held_out = study.outcomes(split="val", holdout=40, **trial["settings"])
        assert held_out.correct_S_Q_K.shape == (1, 40, 1)
        assert held_out.correct_S_Q_K.mean() == pytest.approx(trial["val"])
    assert len(study.runs()) == 6


def test_a_second_run_trains_nothing(whole: Store, tmp_path: Path) -> None:
    journals = sorted(whole.study("s").cells.glob("*/journal.jsonl"))
    before = [path.stat().st_mtime_ns for path in journals]
    ran = train(write(tmp_path), whole)
    assert ran.code == 0 and "all 6 cells are done" in ran.out
    assert [path.stat().st_mtime_ns for path in journals] == before and len(journals) == 6


def test_a_search_that_was_stopped_goes_on_as_one_that_was_not(
    whole: Store, tmp_path: Path
) -> None:
    path, store = write(tmp_path), Store(tmp_path / "store")
    with subprocess.Popen(
        command("run", str(path), "--store", str(store.root), "--slots", "1"),
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, preexec_fn=_interruptible,
    ) as first:  # fmt: skip
        deadline = time.monotonic() + 120
        while len(list(store.study("s").cells.glob("*/done.json"))) < 3:
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        told, _ = first.communicate(timeout=60)
    assert first.returncode == 130, told
    assert len(list(store.study("s").cells.glob("*/done.json"))) < 6
    assert train(path, store).code == 0
    assert found(store) == found(whole)


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_what_was_found_is_shown_and_can_be_written_into_the_grid(
    whole: Store, tmp_path: Path
) -> None:
    path = write(tmp_path)
    shown = subprocess.run(
        command("found", str(path), "--store", str(whole.root)), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    (arm,) = found(whole)
    best = arm["trials"][arm["best"]]
    line = next(x for x in shown.stdout.splitlines() if "best" in x and "finished" in x)
    assert f"{best['val']:.3f} [" in line
    assert "looks better on the questions that chose it" in shown.stdout
    block = shown.stdout[shown.stdout.index("overrides:") :]
    again = load_grid(write(tmp_path, TUNED + block))
    assert {c.advantage: c.lr for c in again.cells()}["grpo"] == best["settings"]["lr"]
    planned = subprocess.run(
        command("plan", str(path), "--store", str(whole.root), "--json"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert '"complete": true' in planned.stdout


# ---- the queue


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[tuple[Queue, Plan, Store]]:
    """A queue over two of three cells; the third may follow."""
    store = Store(tmp_path / "store")
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}
    content = {"name": "g", "study": "s", "axes": axes, "seeds": [0, 1, 2], "base": {"rounds": 9}}
    plan = make_plan([Grid.model_validate(content)], store)
    with Progress(plan.works[:2], store, Console(file=io.StringIO(), width=200)) as progress:
        yield Queue(plan.works[:2], store, progress, lambda: 2), plan, store


def end(queue: Queue, store: Store, work: Work, how: str = FINISHED) -> None:
    cell = work.cell
    if how == FINISHED:
        done = {"key": cell.key, "eval_key": cell.eval_key, "rounds": cell.rounds}
        write_json(work.paths(store).done, done | {"status": FINISHED, "final": {}})
    queue.started((work.study, cell.key))
    queue.returned((work.study, cell.key), Result(how=how, reason=""))


def test_a_queue_takes_up_what_follows_from_cells_that_ended(bench: Any) -> None:
    queue, plan, store = bench
    asked: list[int] = []

    def more() -> list[Work]:
        asked.append(1)
        return [plan.works[2]] if len(asked) == 2 else []

    queue.more = more
    assert [queue.next().work, queue.next().work] == list(plan.works[:2])
    assert queue.next() is None and asked == []  # nothing has ended
    end(queue, store, plan.works[0])
    assert queue.next() is None and len(asked) == 1
    end(queue, store, plan.works[1])
    assert not queue.finished  # before it was asked
    assert queue.next().work == plan.works[2] and not queue.finished
    end(queue, store, plan.works[2])
    assert queue.next() is None and queue.finished and len(queue.items) == 3


def test_a_cell_that_ended_goes_on_to_a_longer_horizon_and_one_that_failed_does_not(
    bench: Any,
) -> None:
    queue, plan, store = bench
    longer = [
        replace(work, cell=work.cell.model_copy(update={"rounds": 20})) for work in plan.works[:2]
    ]
    queue.more = lambda: longer
    queue.next(), queue.next()
    end(queue, store, plan.works[0])
    assert queue.next().work.cell.rounds == 20
    end(queue, store, longer[0])
    end(queue, store, plan.works[1], how="stopped")
    assert queue.next() is None and queue.finished
    assert [item.state for item in queue.items] == [FINISHED, "stopped"]
