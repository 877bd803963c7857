"""Where a cell stands by its files, and what is said of files that cannot be read."""

import json
import os
import time

import pytest

from grids import outcome
from grids.grid import Grid
from grids.paths import Store, write_json
from orchestrator.ledger import last_line, last_value, standing, state_of
from orchestrator.plan import make_plan
from orchestrator.show import console, plan_json, show_plan
from orchestrator.show_status import plan_rows, show_status, status_rows
from workers import lease

AXES = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}


def grid(**settings):
    return Grid.model_validate({"name": "g", "study": "s", "axes": AXES, **settings})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def paths(store):
    made = store.study("s").cell("k")
    made.directory.mkdir(parents=True)
    return made


def write_journal(paths, *lines):
    paths.directory.mkdir(parents=True, exist_ok=True)
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    paths.journal.write_text("".join(f"{line}\n" for line in text))


def finish(paths, cell, **changed):
    done = {"eval_key": cell.eval_key, "rounds": cell.rounds, "status": "finished"}
    write_json(paths.done, done | {"final": {outcome.TEST_PASS: 0.75}} | changed)


# ---- states


def test_states_without_a_done_mark(paths):
    assert state_of(paths, 10, None) == "waiting"
    write_journal(paths, {"round": 0})
    assert state_of(paths, 10, None) == "unfinished"
    write_json(paths.failed, {"error": "x"})
    assert state_of(paths, 10, None) == "failed"


def test_an_open_cell_stands_where_its_journal_ends(paths):
    scored = ({"round": i, outcome.TEST_PASS: value} for i, value in enumerate((0.25, 0.5)))
    write_journal(paths, *scored, {"round": 2})
    with paths.journal.open("a") as file:
        file.write('{"round": 3')  # being written
    found = standing(paths, 10)
    assert (found.state, found.round, found.test_pass) == ("unfinished", 2, 0.5)
    assert found.seconds_ago < 60


def test_a_done_cell_is_told_by_its_mark_alone(paths):
    mark = {"rounds": 9, "eval_key": "e", "final": {outcome.TEST_PASS: 0.5}, "reason": None}
    write_json(paths.done, mark | {"status": "finished"})
    found = standing(paths, 9, "e")
    assert (found.state, found.round, found.test_pass) == ("finished", 9, 0.5)
    write_json(paths.done, mark | {"status": "diverged", "diverged_round": 4, "reason": "loss"})
    found = standing(paths, 9, "e")
    assert (found.state, found.round, found.reason) == ("diverged", 4, "loss")


def test_last_value_is_found_far_from_the_end(tmp_path):
    journal = tmp_path / "journal.jsonl"
    lines = [{"round": 0, "test/pass_at_1": 0.25}] + [
        {"round": i, "x": "y" * 90} for i in range(3000)
    ]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"round": 9')
    assert last_value(journal, "test/pass_at_1") == 0.25
    assert last_line(journal) == lines[-1]


# ---- damage


def damage_journal(paths):
    write_journal(paths, {"round": 0}, '{"round": 1, "x": ', {"round": 2})


def damage_mark(paths):
    paths.done.write_text('{"status": "fini')


def empty_mark(paths):
    paths.done.write_text("{}")


def block_journal(paths):
    paths.journal.mkdir()


def block_mark(paths):
    paths.done.mkdir()


DAMAGE = {
    "a line of the journal": (damage_journal, "journal.jsonl: line 2 is damaged"),
    "half a mark": (damage_mark, "done.json is damaged"),
    "a mark that says nothing": (empty_mark, "done.json is damaged"),
    "a journal that cannot be read": (block_journal, "journal.jsonl cannot be read"),
    "a mark that cannot be read": (block_mark, "done.json cannot be read"),
}


@pytest.fixture(params=DAMAGE.values(), ids=DAMAGE.keys())
def damaged(request, store):
    """A grid of two cells, the first damaged; what is said of it."""
    damage, told = request.param
    made = grid(seeds=[0, 1])
    paths = make_plan([made], store).works[0].paths(store)
    paths.directory.mkdir(parents=True)
    damage(paths)
    return made, paths, told


def test_a_damaged_cell_is_named_in_a_plan_and_not_trained(damaged, store):
    made, paths, told = damaged
    plan = make_plan([made], store)
    first, second = plan.works
    assert (first.state, first.todo, second.state) == ("damaged", False, "waiting")
    assert told in first.reason and str(paths.directory) in first.reason
    assert (plan.totals.todo, plan.todo) == (1, (second,))
    out = console()
    with out.capture() as shown:
        show_plan(plan, out)
    assert "1 damaged, 1 waiting" in shown.get()
    assert sum(told in line and first.cell.label in line for line in shown.get().splitlines()) == 1
    assert plan_json(plan)["cells"][0]["reason"] == first.reason


def test_a_damaged_cell_is_named_in_a_status(damaged, store):
    made, paths, told = damaged
    rows = plan_rows(make_plan([made], store), store)
    assert [row["state"] for row in rows] == ["damaged", "waiting"]
    (alone,) = status_rows(store)
    assert alone["state"] == "damaged" and told in alone["reason"]
    out = console()
    with out.capture() as shown:
        show_status(rows, out)
    assert told in shown.get() and "see below" in shown.get()


def test_a_directory_without_permission_is_damaged(store, monkeypatch):
    made = grid()
    paths = make_plan([made], store).works[0].paths(store)
    paths.directory.mkdir(parents=True)
    paths.directory.chmod(0)
    try:
        if os.access(paths.directory, os.X_OK):
            pytest.skip("root reads everything")
        found = standing(paths, 10)
        assert found.state == "damaged" and "Permission denied; mend" in found.reason
        assert [row["state"] for row in status_rows(store)] == ["damaged"]
    finally:
        paths.directory.chmod(0o700)


def test_a_done_cell_whose_journal_a_shorter_grid_needs_is_damaged(store):
    long = grid(base={"rounds": 10})
    (work,) = make_plan([long], store).works
    paths = work.paths(store)
    damage_journal(paths)
    finish(paths, work.cell)
    assert make_plan([long], store).works[0].state == "finished"
    (work,) = make_plan([grid(base={"rounds": 5})], store).works
    assert work.state == "damaged" and "line 2 is damaged" in work.reason


# ---- who is at work


@pytest.fixture
def running(store):
    """A cell with a worker, which is this process; its row."""
    (work,) = make_plan([grid(base={"rounds": 100})], store).works
    paths = work.paths(store)
    about = {
        "gpus": 0.5, "rows_per_pass": 4, "peak_rss_bytes": 3_000_000_000, "peak_gpu_bytes": None,
    }  # fmt: skip
    held = lease.acquire(paths, work.cell.label, lambda: about)
    write_journal(paths, {"round": 0}, {"round": 20})
    lines = [{"round": i, "seconds": {"all": 1.5, "evaluate": 0.5}} for i in range(1, 21)]
    paths.timings.write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield work, paths, held, lambda: plan_rows(make_plan([work_grid()], store), store)[0]
    held.release()


def work_grid():
    return grid(base={"rounds": 100})


def test_a_running_cell_shows_its_worker(running, store):
    work, paths, held, row = running
    told = row()
    assert (told["state"], told["round"], told["gpus"]) == ("running", 20, 0.5)
    assert (told["rows_per_pass"], told["peak_rss_bytes"]) == (4, 3_000_000_000)
    assert (told["pid"], told["seconds_left"]) == (os.getpid(), 160.0)
    assert told["host"] and told["beat_seconds_ago"] < 30
    out = console()
    with out.capture() as shown:
        show_status([told], out)
    for word in ("1 running", "3 min", "0.5", "3.0 GB", "4 rows a pass"):
        assert word in shown.get()
    held.release()
    told = row()
    assert (told["state"], told["host"], told["seconds_left"]) == ("unfinished", None, None)


def test_a_silent_worker_is_told(running, monkeypatch):
    work, paths, held, row = running
    before = time.time() - 200
    holder = next(paths.directory.glob(f".lease.*/{lease.HOLDER}"))
    os.utime(holder, (before, before))
    told = row()
    assert told["state"] == "unfinished" and told["host"] is None
    assert "no sign of life from" in told["reason"] and "3 min" in told["reason"]


def test_a_cell_that_was_asked_to_leave_says_so(running, store):
    work, paths, held, row = running
    assert row()["leaving"] is None
    write_json(store.study("s").leave, {"why": "stopped"})
    assert row()["leaving"] == "stopped"
    write_json(paths.leave, {"why": "preempted"})
    told = row()
    assert told["leaving"] == "preempted"
    out = console()
    with out.capture() as shown:
        show_status([told], out)
    assert "asked to leave: preempted" in shown.get()


def test_failed_attempts_are_counted(running):
    work, paths, held, row = running
    lines = [{"attempt": i, "how": how} for i, how in enumerate(("lost", "preempted", "failed"))]
    paths.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert row()["failed_attempts"] == 2


# ---- many cells


def many(states):
    """Rows of one arm, a seed each."""
    blank = dict.fromkeys(
        ("round", "test_pass", "reason", "host", "gpus", "rows_per_pass", "peak_rss_bytes",
         "peak_gpu_bytes", "seconds_left", "leaving")
    )  # fmt: skip
    return [
        blank | {"study": "s", "label": f"m d (8,1,0) raw s{i}", "state": state, "rounds": 9}
        | {"grids": ["g"], "failed_attempts": 0, "key": str(i)}
        for i, state in enumerate(states)
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_in_a_terminal_many_cells_are_counts_and_what_needs_eyes(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    rows = many(["finished"] * 80 + ["failed", "running"] + ["waiting"] * 20)
    out = type(console())(force_terminal=terminal, highlight=False, color_system=None)

    def shown(everything):
        with out.capture() as told:
            show_status(rows, out, everything)
        return told.get()

    assert "102 cells, 80 finished, 1 running, 1 failed, 20 waiting" in shown(False)
    assert ("s80" in shown(False)) and ("s81" in shown(False))
    assert ("s5" in shown(False)) is not terminal
    assert ("--all" in shown(False)) is terminal
    assert all(f"s{i} " in shown(True) for i in range(102))
