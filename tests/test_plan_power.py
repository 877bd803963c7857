"""What `plan` tells of declared contrasts, and the noise that it reads from a study's own runs."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from analysis import planning
from analysis.planning import Reader, outcomes_of
from analysis.power import ASSUMED, noise_of, seeds_needed, smallest_effect
from grids import load_grid
from grids.paths import Store, write_json
from grids.strata import strata
from orchestrator import cli

GRID = """
name: shapes
study: s
base: {rounds: 20, eval: {every: 10, test_questions: 30}}
axes:
  {model: [tiny-qwen2, tiny-llama], dataset: [tiny-sums], rollouts: [1, 2], advantage: [raw, grpo]}
seeds: [0, 1, 2]
contrasts:
  - {name: n, a: {rollouts: 1}, b: {rollouts: 2}, with: {advantage: raw}, margin: 0.1}
"""
REAL = GRID
for old, new in {"tiny-qwen2, tiny-llama": "qwen2.5-0.5b-instruct", "tiny-sums": "gsm8k, math",
                 ", test_questions: 30": ""}.items():  # fmt: skip
    REAL = REAL.replace(old, new)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def load(grid_file):
    return lambda text: load_grid(grid_file(text))


def shuffled(cell, questions=30):
    return np.random.default_rng(int(cell.key, 16)).permutation(questions)


def finish(store, grid, cell, correct_Q_K, decoding="greedy", **changed):
    """What a finished cell leaves, its other evaluations wrong throughout; questions shuffled."""
    paths = store.study(grid.study).cell(cell.key)
    done = {"status": "finished", "rounds": cell.rounds, "eval_key": cell.eval_key}
    write_json(paths.done, done | changed)
    other = "sampled" if decoding == "greedy" else "greedy"
    answers = [
        ("base", "test", decoding, 0),
        ("final", "train", decoding, cell.rounds),
        ("final", "test", other, cell.rounds),
        ("final", "test", decoding, cell.rounds),
    ]
    rows = [
        (phase, split, how, number, f"q{q}", k, correct_Q_K[q, k] if i == 3 else 0.0)
        for i, (phase, split, how, number) in enumerate(answers)
        for q in shuffled(cell, len(correct_Q_K))
        for k in range(correct_Q_K.shape[1])
    ]  # fmt: skip
    columns = ["phase", "split", "decoding", "round", "question", "sample", "correct"]
    pd.DataFrame(rows, columns=columns).to_parquet(paths.outcomes)
    return paths


def answers(seed, k=1):
    return (np.random.default_rng(seed).random((30, k)) < 0.5).astype(float)


def train(store, grid, stratum, seeds, k=1, decoding="greedy"):
    """Finish both arms for some seeds; answer correct_S_Q_K of each, questions by name."""
    arms = []
    for side, cells in enumerate((stratum.a, stratum.b)):
        chosen = [cell for cell in cells if cell.seed in seeds]
        arms.append(np.stack([answers(10 * cell.seed + side, k) for cell in chosen]))
        for cell, correct_Q_K in zip(chosen, arms[-1], strict=True):
            finish(store, grid, cell, correct_Q_K, decoding)
    return tuple(arms)


def designs(grid, store):
    return planning.designs([grid], store)


def strata_of(grid):
    return strata(grid, grid.contrasts[0])


# ---- without runs


def test_without_runs_the_noise_is_assumed(load, store):
    (design,) = designs(load(GRID), store)
    assert (design.pairs, design.seeds, design.questions, design.samples) == (2, 3, 30, 1)
    assert (design.runs, design.sd_range, design.noise["seed"]) == (0, None, ASSUMED.seed)
    assert design.smallest_effect == pytest.approx(smallest_effect(ASSUMED, 3, 30))
    assert design.seeds_needed is None and design.floor > 0.1


def test_pairs_of_other_test_sets_are_told_apart(load, store):
    gsm8k, math500 = designs(load(REAL.replace("margin: 0.1", "margin: 0.02")), store)
    assert (gsm8k.questions, math500.questions) == (1319, 5000)
    assert (gsm8k.pairs, gsm8k.family) == (1, 2)
    assert gsm8k.seeds_needed == seeds_needed(ASSUMED, 0.02, 1319)
    assert gsm8k.seeds_needed_in_family == seeds_needed(ASSUMED, 0.02, 1319, alpha=0.025)
    assert gsm8k.seeds_needed < gsm8k.seeds_needed_in_family
    assert math500.seeds_needed < gsm8k.seeds_needed


def test_tests_of_equivalence_are_not_corrected(load, store):
    text = REAL.replace("margin: 0.1", "claim: equivalent, margin: 0.03")
    design = designs(load(text), store)[0]
    assert design.seeds_needed == seeds_needed(ASSUMED, 0.03, 1319, claim="equivalent")
    assert design.seeds_needed_in_family == design.seeds_needed


def test_a_family_counts_every_comparison_that_it_corrects(load, store):
    more = (
        "  - {name: m, family: all, a: {advantage: raw}, b: {advantage: grpo}, with: {rollouts: 2}}"
    )
    same = (
        "  - {name: o, family: all, a: {advantage: raw}, b: {advantage: grpo}, with: {rollouts: 1}}"
    )
    text = GRID.replace("{name: n,", "{name: n, family: all,") + f"{more}\n{same}\n"
    found = {design.contrast: design for design in designs(load(text), store)}
    assert found["n"].family == found["m"].family == 4  # the two of `o` train one policy each
    assert found["o"].pairs == 0 and "same policies" in found["o"].note
    assert found["o"].smallest_effect is None


def test_a_contrast_whose_arms_no_pair_has_says_so(load, store):
    apart = "[{model: tiny-qwen2, rollouts: 2}, {model: tiny-llama, rollouts: 1}]"
    (design,) = designs(load(f"{GRID}exclude: {apart}\n"), store)
    assert design.pairs == 0 and "no pair of cells has both arms" in design.note


def test_a_sampled_primary_counts_its_samples(load, store):
    text = GRID.replace("every: 10", "every: 10, samples: 4, primary: sampled")
    (design,) = designs(load(text), store)
    assert design.samples == 4
    assert design.smallest_effect == pytest.approx(smallest_effect(ASSUMED, 3, 30, 4))


def test_one_seed_finds_nothing(load, store):
    (design,) = designs(load(GRID.replace("[0, 1, 2]", "[0]")), store)
    assert design.smallest_effect is None
    assert "NaN" not in json.dumps(design.row())


def test_a_test_set_of_unknown_size_is_told(load, store):
    text = GRID.replace(", test_questions: 30", "").replace("[tiny-sums]", "[own]")
    text = text.replace("rounds: 20", "rounds: 20, max_prompt: 32, max_response: 32")
    text += "datasets: {own: {hub: a/b, revision: 0123456789012345678901234567890123456789}}\n"
    (design,) = designs(load(text), store)
    assert (design.questions, design.smallest_effect) == (None, None)
    assert "eval.test_questions" in design.note


# ---- with runs


def test_two_finished_seeds_of_both_arms_tell_the_noise(load, store):
    grid = load(GRID)
    first, _ = strata_of(grid)
    a_S_Q_K, b_S_Q_K = train(store, grid, first, {0, 2})
    (design,) = designs(grid, store)
    noise = noise_of(a_S_Q_K, b_S_Q_K)
    assert design.runs == 4
    assert list(design.noise.values()) == pytest.approx(
        [noise.seed, noise.question, noise.interaction, noise.sampling]
    )
    assert design.smallest_effect == pytest.approx(smallest_effect(noise, 3, 30))
    assert design.sd_range[1] > 10  # two seeds know little


def test_of_many_runs_some_of_every_pair_are_read(load, store, monkeypatch):
    grid = load(GRID.replace("[0, 1, 2]", "[0, 1, 2, 3]"))
    for stratum in strata_of(grid):
        train(store, grid, stratum, {0, 1, 2, 3})
    reader = Reader(store)
    monkeypatch.setattr(planning, "MOST_RUNS", 8)
    _, runs = planning.observe(strata_of(grid), "s", reader)
    assert runs == 8 == len(reader._known)
    cells = [cell for s in strata_of(grid) for cell in (*s.a[:2], *s.b[:2])]
    assert {path.parent.name for path, _ in reader._known} == {cell.key for cell in cells}


def test_of_many_pairs_those_that_are_read_are_spread(monkeypatch):
    monkeypatch.setattr(planning, "MOST_RUNS", 12)
    assert list(planning._spread(range(7))) == [0, 3, 6, 1, 4, 2, 5]


def test_questions_of_both_arms_are_paired_by_name(load, store):
    grid = load(GRID)
    first, _ = strata_of(grid)
    a_S_Q_K, b_S_Q_K = train(store, grid, first, {0, 1})
    a, b = outcomes_of(first, "s", Reader(store))
    order = shuffled(first.a[0])
    np.testing.assert_array_equal(a, a_S_Q_K[:, order])
    np.testing.assert_array_equal(b, b_S_Q_K[:, order])


def test_only_samples_of_the_primary_count(load, store):
    grid = load(GRID.replace("every: 10", "every: 10, samples: 3, primary: sampled"))
    first, second = strata_of(grid)
    read = [train(store, grid, s, {0, 1}, k=3, decoding="sampled") for s in (first, second)]
    (design,) = designs(grid, store)
    assert design.runs == 8
    sampling = [noise_of(*arms).sampling for arms in read]
    assert design.noise["sampling"] == pytest.approx(np.mean(sampling))


def test_grids_of_one_study_read_their_own_primary(load, store):
    text = GRID.replace("every: 10", "every: 10, samples: 3")
    sampled = load(text.replace("samples: 3", "samples: 3, primary: sampled"))
    train(store, sampled, strata_of(sampled)[0], {0, 1}, k=3, decoding="sampled")
    greedy, other = planning.designs([load(text), sampled], store)
    assert greedy.runs == 0  # whose answers are all wrong
    assert other.runs == 4 and other.noise["sampling"] > 0


SPOILT = {
    "one seed": lambda paths: paths.done.unlink(),
    "diverged": lambda paths: change(paths, status="diverged"),
    "shorter": lambda paths: change(paths, rounds=10),
    "scored otherwise": lambda paths: change(paths, eval_key="other"),
    "no outcomes": lambda paths: paths.outcomes.unlink(),
    "damaged outcomes": lambda paths: paths.outcomes.write_bytes(b"PAR1 and then nothing"),
}


def change(paths, **changed):
    write_json(paths.done, json.loads(paths.done.read_text()) | changed)


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_pair_needs_two_whole_seeds(load, store, spoil):
    grid = load(GRID)
    first, _ = strata_of(grid)
    train(store, grid, first, {0, 1})
    spoil(store.study("s").cell(first.b[1].key))
    (design,) = designs(grid, store)
    assert design.runs == 0
    train(store, grid, first, {2})
    assert designs(grid, store)[0].runs == 4  # the others still count


def test_other_questions_are_not_paired(load, store):
    grid = load(GRID)
    first, _ = strata_of(grid)
    train(store, grid, first, {0, 1})
    finish(store, grid, first.b[0], answers(1)[:29])
    assert designs(grid, store)[0].runs == 0


def test_runs_that_all_answer_alike_tell_no_noise(load, store):
    grid = load(GRID)
    first, _ = strata_of(grid)
    for cell in (*first.a, *first.b):
        finish(store, grid, cell, np.ones((30, 1)))
    assert designs(grid, store)[0].runs == 0


# ---- the command


@pytest.fixture
def plan(monkeypatch, capsys, tmp_path, store):
    """What the command prints, 110 columns wide, where no local copies of models lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")

    def told(path, *options):
        argv = ["banditgrid", "plan", str(path), "--store", str(store.root), *options]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    return told


def test_reading_runs_loads_nothing_heavy(grid_file, load, store):
    grid = load(GRID)
    train(store, grid, strata_of(grid)[0], {0, 1})
    code = (
        "import sys; from orchestrator import cli\n"
        "sys.argv = ['banditgrid', 'plan', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'matplotlib', 'optuna', 'sklearn', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(grid_file(GRID)), "--store", str(store.root)],
        capture_output=True, text=True, check=True, cwd=store.root.parent,
    )  # fmt: skip
    assert done.stderr.strip() == "[]"
    assert "4 runs" in done.stdout


def test_plan_shows_what_contrasts_can_find(plan, grid_file, load, store):
    shown = plan(grid_file(REAL.replace("margin: 0.1", "margin: 0.008")))
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("contrast "))
    first, second = (line.split() for line in lines[start + 1 : start + 3])
    told = ["shapes:", "n", "superior", "0.008", "1", "3", "1,319", "1", "0.072", "never", "never"]
    assert first == [*told, "0.015", "assumed"]
    assert second[6:11] == ["5,000", "1", "0.054", ">", "1000"]
    assert "floor" in shown and "assumed: seeds move an arm's Pass@1 by 0.01 (SD)" in shown
    assert lines.index(next(x for x in lines if x.startswith("to do:"))) < start


def test_plan_says_what_observed_noise_is_worth(plan, grid_file, load, store):
    grid = load(GRID)
    for stratum in strata_of(grid):
        train(store, grid, stratum, {0, 1, 2})
    shown = plan(grid_file(GRID))
    contrasts = shown[shown.index("\ncontrast ") :]
    assert "12 runs" in contrasts and "assumed" not in contrasts
    assert "to a factor of 0.60 to 2.87 (95%)" in shown
    more = "  - {name: m, a: {advantage: raw}, b: {advantage: grpo}, with: {rollouts: 2}}"
    text = f"{GRID}{more}\n"
    grid = load(text)
    train(store, grid, strata(grid, grid.contrasts[1])[0], {0, 1})
    assert "to a factor of 0.45 to 31.91 (95%)" in plan(grid_file(text))  # the worse of both


def test_plan_for_programs_has_the_same_numbers(plan, grid_file, load, store):
    told = json.loads(plan(grid_file(REAL), "--json"))["contrasts"]
    assert told == json.loads(json.dumps([design.row() for design in designs(load(REAL), store)]))
    assert {"power", "alpha", "target", "noise", "seeds_needed", "smallest_effect"} <= set(told[0])


def test_a_plan_without_contrasts_has_no_table(plan, grid_file):
    text = GRID[: GRID.index("contrasts:")]
    assert "finds:" not in plan(grid_file(text))
    assert json.loads(plan(grid_file(text), "--json"))["contrasts"] == []
