"""The grid language beyond axes: zip, when, overrides, priority; what they removed and why."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from grids import InputError, load_grid
from grids.paths import Store
from grids.strata import strata
from orchestrator.plan import make_plan
from orchestrator.show import dropped_lines, show_plan

HEAD = """
name: g
base: {rounds: 4, eval: {every: 2}, rollouts: 2}
seeds: [0, 1]
"""
PAIR = "axes: {model: [tiny-qwen2], dataset: [tiny-sums]"


def settings(grid, *names):
    return [tuple(getattr(c, n) for n in names) for c in grid.cells() if c.seed == 0]


# ---- zip


def test_zipped_axes_move_together(grid_file):
    text = HEAD + PAIR + ", advantage: [raw, grpo]}\nzip: {batch: [8, 16], lr: [1e-5, 2e-5]}\n"
    grid = load_grid(grid_file(text))
    assert settings(grid, "advantage", "batch", "lr") == [
        ("raw", 8, 1e-5), ("raw", 16, 2e-5), ("grpo", 8, 1e-5), ("grpo", 16, 2e-5),
    ]  # fmt: skip


def test_several_groups_cross(grid_file):
    text = HEAD + PAIR + "}\nzip:\n  - {batch: [8, 16], lr: [1e-5, 2e-5]}\n"
    grid = load_grid(grid_file(text + "  - {kl: [0, 0.1], clip: [0.1, 0.2]}\n"))
    assert len(settings(grid, "batch")) == 4


def test_a_contrast_moves_what_is_zipped_with_its_factor(grid_file):
    text = HEAD + PAIR + "}\nzip: {batch: [8, 16], lr: [1e-5, 2e-5]}\n"
    grid = load_grid(grid_file(text + "contrasts: [{name: c, a: {batch: 8}, b: {batch: 16}}]\n"))
    (stratum,) = strata(grid, grid.contrasts[0])
    assert [(c.batch, c.lr) for c in (stratum.a[0], stratum.b[0])] == [(8, 1e-5), (16, 2e-5)]


# ---- when


WHEN = "when:\n  - {if: {advantage: grpo}, axes: {singleton: [raw, zero]}, why: moot}\n"


def test_a_conditional_axis_exists_where_its_condition_holds(grid_file):
    text = HEAD + PAIR + ", rollouts: [1], replay: [1], advantage: [rloo, grpo]}\n" + WHEN
    grid = load_grid(grid_file(text))
    assert settings(grid, "advantage", "singleton") == [
        ("rloo", "raw"), ("grpo", "raw"), ("grpo", "zero"),
    ]  # fmt: skip
    removed = [d for d in grid.expansion.dropped if d.kind == "when"]
    assert {d.reason for d in removed} == {"singleton zero only where advantage is grpo; moot"}
    assert len(removed) == 2  # a seed each


def test_the_plan_prints_what_conditions_removed(grid_file, tmp_path):
    text = HEAD + PAIR + ", rollouts: [1], replay: [1], advantage: [rloo, grpo]}\n" + WHEN
    plan = make_plan([load_grid(grid_file(text))], Store(tmp_path / "store"))
    lines = dropped_lines(plan.shares[0])
    assert lines == [
        "when, 1 arm × 2 seeds: singleton zero only where advantage is grpo; moot [(32,1,1) rloo]"
    ]
    out = Console(record=True, width=120)
    show_plan(plan, out)
    assert "singleton zero only where" in out.export_text()


def test_conditions_see_defaults_and_axes_under_earlier_conditions(grid_file):
    text = HEAD + PAIR + ", replay: [0, 1], advantage: [grpo]}\nwhen:\n"
    text += "  - {if: {replay: 1}, axes: {replay_mode: [baseline, train]}}\n"
    text += "  - {if: {replay_mode: train, advantage: grpo}, axes: {clip: [0.1, 0.2]}}\n"
    grid = load_grid(grid_file(text))
    assert settings(grid, "replay", "replay_mode", "clip") == [
        (0, "baseline", 0.2), (1, "baseline", 0.2), (1, "train", 0.1), (1, "train", 0.2),
    ]  # fmt: skip


def test_a_contrast_across_a_condition_drops_what_does_not_exist_there(grid_file):
    text = HEAD + PAIR + ", rollouts: [1], replay: [1], advantage: [rloo, grpo]}\n" + WHEN
    text += "contrasts: [{name: c, a: {advantage: rloo}, b: {advantage: grpo}}]\n"
    grid = load_grid(grid_file(text))
    found = strata(grid, grid.contrasts[0])
    assert [(s.a[0].singleton, s.b[0].singleton) for s in found] == [
        ("raw", "raw"),
        ("raw", "zero"),
    ]


# ---- overrides


def test_overrides_of_a_model_a_data_set_and_a_pair(grid_file):
    text = HEAD + "axes: {model: [tiny-qwen2, tiny-llama], dataset: [tiny-sums, tiny-boxed]}\n"
    text += "overrides:\n  - {for: {model: tiny-llama}, set: {lr: 1e-4}}\n"
    text += "  - {for: {dataset: tiny-boxed}, set: {kl: off}}\n"
    text += "  - {for: {model: tiny-llama, dataset: [tiny-boxed]}, set: {lr: 2e-4}}\n"
    assert settings(load_grid(grid_file(text)), "model", "dataset", "lr", "kl") == [
        ("tiny-qwen2", "tiny-sums", 3e-5, 0.001), ("tiny-qwen2", "tiny-boxed", 3e-5, 0.0),
        ("tiny-llama", "tiny-sums", 1e-4, 0.001), ("tiny-llama", "tiny-boxed", 2e-4, 0.0),
    ]  # fmt: skip


def test_a_contrast_of_arms_with_settings_of_their_own(grid_file):
    text = HEAD + PAIR + ", advantage: [raw, grpo]}\noverrides:\n"
    text += "  - {for: {advantage: raw}, set: {lr: 1e-5}}\n"
    text += "  - {for: {advantage: grpo}, set: {lr: 1e-4}}\n"
    text += "contrasts: [{name: c, a: {advantage: raw}, b: {advantage: grpo}}]\n"
    grid = load_grid(grid_file(text))
    (stratum,) = strata(grid, grid.contrasts[0])
    assert (stratum.a[0].lr, stratum.b[0].lr) == (1e-5, 1e-4)


def test_an_override_is_what_the_same_setting_in_the_base_is(grid_file):
    plain = load_grid(grid_file(HEAD.replace("rollouts: 2", "rollouts: 2, lr: 1e-4") + PAIR + "}"))
    keys = [c.key for c in plain.cells()]
    text = HEAD + PAIR + "}\noverrides: [{for: {model: tiny-qwen2}, set: {lr: 1e-4}}]\n"
    assert [c.key for c in load_grid(grid_file(text)).cells()] == keys


# ---- priority


def test_cells_of_a_higher_priority_run_first(grid_file, tmp_path):
    text = HEAD + "axes: {model: [tiny-qwen2, tiny-llama], dataset: [tiny-sums]}\n"
    text += "priority:\n  - {for: {model: tiny-llama}, rank: 5}\n"
    plan = make_plan([load_grid(grid_file(text))], Store(tmp_path / "store"))
    assert [(w.cell.model, w.cell.seed) for w in plan.works] == [
        ("tiny-llama", 0), ("tiny-llama", 1), ("tiny-qwen2", 0), ("tiny-qwen2", 1),
    ]  # fmt: skip


def test_the_priority_of_a_grid(grid_file, tmp_path):
    first = load_grid(grid_file(HEAD + PAIR + "}\n"))
    text = HEAD.replace("name: g", "name: h") + PAIR + ", batch: [16]}\npriority: 1\n"
    second = load_grid(grid_file(text))
    plan = make_plan([first, second], Store(tmp_path / "store"))
    assert [w.grids[0] for w in plan.works] == ["h", "h", "g", "g"]


# ---- what is wrong


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("zip: {batch: [8, 16], lr: [1e-5]}", "zip.0: zipped axes move together and need as many "
         "values each; got: batch has 2, lr has 1"),
        ("zip: {batch: [8, 16]}", "zip.0: one axis alone moves with nothing"),
        ("zip: {batch: [8, 8], lr: [1e-5, 1e-5]}", "is there twice"),
        ("zip: {model: [tiny-qwen2], lr: [1e-5]}", "zip.0.model: is an axis under axes too"),
        ("zip: {rounds: [1, 2], lr: [1e-5, 2e-5]}", "zip.0.rounds: cannot be an axis"),
        ("zip: {botch: [1, 2], lr: [1e-5, 2e-5]}", "zip.0.botch: unknown key"),
        ("when: [{if: {advantge: raw}, axes: {lr: [1e-5]}}]",
         "when.0.if.advantge: unknown key"),
        ("when: [{if: {advantage: mine}, axes: {lr: [1e-5]}}]",
         "when.0.if.advantage: unknown name; got 'mine'"),
        ("when: [{if: {advantage: raw}, axes: {model: [tiny-llama]}}]",
         "when.0.axes.model: is under axes too"),
        ("when: [{if: {clip: 0.1}, axes: {lr: [1e-5]}}, {if: {kl: 0}, axes: {clip: [0.1]}}]",
         "when.0.if.clip: exists under a condition that comes later"),
        ("when: [{axes: {lr: [1e-5]}}]", "when.0.if: field required"),
        ("overrides: [{for: {model: tiny-llama}, set: {model: tiny-qwen2}}]",
         "overrides.0.set.model: is an axis (axes), which no override changes"),
        ("overrides: [{for: {lr: 1e-5}, set: {lr: 2e-5}}]",
         "overrides.0.for.lr: is set by overrides, so it cannot be a condition"),
        ("overrides: [{for: {seed: 1}, set: {lr: 2e-5}}]", "seeds are listed under"),
        ("overrides: [{for: {model: tiny-qwen2}, set: {batch: 0}}]",
         "overrides.0.set.batch: input should be greater than 0"),
        ("priority: [{for: {model: tiny-qwen2}}]", "priority.0.rank: field required"),
    ],
)  # fmt: skip
def test_one_message_with_file_and_line(grid_file, more, told):
    path = grid_file(HEAD + PAIR + "}\n" + more + "\n")
    with pytest.raises(InputError, match=re.escape(told)) as error:
        load_grid(path)
    assert re.match(rf"{re.escape(str(path))}:6: ", str(error.value))


# ---- where rules meet


def test_an_arm_that_is_excluded_is_in_no_stratum(grid_file):
    text = HEAD + PAIR + ", batch: [4, 32], updates_per_round: [1, 8]}\n"
    text += "exclude: [{batch: 4, updates_per_round: 8}]\n"
    grid = load_grid(grid_file(text + "contrasts: [{name: c, a: {batch: 4}, b: {batch: 32}}]\n"))
    (stratum,) = strata(grid, grid.contrasts[0])
    assert stratum.a[0].updates_per_round == stratum.b[0].updates_per_round == 1


def test_of_several_zipped_rows_the_nearest_follows(grid_file):
    text = HEAD + PAIR + "}\nzip: {batch: [16, 16, 64, 64], lr: [1e-5, 2e-5, 1e-5, 2e-5]}\n"
    grid = load_grid(grid_file(text + "contrasts: [{name: c, a: {batch: 16}, b: {batch: 64}}]\n"))
    found = strata(grid, grid.contrasts[0])
    assert [(s.a[0].lr, s.b[0].lr) for s in found] == [(1e-5, 1e-5), (2e-5, 2e-5)]


def test_arms_of_a_pair_have_one_horizon(grid_file):
    text = HEAD + PAIR + ", advantage: [raw, grpo]}\n"
    rule = "overrides: [{{for: {{{0}}}, set: {{rounds: 8}}}}]\n"
    with pytest.raises(InputError, match=r"overrides.0.set.rounds: is of a model.*take advantage"):
        load_grid(grid_file(text + rule.format("advantage: grpo")))
    cells = load_grid(grid_file(text + rule.format("model: tiny-qwen2"))).cells()
    assert {cell.rounds for cell in cells} == {8}


def test_conditions_see_what_a_data_set_brings_as_a_cell_holds_it(grid_file, tmp_path):
    data = tmp_path / "d"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text('{"question": "a", "answer": "1"}\n')
    text = HEAD + "axes: {model: [tiny-qwen2], dataset: [mine]}\n"
    text += "datasets: {mine: {path: d, defaults: {kl: off}}}\n"
    text += "overrides: [{for: {kl: off}, set: {lr: 5e-5}}]\n"
    assert {cell.lr for cell in load_grid(grid_file(text)).cells()} == {5e-5}
