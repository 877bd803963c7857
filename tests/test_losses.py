"""Token weights of each aggregation, by hand and against the sentence that defines it."""

import pytest
import torch

from workers.losses import AGGREGATIONS

# four responses of 1, 3, 2 and 2 tokens
MASK_N_T = torch.tensor([[1.0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]])
LOSS_N_T = torch.arange(12, dtype=torch.float32).view(4, 3)


def weighted(name: str, micro_batch: int = 2) -> float:
    weights = AGGREGATIONS[name](MASK_N_T, micro_batch, 4)
    assert (weights * (1 - MASK_N_T)).sum() == 0
    return float((weights * LOSS_N_T).sum())


def test_token_mean_micro_batch():
    first, second = (0 + 3 + 4 + 5) / 4, (6 + 7 + 9 + 10) / 4
    assert weighted("token_mean_micro_batch") == pytest.approx((first + second) / 2)


def test_token_mean_micro_batch_with_a_short_last_one():
    first, second = (0 + 3 + 4 + 5 + 6 + 7) / 6, (9 + 10) / 2
    assert weighted("token_mean_micro_batch", 3) == pytest.approx((first + second) / 2)


def test_token_mean():
    assert weighted("token_mean") == pytest.approx((0 + 3 + 4 + 5 + 6 + 7 + 9 + 10) / 8)


def test_seq_mean_token_mean():
    assert weighted("seq_mean_token_mean") == pytest.approx((0 + 4 + 6.5 + 9.5) / 4)


def test_seq_mean_token_sum():
    assert weighted("seq_mean_token_sum") == pytest.approx((0 + 12 + 13 + 19) / 4 / 4)


@pytest.mark.parametrize("name", sorted(set(AGGREGATIONS) - {"token_mean_micro_batch"}))
def test_the_micro_batch_matters_to_the_default_alone(name):
    assert weighted(name, 1) == weighted(name, 4)
    assert weighted("token_mean_micro_batch", 1) != weighted("token_mean_micro_batch", 4)
