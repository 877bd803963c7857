"""A study on a cluster of three hosts to which everything happens equals one that ran in peace.

Slow, and needs root: the hosts are namespaces (`hosts.py`). MLflow is on PostgreSQL, over HTTP.
`-s` prints what was done when; `diary.txt` in the test's folder has it too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.common import wait_for
from tests.integration.disturbed import Attempt, Disturbed, assert_equals
from tests.integration.hosts import Host, Hosts
from tests.integration.network import missing
from tests.integration.processes import Process
from tests.integration.servers import Mlflow, Postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
GRID = """
base:
  rounds: 90
  batch: 8
  rollouts: 8
  eval: {{every: 10, test_questions: 100, train_questions: 0}}
axes: {{model: [tiny-qwen2, tiny-llama, tiny-olmo2], dataset: [tiny-sums], advantage: {advantages}}}
seeds: {seeds}
"""
GRIDS = {
    "many": GRID.format(advantages=["raw", "grpo"], seeds=[0, 1]),
    "more": GRID.format(advantages=["raw"], seeds=[2]),
}
DRIVER = r"import start; start\(\) run "
WORKER = r"^ray::\w+\.train"
# A head that notices in some ten seconds that a host is cut off; Ray's own settings take a minute.
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "BANDITGRID_LEASE_SECONDS": "12",
}
SENT, BEGUN = "runs study", "the first cells begin"  # a driver says so that has found MLflow
CUT_SECONDS, MLFLOW_AWAY_SECONDS = 60, 120


class Cluster:
    """Three hosts with Ray, a store that they share, MLflow; and the study that is disturbed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.hosts = stack.enter_context(Hosts(3, [folder], WATCHFUL))
        database = stack.enter_context(Postgres())
        self.mlflow = stack.enter_context(Mlflow(database.uri, folder, self.hosts.outside))
        self.study = Disturbed(folder, self.hosts.environment())
        self.grids = {name: self.study.grid(name, text) for name, text in GRIDS.items()}
        self.hosts.start_ray(self.hosts.head)
        self.hosts.start_ray(*self.hosts.hosts[1:])
        self.study.tell("three hosts with Ray, PostgreSQL and MLflow run")

    def submit(self, *names: str) -> list[str]:
        paths = [str(self.grids[name]) for name in names]
        return [
            "submit", *paths, "--address", self.hosts.dashboard, "--store",
            str(self.study.store.root), "--tracking-uri", self.mlflow.uri,
        ]  # fmt: skip

    def worker_on(self, host: Host) -> Attempt:
        return self.study.find(lambda attempt: attempt.holder.host == host.name)

    def process(self, host: Host, attempt: Attempt) -> Process:
        """The worker's process, by its id in the host."""
        found = self.hosts.processes(host, WORKER)
        return next(p for p in found if p.inner == attempt.holder.pid)

    # ---- what happens to it

    def kill_worker(self, host: Host) -> None:
        attempt = self.worker_on(host)
        self.study.strike(f"SIGKILL for a worker on {host.name}", attempt)
        self.process(host, attempt).kill()

    def kill_host(self, host: Host) -> None:
        """And switch it on again."""
        attempt = self.worker_on(host)
        self.study.strike(f"all processes of {host.name} are killed", attempt)
        self.hosts.kill_host(host)
        again = self.hosts.reboot(host)
        time.sleep(5)
        self.hosts.start_ray(again)
        self.study.tell(f"{host.name} and its Ray run again")

    def kill_driver(self) -> None:
        drivers = self.hosts.processes(self.hosts.head, DRIVER)
        assert drivers, [p.command for p in self.hosts.processes(self.hosts.head)]
        attempts = self.study.unhurt()
        self.study.strike(f"SIGKILL for the driver ({len(drivers)} processes)", *attempts)
        for driver in drivers:
            driver.kill()

    def cut_off(self, host: Host) -> tuple[Attempt, Process]:
        """Its cable is unplugged, and its worker hangs, as one does whose store does not answer."""
        attempt = self.worker_on(host)
        process = self.process(host, attempt)
        self.study.strike(f"{host.name} is cut off", attempt)
        os.kill(process.pid, signal.SIGSTOP)
        self.hosts.cut(host)
        return attempt, process

    def back(self, host: Host, process: Process) -> None:
        """The store answers again, and seconds later the network does; Ray starts where it left."""
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(3)
        self.hosts.join(host)
        self.study.tell(f"{host.name} is back")
        gone = lambda: not self.hosts.processes(host, "raylet/raylet ")  # noqa: E731
        wait_for(f"the end of Ray on {host.name}", gone, timeout=60)
        self.hosts.kill_host(host)
        self.hosts.start_ray(host)
        self.study.tell(f"Ray runs on {host.name} again")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """The study, undisturbed, on this machine alone."""
    study = Disturbed(tmp_path_factory.mktemp("whole"), dict(os.environ))
    paths = [str(study.grid(name, text)) for name, text in GRIDS.items()]
    study.run("run", "run", *paths, "--store", str(study.store.root), timeout=900)
    return study


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


def test_a_study_to_which_everything_happens_equals_one_that_ran_in_peace(
    whole: Disturbed, cluster: Cluster
) -> None:
    study, (_, one, other) = cluster.study, cluster.hosts.hosts
    study.run("first", *cluster.submit("many"), "--no-wait")
    cluster.kill_worker(one)
    cluster.kill_driver()
    again = study.start("again", *cluster.submit("many"), "--slots", "2")
    study.wait_for("again", SENT)
    beside = study.start("beside", *cluster.submit("many", "more"), "--slots", "2")
    study.wait_for("again", BEGUN)
    study.wait_for("beside", BEGUN)
    cluster.mlflow.stop()
    away = time.monotonic()
    study.tell("MLflow is stopped")
    cluster.kill_host(other)
    frozen, process = cluster.cut_off(one)
    time.sleep(CUT_SECONDS)
    wait_for("a successor", lambda: study.taken_over(frozen), timeout=240)
    cluster.back(one, process)
    time.sleep(max(0, away + MLFLOW_AWAY_SECONDS - time.monotonic()))
    cluster.mlflow.start()
    study.tell("MLflow runs again")
    for name, driver in (("again", again), ("beside", beside)):
        study.end(name, driver, timeout=600)
    study.level(cluster.mlflow.uri)
    assert_equals(study, whole, cluster.mlflow.uri)


def test_a_store_that_one_host_alone_sees_is_told(cluster: Cluster) -> None:
    words = cluster.submit("more")
    words[words.index("--store") + 1] = "/tmp/of-the-head-alone/store"
    refused = cluster.study.start("refused", *words)
    assert refused.wait(180) == 2
    told = (cluster.study.folder / "refused.txt").read_text(encoding="utf-8")
    (error,) = [line for line in told.splitlines() if "error:" in line]
    assert "host1: no such folder" in error and "host2: no such folder" in error
    assert "host0" not in error and "Traceback" not in told
