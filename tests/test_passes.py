"""Rows in passes: within bounds, of like length, padded no wider than they are."""

import pytest
import torch

from workers.passes import Row, packed, padded, pass_bounds, token_weights


def rows_of(*lengths: int, prompt: int = 2) -> list[Row]:
    return [Row([1] * prompt, torch.arange(n) + 5, advantage=float(n)) for n in lengths]


def lengths_of(passes: list[list[Row]]) -> list[list[int]]:
    return [[len(row.ids_T) for row in rows] for rows in passes]


def test_rows_of_like_length_share_a_pass():
    assert lengths_of(packed(rows_of(1, 8, 2, 7, 1), tokens=20)) == [[8, 7], [2, 1, 1]]


def test_a_pass_holds_no_more_rows_than_it_may():
    assert lengths_of(packed(rows_of(3, 3, 3, 3, 3), tokens=1000, most=2)) == [[3, 3], [3, 3], [3]]


def test_a_row_too_long_for_the_bound_takes_a_pass_of_its_own():
    assert lengths_of(packed(rows_of(50, 1, 60), tokens=10)) == [[60], [50], [1]]


def test_a_longer_prompt_counts_for_every_row_of_its_pass():
    rows = [*rows_of(4, 4), *rows_of(4, prompt=6)]
    assert lengths_of(packed(rows, tokens=20)) == [[4, 4], [4]]
    assert packed(rows, tokens=30) == [rows]


def test_no_rows_are_no_passes():
    assert packed([], tokens=10) == []


def test_a_pass_is_padded_to_its_own_longest():
    weights, old = torch.tensor([0.5, 0.25]), torch.tensor([-1.0, -2.0])
    rows = [
        Row([7, 8, 9], torch.tensor([4]), 1.0, weights[:1], old[:1]),
        Row([6], torch.tensor([3, 2]), -1.0, weights, old),
    ]
    made = padded(rows, pad_id=0, device=torch.device("cpu"))
    assert made["prompt_ids"].tolist() == [[7, 8, 9], [0, 0, 6]]
    assert made["prompt_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert made["completion_ids"].tolist() == [[4, 0], [3, 2]]
    assert made["completion_mask"].tolist() == [[1, 0], [1, 1]]
    assert made["advantages"].tolist() == [1, -1]
    assert made["tool_mask"].tolist() == [[0.5, 0], [0.5, 0.25]]
    assert made["old_per_token_logps"].tolist() == [[-1, 0], [-1, -2]]
    assert "ref_per_token_logps" not in made


def test_a_field_that_some_rows_lack_is_an_error():
    rows = [Row([1], torch.tensor([4]), log_old_T=torch.zeros(1)), Row([1], torch.tensor([4]))]
    with pytest.raises(ValueError, match="old_per_token_logps: 1 of 2 rows"):
        padded(rows, 0, torch.device("cpu"))


def test_token_weights_keep_the_rows_order(tiny):
    made = token_weights([2, 4, 1], tiny(aggregation="seq_mean_token_mean"))
    assert [weights.tolist() for weights in made] == [
        pytest.approx([1 / 6] * 2), pytest.approx([1 / 12] * 4), pytest.approx([1 / 3])
    ]  # fmt: skip


def test_bounds_follow_the_cell_and_are_wider_without_gradient(tiny):
    tokens, most = pass_bounds(tiny(), gradient=True)
    assert (tokens, most) == (8192, None)
    assert pass_bounds(tiny(rows_per_pass=3), gradient=False) == (4 * tokens, 12)
