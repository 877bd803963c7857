"""Other people's outcomes: any parquet file of (arm, seed, question, sample, correct).

One row is one graded answer. `arm` and `question` are names or numbers, `seed` and `sample` whole
numbers, `correct` a truth value or a score from 0 to 1; null and NaN mean not scored. Other columns
are ignored. Arms are compared by name: `Study.open("x.parquet").compare("a", "b")`. A file that
does not say what was answered how often is refused, never cut to fit. Leaves out everything that
such a file does not tell: settings, base evaluations, costs, registered contrasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.outcomes import Answers, Counts, Outcomes, Unusable, Which, stack
from analysis.runs import Run
from analysis.sources import Source
from grids.cell import Cell
from grids.errors import InputError, nearest

COLUMNS: Final = ("arm", "seed", "question", "sample", "correct")


class _Names(NamedTuple):
    """A column of repeated names; codes follow the order of first appearance."""

    names: tuple[str, ...]
    codes: Counts


class _Rows(NamedTuple):
    """The file's rows, sorted by arm, seed, question and sample."""

    arm: _Names
    seed: Counts
    question: _Names
    sample: Counts
    correct: npt.NDArray[np.float64]


class ForeignSource(Source):
    """Outcomes that banditgrid did not write: arms by name, and no cells."""

    has_answers = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem

    @property
    def place(self) -> str:
        return f"the outcomes in {self.path.name}"

    def named(self, arm: str | int) -> Outcomes:
        """correct_S_Q_K of one arm, seeds in order, samples of a question in the order of theirs.

        Raises `InputError` where no arm has the name, `Unusable` where its seeds answer other
        questions than each other, or unequally often.
        """
        rows = self._rows
        if str(arm) not in rows.arm.names:
            raise InputError(
                f"{self.place}: no arm {str(arm)!r}; it has {_some(rows.arm.names)}"
                f"{nearest(arm, rows.arm.names)}"
            )
        code = rows.arm.names.index(str(arm))
        try:
            return stack({seed: self._answers(span) for _, seed, span in self._runs(code)})
        except Unusable as error:
            raise Unusable(f"{self.place}: arm {arm}: {error}") from None

    def frame(self) -> pd.DataFrame:
        """One row an arm and seed: Pass@1 over its scored answers, questions, samples a question
        (NaN where that is not one number), and answers that could not be scored."""
        rows = self._rows
        made: list[dict[str, Any]] = []
        for arm, seed, span in self._runs():
            correct, counts = rows.correct[span], _samples(rows.question.codes[span])
            scored = correct[np.isfinite(correct)]
            made.append({
                "arm": rows.arm.names[arm], "seed": seed,
                "pass_at_1": scored.mean() if scored.size else np.nan,
                "questions": len(counts),
                "samples": counts[0] if (counts == counts[0]).all() else np.nan,
                "unscored": correct.size - scored.size,
            })  # fmt: skip
        return pd.DataFrame(made)

    def _runs(self, arm: int | None = None) -> Iterator[tuple[int, int, slice]]:
        """(arm, seed, its rows) of every run, or of one arm's."""
        rows = self._rows
        starts = np.flatnonzero(_changes(rows.arm.codes) | _changes(rows.seed))
        for start, end in zip(starts, [*starts[1:], len(rows.seed)], strict=True):
            if arm is None or rows.arm.codes[start] == arm:
                yield int(rows.arm.codes[start]), int(rows.seed[start]), slice(start, end)

    def _answers(self, span: slice) -> Answers:
        rows = self._rows
        codes = rows.question.codes[span]
        counts = _samples(codes)
        if (counts != counts[0]).any():
            raise Unusable(
                f"s{rows.seed[span][0]} has {counts.min()} samples of some questions and "
                f"{counts.max()} of others; expected equally many"
            )
        asked = codes[:: counts[0]]
        correct_Q_K = rows.correct[span].astype(np.float32).reshape(len(counts), -1)
        return Answers(tuple(rows.question.names[code] for code in asked), correct_Q_K, 0)

    @cached_property
    def _rows(self) -> _Rows:
        table = _table(self.path)
        arm, question = (_names(table, name, self.path) for name in ("arm", "question"))
        seed, sample = (_whole(table, name, self.path) for name in ("seed", "sample"))
        correct = _scores(table, self.path)
        order = np.lexsort((sample, question.codes, seed, arm.codes))
        rows = _Rows(
            _Names(arm.names, arm.codes[order]), seed[order],
            _Names(question.names, question.codes[order]), sample[order], correct[order],
        )  # fmt: skip
        _check_unique(rows, self.path)
        return rows

    # ---- what a source tells of cells: there are none

    def cells(self) -> tuple[Cell, ...]:
        return ()

    def run(self, cell: Cell) -> Run:
        self._refuse()

    def answers(self, cell: Cell) -> dict[Which, Answers]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Unusable(f"{self.place} are of named arms and hold no cells of a grid")


def _table(path: Path) -> pa.Table:
    """The five columns of a file that has rows in them."""
    try:
        with pq.ParquetFile(path) as file:
            had = file.schema_arrow.names
            missing = [name for name in COLUMNS if name not in had]
            twice = [name for name in COLUMNS if had.count(name) > 1]
            table = None if missing or twice else file.read(columns=list(COLUMNS))
    except (pa.ArrowException, OSError, ValueError) as error:
        told = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read as parquet: {told[0][:160]}") from None
    if table is None:
        fault = f"has no column {', '.join(missing)}" if missing else f"has two of {twice[0]}"
        raise InputError(
            f"{path}: {fault}; outcomes have the columns {', '.join(COLUMNS)}, this file has "
            f"{_some(had)}"
        )
    if not table.num_rows:
        raise InputError(f"{path}: has no rows; expected one an answer")
    for name in COLUMNS[:-1]:
        if empty := table[name].null_count:
            raise InputError(f"{path}: {name}: {empty} of {table.num_rows} rows have none")
    return table


def _names(table: pa.Table, name: str, path: Path) -> _Names:
    """A column of texts or whole numbers, as texts."""
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        raise InputError(f"{path}: {name}: got {kind}; expected text or whole numbers")
    plain = column.cast(pa.large_string() if _is_text(kind) else kind)
    encoded = plain.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return _Names(tuple(map(str, encoded.dictionary.to_pylist())), codes)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _whole(table: pa.Table, name: str, path: Path) -> Counts:
    """A column of whole numbers, however they are written."""
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"{path}: {name}: got {column.type}; expected whole numbers")
    given = column.to_numpy()
    if not np.isfinite(given).all():
        raise InputError(f"{path}: {name}: {np.sum(~np.isfinite(given))} rows have NaN or infinity")
    whole: Counts = given.astype(np.int64)
    if (whole != given).any():
        raise InputError(f"{path}: {name}: got {given[whole != given][0]}; expected whole numbers")
    return whole


def _scores(table: pa.Table, path: Path) -> npt.NDArray[np.float64]:
    """Scores from 0 to 1; NaN where there is none."""
    column = table["correct"]
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"{path}: correct: got {kind}; expected true or false, or 0 to 1")
    scores = np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    wrong = scores[(scores < 0) | (scores > 1)]
    if wrong.size:
        raise InputError(
            f"{path}: correct: {wrong.size} of {scores.size} rows are outside 0 to 1, the first is "
            f"{wrong[0]:g}"
        )
    return scores


def _check_unique(rows: _Rows, path: Path) -> None:
    parts = (rows.arm.codes, rows.seed, rows.question.codes, rows.sample)
    again = ~np.logical_or.reduce([_changes(part) for part in parts])
    if again.any():
        i = int(np.flatnonzero(again)[0])
        raise InputError(
            f"{path}: {again.sum()} rows repeat another's arm, seed, question and sample, first "
            f"arm {rows.arm.names[rows.arm.codes[i]]}, seed {rows.seed[i]}, question "
            f"{rows.question.names[rows.question.codes[i]]}, sample {rows.sample[i]}; "
            "keep one row an answer"
        )


def _changes(sorted_rows: Counts) -> npt.NDArray[np.bool_]:
    """Where a row differs from the one before it; the first does."""
    return np.append(True, sorted_rows[1:] != sorted_rows[:-1])


def _samples(codes: Counts) -> Counts:
    """How many rows each question of a run has, in the order of the rows."""
    counts: Counts = np.diff(np.append(np.flatnonzero(_changes(codes)), len(codes)))
    return counts


def _some(names: tuple[str, ...] | list[str], most: int = 20) -> str:
    told = ", ".join(map(str, names[:most]))
    return f"{told} and {len(names) - most} more" if len(names) > most else told
