"""deploy/backup.sh and restore.sh: what they refuse, what a copy of a store at work holds.

With SQLite; PostgreSQL and a real study are `integration/test_backup.py`'s.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

from grids.paths import CellPaths, Store, read_lines
from tests.conftest import ROOT
from workers import checkpoint
from workers.lease import Lease, held

BACKUP, RESTORE = (str(ROOT / "deploy" / name) for name in ("backup.sh", "restore.sh"))


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A study with a finished cell, a plug-in, a registration, MLflow's file with an artifact."""
    made = Store(tmp_path / "store")
    study = made.study("mine")
    texts = {
        made.identity: "{}", study.registrations: "{}\n",
        study.plugins / "1a" / "cells" / "a.py": "", made.root / "artifacts" / "1" / "a.md": "a",
        study.shared / "base" / "metrics.json": "{}", study.cell("k1").done: '{"rounds": 2}',
        study.cell("k1").journal: '{"round": 0}\n', study.cell("k1").outcomes: "rows",
        study.cell("k1").checkpoint / "000002" / "state.json": "{}",
        study.cell("k1").evaluation("k16").record: "{}",
        study.cell("k1").directory / ".lease.1" / "holder.json": '{"epoch": 1}',
    }  # fmt: skip
    left_out = {
        study.cell("k1").directory / "tracked.json": "{}", study.cell("k1").leave: "{}",
        study.cell("k1").directory / ".lease.1" / "000004.0123456789ab": "half", study.leave: "{}",
        study.directory / ".planned.json.0123456789ab": "half",
    }  # fmt: skip
    for path, text in (texts | left_out).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    made_of = {str(path.relative_to(made.root)) for path in texts}
    (tmp_path / "expected.json").write_text(json.dumps(sorted(made_of | {"mlflow.db"})))
    return made


@pytest.fixture
def database(store: Store) -> sqlite3.Connection:
    """MLflow's file, with something in it and something that is being written."""
    made = sqlite3.connect(store.root / "mlflow.db")
    made.execute("pragma journal_mode = wal")
    made.execute("create table runs (name text)")
    made.execute("insert into runs values ('whole')")
    made.commit()
    made.execute("insert into runs values ('half')")
    return made


def test_a_store_comes_back(store: Store, database: sqlite3.Connection, tmp_path: Path) -> None:
    made = call(BACKUP, "--store", store.root, tmp_path / "copy")
    assert made.returncode == 0, made.stderr
    assert "1 cells" in made.stdout
    again = call(RESTORE, "--store", tmp_path / "new", tmp_path / "copy")
    assert again.returncode == 0, again.stderr
    restored, origin = files(tmp_path / "new"), files(store.root)
    assert sorted(restored) == json.loads((tmp_path / "expected.json").read_text())
    assert all(origin[name] == restored[name] for name in restored if name != "mlflow.db")
    rows = sqlite3.connect(tmp_path / "new" / "mlflow.db").execute("select name from runs")
    assert rows.fetchall() == [("whole",)]
    database.close()


def test_a_folder_like_that_of_a_copy_in_the_making_stays(store: Store, tmp_path: Path) -> None:
    theirs = tmp_path / "copy.part" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    assert call(BACKUP, "--store", store.root, tmp_path / "copy").returncode == 0
    assert call(BACKUP, "--store", store.root, "--database", "x", tmp_path / "b").returncode == 2
    assert theirs.read_text() == "mine"
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"store", "copy", "copy.part", "expected.json"}
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700


def test_links_come_back_as_links(store: Store, tmp_path: Path) -> None:
    """But a study that lies elsewhere comes back in the store."""
    (tmp_path / "weights").write_text("w")
    for place in (store.root / "a link", store.study("mine").directory / "notes.md",
                  store.study("mine").cell("k1").directory / "extra"):  # fmt: skip
        place.symlink_to(tmp_path / "weights")
    (store.root / "nowhere").symlink_to("not/there")
    (tmp_path / "elsewhere").mkdir()
    store.study("mine").directory.rename(tmp_path / "elsewhere" / "mine")
    store.study("mine").directory.symlink_to(tmp_path / "elsewhere" / "mine")
    expected = json.loads((tmp_path / "expected.json").read_text())
    made = call(BACKUP, "--store", store.root, tmp_path / "copy")
    assert made.returncode == 0, made.stderr
    again = call(RESTORE, "--store", tmp_path / "new", tmp_path / "copy")
    assert again.returncode == 0, again.stderr
    links = {str(p.relative_to(tmp_path / "new")) for p in (tmp_path / "new").rglob("*")
             if p.is_symlink()}  # fmt: skip
    assert links == {"a link", "mine/notes.md", "mine/cells/k1/extra", "nowhere"}
    assert {*files(tmp_path / "new")} | {"mlflow.db"} == {*expected, *links} - {"nowhere"}


def test_what_goes_away_meanwhile_ends_no_backup(store: Store, tmp_path: Path) -> None:
    """A `cp` before whom the file is taken away; what is there and cannot be copied ends it."""
    (tmp_path / "bin").mkdir()
    late = tmp_path / "bin" / "cp"
    late.write_text('#!/bin/sh\ncase "$2" in *contrasts*) $LATE "$2";; esac\nexec /bin/cp "$@"\n')
    late.chmod(0o755)
    path = f"{late.parent}:{os.environ['PATH']}"

    def backup(before: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BACKUP, "--store", str(store.root), str(tmp_path / "copy")],
            env={**os.environ, "PATH": path, "LATE": before}, capture_output=True, text=True,
        )  # fmt: skip

    refused = backup("exit 1")
    assert refused.returncode == 2 and "contrasts.jsonl cannot be copied" in refused.stderr
    made = backup("rm")
    assert made.returncode == 0, made.stderr
    assert not store.study("mine").registrations.exists()
    assert "store/mine/contrasts.jsonl" not in files(tmp_path / "copy")


def test_nothing_is_written_over(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert call(BACKUP, "--store", store.root, copy).returncode == 0
    before = files(tmp_path)
    refused = [
        (call(BACKUP, "--store", store.root, copy), "is there already"),
        (call(BACKUP, "--store", tmp_path / "none", tmp_path / "b"), "no such folder"),
        (call(BACKUP, "--store", store.root, "--database", "a;b", tmp_path / "b"), "name of a"),
        (call(BACKUP, store.root), "usage:"),
        (call(BACKUP, "--store", store.root, store.root / "b"), "lies in"),
        (call(BACKUP, "--store", store.root, tmp_path / "x/../store/mine/b/c"), "lies in"),
        (call(RESTORE, "--store", tmp_path / "n", "--database", "../x", copy), "name of a"),
        (call(RESTORE, "--store", store.root, copy), "not empty"),
        (call(RESTORE, "--store", tmp_path / "n", store.root), "no whole backup"),
        (call(RESTORE, "--store", tmp_path / "n", "--database", "x", copy), "no database x"),
        (call(RESTORE, "--store", tmp_path / "n", "--artifacts", tmp_path / "m", copy), "no artif"),
        (call(RESTORE, "--stor", store.root, copy), "unknown option --stor"),
    ]
    for made, said in refused:
        assert (made.returncode, said in made.stderr) == (2, True), made.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize("harm", ["changed", "gone", "added", "linked"])
def test_a_damaged_copy_is_refused_by_name(store: Store, tmp_path: Path, harm: str) -> None:
    assert call(BACKUP, "--store", store.root, tmp_path / "copy").returncode == 0
    journal = tmp_path / "copy/store/mine/cells/k1/journal.jsonl"
    if harm == "changed":
        journal.write_text('{"round": 1}\n')
    elif harm == "added":
        journal = journal.with_name("extra.py")
        journal.write_text("")
    else:
        journal.unlink()
    if harm == "linked":
        journal.symlink_to("/etc/hostname")
    made = call(RESTORE, "--store", tmp_path / "new", tmp_path / "copy")
    assert made.returncode == 2 and f"k1/{journal.name}" in made.stderr
    assert not (tmp_path / "new").exists()


def train(lease: Lease, stop: threading.Event) -> None:
    """What a worker does to its cell's directory, many times as fast: a line, then a checkpoint."""
    paths, round = lease.paths, 0
    while not stop.is_set():
        round += 1
        lease.append(paths.journal, [json.dumps({"round": round}) + "\n"])
        if round % 5 == 0:
            made = lease.scratch(f"{round:06d}")
            made.mkdir()
            for name in ("model.safetensors", checkpoint.MARK):
                (made / name).write_bytes(str(round).encode() * 100_000)
            paths.checkpoint.mkdir(exist_ok=True)
            lease.put(made, paths.checkpoint / f"{round:06d}")
            checkpoint.prune(lease, checkpoint.KEPT)
        time.sleep(0.02)


def test_a_copy_of_a_cell_at_work_is_one_that_it_can_go_on_from(tmp_path: Path) -> None:
    """No checkpoint is ahead of the journal, and none is a part of one."""
    cells = [Store(tmp_path / "store").study("mine").cell(f"k{i}") for i in range(4)]
    stop = threading.Event()
    workers = [threading.Thread(target=_work, args=(paths, stop)) for paths in cells]
    for worker in workers:
        worker.start()
    try:
        time.sleep(0.6)
        for i in range(5):
            made = call(BACKUP, "--store", tmp_path / "store", tmp_path / f"copy{i}")
            assert made.returncode == 0, made.stderr
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    for i in range(5):
        study = Store(tmp_path / f"copy{i}" / "store").study("mine")
        for paths in (study.cell(f"k{i}") for i in range(4)):
            kept = sorted(paths.checkpoint.iterdir())
            assert kept and int(kept[-1].name) <= read_lines(paths.journal)[-1]["round"]
            for folder in kept:
                whole = str(int(folder.name)).encode() * 100_000
                assert {path.read_bytes() for path in folder.iterdir()} == {whole}
                assert len(list(folder.iterdir())) == 2


def _work(paths: CellPaths, stop: threading.Event) -> None:
    with held(paths, "a cell") as lease:
        train(lease, stop)
