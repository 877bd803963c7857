"""`banditgrid run`: a fresh Ray Tune run over what is left of a plan.

Nothing relies on Tune's experiment state: what is done is read from the store, each trial goes on
from its cell's own checkpoint, and the summary is read from the store again. Stopped by Ctrl-C (or
SIGTERM) it ends its workers, marks their runs KILLED and answers exit code 130; the next run goes
on from there. Leaves out clusters' job submission.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from grids.grid import Grid
from grids.outcome import DIVERGED, FINISHED
from grids.paths import Store, read_mark
from orchestrator import cluster, prepare
from orchestrator.ledger import DONE, FAILED, standing
from orchestrator.plan import Plan, Work, make_plan
from orchestrator.progress import Progress
from orchestrator.register import register
from orchestrator.show import console, duration, show_plan, table

INTERRUPTED = 130  # the exit code that shells give to a command ended by Ctrl-C


@dataclass
class Summary:
    """What a run came to."""

    plan: Plan
    ended: list[tuple[Work, str, str]] = field(default_factory=list)  # state and reason
    interrupted: bool = False
    stopped: str | None = None  # why Ray ended before its time
    seconds: float = 0.0

    def count(self, state: str) -> int:
        return sum(ended == state for _, ended, _ in self.ended)

    @property
    def exit_code(self) -> int:
        """0 all is well; 1 some cell failed or was not reached; 130 stopped by Ctrl-C."""
        if self.interrupted:
            return INTERRUPTED
        return int(self.stopped is not None or any(s not in DONE for _, s, _ in self.ended))


@dataclass(frozen=True)
class Settings:
    """How to run, as the command line gives it."""

    slots: int | None = None  # cells at a time
    address: str | None = None  # of a Ray cluster; None: this machine
    verbose: bool = False


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
    summary = Summary(plan)
    try:
        with termination_as_interrupt():
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
        _preflight(plan, out)
        works = prepare.unlevel(plan, store, uri)
        runs = prepare.Runs(uri, store) if works else None
    for share in plan.shares:
        register(share.grid, share.cells, store)
    if runs is not None:
        works = runs.ensure(plan, out)
        prepare.level(works, runs, store, out)
    if runs is not None and plan.todo:
        try:
            _train(summary, runs, store, settings, out)
        finally:
            with _undisturbed():
                _account(summary, runs, store)


def _preflight(plan: Plan, out: Console) -> None:
    """Find models and data of the cells that are left, before anything is written."""
    if plan.todo:
        from workers.preflight import check

        specs = (s for w in plan.todo for s in (w.cell.model_spec, w.cell.dataset_spec))
        if remote := sorted({spec.name for spec in specs if spec.path is None}):
            out.print(f"finding on the hub: {', '.join(remote)}", markup=False)
        for note in check(work.cell for work in plan.todo):
            out.print(note, markup=False)


def _train(
    summary: Summary, runs: prepare.Runs, store: Store, settings: Settings, out: Console
) -> None:
    todo = summary.plan.todo
    out.print("starting Ray and its workers: the first cells begin in about half a minute")
    with Progress(todo, store, out) as progress:
        try:
            summary.stopped = cluster.train(todo, runs, store, settings, progress)
        except KeyboardInterrupt:
            out.print("\nstopping: every cell goes on from its last checkpoint with the next run")
            raise
        finally:
            with _undisturbed():
                cluster.stop()


def _account(summary: Summary, runs: prepare.Runs, store: Store) -> None:
    """Read what became of each cell, and close the runs of those whose worker is gone."""
    for work in summary.plan.todo:
        paths = work.paths(store)
        found = standing(paths, work.cell.rounds, work.cell.eval_key)
        begun = runs.begun(work)
        state, reason = found.state, found.reason or ""
        if state not in (*DONE, FAILED) and begun:
            if summary.interrupted or summary.stopped is not None or _being_interrupted():
                runs.close(work, store, "KILLED", "the run was stopped")
            else:
                state, reason = FAILED, prepare.worker_died(work, paths, runs.attempts(work))
                runs.close(work, store, "FAILED", reason)
        summary.ended.append((work, state, reason))


def _being_interrupted() -> bool:
    return isinstance(sys.exc_info()[1], KeyboardInterrupt)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, which batch systems send, stops a program as Ctrl-C does."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave workers behind."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def show_summary(summary: Summary, store: Store, out: Console) -> None:
    """How many cells ended how; each failed one with its reason and where its traceback is."""
    out.print()
    left = len(summary.plan.todo)
    if not left and not summary.interrupted:
        out.print(f"nothing to train: all {len(summary.plan.works)} cells are done")
        return
    counts = {state: summary.count(state) for state in (FINISHED, DIVERGED, FAILED)}
    counts["not done"] = left - sum(counts.values())
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    out.print(f"of {left} cells: {told or 'none begun'}; {duration(summary.seconds)}")
    if summary.stopped:
        out.print(f"Ray stopped: {summary.stopped}", style="red", soft_wrap=True, markup=False)
    _show_failed(summary, store, out)
    if summary.interrupted or counts["not done"]:
        out.print("run the same command again to go on from the last checkpoints")


def _show_failed(summary: Summary, store: Store, out: Console) -> None:
    failed = [(work, reason) for work, state, reason in summary.ended if state == FAILED]
    if not failed:
        return
    made = table("failed", "reason", "traceback in")
    for work, reason in failed:
        path = work.paths(store).failed
        told = reason or str((read_mark(path) or {}).get("error", ""))
        made.add_row(work.cell.label, Text(told.splitlines()[0] if told else ""), _near(path))
    out.print(made)


def _near(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
