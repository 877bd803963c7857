"""A store that cannot be written is one fault; MLflow's file is read and nothing else."""

# ruff: noqa: F811 (fixtures that are imported are also arguments)
from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from grids.paths import Store
from orchestrator import doctor_store
from orchestrator.doctor_lines import FAULT, NOTE, READY
from tests.doctoring import TINY, Told, banditgrid, doctor  # noqa: F401


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system at a folder; needs root."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False)
    if os.geteuid() != 0 or done.returncode:
        pytest.skip("only root mounts file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("options", "why"), [("ro", "Read-only"), ("size=4k", "No space left")])
def test_a_store_that_cannot_be_written_is_one_fault(
    doctor: Callable[..., Told], tmp_path: Path, options: str, why: str
) -> None:
    with mounted(tmp_path / "store", options) as store:
        found = doctor("--store", store)
        found.one_fault("store", str(store), why, "--store")
        assert [line.check for line in found.of("not checked")] == ["mlflow"]
        assert not list(store.iterdir())


@pytest.mark.parametrize("below", [".", "study"])
def test_a_file_in_place_of_the_store_is_one_fault(
    doctor: Callable[..., Told], grid_file: Callable[..., Path], tmp_path: Path, below: str
) -> None:
    (tmp_path / "store").write_text("")
    found = doctor(grid_file(TINY), "--store", tmp_path / "store" / below)
    found.one_fault("store", str(tmp_path / "store"), "is no folder", "--store")


def test_a_disk_too_small_for_the_grids_is_told(tmp_path: Path) -> None:
    assert doctor_store.disk_line(10**10, 0).grade == READY
    assert doctor_store.disk_line(10**9, 0).grade == NOTE
    assert "keep: none" in doctor_store.disk_line(10**10, 2 * 10**10).remedy
    found = {line.check: line.grade for line in doctor_store.look(Store(tmp_path), None, 10**18)}
    assert found == {"store": READY, "disk": FAULT, "mlflow": READY}, "one fault has no other"


@contextmanager
def database(path: Path, version: str) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as made:
        made.execute("create table alembic_version (version_num varchar(32))")
        made.execute("insert into alembic_version values (?)", [version])
        made.commit()
    yield


def test_mlflows_tables_are_those_of_the_installed_mlflow(
    doctor: Callable[..., Told], tmp_path: Path
) -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    newest = doctor_store.newest_schema()
    assert newest == _get_latest_schema_revision()
    for number, (version, words) in enumerate(
        [(doctor_store.schemas()[newest], ("older", "mlflow db upgrade")), ("ff", ("newer",))]
    ):
        path = tmp_path / f"{number}.db"
        with database(path, version):
            doctor("--tracking-uri", f"sqlite:///{path}").one_fault("mlflow", str(path), *words)
    with database(tmp_path / "good.db", newest):
        assert doctor("--tracking-uri", f"sqlite:///{tmp_path / 'good.db'}").code == 0
    found = doctor("--tracking-uri", f"sqlite:///{tmp_path / 'no' / 'm.db'}")
    found.one_fault("mlflow", "there is no folder", str(tmp_path / "no"), "make the folder")
    (tmp_path / "bad.db").write_text("this is text\n" * 100)
    found = doctor("--tracking-uri", f"sqlite:///{tmp_path / 'bad.db'}")
    found.one_fault("mlflow", "is no database of MLflow", "move it away")
