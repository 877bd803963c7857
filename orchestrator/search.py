"""The queue as Tune sees it: a searcher that hands out cells, and callbacks that tell what became
of them. Leaves out every decision (`queue.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.search import Searcher

from grids.errors import InputError
from grids.outcome import PREEMPTED
from orchestrator import stopping
from orchestrator.attempts import Result
from orchestrator.cost_limit import Limit
from orchestrator.queue import Item, Queue
from workers import lease
from workers.writing import PATIENCE_SECONDS

POLL_SECONDS = 2.0


class Cells(Searcher):
    """Suggests the queue's next cell when there is a slot for it. A copy, as Tune pickles it, is an
    empty searcher: nothing is ever restored from it."""

    def __init__(self, queue: Queue, task: Callable[[Item], dict[str, Any]]) -> None:
        super().__init__()
        self._queue, self._task = queue, task

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        item = self._queue.next()
        if item is not None:
            return {"task": self._task(item)}
        return Searcher.FINISHED if self._queue.finished else None

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """`Watcher` has told the queue."""

    def save(self, checkpoint_path: str) -> None:
        """The store tells a new driver all that it needs."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def __deepcopy__(self, memo: Any) -> Cells:
        return self

    def __reduce__(self) -> Any:
        return (Searcher, ())


class Watcher(Callback):
    """Tells the queue what becomes of its cells. A copy, as Tune pickles it, does nothing."""

    def __init__(self, queue: Queue, limit: Limit | None = None) -> None:
        self._queue, self._limit, self._looked = queue, limit, 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if self._limit is not None:
            self._limit.started(where(trial))
        patiently(self._queue.started, where(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        told = Result(how=result["how"], reason=result["reason"])
        if self._limit is not None:
            self._limit.ended(where(trial))
        patiently(self._queue.returned, where(trial), told)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if self._limit is not None:
            self._limit.ended(where(trial))
        patiently(self._queue.died, where(trial), last_line(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Every two seconds: cells on a machine that is to go are asked to leave it, and all where
        the GPU-hours are spent or the driver was told to leave."""
        if time.monotonic() - self._looked > POLL_SECONDS:
            self._looked = time.monotonic()
            try:
                if self._limit is not None:
                    self._limit.look(self._queue)
                leave_draining(self._queue.given(), everywhere=self._queue.leaving)
            except (OSError, InputError):
                pass  # the store does not answer: again in two seconds

    def __deepcopy__(self, memo: Any) -> Watcher:
        return self

    def __reduce__(self) -> Any:
        return (Callback, ())


def patiently(tell: Callable[..., None], *arguments: Any) -> None:
    """Tell the queue, again while the store does not answer: nothing can be handed out then."""
    began = time.monotonic()
    while True:
        try:
            return tell(*arguments)
        except OSError:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise
            time.sleep(POLL_SECONDS)


def where(trial: Any) -> tuple[str, str]:
    task = trial.config["task"]
    return task["study"], task["key"]


def last_line(trial: Any) -> str:
    """The last line of what Ray says of a trial's end."""
    try:  # the local copy: Tune's own reader waits for the next time that it is copied
        lines = Path(trial.error_file).read_text(encoding="utf-8").strip().splitlines()
    except (OSError, TypeError, ValueError):
        lines = []
    return lines[-1][:300] if lines else "the worker process died before it began"


def leave_draining(items: list[Item], everywhere: bool = False) -> None:
    """Ask the workers on nodes that Ray is draining, or on all, to save and leave."""
    nodes = draining()
    for item in items if nodes or everywhere else []:
        holder = lease.read(item.paths)
        wanted = everywhere or (holder is not None and holder.node in nodes)
        if wanted and not item.paths.leave.exists():
            stopping.ask(item.paths, PREEMPTED)


def draining() -> set[str]:
    """Ids of nodes with a preemption notice. Ray has no public way to ask for them."""
    from ray._private.state import state

    try:
        return set(state.get_draining_nodes())
    except Exception:  # another Ray, or the head is away: then nothing is known
        return set()
