"""The queue: who gets a cell when, again and again, and what counts as failed. No Ray: the workers
here are leases that the tests take, as real ones do."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from grids.grid import Grid
from grids.paths import Store, read_json, read_lines, write_json
from orchestrator import attempts, prepare
from orchestrator.attempts import BLIND, HELD, MISTAKE, Ending, Result
from orchestrator.cluster import Tracking
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.queue import BROKEN_STARTS, ELSEWHERE, ENDED, Item, Queue
from workers import lease


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.queue.POLL_SECONDS", 0.0)


@pytest.fixture
def queues(store: Store) -> Iterator[Callable[..., Queue]]:
    """Makes drivers' queues over three cells."""
    made: list[Progress] = []

    def make(slots: int = 2, seeds: int = 3, limit: int = 3) -> Queue:
        axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}
        content = {"name": "g", "study": "s", "axes": axes, "seeds": list(range(seeds))}
        works = make_plan([Grid.model_validate(content)], store).works
        progress = Progress(works, store, Console(file=io.StringIO(), width=200))
        made.append(progress.__enter__())
        return Queue(works, store, progress, lambda: slots, limit)

    yield make
    for progress in made:
        progress.__exit__(None, None, None)


class Worker:
    """A worker that has a cell."""

    def __init__(self, queue: Queue, item: Item) -> None:
        self.queue, self.item = queue, item
        queue.started(item.where)
        self.lease = lease.acquire(item.paths, "cell", stale=item.stale)
        attempts.note_lost(self.lease)

    def checkpoint(self, round: int) -> None:
        (self.item.paths.checkpoint / f"{round:06d}").mkdir(parents=True)

    def ends(self, how: str, reason: str = "") -> None:
        """With its line written, as workers do."""
        attempts.note(self.lease, Ending(how, reason))
        if how == "failed":
            attempts.mark_failed(self.lease, "key", Ending(how, reason))
        self.lease.release()
        self.queue.returned(self.item.where, Result(how=how, reason=reason))

    def finishes(self) -> None:
        cell = self.item.work.cell
        done = {"key": cell.key, "eval_key": cell.eval_key, "rounds": cell.rounds}
        write_json(self.item.paths.done, done | {"status": "finished", "final": {}})
        self.ends("finished")

    def dies(self) -> None:
        """Without a word; the system frees its lock."""
        self.lease._stop.set()
        self.lease._thread.join()
        assert self.lease._lock is not None
        self.lease._lock.close()
        self.queue.died(self.item.where, "ActorDiedError: the worker is gone")


def given(queue: Queue) -> Item:
    item = queue.next()
    assert item is not None
    return item


def seed(item: Item | None) -> int | None:
    return None if item is None else item.work.cell.seed


def test_cells_are_handed_out_in_order_and_no_more_than_slots(queues: Any) -> None:
    queue = queues(slots=2)
    first, second = given(queue), given(queue)
    assert (seed(first), seed(second), queue.next()) == (0, 1, None)
    worker = Worker(queue, first)
    worker.finishes()
    assert seed(queue.next()) == 2 and not queue.finished
    assert [i.state for i in queue.items] == ["finished", "", ""]


def test_a_failed_cell_comes_after_the_others_and_at_most_three_times(
    queues: Any, store: Store
) -> None:
    queue = queues(slots=1, seeds=2)
    order = []
    while (item := queue.next()) is not None:
        order.append(seed(item))
        Worker(queue, item).ends("failed", "RuntimeError: broken")
    assert order == [0, 1, 0, 1, 0, 1] and queue.finished
    for item in queue.items:
        assert item.state == "failed" and "RuntimeError: broken" in item.reason
        assert [a["how"] for a in read_lines(item.paths.attempts)] == ["failed"] * 3
        failed = read_json(item.paths.failed)
        assert failed is not None and failed["attempts"] == 3


def test_attempts_that_make_progress_do_not_count(queues: Any) -> None:
    queue = queues(slots=1, seeds=1)
    for round in range(1, 9):  # a machine that dies every hour
        worker = Worker(queue, given(queue))
        worker.checkpoint(round)
        worker.dies()
    worker = Worker(queue, given(queue))
    worker.finishes()
    (item,) = queue.items
    assert item.state == "finished" and queue.finished
    told = read_lines(item.paths.attempts)
    assert [a["how"] for a in told] == ["lost"] * 8 + ["finished"]
    assert [a["attempt"] for a in told] == list(range(1, 10))


def test_a_worker_that_dies_thrice_at_one_place_fails_its_cell_with_the_reason(queues: Any) -> None:
    queue = queues(slots=1, seeds=1)
    for _ in range(3):
        Worker(queue, given(queue)).dies()
    while not queue.finished:
        assert queue.next() is None
    (item,) = queue.items
    assert item.state == "failed" and "its worker died" in item.reason
    failed = read_json(item.paths.failed)
    assert failed is not None and "its worker died" in failed["error"]
    assert [a["how"] for a in read_lines(item.paths.attempts)] == ["lost"] * 3


def test_a_mistake_is_not_tried_again(queues: Any) -> None:
    queue = queues(slots=1, seeds=1)
    queue.returned(given(queue).where, Result(how=MISTAKE, reason="no such model"))
    assert queue.finished and queue.items[0].reason == "no such model"


def test_a_preempted_cell_comes_first(queues: Any) -> None:
    queue = queues(slots=1)
    Worker(queue, given(queue)).ends("preempted")
    assert seed(queue.next()) == 0


def test_memory_that_runs_out_gets_one_more_try_with_half(queues: Any) -> None:
    queue = queues(slots=1, seeds=1)
    item = given(queue)
    assert not item.halved
    Worker(queue, item).ends("out_of_memory", "CUDA out of memory")
    assert given(queue).halved
    Worker(queue, item).ends("out_of_memory", "CUDA out of memory")
    while not queue.finished:
        assert queue.next() is None
    assert item.state == "failed" and item.reason.startswith("CUDA out of memory")
    other = queues(slots=1, seeds=1)
    assert given(other).halved, "the next driver knows"


@pytest.mark.parametrize("limit", [1, 3])
def test_an_engine_that_died_is_tried_once_more_whatever_else_was_tried(
    queues: Any, limit: int
) -> None:
    queue = queues(slots=1, seeds=1, limit=limit)
    item, told = given(queue), "the vLLM engine died while it answered 8 prompts"
    item.tries = limit - 1  # its other failures would already have been one too many
    worker = Worker(queue, item)
    attempts.mark_failed(worker.lease, "key", Ending("engine_died", told))
    worker.ends("engine_died", told)
    assert item.place != ENDED and given(queue) is item
    later = Worker(queue, item)
    later.checkpoint(7)
    later.ends("engine_died", told)
    assert given(queue) is item, "a death after progress is a first one"
    again = Worker(queue, item)
    attempts.mark_failed(again.lease, "key", Ending("engine_died", told))
    again.ends("engine_died", told)
    assert (item.place, item.state, item.reason) == (ENDED, "failed", told) and queue.finished


def test_what_another_try_would_end_like_is_a_mistake_even_if_the_process_ended(
    queues: Any,
) -> None:
    queue = queues(slots=1, seeds=1)
    worker = Worker(queue, item := given(queue))
    ending = Ending("failed", "no room for its cache", final=True)
    attempts.note(worker.lease, ending)
    attempts.mark_failed(worker.lease, "key", ending)
    worker.lease.release()
    queue.died(item.where, "ActorDiedError: it ended itself")
    assert (item.place, item.state, item.reason) == (ENDED, "failed", "no room for its cache")


def test_a_worker_that_could_tell_before_it_ended_is_believed(queues: Any) -> None:
    queue = queues(slots=2, seeds=2)
    item = given(queue)
    worker = Worker(queue, item)
    attempts.note(worker.lease, Ending("out_of_memory", "CUDA out of memory"))
    worker.lease.release()
    queue.died(item.where, "the actor exited")
    assert item.halved and item.tries == 1


def test_workers_that_die_before_they_begin_are_not_attempts_but_not_endless(queues: Any) -> None:
    queue = queues(slots=1, seeds=1)
    for _ in range(BROKEN_STARTS):
        queue.died(given(queue).where, "ModuleNotFoundError: no module named x")
    while not queue.finished:
        assert queue.next() is None
    (item,) = queue.items
    assert item.state == "failed" and item.reason == "ModuleNotFoundError: no module named x"
    assert attempts.attempts(item.paths) == []


def test_a_host_that_does_not_see_the_store_is_told(queues: Any) -> None:
    queue = queues(slots=1, seeds=1)
    for _ in range(BROKEN_STARTS):
        queue.returned(given(queue).where, Result(how=BLIND, reason="host h does not see it"))
    while not queue.finished:
        assert queue.next() is None
    assert queue.items[0].reason == "host h does not see it"


def test_two_drivers_share_the_cells_out(queues: Any) -> None:
    one, two = queues(slots=1), queues(slots=1)
    mine = Worker(one, given(one))
    theirs = Worker(two, given(two))
    assert (seed(mine.item), seed(theirs.item)) == (0, 1)
    assert [i.place for i in two.items][0] == ELSEWHERE
    mine.finishes()
    third = Worker(one, given(one))
    assert seed(third.item) == 2
    theirs.finishes()
    assert two.next() is None and not two.finished
    third.finishes()
    assert one.next() is None and one.finished
    assert two.next() is None and two.finished
    for queue in (one, two):
        assert [i.state for i in queue.items] == ["finished"] * 3


def test_what_another_driver_gives_up_is_taken(queues: Any) -> None:
    one, two = queues(slots=1, seeds=1), queues(slots=1, seeds=1)
    worker = Worker(one, given(one))
    assert two.next() is None
    worker.lease._stop.set()  # killed with its driver
    worker.lease._thread.join()
    assert worker.lease._lock is not None
    worker.lease._lock.close()
    taken = Worker(two, given(two))
    with pytest.raises(lease.Lost):
        worker.lease.check()
    taken.finishes()
    assert two.items[0].state == "finished"
    assert one.next() is None


def test_a_cell_that_was_faster_taken_by_another_is_watched(queues: Any) -> None:
    one, two = queues(slots=1, seeds=1), queues(slots=1, seeds=1)
    late = given(one)
    worker = Worker(two, given(two))
    one.returned(late.where, Result(how=HELD, reason="another has it"))
    assert late.place == ELSEWHERE and one.next() is None
    worker.finishes()
    assert one.next() is None and late.state == "finished"


def test_a_driver_that_ends_leaves_another_drivers_worker_alone(
    queues: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "FREE_SECONDS", 0.3)
    one, two = queues(slots=1, seeds=1), queues(slots=1, seeds=1)
    late = given(one)
    one.started(late.where)  # and its worker is about to find that another has the cell
    worker = Worker(two, given(two))
    prepare.close(late, Tracking("sqlite://", {"s": "1"}), "KILLED", "the run was stopped")
    worker.lease.check()
    worker.finishes()


def test_stopping_a_cell_and_a_study(queues: Any, store: Store) -> None:
    queue = queues(slots=1)
    write_json(queue.items[1].paths.leave, {"why": "stopped"})
    worker = Worker(queue, given(queue))
    worker.finishes()
    assert seed(queue.next()) == 2 and queue.items[1].state == "stopped"
    write_json(store.study("s").leave, {"why": "stopped"})
    Worker(queue, queue.items[2]).ends("stopped")
    assert queue.stopping and queue.next() is None and queue.finished


def test_a_study_that_is_to_stop_gives_nothing_out_any_more(queues: Any, store: Store) -> None:
    queue = queues(slots=1)
    queue._looked = 1e18  # long before the next look around
    write_json(store.study("s").leave, {"why": "stopped"})
    assert queue.next() is None and queue.stopping
    assert [i.state for i in queue.items] == ["stopped"] * 3


def test_a_request_for_a_preempted_machine_stops_no_cell(queues: Any) -> None:
    queue = queues(slots=1)
    write_json(queue.items[0].paths.leave, {"why": "preempted"})
    assert seed(queue.next()) == 0


def test_a_store_that_does_not_answer_for_a_while_loses_no_cell(
    queues: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queues(slots=3)

    def away(_: Any) -> None:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(lease, "read", away)
        for _ in range(3):
            assert queue.next() is None and not queue.finished
    assert [seed(queue.next()) for _ in range(4)] == [0, 1, 2, None]


def test_at_the_end_the_store_tells_what_finished(queues: Any) -> None:
    queue = queues(slots=1, seeds=1)
    item = given(queue)
    cell = item.work.cell
    done = {"key": cell.key, "eval_key": cell.eval_key, "rounds": cell.rounds}
    write_json(item.paths.done, done | {"status": "finished", "final": {}})
    queue.settle()
    assert (item.place == ENDED, item.state) == (False, "finished")
