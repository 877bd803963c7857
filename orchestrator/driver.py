"""`banditgrid run`: a fresh Ray Tune run over what is left of a plan.

Nothing relies on Tune's experiment state: what is done is read from the store, each trial goes on
from its cell's own checkpoint, and the summary is read from the store again. Stopped by Ctrl-C (or
SIGTERM) it ends its workers, marks their runs KILLED and answers exit code 130; the next run goes
on from there. By SIGUSR2 it has its cells save a checkpoint and leave first. Leaves out clusters'
job submission.
"""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from grids.grid import Grid
from grids.outcome import DAMAGED, DIVERGED, FINISHED, STOPPED
from grids.paths import Store
from orchestrator import cluster, keeping, prepare
from orchestrator.capacity import Coming
from orchestrator.ledger import DONE, FAILED, standing
from orchestrator.plan import Plan, Work, make_plan
from orchestrator.progress import Progress
from orchestrator.queue import ATTEMPTS, GIVEN, Item, Queue
from orchestrator.register import register
from orchestrator.searches import Searches
from orchestrator.show import console, duration, show_plan, table
from orchestrator.show_limit import show_limit, show_spent
from orchestrator.show_search import show_searches, show_waiting

INTERRUPTED = 130  # the exit code that shells give to a command ended by Ctrl-C


@dataclass
class Summary:
    """What a run came to."""

    plan: Plan  # the cells of tables, and of searches as far as they have come
    queue: Queue | None = None  # None: nothing was handed out
    searches: Searches | None = None
    interrupted: bool = False
    max_gpu_hours: float | None = None
    stopped: str | None = None  # why Ray ended before its time
    seconds: float = 0.0

    @property
    def ended(self) -> list[Item]:
        return self.queue.items if self.queue else []

    @property
    def damaged(self) -> list[Work]:
        return [work for work in self.plan.works if work.state == DAMAGED]

    def count(self, state: str) -> int:
        return sum(item.state == state for item in self.ended)

    @property
    def exit_code(self) -> int:
        """0 all is well; 1 some cell failed or was not reached; 130 stopped by a person."""
        if self.interrupted:
            return INTERRUPTED
        unwell = self.stopped is not None or any(i.state not in DONE for i in self.ended)
        return int(unwell or bool(self.damaged))


@dataclass(frozen=True)
class Settings:
    """How to run, as the command line gives it."""

    slots: int | None = None  # cells at a time
    address: str | None = None  # of a Ray cluster; None: this machine
    verbose: bool = False
    attempts: int = ATTEMPTS  # at a cell, without a later checkpoint
    max_gpu_hours: float | None = None  # of this run's attempts, after which it stops
    coming: Coming | None = None  # GPUs that the cluster starts as cells ask for them


def run(
    grids: Sequence[Grid], store: Store, tracking_uri: str | None = None,
    settings: Settings | None = None, out: Console | None = None,
) -> Summary:  # fmt: skip
    """Train what the grids want and the store does not have.

    Raises `InputError` before anything is written where the input is wrong.
    """
    out, began = out or console(), time.monotonic()
    plan = make_plan(grids, store)
    show_plan(plan, out)
    searches = Searches(grids, plan, store)
    show_searches(searches.hunts, out)
    show_limit(plan, store, settings or Settings(), out)
    both = replace(plan, works=(*searches.works, *plan.works))
    summary = Summary(both, searches=searches)
    summary.max_gpu_hours = settings.max_gpu_hours if settings else None
    try:
        with termination_as_interrupt(), leaving_by_signal(summary):
            _run(summary, store, tracking_uri or store.tracking_uri, settings or Settings(), out)
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = time.monotonic() - began
    show_summary(summary, store, out)
    return summary


def _run(summary: Summary, store: Store, uri: str, settings: Settings, out: Console) -> None:
    plan = summary.plan
    with prepare.writable(store, [share.grid.study for share in plan.shares]):
        cluster.check(settings.address)
        _preflight(plan, settings.address is None, out)
        keeping.check(work.cell for work in plan.todo)
        where = prepare.tracking_of(plan, store, uri)
        prepare.identify(store)
    kept = keeping.keep((share.grid for share in plan.shares), store)
    for share in plan.shares:
        register(share.grid, share.cells, store)
    if summary.searches is not None:
        summary.searches.write()
    prepare.wanted_again(plan, store)
    if where is not None:
        prepare.level(plan, where, store, out)
    if where is not None and plan.todo:
        try:
            _train(summary, where, store, settings, out, kept)
        finally:
            with _undisturbed():
                _account(summary, where, store)


def _preflight(plan: Plan, trains_here: bool, out: Console) -> None:
    """Find models and data of the cells that are left, before anything is written."""
    if plan.todo:
        from workers.preflight import check

        specs = (s for w in plan.todo for s in (w.cell.model_spec, w.cell.dataset_spec))
        if remote := sorted({spec.name for spec in specs if spec.path is None}):
            out.print(f"finding on the hub: {', '.join(remote)}", markup=False)
        for note in check((work.cell for work in plan.todo), trains_here):
            out.print(note, markup=False)


def _train(
    summary: Summary, where: cluster.Tracking, store: Store, settings: Settings, out: Console,
    kept: keeping.Kept,
) -> None:  # fmt: skip
    todo = summary.plan.todo
    out.print("starting Ray and its workers: the first cells begin in about half a minute")

    def keep(queue: Queue) -> None:
        summary.queue = queue
        if summary.searches is not None:
            queue.more = summary.searches.more

    with Progress(todo, store, out) as progress:
        try:
            summary.stopped = cluster.train(todo, where, store, settings, progress, keep, kept)
        except KeyboardInterrupt:
            out.print("\nstopping: every cell goes on from its last checkpoint with the next run")
            raise
        finally:
            with _undisturbed():
                cluster.stop()


def _account(summary: Summary, where: cluster.Tracking, store: Store) -> None:
    """Read what became of cells; bring MLflow level with those whose worker could not."""
    if summary.queue is not None:
        summary.queue.settle()
    ours = [item for item in summary.ended if item.began]
    answers = True  # MLflow does; else nobody waits for it cell by cell
    for item in ours:
        if item.place == GIVEN:
            answers &= prepare.close(item, where, "KILLED", "the run was stopped", answers)
        elif item.doomed is not None:
            answers &= prepare.close(item, where, "FAILED", item.reason, answers)
    prepare.make_up([item.work for item in ours if item.state in DONE], where, store)
    if summary.queue is not None and summary.queue.stopping:
        summary.interrupted = True


def termination_as_interrupt() -> AbstractContextManager[None]:
    """SIGTERM, which batch systems send, stops a program as Ctrl-C does."""
    return _handled(signal.SIGTERM, signal.default_int_handler)


def leaving_by_signal(summary: Summary) -> AbstractContextManager[None]:
    """SIGUSR2, from the trap of a batch system's script, has this run's cells save and leave; those
    of other drivers stay. (Tune takes SIGUSR1 for itself.)"""

    def leave(*_: object) -> None:
        if summary.queue is None:
            raise KeyboardInterrupt  # no cell has begun
        summary.queue.leaving = summary.queue.stopping = True

    return _handled(signal.SIGUSR2, leave)


def _undisturbed() -> AbstractContextManager[None]:
    """A second Ctrl-C must not leave workers behind."""
    return _handled(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _handled(sign: signal.Signals, handler: Any) -> Iterator[None]:
    """Within it a signal does that; in another thread than the main one, whoever runs us there
    handles signals."""
    try:
        before = signal.signal(sign, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(sign, before)


def show_summary(summary: Summary, store: Store, out: Console) -> None:
    """How many cells ended how; each failed one with its reason and the command that shows why."""
    out.print()
    left = max(len(summary.plan.todo), len(summary.ended))  # searches ask for more as they go
    if summary.searches is not None and summary.queue is not None:
        show_searches(summary.searches.hunts, out)
    if not left and not summary.interrupted and not summary.damaged:
        out.print(f"nothing to train: all {len(summary.plan.works)} cells are done")
        return
    counts = {state: summary.count(state) for state in (FINISHED, DIVERGED, FAILED, STOPPED)}
    counts["not done"] = left - sum(counts.values())
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    out.print(f"of {left} cells: {told or 'none begun'}; {duration(summary.seconds)}")
    if summary.queue is not None and summary.queue.spent is not None:
        show_spent(summary.queue, summary.max_gpu_hours, out)
        return _show_failed(summary, store, out)
    if summary.stopped:
        out.print(f"Ray stopped: {summary.stopped}", style="red", soft_wrap=True, markup=False)
    _show_failed(summary, store, out)
    if summary.interrupted or counts["not done"] or counts[STOPPED]:
        out.print("run the same command again to go on from the last checkpoints")


def _show_failed(summary: Summary, store: Store, out: Console) -> None:
    failed = [(i.work, i.reason) for i in summary.ended if i.state == FAILED]
    failed += [(work, standing(work.paths(store)).reason or "") for work in summary.damaged]
    if not failed:
        return
    show_waiting((work for work, _ in failed), out)
    made = table("failed", "reason", "shown by")
    place = "" if store.root == Path("store") else f" --store {shlex.quote(str(store.root))}"
    for work, reason in failed:
        line = reason.splitlines()
        shown = f"banditgrid logs {work.cell.key}{place}"
        made.add_row(work.cell.label, Text(line[0] if line else ""), Text(shown))
    out.print(made)
