"""What travels to a cluster: the code as it is installed here, and grids that stand alone.

The nodes must have what the code needs (torch, TRL, Ray) but not the code: what travelled wins over
what is installed there. Equal content makes an equal package, which Ray keeps once. Models and data
of one's own do not travel: they lie where the nodes see them. Leaves out the sending (`jobs.py`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from grids.errors import InputError
from grids.grid import Grid
from grids.load import resolved
from orchestrator.keeping import copied
from orchestrator.marks import redacted

PACKAGES: Final = ("grids", "workers", "orchestrator", "analysis")
FOLDER: Final = "submitted"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*")
DIGITS: Final = 16


@dataclass(frozen=True)
class Shipped:
    """A grid as it travels."""

    grid: Grid
    text: str  # YAML that stands alone

    @classmethod
    def of(cls, grid: Grid, path: Path) -> Shipped:
        return cls(grid, resolved(path, _plugins_of(grid)))

    @property
    def path(self) -> str:
        """In the package."""
        return f"{FOLDER}/{self.grid.study}/{self.grid.name}.yaml"

    @property
    def digest(self) -> str:
        """Of what it asks for: its text, and its cells, which know their local files' content."""
        cells = sorted((c.key, c.eval_key, c.rounds) for c in self.grid.cells())
        return _digest(json.dumps([self.text, cells]).encode())


@dataclass(frozen=True)
class Parcel:
    """A folder that holds what travels."""

    folder: Path
    bytes: int
    code: str  # digest of the packages


@dataclass(frozen=True)
class Order:
    """One study to be run on a cluster; paths as its nodes see them.

    Raises `InputError` where the address of the tracking server holds a secret: what a job is
    started with can be read by everybody who can read the list of jobs.
    """

    study: str
    shipped: Sequence[Shipped]
    store: str
    models: str | None = None
    data: str | None = None
    tracking_uri: str | None = None
    slots: int | None = None
    attempts: int | None = None
    max_gpu_hours: float | None = None
    gpus: int | None = None  # that the cluster starts as cells ask for them
    gpu_memory: float | None = None  # GB of each

    def __post_init__(self) -> None:
        if self.tracking_uri is not None and _holds_secret(self.tracking_uri):
            raise InputError(
                f"--tracking-uri: {redacted(self.tracking_uri).partition('?')[0]} holds a password "
                "or a token, which every job of the cluster could read; take it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the nodes"
            )

    @property
    def digests(self) -> dict[str, str]:
        """Grid -> digest of all that its cells depend on; local copies replace the hub's files."""
        local = [self.models, self.data]
        return {
            one.grid.name: _digest(json.dumps([one.digest, *local]).encode())
            for one in self.shipped
        }

    @property
    def entrypoint(self) -> str:
        options = {
            "--address": "auto", "--store": self.store, "--models": self.models,
            "--data": self.data, "--tracking-uri": self.tracking_uri, "--slots": self.slots,
            "--attempts": self.attempts, "--max-gpu-hours": self.max_gpu_hours,
            "--gpus": self.gpus, "--gpu-memory": self.gpu_memory,
        }  # fmt: skip
        given = ((name, str(value)) for name, value in options.items() if value is not None)
        grids = (one.path for one in self.shipped)
        return command("run", *grids, *(word for pair in given for word in pair))


def _holds_secret(uri: str) -> bool:
    """A user, or a part of the query that is named like a secret, is in the address."""
    parts = urlsplit(uri)
    named = (name.lower() for name, _ in parse_qsl(parts.query))
    secret = ("password", "passwd", "pwd", "token", "secret")
    return "@" in parts.netloc or any(word in name for name in named for word in secret)


def command(*arguments: str) -> str:
    """The shell command of a job."""
    return shlex.join(["python3", "-m", "orchestrator.launch", *arguments])


@contextmanager
def packed(shipped: Sequence[Shipped] = ()) -> Iterator[Parcel]:
    """The package of some grids, for as long as it takes to send it."""
    with tempfile.TemporaryDirectory(prefix="banditgrid-") as made:
        folder = Path(made)
        for name in PACKAGES:
            shutil.copytree(_installed(name), folder / name, ignore=LEFT_OUT)
        code = _content(folder)
        for one in shipped:
            path = folder / one.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(one.text, encoding="utf-8")
            for spec in one.grid.plugin_specs:
                copied(Path(spec.path), path.parent / _plugins_of(one.grid))
        yield Parcel(folder, sum(path.stat().st_size for path in _files(folder)), code)


def _plugins_of(grid: Grid) -> str:
    """The folder of a grid's plug-ins, beside its file."""
    return f"{grid.name}.plugins"


def _installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package {package} is not installed as a folder")
    return Path(next(iter(spec.submodule_search_locations)))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
