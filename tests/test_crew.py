"""workers.crew: the processes of a cell are listened to, and end together, whatever ends one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.outcome import Progress
from grids.paths import CellPaths, read_json, read_lines
from tests.conftest import ROOT
from workers import crew, lease, memory
from workers.crew_member import kind_of
from workers.engine_check import EngineError, NoRoomError
from workers.run import run_cell
from workers.writing import Lost

# What a process of a cell says and hears, without a cell.
SAYS = """
import json, os, signal, sys, time
rank, out = int(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w")
def say(**told):
    out.write(json.dumps(told) + chr(10))
    out.flush()
def fails(after, kind, text):
    time.sleep(after)
    say(failed=time.time(), kind=kind, text=text, traceback="where it was")
    os._exit(1)
"""
ROUND = "round=[1, 3, {'round': 1, 'update/loss': float('nan')}, None], gpu_bytes=7"


def heard(
    tmp_path: Path, program: str, report: Callable[[Progress], bool | None] = lambda p: None
) -> Any:
    """What becomes of two processes that run a program."""
    own = lease.acquire(CellPaths(tmp_path), "the cell")
    made = crew._Crew([sys.executable, "-c", SAYS + program], ["", ""])
    try:
        return crew._listen(made, own, report)
    finally:
        made.kill()
        own.release()
        assert all(member.process.poll() is not None for member in made.members)


def test_rounds_are_told_and_answered_and_the_first_says_how_it_ended(tmp_path: Path) -> None:
    told: list[Progress] = []
    program = f"""
if rank == 0:
    say({ROUND})
    answer = sys.stdin.readline().strip()
    say({ROUND})
    say(done={{"answers": [answer, sys.stdin.readline().strip()]}})
else:
    say(done=None)
"""
    done = heard(tmp_path, program, lambda p: told.append(p) or len(told) == 2)
    assert done == {"answers": ["go on", "leave"]}
    assert [(p.round, p.rounds, p.seconds_left) for p in told] == [(1, 3, None)] * 2
    assert told[0].line["update/loss"] != told[0].line["update/loss"]  # NaN stays NaN
    peak = memory.Peak()
    assert peak.read()["peak_gpu_bytes"] == 7
    peak.reset()
    assert peak.read()["peak_gpu_bytes"] is None


def test_a_process_that_is_killed_is_named_before_those_that_only_miss_it(tmp_path: Path) -> None:
    program = """
if rank == 1:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
fails(0.5, "RuntimeError", "connection closed by peer")
"""
    with pytest.raises(RuntimeError, match="(?s)process 1 of 2 was ended by SIGKILL.*last words"):
        heard(tmp_path, program)


def test_the_first_failure_is_told_with_its_place(tmp_path: Path) -> None:
    program = """
if rank == 1:
    fails(0.1, "RuntimeError", "ValueError: no such number")
fails(0.6, "RuntimeError", "connection closed by peer")
"""
    with pytest.raises(RuntimeError, match="^process 1 of 2: ValueError: no such") as error:
        heard(tmp_path, program)
    assert error.value.__notes__ == ["where it was"]


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        ("InputError", InputError), ("EngineError", EngineError), ("NoRoomError", NoRoomError),
        ("Lost", Lost), ("MemoryError", MemoryError),
    ],
)  # fmt: skip
def test_errors_keep_their_kind(tmp_path: Path, kind: str, becomes: type[Exception]) -> None:
    program = f"""
if rank == 0:
    fails(0, "{kind}", "what is wrong")
time.sleep(60)
"""
    with pytest.raises(becomes, match="what is wrong") as error:
        heard(tmp_path, program)
    assert type(error.value) is becomes
    assert kind_of(error.value) == kind


FAILS = "fails(0.1, 'RuntimeError', 'no such number')"
NO_ROOM = "fails(0.1, 'MemoryError', 'no room')"
DIES = "os.kill(os.getpid(), signal.SIGSEGV)"
ABORTS = "os.kill(os.getpid(), signal.SIGABRT)"  # as NCCL's watchdog does
MISSES = "fails(0, 'RuntimeError', 'connection closed by peer')"


@pytest.mark.parametrize(
    ("earlier", "later", "becomes", "told"),
    [
        (NO_ROOM, ABORTS, MemoryError, "no room"),
        (FAILS, ABORTS, RuntimeError, "process 1 of 2: no such number"),
        (DIES, MISSES, RuntimeError, "process 1 of 2 was ended by SIGSEGV"),
        (MISSES, NO_ROOM, MemoryError, "no room"),  # a clock may be late
    ],
)
def test_who_only_follows_does_not_hide_who_failed(
    tmp_path: Path, earlier: str, later: str, becomes: type[Exception], told: str
) -> None:
    program = f"if rank == 1: {earlier}\ntime.sleep(0.7)\n{later}"
    with pytest.raises(becomes, match=told) as error:
        heard(tmp_path, program)
    assert type(error.value) is becomes


def test_an_end_that_is_seen_before_the_last_word_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = crew._Crew._hear

    def late(*args: Any) -> None:
        time.sleep(1.5)
        hear(*args)

    monkeypatch.setattr(crew._Crew, "_hear", late)
    assert heard(tmp_path, "say(done={'rank': rank})") == {"rank": 0}


def test_files_of_the_working_folder_take_the_place_of_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grids", "queue", "workers", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    # as an editable install has it: what finds our packages is no folder of the path
    rest = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *rest])
    made = crew._Crew([*crew.COMMAND, "no task.json"], [""])
    try:
        made.wait()
        time.sleep(0.5)  # for its last lines
        assert "No such file or directory: 'no task.json'" in str(made.failure())
    finally:
        made.kill()


def test_an_end_without_a_word_is_a_failure_too(tmp_path: Path) -> None:
    program = "if rank == 1: sys.exit('the traceback of an import')\ntime.sleep(60)"
    with pytest.raises(RuntimeError, match="(?s)process 1 of 2 ended with exit code 1.*import"):
        heard(tmp_path, program)


def test_processes_that_hang_end_when_the_lease_is_lost(tmp_path: Path) -> None:
    began = time.monotonic()
    paths = CellPaths(tmp_path)
    own = lease.acquire(paths, "the cell")
    made = crew._Crew([sys.executable, "-c", SAYS + "time.sleep(60)"], ["", ""])
    own.is_lost = True
    with pytest.raises(Lost):
        crew._listen(made, own, lambda p: None)
    made.kill()
    own.release()
    assert time.monotonic() - began < 20


def test_each_process_gets_a_gpu_of_those_that_the_worker_sees() -> None:
    four = Cell(model="tiny-llama", dataset="tiny-sums", gpus=4)
    with pytest.raises(InputError, match="gpus: 4, but its worker sees 2; lower gpus"):
        crew._gpus(four, 2, "3,5")
    two = four.model_copy(update={"gpus": 2.0})
    assert crew._gpus(two, 2, "3,5") == ["3", "5"]
    assert crew._gpus(two, 4, "") == ["0", "1"]
    assert crew._gpus(two, 0, "") == ["", ""]


def test_a_killed_process_fails_the_cell_and_the_next_try_finishes_it(
    tiny: Callable[..., Cell], tmp_path: Path
) -> None:
    cell = tiny(model="tiny-llama", gpus=2, rounds=4)
    rounds: list[int] = []

    def kill(progress: Progress) -> None:
        rounds.append(progress.round)
        if progress.round == 3:
            children = psutil.Process().children()
            (second,) = [c for c in children if c.cmdline()[-3:-1][-1:] == ["1"]]
            second.kill()

    with pytest.raises(RuntimeError, match="process 1 of 2 was ended by SIGKILL"):
        run_cell(cell, tmp_path, kill)
    assert not [c for c in psutil.Process().children() if "crew_member" in " ".join(c.cmdline())]
    paths, again = CellPaths(tmp_path), list[int]()
    done = run_cell(cell, tmp_path, lambda p: again.append(p.round))
    assert done == read_json(paths.done) and done["status"] == outcome.FINISHED
    assert (rounds[-1], again) == (3, [3, 4])  # from the checkpoint of round 2
    assert [line["round"] for line in read_lines(paths.journal)] == [0, 1, 2, 3, 4]


GRID = """
name: together
study: smoke
base: {rounds: 3, batch: 8, rollouts: 2, gpus: 2, eval: {every: 2, test_questions: 8}}
axes: {model: [tiny-llama], dataset: [tiny-sums]}
"""


@pytest.mark.slow
def test_the_command_trains_a_cell_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        "from orchestrator.cli import main; main()",
        "run",
        "grid.yaml",
    ]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "of 1 cells: 1 finished" in ended.stdout
    (directory,) = (tmp_path / "store/smoke/cells").iterdir()
    paths = CellPaths(directory)
    assert [line["round"] for line in read_lines(paths.journal)] == [0, 1, 2, 3]
    (attempt,) = read_lines(paths.attempts)
    assert attempt["how"] == outcome.FINISHED
    # torch and TRL in each of three processes
    assert attempt["peak_rss_bytes"] > 3 * 300e6


@pytest.mark.slow
def test_two_processes_with_an_engine_each_train_as_one_does(
    tiny: Callable[..., Cell], tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    settings = {
        "model": "tiny-llama", "engine": "vllm", "precision": "fp32", "rollouts": 4, "rounds": 3,
        "advantage": "grpo", "lr": 1e-4,
    }  # fmt: skip
    lines = []
    for name, gpus in (("one", 1), ("two", 2)):
        run_cell(tiny(**settings, gpus=gpus), tmp_path / name, lambda p: None)
        lines.append(read_lines(CellPaths(tmp_path / name).journal))
    for one, two in zip(*lines, strict=True):
        assert two.keys() == one.keys()
        same = (outcome.REWARD, outcome.GENERATED_TOKENS, outcome.TEST_PASS)
        assert [two.get(n) for n in same] == [one.get(n) for n in same]
        assert two == pytest.approx(one, rel=5e-3, abs=1e-5)
    # each engine answers with the weights of the last update, put together from shards
    assert lines[1][3][outcome.ENGINE_GAP] < 1e-5
