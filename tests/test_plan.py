"""orchestrator.plan and its printing: what is merged, dropped, done and left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from grids.load import load_grids
from grids.paths import CellPaths, Store, write_json
from orchestrator.plan import OUTCOME_BYTES, Plan, Work, disk_bytes, make_plan
from orchestrator.show import console, dropped_lines, plan_json, show_plan

ROOT = Path(__file__).resolve().parent.parent
PAPER = sorted((ROOT / "grids/paper").glob("*.yaml"))
AXES = {"model": ["qwen2.5-0.5b-instruct"], "dataset": ["gsm8k"]}


def grid(name: str = "one", **settings: object) -> Grid:
    axes = AXES | dict(settings.pop("axes", {}))  # type: ignore[call-overload]
    return Grid.model_validate({"name": name, "study": "s", "axes": axes, **settings})


def one(plan: Plan) -> Work:
    (work,) = plan.works
    return work


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def paper() -> Plan:
    return make_plan(load_grids(PAPER), Store(Path("no-such-store")))


def test_paper_baseline_runs_once_though_four_sections_name_it(paper: Plan) -> None:
    assert len(paper.works) == 660
    assert len({work.cell.key for work in paper.works}) == 660
    baseline = [work for work in paper.works if work.cell.shape == (32, 1, 0)]
    assert len(baseline) == 6 * 5
    assert {work.grids for work in baseline} == {("advantage", "batch", "minimalist", "rollouts")}
    assert len({(w.cell.model, w.cell.dataset) for w in paper.works}) == 6


def test_paper_has_every_shape_of_256_samples_that_the_axes_allow(paper: Plan) -> None:
    names = {"tradeoff", "replay"}
    shapes = {w.cell.shape for w in paper.works if names & set(w.grids)}
    assert shapes == {
        (256, 1, 0), (128, 2, 0), (64, 4, 0), (32, 8, 0), (16, 16, 0), (32, 1, 7),
    }  # fmt: skip


def test_every_combination_of_the_axes_is_a_cell_or_has_a_reason(paper: Plan) -> None:
    for share in paper.shares:
        combinations = len(share.grid.seeds)
        for values in share.grid.axes.values():
            combinations *= len(values)
        own = [d for d in share.dropped if "names the same cell" not in d.reason]
        assert len(share.cells) + len(own) == combinations
        assert all(dropped.reason for dropped in share.dropped)


def test_cells_run_seed_by_seed_across_grids(paper: Plan) -> None:
    seeds = [work.cell.seed for work in paper.works]
    assert seeds == sorted(seeds)


def test_dropped_lines_count_seeds_and_do_not_list_them(paper: Plan) -> None:
    share = next(share for share in paper.shares if share.grid.name == "tradeoff")
    lines = dropped_lines(share)
    assert len(lines) < 15
    assert any(line.startswith("budget, 12 arms × 5 seeds: 16 samples") for line in lines)
    assert not any(" s0" in line for line in lines)


def test_a_cell_of_two_grids_trains_to_the_larger_horizon(store: Store) -> None:
    short = grid("short", base={"rounds": 120, "eval": {"every": 100}})
    long = grid("long", base={"rounds": 300, "eval": {"every": 50}})
    work = one(make_plan([short, long], store))
    assert (work.cell.rounds, work.grids) == (300, ("short", "long"))
    # Evaluated wherever either grid wants it, and at the shorter grid's last round.
    assert all(at % work.cell.eval.every == 0 for at in (100, 50, 120))


def test_one_cell_in_two_studies_is_two_cells(store: Store) -> None:
    other = grid().model_copy(update={"study": "t", "name": "other"})
    assert [work.study for work in make_plan([grid(), other], store).works] == ["s", "t"]


def test_grids_that_evaluate_one_cell_differently_are_refused(store: Store) -> None:
    sampled = grid("sampled", base={"eval": {"samples": 4}})
    with pytest.raises(InputError) as error:
        make_plan([grid("greedy"), sampled], store)
    assert "greedy and sampled" in str(error.value)
    assert "eval.samples 0 and 4" in str(error.value)
    assert "study" in str(error.value)


def test_a_changed_copy_of_a_cell_has_keys_of_its_own(store: Store) -> None:
    cell = one(make_plan([grid(base={"batch": 8})], store)).cell
    before = (cell.key, cell.arm_key, cell.eval_key, cell.base_key)
    copied = cell.model_copy(update={"seed": 7, "max_response": 99})
    told = (copied.key, copied.arm_key, copied.eval_key, copied.base_key)
    anew = Cell.model_validate(copied.model_dump())
    assert told == (anew.key, anew.arm_key, anew.eval_key, anew.base_key)
    assert not set(told) & set(before)
    assert anew == copied and "key" not in copied.model_dump()


def write_done(paths: CellPaths, work: Work, **changed: object) -> None:
    done = {"eval_key": work.cell.eval_key, "rounds": work.cell.rounds, "status": "finished"}
    write_json(paths.done, {**done, **changed})


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "finished"),
        ({"rounds": 2000}, "finished"),
        ({"rounds": 10}, "unfinished"),
        ({"eval_key": "another"}, "unfinished"),
        ({"status": "diverged"}, "diverged"),
        ({"status": "diverged", "rounds": 10}, "diverged"),
    ],
)
def test_done_marks_tell_the_state(store: Store, changed: dict[str, object], state: str) -> None:
    work = one(make_plan([grid()], store))
    write_done(work.paths(store), work, **changed)
    planned = one(make_plan([grid()], store))
    assert planned.state == state
    assert planned.todo == (state == "unfinished")


def test_totals_count_what_is_left_from_where_it_stands(store: Store) -> None:
    wide = grid(base={"rounds": 100}, axes={"batch": [8, 16], "rollouts": [2]})
    (first,) = [work for work in make_plan([wide], store).works if work.cell.batch == 8]
    paths = first.paths(store)
    paths.directory.mkdir(parents=True)
    paths.journal.write_text('{"round": 0}\n{"round": 40}\n')
    totals = make_plan([wide], store).totals
    assert (totals.cells, totals.todo, totals.rounds, totals.todo_rounds) == (2, 2, 200, 160)
    assert totals.generated_samples == 100 * (16 + 32)
    assert totals.todo_generated_samples == 60 * 16 + 100 * 32


def test_totals_count_what_fills_replay_beforehand(store: Store) -> None:
    base = {"rounds": 100, "batch": 8, "replay": 7, "advantage": "grpo"}
    fills = {"replay_fill": ["cold", "base"]}
    filled = grid(base=base, axes=fills)
    totals = make_plan([filled], store).totals
    assert totals.generated_samples == 2 * 800 + 7 * 7473 == totals.todo_generated_samples
    (work,) = [w for w in make_plan([filled], store).works if w.cell.replay_fill == "base"]
    paths = work.paths(store)
    paths.directory.mkdir(parents=True)
    write_json(paths.failed, {"error": "x"})
    assert make_plan([filled], store).totals == totals
    paths.journal.write_text('{"round": 0}\n')
    assert make_plan([filled], store).totals.todo_generated_samples == 2 * 800
    paths.journal.write_text('{"round": 0}\n{"round": 40}\n')
    begun = make_plan([filled], store).totals
    assert begun.generated_samples == totals.generated_samples
    assert begun.todo_generated_samples == 800 + 480
    write_done(paths, work)
    assert make_plan([filled], store).totals.todo_generated_samples == 800


def test_no_replay_is_filled_with_nothing(store: Store) -> None:
    totals = make_plan([grid(base={"rounds": 100, "replay_fill": "base"})], store).totals
    assert totals.generated_samples == 100 * 32


def test_a_micro_batch_is_told_where_it_is_a_choice_and_not_where_it_follows_the_shape(
    store: Store,
) -> None:
    def told(**axes: list[object]) -> str:
        small = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], **axes}
        out = console()
        with out.capture() as shown:
            show_plan(make_plan([grid(axes=small)], store), out)
        return shown.get()

    assert "micro_batch" not in told(batch=[8, 32])
    assert "micro_batch=8" in told(batch=[8, 32], micro_batch=[4, 8])


def test_disk_is_a_checkpoint_of_weights_and_moments_and_the_rows(store: Store) -> None:
    cell = one(make_plan([grid(base={"keep": "weights"})], store)).cell
    bare = cell.model_copy(update={"keep": "none"})
    assert disk_bytes(cell) - disk_bytes(bare) == 12 * 494_032_768
    fewer = bare.eval.model_copy(update={"test_questions": 19})
    less = disk_bytes(bare) - disk_bytes(bare.model_copy(update={"eval": fewer}))
    assert less == 2 * (1319 - 19) * OUTCOME_BYTES


def test_a_horizon_that_a_done_cell_was_not_evaluated_at_is_told(store: Store) -> None:
    work = one(make_plan([grid()], store))
    paths = work.paths(store)
    lines = [{"round": r} | ({"test/pass_at_1": 0.5} if r % 5 == 0 else {}) for r in range(11)]
    paths.directory.mkdir(parents=True)
    paths.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mark = {"key": work.cell.key, "eval_key": work.cell.eval_key, "rounds": 10}
    write_json(paths.done, {**mark, "status": "finished"})
    assert one(make_plan([grid(base={"rounds": 5})], store)).state == "finished"
    with pytest.raises(InputError, match="trained to 10 and evaluated at 5, 10; ask for one"):
        make_plan([grid(base={"rounds": 7})], store)


def test_plan_json_is_for_programs(store: Store, grid_file: Callable[[str], Path]) -> None:
    told = json.loads(json.dumps(plan_json(make_plan([grid()], store))))
    (cell,) = told["cells"]
    assert set(cell) == {
        "study", "key", "arm_key", "label", "model", "dataset", "batch", "rollouts", "replay",
        "advantage", "seed", "rounds", "grids", "state", "reason",
    }  # fmt: skip
    assert (cell["state"], cell["grids"]) == ("waiting", ["one"])
    assert told["totals"]["cells"] == 1
    merged = grid("two", axes={"advantage": ["raw", "grpo"]})
    (dropped,) = plan_json(make_plan([merged], store))["dropped"]
    assert set(dropped) == {"grid", "label", "kind", "reason", "key"}
    assert (dropped["grid"], dropped["kind"], dropped["key"]) == ("two", "merged", cell["key"])


def test_planning_the_paper_loads_nothing_heavy() -> None:
    code = (
        "import sys; from orchestrator import cli\n"
        "sys.argv = ['banditgrid', 'plan', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'matplotlib', 'optuna', 'trl'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, PAPER)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "HEAVY []" in done.stdout
    assert "660 cells" in done.stdout
