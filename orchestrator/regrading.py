"""`banditgrid regrade`: stored answers of finished cells under another grader, on this machine.

Cells are named by studies of a store or by grids; each is graded by its own worker's rules
(`workers.regrade`), a few processes at a time where there are many. Leaves out what the change
comes to, which `analysis` tells.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Console

from grids.catalog import DATASETS, DatasetSpec, pinned
from grids.cell import Cell, Evaluation
from grids.errors import InputError
from grids.grid import Grid
from grids.outcome import FAILED
from grids.paths import CellPaths, Store, read_mark
from orchestrator.change import Change, cells_of, named_few
from orchestrator.cluster import cores
from orchestrator.ledger import DONE, cell_keys, state_of
from workers import named

MADE, THERE, HELD = "regraded", "there already", "held by a worker"
# Below so many cells one process is done before others have started.
MANY_CELLS: Final = 40
MOST_PROCESSES: Final = 8
CHUNK: Final = 10  # cells that a process is given at a time
WORD_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Target:
    """A cell whose stored answers are to be graded.

    Attributes:
        asked: the cell with the new grader, and the evaluation and data set of its answers.
    """

    study: str
    key: str  # of the cell as it was trained
    trained: Cell
    asked: Cell
    paths: CellPaths


@dataclass
class Chosen:
    """What becomes of the cells that were named; lists hold labels."""

    todo: list[Target] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)  # the evaluation whose answers are asked
    other: list[str] = field(default_factory=list)  # the name stands for something else


@dataclass(frozen=True)
class Ended:
    """What became of one target: regraded, there already, held, or failed with a reason."""

    target: Target
    how: str
    told: str = ""
    unscored: int = 0

    @property
    def well(self) -> bool:
        """Its scores are there."""
        return self.how in (MADE, THERE)


@dataclass(frozen=True)
class Answers:
    """Which stored answers, of whom: studies of a store by name, and grids.

    Attributes:
        of: a named evaluation; None: the cells' own answers.
    """

    studies: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    of: str | None = None


def regrade(
    answers: Answers, store: Store, change: Change, name: str, out: Console,
    replace: bool = False,
) -> list[Ended]:  # fmt: skip
    """Grade every finished cell's stored answers; what became of each.

    Raises `InputError` before anything is written where the input is wrong.
    """
    named.checked_name(name)
    if answers.of == name:
        raise InputError(f"--of {name}: is what --name says too; give the new scores another name")
    chosen = choose(answers, store, change, name)
    _refuse(chosen, answers, name, store, replace)
    for what, labels in (("not finished", chosen.unfinished), ("no answers", chosen.without)):
        if labels:
            out.print(f"left out, {what}: {named_few(labels)}", markup=False, soft_wrap=True)
    return list(_watched(_regraded(chosen.todo, name, answers.of), len(chosen.todo), out))


def choose(answers: Answers, store: Store, change: Change, name: str) -> Chosen:
    """Look up in the store what is to be done."""
    chosen = Chosen()
    for study, key, given in _cells(answers, store):
        paths = store.study(study).cell(key)
        written = _written(paths)
        label = (written or given).label if (written or given) else key  # type: ignore[union-attr]
        if written is None or state_of(paths, None, None) not in DONE:
            chosen.unfinished.append(label)
            continue
        cell = _of_answers(written, given, paths, answers.of)
        if cell is None:
            chosen.without.append(label)
            continue
        asked = change.of(cell)
        kept = named.kept(paths, name)
        if kept is not None and kept.get("asked") != named.asked_of_answers(asked, answers.of):
            chosen.other.append(label)
        chosen.todo.append(Target(study, key, written, asked, paths))
    return chosen


def _cells(answers: Answers, store: Store) -> Iterator[tuple[str, str, Cell | None]]:
    """Study, key and, where a grid names it, the cell; each once."""
    wanted = cells_of(answers.grids)
    yield from ((study, key, cell) for (study, key), cell in wanted.items())
    for study in answers.studies:
        for key in cell_keys(store.study(study)):
            if (study, key) not in wanted:
                yield study, key, None


def _written(paths: CellPaths) -> Cell | None:
    """The cell as its answers were made; None where none can be read."""
    try:
        found = read_mark(paths.cell)
        return None if found is None else Cell.model_validate(found)
    except ValidationError:
        return None


def _of_answers(written: Cell, given: Cell | None, paths: CellPaths, of: str | None) -> Cell | None:
    """The cell with the data set and evaluation of the answers; None where there are none."""
    if of is None:
        spec = (given or written).dataset_spec
        return written.model_copy(update={"dataset_spec": _located(spec)})
    if (record := named.kept(paths, of)) is None:
        return None
    changes: dict[str, Any] = {
        "dataset": record["dataset"], "max_response": record["max_response"],
        "grader": record["grader"],
        "dataset_spec": _located(DatasetSpec.model_validate(record["dataset_spec"])),
        "eval": Evaluation.model_validate(record["eval"]),
    }  # fmt: skip
    return written.model_copy(update=changes)


def _located(spec: DatasetSpec) -> DatasetSpec:
    """The data set where this machine has it: as it was trained, else the catalogue's copy of it.

    Raises `InputError` where neither has the revision that was trained on.
    """
    return DatasetSpec.model_validate_json(_located_json(spec.model_dump_json()))


@lru_cache(maxsize=64)
def _located_json(text: str) -> str:
    spec = DatasetSpec.model_validate_json(text)
    if spec.path is None:
        return text
    known = DATASETS.get(spec.name)
    for found in (spec, known):
        if found is not None and found.path is not None and Path(found.path).is_dir():
            if pinned(found).revision == spec.revision:
                return spec.model_copy(update={"path": found.path}).model_dump_json()
    raise InputError(
        f"data set {spec.name}: the copy that was answered ({spec.path}, revision {spec.revision}) "
        "is not there or has changed, so that right answers are unknown; put it back, name its "
        "folder with --data DIR, or give a grid that names it"
    )


def _refuse(chosen: Chosen, answers: Answers, name: str, store: Store, replace: bool) -> None:
    if chosen.other and not replace:
        raise InputError(
            f"evaluation {name!r} is there already, of other settings, in "
            f"{named_few(chosen.other)}; choose another --name, or make it anew with --replace"
        )
    if not chosen.todo:
        of = f" with answers of evaluation {answers.of!r}" if answers.of else ""
        raise InputError(
            f"nothing to regrade in the store {store.root}: no finished cell{of} among "
            f"{len(chosen.unfinished) + len(chosen.without)} that were named; run the grids first, "
            "or name the right store with --store"
        )


# ---- processes


def _regraded(todo: Sequence[Target], name: str, of: str | None) -> Iterator[Ended]:
    processes = min(cores(), MOST_PROCESSES)
    if len(todo) < MANY_CELLS or processes < 2:
        yield from (_one(target, name, of) for target in todo)
        return
    with _pool(processes) as pool:
        chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
        futures = {pool.submit(_several, chunk, name, of): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield from _made(future, futures[future])


def _made(future: Future[list[Ended]], chunk: Sequence[Target]) -> list[Ended]:
    try:
        return future.result()
    except BrokenProcessPool:
        told = "a process that graded died, perhaps for want of memory; give the command again"
        return [Ended(target, FAILED, told) for target in chunk]


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes: a fork would take over locks that a thread of ours holds."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _several(targets: Sequence[Target], name: str, of: str | None) -> list[Ended]:
    return [_one(target, name, of) for target in targets]


def _one(target: Target, name: str, of: str | None) -> Ended:
    from workers.lease import Held, Lost
    from workers.regrade import regrade_cell

    try:
        made = regrade_cell(target.key, target.asked, name, target.paths.directory, of)
    except (Held, Lost) as error:
        return Ended(target, HELD, str(error))
    except Exception as error:  # one cell's damaged file says nothing of the others
        own = isinstance(error, InputError)
        return Ended(target, FAILED, str(error) if own else f"{type(error).__name__}: {error}")
    return Ended(target, MADE if made.made else THERE, "", made.unscored)


def _watched(ended: Iterable[Ended], total: int, out: Console) -> Iterator[Ended]:
    """The same, with a word now and then."""
    told = time.monotonic()
    for count, end in enumerate(ended, start=1):
        if time.monotonic() - told > WORD_SECONDS:
            told = time.monotonic()
            out.print(f"{count:,} of {total:,} cells")
        yield end
