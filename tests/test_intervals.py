"""Estimates against numbers worked out by hand and from tables of the t distribution."""

import math

import pytest

from analysis.intervals import mean_t, wilson


def test_three_seeds_by_hand():
    estimate = mean_t([0.4, 0.5, 0.6])
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom at .975; sd is 0.1
    assert estimate.value == pytest.approx(0.5)
    assert estimate.se == pytest.approx(0.1 / math.sqrt(3))
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert (estimate.df, estimate.n) == (2, 3)


def test_two_seeds_by_hand():
    estimate = mean_t([0.0, 0.2])
    half = 12.706205 * 0.1  # sd is 0.1414, over the root of 2
    assert (estimate.low, estimate.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)


def test_one_seed_has_a_value_and_no_interval():
    estimate = mean_t([0.3])
    assert (estimate.value, estimate.n) == (0.3, 1)
    assert all(math.isnan(x) for x in (estimate.se, estimate.low, estimate.high))
    assert str(estimate) == "0.300 (n=1)"


def test_equal_seeds_have_no_spread_and_no_rounding_noise():
    estimate = mean_t([0.1] * 7)
    assert (estimate.value, estimate.se, estimate.low, estimate.high) == (0.1, 0, 0.1, 0.1)


def test_no_seed_is_an_error_and_not_a_zero():
    with pytest.raises(ValueError, match="no seed"):
        mean_t([])


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_a_missing_value_is_an_error(missing):
    with pytest.raises(ValueError, match="missing"):
        mean_t([0.1, missing])


def test_written_for_a_table():
    assert str(mean_t([0.4, 0.5, 0.6])) == "0.500 [0.252, 0.748]"
    assert mean_t([-0.001, 0.001]).format(2, sign=True) == "+0.00 [-0.01, +0.01]"
    assert mean_t([-0.0001]).format(2) == "0.00 (n=1)"


def test_wilson_by_its_formula():
    n, p, z = 20, 0.25, 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    estimate = wilson(5, 20)
    assert estimate.value == 0.25
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert estimate.n == 20


def test_wilson_keeps_width_where_nothing_is_right():
    estimate = wilson(0, 100)
    assert (estimate.value, estimate.low) == (0, pytest.approx(0, abs=1e-12))
    assert 0.03 < estimate.high < 0.04


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_cannot_be(correct, n):
    with pytest.raises(ValueError, match="expected"):
        wilson(correct, n)
