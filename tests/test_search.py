"""A driver that is told to leave asks its own cells, and hands out no more. No Ray runs.

Leaves out nodes that Ray drains, and real workers (`integration/test_leaving.py`).
"""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path

import pytest
from rich.console import Console

from grids.grid import Grid
from grids.paths import Store, read_json
from orchestrator.driver import INTERRUPTED, Summary, leaving_by_signal
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.queue import Queue
from orchestrator.search import leave_draining
from workers import lease

CONTENT = {"name": "g", "study": "s", "seeds": [0, 1, 2]}
AXES = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need the main thread"
)
def test_a_driver_that_is_told_to_leave_asks_its_cells_and_hands_out_no_more(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "store")
    plan = make_plan([Grid.model_validate(CONTENT | {"axes": AXES})], store)
    with Progress(plan.works, store, Console(file=io.StringIO())) as progress:
        queue = Queue(plan.works, store, progress, lambda: 2)
        ours, other = queue.next(), lease.acquire(plan.works[2].paths(store), "another driver's")
        assert ours is not None
        worker = lease.acquire(ours.paths, "ours")
        summary = Summary(plan, queue)
        with leaving_by_signal(summary):
            leave_draining(queue.given(), everywhere=queue.leaving)
            assert not ours.paths.leave.exists(), "nobody has told it yet"
            signal.raise_signal(signal.SIGUSR2)
        leave_draining(queue.given(), everywhere=queue.leaving)
        assert read_json(ours.paths.leave)["why"] == "preempted"
        assert queue.next() is None and not other.paths.leave.exists()
        summary.interrupted = queue.stopping
        assert summary.exit_code == INTERRUPTED
        worker.release()
        other.release()


def test_a_driver_without_cells_just_ends(tmp_path: Path) -> None:
    summary = Summary(make_plan([], Store(tmp_path)))
    with pytest.raises(KeyboardInterrupt), leaving_by_signal(summary):
        signal.raise_signal(signal.SIGUSR2)
