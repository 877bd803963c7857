"""What a round tells, by hand: groups, ages, ratios, second moments; what is missing is absent."""

import math
from dataclasses import replace

import pytest
import torch

from workers.data import Question
from workers.engine import Response
from workers.grading import Grade
from workers.groups import Groups, RunningBaselines
from workers.passes import Row, padded
from workers.replay import ReplayBuffer, Rollout
from workers.round import Round, second_moments
from workers.scoring import Scored

RIGHT, WRONG = Grade(True, True, "1"), Grade(False, False, None)


def fresh(question: str, *rewards: float, round: int = 5) -> list[Rollout]:
    return [Rollout(question, round, reward, 2, torch.tensor([4, 5])) for reward in rewards]


def groups_of(cell, replayed: list[Rollout], *rollouts: list[Rollout]) -> Groups:
    buffer = ReplayBuffer(cell.replay)
    buffer.add(replayed)
    return Groups.of([r for part in rollouts for r in part], buffer, 5, cell)


def test_groups_hold_fresh_rollouts_before_replayed_and_mask_the_rest(tiny):
    cell = tiny(rollouts=2, replay=2, advantage="grpo")
    old = [*fresh("a", 1.0, round=1), *fresh("a", 0.5, round=3)]
    groups = groups_of(cell, old, fresh("a", 1.0, 0.0), fresh("b", math.nan, 0.25))
    rewards = groups.rewards_P_G.nan_to_num(-1).tolist()
    assert rewards == [[1, 0, 0.5, 1], [-1, 0.25, -1, -1]]
    assert groups.mask_P_G.tolist() == [[True] * 4, [False, True, False, False]]
    assert groups.ages_P_G.tolist() == [[0, 0, 2, 4], [0, 0, 0, 0]]
    assert groups.fresh_P_G.tolist() == [[True, True, False, False]] * 2
    assert groups.questions_P == ("a", "b")
    assert [(m.query, m.place) for m in groups.members(range(2))] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


def test_what_groups_tell(tiny):
    cell = tiny(rollouts=2, replay=2, advantage="grpo")
    old = [*fresh("a", 1.0, round=1), *fresh("a", 0.5, round=3)]
    groups = groups_of(
        cell, old, fresh("a", 1.0, 1.0), fresh("b", 0.0, 0.0), fresh("c", 0.0, math.nan),
        fresh("d", 0.5, 1.0),
    )  # fmt: skip
    told = Round(5, cell)
    told.note_groups(groups, torch.zeros(4, 4))
    assert told.metrics["groups/all_right"] == 0.25
    assert told.metrics["groups/all_wrong"] == 0.5
    assert told.metrics["groups/mixed"] == 0.25
    assert told.metrics["groups/effective_size"] == (4 + 2 + 1 + 2) / 4
    assert told.metrics["groups/singletons"] == 0.25
    assert (told.metrics["replay/age_mean"], told.metrics["replay/age_max"]) == (3, 4)


def test_groups_of_graded_rewards_are_mixed_where_they_differ(tiny):
    """Equal rewards between 0 and 1 teach nothing relative to each other: none of the three."""
    half, none = fresh("a", 0.5, 0.5), fresh("c", math.nan, math.nan)
    told = Round(5, tiny(rollouts=2))
    groups = groups_of(tiny(rollouts=2), [], half, fresh("b", 0.5, 0.25), none, fresh("d", 0, 0.5))
    told.note_groups(groups, torch.zeros(4, 2))
    assert told.metrics["groups/mixed"] == 0.5
    assert told.metrics["groups/all_wrong"] == told.metrics["groups/all_right"] == 0.0


def test_without_replayed_rollouts_there_are_no_ages(tiny):
    told = Round(5, tiny())
    told.note_groups(groups_of(tiny(), [], fresh("a", 1.0)), torch.zeros(1, 1))
    assert "replay/age_mean" not in told.metrics


def test_what_rollouts_tell(tiny):
    told = Round(5, tiny())
    asked = [Question("a", "1 + 1 =", "2")] * 3
    responses = [Response([4, 5], False), Response([4, 5, 6], True), Response([4], False)]
    scored = Scored(
        ["x", "y", "z"], [RIGHT, WRONG, None], [RIGHT, RIGHT, None], [1.0, 0.0, math.nan]
    )
    told.note_rollouts(asked, responses, scored)
    assert told.metrics["train/reward"] == 0.5
    assert "train/reward_flipped" not in told.metrics
    assert told.metrics["train/reward_sd"] == pytest.approx(math.sqrt(0.5))
    assert (told.metrics["train/correct"], told.metrics["train/correct_flexible"]) == (0.5, 1)
    assert told.metrics["train/parsed"] == 0.5
    assert told.metrics["train/unscored"] == told.metrics["train/truncated"] == pytest.approx(1 / 3)
    assert (told.metrics["train/response_tokens"], told.metrics["train/generated_tokens"]) == (2, 6)
    assert told.rollouts[0]["completion"] == "x"
    told.note_rollouts(asked, responses, replace(scored, flipped=[True, False, True]))
    assert told.metrics["train/reward_flipped"] == 0.5  # of those that have a reward


def test_ratios_by_hand(tiny):
    """Two rows of two tokens; the replayed one's ratios are 2 and 0.5, its advantage positive."""
    told = Round(5, tiny(replay=1, advantage="rloo", replay_mode="train"))
    ids, zero = torch.tensor([4, 5]), torch.zeros(2)
    old = torch.tensor([-math.log(2), math.log(2)])
    rows = [
        Row([1], ids, -1.0, zero, zero),
        Row([1], ids, 1.0, zero, old, replayed=True),
    ]
    inputs = padded(rows, 0, torch.device("cpu"))
    told.note_ratios(rows, torch.zeros(2, 2), inputs)
    assert told.metrics["replay/ratio_mean"] == pytest.approx(1.25)
    assert told.metrics["replay/ratio_sd"] == pytest.approx(0.75)
    assert told.metrics["replay/clip_share"] == 0.5  # 2 lies above 1.2
    assert told.metrics["update/clip_share"] == 0.25


def test_a_round_is_evaluated_at_every_and_at_the_end(tiny):
    cell = tiny(rounds=5, eval={"every": 2})
    assert [Round(n, cell).evaluated for n in range(1, 6)] == [False, True, False, True, True]


def test_second_moments_by_hand(tiny):
    cell = tiny(rollouts=2, advantage="grpo")
    groups = groups_of(cell, [], fresh("a", 1.0, 0.0), fresh("b", 0.5, 0.5))
    rows = [[Row([1], torch.tensor([p * 2 + g])) for g in range(2)] for p in range(2)]
    norms = [2.0, 3.0, 5.0, 7.0]
    told = second_moments(groups, rows, lambda row: norms[row.ids_T.item()])
    assert told["gradient/second_moment_raw"] == (2 + 0 + 5 / 4 + 7 / 4) / 4
    assert told["gradient/second_moment_group"] == (2 / 4 + 3 / 4 + 0 + 0) / 4
    assert told["gradient/rollouts"] == 4


def test_second_moments_of_groups_of_one_are_of_the_raw_reward_alone(tiny):
    groups = groups_of(tiny(), [], fresh("a", 1.0), fresh("b", 0.0))
    rows = [[Row([1], torch.tensor([p]))] for p in range(2)]
    asked: list[int] = []
    told = second_moments(groups, rows, lambda row: asked.append(row.ids_T.item()) or 4.0)
    assert told == {"gradient/second_moment_raw": 2.0, "gradient/rollouts": 2.0}
    assert asked == [0], "a reward of 0 has no gradient to look at"


def test_second_moments_look_at_whole_groups_up_to_a_bound(tiny):
    cell = tiny(rollouts=8, advantage="grpo", batch=6)
    groups = groups_of(cell, [], *(fresh(str(p), *[1.0] * 7, 0.0) for p in range(6)))
    rows = [[Row([1], torch.tensor([g])) for g in range(8)] for _ in range(6)]
    assert second_moments(groups, rows, lambda row: 1.0)["gradient/rollouts"] == 32


def test_running_baselines_by_hand(tiny):
    cell = tiny(rollouts=2, advantage="ema")
    baselines = RunningBaselines(0.75)
    first = groups_of(cell, [], fresh("a", 1.0, 0.0), fresh("b", math.nan, math.nan))
    assert baselines.of(first).isnan().all()
    baselines.add(first, 2)
    assert baselines.state() == {"a": 0.5}, "an unscored question stays without one"
    again = groups_of(cell, [], fresh("a", 1.0, 1.0), fresh("a", 0.0, math.nan))
    baselines.add(again, 2)  # a question asked twice in a round is taken in twice
    assert baselines.state() == {"a": pytest.approx(0.75 * (0.75 * 0.5 + 0.25))}
    other = RunningBaselines(0.75)
    other.load(baselines.state())
    assert torch.equal(other.of(again), baselines.of(again))


def test_running_baselines_are_kept_by_ema_alone(tiny):
    baselines = RunningBaselines(None)
    baselines.add(groups_of(tiny(), [], fresh("a", 1.0)), 1)
    assert baselines.state() == {}
