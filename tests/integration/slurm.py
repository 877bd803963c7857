"""A real SLURM over the hosts of `hosts.py`: a controller and a node on the first, nodes on all.

slurmctld, slurmd and munged are those of the system, with a configuration, a key and sockets of
their own. Leaves out accounting, control groups, and everything that SLURM tells of memory.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.common import wait_for
from tests.integration.hosts import Host, Hosts

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
CONFIG = """
ClusterName=test
SlurmctldHost={head}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/tmp/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=/tmp/slurmctld
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
SlurmctldLogFile=/tmp/slurmctld.log
SlurmdLogFile=/tmp/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


@dataclass
class Slurm:
    """A context manager: SLURM on hosts that run; `folder` is one that they share."""

    hosts: Hosts
    folder: Path
    cores: int = 2
    _daemons: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Slurm:
        if lacking := [name for name in NEEDED if shutil.which(name) is None]:
            pytest.skip(f"no SLURM here: {', '.join(lacking)} (Debian: slurm-wlm, munge)")
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o400)
        hosts = self.hosts.hosts
        nodes = "\n".join(
            f"NodeName={h.name} NodeAddr={h.address} CPUs={self.cores} State=UNKNOWN" for h in hosts
        )
        head = self.hosts.head
        self._config.write_text(CONFIG.format(head=head.name, address=head.address, nodes=nodes))
        for host in hosts:
            names = "127.0.0.1 localhost\n" + "".join(f"{h.address} {h.name}\n" for h in hosts)
            self.run("sh", "-c", f"printf '{names}' > /tmp/names", host=host)
            self.run("sh", "-c", "mount --bind /tmp/names /etc/hosts", host=host)
            self._munge(host, key)
        self._start(head, "slurmctld", "-D")
        for host in hosts:
            self._start(host, "slurmd", "-D", "-N", host.name)
        wait_for("SLURM's nodes", self._ready, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self._daemons:  # what they have started dies with its host
            daemon.kill()
            daemon.wait()

    @property
    def _config(self) -> Path:
        return self.folder / "slurm.conf"

    def _munge(self, host: Host, key: Path) -> None:
        files = ["--pid-file=/tmp/munged.pid", "--seed-file=/tmp/munged.seed"]
        self.run("chmod", "1777", "/tmp", host=host)
        self._start(
            host, "munged", "--foreground", "--force", f"--key-file={key}",
            "--socket=/tmp/munge.socket", "--log-file=/tmp/munged.log", *files,
        )  # fmt: skip

    def _start(self, host: Host, *command: str) -> None:
        words = ["env", f"SLURM_CONF={self._config}", *command]
        quiet = subprocess.DEVNULL
        self._daemons.append(self.hosts.start(host, words, stdout=quiet, stderr=quiet))

    def _ready(self) -> bool:
        told = self.run("sinfo", "--noheader", "--format=%T %D", check=False)
        return told.strip() == f"idle {len(self.hosts.hosts)}"

    # ---- as a person uses it

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, host: Host | None = None,
        check: bool = True,
    ) -> str:  # fmt: skip
        """Run a command on the first host, or another; its output."""
        given = {"SLURM_CONF": str(self._config), **(env or {})}
        words = ["env", *(f"{name}={value}" for name, value in given.items()), *command]
        if check:
            return self.hosts.run(host or self.hosts.head, words)
        asked = self.hosts.start(
            host or self.hosts.head, words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return asked.communicate(timeout=60)[0]

    def submit(self, *words: str, env: Mapping[str, str]) -> str:
        """`sbatch WORDS`; the job's id."""
        told = self.run("sbatch", *words, env=env)
        found = re.search(r"Submitted batch job (\d+)", told)
        assert found is not None, told
        return found[1]

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        told = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def wait(self, number: str, state: str, timeout: float) -> dict[str, str]:
        """Until a job is in a state."""

        def there() -> dict[str, str] | None:
            told = self.job(number)
            return told if told["JobState"] == state else None

        found: dict[str, str] = wait_for(f"job {number} {state}", there, timeout, every=1)
        return found


def settings() -> dict[str, str]:
    """Of the command that submits, whose environment the job gets."""
    return {"PATH": os.environ["PATH"]}
