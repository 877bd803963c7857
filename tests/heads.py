"""A real head of a Ray cluster, with a dashboard and a token, for a test module.

Leaves out other nodes. Nothing of another cluster on the machine is touched: ports are free ones,
and only processes that carry the head's own mark are ended.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "BANDITGRID_TEST_HEAD"


@dataclass(frozen=True)
class Head:
    """Where it is, and what its people know."""

    url: str
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def environment(self) -> dict[str, str]:
        """Of those who may talk to it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def logs(self) -> Path:
        return self.folder / "session_latest" / "logs"


@contextmanager
def started(cpus: int = 1) -> Iterator[Head]:
    """A head in a folder of its own; Ray's sockets want a short path."""
    folder = Path(tempfile.mkdtemp(prefix="bg-", dir="/tmp"))
    ports = free_ports(4)
    head = Head(f"http://127.0.0.1:{ports[1]}", folder)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    try:
        subprocess.run(
            [Path(sys.executable).with_name("ray"), "start", "--head", *options,
             f"--num-cpus={cpus}", f"--temp-dir={folder}", "--object-store-memory=104857600",
             "--disable-usage-stats", "--include-log-monitor=false"],
            env={**kept, **head.environment, MARK: head.token}, check=True, timeout=120,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        yield head
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _end(head: Head) -> None:
    """Kill what the head started, jobs too."""
    for _ in range(3):  # one that is killed may have started another
        found = [process for process in psutil.process_iter() if _is_of(process, head)]
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=10)


def _is_of(process: psutil.Process, head: Head) -> bool:
    try:
        return process.environ().get(MARK) == head.token
    except psutil.Error:
        return False
