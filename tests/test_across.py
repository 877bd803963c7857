"""A contrast across pairs: against statsmodels, by hand, and what too few pairs say."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.oneway import anova_generic

from analysis.across import across, by_contrast, pooled
from analysis.contrasts import compare
from analysis.declared import results
from tests.memory_study import Memory, grid_of, study_of

MODELS = ["tiny-qwen2", "tiny-llama", "tiny-olmo2"]
ROLLOUTS = {"name": "n", "a": {"rollouts": 1}, "b": {"rollouts": 8}}


def drawn(seed, k=6):
    rng = np.random.default_rng(seed)
    return rng.normal(0.02, 0.03, k), rng.uniform(0.005, 0.03, k)


@pytest.mark.parametrize("seed", range(8))
def test_q_tau_and_mean_are_those_of_statsmodels(seed):
    effects, errors = drawn(seed)
    mean, found = pooled(effects, errors, np.full(6, 4.0))
    theirs = combine_effects(effects, errors**2, method_re="pm", use_t=True, atol=1e-10)
    assert found.q == pytest.approx(theirs.q)
    assert found.tau**2 == pytest.approx(theirs.tau2, abs=1e-8)
    assert mean.value == pytest.approx(theirs.mean_effect_re, abs=1e-6)
    low, high = theirs.conf_int()[1]
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=1e-5)
    assert found.i2 == pytest.approx(max(0, theirs.i2), abs=1e-9)
    assert (mean.df, mean.n) == (5, 6)


def test_both_kinds_of_tau_are_among_those_compared():
    taus = [pooled(*drawn(seed), np.full(6, 4.0))[1].tau for seed in range(8)]
    assert max(taus) > 0.01
    assert pooled(np.array([0.01, 0.011]), np.full(2, 0.02), np.full(2, 2.0))[1].tau == 0


def test_hartung_and_knapps_factor_is_one_where_tau_is_above_0():
    effects, errors = drawn(3)
    mean, found = pooled(effects, errors, np.full(6, 4.0))
    weights = 1 / (errors**2 + found.tau**2)
    factor = (weights * (effects - mean.value) ** 2).sum() / 5
    assert found.tau > 0 and factor == pytest.approx(1)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_test_of_equal_pairs_is_welchs(seeds):
    effects, errors = drawn(3)
    p = pooled(effects, errors, np.full(6, seeds - 1.0))[1].p
    n = np.full(6, seeds)
    theirs = anova_generic(effects, errors**2 * n, n, use_var="unequal", welch_correction=True)
    assert p == pytest.approx(theirs.pvalue)


def test_equal_noisy_pairs_are_seldom_told_apart():
    rng = np.random.default_rng(0)
    told = {"welch": 0, "chi-square": 0}
    for _ in range(400):
        runs = 0.02 + 0.03 * rng.standard_normal((6, 3))  # pairs by seeds
        errors = runs.std(axis=1, ddof=1) / math.sqrt(3)
        found = pooled(runs.mean(axis=1), errors, np.full(6, 2.0))[1]
        told["welch"] += found.p < 0.05
        told["chi-square"] += stats.chi2.sf(found.q, 5) < 0.05
    assert told["welch"] < 0.12 * 400 < 0.3 * 400 < told["chi-square"]


def test_two_pairs_by_hand():
    mean, found = pooled(np.array([0.0, 0.1]), np.array([0.02, 0.02]), np.array([4.0, 4.0]))
    assert found.q == pytest.approx(0.1**2 / (2 * 0.02**2))  # 12.5
    assert found.tau**2 == pytest.approx((0.1**2 / 2) - 0.02**2)
    assert found.i2 == pytest.approx(1 - 1 / 12.5)
    assert mean.value == pytest.approx(0.05)


def test_fewer_than_two_effects_have_no_mean():
    mean, found = pooled(np.array([0.1]), np.array([0.01]), np.array([2.0]))
    assert mean.n == 0 and math.isnan(mean.value) and math.isnan(found.p)


# ---- of results


def made(effects, seeds=4, questions=200, noise=0.05):
    """Results of one contrast in as many pairs, b better than a by each effect."""
    grid = grid_of({"model": MODELS, "rollouts": [1, 8]}, contrasts=[ROLLOUTS])
    found = results(grid, study_of(grid, lambda cell: None, Memory()))
    rng = np.random.default_rng(1)
    return [
        replace(r, comparison=compare(np.full((seeds, questions), 0.5), 0.5 + effect
                + noise * rng.standard_normal((seeds, questions))), absent="")
        for r, effect in zip(found, effects, strict=True)
    ]  # fmt: skip


def test_pairs_that_differ_are_told_apart():
    over = across(made([0.0, 0.1, 0.2]))
    assert over.verdicts == {"better": 2, "worse": 0, "equivalent": 1, "inconclusive": 0,
                             "no verdict": 0}  # fmt: skip
    assert over.differs is True and "differs between pairs (Q = " in over.text
    assert over.mean.value == pytest.approx(0.1, abs=0.01) and over.mean.n == 3
    assert "no independent sample" in over.text
    assert over.superiority == pytest.approx(np.mean([r.comparison.superiority for r in
                                                      made([0.0, 0.1, 0.2])]))  # fmt: skip


def test_pairs_that_agree_are_not():
    over = across(made([0.1, 0.1, 0.1]))
    assert over.differs is None and "no difference between pairs is told" in over.text


def test_a_pair_of_one_seed_or_without_a_verdict_is_in_no_mean():
    three = made([0.0, 0.1, 0.2])
    lone = made([0.0, 0.1, 0.2], seeds=1)[1]
    over = across([three[0], lone, replace(three[2], withheld="other hardware")])
    assert over.used == ("tiny-qwen2 tiny-sums",) and len(over.pairs) == 3
    assert (over.verdicts["inconclusive"], over.verdicts["no verdict"]) == (1, 1)
    assert over.mean.n == 0 and over.differs is None
    assert over.text.startswith("3 pairs (equivalent 1, inconclusive 1, no verdict 1): 1 of them")


def test_a_pair_without_a_comparison_has_no_verdict():
    three = made([0.0, 0.1, 0.2])
    over = across([*three[:2], replace(three[2], comparison=None, absent="nothing ran")])
    assert over.verdicts["no verdict"] == 1 and over.mean.n == 2


def test_arms_that_never_differ_are_known_no_finer_than_one_answer():
    three = made([0.0, 0.1, 0.1])
    same = compare(np.zeros((4, 200)), np.zeros((4, 200)))
    over = across([replace(three[0], comparison=same), *three[1:]])
    assert all(math.isfinite(x) for x in over.heterogeneity)
    assert over.mean.value == pytest.approx(0.067, abs=0.01)
    known = np.array([c.difference.se for c in (r.comparison for r in three[1:])])
    expected = pooled(
        np.array([0.0, *(r.comparison.difference.value for r in three[1:])]),
        np.array([1 / 800, *known]), np.full(3, 3.0),
    )  # fmt: skip
    assert over.heterogeneity == pytest.approx(expected[1])


def test_one_contrast_and_each_pair_once():
    three = made([0.0, 0.1, 0.2])
    with pytest.raises(ValueError, match="each pair once"):
        across([three[0], three[0]])
    with pytest.raises(ValueError, match="expected one contrast"):
        across([])


def test_what_a_contrast_leaves_free_makes_it_several():
    grid = grid_of(
        {"model": MODELS[:2], "rollouts": [1, 8], "lr": [1e-5, 3e-5]}, contrasts=[ROLLOUTS]
    )
    found = by_contrast(results(grid, study_of(grid, lambda cell: None)))
    assert list(found) == ["n lr=1e-05", "n lr=3e-05"]
    assert [len(group) for group in found.values()] == [2, 2]
