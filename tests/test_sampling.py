"""Prompt order and uniform numbers are pure functions of what they are for."""

import numpy as np

from workers.sampling import fixed_subset, prompt_stream, uniforms


def test_every_epoch_is_a_fresh_permutation_and_nothing_is_dropped():
    stream = prompt_stream("data", 0, questions=10, start=0, count=30)
    epochs = stream.reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_a_part_of_the_stream_is_the_stream():
    whole = prompt_stream("data", 1, questions=7, start=0, count=50)
    for start in range(40):
        np.testing.assert_array_equal(
            prompt_stream("data", 1, 7, start, 10), whole[start : start + 10]
        )


def test_seeds_and_data_sets_have_orders_of_their_own():
    orders = {tuple(prompt_stream(d, s, 50, 0, 50)) for d in ("a", "b") for s in (0, 1)}
    assert len(orders) == 4


def test_uniforms_depend_on_their_own_row_alone():
    rows = [("q1", 0), ("q1", 1), ("q2", 0)]
    all_rows = uniforms(0, "train", 3, rows, 5)
    np.testing.assert_array_equal(uniforms(0, "train", 3, rows[1:2], 5)[0], all_rows[1])
    np.testing.assert_array_equal(uniforms(0, "train", 3, rows, 2), all_rows[:, :2])
    assert len(np.unique(all_rows)) == all_rows.size


def test_uniforms_differ_by_seed_purpose_and_round():
    made = [
        uniforms(seed, purpose, round, [("q", 0)], 1)[0, 0]
        for seed in (None, 0, 1)
        for purpose in ("train", "final")
        for round in (1, 2)
    ]
    assert len(set(made)) == len(made)
    assert all(0 <= u < 1 for u in made)


def test_the_fixed_subset_is_fixed():
    chosen = fixed_subset("data", 512, 500)
    assert len(set(chosen.tolist())) == 500
    np.testing.assert_array_equal(chosen, fixed_subset("data", 512, 500))
    assert len(fixed_subset("data", 10, 500)) == 10
