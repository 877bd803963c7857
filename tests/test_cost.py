"""What cells cost: amounts and schedules by hand, planted seconds found again, and how surely."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from grids.paths import Store
from orchestrator import cost, cost_place
from orchestrator.cost_fit import Errors, assumed, fitted, nonnegative, t_975
from orchestrator.cost_known import Known
from orchestrator.cost_place import Place
from orchestrator.cost_runs import finished_runs
from orchestrator.cost_schedule import Room, schedule
from orchestrator.cost_sizes import Seen, Stretch, amounts, answers, sized
from orchestrator.plan import make_plan
from tests.planted_runs import TOKENS, cell, plant, seconds

SHAPES = ((8, 1), (8, 4), (32, 1), (64, 2), (16, 8))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# ---- amounts


def test_the_amounts_of_a_cell_by_hand() -> None:
    made = cell(batch=8, rollouts=4, eval={"every": 10})
    size = sized(made)
    found = amounts(size, Stretch(0, 20, bases=True, rounds=20), Seen(15.0))
    giga, row = 3e5 / 1e9, 32 / 2 + 15
    rows = 20 * 8 * 4
    drawn = (20 * 15, 20 * 15 * giga, rows * 15 * giga)
    assert found["generate"] == pytest.approx((*drawn, 0, 0, 0, 0))
    assert found["update"] == pytest.approx((20, rows, rows * row * giga))
    assert found["score"] == pytest.approx((20, rows, rows * row * giga))  # the reference's
    # Two greedy evaluations and the base's; two samples a question of the base and the end.
    assert answers(size, Stretch(0, 20, bases=True, rounds=20)) == 150 * 3 + 150 * 2 * 2
    assert found["evaluate"][:3] == (3, 1050, 15 * (3 + 2))
    assert found["other"] == (1, 20, 20 * 64) and found["outside"] == (1, 20, 0, 0)
    served = sized(made.model_copy(update={"engine": "vllm"}))
    assert served.base != size.base
    by_vllm = amounts(served, Stretch(0, 20, bases=True, fresh=True, rounds=20), Seen(15.0))
    assert by_vllm["generate"] == pytest.approx((0, 0, 0, 20 * giga, *drawn))
    before, of_vllm = found["evaluate"], by_vllm["evaluate"]
    assert of_vllm[2:5] == (0, 0, 0) and of_vllm[6] == pytest.approx(3 * giga)
    passes = 15 * (3 + 2 * 2)  # 300 samples are more than the 256 rows of an engine so small
    assert of_vllm[7] == passes and of_vllm[9] == pytest.approx(before[4])
    assert by_vllm["outside"] == (1, 20, 1, 1) and by_vllm["update"] == found["update"]


def test_a_cell_that_goes_on_has_what_is_left() -> None:
    size = sized(cell(batch=8, eval={"every": 8}))
    found = amounts(size, Stretch(10, 20, rounds=20), Seen(10.0))
    assert found["update"][:2] == (10, 80)
    assert found["evaluate"][0] == 2  # at 16, and at the end
    stopped = amounts(size, Stretch(0, 10, rounds=20), Seen(10.0))
    assert stopped["evaluate"][1] == 150  # at 8; the samples are the end's


def test_only_rows_with_gradient_are_trained_where_there_is_no_kl() -> None:
    bare = sized(cell(batch=8, rollouts=4, kl=0))
    found = amounts(bare, Stretch(0, 10, rounds=10), Seen(15.0, 0.25))
    assert found["update"][1] == 10 * 32 * 0.25
    assert found["score"] == (0, 0, 0)
    replayed = sized(cell(batch=8, replay=4, replay_mode="train", advantage="grpo"))
    found = amounts(replayed, Stretch(0, 10, rounds=10), Seen(15.0))
    assert found["update"][1] == 10 * 8 * 5
    assert found["score"][1] == 10 * 8 * 2  # fresh rows: behaviour and reference


def test_seeds_alone_make_no_difference_to_the_size() -> None:
    assert sized(cell(seed=1, lr=1e-4)) == sized(cell(seed=2))
    assert sized(cell(batch=8)) != sized(cell(batch=16))


# ---- schedules


def test_a_schedule_by_hand() -> None:
    """Slot A: 5, then 4 from 5 to 9; slot B: 3, then 3 to 6, then 2 to 8."""
    made = schedule([5, 3, 3, 4, 2], [1] * 5, Room(1, 2.0))
    assert made == (9.0, (0, 3), 2)


def test_cells_share_gpus_and_none_overtakes() -> None:
    two_gpus = Room(2)
    made = schedule([4, 4, 4, 1], [0.5, 0.5, 0.5, 1.0], two_gpus)
    assert made.seconds == 5.0  # the whole GPU is free when the halves are done
    assert schedule([4, 4], [0.75, 0.5], Room(1)).seconds == 8.0
    assert schedule([4, 4], [0.5, 0.5], Room(1)).seconds == 4.0
    assert schedule([4, 4], [0.5, 0.5], Room(1, 1.0, 1)).seconds == 8.0
    assert schedule([4], [3.0], Room(1)).seconds == 4.0
    # a cell of two GPUs waits until both are free, and nobody overtakes it
    made = schedule([2, 3, 1, 5], [0.5, 2.0, 0.5, 2.0], two_gpus)
    assert (made.seconds, made.most) == (2 + 3 + 1 + 5, 1)
    assert schedule([3, 3], [2.0, 2.0], Room(4)).seconds == 3.0
    assert schedule([], [], Room(1)).seconds == 0.0


# ---- the regression


def test_the_regression_is_that_of_least_squares_without_negative_coefficients() -> None:
    rng = np.random.default_rng(0)
    x_N_F, y_N = rng.random((12, 4)), rng.normal(size=12)
    found = nonnegative(x_N_F[None], y_N[None], pull=0.01)[0]
    pulled = np.vstack([x_N_F, 0.1 * np.eye(4)])
    expected, _ = optimize.nnls(pulled, np.concatenate([y_N, np.full(4, 0.1)]))
    assert found == pytest.approx(expected, abs=1e-6)
    assert (expected == 0).any()


def test_students_t_is_near_enough() -> None:
    for df in (2, 3, 5, 10, 100):
        assert t_975(df) == pytest.approx(stats.t.ppf(0.975, df), rel=0.035)


def test_planted_seconds_are_found_from_five_runs(store: Store) -> None:
    """A shape and a horizon of its own, within a twentieth; the defaults are far off."""
    for i, (batch, rollouts) in enumerate(SHAPES):
        plant(store, cell(batch=batch, rollouts=rollouts), fresh=i < 2)
    known = Known.of(store, "s", None)
    other = cell(batch=16, rollouts=2, rounds=50)
    stretch = Stretch(0, 50, rounds=50)
    expected = sum(seconds(other).values())
    assert known.seconds(sized(other), stretch) == pytest.approx(expected, rel=0.05)
    without = assumed(False).seconds(sized(other), stretch, Seen(TOKENS))
    assert abs(without / expected - 1) > 0.3
    assert known.new_process(sized(other)) == pytest.approx(20, rel=0.1)
    assert known.source.n == 5 and known.source.typical < 0.1


def test_both_engines_of_a_study_are_told_apart(store: Store) -> None:
    """Each by its own runs; vLLM's of another shape within a tenth."""
    for i, (batch, rollouts) in enumerate(SHAPES):
        for engine in ("transformers", "vllm"):
            plant(store, cell(batch=batch, rollouts=rollouts, engine=engine), fresh=i < 2)
    known = Known.of(store, "s", None)
    for engine in ("transformers", "vllm"):
        other = cell(batch=16, rollouts=2, rounds=50, engine=engine)
        expected = sum(seconds(other).values())
        told = known.seconds(sized(other), Stretch(0, 50, rounds=50))
        assert told == pytest.approx(expected, rel=0.1), engine
    new = [known.new_process(sized(cell(engine=e))) for e in ("transformers", "vllm")]
    assert new == pytest.approx([20, 29], rel=0.15)


def test_on_a_gpu_vllm_is_assumed_to_be_faster_and_to_start_later() -> None:
    paper = {"model": "qwen2.5-0.5b-instruct", "dataset": "gsm8k", "eval": {"every": 100}}
    plain, served = (sized(Cell(**paper, engine=e)) for e in ("transformers", "vllm"))
    fit, seen = assumed(True), Seen(512.0)
    slow, fast = (fit.phases(s, Stretch(0, 1000, rounds=1000), seen) for s in (plain, served))
    assert 2 < slow["generate"] / fast["generate"] < 5
    assert slow["evaluate"] > 5 * fast["evaluate"], "at the engine's full width"
    assert all(slow[phase] == fast[phase] for phase in ("update", "score", "other", "outside"))
    assert 400 < served.width < 512, "what its cache holds of rows that are half as long"
    corrected = sized(Cell(**paper, engine="vllm", importance_correction=True))
    assert corrected.scored_trained == served.scored_trained + 1  # under the policy, once more


def test_a_slower_model_is_seen_in_its_own_runs(store: Store) -> None:
    models = ("tiny-qwen2", "tiny-llama")
    for model, factor in zip(models, (1.0, 3.0), strict=True):
        for seed in range(6):
            plant(store, cell(model=model, seed=seed), factor=factor)
    known = Known.of(store, "s", None)
    fast, slow = (
        known.seconds(sized(cell(model=m, rounds=40)), Stretch(0, 40, rounds=40)) for m in models
    )
    assert slow / fast == pytest.approx(3, rel=0.3)


def test_without_runs_the_interval_is_wide_and_says_so() -> None:
    fit = fitted([], on_gpus=False)
    told = fit.errors.interval({"a": 60.0})
    assert (told.value, told.n) == (60.0, 0)
    assert told.high / told.value == told.value / told.low == 3.0
    assert math.isnan(fit.errors.typical)


def test_more_runs_and_more_arms_make_it_surer() -> None:
    rng = random.Random(0)
    noise = [(rng.gauss(0, 0.2),) for _ in range(40)]
    few, many = Errors(tuple(noise[:4]), 0.0), Errors(tuple(noise), 0.0)
    parts = {i: 10.0 for i in range(20)}
    assert many.interval(parts).high < few.interval(parts).high
    assert many.interval(parts).high < many.interval({"one arm": 200.0}).high
    drifting = Errors(tuple(noise), 0.3)
    assert drifting.interval(parts).high > many.interval(parts).high


def test_intervals_hold_what_comes(store: Store) -> None:
    """Cells of one arm share their error: in 19 of 20 studies the sum lies within."""
    rng, inside = random.Random(1), 0
    for _ in range(200):
        spread = 0.3
        seen = Errors(tuple((rng.gauss(0, spread),) for _ in range(6)), 0.0)
        to_come = {arm: 10 * math.exp(rng.gauss(0, spread)) for arm in range(8)}
        told = seen.interval(dict.fromkeys(to_come, 10.0))
        inside += told.low <= sum(to_come.values()) <= told.high
    assert inside >= 185


# ---- what is read


def test_lengths_and_trained_shares_come_from_runs_like_it(store: Store) -> None:
    plant(store, cell(advantage="grpo", rollouts=4, kl=0))
    runs = finished_runs(store.study("s"))
    alike = runs.seen(sized(cell(advantage="grpo", rollouts=8, kl=0)))
    assert alike == (TOKENS, 0.5)
    assert runs.seen(sized(cell(advantage="raw", kl=0))).share == 1.0
    longer = runs.seen(sized(cell(dataset="tiny-boxed", max_response=16)))
    assert longer.tokens == TOKENS / 2  # the same part of what is allowed
    nothing = finished_runs(store.study("none")).seen(sized(cell()))
    assert nothing == (16, 1.0)


def test_what_cannot_be_read_is_left_out_and_counted(store: Store) -> None:
    paths = [plant(store, cell(seed=seed)) for seed in range(6)]
    lines = paths[0].timings.read_text().splitlines(keepends=True)
    paths[0].timings.write_text("".join(lines[:-1]))  # the last round is missing
    paths[1].timings.write_text("".join(lines).replace('"all": ', '"all": -'))
    paths[2].cell.write_text("{")
    paths[3].timings.write_text("no JSON\n" + "".join(lines))
    paths[4].done.write_text("[]")
    found = finished_runs(store.study("s"))
    assert (len(found.runs), found.damaged, found.elsewhere) == (1, 5, 0)


def test_runs_on_other_hardware_are_left_out_and_counted(store: Store) -> None:
    for seed, device in enumerate(("H100", "cpu", "H100", "A100")):
        plant(store, cell(seed=seed), device=device)
    found = finished_runs(store.study("s"))
    assert (len(found.runs), found.device, found.elsewhere) == (2, "H100", 2)
    on_cores = finished_runs(store.study("s"), on_gpus=False)
    assert (len(on_cores.runs), on_cores.device, on_cores.elsewhere) == (1, "cpu", 3)


def test_the_newest_runs_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        done = plant(store, cell(seed=seed), factor=1.0 + seed).done
        os.utime(done, (1e9 + seed, 1e9 + seed))
    monkeypatch.setattr("orchestrator.cost_runs.MOST_RUNS", 2)
    runs = finished_runs(store.study("s")).runs
    each = sum(seconds(cell()).values()) - seconds(cell())["outside"]
    took = [sum(run.seconds.values()) / each for run in runs]
    assert took == pytest.approx([4.0, 3.0])


# ---- a plan


def grid(**settings: Any) -> Grid:
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "batch": [8, 32]}
    base = {"rounds": 20, "eval": {"every": 10, "test_questions": 100, "train_questions": 50}}
    return Grid.model_validate({"name": "g", "study": "s", "axes": axes, "base": base, **settings})


def test_a_plan_is_priced_by_its_study(store: Store) -> None:
    made = grid(seeds=[0, 1, 2])
    for one in made.cells()[:4]:
        plant(store, one)
    plan = make_plan([made], store)
    assert len(plan.todo) == 2
    told = cost.of_plan(plan, store, Place(slots=1))
    taken = sum(sum(seconds(work.cell).values()) for work in plan.todo)
    base_and_start = told.hours.value * 3600 - taken
    assert 0 < base_and_start < 30  # the base's evaluation, and one new process
    assert told.makespan is not None and told.makespan.n == told.hours.n == 4
    over = told.makespan.value - told.hours.value * 3600
    assert over == pytest.approx(cost.START_SECONDS + 2 * cost.HAND_OUT_SECONDS, abs=0.1)
    assert told.makespan.low < told.makespan.value < told.makespan.high
    on_two = cost.of_plan(plan, store, Place(slots=2)).makespan
    assert on_two is not None and on_two.value < told.makespan.value
    rows = sum(w.cell.generated_per_step * w.cell.rounds for w in plan.todo)
    assert told.tokens.to_train.value == pytest.approx(rows * TOKENS)
    of_rounds = told.tokens.to_generate.value - told.tokens.of_evaluations.value
    assert of_rounds == pytest.approx(rows * TOKENS)


def test_a_base_that_is_there_costs_nothing(store: Store) -> None:
    made = grid(seeds=[0])
    plan = make_plan([made], store)
    before = cost.of_plan(plan, store, Place(slots=1))
    folder = store.study("s").shared / made.cells()[0].base_key
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    after = cost.of_plan(plan, store, Place(slots=1))
    assert after.hours.value < before.hours.value
    assert after.tokens.of_evaluations.value == before.tokens.of_evaluations.value - 150 * 16


def test_runs_on_cores_tell_nothing_of_gpus(store: Store) -> None:
    made = grid(seeds=[0, 1])
    plant(store, made.cells()[0])
    told = cost.of_plan(make_plan([made], store), store, Place(gpus=2))
    assert told.on_gpus and told.sources[0].n == 0 and told.sources[0].elsewhere == 1


def test_cells_share_a_gpu_by_memory_or_as_the_grid_says(store: Store) -> None:
    plan = make_plan([grid(seeds=[0, 1])], store)
    whole = cost.of_plan(plan, store, Place(gpus=1))
    shared = cost.of_plan(plan, store, Place(gpus=1, gpu_bytes=80 * 10**9))
    assert whole.at_once == 1 and shared.at_once == 4
    assert shared.hours.value < whole.hours.value
    asked = grid(seeds=[0, 1], base={"gpus": 0.5, "rounds": 20})
    assert cost.of_plan(make_plan([asked], store), store, Place(gpus=1)).at_once == 2


def test_a_plan_with_nothing_to_do_costs_nothing(store: Store) -> None:
    made = grid(seeds=[0])
    for one in made.cells():
        plant(store, one)
    told = cost.of_plan(make_plan([made], store), store, Place(slots=2))
    assert told.hours.value == 0 and told.makespan is not None and told.makespan.value == 0


def test_without_a_gpu_this_machine_is_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = cost_place.this_machine()
    assert found.gpus is None and found.slots == len(os.sched_getaffinity(0))


def test_gpus_of_a_grid_count_for_nothing_without_a_gpu(store: Store) -> None:
    whole, asked = (
        cost.of_plan(make_plan([grid(seeds=[0], base=base)], store), store, Place(slots=1))
        for base in ({"rounds": 20}, {"rounds": 20, "gpus": 0.25})
    )
    assert asked.hours == whole.hours and not asked.on_gpus


def test_a_cell_of_more_gpus_than_the_place_has_is_refused_as_by_a_run(store: Store) -> None:
    plan = make_plan([grid(seeds=[0, 1], base={"rounds": 20, "gpus": 4})], store)
    with pytest.raises(InputError, match=r"gpus: 4, but the place .* \(see --gpus\) has 2"):
        cost.of_plan(plan, store, Place(gpus=2))
    assert cost.of_plan(plan, store, Place(gpus=4)).at_once == 1
    assert cost.of_plan(plan, store, Place(slots=8)).at_once == 2  # a slot for each process


def test_slots_alone_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_place, "_gpu_memory", lambda: [80 << 30] * 2)
    assert cost_place.place(3, None, None) == Place(3, 2, 80 << 30)
    monkeypatch.setattr(cost_place, "_gpu_memory", list)
    assert cost_place.place(3, None, None) == Place(3)
