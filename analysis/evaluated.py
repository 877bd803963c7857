"""A study of a store under a named evaluation: scores that lie beside the runs' own.

What `banditgrid evaluate` and `regrade` left under a name stands for base and final scores and for
graded answers; training, its costs and its curves stay those of the runs. A run without that
evaluation is not counted, and says so. Leaves out making them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis import records
from analysis.opening import store_at
from analysis.outcomes import Answers, Which, read_answers
from analysis.records import Damaged
from analysis.runs import Run, read_run
from analysis.sheet import joined
from analysis.sources import StoreSource
from grids import key as keys
from grids import outcome
from grids.cell import Cell, Evaluation
from grids.errors import InputError, listed, nearest
from grids.outcome import DAMAGED, DIVERGED, UNFINISHED
from grids.paths import Store, StudyPaths

Record = dict[str, Any]


def evaluated_at(where: Store | str, study: str, evaluation: str) -> EvaluatedSource:
    """What reads a study of a store, or a study's folder, under a named evaluation.

    Raises `InputError` where there is no such store, study or evaluation.
    """
    folder = where.root if isinstance(where, Store) else Path(where)
    if not folder.is_dir():
        raise InputError(
            f"--evaluation: {folder} is no folder; named evaluations lie in a store, or in a "
            "study's folder, and nowhere else"
        )
    source = EvaluatedSource(store_at(folder, study).paths, evaluation)
    source.check()
    return source


class EvaluatedSource(StoreSource):
    """A study's folder in a store, its scores those of one named evaluation."""

    def __init__(self, paths: StudyPaths, evaluation: str) -> None:
        super().__init__(paths)
        self.evaluation = evaluation

    @property
    def place(self) -> str:
        return f"evaluation {self.evaluation} of study {self.name} of the store"

    def run(self, cell: Cell) -> Run:
        own = read_run(self._as_trained(cell), self.paths.cell(cell.key))
        own = replace(own, cell=cell)
        if not own.counted:
            return own
        try:
            record = self._record(cell)
        except Damaged as error:
            return Run(cell, DAMAGED, str(error))
        if record is None:
            return Run(cell, UNFINISHED, f"has no evaluation {self.evaluation}")
        if why := _other_policy(own, record) or self._other_settings(cell, record):
            return Run(cell, UNFINISHED, f"evaluation {self.evaluation} {why}")
        return replace(
            own, cell=_scored_cell(cell, record), base=record["base"], final=record["final"],
            scored_round=record["round"],
        )  # fmt: skip

    def answers(self, cell: Cell) -> dict[Which, Answers]:
        return read_answers(self.paths.cell(cell.key).evaluation(self.evaluation).outcomes)

    def told(self, cells: Iterable[Cell]) -> str:
        """For people: whose scores a table of these cells shows."""
        found = ((cell, self._record_or_none(cell)) for cell in cells)
        kept = [r for cell, r in found if r is not None and not self._other_settings(cell, r)]
        ways = joined(dict.fromkeys(_way(record) for record in kept)) or "no cell has it"
        return (
            f"evaluation {self.evaluation}, beside the runs' own scores: {ways}; curves of "
            "training keep the runs' own"
        )

    def check(self) -> None:
        """Raise `InputError` where no cell has the evaluation, naming those that there are."""
        there = set(self._names())
        if self.evaluation not in there:
            raise InputError(
                f"study {self.name}: no cell has an evaluation {self.evaluation!r}; there are: "
                f"{listed(there) or 'none'}{nearest(self.evaluation, there)}; `banditgrid "
                "evaluate` and `regrade` make them"
            )

    def _names(self) -> Iterator[str]:
        for folder in self.paths.cells.iterdir() if self.paths.cells.is_dir() else ():
            inner = folder / outcome.EVALUATIONS_DIR
            yield from (f.name for f in inner.iterdir()) if inner.is_dir() else ()

    def _as_trained(self, cell: Cell) -> Cell:
        """The cell with the evaluation that its journal and mark were written under."""
        try:
            written = records.record(self.paths.cell(cell.key), outcome.CELL_FILE) or {}
            own = Evaluation.model_validate(written["eval"])
        except (Damaged, KeyError, ValueError):
            return cell
        return cell.model_copy(update={"eval": own})

    def _other_settings(self, cell: Cell, record: Record) -> str:
        """Why its settings are not those that the evaluation has for cells of its kind; empty where
        they are. One mean is of one evaluation."""
        if not self._usual:
            return ""
        if (kind := _kind(cell)) not in self._usual or self._usual[kind] == _text(record["asked"]):
            return ""
        most = "most others" if self._usual[kind] else "as many others"
        return (
            f"is of other settings than {most} of its model and data set; make it anew for all of "
            "them with --replace"
        )

    @cached_property
    def _usual(self) -> dict[str, str | None]:
        """Kind of cell -> the most frequent settings, None where two are; only where they differ.

        Of all cells of the study, so that each grid reads the same ones.
        """
        records = {key: asked for key in self._keys() if (asked := self._asked(key))}
        if len(set(records.values())) < 2:
            return {}
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for key, asked in records.items():
            if (cell := self._written(key)) is not None:
                counts[_kind(cell)][asked] += 1
        return {kind: _most(own) for kind, own in counts.items() if len(own) > 1}

    def _keys(self) -> list[str]:
        folder = self.paths.cells
        return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []

    def _asked(self, key: str) -> str | None:
        file = f"{outcome.EVALUATIONS_DIR}/{self.evaluation}/{outcome.EVALUATION_FILE}"
        try:
            record = records.record(self.paths.cell(key), file)
        except Damaged:
            return None
        return None if record is None else _text(record.get("asked"))

    def _written(self, key: str) -> Cell | None:
        try:
            found = records.record(self.paths.cell(key), outcome.CELL_FILE)
            return None if found is None else Cell.model_validate(found)
        except (Damaged, ValueError):
            return None

    def _record(self, cell: Cell) -> Record | None:
        return records.evaluation(self.paths.cell(cell.key), self.evaluation, cell)

    def _record_or_none(self, cell: Cell) -> Record | None:
        try:
            return self._record(cell)
        except Damaged:
            return None


def _other_policy(own: Run, record: Record) -> str:
    """Why the policy that was scored is not the one that a grid reads; empty where it is."""
    round, read = record["round"], own.scored_round or 0
    if own.state == DIVERGED:
        late = own.diverged_round is not None and round > own.diverged_round
        return f"is of round {round}, after the run broke down" if late else ""
    return "" if round == read else f"is of round {round}; this grid reads round {read}"


def _kind(cell: Cell) -> str:
    """Cells of one kind are asked the same by the same command: they differ in nothing that an
    evaluation depends on, but in the evaluation of their own that it may replace."""
    form = keys.base(cell)
    form["eval"] = {name: form["eval"][name] for name in ("graders", "max_response")}
    return _text(form)


def _text(form: Any) -> str:
    return json.dumps(form, sort_keys=True)


def _most(counts: Counter[str]) -> str | None:
    (asked, count), (_, next_count) = counts.most_common(2)
    return asked if count > next_count else None


def _scored_cell(cell: Cell, record: Record) -> Cell:
    """The cell as it was scored; the decoding that its grid compares by stays the grid's."""
    kept = ("samples", "temperature", "test_questions", "train_questions")
    changes = {name: record["eval"][name] for name in kept if name in record["eval"]}
    return cell.model_copy(update={"eval": cell.eval.model_copy(update=changes)})


def _way(record: Record) -> str:
    """How an evaluation came about, in a few words."""
    graded = f"graded by {record['grader']}"
    if record["kind"] == "regrade":
        of = record["asked"].get("of")
        return f"stored answers{f' of evaluation {of}' if of else ''} {graded}"
    asked = record["eval"]
    first = f"the first {asked['test_questions']}" if asked["test_questions"] else "all"
    drawn = f", K = {asked['samples']} at temperature {asked['temperature']:g}"
    return (
        f"kept weights on {record['dataset']}, {first} test questions, greedy"
        f"{drawn if asked['samples'] else ''}, at most {record['max_response']} tokens, {graded}"
    )
