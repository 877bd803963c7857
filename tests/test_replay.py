"""The most recent rollouts of each question, newest first, none too old, none unscored."""

import io
import math

import pytest
import torch

from workers.replay import ReplayBuffer, Rollout


def rollout(round: int, reward: float, length: int = 3, question: str = "q") -> Rollout:
    ids_T = torch.arange(length) + round
    return Rollout(question, round, reward, length, ids_T, -ids_T.float(), -2 * ids_T.float())


def kept(buffer: ReplayBuffer, round: int, question: str = "q") -> list[tuple[float, int]]:
    return [(r.reward, r.round) for r in buffer.recent(question, round)]


def test_the_oldest_make_room():
    buffer = ReplayBuffer(2)
    buffer.add(rollout(round, reward) for round, reward in ((1, 1.0), (2, 0.0), (3, 1.0)))
    assert kept(buffer, 4) == [(1.0, 3), (0.0, 2)]
    assert kept(buffer, 4, "other") == []


def test_the_limit_on_age_counts_rounds():
    buffer = ReplayBuffer(3, max_age=2)
    buffer.add([rollout(1, 1.0), rollout(3, 0.0)])
    assert kept(buffer, 3) == [(0.0, 3), (1.0, 1)]
    assert kept(buffer, 4) == [(0.0, 3)]


def test_an_unscored_rollout_is_not_kept():
    buffer = ReplayBuffer(2)
    buffer.add([rollout(1, 1.0), rollout(2, math.nan)])
    assert kept(buffer, 3) == [(1.0, 1)]


def test_a_buffer_of_size_0_keeps_nothing():
    buffer = ReplayBuffer(0)
    buffer.add([rollout(1, 1.0)])
    assert buffer.state()["question"] == []


def test_tokens_are_kept_where_they_take_gradient_alone():
    light, whole = ReplayBuffer(1), ReplayBuffer(1, tokens=True)
    for buffer in (light, whole):
        buffer.add([rollout(1, 1.0)])
    (one,), (other,) = light.recent("q", 2), whole.recent("q", 2)
    assert (one.ids_T, one.log_p_T, one.log_ref_T, one.length) == (None, None, None, 3)
    assert torch.equal(other.ids_T, rollout(1, 1.0).ids_T)
    assert torch.equal(other.log_p_T, rollout(1, 1.0).log_p_T)


def test_a_kept_rollout_is_no_view_of_its_rounds_tensor():
    whole = torch.zeros(100, 50)
    buffer = ReplayBuffer(1, tokens=True)
    buffer.add([Rollout("q", 1, 1.0, 2, torch.tensor([1, 2]), whole[0, :2])])
    (one,) = buffer.recent("q", 2)
    assert one.log_p_T.untyped_storage().nbytes() == 8


@pytest.mark.parametrize("tokens", [False, True])
def test_state_survives_a_checkpoint(tokens):
    buffer = ReplayBuffer(2, tokens=tokens)
    buffer.add([rollout(1, 1.0), rollout(2, 0.1, 5), rollout(2, 0.5, 1, "other")])
    file = io.BytesIO()
    torch.save(buffer.state(), file)
    file.seek(0)
    again = ReplayBuffer(2, tokens=tokens)
    again.load(torch.load(file, weights_only=True))
    for question in ("q", "other"):
        ours, theirs = buffer.recent(question, 3), again.recent(question, 3)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert (one.reward, one.round, one.length) == (other.reward, other.round, other.length)
            for name in ("ids_T", "log_p_T", "log_ref_T"):
                left, right = getattr(one, name), getattr(other, name)
                assert torch.equal(left, right) if tokens else left is right is None
    again.add([rollout(3, 1.0)])
    assert kept(again, 4) == [(1.0, 3), (0.1, 2)], "new ones push out the oldest"


def test_an_empty_buffer_survives_a_checkpoint():
    again = ReplayBuffer(2, tokens=True)
    again.load(ReplayBuffer(2, tokens=True).state())
    assert again.recent("q", 1) == []
