"""A study on a cluster to which much happens equals one that ran in peace: the short form.

Two Ray nodes on this machine, jobs, MLflow on SQLite over HTTP. Hosts, networks and PostgreSQL
are in the long form (`tests/integration/test_cluster.py`), which needs root.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

from tests.integration.disturbed import Disturbed, assert_equals
from tests.integration.nodes import Nodes
from tests.integration.servers import Mlflow, sqlite

GRID = """
base:
  {{rounds: 24, batch: 8, rollouts: 2, eval: {{every: 6, test_questions: 24, train_questions: 0}}}}
axes: {{model: [tiny-qwen2, tiny-llama], dataset: [tiny-sums], advantage: [raw]}}
seeds: {seeds}
"""
GRIDS = {"many": GRID.format(seeds=[0, 1]), "more": GRID.format(seeds=[2])}
DRIVER = "import start; start() run"
SENT, BEGUN = "runs study", "the first cells begin"
SOON = {"BANDITGRID_LEASE_SECONDS": "6"}


def test_a_study_to_which_much_happens_equals_one_that_ran_in_peace(tmp_path: Path) -> None:
    whole = study_in(tmp_path / "whole", dict(os.environ))
    paths = [str(tmp_path / "whole" / f"{name}.yaml") for name in GRIDS]
    peace = whole.start("run", "run", *paths, "--store", str(whole.store.root), "--slots", "1")
    with ExitStack() as stack:
        stack.callback(peace.wait, 60)
        stack.callback(peace.terminate)  # nothing where it has ended
        nodes = stack.enter_context(Nodes(SOON))
        study = study_in(tmp_path / "disturbed", nodes.environment())
        mlflow = stack.enter_context(Mlflow(sqlite(study.folder), study.folder))
        study.tell("Ray's head and MLflow run")
        nodes.start()
        disturb(study, nodes, mlflow)
        study.level(mlflow.uri)
        whole.end("run", peace, timeout=120)
        assert_equals(study, whole, mlflow.uri)


def study_in(folder: Path, environment: dict[str, str]) -> Disturbed:
    folder.mkdir()
    study = Disturbed(folder, environment)
    for name, text in GRIDS.items():
        study.grid(name, text)
    return study


def disturb(study: Disturbed, nodes: Nodes, mlflow: Mlflow) -> None:
    """A worker killed, MLflow away, the driver killed, a node killed, a second driver."""

    def submit(*grids: str) -> list[str]:
        paths = [str(study.folder / f"{grid}.yaml") for grid in grids]
        return ["submit", *paths, "--address", nodes.dashboard, "--store", str(study.store.root),
                "--tracking-uri", mlflow.uri]  # fmt: skip

    study.run("first", *submit("many"), "--no-wait")
    hit = study.find(rounds=1)
    study.strike("SIGKILL for a worker", hit)
    os.kill(hit.holder.pid, signal.SIGKILL)
    study.find(rounds=1)
    study.strike("SIGKILL for the driver", *study.unhurt())
    for process in nodes.processes(0):
        if DRIVER in " ".join(process.cmdline()):
            process.kill()
    again = study.start("again", *submit("many"), "--slots", "1")
    study.wait_for("again", SENT)
    beside = study.start("beside", *submit("many", "more"), "--slots", "1")
    study.wait_for("again", BEGUN)
    study.wait_for("beside", BEGUN)
    mlflow.stop()
    study.tell("MLflow is stopped")
    hit = study.find(lambda attempt: nodes.node_of(attempt.holder.pid) not in (None, 0), rounds=1)
    number = nodes.node_of(hit.holder.pid)
    assert number
    study.strike(f"all processes of node {number} are killed", hit)
    nodes.kill(number)
    mlflow.start()
    study.tell("MLflow runs again")
    for name, driver in (("again", again), ("beside", beside)):
        study.end(name, driver, timeout=180)
