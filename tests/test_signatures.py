"""Each signature on data that has it, has its opposite, or leaves it open."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.finding import Pair, above, below, either, every
from analysis.intervals import Estimate, two_way, two_way_variances
from analysis.signatures import SIGNATURES, gap, signatures, split
from analysis.tables import make_table
from grids.outcome import DIVERGED, ENTROPY, REWARD_SD
from tests.memory_study import Memory, grid_of, right, study_of

SHAPES = {"batch": [16, 64, 8], "rollouts": [1]}


def pair_of(grid, tell, source=None):
    study = study_of(grid, tell, source)
    table = make_table(grid, study)
    return Pair(table.rows[0].pair, table.rows, table.results, study)


def said(name, grid, tell, source=None):
    return list(SIGNATURES[name](pair_of(grid, tell, source)))


def gained(gain, base=0.3, spread=0.0, **others):
    """Runs of this gain, the same questions right; `spread` is added to even, taken from odd."""

    def tell(cell):
        final = base + gain + spread * (-1) ** cell.seed
        return {"test": (right(base), right(final)), **others}

    return tell


ONE = grid_of({"rollouts": [1]})


# ---- three values


@pytest.mark.parametrize(
    ("low", "high", "is_below", "is_above"),
    [(0, 1, True, False), (3, 4, False, True), (1, 3, None, None), (math.nan, math.nan, None, None),
     (1, 2, None, None), (2, 3, None, None)],
)  # fmt: skip
def test_a_bound_is_decided_by_the_whole_interval(low, high, is_below, is_above):
    estimate = Estimate((low + high) / 2, 1.0, low, high, 2.0, 3)
    assert (below(estimate, 2), above(estimate, 2)) == (is_below, is_above)


def test_logic_of_three_values():
    assert every([True, True]) is True and every([True, None]) is None
    assert every([None, False]) is False
    assert either([False, False]) is False and either([False, None]) is None
    assert either([None, True]) is True


# ---- no improvement


def test_no_improvement_of_the_minimalist_arm_doubts_the_base_model():
    (found,) = said("no improvement", ONE, gained(0.01, spread=0.005))
    assert found.holds is True and found.where == "tiny-qwen2 tiny-sums (8,1,0) raw"
    assert "below 0.05, on the minimalist arm a reason to doubt the base model" in found.text
    assert "test gain +0.01" in found.text and "4 seeds" in found.text
    assert found.evidence[0] == "s0: test Pass@1 0.300 to 0.315"


def test_no_improvement_of_another_arm_doubts_nothing():
    (found,) = said("no improvement", grid_of({"rollouts": [8]}), gained(0.01))
    assert found.holds is True and "doubt" not in found.text


def test_an_improvement():
    (found,) = said("no improvement", ONE, gained(0.2, spread=0.005))
    assert found.holds is False and found.text.endswith("above 0.05")


def test_an_interval_over_the_bound_leaves_it_open():
    (found,) = said("no improvement", ONE, gained(0.05, spread=0.05))
    assert found.holds is None and found.text.endswith("the interval leaves it open")


@pytest.mark.parametrize("name", list(SIGNATURES)[:4])
def test_one_seed_decides_nothing_of_an_arm(name):
    told = gained(0.0, train=(right(0.3), right(0.9)), first={REWARD_SD: 1.0},
                  last={REWARD_SD: 0.0}, parsed=(0.5, 1.0))  # fmt: skip
    (found,) = said(name, ONE, lambda cell: told(cell) if cell.seed == 0 else None)
    assert found.holds is None and "one seed tells of a run alone" in found.text


@pytest.mark.parametrize("name", list(SIGNATURES)[:4])
def test_an_arm_without_a_counted_seed_says_why(name):
    (found,) = said(name, ONE, lambda cell: None)
    assert found.holds is None
    assert found.text == "no seed counts (4 of 4 seeds waiting)"


def test_an_arm_that_was_merged_into_another_is_told_once():
    grid = grid_of({"rollouts": [1], "advantage": ["raw", "grpo"]})
    assert len(said("no improvement", grid, gained(0.2))) == 1


# ---- train up, test flat


def scored(train_gain, test_gain, spread=0.005):
    """Seeds that shift train and test alike."""

    def answers(gain):
        return (right(0.3, questions=4000), right(0.3 + gain, questions=4000))

    def tell(cell):
        shift = spread * (-1) ** cell.seed
        return {"test": answers(test_gain + shift), "train": answers(train_gain + shift)}

    return tell


@pytest.mark.parametrize(
    ("train", "test", "holds"),
    [(0.3, 0.0, True), (0.3, -0.2, True), (0.3, 0.3, False), (0.3, 0.1, False), (0.0, 0.0, False),
     (0.035, 0.0, False), (0.3, 0.02, None), (0.05, 0.0, None)],
)  # fmt: skip
def test_overfitting(train, test, holds):
    (found,) = said("train up, test flat", ONE, scored(train, test))
    assert found.holds is holds
    assert f"train gain {train:+.3f}" in found.text and f"{train - test:+.3f} [" in found.text


def test_train_that_surely_gains_less_than_test_is_no_overfitting():
    (found,) = said("train up, test flat", ONE, scored(0.02, 0.05, spread=0.02))
    assert found.holds is False
    (found,) = said("train up, test flat", ONE, scored(0.04, 0.04, spread=0.02))
    assert found.holds is None


def test_train_may_not_have_been_scored():
    grid = grid_of({"rollouts": [1]}, base={"rounds": 20, "eval": {"train_questions": 0}})
    (found,) = said("train up, test flat", grid, gained(0.0))
    assert found.holds is None and found.text.endswith("train questions were not scored")


def test_the_gap_over_silent_test_questions_is_the_train_gain():
    rng = np.random.default_rng(0)
    train_S_Q = rng.normal(0.1, 0.3, (4, 60)) + rng.normal(0, 0.1, (4, 1))
    train_S_Q += rng.normal(0, 0.4, (1, 60))
    parts = two_way_variances(train_S_Q)
    assert parts.total > max(parts.seed, parts.question)  # so that all three parts are seen
    found, expected = gap(train_S_Q, np.zeros((4, 90))), two_way(train_S_Q)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.df, found.n) == (3, 4)
    shifted = gap(np.zeros((4, 90)), train_S_Q)
    assert shifted.value == pytest.approx(-train_S_Q.mean())
    assert shifted.se == pytest.approx(two_way(train_S_Q).se)


def test_the_gap_pairs_seeds():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.3, (5, 1))  # a seed's shift of both sets of questions
    train_S_Q, test_S_Q = (shared + rng.normal(0, 0.1, (5, 80)) for _ in range(2))
    assert gap(train_S_Q, test_S_Q).se < 0.2 * two_way(train_S_Q).se


def test_the_gap_covers_its_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        seed_S = rng.normal(0, 0.02, (4, 1))
        train_S_Q, test_S_Q = (
            rng.normal(mean, 0.2, (4, 50)) + seed_S + rng.normal(0, 0.1, (1, 50))
            for mean in (0.1, 0.0)
        )
        found = gap(train_S_Q, test_S_Q)
        covered += found.low < 0.1 < found.high
    assert covered > 0.93 * 400


def test_the_gap_of_one_seed_has_no_interval():
    found = gap(np.ones((1, 5)), np.zeros((1, 7)))
    assert (found.value, found.n) == (1.0, 1) and math.isnan(found.low)


# ---- collapse


def trained(gain=0.0, **metrics):
    """Runs that keep these shares of what their training began with."""
    first = {name: 0.5 for name in metrics}
    last = {name: 0.5 * kept for name, kept in metrics.items()}
    return gained(gain, spread=0.005, first=first, last=last)


WHOLE = {REWARD_SD: 0.9, ENTROPY: 0.6}


def test_a_healthy_run_is_no_collapse():
    (found,) = said("collapse", ONE, trained(**WHOLE))
    assert found.holds is False
    assert "no seed diverged" in found.text and "entropy 0.600 [0.600, 0.600]" in found.text


@pytest.mark.parametrize("metric", [REWARD_SD, ENTROPY])
@pytest.mark.parametrize(("kept", "holds"), [(0.05, True), (0.0, True), (0.3, False)])
def test_what_is_gone_is_a_collapse(metric, kept, holds):
    (found,) = said("collapse", ONE, trained(**(WHOLE | {metric: kept})))
    assert found.holds is holds


def test_but_not_where_test_surely_rose():
    (found,) = said("collapse", ONE, trained(0.4, **(WHOLE | {ENTROPY: 0.01})))
    assert found.holds is False and "entropy 0.010" in found.text


def test_what_the_journal_does_not_tell_decides_nothing():
    (found,) = said("collapse", ONE, gained(0.0))
    assert found.holds is False and "entropy —, reward sd —" in found.text


def test_a_seed_in_which_the_spread_stays_leaves_it_open():
    def tell(cell):
        return trained(**(WHOLE | {REWARD_SD: 0.0 if cell.seed else 0.8}))(cell)

    (found,) = said("collapse", ONE, tell)
    assert found.holds is None


def test_far_below_the_base_is_a_collapse():
    (found,) = said("collapse", ONE, gained(-0.25, spread=0.005))
    assert found.holds is True and "test gain -0.250" in found.text
    (found,) = said("collapse", ONE, gained(-0.05, spread=0.03))
    assert found.holds is None


def test_a_diverged_seed_is_a_collapse():
    def tell(cell):
        broke = {"state": DIVERGED, "broke": 7} if cell.seed == 2 else {}
        return trained(**WHOLE)(cell) | broke

    (found,) = said("collapse", ONE, tell)
    assert found.holds is True and "s2 diverged at round 7" in found.text


def test_one_seed_that_diverged_tells_of_a_run():
    told = gained(0.0, state=DIVERGED, broke=7)
    (found,) = said("collapse", ONE, lambda cell: told(cell) if cell.seed == 0 else None)
    assert found.holds is None and "s0 diverged at round 7" in found.text


# ---- gain by format


def parsing(base, final):
    """(P(parsed), P(correct given parsed)) of base and final; seeds differ a little in the last."""

    def tell(cell):
        shares = [base[0] * base[1], final[0] * final[1]]
        step = 0.005 * (-1) ** cell.seed
        return {"test": (right(shares[0]), right(shares[1] + step)), "parsed": (base[0], final[0])}

    return tell


@pytest.mark.parametrize(
    ("base", "final", "holds"),
    [((0.4, 0.5), (1.0, 0.5), True), ((0.8, 0.25), (0.8, 0.75), False),
     ((0.4, 0.5), (1.0, 0.75), False), ((0.4, 0.5), (0.4, 0.5), False)],
)  # fmt: skip
def test_gain_by_format(base, final, holds):
    (found,) = said("gain by format alone", ONE, parsing(base, final))
    assert found.holds is holds
    assert "by P(parsed)" in found.text and "by P(correct given parsed)" in found.text
    assert found.evidence[0].startswith(f"s0: P(parsed) {base[0]:.3f} to {final[0]:.3f}")


def test_where_all_answers_parsed_format_gained_nothing():
    (found,) = said("gain by format alone", ONE, parsing((1.0, 0.25), (1.0, 0.5)))
    assert found.holds is False
    assert found.text == "all answers of base and final parsed, nothing to gain, 4 seeds"


def test_a_base_that_parsed_nothing_leaves_the_split_unknown():
    (found,) = said("gain by format alone", ONE, parsing((0.0, 0.0), (1.0, 0.5)))
    assert found.holds is None
    assert found.text.endswith("P(correct given parsed) is not known of s0, s1, s2, s3")


def test_one_seed_without_a_split_leaves_the_arm_unknown():
    def tell(cell):
        final = (1.0, 0.5) if cell.seed else (0.0, 0.0)
        return parsing((0.4, 0.5), final)(cell) | ({} if cell.seed else {"parsed": (0.4, 0.0)})

    (found,) = said("gain by format alone", ONE, tell)
    assert found.holds is None and found.text.endswith("is not known of s0")


shares = st.floats(0.01, 1.0)


@given(shares, shares, shares, shares)
def test_the_parts_add_up_to_the_gain(p, c, q, d):
    parts = split((p * c, q * d), (p, q))
    assert parts.form + parts.content == pytest.approx(q * d - p * c, abs=1e-12)


def test_the_split_by_hand():
    parts = split((0.2, 0.6), (0.4, 1.0))  # P(correct given parsed) 0.5 to 0.6
    assert parts.form == pytest.approx(0.6 * 0.55) and parts.content == pytest.approx(0.1 * 0.7)
    assert math.isnan(split((0.3, 0.6), (0.2, 1.0)).form)  # more right than parsed cannot be


# ---- steps between arms


def by_arm(shares, spread=0.002, **others):
    """Final shares by (batch, rollouts, replay)."""

    def tell(cell):
        final = shares[cell.shape] + spread * (-1) ** cell.seed
        told = {"group": float(cell.rollouts + cell.replay), **others}
        return told | {"test": (right(0.2, questions=1000), right(final, questions=1000))}

    return tell


def test_the_last_step_of_batches_is_told_per_doubling():
    shares = {(8, 1, 0): 0.2, (16, 1, 0): 0.5, (64, 1, 0): 0.52}
    (found,) = said("ceiling of batch scaling", grid_of(SHAPES), by_arm(shares))
    assert found.holds is True and found.where.endswith("(16,1,0) raw to (64,1,0) raw")
    assert found.text.startswith("+0.010 [") and "per doubling of the batch" in found.text
    assert "exploratory: no contrast declares it" in found.text and "4 seeds" in found.text
    assert "(8,1,0) raw to (16,1,0) raw: +0.300 [" in found.evidence[0]


def test_a_batch_that_still_pays_is_no_ceiling():
    shares = {(8, 1, 0): 0.2, (16, 1, 0): 0.5, (64, 1, 0): 0.7}
    (found,) = said("ceiling of batch scaling", grid_of(SHAPES), by_arm(shares))
    assert found.holds is False and found.text.startswith("+0.100 [")


def test_one_batch_has_no_step():
    assert said("ceiling of batch scaling", ONE, gained(0.1)) == []


ROLLOUTS = {"rollouts": [1, 2, 8, 16], "advantage": ["raw"]}


def test_eightfold_rollouts():
    shares = {(8, 1, 0): 0.3, (8, 2, 0): 0.4, (8, 8, 0): 0.305, (8, 16, 0): 0.6}
    found = said("diminishing returns per eightfold rollouts", grid_of(ROLLOUTS), by_arm(shares))
    assert [(f.where.partition("(")[2], f.holds) for f in found] == [
        ("8,1,0) raw to (8,8,0) raw", True), ("8,2,0) raw to (8,16,0) raw", False),
    ]  # fmt: skip
    assert "below 0.02, so that effort may go elsewhere" in found[0].text


def wheres(axes, name="diminishing returns per eightfold rollouts", **settings):
    grid = grid_of(axes, **settings)
    found = said(name, grid, lambda cell: {"test": (right(0.2), right(0.3))})
    return [finding.where.removeprefix("tiny-qwen2 tiny-sums ") for finding in found]


def test_all_else_is_equal_in_a_step():
    rollouts = {"rollouts": [1, 8]}
    assert wheres(rollouts | {"advantage": ["raw", "grpo"]}) == [
        "(8,1,0) raw to (8,8,0) raw", "(8,1,0) grpo to (8,8,0) grpo"]  # fmt: skip
    assert wheres(rollouts | {"lr": [1e-5, 3e-5]}) == [
        f"(8,1,0) raw lr={lr} to (8,8,0) raw lr={lr}" for lr in ("1e-05", "3e-05")]  # fmt: skip
    assert wheres(rollouts | {"batch": [8, 16]}) == [
        "(8,1,0) raw to (8,8,0) raw", "(16,1,0) raw to (16,8,0) raw"]  # fmt: skip
    replay = rollouts | {"replay": [0, 7], "advantage": ["grpo"]}
    assert wheres(replay) == ["(8,1,0) grpo to (8,8,0) grpo"]
    assert wheres(replay | {"batch": [8, 16]}, "replay within the margin of fresh rollouts") == [
        "(8,8,0) grpo to (8,1,7) grpo", "(16,8,0) grpo to (16,1,7) grpo"]  # fmt: skip


def test_a_step_is_declared_by_its_own_contrast_alone():
    contrast = {"name": "n", "a": {"rollouts": 1}, "b": {"rollouts": 8}}
    grid = grid_of(ROLLOUTS, contrasts=[contrast])
    shares = {(8, 1, 0): 0.3, (8, 2, 0): 0.4, (8, 8, 0): 0.305, (8, 16, 0): 0.6}
    found = said("diminishing returns per eightfold rollouts", grid, by_arm(shares))
    assert ["no contrast declares it" in finding.text for finding in found] == [False, True]


def test_a_declared_step_has_its_standing_and_is_withheld_as_it_is():
    contrast = {"name": "n", "a": {"rollouts": 1}, "b": {"rollouts": 8}}
    grid = grid_of({"rollouts": [1, 8]}, contrasts=[contrast])
    shares = {(8, 1, 0): 0.3, (8, 8, 0): 0.3}
    (found,) = said("diminishing returns per eightfold rollouts", grid, by_arm(shares))
    assert "never registered" in found.text and "no contrast declares it" not in found.text
    grid = grid_of({"rollouts": [1, 8]}, contrasts=[contrast | {"match": "generated"}])
    (found,) = said("diminishing returns per eightfold rollouts", grid, by_arm(shares))
    assert found.holds is None and "match: generated was declared" in found.text
    assert "no verdict" in found.text


@pytest.mark.parametrize(
    ("name", "shares"),
    [("diminishing returns per eightfold rollouts", {(8, 1, 0): 0.3, (8, 8, 0): 0.3}),
     ("ceiling of batch scaling", {(8, 1, 0): 0.3, (16, 1, 0): 0.3})],
)  # fmt: skip
def test_other_hardware_gives_no_verdict(name, shares):
    tell = by_arm(shares)
    axes = {"rollouts": [1, 8]} if (8, 8, 0) in shares else {"rollouts": [1], "batch": [8, 16]}

    def apart(cell):
        return tell(cell) | {"device": "cpu" if cell.shape == (8, 1, 0) else "H100"}

    (found,) = said(name, grid_of(axes), apart)
    assert found.holds is None and "differ in hardware (cpu and H100)" in found.text


def test_a_step_of_one_seed_decides_nothing():
    tell = by_arm({(8, 1, 0): 0.3, (8, 8, 0): 0.3})
    (found,) = said("diminishing returns per eightfold rollouts", grid_of({"rollouts": [1, 8]}),
                    lambda cell: tell(cell) if cell.seed == 0 else None)  # fmt: skip
    assert found.holds is None and "one seed tells of a run alone" in found.text


def test_a_step_without_answers_says_whose():
    tell = by_arm({(8, 1, 0): 0.3, (8, 8, 0): 0.3})
    (found,) = said("diminishing returns per eightfold rollouts", grid_of({"rollouts": [1, 8]}),
                    lambda cell: tell(cell) if cell.rollouts == 1 else None)  # fmt: skip
    assert found.holds is None
    assert "(8,8,0) raw has no answers to compare (4 of 4 seeds waiting)" in found.text


def test_a_step_between_other_questions_is_refused():
    def tell(cell):
        n = 100 * cell.rollouts
        return {"test": (right(0.2, questions=n), right(0.3, questions=n))}

    grid = grid_of({"rollouts": [1, 8]})
    (found,) = said("diminishing returns per eightfold rollouts", grid, tell)
    assert found.holds is None and "question sets differ" in found.text


REPLAY = {"rollouts": [1, 8], "replay": [0, 7], "advantage": ["grpo"]}


def replayed(share, **others):
    grid = grid_of(REPLAY, budget={"samples_per_step": 64})
    tell = by_arm({(8, 8, 0): 0.5, (8, 1, 7): share})
    (found,) = said("replay within the margin of fresh rollouts", grid,
                    lambda cell: tell(cell) | (others if cell.replay else {}))  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("share", "holds", "verdict"),
    [(0.5, True, "equivalent"), (0.6, True, "better"), (0.49, True, "worse"),
     (0.45, False, "worse"), (0.48, None, "worse")],
)  # fmt: skip
def test_replay_against_fresh_rollouts(share, holds, verdict):
    found = replayed(share)
    assert found.holds is holds and found.where.endswith("(8,8,0) grpo to (8,1,7) grpo")
    assert f"1000 questions, {verdict}; exploratory" in found.text


def test_replay_that_was_not_exercised_tells_nothing():
    found = replayed(0.5, group=3.0)
    assert found.holds is None
    assert "replay not exercised: the median group has 3 of 8 rollouts" in found.text
    found = replayed(0.5, group=math.nan)
    assert found.holds is None and "how large the groups were is not known" in found.text


def test_every_signature_is_made_of_a_pair():
    grid = grid_of({"batch": [8, 16], "rollouts": [1, 8], "replay": [0, 7], "advantage": ["grpo"]},
                   exclude=[{"rollouts": 8, "replay": 7, "why": "x"}])  # fmt: skip
    pair = pair_of(grid, lambda cell: {"test": (right(0.2), right(0.4))}, Memory())
    assert {finding.name for finding in signatures(pair)} == set(SIGNATURES)
