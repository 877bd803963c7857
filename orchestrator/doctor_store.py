"""The store: whether it can be written, its free disk, and MLflow's database where that is a file.

A probe is written into the store's folder, or, where that is to be made yet, into the one that it
will be made in; it is taken away at once, and nothing is made. Leaves out whether nodes of a
cluster share it (`doctor_nodes.py`), and servers (`doctor_mlflow.py`).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from grids.paths import Store
from orchestrator.doctor_lines import Line, broken, fault, note, ready, unchecked
from orchestrator.marks import sqlite_path
from orchestrator.show import bytes_for_people

PROBE_BYTES = 64 * 1024  # an empty file can be made on a full disk
LITTLE_DISK = 2e9
REMEDY = "mend its permissions or free space, or name another folder with --store"


def anchor(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


@contextmanager
def probed(folder: Path) -> Iterator[Path]:
    """A file of `PROBE_BYTES` in a folder, on disk, gone at the end. Raises `OSError`."""
    path = folder / f".probe.{uuid.uuid4().hex[:12]}"
    try:
        with path.open("wb") as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        try:
            path.unlink(missing_ok=True)
        except OSError:  # a folder that takes no file has none
            pass


def look(store: Store, tracking_uri: str | None, needed: int) -> Iterator[Line]:
    """The store of this machine, and the tracking database that is a file.

    Args:
        store: where it is, or is to be made.
        tracking_uri: MLflow's address; None: the store's own database.
        needed: bytes that the cells are predicted to leave.
    """
    lines = list(store_lines(store, needed))
    yield from lines
    path = sqlite_path(tracking_uri or store.tracking_uri)
    if path is None:
        return
    if broken(lines[:1]) and tracking_uri is None:  # a disk too small is written all the same
        yield unchecked("mlflow", "its database lies in the store")
    else:
        yield database_line(path, tracking_uri is not None)


def store_lines(store: Store, needed: int) -> Iterator[Line]:
    root, place = store.root.absolute(), anchor(store.root)
    if not place.is_dir():
        yield fault("store", f"{root}: {place} is no folder", "name another folder with --store")
        return
    try:
        with probed(place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        yield fault("store", f"{place} cannot be written: {error.strerror}", REMEDY)
        return
    yield ready("store", f"{root}{'' if place == root else ' will be made'}: can be written")
    yield disk_line(free, needed)


def disk_line(free: int, needed: int) -> Line:
    """Free disk, against what the grids are predicted to leave there."""
    told = f"{bytes_for_people(free)} free"
    if needed:
        told += f"; these grids are predicted to take {bytes_for_people(needed)}"
    if free < needed:
        remedy = "free space, name another folder with --store, or take `keep: none`"
        return fault("disk", told, remedy)
    if free < LITTLE_DISK:
        return note("disk", told, "free space: a full disk fails cells")
    return ready("disk", told)


def database_line(path: Path, given: bool) -> Line:
    """MLflow's SQLite file: what is in it is read, and nothing else.

    Args:
        given: by --tracking-uri; the store's own folder is made before its database is.
    """
    if not path.exists():
        if given and not path.absolute().parent.is_dir():
            told = f"{path} cannot be made: there is no folder {path.absolute().parent}"
            return fault("mlflow", told, "make the folder, or correct --tracking-uri")
        if os.access(anchor(path), os.W_OK | os.X_OK):
            return ready("mlflow", f"{path} will be made")
        return fault("mlflow", f"{path} cannot be made", "name another address: --tracking-uri")
    if not os.access(path, os.W_OK):
        return fault("mlflow", f"{path} cannot be written", "mend its permissions")
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=5)) as database:
            found = [str(row[0]) for row in database.execute("select * from alembic_version")]
    except sqlite3.Error as error:
        remedy = "move it away: `banditgrid run` makes another and sends it what the store holds"
        return fault("mlflow", f"{path} is no database of MLflow ({error})", remedy)
    return schema_line(str(path), found, f"sqlite:///{path}")


def schema_line(name: str, found: list[str], uri: str) -> Line:
    """Whether a database's tables are those of the MLflow that is installed."""
    newest = newest_schema()
    if newest is None:
        return unchecked("mlflow", "the package mlflow is not installed")
    if found == [newest]:
        return ready("mlflow", f"{name}, its tables up to date")
    if found and found[0] not in schemas():
        remedy = "install the MLflow that wrote it"
        return fault("mlflow", f"{name} is of a newer MLflow than the one installed", remedy)
    remedy = f"copy it, then: mlflow db upgrade {uri}"
    return fault("mlflow", f"{name} is of an older MLflow than the one installed", remedy)


def newest_schema() -> str | None:
    """The version of MLflow's tables; None where it cannot be told. To import MLflow takes seconds,
    so the steps between its versions are read as text."""
    steps = schemas()
    heads = set(steps) - set(steps.values())
    return heads.pop() if len(heads) == 1 else None


def schemas() -> dict[str, str]:
    """Each version of MLflow's tables -> the one before."""
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        return {}
    found: dict[str, str] = {}
    for path in (Path(spec.origin).parent / "store/db_migrations/versions").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        named = re.search(r"^revision\s*=\s*[\"'](\w+)", text, re.MULTILINE)
        before = re.search(r"^down_revision\s*=\s*[\"'](\w+)", text, re.MULTILINE)
        if named:
            found[named[1]] = before[1] if before else ""
    return found
