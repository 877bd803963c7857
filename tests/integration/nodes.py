"""A Ray cluster of several nodes on this machine, without root: each node is a tree of processes.

The nodes share address, files and clock, which real hosts do not (`hosts.py`); what they have of
their own is a raylet and its workers, which die together.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.common import free_port, quiet, wait_for


@dataclass
class Nodes:
    """A context manager: a head that takes jobs, and as many more nodes as are started.

    Attributes:
        env: for Ray and all that it starts; the token of the cluster is in it.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    _nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Nodes:
        # Short, and not in the test's own folder: the path of a socket has 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        try:
            self.start(head=True)
            wait_for("Ray's dashboard", self._answers, timeout=120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in reversed(range(len(self._nodes))):
            self.kill(number)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def environment(self) -> dict[str, str]:
        """Of a client of the cluster, and of its nodes."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return {**kept, **quiet(self.token), **self.env}

    def start(self, head: bool = False) -> int:
        """Start a node with one CPU, and do not wait for it; its number."""
        words = ["--num-cpus=1", f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]
        # Through it jobs are taken. Where another Ray of the machine has the port, none are.
        words += [f"--dashboard-agent-listen-port={free_port()}"]
        # Its own: a node takes away the code of jobs that it needs no more.
        words += [f"--temp-dir={self._folder / str(len(self._nodes))}"]
        if head:
            words += ["--head", "--node-ip-address=127.0.0.1", f"--port={self.port}"]
            words += [
                "--include-dashboard=true",
                f"--dashboard-port={self.dashboard_port}",
                "--dashboard-host=127.0.0.1",
            ]
        else:
            words += [f"--address=127.0.0.1:{self.port}", "--node-ip-address=127.0.0.1"]
        with (self._folder / f"node{len(self._nodes)}.txt").open("wb") as out:
            node = subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), "start", "--block", *words],
                env=self.environment(), stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _answers(self) -> bool:
        assert self._nodes[0].poll() is None, (self._folder / "node0.txt").read_text()
        asked = urllib.request.Request(
            f"{self.dashboard}/api/version", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def processes(self, number: int) -> list[psutil.Process]:
        """All processes of a node; none of one that has ended, whose id may be another's by now."""
        if self.has_ended(number):
            return []
        try:
            node = psutil.Process(self._nodes[number].pid)
            return [node, *node.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def node_of(self, pid: int) -> int | None:
        """The node that a process belongs to."""
        for number in range(len(self._nodes)):
            if pid in {process.pid for process in self.processes(number)}:
                return number
        return None

    def has_ended(self, number: int) -> bool:
        """A node's first process, and all that depends on it, is gone by itself."""
        return self._nodes[number].poll() is not None

    def kill(self, number: int) -> None:
        """End all processes of a node without a word to them."""
        found = self.processes(number)
        for process in found:  # the first is the one that could start others
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self._nodes[number].wait()
        wait_for("the end of a node", lambda: all(map(_has_ended, found)), every=0.1)


def _has_ended(process: psutil.Process) -> bool:
    """Also where nobody has asked for its exit code yet."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
