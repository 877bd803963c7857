"""The processes of a host that is a namespace of this machine (`hosts.py`)."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of a host: its id outside, its id within, and its command line."""

    pid: int
    inner: int
    command: str

    def kill(self) -> None:
        """End it without a word to it."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def processes_below(init: int) -> list[Process]:
    """All processes of the namespace whose first process is `init`, but that one."""
    here = _namespace(init)
    found = [_process(pid) for pid in _pids() if pid != init and _namespace(pid) == here]
    return [process for process in found if process is not None]


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").glob("[0-9]*"))


def _namespace(pid: int) -> int:
    """The inode of a process's namespace of processes; -1 for a process that has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return -1


def _process(pid: int) -> Process | None:
    """A process that runs; None for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return None
    if re.search(r"^State:\s+Z", status, re.M):
        return None
    inner = re.search(r"^NSpid:.*\s(\d+)$", status, re.M)
    return Process(pid, int(inner[1]) if inner else pid, command.strip())
