"""Randomness as a pure function of what it is for: prompt order and sampling.

Every number comes from a counter-based generator (Philox 4x64, Salmon et al. 2011) keyed by its
purpose, so that neither batch layout, nor start-up, nor a resume can change it, and arms of one
seed share prompts and noise. Leaves out the choice of a token from a number (`engine.py`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def generator(*purpose: object) -> np.random.Generator:
    """A Philox generator keyed by a hash of `purpose`."""
    digest = hashlib.blake2b("\0".join(map(str, purpose)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def uniforms(
    seed: int | None, purpose: str, round: int, rows: Sequence[tuple[str, int]], length: int
) -> np.ndarray:
    """Uniform numbers in [0, 1), one per (row, token).

    Args:
        seed: the cell's; None where it is left out, as for the shared base evaluation.
        purpose: what the tokens are for, such as "train" or "final".
        round: of the cell.
        rows: (question id, sample index) of each row.
        length: tokens per row.

    Returns:
        float64 array of shape (len(rows), length).
    """
    numbers_R_T = np.empty((len(rows), length))
    for i, (question, sample) in enumerate(rows):
        numbers_R_T[i] = generator(seed, purpose, round, question, sample).random(length)
    return numbers_R_T


def numbered(questions: Sequence[str]) -> list[tuple[str, int]]:
    """(question id, sample index) of each of a round's rollouts, given their questions.

    A question that is drawn twice in a round goes on counting.
    """
    counted: dict[str, int] = defaultdict(int)
    named = []
    for question in questions:
        named.append((question, counted[question]))
        counted[question] += 1
    return named


def prompt_stream(data: str, seed: int, questions: int, start: int, count: int) -> np.ndarray:
    """Part of the endless stream of train questions: a fresh permutation each epoch.

    Equal for all arms of a (data set, seed): an arm with batch B reads it B at a time, and nothing
    is dropped at the end of an epoch.

    Args:
        data: revision of the data set.
        seed: the cell's.
        questions: number of train questions.
        start: first position, counted in questions from round 1.
        count: how many.

    Returns:
        int64 array of `count` indices below `questions`.
    """
    first, last = start // questions, (start + max(count, 1) - 1) // questions
    epochs = [
        generator("order", data, seed, e).permutation(questions) for e in range(first, last + 1)
    ]
    offset = start - first * questions
    return np.concatenate(epochs)[offset : offset + count]


def fixed_subset(data: str, questions: int, count: int) -> np.ndarray:
    """Indices of the fixed train subset that is evaluated: the same for every cell of the data."""
    chosen = generator("train subset", data).permutation(questions)[:count]
    return np.sort(chosen)
