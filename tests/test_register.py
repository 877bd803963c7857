"""What is noted of a declared contrast, and when it is noted again."""

import json

import pytest

from grids import load_grid
from grids.paths import Store, read_lines
from grids.strata import strata
from orchestrator.register import register

GRID = """
name: shapes
study: s
base: {rounds: 20, eval: {every: 10}}
axes:
  {model: [tiny-qwen2, tiny-llama], dataset: [tiny-sums], rollouts: [1, 2], advantage: [raw, grpo]}
seeds: [0, 1]
contrasts:
  - {name: n, a: {rollouts: 1}, b: {rollouts: 2}, with: {advantage: raw}}
"""
N = "a: {rollouts: 1}, b: {rollouts: 2}, with: {advantage: raw}"
ADVANTAGE = "a: {advantage: raw}, b: {advantage: grpo}, with: {rollouts: 1}"


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    made.study("s").directory.mkdir(parents=True)
    return made


@pytest.fixture
def lines(store, grid_file):
    """Register a grid's text; answer all lines of the study."""

    def registered(text):
        grid = load_grid(grid_file(text))
        register(grid, {cell.key: cell for cell in grid.cells()}, store)
        return read_lines(store.study("s").registrations)

    return registered


def train(store, cell, round=10):
    journal = store.study("s").cell(cell.key).journal
    journal.parent.mkdir(parents=True)
    journal.write_text(json.dumps({"round": round}) + "\n")


def test_a_declaration_is_noted_once(lines):
    lines(GRID)
    (line,) = lines(GRID)
    assert line["contrast"]["name"] == "n" and line["seeds"] == [0, 1]
    assert (line["primary"], line["rounds"]) == (["greedy"], [20])
    assert len(line["arms"]) == 2
    assert line["after_first_outcome"] is False and line["looks"] == 0


def test_outcomes_of_one_arm_tell_nothing_of_the_difference(lines, store, grid_file):
    (stratum, _) = strata(grid := load_grid(grid_file(GRID)), grid.contrasts[0])
    train(store, stratum.a[0])
    train(store, stratum.b[0], round=0)  # the base alone
    (line,) = lines(GRID)
    assert line["after_first_outcome"] is False


def test_outcomes_of_both_arms_come_first(lines, store, grid_file):
    (_, stratum) = strata(grid := load_grid(grid_file(GRID)), grid.contrasts[0])
    train(store, stratum.a[0])
    train(store, stratum.b[1])
    (line,) = lines(GRID)
    assert line["after_first_outcome"] is True


def test_a_journal_that_cannot_be_read_may_have_been_seen(lines, store, grid_file):
    (stratum, _) = strata(grid := load_grid(grid_file(GRID)), grid.contrasts[0])
    train(store, stratum.a[0])
    train(store, stratum.b[0], round=0)
    with store.study("s").cell(stratum.b[0].key).journal.open("a") as file:
        file.write('{"round": \n')
    (line,) = lines(GRID)
    assert line["after_first_outcome"] is True


@pytest.mark.parametrize(
    "old, new",
    [
        ("seeds: [0, 1]", "seeds: [0, 1, 2]"),
        ("{every: 10}", "{every: 10, samples: 4, primary: sampled}"),
        ("rounds: 20", "rounds: 30"),
        ("advantage: raw}", "advantage: raw}, margin: 0.03"),
        ("[tiny-qwen2, tiny-llama]", "[tiny-qwen2]"),
    ],
)
def test_a_changed_declaration_is_another_line_with_the_looks_before_it(lines, store, old, new):
    (first,) = lines(GRID)
    look = {"contrast": first["registration"], "grid": "shapes", "time": "then"}
    store.study("s").looks.write_text((json.dumps(look) + "\n") * 3)
    assert old in GRID
    again, changed = lines(GRID.replace(old, new))
    assert again == first
    same = changed["registration"] == first["registration"]
    assert changed["looks"] == (3 if same else 0)


def test_strata_are_pairs_and_free_axes(grid_file):
    text = GRID.replace(N, ADVANTAGE.replace("rollouts: 1}", "rollouts: 2}"))
    grid = load_grid(grid_file(text.replace("  {model:", "  {lr: [1e-4, 1e-5], model:")))
    where = strata(grid, grid.contrasts[0])
    assert [s.settings for s in where] == [
        {"model": model, "dataset": "tiny-sums", "lr": lr}
        for lr in (1e-4, 1e-5)
        for model in ("tiny-qwen2", "tiny-llama")
    ]
    for s in where:
        assert [cell.seed for cell in s.a] == [cell.seed for cell in s.b] == [0, 1]
        assert {(c.advantage, c.rollouts) for c in s.b} == {("grpo", 2)}
        assert not s.identical


def test_a_stratum_has_the_grids_own_cells_in_the_order_of_its_seeds(grid_file):
    grid = load_grid(grid_file(GRID.replace("[0, 1]", "[5, 2, 9]")))
    own = {cell.key: cell for cell in grid.cells()}
    for s in strata(grid, grid.contrasts[0]):
        assert [cell.seed for cell in s.a] == [cell.seed for cell in s.b] == [5, 2, 9]
        assert all(cell is own[cell.key] for cell in (*s.a, *s.b))


def test_a_merged_arm_is_found_by_what_it_trains(grid_file):
    text = GRID.replace(N, N.replace("raw}", "grpo}"))
    where = strata(grid := load_grid(grid_file(text)), grid.contrasts[0])
    assert [s.a[0].advantage for s in where] == ["raw", "raw"]  # the cell that grpo was merged into
    where = strata(grid := load_grid(grid_file(GRID.replace(N, ADVANTAGE))), grid.contrasts[0])
    assert all(s.identical for s in where)
