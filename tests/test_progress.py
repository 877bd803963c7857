"""What people see of a run: counts, time left, running cells; lines where nothing redraws."""

import json
import os
import time
from io import StringIO

import pytest
from rich.console import Console

from grids import outcome
from grids.grid import Grid
from grids.paths import Store, write_json
from orchestrator import progress as module
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.watching import BASE, FILLING, STARTING, Seen, Tail
from workers import lease


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def works(store):
    """Four cells that cost the same."""
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}
    base = {"rounds": 100, "eval": {"every": 50}}
    given = {"name": "g", "study": "s", "axes": axes, "base": base, "seeds": [0, 1, 2, 3]}
    return make_plan([Grid.model_validate(given)], store).works


def plain():
    return Console(file=StringIO(), width=110, highlight=False)


def text(out):
    return out.file.getvalue()


def where(work):
    return work.study, work.cell.key


def write_journal(paths, *lines):
    paths.directory.mkdir(parents=True, exist_ok=True)
    paths.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def finish(work, store):
    paths = work.paths(store)
    done = {"eval_key": work.cell.eval_key, "rounds": 100, "status": "finished"}
    write_json(paths.done, done | {"final": {outcome.TEST_PASS: 0.5}})


# ---- what the driver tells


def test_every_change_of_a_cell_is_a_line_and_a_count(works, store):
    first, second, third, fourth = works
    progress = Progress(works, store, out := plain())
    assert progress.headline() == "4 cells: 4 waiting"
    for work in (first, second, third):
        progress.start(*where(work))
    assert progress.running() == [first, second, third]
    finish(first, store)
    progress.finish(*where(first), "finished", "")
    progress.finish(*where(second), "failed", "RuntimeError: broken\nand more")
    progress.lose(*where(third), "its process was killed")
    for _ in range(3):
        progress.elsewhere(*where(fourth))
    assert progress.headline().split(";")[0] == (
        "4 cells: 1 waiting, 1 elsewhere, 1 done, 1 failed"
    )
    assert progress.running() == []
    lines = text(out).splitlines()
    assert lines[0] == f"{first.cell.label}  started"
    assert lines[3].startswith(f"{first.cell.label}  finished  Pass@1 0.500")
    assert lines[3].endswith("[1/4]")
    assert f"{second.cell.label}  failed: RuntimeError: broken  0 s  [2/4]" == lines[4]
    assert "given another worker later: its process was killed" in lines[5]
    assert lines[6:] == [f"{fourth.cell.label}  another driver's worker has it"]
    progress.start(*where(fourth))  # it was given up
    assert "1 waiting, 1 running, 1 done" in progress.headline()


def test_cells_that_nobody_began_end_without_a_line(works, store):
    progress = Progress(works, store, out := plain())
    for work in works:
        progress.finish(*where(work), "stopped", "")
    assert text(out) == "" and progress.headline() == "4 cells: 4 stopped"


# ---- one running cell


@pytest.fixture
def seen(works, store):
    return Seen(works[0], store, 0.0, 0.0)


def test_before_round_0_it_says_what_takes_time(works, store, seen):
    seen.look()
    assert seen.doing == STARTING
    paths, cell = works[0].paths(store), works[0].cell
    held = lease.acquire(paths, cell.label)
    seen.look()
    assert seen.doing == BASE
    write_json(store.study("s").shared / cell.base_key / "metrics.json", {})
    seen.look()
    assert seen.doing == STARTING
    filling = cell.model_copy(update={"replay": 3, "replay_fill": "base"})
    seen.work = type(seen.work)("s", filling, ("g",), "waiting")
    assert seen._before_the_first() == FILLING
    held.release()


def test_a_running_cell_tells_round_scores_time_and_memory(works, store):
    paths = works[0].paths(store)
    about = {"peak_rss_bytes": 2_000_000_000, "peak_gpu_bytes": None}
    held = lease.acquire(paths, works[0].cell.label, lambda: about)
    write_journal(paths, {"round": 0, outcome.TEST_PASS: 0.25}, {"round": 40, outcome.REWARD: 0.5})
    lines = [{"round": i, "seconds": {"all": 2.0}} for i in range(1, 41)]
    paths.timings.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = Seen(works[0], store, 0.0, 0.0)
    seen.look()
    told = module._parts(seen)
    assert told == ["round 40/100", "reward 0.500", "Pass@1 0.250", "2 min left", "2.0 GB"]
    assert seen.share == 0.4
    held.release()


def test_a_journal_is_read_as_it_grows_and_anew_where_it_was_cut_back(works, store):
    paths = works[0].paths(store)
    tail = Tail(paths.journal)
    tail.look()
    assert tail.round is None
    write_journal(paths, {"round": 0, outcome.TEST_PASS: 0.25}, {"round": 1, outcome.REWARD: 0.5})
    tail.look()
    with paths.journal.open("a") as file:
        file.write('{"round": 2}\n{"round": ')
    tail.look()
    assert (tail.round, tail.reward, tail.test_pass) == (2, 0.5, 0.25)
    with paths.journal.open("a") as file:
        file.write("3}\n")
    tail.look()
    assert tail.round == 3
    with paths.journal.open("a") as file:
        file.write('not JSON\n[]\n{"round": 5}\n')
    tail.look()
    assert tail.round == 5
    shorter = paths.journal.with_name("shorter")
    shorter.write_text('{"round": 0}\n' + '{"round": 1}\n' * 30)  # and larger by now
    os.replace(shorter, paths.journal)
    tail.look()
    assert (tail.round, tail.reward, tail.test_pass) == (1, None, None)
    write_journal(paths, {"round": 0})
    tail.look()
    assert tail.round == 0


def test_what_cannot_be_read_keeps_its_last_value(works, store, seen):
    paths = works[0].paths(store)
    write_journal(paths, {"round": 7})
    seen.look()
    paths.journal.unlink()
    paths.journal.mkdir()  # reading it is an error
    seen.look()
    assert seen.tail.round == 7


# ---- all of them


def test_time_left_follows_the_cells_made_so_far(works, store):
    progress = Progress(works, store, plain())
    assert progress._seconds_left() is None
    progress.start(*where(works[0]))
    progress._began -= 10
    assert progress._seconds_left() is None
    finish(works[0], store)
    progress.finish(*where(works[0]), "finished", "")
    assert progress._seconds_left() == pytest.approx(30, rel=0.05)
    progress.start(*where(works[1]))
    progress._running[where(works[1])].tail.round = 50
    assert progress._seconds_left() == pytest.approx(10 / 1.5 * 2.5, rel=0.05)
    progress.elsewhere(*where(works[2]))
    assert progress._seconds_left() == pytest.approx(10 / 1.5 * 1.5, rel=0.05)
    progress._running[where(works[1])].left = 1000.0
    assert progress._seconds_left() == 1000
    assert progress.headline().endswith("; about 17 min left")


def test_lines_come_seldom(works, store, monkeypatch):
    progress = Progress(works, store, out := plain())
    progress.start(*where(works[0]))
    (seen,) = progress._running.values()
    seen.tail.round = 1
    progress._tell([seen])
    assert len(text(out).splitlines()) == 1  # started
    seen.told_at -= module.LINE_SECONDS
    for _ in range(3):
        progress._tell([seen])
    assert text(out).splitlines()[1:] == [f"{works[0].cell.label}  round 1/100"]
    seen.told_at -= module.LINE_SECONDS
    progress._tell([seen])  # nothing new
    progress._overall_at -= module.OVERALL_SECONDS
    progress._tell([seen])
    assert text(out).splitlines()[2:] == [progress.headline()]


@pytest.mark.parametrize(
    "settings, redraws",
    [
        ({"force_terminal": True, "width": 100}, True),
        ({"force_terminal": True, "width": 100, "_environ": {"TERM": "dumb"}}, False),
        ({"force_terminal": True, "width": 50}, False),
        ({"width": 100}, False),
    ],
)
def test_a_table_only_where_it_can_be_redrawn(works, store, monkeypatch, settings, redraws):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    out = Console(file=StringIO(), **settings)
    write_journal(works[0].paths(store), {"round": 3})
    with Progress(works, store, out) as progress:
        progress.start(*where(works[0]))
        time.sleep(0.3)
    assert ("round 3/100" in text(out)) is redraws
    assert ("3 waiting, 1 running" in text(out)) is redraws
    assert ("started" in text(out)) is not redraws


def test_more_running_cells_than_lines(works, store):
    out = Console(file=StringIO(), force_terminal=True, width=100, height=6)
    progress = Progress(works, store, out)
    for work in works:
        progress.start(*where(work))
    out.print(progress._display(list(progress._running.values())))
    assert "and 2 more running" in text(out) and "starting" in text(out)


def test_it_survives_a_store_that_does_not_answer(works, store, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    paths = works[0].paths(store)
    paths.journal.mkdir(parents=True)
    with Progress(works, store, out := plain()) as progress:
        progress.start(*where(works[0]))
        time.sleep(0.2)
        paths.journal.rmdir()
        write_journal(paths, {"round": 9})
        time.sleep(0.3)
    assert "round 9/100" in text(out)
