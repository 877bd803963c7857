"""What a cell leaves for people: attempts as a table, the traceback, the end of its log."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grids.paths import CellPaths, Store, write_json
from orchestrator import cli
from orchestrator.ledger import PLANNED_FILE
from orchestrator.logs import Tail, follow
from orchestrator.lookup import Found
from workers import lease

KEY, LABEL = "aa11bb22cc33dd44", "tiny-qwen2 tiny-sums (8,1,0) raw s0"
ATTEMPTS: list[dict[str, Any]] = [
    {
        "attempt": 1, "host": "node-1", "pid": 7, "began": "2026-01-01T10:00:00+00:00",
        "ended": "2026-01-01T10:00:42+00:00", "from_round": 0, "to_round": 12, "how": "lost",
        "reason": "it fell silent", "rows_per_pass": None, "peak_rss_bytes": None,
        "peak_gpu_bytes": None, "gpus": None,
    },
    {
        "attempt": 2, "host": "node-2", "pid": 8, "began": "2026-01-01T11:00:00+00:00",
        "ended": "2026-01-01T11:05:00+00:00", "from_round": 10, "to_round": 20,
        "how": "out_of_memory", "reason": "CUDA out of memory\nTried to allocate",
        "rows_per_pass": 16, "peak_rss_bytes": 2_500_000_000, "peak_gpu_bytes": 79_000_000_000,
        "gpus": 1.0,
    },
]  # fmt: skip


@pytest.fixture
def cell(tmp_path: Path) -> Found:
    """A planned cell of the study `s` of the store `store`, with nothing in its folder."""
    study = Store(tmp_path / "store").study("s")
    planned = {KEY: {"label": LABEL, "rounds": 20, "eval_key": "e"}}
    write_json(study.directory / PLANNED_FILE, {"grids": {"g": planned}})
    return Found("s", KEY, LABEL, study.cell(KEY))


@pytest.fixture
def show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    monkeypatch.delenv("BANDITGRID_STORE", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["banditgrid", "logs", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert int(end.value.code or 0) == code
        told = capsys.readouterr()
        return told.out if code == 0 else told.err

    return run


def leave(paths: CellPaths, attempts: list[dict[str, Any]], log: str = "") -> None:
    paths.directory.mkdir(parents=True, exist_ok=True)
    paths.attempts.write_text("".join(json.dumps(line) + "\n" for line in attempts))
    if log:
        paths.log.write_text(log)


def test_attempts_are_told_one_a_line_and_what_is_missing_stays_empty(
    cell: Found, show: Callable[..., str]
) -> None:
    leave(cell.paths, ATTEMPTS)
    lines = show(KEY[:5]).splitlines()
    rows = [line.split() for line in lines if line.strip().startswith(("1 ", "2 "))]
    assert rows[0][:7] == ["1", "node-1", "2026-01-01", "10:00", "42", "s", "0-12"]
    assert rows[0][7:] == ["lost", "it", "fell", "silent"]
    told = " ".join(rows[1])
    assert "10-20 out of memory 16 2.5 GB, 79.0 GB GPU CUDA out of memory" in told


def test_the_traceback_and_the_end_of_the_log_are_shown(
    cell: Found, show: Callable[..., str]
) -> None:
    leave(cell.paths, ATTEMPTS, "".join(f"line {i}\n" for i in range(100)))
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: [bold]no'
    failed = {"key": KEY, "error": "ValueError: [bold]no", "traceback": trace, "attempts": 2}
    write_json(cell.paths.failed, failed)
    out = show(LABEL, "--lines", "3")
    assert f"{LABEL} ({KEY}) of study s" in out and trace in out
    assert out.endswith("end of log.txt:\nline 97\nline 98\nline 99\n") and "line 96" not in out
    assert "line 99" not in show(LABEL, "--lines", "0")


def test_a_cell_that_nobody_began_says_so(cell: Found, show: Callable[..., str]) -> None:
    assert "no worker has begun it" in show(KEY)


def test_the_worker_that_has_the_cell_is_named(cell: Found, show: Callable[..., str]) -> None:
    held = lease.acquire(cell.paths, LABEL)
    try:
        assert "attempt 1 on " in show(KEY)
    finally:
        held.release()
    assert "attempt 1 on " not in show(KEY)


def test_a_damaged_line_of_attempts_hides_nothing_else(
    cell: Found, show: Callable[..., str]
) -> None:
    leave(cell.paths, ATTEMPTS, "the log\n")
    cell.paths.attempts.write_text('{"attempt": 1\n{}\n')
    out = show(KEY)
    assert "attempts.jsonl: line 1 is damaged" in out and "the log" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a cell: of a cell the store has a log"),
        (("s",), "s is a study"),
        (("zz",), "no cell 'zz' in study s"),
        (("zz", "--store", "none"), "no store none"),
    ],
)
def test_what_cannot_be_shown_is_one_message(
    cell: Found, show: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    told = show(*arguments, code=2)
    assert message in told and "Traceback" not in told


def test_the_end_of_a_huge_log_is_read_from_its_end(cell: Found, show: Callable[..., str]) -> None:
    leave(cell.paths, [], "x" * 2_000_000 + "\nlast\n")
    began = time.monotonic()
    assert show(KEY, "--lines", "1").endswith("\nlast\n") and time.monotonic() - began < 2


def test_a_tail_gives_each_line_once_also_over_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    tail = Tail(path)
    assert tail.read() == ""
    path.write_text("one\ntwo\nhalf")
    assert tail.read() == "one\ntwo\n" and tail.read() == ""
    longer = tmp_path / "new"
    longer.write_text("one\ntwo\nhalf a line\nthree é\n")
    longer.replace(path)  # as a worker does that took the cell over
    assert tail.read() == "half a line\nthree é\n"
    path.write_text("anew\n")
    assert tail.read() == "anew\n"


def test_following_ends_when_the_cell_is_done_and_misses_nothing(cell: Found) -> None:
    leave(cell.paths, [], "first\n")
    held, got = lease.acquire(cell.paths, LABEL), list[str]()
    thread = threading.Thread(target=follow, args=(cell, got.append), daemon=True)
    thread.start()
    time.sleep(0.3)
    with cell.paths.log.open("a") as file:
        file.write("second\n")
    write_json(cell.paths.done, {"status": "finished", "rounds": 20, "eval_key": "e"})
    time.sleep(0.8)
    assert thread.is_alive(), "its worker still writes"
    with cell.paths.log.open("a") as file:
        file.write("third")
    held.release()
    thread.join(5)
    assert not thread.is_alive() and "".join(got) == "first\nsecond\nthird"
