"""What another grader makes of the same answers: an arm's Pass@1 before and after, with the change.

Every answer is paired with itself, so the interval of the difference has no sampling of answers in
it: for an arm it is clustered by seed and by question, for a base over its questions. Leaves out
the grading (`banditgrid regrade` did it) and the train questions, whose scores lie in the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.arms import pair_labels
from analysis.intervals import NOTHING, Estimate, Matrix, over_questions, two_way
from analysis.outcomes import (
    COLUMNS,
    NAMES,
    Answers,
    Cube,
    Unusable,
    Which,
    answers_in,
    reordering,
    stack,
)
from grids.cell import SPECS, Cell

DECODINGS = ("greedy", "sampled")
UNTOLD = SPECS | {"seed", "eval", "rounds", "rows_per_pass", "gpus", "keep", "max_unscored"}


class Pair(NamedTuple):
    """A cell and its two files of outcomes.

    Attributes:
        cell: with its new grader.
        trained: as it was trained; None: the same. Two that were trained under two graders are two
            arms, though one grader makes their settings one.
    """

    cell: Cell
    before: Path
    after: Path
    trained: Cell | None = None

    @property
    def own(self) -> Cell:
        """As it was trained."""
        return self.trained or self.cell


@dataclass(frozen=True)
class Counts:
    """Of answers, seeds and samples together. One that stays unscored changes nothing."""

    answers: int = 0
    to_right: int = 0
    to_wrong: int = 0
    unscored: tuple[int, int] = (0, 0)  # before, after
    unparsed: tuple[int, int] = (0, 0)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.answers + other.answers, self.to_right + other.to_right,
            self.to_wrong + other.to_wrong, _added(self.unscored, other.unscored),
            _added(self.unparsed, other.unparsed),
        )  # fmt: skip


@dataclass(frozen=True)
class Change:
    """An arm's, or a base's, test Pass@1 under two graders.

    Attributes:
        arm: `base` for the base model of a pair.
        n: seeds, or 1 for a base.
        questions: scored before and after in every seed: those that the estimates are over.
        why: there is no estimate; empty where there is one.
    """

    pair: str
    arm: str
    decoding: str
    n: int
    questions: int
    before: Estimate
    after: Estimate
    difference: Estimate
    counts: Counts
    why: str = ""

    def row(self) -> dict[str, Any]:
        """For programs; None where a number is missing."""
        told = asdict(self)
        for name in ("before", "after", "difference"):
            told[name] = {k: _plain(v) for k, v in told[name].items()}
        return told


@dataclass(frozen=True)
class _Read:
    """One evaluation of one cell under both graders, questions and samples in one order."""

    before: Answers
    after: Answers
    counts: Counts


def changes(pairs: Iterable[Pair]) -> tuple[list[Change], list[str]]:
    """A base's change a pair and base, then an arm's, decoding by decoding; and what was left out.

    A cell whose files cannot be laid side by side is left out of every number, with the reason.
    """
    read: dict[str, dict[Which, _Read]] = {}
    kept: dict[str, Pair] = {}
    lost = []
    for pair in pairs:
        try:
            read[pair.own.key] = _read(pair)
            kept[pair.own.key] = pair
        except Unusable as error:
            lost.append(f"{pair.cell.label}: {error}")
    names = pair_labels(pair.cell for pair in kept.values())
    arms = _arms(kept.values())
    found = []
    for place, label in names.items():
        own = [arm for arm in arms.values() if (arm[0].cell.model, arm[0].cell.dataset) == place]
        found += _of_bases(label, [pair for arm in own for pair in arm], read)
        labels = _labels([arm[0].own for arm in own])
        for arm in own:
            found += _of_arm(label, labels[arm[0].own.arm_key], arm, read)
    return found, lost


# ---- reading


def _read(pair: Pair) -> dict[Which, _Read]:
    before, after = (_answers(path) for path in (pair.before, pair.after))
    both = {}
    for which in before.keys() & after.keys():
        if which.split != "test":
            continue
        (one, wrong_one), (other, wrong_other) = before[which], after[which]
        if one.correct_Q_K.shape[1:] != other.correct_Q_K.shape[1:]:
            raise Unusable(f"{' '.join(which)}: samples a question differ before and after")
        order = reordering(one.questions, other.questions, ("before", "after"))
        other = Answers(one.questions, other.correct_Q_K[order], other.round)
        unparsed = wrong_one, wrong_other
        both[which] = _Read(one, other, _counts(one.correct_Q_K, other.correct_Q_K, unparsed))
    return both


def _answers(path: Path) -> dict[Which, tuple[Answers, int]]:
    """Answers and how many of them are unparsed. Raises `Unusable`, naming the file."""
    name = f"{path.parent.name}/{path.name}"
    try:
        file = pq.ParquetFile(path, read_dictionary=list(NAMES))
        table = file.read(columns=[*COLUMNS, "parsed"], use_threads=False)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unusable(f"{name}: cannot be read: {told[:120]}") from None
    found = answers_in(table, name)
    unparsed = table.filter(pc.invert(table["parsed"]))
    counts = unparsed.group_by(list(Which._fields), use_threads=False).aggregate(
        [([], "count_all")]
    )
    counted = {
        Which(*(row[f] for f in Which._fields)): row["count_all"] for row in counts.to_pylist()
    }
    return {which: (answers, counted.get(which, 0)) for which, answers in found.items()}


def _counts(before: Cube, after: Cube, unparsed: tuple[int, int]) -> Counts:
    return Counts(
        before.size, int(((before == 0) & (after == 1)).sum()),
        int(((before == 1) & (after == 0)).sum()),
        (int(np.isnan(before).sum()), int(np.isnan(after).sum())), unparsed,
    )  # fmt: skip


# ---- estimates


def _of_bases(pair: str, pairs: Sequence[Pair], read: Mapping[str, Any]) -> list[Change]:
    """Once for all cells that share a base evaluation."""
    found = []
    for decoding in DECODINGS:
        which = Which("base", "test", decoding)
        shared = {(p.cell.base_key, p.own.base_key): read[p.own.key].get(which) for p in pairs}
        for one in filter(None, shared.values()):
            found.append(_change(pair, "base", decoding, [one]))
    return [replace(change, n=1) for change in found]


def _of_arm(pair: str, label: str, pairs: Sequence[Pair], read: Mapping[str, Any]) -> list[Change]:
    found = []
    for decoding in DECODINGS:
        which = Which("final", "test", decoding)
        seeds = [one for p in pairs if (one := read[p.own.key].get(which)) is not None]
        if seeds:
            found.append(_change(pair, label, decoding, seeds))
    return found


def _change(pair: str, arm: str, decoding: str, seeds: Sequence[_Read]) -> Change:
    counts = sum((one.counts for one in seeds), Counts())
    made = Change(pair, arm, decoding, len(seeds), 0, NOTHING, NOTHING, NOTHING, counts)
    try:
        before_S_Q = stack({i: one.before for i, one in enumerate(seeds)}).means_S_Q
        after_S_Q = stack({i: one.after for i, one in enumerate(seeds)}).means_S_Q
    except Unusable as error:
        return replace(made, why=str(error))
    scored = np.isfinite(after_S_Q - before_S_Q).all(axis=0)
    if scored.sum() < 2:
        return replace(made, why=f"{scored.sum()} questions were scored in every seed")
    before_S_Q, after_S_Q = before_S_Q[:, scored], after_S_Q[:, scored]
    is_base = arm == "base"
    return replace(
        made, questions=int(scored.sum()), before=_estimate(before_S_Q, is_base),
        after=_estimate(after_S_Q, is_base), difference=_estimate(after_S_Q - before_S_Q, is_base),
    )  # fmt: skip


def _estimate(values_S_Q: Matrix, is_base: bool) -> Estimate:
    """A base is one checkpoint, over its questions; an arm is over seeds and questions."""
    return over_questions(values_S_Q[0]) if is_base else two_way(values_S_Q)


# ---- names


def _arms(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """By the arm that was trained."""
    arms: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=_order):
        arms.setdefault(pair.own.arm_key, []).append(pair)
    return arms


def _order(pair: Pair) -> Any:
    cell = pair.cell
    return cell.model, cell.dataset, cell.shape, cell.advantage, cell.seed


def _labels(arms: Sequence[Cell]) -> dict[str, str]:
    """Arm key -> `(32,8,0) grpo`, with the settings that tell it from another of that name."""
    plain = {cell.arm_key: f"{_shape(cell)} {cell.advantage}" for cell in arms}
    labels = {}
    for cell in arms:
        twins = [other for other in arms if plain[other.arm_key] == plain[cell.arm_key]]
        names = (name for name in type(cell).model_fields if name not in UNTOLD)
        differ = [n for n in names if any(getattr(t, n) != getattr(cell, n) for t in twins)]
        told = " ".join(f"{name}={_setting(getattr(cell, name))}" for name in differ)
        labels[cell.arm_key] = f"{plain[cell.arm_key]} {told}".rstrip()
    return labels


def _shape(cell: Cell) -> str:
    return f"({','.join(map(str, cell.shape))})"


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _plain(value: float | npt.NDArray[Any]) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
