"""Prices as the commands show them, what is left of a study, and the end at `--max-gpu-hours`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from grids.errors import InputError
from grids.load import load_grid
from grids.outcome import STOPPED
from grids.paths import Store, read_json, read_lines, write_json
from orchestrator import cost_place
from orchestrator.cost_left import left
from orchestrator.cost_limit import Limit
from orchestrator.ledger import note_planned
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.queue import Queue
from orchestrator.show_status import show_status, status_rows
from tests.planted_runs import plant

GRID = """
name: one
study: s
base: {rounds: 40, batch: 8, eval: {every: 20, test_questions: 16, train_questions: 8}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], rollouts: [1, 4]}
seeds: [0, 1, 2]
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def banditgrid(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, in a process of its own."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        code = "from orchestrator.cli import main; main()"
        env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], cwd=tmp_path, env=env,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip

    return run


# ---- plan


def test_plan_shows_each_number_with_its_interval_and_n(
    store: Store, grid_file: Callable[..., Path], banditgrid: Callable[..., object]
) -> None:
    path = grid_file(GRID)
    for one in load_grid(path).cells()[:3]:
        plant(store, one)
    words = ["plan", path, "--store", store.root, "--slots", 2, "--price", 2.5]
    shown = banditgrid(*words).stdout  # type: ignore[attr-defined]
    for part in (" to generate, of them for evaluations ", " to train on", "slot-hours; about ",
                 " on 2 slots", "money: ", "at 2.5 a slot-hour", "n = 3 finished runs on cpu",
                 "typical error"):  # fmt: skip
        assert part in shown, part
    told = json.loads(banditgrid(*words, "--json").stdout)["cost"]  # type: ignore[attr-defined]
    for name in ("tokens_to_generate", "tokens_to_train", "slot_hours", "makespan_seconds"):
        one = told[name]
        assert 0 < one["low"] < one["value"] < one["high"] and one["n"] == 3, name
    assert told["money"]["value"] == pytest.approx(2.5 * told["slot_hours"]["value"])
    rented = told["makespan_seconds"]["value"] / 3600 * 2 * 2.5
    assert told["money_for_all_until_the_end"]["value"] == pytest.approx(rented)
    assert told["disk_bytes"] > 0 and told["sources"][0]["source"] == "finished runs"


def test_plan_says_what_is_assumed(
    store: Store, grid_file: Callable[..., Path], banditgrid: Callable[..., object]
) -> None:
    words = ["plan", grid_file(GRID), "--store", store.root, "--gpus", 2, "--gpu-memory", 80]
    shown = banditgrid(*words).stdout  # type: ignore[attr-defined]
    assert "assumed: no finished run of this study" in shown and "n = 0" in shown
    assert "GPU-hours" in shown and "on 2 GPUs, 6 cells at a time" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--price", "-1"], "-1 is not a number above 0"),
        (["--price", "nan"], "is not a number above 0"),
        (["--slots", "0"], "'--slots'"),
        (["--gpus", "-1"], "'--gpus'"),
        (["--gpu-memory", "80"], "give --gpus too"),
        (["--gpus", "1", "--gpu-memory", "0.1"], "is predicted to need"),
    ],
)
def test_bad_prices_and_places_are_one_message(
    words: list[str], told: str, grid_file: Callable[..., Path], banditgrid: Callable[..., object]
) -> None:
    ran = banditgrid("plan", grid_file(GRID), *words)
    assert ran.returncode == 2 and told in ran.stderr  # type: ignore[attr-defined]
    assert "Traceback" not in ran.stderr  # type: ignore[attr-defined]


def test_a_place_of_gpus_needs_their_number() -> None:
    with pytest.raises(InputError, match="--gpus too"):
        cost_place.place(2, None, 80.0)


# ---- status


def test_status_tells_what_is_left(store: Store, grid_file: Callable[..., Path]) -> None:
    grid = load_grid(grid_file(GRID))
    cells = grid.cells()
    note_planned(store.study("s"), grid, {one.key: one for one in cells})
    for one in cells[:4]:
        plant(store, one)
    rows = status_rows(store)
    on_two = left(rows, store, slots=2)["s"]
    assert (on_two["cells"], on_two["unknown_cells"]) == (2, 0)
    span, hours = on_two["makespan_seconds"], on_two["slot_hours"]
    assert 0 < span["low"] < span["value"] < span["high"] and span["n"] == hours["n"] == 4
    out = Console(file=io.StringIO(), width=200)
    show_status(rows, out, left={"s": on_two})
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "left: " in shown and "on 2 slots" in shown and "n = 4 finished runs" in shown
    nobody_runs = left(rows, store)["s"]
    assert nobody_runs["makespan_seconds"] is None
    assert nobody_runs["slot_hours"]["value"] < hours["value"]  # two new processes are in it
    plan = make_plan([grid], store)
    of_grid = left(rows, store, 2, plan)["s"]
    # A plan knows that the base's evaluation is not in the store.
    assert of_grid["slot_hours"]["value"] == pytest.approx(hours["value"], rel=0.05)


def test_what_an_older_run_planned_is_unknown(store: Store, grid_file: Callable[..., Path]) -> None:
    cells = load_grid(grid_file(GRID)).cells()
    entry = {c.key: {"label": c.label, "rounds": 40, "eval_key": c.eval_key} for c in cells}
    write_json(store.study("s").directory / "planned.json", {"grids": {"one": entry}})
    told = left(status_rows(store), store)["s"]
    assert (told["cells"], told["unknown_cells"]) == (0, 6)
    assert told["told"] == ["left: 6 cells of unknown cost; the next run notes it"]


def test_nothing_is_left_of_a_study_that_is_done(
    store: Store, grid_file: Callable[..., Path]
) -> None:
    grid = load_grid(grid_file(GRID))
    note_planned(store.study("s"), grid, {one.key: one for one in grid.cells()})
    for one in grid.cells():
        plant(store, one)
    assert left(status_rows(store), store) == {}


# ---- --max-gpu-hours


def test_gpu_hours_are_shares_of_walls_of_attempts() -> None:
    clock = [0.0]
    limit = Limit(1.0, lambda where: {"a": 0.5, "b": 1.0}[where[1]], lambda: clock[0])
    limit.started(("s", "a"))
    clock[0] = 1800.0
    limit.started(("s", "b"))
    assert limit.taken == 0.25
    clock[0] = 3600.0
    assert limit.taken == 0.5 + 0.5
    limit.ended(("s", "a"))
    limit.ended(("s", "a"))  # told twice
    clock[0] = 7200.0
    assert limit.taken == 0.5 + 1.5


def test_at_the_limit_cells_leave_and_no_more_are_handed_out(
    store: Store, grid_file: Callable[..., Path]
) -> None:
    works = make_plan([load_grid(grid_file(GRID))], store).works
    clock = [0.0]
    with Progress(works, store, Console(file=io.StringIO(), width=200)) as progress:
        queue = Queue(works, store, progress, lambda: 2)
        limit = Limit(0.5, lambda where: 1.0, lambda: clock[0])
        item = queue.next()
        assert item is not None
        limit.started(item.where)
        limit.look(queue)
        assert queue.spent is None and not item.paths.leave.exists()
        clock[0] = 1800.0
        limit.look(queue)
        assert queue.spent == 0.5 and not queue.stopping
        assert (read_json(item.paths.leave) or {})["why"] == STOPPED
        assert queue.next() is None
        assert [other.state for other in queue.items if other is not item] == [STOPPED] * 5
        assert not store.study("s").leave.exists()  # other drivers go on


def test_a_run_stops_at_its_gpu_hours_and_goes_on_later(
    store: Store, grid_file: Callable[..., Path], banditgrid: Callable[..., object]
) -> None:
    path = grid_file(GRID.replace("rounds: 40", "rounds: 600"))
    words = ["run", path, "--store", store.root, "--slots", 1]
    ran = banditgrid(*words, "--max-gpu-hours", 0.005)
    out = ran.stdout  # type: ignore[attr-defined]
    assert ran.returncode == 1, out  # type: ignore[attr-defined]
    assert "more than --max-gpu-hours 0.005: cells save and leave when it is reached" in out
    assert "(--max-gpu-hours 0.005): 0 cells done, 6 left; run again to go on" in out
    (begun,) = (w.paths(store) for w in make_plan([load_grid(path)], store).works if w.begun)
    (attempt,) = read_lines(begun.attempts)
    assert attempt["how"] == STOPPED and attempt["fresh"] and attempt["seconds"] > 5
    assert (attempt["to_round"] or 0) == read_lines(begun.journal)[-1]["round"] < 600
    assert not store.study("s").leave.exists()


def test_the_limit_travels_to_a_cluster(grid_file: Callable[..., Path]) -> None:
    from orchestrator.shipping import Order, Shipped

    path = grid_file(GRID)
    shipped = [Shipped.of(load_grid(path), path)]
    told = Order("s", shipped, "/store", max_gpu_hours=2.5).entrypoint
    assert "--max-gpu-hours 2.5" in told
    assert "--max-gpu-hours" not in Order("s", shipped, "/store").entrypoint
