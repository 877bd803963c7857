"""Each estimator on hand-sized groups, and against a second formula written apart."""

import math
import statistics

import pytest
import torch

from workers.advantages import ADVANTAGES, Context

T, F = True, False
S3 = 1 / math.sqrt(3)

# name, rewards, mask, singleton rule, advantages
HAND = {
    "raw gives the reward": ("raw", [[1, 0], [0, 0]], [[T, T], [T, T]], "raw", [[1, 0], [0, 0]]),
    "raw over one": ("raw", [[1], [0]], [[T], [T]], "zero", [[1], [0]]),
    "raw gives graded rewards": ("raw", [[0.25, 0.5]], [[T, T]], "raw", [[0.25, 0.5]]),
    "raw masks": ("raw", [[1, 1]], [[T, F]], "raw", [[1, 0]]),
    "grpo of two": ("grpo", [[1, 0]], [[T, T]], "raw", [[math.sqrt(0.5), -math.sqrt(0.5)]]),
    "grpo of three": ("grpo", [[1, 0, 0]], [[T, T, T]], "raw", [[2 * S3, -S3, -S3]]),
    "grpo of a constant group": ("grpo", [[1, 1], [0, 0]], [[T, T], [T, T]], "raw", [[0, 0]] * 2),
    "grpo over one: verl's rule": ("grpo", [[1], [0]], [[T], [T]], "raw", [[1], [0]]),
    "grpo over one: zero": ("grpo", [[1], [0]], [[T], [T]], "zero", [[0], [0]]),
    "grpo over one: batch mean": ("grpo", [[1], [0]], [[T], [T]], "batch_mean", [[0.5], [-0.5]]),
    "grpo over one of two slots": ("grpo", [[1, 9]], [[T, F]], "raw", [[1, 0]]),
    "grpo masks": ("grpo", [[1, 5, 0]], [[T, F, T]], "raw", [[math.sqrt(0.5), 0, -math.sqrt(0.5)]]),
    "grpo of an empty group": ("grpo", [[3, 4]], [[F, F]], "raw", [[0, 0]]),
}


@pytest.mark.parametrize(
    ("name", "rewards", "mask", "singleton", "expected"), HAND.values(), ids=HAND.keys()
)
def test_by_hand(name, rewards, mask, singleton, expected):
    rewards_P_G, mask_P_G = torch.tensor(rewards, dtype=torch.float64), torch.tensor(mask)
    made_P_G = ADVANTAGES[name](rewards_P_G, mask_P_G, context=Context(singleton))
    torch.testing.assert_close(
        made_P_G, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ADVANTAGES)
def test_whatever_a_masked_entry_holds_is_ignored(name):
    rewards_P_G = torch.tensor([[1.0, math.nan, 0.0], [math.inf, 1.0, math.nan]])
    mask_P_G = torch.tensor([[T, F, T], [F, T, F]])
    made_P_G = ADVANTAGES[name](rewards_P_G, mask_P_G)
    clean_P_G = ADVANTAGES[name](rewards_P_G.nan_to_num(7, posinf=7), mask_P_G)
    assert torch.equal(made_P_G, clean_P_G) and not made_P_G[~mask_P_G].any()


def test_grpo_against_the_statistics_module():
    generator = torch.Generator().manual_seed(0)
    rewards_P_G = torch.rand(20, 8, generator=generator, dtype=torch.float64)
    mask_P_G = torch.rand(20, 8, generator=generator) < 0.7
    made_P_G = ADVANTAGES["grpo"](rewards_P_G, mask_P_G)
    for rewards, mask, made in zip(rewards_P_G.tolist(), mask_P_G, made_P_G.tolist(), strict=True):
        group = [r for r, kept in zip(rewards, mask, strict=True) if kept]
        for r, kept, advantage in zip(rewards, mask, made, strict=True):
            if not kept:
                assert advantage == 0
            elif len(group) == 1:
                assert advantage == pytest.approx(r)
            else:
                expected = (r - statistics.mean(group)) / (statistics.stdev(group) + 1e-6)
                assert advantage == pytest.approx(expected)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_without_a_context_the_singleton_rule_is_verls(name):
    one = torch.ones(1, 1)
    assert ADVANTAGES[name](one, one.bool()).item() == 1
