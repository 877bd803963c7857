"""Asking cells to leave: real leases, held by processes that heed the request, or do not."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from grids.errors import InputError
from grids.paths import Store, read_json, write_json
from orchestrator import here, lookup, stopping
from orchestrator.ledger import PLANNED_FILE
from tests.conftest import ROOT
from workers import lease

WORKER = """
import sys, time
from pathlib import Path
from grids.paths import CellPaths
from workers import lease
paths = CellPaths(Path(sys.argv[1]))
held = lease.acquire(paths, "cell")
print("held", flush=True)
asked = paths.leave, paths.directory.parent.parent / "leave.json"
while "heeds" not in sys.argv[2] or not any(path.exists() for path in asked):
    time.sleep(0.02)
time.sleep(2 if "slowly" in sys.argv[2] else 0)
held.release()
"""
LABELS = {
    "aa11": "tiny (8,1,0) raw s0",
    "aa22": "tiny (8,1,0) raw s1",
    "bb33": "twin",
    "bb44": "twin",
}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two studies: four cells of the first have labels, one of them twice; `cc55` has none."""
    store = Store(tmp_path)
    planned = {key: {"label": label, "rounds": 4, "eval_key": "e"} for key, label in LABELS.items()}
    write_json(store.study("s").directory / PLANNED_FILE, {"grids": {"g": planned}})
    for study, key in (("s", "aa11"), ("s", "cc55"), ("t", "aa11")):
        store.study(study).cell(key).directory.mkdir(parents=True)
    return store


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts a worker that holds a cell's lease."""
    begun: list[subprocess.Popen[str]] = []

    def begin(key: str, study: str = "s", does: str = "heeds") -> subprocess.Popen[str]:
        directory = store.study(study).cell(key).directory
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory), does], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, env={**os.environ, "BANDITGRID_LEASE_SECONDS": "2"},
        )  # fmt: skip
        begun.append(worker)
        assert worker.stdout is not None and worker.stdout.readline() == "held\n"
        return worker

    yield begin
    for worker in begun:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


class Told(Console):
    """A console whose text can be read."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=200)

    def __str__(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


def test_a_study_is_asked_and_waited_for(store: Store, start: Start) -> None:
    workers, out = [start("aa11"), start("bb33")], Told()
    began = time.time()
    assert stopping.stop_study(store, "s", 20, out)
    request = read_json(store.study("s").leave) or {}
    assert request["why"] == "stopped" and socket.gethostname() in request["by"]
    assert request["time"].endswith("+00:00") and time.time() - began < 10
    assert [worker.wait(10) for worker in workers] == [0, 0]
    assert "asked 2 running cells" in str(out)
    assert f"left: {LABELS['aa11']} on {socket.gethostname()}" in str(out)
    assert not list(store.study("s").cells.glob("*/leave.json"))
    assert not store.study("t").leave.exists()


def test_who_stays_is_named_when_the_time_is_over(store: Store, start: Start) -> None:
    worker, out = start("aa11", does="stays"), Told()
    assert not stopping.stop_study(store, "s", 0.5, out)
    told = f"{LABELS['aa11']} on {socket.gethostname()}, process {worker.pid}, last heard of"
    assert "after 0 s 1 running cell still there" in str(out) and told in str(out)


def test_a_cell_that_a_driver_still_gave_out_is_waited_for(store: Store, start: Start) -> None:
    """The first worker's end is seen; so is the worker that came in the meantime."""
    first, out = start("aa11", does="heeds slowly"), Told()
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(stopping.stop_study, store, "s", 4, out)
        start("bb33", does="stays")
        assert not stopped.result()
    assert first.wait(10) == 0
    assert f"left: {LABELS['aa11']}" in str(out) and "still there:\n  twin on" in str(out)


def test_one_cell_leaves_and_the_others_go_on(store: Store, start: Start) -> None:
    asked, other, out = start("aa11"), start("aa22"), Told()
    assert here.stop(store, here.Which(cell="aa1", study="s"), 20, out)
    assert asked.wait(10) == 0 and other.poll() is None
    assert (read_json(store.study("s").cell("aa11").leave) or {})["why"] == "stopped"
    assert not store.study("s").leave.exists()
    assert f"{LABELS['aa11']} (aa11): asked to leave" in str(out)


def test_a_cell_without_a_worker_is_marked_for_those_who_would_give_it_out(store: Store) -> None:
    out = Told()
    assert here.stop(store, here.Which("s", LABELS["aa22"]), 20, out)
    assert store.study("s").cell("aa22").leave.exists() and "no worker has it" in str(out)


def test_a_host_is_vacated_of_all_studies_as_preempted(store: Store, start: Start) -> None:
    workers, out = [start("aa11"), start("aa11", "t")], Told()
    _leave_holder(store, "cc55", host="elsewhere")
    assert here.stop(store, here.Which(host=socket.gethostname()), 20, out)
    assert [worker.wait(10) for worker in workers] == [0, 0]
    for study in ("s", "t"):
        assert (read_json(store.study(study).cell("aa11").leave) or {})["why"] == "preempted"
    assert not store.study("s").cell("cc55").leave.exists()


def test_a_host_without_cells_is_no_error_and_the_others_are_named(
    store: Store, start: Start
) -> None:
    start("aa11", does="stays")
    out = Told()
    assert here.stop(store, here.Which(host="nowhere"), 1, out)
    assert f"no cell runs there; cells run on: {socket.gethostname()}" in str(out)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("n1", "n1", True), ("n1", "n1.lab", True), ("n1.lab", "n1", True),
     ("n1.a", "n1.b", False), ("n1", "n2", False), ("n1.a", "n1.a", True)],
)  # fmt: skip
def test_hosts_are_known_by_their_short_name_too(one: str, other: str, same: bool) -> None:
    assert stopping._same_host(one, other) is same


def test_a_killed_worker_is_not_waited_for(store: Store, start: Start) -> None:
    start("aa11", does="stays").kill()
    time.sleep(0.2)
    assert stopping.stop_study(store, "s", 5, Told())


def test_a_worker_that_fell_silent_elsewhere_is_not_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    _leave_holder(store, "aa11", host="gone")
    began, out = time.monotonic(), Told()
    assert stopping.stop_study(store, "s", 20, out)
    assert 1.0 <= time.monotonic() - began < 5 and "left: tiny (8,1,0) raw s0 on gone" in str(out)


def _leave_holder(store: Store, key: str, host: str) -> None:
    """The lease of a worker on another machine."""
    folder = store.study("s").cell(key).directory / ".lease.3"
    folder.mkdir(parents=True)
    told = {"epoch": 3, "beat": 7, "released": False, "host": host, "pid": 1, "kernel": "other"}
    (folder / "holder.json").write_text(json.dumps({**told, "locks": True}))


def test_a_store_that_cannot_be_written_is_told(store: Store) -> None:
    study = store.study("new")
    study.directory.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        stopping.ask(study, "stopped")


def test_a_cell_and_a_host_exclude_each_other() -> None:
    with pytest.raises(InputError, match="--cell and --host"):
        here.Which(cell="a", host="b")
    assert here.Which("s", host="n1").arguments == ["s", "--host", "n1"]


@pytest.mark.parametrize(
    ("what", "study", "key"),
    [("aa22", "s", "aa22"), ("aa2", "s", "aa22"), (LABELS["aa22"], "s", "aa22"),
     ("s/aa11", "s", "aa11"), ("t/aa", "t", "aa11"), ("cc", "s", "cc55")],
)  # fmt: skip
def test_a_cell_is_found_by_key_beginning_or_label(
    store: Store, what: str, study: str, key: str
) -> None:
    found = lookup.cell(store, what, ["s", "t"])
    assert (found.study, found.key) == (study, key)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("aa11", "means 2 cells: s/aa11 tiny (8,1,0) raw s0; t/aa11 aa11; name one by its key"),
        ("twin", "means 2 cells: s/bb33 twin; s/bb44 twin"),
        ("tiny (8,1,0) raw s2", "did you mean 'tiny (8,1,0) raw s"),
        ("", "no cell ''"),
        ("u/aa11", "no cell 'u/aa11' in any study"),
    ],
)
def test_no_cell_and_several_cells_are_told(store: Store, what: str, message: str) -> None:
    with pytest.raises(InputError) as told:
        lookup.cell(store, what, ["s", "t"])
    assert message in str(told.value)


def test_a_study_is_named_unless_there_is_one(store: Store, tmp_path: Path) -> None:
    assert lookup.study(store, "t") == "t"
    with pytest.raises(InputError, match="name a study of the store .*; allowed: s, t"):
        lookup.study(store, None)
    with pytest.raises(InputError, match="no study 'ss' .* allowed: s, t"):
        lookup.study(store, "ss")
    with pytest.raises(InputError, match="no study in the store"):
        lookup.study(Store(tmp_path / "none"), None)
