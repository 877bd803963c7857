"""Token weights of each aggregation, the KL's estimators and the clip, by hand."""

import math

import pytest
import torch

from workers.losses import AGGREGATIONS, KLS, clipped

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


@pytest.mark.parametrize(
    ("name", "p", "ref", "expected"),
    [
        ("k1", 0.5, 0.25, math.log(2)),
        ("k1", 0.25, 0.5, -math.log(2)),
        ("k2", 0.25, 0.5, math.log(2) ** 2 / 2),
        ("k3", 0.5, 0.25, 0.5 - 1 + math.log(2)),
        ("k3", 0.25, 0.5, 2 - 1 - math.log(2)),
    ],
)
def test_estimators_of_the_kl_by_hand(name, p, ref, expected):
    log_p, log_ref = torch.tensor([p]).log(), torch.tensor([ref]).log()
    assert KLS[name](log_p, log_ref).item() == pytest.approx(expected, rel=1e-5)


def test_k1_and_k3_are_unbiased_and_k2_is_near():
    """Their means under p, over a small vocabulary, against the KL itself."""
    p, ref = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    kl = (p * (p / ref).log()).sum().item()
    means = {name: (p * f(p.log(), ref.log())).sum().item() for name, f in KLS.items()}
    assert means["k1"] == pytest.approx(kl) and means["k3"] == pytest.approx(kl)
    assert means["k2"] == pytest.approx(kl, rel=0.1) and means["k2"] != pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "expected"),
    [
        (1.0, 1.0, 3.0, False),
        (1.21, 1.0, 3.0, True),
        (0.5, 1.0, 3.0, False),
        (0.79, -1.0, 3.0, True),
        (1.5, -1.0, 3.0, False),
        (3.1, -1.0, 3.0, True),
        (3.1, -1.0, None, False),
        (9.0, 0.0, 3.0, False),
    ],
)
def test_where_the_clip_takes_the_gradient(ratio, advantage, dual, expected):
    cut = clipped(torch.tensor([ratio]), torch.tensor([advantage]), 0.2, 0.2, dual)
    assert cut.item() is expected
