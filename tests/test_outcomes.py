"""Graded answers read from files, and an arm's seeds side by side."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.outcomes import Answers, Unusable, Which, read_answers, stack
from grids.outcome import OUTCOME_COLUMNS
from tests.synthetic_store import answers

FINAL = Which("final", "test", "sampled")
ROWS = answers("base", 0, "test", "greedy", [[1], [0]]) + answers(
    "final", 20, "test", "sampled", [[1, 0, math.nan], [0, 0, 1]]
)


def write(path, rows, **changed):
    table = pa.Table.from_pylist(rows).select(list(OUTCOME_COLUMNS))
    pq.write_table(table, path, **changed)
    return path


def test_every_evaluation_of_a_file(tmp_path):
    found = read_answers(write(tmp_path / "outcomes.parquet", ROWS))
    assert set(found) == {Which("base", "test", "greedy"), FINAL}
    final = found[FINAL]
    assert (final.questions, final.round) == (("q0", "q1"), 20)
    np.testing.assert_array_equal(final.correct_Q_K, [[1, 0, math.nan], [0, 0, 1]])
    assert final.mean == pytest.approx(2 / 5)
    assert found[Which("base", "test", "greedy")].correct_Q_K.tolist() == [[1], [0]]


def test_the_order_of_rows_is_no_part_of_the_answers(tmp_path):
    straight = read_answers(write(tmp_path / "a.parquet", ROWS))[FINAL]
    rows = [ROWS[i] for i in np.random.default_rng(0).permutation(len(ROWS))]
    turned = read_answers(write(tmp_path / "b.parquet", rows, row_group_size=3))[FINAL]
    assert set(turned.questions) == set(straight.questions)
    order = [turned.questions.index(q) for q in straight.questions]
    np.testing.assert_array_equal(turned.correct_Q_K[order], straight.correct_Q_K)


@pytest.mark.parametrize(
    "rows, told",
    [
        (ROWS[:-1], "final test sampled: not every question has the samples 0 to 2 once"),
        ([*ROWS[:-1], ROWS[-2]], "not every question has the samples 0 to 2 once"),
        ([*ROWS[:-1], ROWS[-1] | {"sample": 7}], "not every question has the samples 0 to 7"),
        ([*ROWS[:-1], ROWS[-1] | {"round": 30}], "rows of rounds 20 to 30; expected one"),
        ([*ROWS[:-1], ROWS[-1] | {"correct": 2.0}], "correct: got 0.0 to 2.0; expected 0 to 1"),
        ([*ROWS[:-1], ROWS[-1] | {"question": None}], "has rows without a phase, round, split"),
    ],
)
def test_answers_that_are_not_whole_are_refused(tmp_path, rows, told):
    with pytest.raises(Unusable, match=told):
        read_answers(write(tmp_path / "outcomes.parquet", rows))


def test_a_missing_a_damaged_and_a_foreign_file(tmp_path):
    path = tmp_path / "cell" / "outcomes.parquet"
    with pytest.raises(Unusable, match="cell/outcomes.parquet: is missing"):
        read_answers(path)
    path.parent.mkdir()
    for damage in (b"", b"PAR1 no parquet", None):
        whole = write(path, ROWS).read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
        with pytest.raises(Unusable, match="cell/outcomes.parquet: cannot be read as parquet"):
            read_answers(path)
    pq.write_table(pa.table({"phase": ["base"]}), path)
    with pytest.raises(Unusable, match=r"cell/outcomes.parquet: (lacks|cannot)"):
        read_answers(path)


def of(questions, correct_Q_K):
    return Answers(tuple(questions), np.array(correct_Q_K, np.float32), 10)


def test_seeds_are_stacked_by_question():
    stacked = stack({3: of("ab", [[1], [0]]), 1: of("ba", [[0], [1]]), 0: of("ab", [[0], [1]])})
    assert stacked.seeds == (3, 1, 0)
    assert stacked.correct_S_Q_K[:, :, 0].tolist() == [[1, 0], [1, 0], [0, 1]]
    assert stacked.of_seeds((0, 3)).correct_S_Q_K[:, :, 0].tolist() == [[0, 1], [1, 0]]


def test_means_and_counts_leave_out_what_was_not_scored():
    stacked = stack({0: of("abc", [[1, math.nan], [1, 0], [math.nan, math.nan]])})
    means = stacked.means_S_Q
    assert means[0, :2].tolist() == [1.0, 0.5] and math.isnan(means[0, 2])
    right_S_Q, scored_S_Q = stacked.right_and_scored()
    assert (right_S_Q.tolist(), scored_S_Q.tolist()) == ([[1, 1, 0]], [[1, 2, 0]])


@pytest.mark.parametrize(
    "other, told",
    [
        (of("ac", [[1], [1]]), "question sets differ: 1 of 2 are s0's alone, 1 of 2 are s1's"),
        (of("a", [[1]]), "question sets differ: 1 of 2 are s0's alone, 0 of 1 are s1's alone"),
        (of("ab", [[1, 1], [1, 1]]), "samples a question differ: s0 has K = 1, s1 has K = 2"),
    ],
)
def test_seeds_that_answer_other_questions_are_not_stacked(other, told):
    with pytest.raises(Unusable, match=told):
        stack({0: of("ab", [[1], [0]]), 1: other})


def test_no_seed_is_no_arm():
    with pytest.raises(Unusable, match="no seed has outcomes"):
        stack({})
