"""The processes of a cell of `gpus: N`: started, listened to, and ended together.

The process that has the cell (`train`) keeps its lease and trains nothing: it starts N others
(`crew_member.py`), each with one GPU, hands on what the first of them tells after each round and
whether the cell is to be left, and ends them all when one has died, has failed, or the lease is
lost. They end by themselves when it is gone. Where there is no GPU they compute on processors.

Not `accelerate launch`: its agent tells neither rounds nor which process failed and why, and takes
no request to leave. Leaves out what the processes do (`ranks.py`, `sharding.py`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from grids.cell import Cell
from grids.errors import InputError
from grids.outcome import Progress
from workers import memory
from workers.crew_member import KINDS
from workers.lease import Lease

# -P: the working folder is the user's, and a file there may have the name of one of our modules.
COMMAND: Final = (sys.executable, "-P", "-m", "workers.crew_member")
LOOK_SECONDS = 0.5
# After a first sign of a failure, for the others': which of them was first is told by their times.
GATHER_SECONDS = 2.0
ENDING_SECONDS = 60.0
TAIL = 20  # lines of a process's output that an error shows
# What a launcher around us may have set, and libraries would take for our own processes.
FOREIGN: Final = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)

# Errors that keep their kind on their way here, by name.
ERRORS: Final[dict[str, type[Exception]]] = {
    **{kind.__name__: kind for kind in KINDS}, MemoryError.__name__: MemoryError,
}  # fmt: skip

Report = Callable[[Progress], bool | None]


def train(cell: Cell, lease: Lease, report: Report, shared: Path) -> dict[str, Any] | None:
    """`workers.run.run_cell` in `cell.processes` processes, under a lease that is taken."""
    import torch

    gpus = _gpus(cell, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    with tempfile.TemporaryDirectory(prefix="banditgrid-") as folder:
        task = {
            "cell": cell.model_dump_json(), "directory": str(lease.paths.directory.resolve()),
            "shared": str(shared.resolve()), "epoch": lease.epoch, "count": cell.processes,
            "meeting": f"{folder}/meeting",
        }  # fmt: skip
        Path(folder, "task.json").write_text(json.dumps(task), encoding="utf-8")
        crew = _Crew([*COMMAND, f"{folder}/task.json"], gpus)
        try:
            done = _listen(crew, lease, report)
            crew.wait()
        finally:
            crew.kill()
    return done


def _gpus(cell: Cell, seen: int, visible: str) -> list[str]:
    """The GPU of each process, as its environment is to name it; "" where this one sees none.

    Args:
        cell: whose processes they are for.
        seen: how many this process sees.
        visible: its CUDA_VISIBLE_DEVICES.
    """
    if not seen:
        return [""] * cell.processes
    if seen < cell.processes:
        raise InputError(
            f"cell {cell.label}: gpus: {cell.processes}, but its worker sees {seen}; lower gpus, "
            "or run it where one node has as many"
        )
    named = [name for name in visible.split(",") if name] or [str(i) for i in range(seen)]
    return named[: cell.processes]


def _listen(crew: _Crew, lease: Lease, report: Report) -> dict[str, Any] | None:
    """Hand on rounds and wishes until the first is through, or one of them is not."""
    while True:
        if lease.is_lost:
            lease.check()
        try:
            rank, told = crew.told.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if crew.is_broken:
                time.sleep(GATHER_SECONDS)
                if crew.is_broken:  # and not only ahead of its last word
                    raise crew.failure() from None
            continue
        if "round" in told:
            memory.count_in(crew.rss(), told["gpu_bytes"])
            crew.answer(rank, bool(report(Progress(*told["round"]))))
        elif "done" in told:
            done: dict[str, Any] | None = told["done"]
            if rank == 0:
                return done
        else:
            time.sleep(GATHER_SECONDS)
            raise crew.failure()


@dataclass
class _Member:
    """One process, what it said last, why it failed where it could say so, and when it ended."""

    process: subprocess.Popen[bytes]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    failed: dict[str, Any] | None = None
    ended: float | None = None
    through: bool = False


def _has_ended(member: _Member) -> bool:
    """Before it was through, or not well."""
    code = member.process.poll()
    return code is not None and (code != 0 or not member.through)


def _path() -> str:
    """Where a process is to look for modules: where this one does, but in the working folder last,
    where a file of the user's may have any name."""
    here = Path.cwd().resolve()
    own = str(Path(__file__).resolve().parents[1])  # what finds an editable install comes after all
    others = [path for path in sys.path if path and Path(path).resolve() != here]
    return os.pathsep.join(dict.fromkeys([*others, own, str(here)]))


class _Crew:
    """The processes of a cell.

    Args:
        command: starts one, given its rank and the descriptor by which it tells.
        gpus: of each, as `_gpus` has them.
    """

    def __init__(self, command: list[str], gpus: list[str]) -> None:
        self.told: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self.members: list[_Member] = []
        for rank, gpu in enumerate(gpus):
            self._start(rank, command, gpu)

    def _start(self, rank: int, command: list[str], gpu: str) -> None:
        reading, writing = os.pipe()
        env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        env["PYTHONPATH"] = _path()
        if gpu:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        process = subprocess.Popen(
            [*command, str(rank), str(writing)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=env, pass_fds=(writing,),
        )  # fmt: skip
        os.close(writing)
        member = _Member(process)
        self.members.append(member)
        for work in (self._hear, self._show):
            source = os.fdopen(reading, "rb") if work == self._hear else process.stdout
            threading.Thread(target=work, args=(rank, member, source), daemon=True).start()

    def _hear(self, rank: int, member: _Member, source: IO[bytes]) -> None:
        with source:
            for line in source:
                told = json.loads(line)
                if "failed" in told:
                    member.failed = told
                member.through |= "done" in told
                self.told.put((rank, told))
        member.ended = time.time()  # whoever ends closes what it tells by

    def _show(self, rank: int, member: _Member, source: IO[bytes]) -> None:
        with source:
            for line in source:
                text = line.decode(errors="replace").rstrip()
                member.tail.append(text)
                if rank == 0:
                    print(text, flush=True)

    def answer(self, rank: int, leave: bool) -> None:
        """What the first waits for after each round."""
        source = self.members[rank].process.stdin
        assert source is not None
        try:
            source.write(b"leave\n" if leave else b"go on\n")
            source.flush()
        except BrokenPipeError:
            pass  # it is gone: that is seen next

    @property
    def is_broken(self) -> bool:
        """One has ended before it was through."""
        return any(_has_ended(member) for member in self.members)

    def rss(self) -> int:
        """The most memory that all together have taken, bytes."""
        return sum(memory.peak_of(member.process.pid) for member in self.members)

    def failure(self) -> Exception:
        """Why the cell failed: by who failed first, since the others only miss it. They do so with
        a RuntimeError or a signal of their own (NCCL's watchdog aborts), never by SIGKILL or with
        an error that has a kind: these go before."""
        broken = [r for r, m in enumerate(self.members) if m.failed or _has_ended(m)]
        rank = min(broken, key=lambda r: (self._may_follow(r), self._failed_at(r)))
        member = self.members[rank]
        if member.failed:
            return self._error(rank, member.failed)
        code = member.process.returncode
        by = f"was ended by {signal.Signals(-code).name}" if code < 0 else ""
        return RuntimeError(self._about(rank, by or f"ended with exit code {code}"))

    def _may_follow(self, rank: int) -> bool:
        member = self.members[rank]
        if member.failed:
            return member.failed["kind"] not in ERRORS
        return member.process.returncode != -signal.SIGKILL

    def _failed_at(self, rank: int) -> float:
        member = self.members[rank]
        return member.failed["failed"] if member.failed else member.ended or time.time()

    def _error(self, rank: int, told: dict[str, Any]) -> Exception:
        named = told["kind"] in ERRORS and told["kind"] != MemoryError.__name__
        place = "" if named else f"process {rank} of {len(self.members)}: "
        error = ERRORS.get(told["kind"], RuntimeError)(place + told["text"])
        error.add_note(told["traceback"])
        return error

    def _about(self, rank: int, what: str) -> str:
        said = "; it said last:\n" + "\n".join(tail) if (tail := self.members[rank].tail) else ""
        return f"process {rank} of {len(self.members)} {what}{said}"

    def wait(self) -> None:
        """Until those that are through have ended, or for `ENDING_SECONDS`."""
        until = time.monotonic() + ENDING_SECONDS
        for member in self.members:
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, until - time.monotonic()))

    def kill(self) -> None:
        """End what is left."""
        for member in self.members:
            member.process.kill()
            member.process.wait()
            if member.process.stdin is not None:
                with suppress(BrokenPipeError):
                    member.process.stdin.close()
