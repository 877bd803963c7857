"""Axes, budget, exclusions, merging: every combination is a cell or is named with its reason."""

import itertools

import pytest

from grids import InputError, load_grid
from grids.catalog import ESTIMATORS
from grids.load import grid_files, grid_schema, load_grids
from tests.conftest import GRIDS, ROOT

PAPER = ROOT / "grids" / "paper"


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_grid_loads_and_has_cells(path):
    grid = load_grid(path)
    assert grid.cells()
    assert grid.about


def test_the_tradeoff_has_every_shape_of_256_samples_that_its_axes_allow():
    cells = load_grid(PAPER / "tradeoff.yaml").cells()
    allowed = {
        (b, n, 0)
        for b, n in itertools.product((16, 32, 64, 128, 256), (1, 2, 4, 8, 16))
        if b * n == 256
    }
    assert {cell.shape for cell in cells} == allowed
    assert len({(cell.model, cell.dataset) for cell in cells}) == 6
    assert len(cells) == 6 * 5 * (2 * len(allowed) - 1)  # (256,1) grpo is (256,1) raw


def test_replay_keeps_fresh_and_replayed_groups_of_eight():
    assert {cell.shape for cell in load_grid(PAPER / "replay.yaml").cells()} == {
        (32, 8, 0),
        (32, 1, 7),
    }


def test_the_baseline_is_one_cell_though_several_sections_name_it():
    grids = load_grids(sorted(PAPER.glob("*.yaml")))
    naming = [g.name for g in grids if any(c.shape == (32, 1, 0) for c in g.cells())]
    keys = {
        c.key
        for g in grids
        for c in g.cells()
        if c.shape == (32, 1, 0)
        and c.model.startswith("qwen")
        and c.dataset == "math"
        and not c.seed
    }
    assert len(naming) >= 4 and len(keys) == 1


def test_mini_is_the_paper_in_small():
    for path in sorted(PAPER.glob("*.yaml")):
        mini = load_grid(ROOT / "grids" / "mini" / path.name)
        paper = load_grid(path)
        assert (mini.name, mini.section) == (paper.name, paper.section)
        assert all(cell.model_spec.embedded for cell in mini.cells())


def test_dropped_combinations_carry_their_reason(grid_file):
    grid = load_grid(
        grid_file("""
name: g
axes:
  model: [tiny-qwen2]
  dataset: [tiny-sums]
  batch: [4, 8, 16]
  rollouts: [1, 2]
  replay: [0, 1]
  advantage: [raw, grpo]
budget: {samples_per_step: 16}
exclude:
  - {batch: 16, advantage: grpo, why: not asked}
""")
    )
    kinds = {d.kind for d in grid.expansion.dropped}
    assert kinds == {"budget", "excluded", "inert"}
    assert all(d.reason for d in grid.expansion.dropped)
    assert {"not asked"} == {d.reason for d in grid.expansion.dropped if d.kind == "excluded"}
    assert {(c.shape, c.advantage) for c in grid.cells()} == {
        ((16, 1, 0), "raw"),
        ((8, 2, 0), "raw"),
        ((8, 2, 0), "grpo"),
        ((8, 1, 1), "grpo"),
    }


def test_merged_cells_name_their_twin():
    dropped = load_grid(PAPER / "rollouts.yaml").expansion.dropped
    assert {d.kind for d in dropped} == {"merged"}
    assert all("a group of one earns the raw reward" in d.reason for d in dropped)


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ("advantage: [raw, rloo]", "(a group of one earns the raw reward: singleton: raw)"),
        ("advantage: [grpo, rloo]", "(a group of one earns the raw reward: singleton: raw)"),
        (
            "advantage: [reinforce_pp, reinforce_pp_baseline]",
            "(a group of one earns the raw reward: singleton: raw)",
        ),
        (
            "advantage: [batch_mean, opo], singleton: [batch_mean]",
            "(a group of one earns its reward minus the batch's mean: singleton: batch_mean)",
        ),
        (
            "advantage: [reinforce_pp_baseline, max_rl], singleton: [zero]",
            "(a group of one earns nothing: singleton: zero)",
        ),
        ("ema_decay: [0.9, 0.5]", "(ema_decay: without effect here)"),
        ("kl: [0], kl_form: [k1, k2]", "(kl_form: without effect here)"),
    ],
)
def test_merged_cells_say_what_makes_them_one(grid_file, axes, told):
    grid = load_grid(grid_file(GOOD.replace("axes: {", f"axes: {{{axes}, ")))
    assert len(grid.cells()) == 1
    (dropped,) = grid.expansion.dropped
    assert dropped.kind == "merged" and dropped.reason.endswith(told)


def test_a_merged_cell_tells_the_rule_of_the_one_that_has_groups(grid_file):
    axes = "axes: {advantage: [raw, grpo], singleton: [batch_mean, raw], "
    grid = load_grid(grid_file(GOOD.replace("axes: {", axes)))
    reasons = [d.reason.split("s0 ")[1] for d in grid.expansion.dropped]
    assert reasons == [
        "(singleton: without effect here)",
        "(a group of one earns the raw reward: singleton: raw; singleton: without effect here)",
    ]


def test_replay_without_effect_is_dropped_with_the_reason(grid_file):
    text = """
name: g
base: {replay: 2}
axes:
  model: [tiny-qwen2]
  dataset: [tiny-sums]
  advantage: [raw, ema, batch_mean]
  replay_mode: [baseline, train]
  replay_fill: [cold, base]
"""
    expansion = load_grid(grid_file(text)).expansion
    assert {(d.kind, d.reason) for d in expansion.dropped} == {
        ("inert", "replay in baseline mode changes nothing under the raw advantage"),
        (
            "inert",
            "replay in baseline mode changes nothing under the ema advantage, whose running "
            "baseline already holds what was seen (replay_fill: cold)",
        ),
    }
    kept = [(c.advantage, c.replay_mode, c.replay_fill) for c in expansion.cells]
    assert len(kept) == 12 - 2 - 1
    assert ("ema", "baseline", "base") in kept and ("raw", "train", "cold") in kept


def test_every_setting_of_the_update_can_be_an_axis(grid_file):
    text = f"""
name: g
base: {{batch: 8, rollouts: 2, replay: 2}}
axes:
  model: [tiny-qwen2]
  dataset: [tiny-sums]
  advantage: [{", ".join(ESTIMATORS)}]
  kl_form: [k1, k2, k3]
  replay_mode: [baseline, train]
  replay_fill: [cold, base]
  kl_on_signal_only: [false, true]
  clip_high: [null, 0.28]
  dual_clip: [off, 3.0]
  updates_per_round: [1, 2]
  aggregation: [token_mean, token_mean_micro_batch, seq_mean_token_mean, seq_mean_token_sum]
"""
    expansion = load_grid(grid_file(text)).expansion
    assert len(expansion.cells) + len(expansion.dropped) == 10 * 3 * 2**6 * 4
    kinds_of_replay = 10 * 4 - 3  # in baseline mode: raw twice, ema once, are without effect
    on_policy = 10 * 2 - 3  # in baseline mode, one update; the four clips are then one
    off_policy = 2 * kinds_of_replay - on_policy
    others = 3 * 2 * 4  # kl_form, kl_on_signal_only, aggregation
    assert len(expansion.cells) == others * (on_policy + 4 * off_policy)
    merged = [d.reason for d in expansion.dropped if d.kind == "merged"]
    assert all("clip" in reason and "without effect here" in reason for reason in merged)


def test_a_micro_batch_that_a_grid_writes_is_checked_and_a_default_is_lowered(grid_file):
    axes = "axes: {batch: [8, 128], "
    contrast = "contrasts: [{name: c, a: {batch: 8}, b: {batch: 128}}]\n"
    lowered = load_grid(grid_file(GOOD.replace("axes: {", axes) + contrast))
    assert [cell.micro_batch for cell in lowered.cells()] == [8, 64]
    written = load_grid(grid_file(GOOD.replace("axes: {", axes) + "base: {micro_batch: 8}\n"))
    assert [cell.micro_batch for cell in written.cells()] == [8, 8]
    for text, line in (
        (GOOD.replace("axes: {", axes) + "base: {micro_batch: 64}\n", 3),
        (GOOD.replace("axes: {", axes + "micro_batch: [8, '64'], "), 2),
    ):
        with pytest.raises(InputError, match=f":{line}: .*micro_batch: 64 rows, but an update has"):
            load_grid(grid_file(text))


def test_exclude_sees_the_lowered_micro_batch(grid_file):
    axes = "axes: {batch: [8, 128], "
    text = GOOD.replace("axes: {", axes) + "exclude: [{micro_batch: 64}]\n"
    assert [cell.batch for cell in load_grid(grid_file(text)).cells()] == [8]


def test_a_contrast_over_a_micro_batch_that_no_cell_has(grid_file):
    contrast = "contrasts: [{name: c, a: {micro_batch: 32}, b: {micro_batch: 16}}]\n"
    with pytest.raises(InputError, match="no cell of the grid has the arm {'micro_batch': 16}"):
        load_grid(grid_file(GOOD + contrast))


def test_seed_by_seed():
    seeds = [cell.seed for cell in load_grid(PAPER / "advantage.yaml").cells()]
    assert seeds == sorted(seeds)


def test_models_and_data_sets_of_ones_own(grid_file, tmp_path):
    model = ROOT / "workers" / "embedded" / "models" / "tiny-llama"
    grid = load_grid(
        grid_file(f"""
name: g
models: {{mine: {{path: {model}, context: 64}}}}
base: {{precision: fp32, max_prompt: 32, max_response: 32}}
axes: {{model: [mine], dataset: [tiny-sums]}}
""")
    )
    (cell,) = grid.cells()
    assert cell.model == "mine" and cell.model_spec.revision.startswith("sha256:")


def test_contrasts_over_models_of_ones_own(grid_file):
    model = ROOT / "workers" / "embedded" / "models" / "tiny-llama"
    grid = load_grid(
        grid_file(f"""
name: g
models: {{mine: {{path: {model}, context: 64}}}}
base: {{precision: fp32, max_prompt: 32, max_response: 32}}
axes: {{model: [mine], dataset: [tiny-sums], batch: [8, 16]}}
contrasts: [{{name: c, a: {{batch: 8}}, b: {{batch: 16}}}}]
""")
    )
    assert len(grid.cells()) == 2


def test_yaml_means_what_a_person_means(grid_file):
    grid = load_grid(
        grid_file("""
name: g
base: {lr: 1e-6, kl: off, clip: off, updates_per_round: 2}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
""")
    )
    (cell,) = grid.cells()
    assert (cell.lr, cell.kl, cell.clip) == (1e-6, 0.0, None)


def test_extends_overrides_key_by_key(grid_file):
    grid_file(
        "name: a\nbase: {rounds: 5, lr: 1e-4}\naxes: {model: [tiny-qwen2], dataset: [tiny-sums]}\n",
        "a.yaml",
    )
    grid = load_grid(
        grid_file("extends: a.yaml\nname: b\nbase: {rounds: 9}\naxes: {batch: [8, 16]}\n", "b.yaml")
    )
    assert grid.name == "b" and {(c.rounds, c.lr) for c in grid.cells()} == {(9, 1e-4)}
    assert [c.batch for c in grid.cells()] == [8, 16]


def test_extends_merges_the_evaluation_too():
    mini = load_grid(ROOT / "grids" / "mini" / "minimalist.yaml").cells()[0].eval
    paper = load_grid(PAPER / "minimalist.yaml").cells()[0].eval
    assert (mini.every, mini.samples) == (25, paper.samples) and paper.samples == 4


def test_a_null_takes_an_axis_away_and_is_a_value_of_a_setting(grid_file):
    grid_file(GOOD.replace("axes: {", "axes: {lr: [1e-4, 1e-5], "), "a.yaml")
    child = "extends: a.yaml\nname: b\nbase: {clip: null}\naxes: {lr: null}\n"
    (cell,) = load_grid(grid_file(child, "b.yaml")).cells()
    assert cell.clip is None and cell.lr == 3e-5


def test_exclude_sees_what_a_cell_will_be(grid_file):
    """The embedded models bring fp32: a rule on precision must match it, not the default."""
    assert len(load_grid(grid_file(GOOD + "exclude: [{precision: bf16}]\n")).cells()) == 1
    with pytest.raises(InputError, match="no cell is left"):
        load_grid(grid_file(GOOD + "exclude: [{precision: fp32}]\n"))


def test_numbers_as_text_are_numbers(grid_file):
    text = (
        "name: g\nbase: {rollouts: '2'}\nbudget: {samples_per_step: 16}\n"
        "axes: {model: [tiny-qwen2], dataset: [tiny-sums], batch: ['8']}\n"
    )
    (cell,) = load_grid(grid_file(text)).cells()
    assert cell.shape == (8, 2, 0)


def test_the_shipped_schema_is_the_models():
    import json

    shipped = json.loads((ROOT / "grids" / "schema.json").read_text())
    assert shipped == json.loads(json.dumps(grid_schema()))
    assert {"batch", "rollouts", "replay", "advantage"} <= set(
        shipped["properties"]["base"]["properties"]
    )


GOOD = "name: g\naxes: {model: [tiny-qwen2], dataset: [tiny-sums]}\n"
BAD = {
    "an unknown key": (
        GOOD + "axis: {}\n",
        ":3: axis: unknown key; allowed: .*did you mean 'axes'",
    ),
    "an unknown setting": (
        GOOD + "base: {lrr: 1}\n",
        ":3: base.lrr: unknown key; .*did you mean 'lr'",
    ),
    "a misspelt model": (
        "name: g\naxes:\n  dataset: [tiny-sums]\n  model: [tiny-qwen]\n",
        ":4: .*unknown name; got 'tiny-qwen'; .*did you mean 'tiny-qwen2'",
    ),
    "no cell left": (
        GOOD + "budget: {samples_per_step: 7}\n",
        "no cell is left .*32 samples per step, the budget is 7.*loosen",
    ),
    "only replay without effect": (
        "name: g\nbase: {replay: 2}\naxes: {model: [tiny-qwen2], dataset: [tiny-sums]}\n",
        "no cell is left .*replay in baseline mode changes nothing",
    ),
    "a duplicate key": (GOOD + "name: h\n", ":3: name: duplicate name; first on line 1"),
    "a duplicate contrast": (
        GOOD.replace("axes: {", "axes: {batch: [8, 16], ")
        + "contrasts:\n"
        + "  - {name: c, a: {batch: 8}, b: {batch: 16}}\n" * 2,
        "contrasts: 'c' is there twice",
    ),
    "a negative batch": (
        "name: g\naxes:\n  model: [tiny-qwen2]\n  dataset: [tiny-sums]\n  batch: [-8]\n",
        ":5: axes.batch: input should be greater than 0; got -8",
    ),
    "a negative batch under a budget": (
        "name: g\nbudget: {samples_per_step: 8}\naxes:\n  model: [tiny-qwen2]\n"
        "  dataset: [tiny-sums]\n  batch: [8, -8]\n",
        ":6: axes.batch: .*got -8",
    ),
    "a batch larger than the train set": (
        "name: g\naxes:\n  model: [tiny-qwen2]\n  dataset: [tiny-sums]\n  batch: [513]\n",
        ":5: .*larger than the train set; got 513; tiny-sums has 512",
    ),
    "an axis that is not a list": (
        "name: g\naxes:\n  model: tiny-qwen2\n  dataset: [tiny-sums]\n",
        r":3: axes.model: an axis is a list; got 'tiny-qwen2'; write \[tiny-qwen2\]",
    ),
    "an empty axis": (
        "name: g\naxes:\n  model: []\n  dataset: [tiny-sums]\n",
        ":3: axes.model: no values",
    ),
    "a context that is too short": (
        GOOD + "base:\n  max_response: 100\n",
        r":4: .*max_prompt 32 \+ max_response 100 = 132 tokens exceed the context of tiny-qwen2",
    ),
    "not a mapping": ("- a\n", ":1: a grid is a mapping"),
    "not YAML": ("name: [\n", "not valid YAML"),
    "a word for a number": (GOOD + "base: {lr: fast}\n", ":3: base.lr: .*got 'fast'"),
    "a seed as a setting": (GOOD + "base: {seed: 1}\n", "base.seed: seeds are listed under"),
    "a seed twice": (GOOD + "seeds: [1, 1]\n", ":3: seeds: 1 is there twice"),
    "a contrast of two factors": (
        GOOD + "contrasts:\n  - {name: c, a: {lr: 1e-4, kl: 0}, b: {lr: 1e-5, kl: 0.1}}\n",
        ":4: .*more than one factor: kl, lr",
    ),
    "a contrast whose arm no cell has": (
        GOOD + "contrasts:\n  - {name: c, a: {batch: 8}, b: {batch: 32}}\n",
        ":4: contrasts.0.a: no cell of the grid has the arm",
    ),
    "an axis that is no part of a cell": (
        "name: g\naxes: {model: [tiny-qwen2], dataset: [tiny-sums], rounds: [5, 9]}\n",
        ":2: axes.rounds: cannot be an axis",
    ),
    "an axis that only says when to give up": (
        "name: g\naxes: {model: [tiny-qwen2], dataset: [tiny-sums], max_unscored: [0, 1]}\n",
        ":2: axes.max_unscored: cannot be an axis",
    ),
    "updates that do not divide the batch": (
        GOOD + "base:\n  batch: 16\n  updates_per_round: 6\n",
        ":5: .*updates_per_round: 6 does not divide the batch 16; allowed: .*take 4 or 8",
    ),
    "a model that is not pinned": (
        GOOD + "models: {mine: {hub: me/mine}}\n",
        "mine: not pinned; give the hub's commit",
    ),
    "a rule on a misspelt model": (
        GOOD + "exclude: [{model: tiny-qwen}]\n",
        ":3: exclude.0.model: unknown name; got 'tiny-qwen'",
    ),
    "a rule on a misspelt name": (
        GOOD + "exclude: [{advantage: grppo}]\n",
        ":3: exclude.0.advantage: unknown name; .*did you mean 'grpo'",
    ),
    "a contrast with a bad value": (
        GOOD + "contrasts:\n  - {name: c, a: {batch: -8}, b: {batch: 32}}\n",
        ":4: contrasts.0.a.batch: .*greater than 0",
    ),
    "a key that is no word": (GOOD + "? [a, b]\n: 1\n", ":3: a key is a word"),
    "a tag": ("name: !foo bar\n", "not valid YAML"),
    "an alias that holds itself": ("base: &x {kl: *x}\n", "not valid YAML"),
    "an impossible date": ("about: 2024-99-99\n", "not valid YAML"),
    "no model": ("name: g\naxes: {dataset: [tiny-sums]}\n", ":2: grid g: names no model; give"),
    "a budget of nothing": (GOOD + "budget: {}\n", ":3: .*names no bound"),
}


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD.keys())
def test_bad_grids_are_told_with_file_and_line(grid_file, text, told):
    with pytest.raises(InputError, match=f"(?s)grid.yaml.*{told}|grid.yaml{told}"):
        load_grid(grid_file(text))


def test_a_grid_that_extends_itself(grid_file):
    path = grid_file("name: g\nextends: grid.yaml\n")
    with pytest.raises(InputError, match="grid.yaml:2: extends: the grid extends itself"):
        load_grid(path)


def test_grids_that_extend_each_other(grid_file):
    grid_file("extends: b.yaml\n", "a.yaml")
    with pytest.raises(InputError, match="extends itself .*b.yaml -> a.yaml -> b.yaml"):
        load_grid(grid_file("extends: a.yaml\n", "b.yaml"))


def test_a_parent_that_is_not_there(grid_file):
    with pytest.raises(InputError, match="nowhere.yaml: cannot be read"):
        load_grid(grid_file("extends: nowhere.yaml\n"))


def test_two_grids_of_one_name(grid_file):
    paths = [grid_file(GOOD, "a.yaml"), grid_file(GOOD, "b.yaml")]
    with pytest.raises(InputError, match="b.yaml: name: duplicate name; got 'g', which .*a.yaml"):
        load_grids(paths)


def test_a_folder_stands_for_the_grids_in_it(grid_file):
    b, a = (grid_file(GOOD.replace("name: g", f"name: {n}"), f"{n}.yaml") for n in ("b", "a"))
    (a.parent / "below").mkdir()
    (a.parent / "notes.txt").write_text("no grid")
    assert grid_files([a.parent, b]) == [a, b] and grid_files([b, a.parent]) == [b, a]
    assert [grid.name for grid in load_grids([a.parent])] == ["a", "b"]
    with pytest.raises(InputError, match="below: a folder without a grid: no file there ends in"):
        load_grids([a.parent / "below"])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_grid(tmp_path / "none.yaml")
