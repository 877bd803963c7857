"""The statistics of a comparison: by hand, against statsmodels, and what it must never say."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups
from statsmodels.stats.weightstats import ttost_paired

from analysis.contrasts import compare, holm, superiority, tost
from analysis.intervals import two_way, two_way_variances, with_t
from analysis.outcomes import Outcomes, Unusable


def random_arm(rng, seeds=5, questions=60, samples=1, shift=0.0):
    p_S_Q = np.clip(rng.normal(0.5 + shift, 0.2, (seeds, questions)), 0, 1)
    return (rng.random((samples, seeds, questions)) < p_S_Q).astype(float).transpose(1, 2, 0)


def test_two_seeds_and_two_questions_by_hand():
    a = [[0, 1], [0, 0]]
    b = [[1, 1], [1, 0]]  # differences 1 0 / 1 0, mean 1/2
    made = compare(a, b)
    assert made.by_seed == {0: 0.5, 1: 0.5} and made.difference.value == 0.5
    # residuals .5 -.5 / .5 -.5: seeds sum to 0, questions to 1 and -1
    parts = two_way_variances(np.array([[1.0, 0], [1, 0]]))
    assert parts.seed == 0
    assert parts.question == pytest.approx(2 / 1 * (1 + 1) / 16)
    assert parts.cell == pytest.approx(4 * 0.25 / 16)
    # 0 + 1/4 - 1/16 is below the question's own variance, which it cannot be
    assert made.difference.se == pytest.approx(math.sqrt(1 / 4))
    assert (made.difference.df, made.difference.n) == (1, 2)
    assert (made.discordant.a_only, made.discordant.b_only, made.discordant.pairs) == (0, 2, 4)
    assert made.questions == 2 and made.samples == 1


@pytest.mark.parametrize("seeds, questions", [(3, 50), (5, 200), (10, 30)])
def test_the_two_way_error_is_that_of_statsmodels_two_way_clusters(seeds, questions):
    rng = np.random.default_rng(seeds)
    diff_S_Q = (
        rng.normal(0, 1, (seeds, 1))
        + rng.normal(0, 1, (1, questions))
        + rng.normal(0.3, 1, (seeds, questions))
    )
    seed, question = (index.ravel() for index in np.indices(diff_S_Q.shape))
    fit = OLS(diff_S_Q.ravel(), np.ones(diff_S_Q.size)).fit()
    both, by_seed, by_question = cov_cluster_2groups(fit, seed, question, use_correction=False)
    ours = two_way_variances(diff_S_Q)
    assert ours.seed == pytest.approx(by_seed[0, 0] * seeds / (seeds - 1))
    assert ours.question == pytest.approx(by_question[0, 0] * questions / (questions - 1))
    # statsmodels adds the uncorrected parts; ours adds the same with each part's own correction
    assert ours.seed * (seeds - 1) / seeds + ours.question * (questions - 1) / questions - (
        ours.cell
    ) == pytest.approx(both[0, 0])
    assert two_way(diff_S_Q).value == pytest.approx(fit.params[0])


def test_fixed_questions_are_a_paired_t_over_seeds():
    rng = np.random.default_rng(0)
    a, b = random_arm(rng), random_arm(rng, shift=0.1)
    made = compare(a, b)
    theirs = stats.ttest_rel(b.mean(axis=(1, 2)), a.mean(axis=(1, 2)))
    low, high = theirs.confidence_interval(0.95)
    assert made.fixed_questions.low == pytest.approx(low)
    assert made.fixed_questions.high == pytest.approx(high)
    assert made.fixed_questions.p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.02, 0.2])
def test_tost_is_that_of_statsmodels(shift):
    rng = np.random.default_rng(1)
    a_S, b_S = rng.normal(0.5, 0.05, 8), rng.normal(0.5 + shift, 0.05, 8)
    estimate = compare(a_S[:, None].repeat(2, 1), b_S[:, None].repeat(2, 1)).fixed_questions
    p, lower, upper = ttost_paired(b_S, a_S, -0.05, 0.05)
    ours, non_inferior = tost(estimate, 0.05)
    assert ours == pytest.approx(p, abs=1e-6)
    assert non_inferior == pytest.approx(lower[1], abs=1e-6)


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(2)
    for size in (1, 2, 6, 11):
        p = rng.random(size) ** 3
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_what_has_no_p_keeps_its_place_in_the_family():
    ours = holm([0.01, math.nan, 0.02])
    assert math.isnan(ours[1])
    assert (ours[0], ours[2]) == pytest.approx((0.03, 0.04))


def test_superiority_counts_pairs_of_runs():
    assert superiority(np.array([1.0, 2, 3]), np.array([2.0, 4])) == pytest.approx(
        (1 + 0.5 + 3) / 6
    )


def test_samples_of_a_question_count_as_their_mean():
    rng = np.random.default_rng(3)
    a, b = random_arm(rng, samples=4), random_arm(rng, samples=4, shift=0.1)
    a[0, 3, 2] = math.nan  # one answer that could not be scored
    made = compare(a, b)
    assert made.samples == 4 and made.unscored == 0
    plain = compare(np.nanmean(a, axis=2), b.mean(axis=2))
    assert made.difference.value == pytest.approx(plain.difference.value, abs=1e-6)


def test_a_question_that_no_sample_scores_is_left_out_and_counted():
    rng = np.random.default_rng(4)
    a, b = random_arm(rng), random_arm(rng)
    a[2, 5], b[0, 7] = math.nan, math.nan
    made = compare(a, b)
    assert (made.unscored, made.questions) == (2, 58)
    kept = [q for q in range(60) if q not in (5, 7)]
    assert made.difference == compare(a[:, kept], b[:, kept]).difference


# ---- verdicts


def test_a_large_difference_is_better_and_its_mirror_worse():
    rng = np.random.default_rng(5)
    a, b = random_arm(rng, questions=300), random_arm(rng, questions=300, shift=0.3)
    assert (compare(a, b).verdict, compare(b, a).verdict) == ("better", "worse")


def test_a_difference_that_its_family_takes_back_is_inconclusive():
    made = compare(
        *(random_arm(np.random.default_rng(6), questions=300, shift=s) for s in (0, 0.3))
    )
    assert made.verdict == "better"
    assert made.in_family(0.06, 6).verdict == "inconclusive"


def test_equal_arms_are_equivalent_only_within_a_margin_that_the_noise_leaves():
    a = np.random.default_rng(7).random((6, 800)) < 0.5
    b = a.copy()
    b[:, ::97] ^= True
    assert compare(a, b, margin=0.05).verdict == "equivalent"
    noisy = np.random.default_rng(8).random((3, 40)) < 0.5
    assert compare(noisy, np.random.default_rng(9).random((3, 40)) < 0.5).verdict == "inconclusive"


def test_a_comparison_in_words_is_exploratory():
    rng = np.random.default_rng(5)
    made = compare(random_arm(rng, questions=300), random_arm(rng, questions=300, shift=0.3))
    told = str(made)
    assert told.startswith(f"b - a {made.difference.format(sign=True)}, 5 seeds, 300 questions")
    assert told.endswith("margin 0.02: better (exploratory: no grid declares it)")


def test_arms_without_any_difference_have_an_interval_of_no_width():
    a = np.random.default_rng(7).random((3, 50)) < 0.5
    made = compare(a, a)
    assert (made.difference.value, made.difference.se, made.p) == (0, 0, 1)
    assert made.verdict == "equivalent"


def test_one_seed_never_says_anything():
    made = compare(np.zeros((1, 500)), np.ones((1, 500)))
    assert made.difference.value == 1 and math.isnan(made.difference.low)
    assert math.isnan(made.p) and math.isnan(made.tost_p) and math.isnan(made.smallest_effect)
    assert made.verdict == "inconclusive"


def test_the_smallest_effect_is_found_in_eight_of_ten_repetitions():
    rng = np.random.default_rng(10)
    made = compare(*(random_arm(rng, questions=100) for _ in "ab"))
    rng, found = np.random.default_rng(11), 0
    for _ in range(2000):  # estimates with this error, their truth the smallest effect
        se = made.difference.se * math.sqrt(rng.chisquare(4) / 4)
        value = rng.normal(made.smallest_effect, made.difference.se)
        found += with_t(value, se, 4, 5).low > 0
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


# ---- what cannot be compared


def outcomes(seeds, questions, correct=None, samples=1):
    array = np.zeros((len(seeds), len(questions), samples), np.float32)
    return Outcomes(tuple(seeds), tuple(questions), array if correct is None else correct)


def test_seeds_are_paired_by_name_and_the_others_told():
    rng = np.random.default_rng(12)
    a = Outcomes((0, 1, 2, 5), tuple("abcd"), random_arm(rng, 4, 4).astype(np.float32))
    b = Outcomes((2, 1, 7, 0), tuple("abcd"), random_arm(rng, 4, 4).astype(np.float32))
    made = compare(a, b)
    assert list(made.by_seed) == [0, 1, 2] and made.unpaired == ((5,), (7,))
    assert made.by_seed[0] == pytest.approx(
        float(b.correct_S_Q_K[3].mean() - a.correct_S_Q_K[0].mean())
    )


def test_questions_are_paired_by_name():
    rng = np.random.default_rng(13)
    a, b = (random_arm(rng, 3, 4).astype(np.float32) for _ in "ab")
    straight = compare(Outcomes((0, 1, 2), tuple("abcd"), a), Outcomes((0, 1, 2), tuple("abcd"), b))
    turned = Outcomes((0, 1, 2), tuple("dcba"), b[:, ::-1])
    assert compare(Outcomes((0, 1, 2), tuple("abcd"), a), turned) == straight


@pytest.mark.parametrize(
    "b, told",
    [
        (outcomes([3, 4], "abc"), "no common seed: a has s0, s1, b has s3, s4"),
        (outcomes([0, 1], "abd"), "question sets differ: 1 of 3 are a's alone, 1 of 3 are b's"),
        (outcomes([0, 1], "abcd"), "question sets differ: 0 of 3 are a's alone, 1 of 4 are b's"),
        (outcomes([0, 1], "abc", samples=4), "samples a question differ: a has K = 1, b has K = 4"),
    ],
)
def test_what_does_not_fit_is_refused(b, told):
    with pytest.raises(Unusable, match=told):
        compare(outcomes([0, 1], "abc"), b)


def test_arrays_without_answers_are_refused():
    nothing = np.full((3, 5), math.nan)
    with pytest.raises(Unusable, match="0 questions were scored"):
        compare(nothing, nothing)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        compare(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="margin: got 0"):
        compare(np.zeros((2, 2)), np.zeros((2, 2)), margin=0)
