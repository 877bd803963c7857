"""Leases: one holder at a time, take-over from the dead, and no word of a former holder counts."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from grids.paths import CellPaths, read_json, read_lines
from workers import lease, writing
from workers.lease import Held, Lost, Watch, acquire, read


@pytest.fixture
def paths(tmp_path: Path) -> CellPaths:
    return CellPaths(tmp_path / "cell")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second without a beat is death."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, holders before are on another machine."""
    monkeypatch.setattr(lease, "kernel", lambda: "another machine")


def take_over(paths: CellPaths) -> lease.Lease:
    """As after a holder's silence."""
    found = read(paths)
    assert found is not None
    return acquire(paths, "cell", stale=found.epoch)


def test_a_lease_is_held_told_of_and_released(paths: CellPaths) -> None:
    assert read(paths) is None
    mine = acquire(paths, "cell", lambda: {"gpus": 0.5, "peak_rss_bytes": 7})
    found = read(paths)
    assert found is not None and (found.epoch, found.pid, found.released) == (1, os.getpid(), False)
    assert (found.gpus, found.peak_rss_bytes) == (0.5, 7)
    with pytest.raises(Held, match=f"another process is training this cell.*process {os.getpid()}"):
        acquire(paths, "cell")
    mine.release()
    found = read(paths)
    assert found is not None and found.released
    other = acquire(paths, "cell")
    assert (other.epoch, other.before) == (2, found)
    assert sorted(p.name for p in paths.directory.iterdir()) == [".lease.2"]
    other.release()


def test_a_holder_on_another_machine_is_refused_when_it_beats(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = acquire(paths, "cell")
    elsewhere(monkeypatch)
    began = time.monotonic()
    with pytest.raises(Held):
        acquire(paths, "cell")
    assert time.monotonic() - began < 0.6
    mine.release()


def test_a_silent_holder_on_another_machine_is_taken_over_in_time(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = acquire(paths, "cell")
    mine._stop.set()  # it is frozen, and still holds its lock
    mine._thread.join()
    elsewhere(monkeypatch)
    began = time.monotonic()
    assert acquire(paths, "cell").epoch == 2
    assert 0.5 < time.monotonic() - began < 3
    with pytest.raises(Lost):
        mine.check()


@pytest.mark.parametrize("seconds", [-86_400, 86_400, 0])
def test_no_clock_matters(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A holder whose clock, or store, is a day off is neither taken for dead nor held for ever."""
    mine = acquire(paths, "cell")
    elsewhere(monkeypatch)
    watch, holder_file = Watch(), mine.folder / lease.HOLDER
    for _ in range(8):
        stamp = time.time() + seconds
        os.utime(holder_file, (stamp, stamp))
        assert not watch.is_free(paths, read(paths))
        time.sleep(0.1)
    mine._stop.set()
    mine._thread.join()
    os.utime(holder_file, (stamp, stamp))
    time.sleep(0.1)
    assert not watch.is_free(paths, read(paths))
    time.sleep(0.7)
    assert watch.is_free(paths, read(paths))


def hold_for_ever(directory: str) -> None:
    acquire(CellPaths(Path(directory)), "cell")
    time.sleep(600)


def test_a_process_killed_on_this_machine_is_known_dead_at_once(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 600.0)
    code = (
        "import sys, time; from pathlib import Path; from grids.paths import CellPaths; "
        "from workers.lease import acquire; a = acquire(CellPaths(Path(sys.argv[1])), 'cell'); "
        "print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(paths.directory)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(Held, match=f"process {child.pid}"):
            acquire(paths, "cell")
        child.send_signal(signal.SIGSTOP)  # it hangs, and is not dead
        with pytest.raises(Held):
            acquire(paths, "cell")
        child.kill()
        child.wait()
        began = time.monotonic()
        assert acquire(paths, "cell").epoch == 2
        assert time.monotonic() - began < 1


def contend(directory: str, start: Any, told: Any) -> None:
    start.wait()
    try:
        mine = acquire(CellPaths(Path(directory)), "cell")
    except Held:
        told.put(None)
        return
    told.put(mine.epoch)
    time.sleep(3)  # holds it until all others have seen it


def test_of_many_at_once_one_gets_it(paths: CellPaths) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        start, told = context.Event(), context.Queue()
        children = [
            context.Process(target=contend, args=(str(paths.directory), start, told), daemon=True)
            for _ in range(8)
        ]
        for child in children:
            child.start()
        start.set()
        epochs = [told.get(timeout=30) for _ in children]
        assert len([e for e in epochs if e is not None]) == 1, epochs
        for child in children:
            child.kill()
            child.join()


def make_anew_and_put(old: lease.Lease, path: Path) -> None:
    """As a library does that makes the folders above what it writes."""
    made = old.scratch("x")
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text("old")
    old.put(made, path)


def test_nothing_that_a_former_holder_writes_counts(paths: CellPaths) -> None:
    old = acquire(paths, "cell")
    old.append(paths.journal, ['{"round": 0}\n'])
    old.write_json(paths.done, {"whose": "old"})
    paths.checkpoint.mkdir()
    new = take_over(paths)
    new.write_json(paths.done, {"whose": "new"})
    for act in (
        lambda: old.append(paths.journal, ['{"round": 1}\n']),
        lambda: old.write_json(paths.done, {"whose": "old"}),
        lambda: old.replace_text(paths.journal, ""),
        lambda: old.make(paths.outcomes, lambda path: path.write_bytes(b"")),
        lambda: old.discard(paths.journal),
        lambda: old.put(old.scratch("x"), paths.outcomes),
        lambda: make_anew_and_put(old, paths.outcomes),
        old.check,
    ):
        with pytest.raises(Lost):
            act()
    old.release()
    assert read_json(paths.done) == {"whose": "new"}
    assert read_lines(paths.journal) == [{"round": 0}] and not paths.outcomes.exists()
    found = read(paths)
    assert found is not None and (found.epoch, found.released) == (2, False)
    new.release()


def test_a_line_written_late_goes_to_a_file_that_is_no_more(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old holder stops between its look at the lease and its write; then it is too late."""
    old = acquire(paths, "cell")
    old.append(paths.journal, ['{"round": 0}\n'])
    whole, taken = old.check, []

    def look_then_sleep() -> None:
        whole()
        new = take_over(paths)
        new.replace_text(paths.journal, paths.journal.read_text())  # a successor's first act
        taken.append(new)

    monkeypatch.setattr(old, "check", look_then_sleep)
    old.append(paths.journal, ['{"round": 1}\n'])
    assert read_lines(paths.journal) == [{"round": 0}]
    with pytest.raises(Lost):
        old.append(paths.journal, ['{"round": 2}\n'])


def test_a_holder_whose_folder_somebody_deleted_has_lost(paths: CellPaths) -> None:
    import shutil

    mine = acquire(paths, "cell")
    shutil.rmtree(paths.directory)
    with pytest.raises(Lost):
        mine.append(paths.journal, ["x\n"])
    assert not paths.directory.exists()
    mine.release()


def test_what_killed_attempts_left_is_swept(paths: CellPaths) -> None:
    old = acquire(paths, "cell")
    (old.folder / "000040.abc").mkdir()
    old.scratch("journal.jsonl").write_text("half")
    old.release()
    new = acquire(paths, "cell")
    assert {p.name for p in new.folder.iterdir()} == {lease.HOLDER, lease.LOCK}
    new.release()


@pytest.mark.parametrize("told", ["", "{", "[]", '{"epoch": 7}', '{"epoch": 1, "new": 2}'])
def test_a_holder_that_cannot_be_read_is_waited_for_and_not_trusted(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    mine = acquire(paths, "cell")
    mine._stop.set()
    mine._thread.join()
    elsewhere(monkeypatch)
    (mine.folder / lease.HOLDER).write_text(told)
    watch = Watch()
    assert not watch.is_free(paths, read(paths))
    assert acquire(paths, "cell").epoch == 2


def test_a_store_that_is_briefly_unwritable_is_waited_for(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "PATIENCE_SECONDS", 20.0)
    monkeypatch.setattr(writing, "RETRY_SECONDS", 0.1)
    mine = acquire(paths, "cell")
    mine.append(paths.journal, ['{"round": 0}\n'])
    paths.journal.rename(paths.directory / "kept")
    # What cannot be opened for appending, root or not; and is mended in one step.
    (paths.directory / "folder").mkdir()
    paths.journal.symlink_to("folder")

    def mend() -> None:
        (paths.directory / "kept").replace(paths.journal)

    threading.Timer(0.5, mend).start()
    mine.append(paths.journal, ['{"round": 1}\n'], durable=True)
    assert read_lines(paths.journal) == [{"round": 0}, {"round": 1}]
    assert "training waits" in capfd.readouterr().err
    mine.release()


def test_a_store_that_stays_unwritable_is_told(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PATIENCE_SECONDS", 0.3)
    mine = acquire(paths, "cell")
    paths.journal.mkdir()
    with pytest.raises(OSError):
        mine.append(paths.journal, ["x\n"])
    with pytest.raises(OSError):
        mine.write_json(paths.journal, {"a": 1})
    mine.release()


def test_a_part_of_a_line_that_a_full_disk_left_is_taken_away(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(writing, "PATIENCE_SECONDS", 20.0)
    monkeypatch.setattr(writing, "RETRY_SECONDS", 0.1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    mine = acquire(paths, "cell")
    line = json.dumps({"round": 0, "text": "x" * 5000}) + "\n"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))

    def mend() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    threading.Timer(0.4, mend).start()
    try:
        mine.append(paths.journal, [line], durable=True)
    finally:
        mend()
    assert paths.journal.read_text() == line
    mine.release()
