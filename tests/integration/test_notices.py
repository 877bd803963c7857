"""A node that Ray drains, a head that dies: cells leave in time, go on under a new head. Slow.

Real Ray nodes on this machine, without root. Leaves out everything else that can happen to a
cluster (`test_cluster.py`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from grids.paths import read_lines
from tests.integration.common import wait_for
from tests.integration.disturbed import Attempt, Disturbed
from tests.integration.nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GRID = """
base:
  {rounds: 200, batch: 8, rollouts: 2, eval: {every: 50, test_questions: 24, train_questions: 0}}
axes: {model: [tiny-qwen2, tiny-llama], dataset: [tiny-sums]}
seeds: [0, 1]
"""
SOON = {"BANDITGRID_LEASE_SECONDS": "6"}


def submit(study: Disturbed, nodes: Nodes, *more: str) -> list[str]:
    grid = str(study.folder / "notices.yaml")
    store = str(study.store.root)
    return ["submit", grid, "--address", nodes.dashboard, "--store", store, *more]


def drain(nodes: Nodes, attempt: Attempt) -> None:
    """What a cloud's preemption notice comes to in Ray."""
    words = [
        "drain-node", f"--address=127.0.0.1:{nodes.port}", f"--node-id={attempt.holder.node}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=wanted",
        "--deadline-remaining-seconds=60",
    ]  # fmt: skip
    ray = Path(sys.executable).parent / "ray"
    subprocess.run([ray, *words], env=nodes.environment(), check=True, capture_output=True)


def test_a_drained_node_and_a_dead_head_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    with Nodes(SOON) as nodes:
        study = Disturbed(folder, nodes.environment())
        study.grid("notices", GRID)
        nodes.start()
        study.run("first", *submit(study, nodes, "--no-wait"))
        hit = study.find(lambda a: nodes.node_of(a.holder.pid) == 1, rounds=1)
        paths = study.cells()[hit.key]
        drain(nodes, hit)
        study.tell(f"node 1 is drained: {hit}")
        wait_for("the cell to leave", lambda: bool(read_lines(paths.attempts)), timeout=60)
        (left,) = read_lines(paths.attempts)
        assert (left["how"], left["node"]) == ("preempted", hit.holder.node)
        assert left["to_round"] >= hit.rounds - 1, "with all that it had trained"
        study.find(lambda a: nodes.node_of(a.holder.pid) == 0, rounds=1)
        study.tell("the head dies, and the driver with it")
    with Nodes(SOON) as nodes:
        study = Disturbed(folder, nodes.environment())
        study.grid("notices", GRID)
        study.run("again", *submit(study, nodes), timeout=300)
    told = {key: read_lines(cell.attempts) for key, cell in study.cells().items()}
    for key, cell in study.cells().items():
        assert [line["round"] for line in read_lines(cell.journal)] == list(range(201))
        assert [line["how"] for line in told[key]].count("finished") == 1, told[key]
    assert "lost" in {line["how"] for lines in told.values() for line in lines}
