"""A cell's stored answers under another grader: no model, no GPU, and no torch unless a plug-in's
grader asks for it.

Answers are those of the cell's own outcomes or of a named evaluation; the verdicts are left under a
name beside them (`named.py`). A question that was too long to be asked stays wrong and unparsed. An
answer whose grader fails is unscored, and counted. Leaves out Pass@1 over train questions seen and
unseen, for stored answers do not tell which were, and what the change comes to (`analysis`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from grids import outcome
from grids.catalog import DatasetSpec
from grids.cell import Cell
from grids.errors import InputError
from grids.outcome import OUTCOME_COLUMNS
from grids.paths import CellPaths
from grids.plugin import PluginSpec, provider
from workers import named
from workers.grading import GRADERS, Grade
from workers.lease import held
from workers.named import Record

Vector = npt.NDArray[Any]
WRONG: Final = Grade(correct=False, parsed=False, answer=None)
KEPT_GRADES: Final = 200_000  # base answers come again with every cell; texts of some hundred bytes


class Regraded(NamedTuple):
    """What became of one cell."""

    record: Record
    made: bool  # False: it was there already
    unscored: int


@dataclass
class Verdicts:
    """One grader's verdicts on (completion, gold), each asked once."""

    grade: Callable[[str, str], Grade]
    found: dict[tuple[str, str], Grade | str] = field(default_factory=dict)

    def of(self, completion: str, gold: str) -> Grade | str:
        """The grade; or why the grader failed, in a line."""
        pair = completion, gold
        if (known := self.found.get(pair)) is not None:
            return known
        if len(self.found) >= KEPT_GRADES:
            self.found.clear()
        made = self.found[pair] = self._asked(completion, gold)
        return made

    def _asked(self, completion: str, gold: str) -> Grade | str:
        try:
            return self.grade(completion, gold)
        except Exception as error:  # anybody's code: no fault of it may pass for a wrong answer
            told = (str(error).splitlines() or [""])[0][:200]
            return f"{type(error).__name__}: {told}"


def regrade_cell(
    key: str, asked: Cell, name: str, directory: Path, of: str | None = None
) -> Regraded:
    """Grade a cell's stored answers anew, and leave the scores under a name.

    Args:
        key: of the cell as it was trained, for a grader is part of a key.
        asked: the cell with its new grader, its evaluation and data set those of the answers.
        name: of the evaluation that is made; one of that name gives way where it is another.
        directory: the cell's own.
        of: the named evaluation whose answers they are; None: the cell's own.

    Raises:
        InputError: where there are no such answers or the data set lacks one of their questions.
            `Held`, one of them, where a worker has the cell.
        Lost: a worker took the cell over; nothing was written after that.
    """
    paths = CellPaths(directory)
    golds = golds_of(asked)
    form = named.asked_of_answers(asked, of)
    with held(paths, asked.label, named.told_of_lease) as lease:
        content = _content(paths, asked, of)
        source = {"outcomes": hashlib.sha256(content).hexdigest()[:16]}
        before = named.kept(paths, name)
        if before is not None and named.is_same(before, form, source):
            return Regraded(before, False, int(before.get("unscored", 0)))
        table = pq.read_table(io.BytesIO(content), use_threads=False)
        made = _graded(asked, table, golds)
        record = _record(key, asked, name, form, source, made)
        named.write(lease, record, lambda path: _write(made.table, path))
        return Regraded(record, True, made.unscored)


def _content(paths: CellPaths, asked: Cell, of: str | None) -> bytes:
    file = paths.outcomes if of is None else paths.evaluation(of).outcomes
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{asked.label}: no stored answers: {file} is missing") from None


def _record(
    key: str, asked: Cell, name: str, form: Record, source: Record, graded: _Graded
) -> Record:
    scores = {phase: _means(graded, asked, phase) for phase in ("base", "final")}
    rounds = graded.column("round")[graded.column("phase") == "final"]
    if not len(rounds):  # it broke down before its first evaluation: the base is what there is
        scores["final"] = scores["base"]
    round = int(rounds[0]) if len(rounds) else 0
    made = named.record_of(name, key, asked, form, source, round, scores, graded.notes)
    return made | {"unscored": graded.unscored}


def _write(table: pa.Table, path: Path) -> None:
    chosen = table.select(list(OUTCOME_COLUMNS))
    pq.write_table(chosen, path, compression="zstd", use_dictionary=DICTIONARIES)


# Columns whose values repeat; answers do not, and looking for repetitions among them takes time.
DICTIONARIES: Final = ["phase", "split", "decoding", "question"]


@dataclass(frozen=True)
class _Graded:
    """Answers with their new verdicts; `flexible` beside the table's own columns."""

    table: pa.Table
    flexible: Vector
    unscored: int
    notes: tuple[str, ...]

    def column(self, name: str) -> Vector:
        if name == "flexible":
            return self.flexible
        made: Vector = self.table[name].to_numpy()
        return made


def _graded(asked: Cell, table: pa.Table, golds: Golds) -> _Graded:
    rows = _Rows(table, golds, asked)
    grades = rows.grades(_verdicts(asked, asked.grader))
    parsed = np.array([isinstance(g, Grade) and g.parsed for g in grades], dtype=bool)
    correct, flexible = _correct(grades), np.full(len(grades), np.nan)
    if asked.flexible_grader:
        flexible = _correct(rows.grades(_verdicts(asked, asked.flexible_grader)))
    failed = [grade for grade in grades if isinstance(grade, str)]
    notes = () if not failed else (
        f"grader {asked.grader!r} failed on {len(failed)} of {len(grades)} answers, which are "
        f"unscored (the first: {failed[0]})",
    )  # fmt: skip
    for name, column in (("correct", pa.array(correct)), ("parsed", pa.array(parsed))):
        table = table.set_column(table.column_names.index(name), name, column)
    return _Graded(table, flexible, len(failed), notes)


def _correct(grades: Sequence[Grade | str]) -> Vector:
    """1 or 0; NaN where the grader failed."""
    return np.array([float(g.correct) if isinstance(g, Grade) else np.nan for g in grades])


class _Rows:
    """The answers of a table with the right ones beside them."""

    def __init__(self, table: pa.Table, golds: Golds, asked: Cell) -> None:
        self.texts: list[str] = table["completion"].to_pylist()
        self.tokens: list[int] = table["tokens"].to_pylist()
        questions: list[str] = table["question"].to_pylist()
        splits = ["test" if split == "test" else "train" for split in table["split"].to_pylist()]
        try:
            self.golds = [golds[pair] for pair in zip(splits, questions, strict=True)]
        except KeyError as error:
            raise InputError(
                f"{asked.label}: question {error.args[0][1]} of its stored answers is not in the "
                f"data set {asked.dataset} (revision {asked.dataset_spec.revision}); name the "
                "copy that it was trained with: --data DIR"
            ) from None

    def grades(self, verdicts: Verdicts) -> Sequence[Grade | str]:
        """A question that was never asked has no token, and is wrong."""
        of = verdicts.of
        rows = zip(self.texts, self.golds, self.tokens, strict=True)
        return [of(text, gold) if tokens else WRONG for text, gold, tokens in rows]


def _means(graded: _Graded, asked: Cell, phase: str) -> dict[str, float]:
    """The metrics of one phase, as evaluations have them."""
    phases, splits, decodings = (graded.column(c) for c in ("phase", "split", "decoding"))
    means: dict[str, float] = {}
    for decoding, suffix in (("greedy", ""), ("sampled", outcome.SAMPLED_SUFFIX)):
        for split in ("test", "train", "val"):
            chosen = (phases == phase) & (splits == split) & (decodings == decoding)
            if not chosen.any():
                continue
            means[f"{split}/pass_at_1{suffix}"] = _mean(graded, "correct", chosen)
            if asked.flexible_grader:
                means[f"{split}/pass_at_1_flexible{suffix}"] = _mean(graded, "flexible", chosen)
            if split == "test":
                columns = ("parsed", "truncated", "tokens")
                means |= {f"test/{n}{suffix}": _mean(graded, n, chosen) for n in columns}
                unscored = np.isnan(graded.column("correct")[chosen])
                means[f"{outcome.TEST_UNSCORED}{suffix}"] = float(unscored.mean())
    return means


def _mean(graded: _Graded, column: str, chosen: Vector) -> float:
    """Over the answers that have a value: an unscored one is neither right nor wrong."""
    values = graded.column(column)[chosen]
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


# ---- graders and right answers

Golds = dict[tuple[str, str], str]  # a question of both splits may have two answers
_verdicts_by: dict[tuple[str, str | None], Verdicts] = {}


def _verdicts(asked: Cell, grader: str) -> Verdicts:
    """Of this process: banditgrid's own grader, or a plug-in's by its source."""
    spec = provider(asked.plugin_specs, "GRADERS", grader)
    known = (grader, spec.digest if spec else None)
    if known not in _verdicts_by:
        _verdicts_by[known] = Verdicts(_function(asked, grader) if spec else GRADERS[grader])
    return _verdicts_by[known]


def _function(asked: Cell, grader: str) -> Callable[[str, str], Grade]:
    from workers.plugins import function  # imports torch

    return function(asked, "GRADERS", grader)


def golds_of(cell: Cell) -> Golds:
    """(split, question) -> right answer; `val` is of `train`. Raises as `load_questions`."""
    plugins = [spec.model_dump_json() for spec in cell.plugin_specs]
    return _golds(cell.dataset_spec.model_dump_json(), tuple(plugins))


@lru_cache(maxsize=32)
def _golds(spec: str, plugins: tuple[str, ...]) -> Golds:
    from workers.data import load_questions

    makers = [PluginSpec.model_validate_json(text) for text in plugins]
    found = load_questions(DatasetSpec.model_validate_json(spec), makers)
    splits = {"train": found.train, "test": found.test}
    return {(split, one.id): one.gold for split, own in splits.items() for one in own}
