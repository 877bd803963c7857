"""Power against tables, against other formulas, and against simulation; noise from outcomes."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from analysis.power import (
    ASSUMED,
    Noise,
    floor,
    noise_of,
    pooled_noise,
    power_of_non_inferiority,
    power_of_t,
    power_of_tost,
    sd_range,
    seeds_needed,
    smallest_effect,
    smallest_effect_of,
)

HOLM_OF_SIX = 0.05 / 6


def fixed_questions(tau, rho=0.0):
    """Questions fixed, 30% of answers discordant by chance alone: more samples reduce all of it."""
    return Noise(seed=2 * tau**2 * (1 - rho), question=0.0, interaction=0.0, sampling=0.30)


# ---- power of a test


def test_ten_pairs_find_one_standard_deviation_in_four_of_five():
    assert power_of_t(1, 1 / math.sqrt(10), 9) == pytest.approx(0.803, abs=5e-4)


@pytest.mark.parametrize("df", [1, 2, 4, 9, 29])
@pytest.mark.parametrize("alpha", [0.05, HOLM_OF_SIX])
def test_power_is_that_of_the_noncentral_t(df, alpha):
    critical = stats.t.isf(alpha / 2, df)
    for effect in (0.5, 1.5, 3.0):  # where scipy's noncentral t answers
        tails = stats.nct.sf(critical, df, effect) + stats.nct.sf(critical, df, -effect)
        assert power_of_t(effect, 1.0, df, alpha) == pytest.approx(tails, abs=1e-5)


def test_power_where_the_noncentral_t_answers_nan():
    assert power_of_t(10, 1.0, 4) == pytest.approx(1.0, abs=1e-6)
    powers = [power_of_t(effect, 1.0, 4) for effect in np.linspace(0, 12, 60)]
    assert np.all(np.diff(powers) > 0)


@pytest.mark.parametrize("df", [1, 4, 20])
def test_power_to_find_nothing_is_alpha(df):
    assert power_of_t(0.0, 1.0, df, 0.03) == pytest.approx(0.03, abs=1e-5)


@pytest.mark.parametrize("df", [1, 2, 4, 12])
@pytest.mark.parametrize("margin", [1.0, 3.0, 8.0])
def test_tost_and_non_inferiority_by_adaptive_quadrature(df, margin):
    critical = stats.t.isf(0.05, df)

    def integrand(u, rejected):
        density = 2 * df * u * stats.chi2.pdf(df * u * u, df)
        return density * rejected(margin - critical * u)

    bound = margin / critical
    both = integrate.quad(integrand, 0, bound, args=(lambda x: 2 * stats.norm.cdf(x) - 1,))[0]
    one = sum(
        integrate.quad(integrand, low, high, args=(stats.norm.cdf,), limit=200)[0]
        for low, high in ((0, bound), (bound, 10 * bound))
    )
    assert power_of_tost(margin, 1.0, df) == pytest.approx(both, abs=1e-5)
    assert power_of_non_inferiority(margin, 1.0, df) == pytest.approx(one, abs=1e-5)


def test_without_noise_everything_is_found():
    assert power_of_t(0.01, 0.0, 4) == pytest.approx(1)
    assert power_of_tost(0.01, 0.0, 4) == pytest.approx(1)


@pytest.mark.parametrize("effect, se, df, alpha", [
    (-0.1, 1, 4, 0.05), (0, 0, 4, 0.05), (math.nan, 1, 4, 0.05), (1, math.nan, 4, 0.05),
    (1, 1, 0, 0.05), (1, 1, 4, 0.0), (1, 1, 4, 1.0),
])  # fmt: skip
def test_what_no_test_has_is_refused(effect, se, df, alpha):
    with pytest.raises(ValueError, match="expected"):
        power_of_t(effect, se, df, alpha)


# ---- what a design finds: the tables that the study was planned by

SEEDS = {  # (questions, effect) -> seeds without | with seed correlation 0.5, by (tau, K)
    (1319, 0.02): "8/8 11/9 8/6 23/15 19/12 39/21",
    (1319, 0.05): "4/4 4/4 4/3 6/5 5/4 8/6",
    (5000, 0.02): "5/4 8/6 7/5 19/12 19/11 38/20",
    (5000, 0.05): "3/3 4/3 3/3 5/4 5/4 8/6",
    (500, 0.02): "15/15 18/16 9/8 30/22 21/13 41/23",
    (500, 0.05): "5/5 5/5 4/4 7/6 6/4 9/6",
}
COLUMNS = ((0.005, 1), (0.01, 1), (0.01, 4), (0.02, 1), (0.02, 4), (0.03, 4))


@pytest.mark.parametrize("questions, effect", SEEDS)
def test_seeds_needed_on_a_fixed_test_set(questions, effect):
    found = [
        [seeds_needed(fixed_questions(tau, rho), effect, questions, k) for rho in (0, 0.5)]
        for tau, k in COLUMNS
    ]
    assert " ".join(f"{a}/{b}" for a, b in found) == SEEDS[questions, effect]


def test_two_seeds_are_the_fewest():
    assert seeds_needed(ASSUMED, 0.9, 100_000) == 2


def test_seeds_needed_with_holm_over_six_pairs():
    noise = fixed_questions(0.01)
    assert seeds_needed(noise, 0.02, 1319, 4, alpha=HOLM_OF_SIX) == 12
    assert seeds_needed(noise, 0.05, 1319, 4, alpha=HOLM_OF_SIX) == 5


@pytest.mark.parametrize("seeds, one, four", [
    (3, 0.067, 0.052), (5, 0.035, 0.027), (8, 0.024, 0.019), (10, 0.021, 0.016), (15, 0.016, 0.012),
])  # fmt: skip
def test_smallest_effect_on_a_fixed_test_set(seeds, one, four):
    for samples, told in ((1, one), (4, four)):
        found = smallest_effect(fixed_questions(0.01), seeds, 1319, samples)
        assert found == pytest.approx(told, abs=6e-4)


@pytest.mark.parametrize("questions, margin, one, four", [
    (1319, 0.02, 11, 8), (1319, 0.03, 6, 5), (1319, 0.01, 39, 24),
    (5000, 0.02, 8, 7), (5000, 0.03, 5, 4), (5000, 0.01, 24, 20),
    (500, 0.02, 19, 10), (500, 0.03, 10, 5), (500, 0.01, 70, 32),
])  # fmt: skip
def test_seeds_needed_for_an_equivalence(questions, margin, one, four):
    noise = fixed_questions(0.01)
    assert seeds_needed(noise, margin, questions, 1, "equivalent") == one
    assert seeds_needed(noise, margin, questions, 4, "equivalent") == four


@pytest.mark.parametrize("omega, questions, told", [
    (0.2, 1319, 0.015), (0.2, 5000, 0.008), (0.2, 500, 0.025),
    (0.3, 1319, 0.023), (0.3, 5000, 0.012), (0.3, 500, 0.038),
])  # fmt: skip
def test_noise_between_questions_is_a_floor(omega, questions, told):
    assert floor(Noise(1e-4, omega**2, 0, 0.2), questions) == pytest.approx(told, abs=5e-4)


@pytest.mark.parametrize("claim", ["superior", "equivalent", "non-inferior"])
def test_no_number_of_seeds_gets_below_the_floor(claim):
    least = floor(ASSUMED, 1319, claim)
    assert seeds_needed(ASSUMED, 0.995 * least, 1319, claim=claim, most=10**7) is None
    above = seeds_needed(ASSUMED, 1.005 * least, 1319, claim=claim, most=10**7)
    assert above is not None and above > 1000
    assert seeds_needed(ASSUMED, 1.005 * least, 1319, claim=claim) is None


def test_a_claim_of_one_side_needs_the_fewest_seeds():
    found = {c: seeds_needed(ASSUMED, 0.03, 1319, claim=c)
             for c in ("superior", "equivalent", "non-inferior")}  # fmt: skip
    assert found["non-inferior"] < found["superior"] <= found["equivalent"]


@pytest.mark.parametrize("seeds", [2, 3, 5, 20, 200])
@pytest.mark.parametrize("alpha", [0.05, HOLM_OF_SIX])
def test_the_smallest_effect_is_found_with_just_this_power(seeds, alpha):
    effect = smallest_effect_of(0.01, seeds, 0.9, alpha)
    assert power_of_t(effect, 0.01, seeds - 1, alpha) == pytest.approx(0.9, abs=1e-6)


def test_the_smallest_effect_is_that_of_the_noise():
    se = math.sqrt(ASSUMED.variance(5, 1319, 4))
    assert smallest_effect(ASSUMED, 5, 1319, 4) == smallest_effect_of(se, 5)


def test_one_seed_finds_nothing():
    assert math.isnan(smallest_effect(ASSUMED, 1, 1319))
    assert math.isnan(smallest_effect_of(0.01, 1))
    assert math.isnan(smallest_effect_of(math.nan, 5))


def test_power_below_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha < power < 1"):
        smallest_effect_of(0.01, 5, power=0.04)


# ---- noise


def test_variance_by_hand():
    noise = Noise(seed=0.2, question=0.3, interaction=0.5, sampling=0.7)
    assert noise.variance(2, 10, 4) == pytest.approx(0.1 + 0.03 + (0.5 + 0.7 / 4) / 20)
    with pytest.raises(ValueError, match="0 questions"):
        noise.variance(2, 0)


def test_assumed_noise_is_as_documented():
    assert math.sqrt(ASSUMED.seed / 2) == pytest.approx(0.01)
    assert ASSUMED.question + ASSUMED.interaction + ASSUMED.sampling == pytest.approx(0.30)


def test_noise_of_a_table_by_hand():
    # diff_S_Q = [[1, 0, -1], [1, 1, 0]]: seeds' means 0 and 2/3, questions' 1, 1/2 and -1/2.
    # Residuals are ± (1/3, -1/6, -1/6): their squares sum to 1/3, over (2 - 1)(3 - 1).
    a_S_Q_K = np.array([[[0], [1], [1]], [[0], [0], [1]]])
    b_S_Q_K = np.array([[[1], [1], [0]], [[1], [1], [1]]])
    noise = noise_of(a_S_Q_K, b_S_Q_K)
    assert noise.interaction == pytest.approx(1 / 6)
    assert noise.seed == pytest.approx(2 / 9 - 1 / 6 / 3)
    assert noise.question == pytest.approx(7 / 12 - 1 / 6 / 2)
    assert noise.sampling == 0


def test_more_samples_promise_nothing_that_one_sample_cannot_tell():
    rng = np.random.default_rng(3)
    a_S_Q_K, b_S_Q_K = drawn(rng, Noise(0.0, 0.0, 0.0, 0.4), 5, 400, 1)
    noise = noise_of(a_S_Q_K, b_S_Q_K)
    assert noise.sampling == 0
    assert noise.interaction == pytest.approx(0.4, rel=0.1)


def drawn(rng, noise, seeds, questions, samples):
    """Outcomes of two arms with these components; arm a has only its answers' noise."""
    shape = (seeds, questions, samples)
    diff = rng.normal(0.1, math.sqrt(noise.seed), (seeds, 1, 1))
    diff = diff + rng.normal(0, math.sqrt(noise.question), (1, questions, 1))
    diff = diff + rng.normal(0, math.sqrt(noise.interaction), (seeds, questions, 1))
    sd = math.sqrt(noise.sampling / 2)
    return rng.normal(0, sd, shape), diff + rng.normal(0, sd, shape)


def test_noise_is_estimated_without_bias_from_small_pilots():
    rng = np.random.default_rng(1)
    truth = Noise(seed=0.3, question=0.2, interaction=0.4, sampling=0.6)
    observed = pooled_noise([drawn(rng, truth, 3, 12, 2) for _ in range(1500)])
    assert observed.df == 3000
    for name in ("seed", "question", "interaction", "sampling"):
        assert getattr(observed.noise, name) == pytest.approx(getattr(truth, name), abs=0.04), name


def test_arms_that_share_their_random_numbers_differ_less_by_sampling():
    rng = np.random.default_rng(8)
    uniform_S_Q_K = rng.random((3, 200, 4))
    noise = noise_of(uniform_S_Q_K < 0.5, uniform_S_Q_K < 0.6)
    assert noise.sampling == pytest.approx(0.1 * 0.9, abs=0.01)  # not 0.5 * 0.5 + 0.6 * 0.4
    assert noise.interaction == pytest.approx(0, abs=0.01)


def test_components_are_never_below_zero():
    rng = np.random.default_rng(2)
    for _ in range(20):
        noise = noise_of(*drawn(rng, Noise(0.0, 0.0, 0.0, 0.5), 2, 5, 2))
        assert min(noise.seed, noise.question, noise.interaction, noise.sampling) >= 0


def test_strata_count_by_their_seeds():
    rng = np.random.default_rng(4)
    few, many = (drawn(rng, Noise(0.3, 0.2, 0.4, 0.6), s, 40, 2) for s in (2, 5))
    observed, alone = pooled_noise([few, many]), [noise_of(*few), noise_of(*many)]
    assert observed.df == 5
    assert observed.noise.sampling == pytest.approx((alone[0].sampling + 4 * alone[1].sampling) / 5)


def test_a_question_without_an_answer_is_left_out():
    rng = np.random.default_rng(5)
    a_S_Q_K, b_S_Q_K = drawn(rng, Noise(0.3, 0.2, 0.4, 0.6), 3, 9, 2)
    without = noise_of(a_S_Q_K[:, 1:], b_S_Q_K[:, 1:])
    b_S_Q_K[2, 0] = np.nan
    assert noise_of(a_S_Q_K, b_S_Q_K) == without


def test_a_question_with_one_answer_fewer_counts():
    rng = np.random.default_rng(6)
    a_S_Q_K, b_S_Q_K = drawn(rng, Noise(0.3, 0.2, 0.4, 0.6), 4, 300, 3)
    whole = noise_of(a_S_Q_K, b_S_Q_K)
    b_S_Q_K[::2, ::3, 0] = np.nan
    noise = noise_of(a_S_Q_K, b_S_Q_K)
    assert noise != whole
    for name in ("question", "interaction", "sampling"):
        assert getattr(noise, name) == pytest.approx(getattr(whole, name), abs=0.1), name


@pytest.mark.parametrize("a, b", [((1, 5, 1), (1, 5, 1)), ((2, 1, 1), (2, 1, 1))])
def test_too_little_for_an_estimate_is_refused(a, b):
    with pytest.raises(ValueError, match="at least 2 of each"):
        noise_of(np.zeros(a), np.zeros(b))


@pytest.mark.parametrize("a, b", [
    ((2, 5, 1), (3, 5, 1)), ((2, 5, 1), (2, 4, 1)), ((2, 5, 1), (2, 5, 2)), ((2, 5), (2, 5)),
])  # fmt: skip
def test_arms_that_cannot_be_paired_are_refused(a, b):
    with pytest.raises(ValueError, match="equal in both arms"):
        noise_of(np.zeros(a), np.zeros(b))


def test_no_stratum_is_refused():
    with pytest.raises(ValueError, match="at least one stratum"):
        pooled_noise([])


def test_how_well_few_seeds_know_their_spread():
    assert sd_range(4) == pytest.approx((0.60, 2.87), abs=5e-3)
    assert sd_range(24) == pytest.approx((0.78, 1.39), abs=5e-3)


# ---- the default test of contrasts


@pytest.mark.slow
@pytest.mark.parametrize("noise", [ASSUMED, Noise(2e-4, 0.0, 0.0, 0.3), Noise(1e-5, 0.04, 0, 0.1)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_two_way_t_has_about_the_power_that_is_told(noise, seeds):
    from analysis.intervals import two_way

    rng = np.random.default_rng(7)
    effect, questions, repetitions = smallest_effect(noise, seeds, 500), 500, 1000
    found = 0
    for _ in range(repetitions):
        diff_S_Q = effect + rng.normal(0, math.sqrt(noise.seed), (seeds, 1))
        diff_S_Q = diff_S_Q + rng.normal(0, math.sqrt(noise.question), (1, questions))
        rest = math.sqrt(noise.interaction + noise.sampling)
        diff_S_Q = diff_S_Q + rng.normal(0, rest, (seeds, questions))
        found += two_way(diff_S_Q).p < 0.05
    assert 0.72 < found / repetitions < 0.88
