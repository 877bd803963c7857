"""One Tune trial: one cell, trained by `workers.run_cell`, its MLflow run brought level.

A class trainable, so that the cell runs in the worker's main thread, and that one process serves
many cells: it imports torch and TRL once, and keeps the model that the next cell may want. One
`step` is the whole cell; `run_cell` goes on from the cell's own checkpoint, so Tune's checkpoints
are not used. All that a worker does with a cell it does under the cell's lease. After a cell that
failed, or that left memory behind, the next one gets a fresh process.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypedDict

import ray
from ray import tune
from ray.tune.result import DONE

from grids.cell import Cell
from grids.errors import InputError
from grids.outcome import (
    ENGINE_DIED,
    FAILED,
    LOST,
    OUT_OF_MEMORY,
    PREEMPTED,
    STOPPED,
    Progress,
)
from grids.paths import CellPaths, Store, read_mark
from orchestrator import attempts
from orchestrator.attempts import BLIND, HELD, MISTAKE, Ending, Result
from orchestrator.capture import captured
from orchestrator.ledger import DONE as DONE_STATES
from orchestrator.ledger import state_of
from orchestrator.marks import redacted
from orchestrator.writer import Writer
from workers.engine_check import EngineError, NoRoomError
from workers.lease import Held, Lease, Lost, held

# After these the process ends: a failed CUDA context or a half-changed library must not reach the
# next cell, and a machine that is wanted for something else gets none.
ENDING_PROCESS: Final = (FAILED, OUT_OF_MEMORY, ENGINE_DIED, LOST, PREEMPTED)
LOOK_SECONDS = 1.0  # between looks for a request to leave


class Task(TypedDict):
    """A cell as Tune carries it: small, and without credentials."""

    study: str
    key: str
    cell: str  # Cell.model_dump_json()
    store: str
    store_id: str
    experiment: str  # MLflow's id of the study
    grids: list[str]
    gpus: float | None  # share of a GPU; None: on the CPU
    stale: int | None  # epoch of a lease whose holder is dead
    halved: bool  # rows_per_pass is, since memory ran out


class Wish:
    """Whether somebody wants the worker to leave its cell, and why."""

    def __init__(self, paths: CellPaths, store: Store, study: str) -> None:
        self._files = (paths.leave, store.study(study).leave)
        self._looked = 0.0
        self.why: str | None = None

    def terminate(self, *_: Any) -> None:
        """Handles SIGTERM: the machine is wanted for something else."""
        self.why = PREEMPTED

    def look(self) -> bool:
        """Look for a request, at most once a second."""
        if self.why is None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            for file in self._files:
                if file.exists():
                    self.why = (read_mark(file) or {}).get("why", STOPPED)
        return self.why is not None


class Trial:
    """One attempt at a cell in this process."""

    def __init__(
        self, task: Task, uri: str, node: str = "", began: float | None = None, fresh: bool = False
    ) -> None:
        from workers.memory import Peak

        self.task, self.uri = task, uri
        # For what cells cost: since when, and whether this process had everything to import.
        self._began, self._fresh = time.monotonic() if began is None else began, fresh
        self.cell = Cell.model_validate_json(task["cell"])
        self.store = Store(Path(task["store"]))
        self.paths = self.store.study(task["study"]).cell(task["key"])
        self.peak = Peak()
        self.spoilt = False  # the process is not to be trusted with another cell
        self._round: int | None = None  # the last that was told of
        self.wish = Wish(self.paths, self.store, task["study"])
        self.told: dict[str, Any] = {
            "node": node, "gpus": task["gpus"],
            "rows_per_pass": self.cell.rows_per_pass if task["halved"] else None,
            "from_round": None,
        }  # fmt: skip

    def about(self) -> dict[str, Any]:
        """For the lease's beats and the attempt's line."""
        return self.told | self.peak.read()

    def run(self) -> Result:
        """Train the cell. Every way in which that can end is a `Result`."""
        if read_mark(self.store.identity) != {"id": self.task["store_id"]}:
            return Result(how=BLIND, reason=self._blind())
        if (done := self._done()) is not None:
            return done
        self.peak.reset()
        try:
            with held(self.paths, self.cell.label, self.about, self.task["stale"]) as lease:
                if (done := self._done()) is not None:
                    return done
                with captured(self.paths.log):
                    return self._train(lease)
        except Held as error:
            return Result(how=HELD, reason=str(error))
        except Lost as error:
            return Result(how=LOST, reason=str(error))

    def _done(self) -> Result | None:
        """Another driver's worker was faster."""
        state = state_of(self.paths, self.cell.rounds, self.cell.eval_key)
        return Result(how=state, reason="") if state in DONE_STATES else None

    def _train(self, lease: Lease) -> Result:
        attempts.note_lost(lease)
        self.told["from_round"] = attempts.checkpoint_round(self.paths)
        lease.discard(self.paths.failed)
        writer = Writer(
            self.uri, self.task["experiment"], self.cell, self.task["grids"], self.paths, lease
        )
        writer.begin(lease.epoch, self.cell.rows_per_pass if self.task["halved"] else None)

        def report(progress: Progress) -> bool:
            lease.check()
            self._round = progress.round
            writer.write(progress.line)
            return self.wish.look()

        try:
            done = self._run_cell(lease, report)
        except Lost:
            raise
        except Exception as error:
            return self._failed(error, lease, writer)
        if done is None:
            return self._left(lease, writer)
        writer.finish(done)
        return self._ended(Ending(done["status"], done.get("reason") or ""), lease)

    def _run_cell(self, lease: Lease, report: Any) -> dict[str, Any] | None:
        from workers import memory
        from workers.run import run_cell

        if self.cell.processes == 1:  # others have their GPUs to themselves, and this one none
            memory.fence(self.task["gpus"])
        with terminating(self.wish):
            return run_cell(
                self.cell, self.paths.directory, report,
                self.store.study(self.task["study"]).shared, lease,
            )  # fmt: skip

    def _failed(self, error: Exception, lease: Lease, writer: Writer) -> Result:
        from workers import memory

        mended = isinstance(error, InputError)  # its text is the whole message
        self.spoilt = isinstance(error, EngineError)
        told = redacted(error if mended else self._told(error))
        how = ENGINE_DIED if self.spoilt else FAILED
        if not isinstance(error, NoRoomError) and not mended and memory.is_out_of_memory(error):
            how = OUT_OF_MEMORY
        ending = Ending(how, told, redacted(traceback.format_exc()), final=mended)
        result = self._ended(ending, lease)
        attempts.mark_failed(lease, self.cell.key, ending)
        writer.end("FAILED", told.splitlines()[0] if told else type(error).__name__)
        return Result(how=MISTAKE if mended else result["how"], reason=told)

    def _told(self, error: Exception) -> str:
        if not isinstance(error, EngineError):
            return f"{type(error).__name__}: {error}"
        before = self.told["from_round"] if self._round is None else self._round
        return f"{error} (in round {before + 1})" if before is not None else str(error)

    def _left(self, lease: Lease, writer: Writer) -> Result:
        why = self.wish.why or STOPPED
        if why == PREEMPTED:
            lease.discard(self.paths.leave)  # whoever gets the cell next is not meant
        writer.end("KILLED", why)
        return self._ended(Ending(why), lease)

    def _ended(self, ending: Ending, lease: Lease) -> Result:
        cost = {"seconds": round(time.monotonic() - self._began, 2), "fresh": self._fresh}
        attempts.note(lease, replace(ending, told=self.about() | cost))
        return Result(how=ending.how, reason=ending.reason)

    def _blind(self) -> str:
        import socket

        return (
            f"host {socket.gethostname()} does not see the store {self.store.root}: the folder is "
            "absent there, or another; share it between all hosts of the cluster under one path"
        )


@contextmanager
def terminating(wish: Wish) -> Iterator[None]:
    """Within it SIGTERM asks the cell to leave; after a checkpoint."""
    before = signal.signal(signal.SIGTERM, wish.terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class CellTrial(tune.Trainable):
    """See the module."""

    def setup(
        self, config: dict[str, Any], uri: str = "", env: dict[str, str] | None = None
    ) -> None:
        # Before torch and mlflow are imported: both read their settings then.
        os.environ.update(env or {})
        self._task: Task = config["task"]
        self._uri, self._fresh = uri, True

    def step(self) -> dict[str, Any]:
        began = time.monotonic()
        from workers import warm

        node = ray.get_runtime_context().get_node_id()
        trial = Trial(self._task, self._uri, node, began, self._fresh)
        self._fresh = False
        result = trial.run()
        if result["how"] in ENDING_PROCESS or trial.spoilt or warm.leaked(trial.cell):
            ray.actor.exit_actor()  # the driver reads in the store how the cell ended
        if result["how"] == MISTAKE:
            warm.forget()
        return {**result, "key": self._task["key"], DONE: True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._task = new_config["task"]
        return True
