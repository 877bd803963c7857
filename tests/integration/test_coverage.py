"""Simulation of the default interval and verdict over designs that ablations have.

An answer is right with probability logistic(difficulty of the question + effect of the arm, which
may differ by question + effect of the training run). The truth is the expectation over questions
and runs. With 600 simulations a share of 0.95 is known to about 0.018 (two standard errors).
"""

from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from analysis.contrasts import compare, holm

pytestmark = pytest.mark.slow
SIMULATIONS = 600
ERROR = 2 * (0.05 * 0.95 / SIMULATIONS) ** 0.5
DIFFICULTY = 2.5  # standard deviation over questions, on the logit scale


class Design(NamedTuple):
    seeds: int
    questions: int
    samples: int
    run_sd: float  # of training runs, on the logit scale
    effect_sd: float = 0.0  # of the arm's effect over questions, on the logit scale


# 0.1 and 0.25 give runs of one arm a standard deviation of about 0.011 and 0.027 in true Pass@1.
DESIGNS = [
    *(Design(seeds, 1319, 1, sd) for seeds in (3, 5, 10) for sd in (0.1, 0.25)),
    Design(5, 1319, 4, 0.1),
    Design(3, 500, 1, 0.0),
    Design(5, 500, 1, 0.03, 1.5),
    Design(10, 500, 1, 0.03, 1.5),
    Design(20, 1319, 1, 0.03, 1.5),
]


def arm(design, effect_Q, difficulty_Q, rng):
    """correct_S_Q_K of one arm."""
    run_S = rng.normal(0, design.run_sd, (design.seeds, 1))
    p_S_Q = expit(difficulty_Q + effect_Q + run_S)
    return rng.random((*p_S_Q.shape, design.samples)) < p_S_Q[:, :, None]


def truth(design, effect):
    """E[p_b - p_a] by quadrature: difficulty, effect and run add up to one normal logit."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)

    def mean(shift, sd):
        return float((weights * expit(shift + sd * nodes)).sum() / weights.sum())

    plain = np.hypot(DIFFICULTY, design.run_sd)
    return mean(effect, np.hypot(plain, design.effect_sd)) - mean(0, plain)


def comparisons(design, effect, seed):
    rng = np.random.default_rng(seed)
    for _ in range(SIMULATIONS):
        difficulty_Q = rng.normal(0, DIFFICULTY, design.questions)
        effect_Q = effect + rng.normal(0, 1, design.questions) * design.effect_sd
        a = arm(design, 0.0, difficulty_Q, rng)
        yield compare(a, arm(design, effect_Q, difficulty_Q, rng))


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_nominal_intervals_cover_the_truth(design):
    true = truth(design, 0.17)
    assert 0.015 < true < 0.025
    inside = [m.difference.low <= true <= m.difference.high for m in comparisons(design, 0.17, 1)]
    print(f"\n{design}: covers {np.mean(inside):.3f}, truth {true:.4f}")
    assert np.mean(inside) >= 0.93 - ERROR


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_without_an_effect_few_contrasts_say_better_or_worse(design):
    assert abs(truth(design, 0.0)) < 1e-9
    said = [m.verdict in ("better", "worse") for m in comparisons(design, 0.0, 2)]
    print(f"\n{design}: says better or worse {np.mean(said):.3f}")
    assert np.mean(said) <= 0.05 + ERROR


def test_a_single_seed_never_says_anything():
    for effect in (0.0, 0.17, 3.0):
        for made in comparisons(Design(1, 1319, 1, 0.1), effect, 3):
            assert made.verdict == "inconclusive"


def test_a_family_of_six_errs_in_few_families():
    """Holm over six pairs without an effect: how often any of them says better or worse."""
    made = list(comparisons(Design(5, 300, 1, 0.15), 0.0, 4))
    families = [made[i : i + 6] for i in range(0, len(made), 6)]
    erred = 0
    for family in families:
        corrected = zip(family, holm([m.p for m in family]), strict=True)
        erred += any(m.in_family(p, 6).verdict in ("better", "worse") for m, p in corrected)
    assert erred <= stats.binom.ppf(0.999, len(families), 0.05)
