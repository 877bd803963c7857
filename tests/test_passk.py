"""pass@k against a count of all subsets, and what it refuses."""

import itertools
import math

import numpy as np
import pytest

from analysis.passk import pass_at_k


def by_subsets(n, c, k):
    """Share of the k-subsets of n samples, c of them right, that hold a right one."""
    right = [i < c for i in range(n)]
    subsets = list(itertools.combinations(right, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def test_equals_the_share_of_subsets_that_hold_a_right_sample():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            assert pass_at_k(n, c, k) == pytest.approx(by_subsets(n, c, k), abs=1e-12), (n, c, k)


def test_an_array_gives_each_question_its_own_number():
    result_Q = pass_at_k(np.array([4, 4, 8]), np.array([0, 2, 8]), 2)
    assert result_Q.tolist() == pytest.approx([0.0, 1 - 1 / 6, 1.0])
    grid_Q_K = pass_at_k(np.array([[5], [6]]), np.array([[1], [2]]), np.array([1, 2, 3]))
    assert grid_Q_K.shape == (2, 3)
    assert grid_Q_K[1, 2] == pytest.approx(by_subsets(6, 2, 3))


def test_k_of_one_is_the_share_of_right_samples():
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)


def test_one_number_in_is_one_number_out():
    assert isinstance(pass_at_k(4, 1, 2), float)


def test_fewer_samples_than_k_say_nothing():
    assert math.isnan(pass_at_k(3, 3, 4))
    assert math.isnan(pass_at_k(0, 0, 1))
    result_Q = pass_at_k(np.array([3, 4]), np.array([3, 4]), 4)
    assert math.isnan(result_Q[0]) and result_Q[1] == 1.0


def test_thousands_of_samples_do_not_overflow():
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k(10_000, 5_000, 1_000) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("n", "c", "k", "said"),
    [
        (-1, 0, 1, "n: got -1"),
        (4, -1, 1, "c: got -1"),
        (4, 5, 1, "c > n"),
        (4, 2, 0, "k: got 0"),
        (4, 2, -1, "k: got -1"),
        (4, 2.5, 1, "whole numbers"),
        (np.array([4, 4]), np.array([1, 5]), 1, "c = 5 right of n = 4"),
        (np.array([4.0, np.nan]), np.array([1, 1]), 1, "whole numbers"),
    ],
)
def test_counts_that_cannot_be_are_errors(n, c, k, said):
    with pytest.raises(ValueError, match=said):
        pass_at_k(n, c, k)
