"""What a journal says of training, at the horizon that a grid asks for."""

import math

import pytest

from analysis.training import training
from grids import outcome
from grids.cell import Cell

CELL = Cell(model="tiny-qwen2", dataset="tiny-sums", batch=8, rollouts=4, rounds=20)


def line(r, **more):
    made = {outcome.GENERATED_TOKENS: 100.0, outcome.TRAINED_TOKENS: 50.0, outcome.UPDATES: 1.0}
    return made | {outcome.REWARD: r / 20, outcome.GROUP_SIZE: float(min(r, 8))} | more


LINES = {0: {outcome.TEST_PASS: 0.2}} | {r: line(r) for r in range(1, 21)}
LINES[10] |= {outcome.TEST_PASS: 0.3, outcome.TRAIN_PASS: 0.4}
LINES[20] |= {outcome.TEST_PASS: 0.5}
SECONDS = dict.fromkeys(range(1, 21), 0.5)


def test_costs_are_sums_up_to_the_end():
    costs = training(CELL, LINES, SECONDS, 20).costs
    assert (costs.rounds, costs.prompts, costs.rollouts, costs.updates) == (20, 160, 640, 20)
    assert (costs.generated_tokens, costs.trained_tokens, costs.seconds) == (2000, 1000, 10)
    half = training(CELL, LINES, SECONDS, 10).costs
    assert (half.rounds, half.generated_tokens, half.seconds) == (10, 1000, 5)


def test_a_cost_that_a_round_does_not_tell_is_unknown():
    lines = {**LINES, 7: {k: v for k, v in LINES[7].items() if k != outcome.TRAINED_TOKENS}}
    costs = training(CELL, lines, {r: 0.5 for r in range(1, 20)}, 20).costs
    assert math.isnan(costs.trained_tokens) and math.isnan(costs.seconds)
    assert costs.generated_tokens == 2000


def test_replay_from_the_base_is_paid_for():
    cell = Cell(
        model="tiny-qwen2", dataset="tiny-sums", batch=8, replay=2, replay_fill="base",
        advantage="grpo", rounds=20,
    )  # fmt: skip
    lines = {**LINES, 0: {**LINES[0], outcome.GENERATED_TOKENS: 7000.0}}
    costs = training(cell, lines, SECONDS, 20).costs
    assert costs.rollouts == 160 + 2 * 512 and costs.generated_tokens == 9000


def test_the_curve_has_scores_and_the_tokens_until_then():
    curve = training(CELL, LINES, SECONDS, 20).curve
    assert {r: point[outcome.GENERATED_TOKENS] for r, point in curve.items()} == {
        0: 0, 10: 1000, 20: 2000,
    }  # fmt: skip
    assert curve[10][outcome.TRAIN_PASS] == 0.4 and outcome.REWARD not in curve[10]
    assert list(training(CELL, LINES, SECONDS, 10).curve) == [0, 10]


def test_first_and_last_are_means_over_a_tenth_of_the_rounds():
    made = training(CELL, LINES, SECONDS, 20)
    assert made.first[outcome.REWARD] == pytest.approx(1.5 / 20)
    assert made.last[outcome.REWARD] == pytest.approx(19.5 / 20)
    assert outcome.ENTROPY not in made.first  # no round has it


def test_what_few_rounds_measure_is_taken_from_these():
    lines = {**LINES, 10: LINES[10] | {outcome.ENTROPY: 2.0}, 20: LINES[20] | {outcome.ENTROPY: 1}}
    made = training(CELL, lines, SECONDS, 20)
    assert (made.first[outcome.ENTROPY], made.last[outcome.ENTROPY]) == (2, 1)


def test_the_median_group_is_over_rounds():
    assert training(CELL, LINES, SECONDS, 20).median_group == 8
    assert training(CELL, LINES, SECONDS, 6).median_group == 3.5
    assert math.isnan(training(CELL, {0: LINES[0]}, {}, 20).median_group)


def test_a_journal_of_the_base_alone_is_no_error():
    made = training(CELL, {0: LINES[0]}, {}, 20)
    assert (made.costs.rounds, made.costs.generated_tokens, made.first) == (0, 0, {})
