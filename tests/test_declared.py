"""Declared contrasts over a store: verdicts, what withholds them, and what is never left unsaid."""

import json
import math

import numpy as np
import pytest

from analysis.declared import note_looks, results
from grids import outcome
from grids.grid import Grid
from grids.paths import write_json
from orchestrator.register import register
from tests.synthetic_store import (
    answers,
    evaluated,
    make_store,
    paths_of,
    study_of,
    write_answers,
    write_done,
    write_journal,
)

GIVEN = {
    "name": "g", "study": "s", "seeds": [0, 1, 2, 3],
    "base": {"rounds": 20, "eval": {"every": 10, "train_questions": 0}},
    "axes": {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "rollouts": [1, 8]},
    "contrasts": [{"name": "n", "a": {"rollouts": 1}, "b": {"rollouts": 8}, "margin": 0.1}],
}  # fmt: skip
TWO = {"axes": GIVEN["axes"] | {"model": ["tiny-qwen2", "tiny-llama"]}}


def grid_of(**changed):
    return Grid.model_validate(GIVEN | changed)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


def trained(store, grid, cell, share, questions=200, device="cpu", size=None):
    """A finished cell whose answers are drawn anew by seed, with this share of right ones."""
    rng = np.random.default_rng([cell.seed, cell.rollouts, len(cell.model)])
    correct_Q_K = (rng.random((questions, 1)) < share).astype(float)
    base, final = np.zeros((questions, 1)), correct_Q_K
    lines = {0: evaluated(0.0)} | {r: {outcome.GENERATED_TOKENS: 10.0 * cell.rollouts}
                                   for r in range(1, cell.rounds)}  # fmt: skip
    lines[cell.rounds] = evaluated(float(final.mean())) | {outcome.GENERATED_TOKENS: 5.0}
    if size is not None:
        lines |= {r: line | {outcome.GROUP_SIZE: size} for r, line in lines.items() if r}
    paths = finish_with(store, grid, cell, lines, base, final)
    write_json(paths.provenance, {"device": device})
    return paths


def finish_with(store, grid, cell, lines, base_Q_K, final_Q_K, **changed):
    paths = paths_of(grid, cell, store)
    write_journal(paths, lines)
    scored = max(r for r, line in lines.items() if outcome.TEST_PASS in line)
    write_done(cell, paths, lines, final=lines[scored], **changed)
    paths.cell.write_text(cell.model_dump_json(), encoding="utf-8")
    rows = answers("base", 0, "test", "greedy", base_Q_K)
    write_answers(paths, rows + answers("final", scored, "test", "greedy", final_Q_K))
    return paths


def train_all(store, grid, shares, **told):
    """Every cell; `shares` by number of rollouts."""
    for cell in grid.cells():
        trained(store, grid, cell, shares[cell.rollouts], **told)


def registered(store, grid):
    store.study(grid.study).directory.mkdir(parents=True, exist_ok=True)
    register(grid, {cell.key: cell for cell in grid.cells()}, store)


def made(store, grid):
    return results(grid, study_of(grid, store))


def test_a_registered_contrast_has_a_verdict(store):
    grid = grid_of()
    registered(store, grid)
    train_all(store, grid, {1: 0.4, 8: 0.7})
    (result,) = made(store, grid)
    assert result.told == "better at lr 3e-05" and result.claim_holds
    assert result.where == "tiny-qwen2 tiny-sums" and result.standing.exploratory == ()
    comparison = result.comparison
    assert comparison.difference.value == pytest.approx(0.3, abs=0.06)
    assert list(comparison.by_seed) == [0, 1, 2, 3] and comparison.questions == 200
    assert result.differ["rollouts"] == (1, 8)
    assert set(result.differ) == {"rollouts", "micro_batch"}
    assert result.held == ("rounds", "prompts", "updates")
    assert result.cost_ratios["rollouts"].value == pytest.approx(8)
    assert result.cost_ratios["generated_tokens"].n == 4
    assert result.notes == ()


def test_a_look_is_counted_once_for_each_state_of_the_data(store):
    grid = grid_of()
    registered(store, grid)
    assert made(store, grid)[0].standing.looks == 0
    note_looks(made(store, grid), study_of(grid, store))
    assert made(store, grid)[0].standing.looks == 0  # there was nothing to see
    for seed in (0, 1):
        for cell in grid.cells():
            if cell.seed == seed:
                trained(store, grid, cell, 0.5)
        for _ in range(2):
            assert note_looks(made(store, grid), study_of(grid, store))
        assert made(store, grid)[0].standing.looks == seed + 1
    assert "interim: 2 of 4 declared seeds" in made(store, grid)[0].notes


def test_seeds_added_after_a_look_make_it_exploratory(store):
    grid = grid_of()
    registered(store, grid)
    train_all(store, grid, {1: 0.5, 8: 0.5})
    note_looks(made(store, grid), study_of(grid, store))
    wider = grid_of(seeds=[0, 1, 2, 3, 4])
    registered(store, wider)
    train_all(store, wider, {1: 0.5, 8: 0.5})
    (result,) = made(store, wider)
    assert result.standing.label == "exploratory (1 look): gained s4 after 1 look"
    assert len(result.comparison.by_seed) == 5


def test_an_unregistered_contrast_says_exploratory(store):
    grid = grid_of()
    train_all(store, grid, {1: 0.5, 8: 0.5})
    assert made(store, grid)[0].standing.label.startswith("exploratory (0 looks)")


def test_holm_is_over_the_pairs_of_a_contrast(store):
    grid = grid_of(**TWO)
    train_all(store, grid, {1: 0.4, 8: 0.48})
    first, second = made(store, grid)
    assert {first.comparison.family_size, second.comparison.family_size} == {2}
    small, large = sorted([first.comparison, second.comparison], key=lambda c: c.p)
    assert small.p_family == pytest.approx(2 * small.p)
    assert large.p_family == pytest.approx(max(large.p, small.p_family))


def test_a_pair_without_runs_keeps_its_place_in_the_family(store):
    grid = grid_of(**TWO)
    for cell in grid.cells():
        if cell.model == "tiny-qwen2":
            trained(store, grid, cell, 0.4 + 0.04 * (cell.rollouts == 8))
    first, second = made(store, grid)
    assert second.comparison is None and second.verdict == "none"
    assert second.told == "no verdict: arm a: none of its 4 seeds has outcomes (waiting)"
    assert first.comparison.p_family == pytest.approx(min(1, 2 * first.comparison.p))


def test_contrasts_of_one_family_are_corrected_together(store):
    contrasts = [GIVEN["contrasts"][0] | {"name": n, "family": "f"} for n in "xyz"]
    grid = grid_of(contrasts=contrasts)
    train_all(store, grid, {1: 0.4, 8: 0.45})
    assert [r.comparison.family_size for r in made(store, grid)] == [3, 3, 3]
    apart = grid_of(contrasts=[c | {"family": None} for c in contrasts])
    assert [r.comparison.family_size for r in made(store, apart)] == [1, 1, 1]


# ---- what withholds a verdict


def test_other_hardware_withholds_the_verdict(store):
    grid = grid_of()
    for cell in grid.cells():
        device = "NVIDIA H100" if cell.rollouts == 8 else "cpu"
        trained(store, grid, cell, 0.4 + 0.3 * (cell.rollouts == 8), device=device)
    (result,) = made(store, grid)
    assert result.verdict == "none" and result.claim_holds is None
    assert result.told == "no verdict: the arms also differ in hardware (cpu and NVIDIA H100)"
    assert result.comparison is not None


def test_a_match_that_was_not_held_withholds_the_verdict(store):
    grid = grid_of(contrasts=[GIVEN["contrasts"][0] | {"match": "generated"}])
    train_all(store, grid, {1: 0.4, 8: 0.7})
    (result,) = made(store, grid)
    assert result.told == (
        "no verdict: match: generated was declared, and rollouts are 640 and 5,120"
    )


@pytest.mark.parametrize("size, told", [(2.0, "none"), (8.0, "equivalent")])
def test_replay_that_was_not_exercised_says_so(store, size, told):
    axes = {**GIVEN["axes"], "replay": [0, 7], "advantage": ["grpo"]}
    arms = {"a": {"rollouts": 8, "replay": 0}, "b": {"rollouts": 1, "replay": 7}}
    contrast = {"name": "replay", **arms, "claim": "equivalent", "margin": 0.2}
    grid = grid_of(axes=axes, contrasts=[contrast])
    train_all(store, grid, {1: 0.5, 8: 0.5}, size=size)
    (result,) = made(store, grid)
    assert result.verdict == told and result.exercised is (size == 8)
    if size == 2:
        assert "not exercised: the median group has 2 of 8 rollouts" in result.told


def test_arms_that_train_the_same_are_not_compared(store):
    axes = {**GIVEN["axes"], "rollouts": [1], "advantage": ["raw", "grpo"]}
    contrast = {"name": "x", "a": {"advantage": "raw"}, "b": {"advantage": "grpo"}}
    (result,) = made(store, grid_of(axes=axes, contrasts=[contrast]))
    assert "both arms are the same cells" in result.told


# ---- runs that did not simply finish


def test_a_diverged_run_counts_at_its_last_evaluation_with_zero_beside_it(store):
    grid = grid_of()
    train_all(store, grid, {1: 0.4, 8: 0.7})
    broken = next(c for c in grid.cells() if c.rollouts == 8 and c.seed == 2)
    right = np.ones((200, 1))
    lines = {0: evaluated(0.0), 10: evaluated(1.0), 15: {}}
    finish_with(store, grid, broken, lines, 0 * right, right,
                status="diverged", diverged_round=15, reason="loss is NaN")  # fmt: skip
    (result,) = made(store, grid)
    a = next(c for c in grid.cells() if c.rollouts == 1 and c.seed == 2)
    other = study_of(grid, store).run(a).primary("final", "test")
    assert result.comparison.by_seed[2] == pytest.approx(1.0 - other)
    assert result.at_zero.by_seed[2] == pytest.approx(0.0 - other)
    assert result.at_zero.by_seed[0] == result.comparison.by_seed[0]
    assert result.diverged == {"b": (2,)}
    assert "arm b s2 diverged, counted at its last evaluation" in result.notes


def test_a_run_without_answers_is_named_and_the_others_are_paired(store):
    grid = grid_of()
    registered(store, grid)
    train_all(store, grid, {1: 0.4, 8: 0.7})
    cell = next(c for c in grid.cells() if c.rollouts == 8 and c.seed == 1)
    paths_of(grid, cell, store).outcomes.unlink()
    (result,) = made(store, grid)
    assert list(result.comparison.by_seed) == [0, 2, 3] and result.comparison.unpaired == ((1,), ())
    assert f"arm b s1 does not count: {cell.key}/outcomes.parquet: is missing" in result.notes
    assert "interim: 3 of 4 declared seeds" in result.notes


def test_answers_that_contradict_the_journal_are_not_believed(store):
    grid = grid_of()
    train_all(store, grid, {1: 0.4, 8: 0.7})
    cell = next(c for c in grid.cells() if c.rollouts == 8 and c.seed == 1)
    paths = paths_of(grid, cell, store)
    done = json.loads(paths.done.read_text())
    text = paths.journal.read_text().splitlines()
    done["final"][outcome.TEST_PASS] = 0.123
    last = json.loads(text[-1]) | {outcome.TEST_PASS: 0.123}
    write_json(paths.done, done)
    paths.journal.write_text("\n".join([*text[:-1], json.dumps(last)]) + "\n")
    (result,) = made(store, grid)
    assert "answers have the mean" in result.missing["b"][1]
    assert "the journal says 0.123" in result.missing["b"][1]


def test_other_questions_in_one_arm_are_told(store):
    grid = grid_of()
    for cell in grid.cells():
        trained(store, grid, cell, 0.5, questions=200 if cell.rollouts == 1 else 150)
    (result,) = made(store, grid)
    assert result.comparison is None
    assert result.told.startswith("no verdict: question sets differ: 50 of 200 are a's alone")


def test_one_seed_is_inconclusive(store):
    grid = grid_of(seeds=[0])
    train_all(store, grid, {1: 0.0, 8: 1.0})
    (result,) = made(store, grid)
    assert result.verdict == "inconclusive" and math.isnan(result.comparison.p)
    assert result.cost_ratios["rollouts"].n == 1


def test_an_empty_study_has_no_verdict(store):
    (result,) = made(store, grid_of())
    assert result.told == "no verdict: arm a: none of its 4 seeds has outcomes (waiting)"
