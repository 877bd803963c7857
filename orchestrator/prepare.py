"""What the driver does before the first worker: the store probed, runs made.

Leaves out Ray: the workers find their run by the id that is made here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from grids.errors import InputError
from grids.paths import CellPaths, Store, read_mark
from orchestrator import marks, tracking
from orchestrator.plan import Plan, Work

MANY_RUNS = 20  # from this number on, making them is worth a line


@contextmanager
def writable(store: Store, studies: Iterable[str]) -> Iterator[None]:
    """The store's folders, made and proven writable; taken away again if what follows fails.

    Raises `InputError` naming the folder and the fix.
    """
    folders = [store.root, *(store.study(name).directory for name in dict.fromkeys(studies))]
    made: list[Path] = []
    try:
        for folder in folders:
            made += _make(folder)
            probe = folder / f".probe.{os.getpid()}"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        yield
    except BaseException as error:
        for folder in reversed(made):
            _remove_empty(folder)
        if isinstance(error, OSError):
            raise InputError(
                f"the store {store.root} cannot be written: {error.strerror}: {error.filename}; "
                "mend its permissions or free space, or name another folder with --store"
            ) from None
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; answer those that were not there."""
    absent = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return absent[::-1]


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # somebody put something there: it stays


def unlevel(plan: Plan, store: Store, uri: str) -> list[Work]:
    """Cells that need MLflow: those to train, and done ones whose run may lack something."""
    return [
        work for work in plan.works if work.todo or not marks.is_level(work, work.paths(store), uri)
    ]


class Runs:
    """The MLflow runs of a plan's cells. Raises `InputError` where no tracking store answers."""

    def __init__(self, uri: str, store: Store) -> None:
        self.uri = uri
        self._store = store
        self._client = tracking.connect(uri)
        self._known: dict[str, dict[str, Any]] = {}
        self._ids: dict[tuple[str, str], str] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._begun: set[tuple[str, str]] = set()

    def ensure(self, plan: Plan, out: Console) -> list[Work]:
        """Make or find the run of each cell that needs one; answer the done cells that do."""
        try:
            return self._ensure(plan, out)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"MLflow at {marks.redacted(self.uri)} stopped answering before training began "
                f"({tracking.brief(error)}); nothing was trained: mend it and run again"
            ) from None

    def _ensure(self, plan: Plan, out: Console) -> list[Work]:
        experiments = {}
        for study in dict.fromkeys(work.study for work in plan.works):
            experiments[study] = tracking.ensure_experiment(self._client, study, self._artifacts())
            self._known[study] = tracking.known_runs(self._client, experiments[study])
        needing = [work for work in plan.works if work.todo or not self._is_level(work)]
        if len(needing) >= MANY_RUNS:
            out.print(f"preparing {len(needing)} MLflow runs")
        for work in needing:
            known = self._known[work.study]
            run_id = tracking.ensure_run(self._client, experiments[work.study], work, known)
            self._ids[work.study, work.cell.key] = run_id
            failed = read_mark(work.paths(self._store).failed) or {}
            self._attempts[work.study, work.cell.key] = int(failed.get("attempts", 0))
        return [work for work in needing if not work.todo]

    def _is_level(self, work: Work) -> bool:
        known = self._known[work.study]
        return marks.is_level(work, work.paths(self._store), self.uri, known)

    def _artifacts(self) -> str | None:
        """A SQLite store has no server to keep artifacts; they go beside the store's cells."""
        inside = marks.sqlite_path(self.uri) is not None
        return (self._store.root.resolve() / "artifacts").as_uri() if inside else None

    def id(self, work: Work) -> str:
        return self._ids[work.study, work.cell.key]

    def attempts(self, work: Work) -> int:
        """How often the cell had failed before this run."""
        return self._attempts[work.study, work.cell.key]

    def begin(self, work: Work) -> None:
        """A worker has the cell."""
        self._begun.add((work.study, work.cell.key))

    def begun(self, work: Work) -> bool:
        return (work.study, work.cell.key) in self._begun

    def close(self, work: Work, store: Store, status: str, reason: str) -> None:
        """End the run of a cell whose worker cannot do so any more."""
        paths = work.paths(store)
        writer = tracking.Writer(self.uri, self.id(work), paths, work.grids)
        writer.level(marks.behind(paths, self.uri, self.id(work)))
        writer.end(status, reason)


def level(works: Sequence[Work], runs: Runs, store: Store, out: Console) -> None:
    """Bring the runs of done cells level with their journals."""
    for work in works:
        paths = work.paths(store)
        if not tracking.bring_level(work, paths, runs.uri, runs.id(work)):
            out.print(f"{work.cell.label}: MLflow lacks its history; the next run sends it")


def worker_died(work: Work, paths: CellPaths, attempts: int) -> str:
    """Note a cell whose process ended without a word; answer the reason."""
    from orchestrator.trainable import note_failure

    reason = (
        "its worker process died (out of memory, or a crash in native code); run again to go on "
        "from its checkpoint, with fewer --slots or a smaller rows_per_pass where memory ran out"
    )
    note_failure(paths, work.cell.key, reason, "", attempts + 1)
    return reason
