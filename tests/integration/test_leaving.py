"""Cells that leave in time: a driver is told to, a pod or a whole cluster is deleted. Slow.

Real Ray nodes on this machine, without root. Leaves out what a batch system does (`test_slurm.py`).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from grids.paths import read_lines
from tests.integration.common import quiet, wait_for
from tests.integration.disturbed import Attempt, Disturbed
from tests.integration.nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 200
GRID = """
base:
  {rounds: 200, batch: 8, rollouts: 2, eval: {every: 50, test_questions: 24, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
seeds: [0, 1]
"""


def test_a_driver_that_is_told_to_leave_has_its_cells_save(tmp_path: Path) -> None:
    study = Disturbed(tmp_path, here())
    study.grid("leaving", GRID)
    words = [
        "run",
        str(tmp_path / "leaving.yaml"),
        "--store",
        str(study.store.root),
        "--slots",
        "2",
    ]
    driver = study.start("first", *words)
    wait_for("both cells", lambda: len([a for a in study.at_work() if a.rounds > 3]) == 2, 240)
    seen = {attempt.key: attempt.rounds for attempt in study.at_work()}
    driver.send_signal(signal.SIGUSR2)
    assert driver.wait(120) == 130
    told = (tmp_path / "first.txt").read_text()
    assert "run the same command again" in told, told
    for key, paths in study.cells().items():
        (left,) = read_lines(paths.attempts)
        assert left["how"] == "preempted" and left["to_round"] >= seen[key] - 1, left
    study.run("again", *words, timeout=400)
    for paths in study.cells().values():
        lines = read_lines(paths.attempts)
        assert [line["how"] for line in lines] == ["preempted", "finished"]
        assert lines[1]["from_round"] == lines[0]["to_round"]
        assert_whole(paths)


def test_a_pod_that_is_deleted_and_then_all_of_them(tmp_path: Path) -> None:
    """Kubernetes sends SIGTERM to `ray start --block`, a container's first process."""
    folder = tmp_path / "study"
    folder.mkdir()
    with Nodes({"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "90"}) as nodes:
        study = Disturbed(folder, nodes.environment())
        study.grid("leaving", GRID)
        nodes.start()
        submit = ["submit", str(folder / "leaving.yaml"), "--address", nodes.dashboard]
        submit += ["--store", str(study.store.root), "--no-wait"]
        study.run("first", *submit)
        hit = study.find(lambda a: nodes.node_of(a.holder.pid) == 1, rounds=2, timeout=240)
        terminate(nodes, 1)
        assert_saved(study, hit)
        wait_for("the end of the pod", lambda: nodes.has_ended(1), timeout=60)
        study.tell("the pod is gone, before its time is over")
        last = study.find(lambda a: nodes.node_of(a.holder.pid) == 0, rounds=2, timeout=240)
        terminate(nodes, 0)
        assert_saved(study, last)


def here() -> dict[str, str]:
    """The environment of a driver that starts its own Ray."""
    given = {**os.environ, **quiet("")}
    return {k: v for k, v in given.items() if not k.startswith(("RAY_AUTH", "MLFLOW_TRACKING"))}


def terminate(nodes: Nodes, number: int) -> None:
    nodes.processes(number)[0].terminate()


def assert_saved(study: Disturbed, hit: Attempt) -> None:
    """The attempt saved all that it had trained, and left."""
    paths = study.cells()[hit.key]

    def ended() -> Any:
        lines = read_lines(paths.attempts)
        return next((line for line in lines if line["attempt"] == hit.holder.epoch), None)

    line = wait_for("the cell to leave", ended, timeout=80)
    study.tell(line)
    assert line["how"] == "preempted" and line["to_round"] >= hit.rounds - 1


def assert_whole(paths: Any) -> None:
    assert [line["round"] for line in read_lines(paths.journal)] == list(range(ROUNDS + 1))
