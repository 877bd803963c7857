"""Shares against a table worked out by hand, statsmodels and scipy; importances as planted."""

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from analysis.importance import (
    HIGHER,
    SEEDS,
    Factor,
    _chi_square_cdf,
    _interval,
    _noncentrality,
    _Sum,
    factors,
    variance_shares,
)
from analysis.surrogate import surrogate_importance
from grids.errors import InputError

A, B = Factor(("a",)), Factor(("b",))
BY_HAND = pd.DataFrame(
    {
        "a": ["x", "x", "x", "x", "y", "y", "y", "y"],
        "b": [1, 1, 2, 2, 1, 1, 2, 2],
        "seed": [0, 1, 0, 1, 0, 1, 0, 1],
        "value": [1.0, 3, 5, 7, 2, 4, 10, 12],
    }
)


def grid(levels, seeds, value, rng=None, noise=0.0):
    """One row a combination and seed; `value` is a function of the levels."""
    rows = []
    for combination in itertools.product(*(range(count) for count in levels)):
        for seed in range(seeds):
            row = dict(zip("abcde", combination, strict=False)) | {"seed": seed}
            rows.append(row | {"value": value(*combination)})
    frame = pd.DataFrame(rows)
    if rng is not None:
        frame["value"] += noise * rng.normal(size=len(frame))
    return frame


def by_name(shares):
    return {share.name: share for share in shares}


# Factors


def test_settings_of_one_level_are_no_factors():
    assert factors(BY_HAND.assign(lr=1e-6, clip=None), ["lr", "b", "clip", "a"]) == (B, A)


def test_settings_that_determine_one_another_are_one_factor():
    frame = pd.DataFrame({"batch": [32, 256, 32, 256], "rollouts": [8, 1, 8, 1], "a": [0, 0, 1, 1]})
    shape, a = factors(frame, ["batch", "a", "rollouts"])
    assert (shape.name, a.name) == ("batch×rollouts", "a")
    assert shape.levels(frame) == ("(32,8)", "(256,1)")
    assert shape.codes(frame).tolist() == [0, 1, 0, 1]


def test_a_setting_that_only_one_way_determines_another_stays_apart():
    frame = pd.DataFrame({"model": ["m", "n", "o"], "dataset": ["p", "p", "q"]})
    assert [factor.name for factor in factors(frame, ["model", "dataset"])] == ["model", "dataset"]


def test_settings_that_the_budget_ties_are_one_factor_and_so_is_what_follows_from_them():
    frame = pd.DataFrame(
        {
            "batch": [32, 32, 256, 32],
            "rollouts": [8, 1, 1, 8],
            "replay": [0, 7, 0, 0],
            "lr": [1e-6, 2e-6, 3e-6, 1e-6],
            "a": [0, 0, 1, 1],
        }
    )
    names = list(frame.columns)
    shape, a = factors(frame, names, tied=("batch", "rollouts", "replay"))
    assert (shape.name, a.name) == ("batch×rollouts×replay×lr", "a")
    assert shape.levels(frame) == ("(32,1,7,2e-06)", "(32,8,0,1e-06)", "(256,1,0,3e-06)")
    fixed = factors(frame.assign(replay=0), names, tied=("batch", "rollouts", "replay"))
    assert fixed[0].name == "batch×rollouts×lr"


def test_a_missing_setting_is_a_level():
    frame = pd.DataFrame({"clip": [None, 0.2, None], "kl": ["off", "on", "on"]})
    clip, kl = factors(frame, ["clip", "kl"])
    assert (clip.levels(frame), clip.codes(frame).tolist()) == (("0.2", "none"), [1, 0, 1])


def test_an_empty_frame_and_an_unknown_setting_are_told():
    with pytest.raises(InputError, match="no run"):
        factors(BY_HAND.iloc[:0], ["a"])
    with pytest.raises(InputError, match="no column c; allowed: a, b, seed, value"):
        factors(BY_HAND, ["a", "c"])


# Variance shares


def test_two_factors_and_two_seeds_by_hand():
    # Means 2, 6, 3, 11 about 5.5: a is off by 1.5, b by 3, the interaction by 1, each seed by 1.
    # Sums of squares over 8 runs: 18, 72, 8 and 8; the seeds' mean square is 8/4; 106 + 2 = 108.
    shares = by_name(variance_shares(BY_HAND, (A, B)))
    assert list(shares) == ["a", "b", "a:b", SEEDS]
    for name, ss, f in (("a", 18, 9), ("b", 72, 36), ("a:b", 8, 4)):
        share = shares[name]
        assert share.estimate.value == pytest.approx((ss - 2) / 108)
        assert share.f == pytest.approx(f)
        assert share.p == pytest.approx(2 * stats.t.sf(math.sqrt(f), 4))  # F(1, 4) is t squared
        assert (share.df, share.df_error, share.estimate.n) == (1, 4, 8)
    assert shares[SEEDS].estimate.value == pytest.approx(8 * 2 / 108)
    assert [share.order for share in shares.values()] == [1, 1, 2, 0]


def test_equal_to_statsmodels():
    smf = pytest.importorskip("statsmodels.formula.api")
    anova_lm = pytest.importorskip("statsmodels.stats.anova").anova_lm
    rng = np.random.default_rng(5)
    frame = grid((3, 2, 4), 3, lambda a, b, c: a * b - 0.3 * c + a * b * c / 4, rng, noise=0.5)
    shares = by_name(variance_shares(frame, factors(frame, ["a", "b", "c"])))
    table = anova_lm(smf.ols("value ~ C(a) * C(b) * C(c)", frame).fit())
    error = table.loc["Residual"]
    total = table["sum_sq"].sum() + error["mean_sq"]
    names = {"C(a)": "a", "C(b)": "b", "C(c)": "c", "C(a):C(b)": "a:b", "C(a):C(c)": "a:c"}
    names |= {"C(b):C(c)": "b:c", "C(a):C(b):C(c)": HIGHER}
    for theirs, ours in names.items():
        row, share = table.loc[theirs], shares[ours]
        omega = (row["sum_sq"] - row["df"] * error["mean_sq"]) / total
        assert share.estimate.value == pytest.approx(omega, abs=1e-12)
        assert (share.f, share.p) == pytest.approx((row["F"], row["PR(>F)"]))
        assert (share.df, share.df_error) == (row["df"], error["df"])
    assert len(shares) == len(names) + 1


def test_shares_of_four_factors_sum_to_one_and_do_not_hang_on_order_or_scale():
    rng = np.random.default_rng(1)
    frame = grid((2, 3, 2, 2), 2, lambda a, b, c, d: a + b * c - d, rng, noise=1.0)
    found = factors(frame, ["a", "b", "c", "d"])
    shares = variance_shares(frame, found)
    assert sum(share.estimate.value for share in shares) == pytest.approx(1)
    assert sum(share.df for share in shares) == len(frame) - 1
    assert [share.order for share in shares] == [1] * 4 + [2] * 6 + [3, 0]
    other = frame.sample(frac=1, random_state=3).assign(value=lambda x: 100 - 7 * x["value"])
    for one, two in zip(shares, variance_shares(other, found), strict=True):
        assert two.estimate.value == pytest.approx(one.estimate.value, abs=1e-12)
        assert two.estimate.low == pytest.approx(one.estimate.low, abs=1e-5)
        assert two.p == pytest.approx(one.p, nan_ok=True)


def test_a_tied_factor_counts_once():
    frame = grid((2, 2), 3, lambda a, b: 2.0 * a, np.random.default_rng(0), noise=0.1)
    frame = frame.assign(batch=frame["a"].map({0: 32, 1: 256}), rollouts=8 - 7 * frame["a"])
    shares = variance_shares(frame, factors(frame, ["batch", "rollouts", "b"]))
    assert [share.name for share in shares] == ["batch×rollouts", "b", "batch×rollouts:b", SEEDS]
    assert shares[0].estimate.low > 0.9


def test_no_effect_may_come_out_below_nothing_with_an_interval_from_nothing():
    frame = grid((2,), 2, lambda a: 0.0).assign(value=[0.0, 1.0, 1.0, 0.1])
    share, seeds = variance_shares(frame, (A,))
    assert share.estimate.value < 0 == share.estimate.low < share.estimate.high < 1
    assert share.estimate.value + seeds.estimate.value == pytest.approx(1)
    assert seeds.estimate.value > seeds.estimate.high == 1


def noncentral_f(level, f, df, df_error):
    """The noncentrality at which F stands at this level; 0 where even 0 is too much."""
    if stats.f.cdf(f, df, df_error) <= level:
        return 0.0
    most = 1.0
    while stats.ncf.cdf(f, df, df_error, most) > level:
        most *= 2
    return optimize.brentq(lambda x: stats.ncf.cdf(f, df, df_error, x) - level, 0, most)


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0, 3.0])
def test_the_interval_of_a_lone_factor_is_the_inverted_noncentral_f(effect):
    frame = grid((3,), 4, lambda a: effect * a, np.random.default_rng(2), noise=1.0)
    share, seeds = variance_shares(frame, (A,))
    bounds = [noncentral_f(level, share.f, 2, 9) for level in (0.975, 0.025)]
    expected = [bound / (bound + 12) for bound in bounds]
    assert [share.estimate.low, share.estimate.high] == pytest.approx(expected, abs=0.001)
    assert (seeds.estimate.low, seeds.estimate.high) == pytest.approx(
        (1 - share.estimate.high, 1 - share.estimate.low)
    )


def test_an_interval_leaves_nothing_out_where_f_is_significant():
    rng = np.random.default_rng(4)
    for _ in range(15):
        frame = grid((2, 3), 3, lambda a, b: 0.5 * a, rng, noise=0.5)
        for share in variance_shares(frame, (A, B))[:-1]:
            if not 0.024 < share.p < 0.026:  # nearer than the integration can tell
                assert (share.estimate.low > 0) == (share.p < 0.025)


@pytest.mark.parametrize(("x", "df"), [(0.5, 1), (30.0, 5), (2e3, 24), (5e3, 24), (1e6, 24)])
def test_noncentrality_against_the_distribution(x, df):
    level = np.array([0.01, 0.3, 0.5, 0.9, 0.999])
    found = _noncentrality(np.array(x), df, level)
    inside = stats.chi2.cdf(x, df) > level
    assert (found[~inside] == 0).all()
    assert stats.ncx2.cdf(x, df, found[inside]) == pytest.approx(level[inside], abs=0.002)
    cdf = _chi_square_cdf(np.array(x), df, found)
    assert cdf[inside] == pytest.approx(level[inside], abs=1e-6)


def test_an_interval_against_draws_where_another_effect_is_present():
    # The same inversion at random levels: sums of squares 40 (2 df), 30 (3 df), noise 10 (12 df).
    rng = np.random.default_rng(0)
    precision = rng.chisquare(12, 20_000) / 10
    part = _noncentrality(40 * precision, 2, rng.random(20_000))
    rest = _noncentrality(30 * precision, 3, rng.random(20_000))
    expected = np.quantile(part / (part + rest + 18), [0.025, 0.975])
    assert _interval(_Sum(40, 2), _Sum(30, 3), _Sum(10, 12)) == pytest.approx(expected, abs=0.006)


def test_seeds_that_agree_leave_no_noise_and_no_doubt():
    frame = grid((2, 3), 2, lambda a, b: 0.1 * a + 0.1)
    shares = by_name(variance_shares(frame, (A, B)))
    assert (shares["a"].f, shares["a"].p) == (math.inf, 0)
    for name, value in (("a", 1), ("b", 0), ("a:b", 0), (SEEDS, 0)):
        estimate = shares[name].estimate
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value,) * 3)
    assert math.isnan(shares["b"].f) and math.isnan(shares["b"].p)


REFUSED = {
    "one run each": BY_HAND[BY_HAND["seed"] == 0],
    "have 1 to 2 runs": BY_HAND.iloc[1:],
    "3 of the 4 combinations of a, b": BY_HAND.iloc[2:],
    "value is missing in 1 of 8": BY_HAND.assign(value=[1, 2, 3, np.nan, 5, 6, 7, 8]),
    "value is 0.1 in all 8 runs": BY_HAND.assign(value=0.1),
    "has a seed twice": BY_HAND.assign(seed=0),
    "a has one level": BY_HAND.assign(a="x"),
    "no column seed": BY_HAND.drop(columns="seed"),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_no_shares_can_be_told_of(said):
    with pytest.raises(InputError, match=said):
        variance_shares(REFUSED[said], (A, B))


def test_no_factor_is_an_error():
    with pytest.raises(InputError, match="no factor varies"):
        variance_shares(BY_HAND, ())


@pytest.mark.slow
def test_intervals_cover_the_true_shares():
    # True variances: a .25, b 1/6, a:b 0, noise .25; 300 studies, so the error is about .013.
    rng = np.random.default_rng(6)
    true = {"a": 0.25, "b": 1 / 6, "a:b": 0.0, SEEDS: 0.25}
    covered = dict.fromkeys(true, 0)
    for _ in range(300):
        frame = grid((2, 3), 3, lambda a, b: a + 0.5 * b, rng, noise=0.5)
        for share in variance_shares(frame, (A, B)):
            at = true[share.name] / sum(true.values())
            covered[share.name] += share.estimate.low <= at <= share.estimate.high
    assert all(count >= 0.91 * 300 for count in covered.values()), covered


# Importances by a surrogate


def partial(noise=0.1):
    """Most of a 3 × 4 × 2 grid: b decides, a matters a little, c not at all."""
    rng = np.random.default_rng(0)
    frame = grid((3, 4, 2), 3, lambda a, b, c: 0.2 * a + b, rng, noise)
    return frame[(frame["a"] != 2) | (frame["c"] != 1)].iloc[1:]


@pytest.mark.parametrize("method", ["fanova", "ped_anova"])
def test_a_planted_factor_is_found(method):
    frame = partial()
    names = ["a", "b", "c"]
    told = surrogate_importance(
        frame, factors(frame, names), np.random.default_rng(1), method, repeats=4
    )
    estimates = {one.name: one.estimate for one in told.factors}
    assert list(estimates) == names
    assert estimates["b"].value > 0.8
    assert estimates["b"].low > estimates["a"].high
    for estimate in estimates.values():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.n == len(frame)
        assert math.isnan(estimate.se)
    assert "not a confidence interval" in told.spread and "4 repeats" in told.spread
    assert ("not a share of variance" in told.answers) == (method == "ped_anova")


@pytest.mark.parametrize("method", ["fanova", "ped_anova"])
def test_the_same_generator_gives_the_same_numbers(method):
    frame = partial(noise=0.5)

    def told(seed):
        rng = np.random.default_rng(seed)
        return surrogate_importance(frame, factors(frame, "abc"), rng, method, repeats=2).factors

    assert repr(told(1)) == repr(told(1)) != repr(told(2))


def test_fanova_of_a_whole_grid_comes_near_the_true_shares():
    # a varies by ±1 (variance 1), b evenly over five levels (variance .5); no interaction.
    frame = grid((2, 5), 2, lambda a, b: 2 * a + 0.5 * b, np.random.default_rng(0), noise=0.01)
    told = surrogate_importance(
        frame, factors(frame, ["a", "b"]), np.random.default_rng(0), repeats=2
    )
    values = [one.estimate.value for one in told.factors]
    assert values == pytest.approx([2 / 3, 1 / 3], abs=0.03)


def test_ped_anova_asks_for_the_best_runs_and_not_for_the_worst():
    frame = grid((4, 4), 3, lambda a, b: (b == 3) - 5.0 * (a == 3), np.random.default_rng(0), 0.01)
    told = surrogate_importance(
        frame, factors(frame, ["a", "b"]), np.random.default_rng(0), "ped_anova", repeats=2
    )
    assert told.factors[1].estimate.value > 0.6


def test_without_a_second_run_nothing_is_known_of_the_noise():
    frame = partial()
    frame = frame[frame["seed"] == 1]
    told = surrogate_importance(
        frame, factors(frame, ["a", "b", "c"]), np.random.default_rng(0), repeats=2
    )
    assert told.factors[1].estimate.value > 0.8
    assert all(math.isnan(one.estimate.low) for one in told.factors)


def test_resampling_keeps_to_the_combination():
    # Between combinations all differs, within them nothing: no resample changes PED-ANOVA.
    frame = grid((2, 3), 3, lambda a, b: float(a + 10 * b)).sample(frac=1, random_state=1)
    rng = np.random.default_rng(0)
    told = surrogate_importance(frame, factors(frame, ["a", "b"]), rng, "ped_anova", repeats=3)
    assert all(one.estimate.low == one.estimate.high for one in told.factors)


def test_optuna_is_quiet_and_left_as_it_was(capfd):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)  # optuna's default
    frame = partial()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surrogate_importance(
            frame, factors(frame, "abc"), np.random.default_rng(0), "ped_anova", repeats=2
        )
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "forest"}, "'forest'.*allowed: fanova or ped_anova"),
        ({"repeats": 1}, "at least 2 repeats"),
        ({"value": "final"}, "no column final"),
    ],
)
def test_what_a_surrogate_refuses(change, said):
    with pytest.raises(InputError, match=said):
        surrogate_importance(BY_HAND, (A, B), np.random.default_rng(0), **change)


@pytest.mark.parametrize("values", [[0.5] * 8, [1, 2, 3, np.nan, 5, 6, 7, 8]])
def test_a_surrogate_refuses_equal_and_missing_values(values):
    with pytest.raises(InputError, match="in all 8 runs|missing in 1 of 8"):
        surrogate_importance(BY_HAND.assign(value=values), (A, B), np.random.default_rng(0))
