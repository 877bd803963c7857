"""Per-question outcomes: what one policy answered, and an arm's seeds side by side.

`Answers` are one policy's graded answers of one evaluation; `Outcomes` stack an arm's seeds into
correct_S_Q_K, S seeds × Q questions × K samples, on equal questions. An answer that could not be
scored is NaN. What cannot be stacked is refused with the reason, never cut to fit. Leaves out where
files lie (`sources.py`) and every estimate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.intervals import Matrix
from grids.errors import InputError

Counts = npt.NDArray[np.int64]
Cube = npt.NDArray[np.float32]

COLUMNS: Final = ("phase", "round", "split", "decoding", "question", "sample", "correct")
NAMES: Final = ("phase", "split", "decoding", "question")  # repeated texts


class Unusable(InputError):
    """Outcomes that say nothing: absent, damaged, or not to be laid side by side. Tells why."""


class Which(NamedTuple):
    """One evaluation in a file of outcomes."""

    phase: str  # base | final
    split: str  # test | train
    decoding: str  # greedy | sampled


@dataclass(frozen=True)
class Answers:
    """One policy's graded answers of one evaluation.

    Attributes:
        questions: their ids.
        correct_Q_K: 1 right, 0 wrong, NaN not to be scored; K samples a question.
        round: of the evaluated policy.
    """

    questions: tuple[str, ...]
    correct_Q_K: Cube
    round: int

    @cached_property
    def mean(self) -> float:
        """Share of right answers among the scored ones."""
        return _nanmean(self.correct_Q_K)


@dataclass(frozen=True)
class Outcomes:
    """An arm's answers, seed by seed, to equal questions with equally many samples."""

    seeds: tuple[int, ...]
    questions: tuple[str, ...]
    correct_S_Q_K: Cube

    @property
    def samples(self) -> int:
        """K."""
        return int(self.correct_S_Q_K.shape[2])

    @property
    def means_S_Q(self) -> Matrix:
        """Mean over the samples that were scored; NaN where none was."""
        return _means_over_samples(self.correct_S_Q_K)

    def of_seeds(self, seeds: tuple[int, ...]) -> Outcomes:
        """These seeds alone, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Outcomes(seeds, self.questions, self.correct_S_Q_K[rows])

    def right_and_scored(self) -> tuple[Counts, Counts]:
        """c_S_Q right answers of n_S_Q scored ones: what pass@k needs."""
        scored_S_Q_K = np.isfinite(self.correct_S_Q_K)
        right_S_Q_K = np.where(scored_S_Q_K, self.correct_S_Q_K, 0).astype(np.int64)
        return right_S_Q_K.sum(axis=2), scored_S_Q_K.sum(axis=2).astype(np.int64)


def read_answers(path: Path) -> dict[Which, Answers]:
    """Every evaluation in a file of outcomes.

    Raises `Unusable`, naming the file, where it is absent, cannot be read, or lacks answers.
    """
    return answers_in(read_rows(path), f"{path.parent.name}/{path.name}")


def read_rows(path: Path) -> pa.Table:
    """The rows of a file of outcomes, with all of `COLUMNS`.

    Raises `Unusable`, naming the file, where it is absent or cannot be read.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        file = pq.ParquetFile(path, read_dictionary=list(NAMES))
        table = file.read(columns=list(COLUMNS), use_threads=False)  # small files: threads cost
    except FileNotFoundError:
        raise Unusable(f"{name}: is missing") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        told = str(error).splitlines() or [type(error).__name__]
        raise Unusable(f"{name}: cannot be read as parquet: {told[0][:120]}") from None
    if missing := [column for column in COLUMNS if column not in table.column_names]:
        raise Unusable(f"{name}: lacks the column {missing[0]}")
    return table


def answers_in(table: pa.Table, name: str) -> dict[Which, Answers]:
    """The evaluations in a table of outcomes, called `name` in errors."""
    if any(table[column].null_count for column in COLUMNS if column != "correct"):
        raise Unusable(f"{name}: has rows without a phase, round, split, decoding or question")
    texts = {column: _dictionary(table, column) for column in NAMES}
    numbers = {c: table[c].to_numpy() for c in ("round", "sample", "correct")}
    phase, split, decoding = (texts[column] for column in NAMES[:3])
    codes = (phase.codes * len(split.names) + split.codes) * len(decoding.names) + decoding.codes
    found = {}
    for rows in _groups(codes):
        which = Which(*(t.names[t.codes[rows[0]]] for t in (phase, split, decoding)))
        found[which] = _answers(rows, texts["question"], numbers, f"{name}: {' '.join(which)}")
    return found


def _groups(codes: Counts) -> list[Counts]:
    """The rows of each code, in the order of the file."""
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    runs = [np.arange(low, high) for low, high in itertools.pairwise(bounds) if high > low]
    if len(runs) == len({int(codes[run[0]]) for run in runs}):  # as workers write them
        return runs
    return [np.flatnonzero(codes == code) for code in np.unique(codes)]


class _Texts(NamedTuple):
    """A column of repeated texts."""

    names: npt.NDArray[np.object_]
    codes: Counts


def _dictionary(table: pa.Table, column: str) -> _Texts:
    array = table[column].combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # several row groups
        array = array.unify_dictionaries().combine_chunks()
    if not isinstance(array, pa.DictionaryArray):
        array = array.dictionary_encode()
    codes = array.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return _Texts(np.array(array.dictionary.to_pylist(), dtype=object), codes)


def _answers(rows: Counts, question: _Texts, numbers: Mapping[str, Any], where: str) -> Answers:
    """The rows of one evaluation, laid out question by question in the order of the file."""
    asked, sample, correct = question.codes[rows], numbers["sample"][rows], numbers["correct"][rows]
    order = _question_by_question(asked, sample, where)
    if order is not None:
        asked, correct = asked[order], correct[order]
    scored = correct[np.isfinite(correct)]
    if scored.size and (scored.min() < 0 or scored.max() > 1):
        raise Unusable(f"{where}: correct: got {scored.min()} to {scored.max()}; expected 0 to 1")
    rounds = numbers["round"][rows]
    if rounds.min() != rounds.max():
        raise Unusable(f"{where}: rows of rounds {rounds.min()} to {rounds.max()}; expected one")
    samples = int(sample.max()) + 1
    names = tuple(question.names[asked[::samples]].tolist())
    correct_Q_K = correct.astype(np.float32).reshape(-1, samples)
    return Answers(_interned(names), correct_Q_K, int(rounds[0]))


def _question_by_question(asked: Counts, sample: Counts, where: str) -> Counts | None:
    """The order in which rows are question by question, sample by sample; None where they are.

    Raises `Unusable` where some question lacks a sample or has one twice.
    """
    samples = int(sample.max()) + 1
    if _is_laid_out(asked, sample, samples):
        return None
    _, first, index = np.unique(asked, return_index=True, return_inverse=True)
    order: Counts = np.lexsort((sample, first[index]))
    if not _is_laid_out(asked[order], sample[order], samples):
        raise Unusable(f"{where}: not every question has the samples 0 to {samples - 1} once")
    return order


def _is_laid_out(asked: Counts, sample: Counts, samples: int) -> bool:
    if samples < 1 or len(asked) % samples:
        return False
    asked_Q_K, sample_Q_K = asked.reshape(-1, samples), sample.reshape(-1, samples)
    alike = (asked_Q_K == asked_Q_K[:, :1]).all() and (sample_Q_K == np.arange(samples)).all()
    return bool(alike) and int(np.bincount(asked_Q_K[:, 0]).max()) == 1


_QUESTIONS: dict[tuple[str, ...], tuple[str, ...]] = {}


def _interned(questions: tuple[str, ...]) -> tuple[str, ...]:
    """One tuple for equal question sets: thousands of runs answer the same ones."""
    return _QUESTIONS.setdefault(questions, questions)


def stack(by_seed: Mapping[int, Answers]) -> Outcomes:
    """The seeds of an arm side by side, questions in the order of the first.

    Raises `Unusable` where question sets or numbers of samples differ, naming the seeds.
    """
    if not by_seed:
        raise Unusable("no seed has outcomes")
    (first_seed, first), *others = by_seed.items()
    layers = [first.correct_Q_K]
    for seed, answers in others:
        names = (f"s{first_seed}", f"s{seed}")
        if answers.correct_Q_K.shape[1] != first.correct_Q_K.shape[1]:
            raise Unusable(differing_samples(first.correct_Q_K, answers.correct_Q_K, names))
        layers.append(answers.correct_Q_K[reordering(first.questions, answers.questions, names)])
    return Outcomes(tuple(by_seed), first.questions, np.stack(layers))


def differing_samples(a: Cube, b: Cube, names: tuple[str, str]) -> str:
    """Why two arrays whose last axis is samples cannot be compared."""
    return (
        f"samples a question differ: {names[0]} has K = {a.shape[-1]}, "
        f"{names[1]} has K = {b.shape[-1]}"
    )


def reordering(to: tuple[str, ...], given: tuple[str, ...], names: tuple[str, str]) -> Any:
    """The index that brings `given` into the order of `to`.

    Raises `Unusable` where they are not the same questions.
    """
    if to is given or to == given:
        return slice(None)
    if set(to) != set(given):
        a_only, b_only = len(set(to) - set(given)), len(set(given) - set(to))
        raise Unusable(
            f"question sets differ: {a_only} of {len(to)} are {names[0]}'s alone, "
            f"{b_only} of {len(given)} are {names[1]}'s alone"
        )
    place = {question: i for i, question in enumerate(given)}
    return np.array([place[question] for question in to])


def _means_over_samples(correct_S_Q_K: Cube) -> Matrix:
    if correct_S_Q_K.shape[2] == 1:
        return correct_S_Q_K[:, :, 0].astype(np.float64)
    scored_S_Q = np.isfinite(correct_S_Q_K).sum(axis=2)
    sums_S_Q = np.nansum(correct_S_Q_K, axis=2, dtype=np.float64)
    return np.where(scored_S_Q > 0, sums_S_Q / np.maximum(scored_S_Q, 1), np.nan)


def _nanmean(values: Cube) -> float:
    scored = values[np.isfinite(values)]
    return float(scored.mean(dtype=np.float64)) if scored.size else math.nan
