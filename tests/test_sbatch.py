"""deploy/slurm/banditgrid.sbatch under shell scripts that stand for SLURM's programs.

What it leaves where, and when it is requeued. Leaves out a real SLURM, and several nodes
(`integration/test_slurm.py`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"


def test_the_batch_script_is_sound_shell() -> None:
    script = str(DEPLOY / "slurm" / "banditgrid.sbatch")
    subprocess.run(["bash", "-n", script], check=True)
    checker = Path(sys.executable).parent / "shellcheck"
    if not checker.exists():
        pytest.skip("install the extra deploy to check shell scripts")
    told = subprocess.run([str(checker), script], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


def test_the_batch_script_asks_to_be_told_and_to_come_again() -> None:
    text = (DEPLOY / "slurm" / "banditgrid.sbatch").read_text()
    asked = set(re.findall(r"^#SBATCH (\S+)", text, re.M))
    assert {"--requeue", "--signal=B:USR1@120", "--open-mode=append"} <= asked
    assert "RAY_AUTH_MODE=token" in text and "unset RAY_AUTH_TOKEN" in text


@dataclass
class Job:
    """The script under a SLURM of shell scripts, on one node; `scontrol requeue` ends it there."""

    folder: Path
    number: int = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        self.program("srun", 'while [ "${1#-}" != "$1" ]; do shift; done; "$@"')
        self.program("scontrol", f'echo "$@" >>{self.folder}/requeued; kill $PPID')
        self.number = self.folder.stat().st_ino  # of no other test's folder in /tmp

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def mine(self) -> Path:
        return self.store / f".slurm-{os.getuid()}"

    @property
    def ray(self) -> Path:
        return Path(f"/tmp/bg-{self.number}")

    @property
    def requeued(self) -> int:
        file = self.folder / "requeued"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def run(self, banditgrid: str, notice: bool = False, restarts: int = 0) -> tuple[int, str]:
        """Exit code and output; with a notice as soon as `banditgrid` runs."""
        begun = self.folder / "begun"
        begun.unlink(missing_ok=True)
        self.program("banditgrid", f"touch {begun}; {banditgrid}")
        process = subprocess.Popen(
            ["bash", str(DEPLOY / "slurm" / "banditgrid.sbatch"), "g.yaml"], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=0o022, start_new_session=True,
            env={
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "BANDITGRID_STORE": str(self.store),
                "SLURM_JOB_ID": str(self.number), "SLURM_JOB_NUM_NODES": "1",
                "SLURM_CPUS_ON_NODE": "1", "SLURM_RESTART_COUNT": str(restarts),
            },
        )  # fmt: skip
        if notice:
            until = time.monotonic() + 30
            while not begun.exists() and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(signal.SIGUSR1)
        told, _ = process.communicate(timeout=60)
        return process.returncode, told


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_job_leaves_a_store_that_others_can_use(job: Job) -> None:
    look = (
        f"stat -c '%a %n' {job.store} {job.mine} {job.mine}/* {job.mine}/*/token $RAY_TMPDIR;"
        f" mkdir {job.store}/study; touch {job.store}/study/file"
    )
    code, told = job.run(look)
    assert code == 0, told
    rights = [line.split()[0] for line in told.splitlines()]
    assert rights == ["755", "700", "700", "600", "700"], told
    assert (job.store / "study").stat().st_mode & 0o777 == 0o755
    assert (job.store / "study" / "file").stat().st_mode & 0o777 == 0o644
    assert not list(job.mine.iterdir()) and not job.ray.exists()


def test_folders_of_others_are_not_used(job: Job) -> None:
    job.ray.symlink_to(job.folder)
    try:
        code, told = job.run("echo ran")
    finally:
        job.ray.unlink()
    assert code != 0 and "is it of another user?" in told and "ran" not in told.split()
    job.ray.mkdir()  # our own, which a node left when it was lost
    (job.ray / "old").touch()
    code, told = job.run('ls -A "$RAY_TMPDIR"')
    assert (code, told) == (0, "")
    job.mine.rmdir()
    job.mine.symlink_to(job.folder)
    code, told = job.run("echo ran")
    assert code == 2 and told.startswith("error: ") and "BANDITGRID_STORE" in told
    if os.getuid() == 0:
        job.mine.unlink()
        job.mine.mkdir()
        os.chown(job.mine, 65534, 65534)
        assert job.run("echo ran")[0] == 2


DIES = "for _ in {1..300}; do sleep 0.05; done"  # SIGUSR2 ends it: it does not know it yet
SAVES = "trap 'mkdir -p %s; exit 130' USR2; " + DIES


def test_a_notice_that_comes_before_the_driver_knows_it_requeues_the_job(job: Job) -> None:
    code, told = job.run(DIES, notice=True)
    assert job.requeued == 1 and "notice: cells save" in told, told
    assert code != 0 and not (job.mine / str(job.number)).exists()


def test_a_job_that_saves_nothing_does_not_come_again_for_ever(job: Job) -> None:
    for restarts in range(2):
        job.run(DIES, notice=True, restarts=restarts)
    time.sleep(0.02)  # the file system's clock is a coarse one
    job.run(SAVES % (job.store / "s/cells/k/checkpoint/000005"), notice=True, restarts=2)
    assert job.requeued == 3
    for restarts in (3, 4):
        job.run(DIES, notice=True, restarts=restarts)
    assert job.requeued == 5
    code, told = job.run(DIES, notice=True, restarts=5)
    assert (code, job.requeued) == (1, 5) and "three starts in a row saved no checkpoint" in told
    assert not list(job.mine.iterdir())


def test_a_job_that_ends_by_itself_ends_with_its_code(job: Job) -> None:
    for code in (0, 1, 130, 140):
        assert job.run(f"exit {code}")[0] == code
    assert job.run("trap '' USR2; sleep 0.5; exit 1", notice=True)[0] == 1
    assert job.requeued == 0
