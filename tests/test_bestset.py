"""The best set against a test worked out apart, and a simulation of what it promises."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.bestset import best_set
from grids.errors import InputError


def one_sided(rival_S_Q, arm_S_Q):
    """p of the two-way clustered test that the rival is no better, with plain loops."""
    gap = rival_S_Q - arm_S_Q
    seeds, questions = gap.shape
    mean = gap.sum() / gap.size
    by_seed = sum(sum(gap[s, q] - mean for q in range(questions)) ** 2 for s in range(seeds))
    by_question = sum(sum(gap[s, q] - mean for s in range(seeds)) ** 2 for q in range(questions))
    by_cell = sum((gap[s, q] - mean) ** 2 for s in range(seeds) for q in range(questions))
    v_seed = by_seed * seeds / (seeds - 1) / gap.size**2
    v_question = by_question * questions / (questions - 1) / gap.size**2
    variance = max(v_seed + v_question - by_cell / gap.size**2, v_seed, v_question)
    return stats.t.sf(mean / math.sqrt(variance), seeds - 1)


def drawn(seed, shifts, shape=(3, 40), noise=0.1):
    """Arms a, b, ... that differ by their shifts and by noise."""
    rng = np.random.default_rng(seed)
    names = "abcdefgh"[: len(shifts)]
    return {
        name: shift + noise * rng.normal(size=shape)
        for name, shift in zip(names, shifts, strict=True)
    }


def test_every_p_is_that_of_the_strongest_rival_times_the_number_of_rivals():
    values = drawn(0, [0.0, 0.03, 0.05, 0.01])
    found = best_set(values)
    assert [arm.label for arm in found.arms] == list("abcd")
    for arm in found.arms:
        p = {
            name: one_sided(rival, values[arm.label])
            for name, rival in values.items()
            if name != arm.label
        }
        assert arm.rival == min(p, key=p.get)
        assert arm.p == pytest.approx(min(1, 3 * p[arm.rival]))
        assert arm.in_set == (arm.p >= 0.05)
        assert arm.mean.value == pytest.approx(values[arm.label].mean())
        assert arm.mean.low < arm.mean.value < arm.mean.high
    assert (found.seeds, found.questions, found.alpha, found.reason) == (3, 40, 0.05, "")


def test_a_clear_winner_stands_alone():
    found = best_set(drawn(1, [0.0, 1.0, 0.1]))
    assert found.labels == ("b",)
    assert {arm.label: arm.rival for arm in found.arms if not arm.in_set} == {"a": "b", "c": "b"}


def test_arms_that_noise_cannot_tell_apart_are_all_in():
    assert best_set(drawn(2, [0.0, 0.001, 0.002])).labels == ("a", "b", "c")


def test_the_largest_mean_is_always_in():
    for seed in range(20):
        found = best_set(drawn(seed, [0, 0.1, 0.2], shape=(2, 5)))
        assert max(found.arms, key=lambda arm: arm.mean.value).in_set


def test_more_rivals_ask_for_more():
    values = drawn(3, [0.0, 0.05], shape=(3, 10))
    pair = best_set(values, alpha=0.05)
    p = pair.arms[0].p
    assert pair.labels == ("a", "b") if p >= 0.05 else ("b",)
    alone = best_set(values, alpha=1.5 * p)
    crowd = best_set(values | {"last": values["a"] - 9}, alpha=1.5 * p)
    assert "a" not in alone.labels
    assert "a" in crowd.labels
    assert crowd.arms[0].p == pytest.approx(2 * p)


def test_pairing_by_question_tells_apart_what_means_do_not():
    questions = np.random.default_rng(0).normal(size=(1, 30))
    values = drawn(4, [0.0, 0.1], shape=(4, 30), noise=0.02)
    values = {label: array + questions for label, array in values.items()}
    found = best_set(values)
    assert found.labels == ("b",)
    assert found.arms[0].mean.high > found.arms[1].mean.low


def test_equal_arms_are_both_in_and_a_constant_lead_leaves_out():
    values = np.random.default_rng(0).integers(0, 2, (3, 8)).astype(float)
    found = best_set({"a": values, "twin": values.copy(), "better": values + 1})
    assert found.labels == ("better",)
    twins = best_set({"a": values, "twin": values.copy()})
    assert twins.labels == ("a", "twin")
    assert [arm.p for arm in twins.arms] == [0.5, 0.5]


def test_one_seed_leaves_no_arm_out_and_says_why():
    found = best_set(drawn(0, [0.0, 5.0], shape=(1, 50)))
    assert found.labels == ("a", "b")
    assert "one seed" in found.reason
    assert all(arm.rival is None and math.isnan(arm.p) for arm in found.arms)
    assert math.isnan(found.arms[0].mean.low)


def test_one_arm_is_the_set():
    found = best_set(drawn(0, [0.3]))
    assert found.labels == ("a",)
    assert "one arm" in found.reason
    assert found.arms[0].rival is None


WHOLE = np.linspace(0, 1, 12).reshape(3, 4)
HOLED = np.where(WHOLE == 1, np.nan, WHOLE)


@pytest.mark.parametrize(
    ("values", "alpha", "said"),
    [
        ({}, 0.05, "no arm"),
        ({"a": WHOLE, "b": WHOLE[:2]}, 0.05, r"b has values of shape \(2, 4\), a of \(3, 4\)"),
        ({"a": WHOLE[0]}, 0.05, "seeds × questions"),
        ({"a": WHOLE[:0]}, 0.05, "seeds × questions"),
        ({"a": WHOLE[:, :1]}, 0.05, "1 × 2 at least"),
        ({"a": WHOLE, "b": HOLED}, 0.05, "b lacks 1 values"),
        ({"a": WHOLE}, 0.5, "alpha: got 0.5"),
        ({"a": WHOLE}, 0.0, "alpha: got 0"),
    ],
)
def test_what_is_refused(values, alpha, said):
    with pytest.raises(InputError, match=said):
        best_set(values, alpha)


@pytest.mark.slow
@pytest.mark.parametrize(("arms", "seeds"), [(2, 3), (4, 3), (4, 5)])
def test_the_best_arm_is_kept(arms, seeds):
    """All arms equally good, which is the worst case; 500 studies, so the error is about .01."""
    rng, kept = np.random.default_rng(arms * seeds), 0
    for _ in range(500):
        by_seed = 0.02 * rng.normal(size=(arms, seeds, 1))
        by_question = 0.1 * rng.normal(size=(arms, 1, 60))
        values = by_seed + by_question + 0.3 * rng.normal(size=(arms, seeds, 60))
        found = best_set({str(i): array for i, array in enumerate(values)})
        kept += found.arms[0].in_set
    assert kept >= 0.94 * 500
