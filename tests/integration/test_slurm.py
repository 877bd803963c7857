"""`deploy/slurm/banditgrid.sbatch` in a real SLURM: it trains, leaves when told, comes again. Slow.

Needs root, iproute2 and SLURM's own programs. Leaves out GPUs and sites' own preemption rules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grids.paths import read_lines
from tests.integration.common import wait_for
from tests.integration.disturbed import Disturbed
from tests.integration.hosts import ROOT, Hosts
from tests.integration.slurm import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MINE = f".slurm-{os.getuid()}"
SCRIPT = ROOT / "deploy" / "slurm" / "banditgrid.sbatch"
GRID = """
base:
  {rounds: ROUNDS, batch: 8, rollouts: 2, eval: {every: 50, test_questions: 24, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
seeds: [0, 1, 2]
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    with Hosts(2, [tmp_path]) as hosts, Slurm(hosts, tmp_path) as slurm:
        yield slurm


def study_of(slurm: Slurm, rounds: int) -> Disturbed:
    study = Disturbed(slurm.folder, slurm.hosts.environment())
    study.grid("grid", GRID.replace("ROUNDS", str(rounds)))
    return study


def submit(slurm: Slurm, study: Disturbed, *words: str) -> str:
    """Submit the script as a person would, from the folder with the grid."""
    env = {
        "BANDITGRID_STORE": str(study.store.root),
        "BANDITGRID_BIN": str(Path(sys.executable).parent),
    }
    grid = str(study.folder / "grid.yaml")
    log = f"--output={study.folder}/job-%j.log"
    return slurm.submit(f"--chdir={study.folder}", log, *words, str(SCRIPT), grid, env=env)


def told(slurm: Slurm, job: str) -> str:
    return (slurm.folder / f"job-{job}.log").read_text(errors="replace")


def assert_done(study: Disturbed, rounds: int) -> None:
    for paths in study.cells().values():
        assert paths.done.exists()
        assert [line["round"] for line in read_lines(paths.journal)] == list(range(rounds + 1))


def notice(slurm: Slurm, job: str, study: Disturbed) -> None:
    """What SLURM does before the time limit, when cells are in the middle."""
    for paths in study.cells().values():
        assert not paths.done.exists(), "nothing is left to be disturbed: more rounds are needed"
    study.tell("notice")
    slurm.run("scancel", "--signal=USR1", "--batch", job)


def assert_left_and_came_again(slurm: Slurm, job: str, study: Disturbed, rounds: int) -> None:
    """Every attempt under way saved its last round; the job was requeued, and finished the rest."""
    ended = slurm.wait(job, "COMPLETED", timeout=400)
    study.tell(told(slurm, job))
    assert ended["Restarts"] == "1"
    assert_done(study, rounds)
    saved = []
    for paths in study.cells().values():
        first, *more = read_lines(paths.attempts)
        if more:
            assert (first["how"], more[0]["how"]) == ("preempted", "finished"), [first, *more]
            assert more[0]["from_round"] == first["to_round"]
            saved.append(first["to_round"] or 0)
    assert max(saved) > 3, "it was trained before the notice"
    left = [path.name for path in (study.store.root / MINE).iterdir()]
    assert left == [], "the token is gone"


def test_a_cluster_of_two_nodes_leaves_and_comes_again(slurm: Slurm) -> None:
    rounds = 150
    study = study_of(slurm, rounds)
    sure = slurm.run("sbatch", "--test-only", "--nodes=2", "--exclusive", str(SCRIPT), "g.yaml")
    assert "to start at" in sure
    job = submit(slurm, study, "--nodes=2", "--exclusive")

    def on_both() -> bool:
        assert slurm.job(job)["JobState"] in ("PENDING", "RUNNING"), told(slurm, job)
        return {a.holder.host for a in study.at_work() if a.rounds > 3} == {"host0", "host1"}

    wait_for("cells on both nodes", on_both, timeout=400, every=2)
    assert_token_is_kept(slurm, study, job)
    notice(slurm, job, study)
    assert_left_and_came_again(slurm, job, study, rounds)


def assert_token_is_kept(slurm: Slurm, study: Disturbed, job: str) -> None:
    """In a file for its owner alone, in no command line, and in none of SLURM's answers."""
    file = study.store.root / MINE / job / "token"
    token = file.read_text()
    assert len(token) == 64 and file.stat().st_mode & 0o777 == 0o600
    for host in slurm.hosts.hosts:
        processes = slurm.hosts.processes(host)
        assert any("symmetric-run" in p.command for p in processes)
        assert not [p for p in processes if token in p.command]
        for process in processes:
            if "orchestrator" in process.command or "banditgrid" in process.command:
                environment = Path(f"/proc/{process.pid}/environ").read_text()
                assert token not in environment and "RAY_AUTH_TOKEN_PATH=" in environment
    assert token not in slurm.run("scontrol", "show", "job", "--details", job)


def test_a_part_of_one_node_leaves_and_comes_again(slurm: Slurm) -> None:
    rounds = 120
    study = study_of(slurm, rounds)
    job = submit(slurm, study, "--cpus-per-task=2")
    study.find(rounds=3, timeout=240)
    notice(slurm, job, study)
    assert_left_and_came_again(slurm, job, study, rounds)


def test_a_job_without_a_grid_or_store_says_what_is_missing(slurm: Slurm) -> None:
    study = study_of(slurm, 2)
    log = f"--output={study.folder}/job-%j.log"
    without_grid = slurm.submit(log, str(SCRIPT), env={})
    without_store = slurm.submit(log, str(SCRIPT), "grid.yaml", env={})
    for job, message in ((without_grid, "error: no grid"), (without_store, "set BANDITGRID_STORE")):
        ended = slurm.wait(job, "FAILED", timeout=60)
        assert message in told(slurm, job) and ended["ExitCode"] != "0:0"
