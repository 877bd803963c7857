"""Named evaluations: scores of a cell beside its own, by another evaluation or another grader.

Each is a folder of the cell, `evaluations/NAME/`: `evaluation.json` tells what was asked, of what,
and what came out; `outcomes.parquet` holds the answers, as the cell's own file does. It is there
whole or not at all, and the cell's own files are never touched. Imports no torch. Leaves out how
answers come about (`rescore.py`) and how stored ones are graded (`regrade.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from grids import key as keys
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths, EvaluationPaths, read_mark, write_json
from workers.lease import Lease
from workers.writing import remove

EVALUATE, REGRADE = "evaluate", "regrade"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# What is read of `evaluation.json`; a record without one of them is none.
NEEDED: Final = {
    "kind", "asked", "source", "round", "grader", "dataset", "dataset_spec", "eval",
    "max_response", "base", "final",
}  # fmt: skip
MAGIC: Final = b"PAR1"  # a whole parquet file begins and ends with it

Record = dict[str, Any]


def checked_name(name: str) -> str:
    """The name, which is a folder's. Raises `InputError` where it cannot be one."""
    if NAME.fullmatch(name) is None:
        raise InputError(
            f"evaluation {name!r}: not a name; allowed: 1 to 64 letters, digits, '.', '_' and '-', "
            "a letter or digit first"
        )
    return name


def asked_of_weights(cell: Cell) -> Record:
    """What scoring kept weights as `cell` says comes down to."""
    return {"kind": EVALUATE, **keys.base(cell)}


def asked_of_answers(cell: Cell, of: str | None) -> Record:
    """What grading stored answers by the grader of `cell` comes down to; `of` names an evaluation
    whose answers they are, None the cell's own."""
    names = [name for name in (cell.grader, cell.flexible_grader) if name]
    return {"kind": REGRADE, "of": of, "graders": [keys.graded(cell, name) for name in names]}


def kept(paths: CellPaths, name: str) -> Record | None:
    """The record of a named evaluation, or None where there is no whole one."""
    found = paths.evaluation(name)
    record: Any = read_mark(found.record)
    whole = isinstance(record, dict) and record.keys() >= NEEDED and _is_parquet(found.outcomes)
    return record if whole else None


def _is_parquet(path: Path) -> bool:
    """Its end is there, and so, as files are cut short at their end, is the rest."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
            file.seek(-2 * len(MAGIC), os.SEEK_END)
            length, end = int.from_bytes(file.read(len(MAGIC)), "little"), file.read()
            return begin == end == MAGIC and 0 < length <= file.tell() - 3 * len(MAGIC)
    except OSError:  # missing, or shorter than that
        return False


def same_questions(one: Cell, other: Cell) -> bool:
    """Whether two cells are asked the same: rows and prompt, whatever the data set is called."""
    forms = [keys.base(cell) for cell in (one, other)]
    return all(forms[0][name] == forms[1][name] for name in ("dataset", "prompt"))


def is_same(record: Mapping[str, Any], asked: Record, source: Record) -> bool:
    """Whether it came of the same question to the same policy or answers."""
    return bool(record.get("asked") == asked and record.get("source") == source)


def record_of(
    name: str, key: str, cell: Cell, asked: Record, source: Record, round: int,
    scores: Mapping[str, Mapping[str, float]], notes: tuple[str, ...],
) -> Record:  # fmt: skip
    """The content of `evaluation.json`: equal input gives equal content, so no time is in it.

    `key` is of the cell as it was trained; `cell` is the cell as it was scored here, with its data
    set, grader and evaluation.
    """
    return {
        "name": name, "kind": asked["kind"], "key": key, "round": round, "asked": asked,
        "source": source, "grader": cell.grader, "dataset": cell.dataset,
        "eval": cell.eval.model_dump(mode="json"), "max_response": cell.max_response,
        "dataset_spec": cell.dataset_spec.model_dump(mode="json"), "notes": list(notes),
        "base": dict(scores["base"]), "final": dict(scores["final"]),
    }  # fmt: skip


def write(
    lease: Lease, record: Record, rows: Callable[[Path], None], provenance: Record | None = None
) -> None:
    """Put a named evaluation in its place; an older one of its name goes away.

    Args:
        lease: of the cell.
        record: made by `record_of`.
        rows: writes the answers at the path that it is given.
        provenance: what is not reproducible; None: nothing.
    """
    place = lease.paths.evaluation(record["name"]).directory

    def attempt() -> None:
        made = EvaluationPaths(lease.scratch("evaluation"))
        try:
            made.directory.mkdir()
            rows(made.outcomes)
            _sync(made.outcomes)
            if provenance is not None:
                write_json(made.provenance, provenance)
            write_json(made.record, record)
            place.parent.mkdir(exist_ok=True)
            lease.discard(place)
            lease.put(made.directory, place)
        except BaseException:
            remove(made.directory)
            raise

    lease.patiently(attempt, place)


def _sync(path: Path) -> None:
    """A file on the disk itself, before its folder's name says that it is whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def told_of_lease() -> dict[str, Any]:
    """For the lease's beats: no attempt at the cell has begun, so a kill here is none that was
    lost (`orchestrator.attempts`)."""
    return {"began": ""}
