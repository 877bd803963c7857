"""Backup, destruction, restore: PostgreSQL, MLflow with its users, artifacts, a store at work.

All real, the commands those of docs/operate.md. Leaves out buckets, and SQLite (test_backup.py
beside this folder; docs/operate.md's own blocks).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from grids import load_grid
from grids.paths import CellPaths, Store, read_lines
from tests.conftest import ROOT
from tests.integration.common import quiet, wait_for
from tests.integration.servers import Mlflow, Postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
COMMAND = Path(sys.executable).parent / "banditgrid"
DATABASES = ("mlflow", "mlflow_users")
SMALL = """\
name: small
study: kept
base: {rounds: 4, batch: 8, rollouts: 2, eval: {every: 2, test_questions: 40, train_questions: 8}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], advantage: [raw, grpo]}
seeds: [0, 1]
contrasts:
  - {name: estimator, a: {advantage: raw}, b: {advantage: grpo}, claim: superior, margin: 0.02}
"""
LONG = """\
name: long
study: kept
base: {rounds: 250, batch: 8, rollouts: 2, eval: {every: 10, test_questions: 40}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], advantage: [raw]}
seeds: [7]
"""


@dataclass
class Site:
    """A laboratory: its data bases, its MLflow, its store.

    Attributes:
        token: of the Ray that its runs start.
    """

    folder: Path
    postgres: Postgres
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    def __post_init__(self) -> None:
        self.home = self.folder / "mlflow"
        self.home.mkdir()
        address = self.postgres.uri.removesuffix("/postgres")
        config = self.home / "auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = {address}/{DATABASES[1]}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 60\n"  # a password is checked once and not at each call
        )
        self.password = secrets.token_hex(16)
        self.mlflow = Mlflow(
            f"{address}/{DATABASES[0]}", self.home, options=["--app-name=basic-auth"],
            environment={
                "MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            },
        )  # fmt: skip
        for name, text in (("small", SMALL), ("long", LONG)):
            (self.folder / f"{name}.yaml").write_text(text)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def environment(self) -> dict[str, str]:
        known = {
            "PGHOST": "127.0.0.1", "PGPORT": str(self.postgres.port), "PGUSER": "mlflow",
            "PGPASSWORD": self.postgres.password, "MLFLOW_TRACKING_URI": self.mlflow.uri,
            "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.password,
            "BANDITGRID_STORE": str(self.store.root), "HOME": str(self.folder),
        }  # fmt: skip
        return {**os.environ, **quiet(self.token), **known}

    def call(self, *command: object) -> str:
        made = subprocess.run(
            [str(word) for word in command], cwd=self.folder, env=self.environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert made.returncode == 0, f"{command}: {made.stdout[-3000:]}{made.stderr[-3000:]}"
        return made.stdout

    def cells(self, grid: str) -> list[CellPaths]:
        study = self.store.study("kept")
        return [study.cell(cell.key) for cell in load_grid(self.folder / f"{grid}.yaml").cells()]

    def tables(self, to: str) -> dict[str, bytes]:
        self.call(COMMAND, "tables", "small.yaml", "--out", to)
        return contents(self.folder / to)

    @contextmanager
    def training(self, grid: str) -> Iterator[subprocess.Popen[bytes]]:
        """A run in the background; interrupted at the end where it still goes on."""
        with (self.folder / f"{grid}.log").open("wb") as log:
            process = subprocess.Popen(
                [COMMAND, "run", f"{grid}.yaml"], cwd=self.folder, env=self.environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(120)

    def backup(self, to: Path) -> str:
        named = [word for name in DATABASES for word in ("--database", name)]
        place = ("--store", self.store.root, "--artifacts", self.home / "artifacts")
        return self.call(ROOT / "deploy/backup.sh", *place, *named, to)

    def restore(self, origin: Path) -> str:
        named = [word for name in DATABASES for word in ("--database", name)]
        place = ("--store", self.store.root, "--artifacts", self.home / "artifacts")
        return self.call(ROOT / "deploy/restore.sh", *place, *named, origin)

    def destroy(self) -> None:
        """All that counts: data bases, artifacts, the store."""
        self.mlflow.stop()
        for name in DATABASES:
            self.call("psql", "-d", "postgres", "-c", f"drop database {name} with (force)")
        shutil.rmtree(self.home / "artifacts")
        shutil.rmtree(self.store.root)

    def create(self) -> None:
        for name in DATABASES:
            self.call("psql", "-d", "postgres", "-c", f"create database {name}")

    def tracked(self, cells: list[CellPaths]) -> dict[str, Any]:
        """What MLflow tells of the runs of cells, by key; of the study's own run, under ''."""
        program = """if True:
            import hashlib, json, sys
            from pathlib import Path
            from mlflow.tracking import MlflowClient
            from mlflow.artifacts import download_artifacts
            client = MlflowClient()
            found = client.get_experiment_by_name("kept")
            told = {"": {"experiment": found.tags}}
            for run in client.search_runs([found.experiment_id]):
                key = run.data.tags.get("banditgrid.cell_key", "")
                if key and key not in sys.argv[1:]:
                    continue
                history = {
                    name: [(m.step, m.timestamp, repr(m.value))
                           for m in client.get_metric_history(run.info.run_id, name)]
                    for name in run.data.metrics
                }
                folder = Path(download_artifacts(run_id=run.info.run_id, artifact_path=""))
                artifacts = {
                    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
                    for path in sorted(folder.rglob("*")) if path.is_file()
                }
                told.setdefault(key, {})[run.info.run_id] = [
                    run.info.run_name, run.info.status, run.info.start_time, run.info.end_time,
                    run.data.params, run.data.tags, history, artifacts]
            print(json.dumps(told, sort_keys=True))
        """
        import json

        keys = [paths.directory.name for paths in cells]
        told: dict[str, Any] = json.loads(self.call(sys.executable, "-c", program, *keys))
        return told


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for program in ("pg_dump", "pg_restore", "psql"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here (Debian: postgresql-client)")
    with Postgres() as postgres:
        site = Site(tmp_path, postgres)
        site.create()
        with site.mlflow:
            yield site


def test_what_was_destroyed_comes_back(site: Site, tmp_path: Path) -> None:
    site.call(COMMAND, "run", "small.yaml")
    site.tables("seen")  # who looks at outcomes is noted, and told by later tables
    tables = site.tables("before")
    assert {"small.md", "small.csv"} <= set(tables)
    add_reader(site)

    # The copy is made while a cell is trained; the cell then ends as if nothing had been.
    (long,) = site.cells("long")
    with site.training("long") as process:
        wait_for("a checkpoint", lambda: rounds(long) > 25 or process.poll() is not None, 300)
        tracked = site.tracked(site.cells("small"))
        print(site.backup(tmp_path / "backup"))
        assert process.poll() is None, (site.folder / "long.log").read_text()[-3000:]
        assert process.wait(600) == 0
    assert len(tracked) == 5 and any("tables/small.md" in str(run) for run in tracked[""].values())
    whole = (long.journal.read_bytes(), digest(next(long.checkpoint.glob("*/model.safetensors"))))
    tracked_long = metrics(site.tracked([long])[long.directory.name])

    site.destroy()
    site.create()
    print(site.restore(tmp_path / "backup"))
    site.mlflow.start()

    assert site.tracked(site.cells("small")) == tracked
    assert site.tables("after") == tables
    assert reader_may_read_only(site)

    attempts = {paths: read_lines(paths.attempts) for paths in site.cells("small")}
    assert "nothing to train: all 4 cells are done" in site.call(COMMAND, "run", "small.yaml")
    assert {paths: read_lines(paths.attempts) for paths in site.cells("small")} == attempts
    assert all(run[:1] + run[4:] == tracked[key][name][:1] + tracked[key][name][4:]
               for key, found in site.tracked(site.cells("small")).items() if key
               for name, run in found.items())  # fmt: skip

    assert 10 <= rounds(long) < 250 and not long.done.exists()
    site.call(COMMAND, "run", "long.yaml")
    assert read_lines(long.attempts)[-1]["from_round"] >= 10, "it went on, and not from the start"
    assert long.journal.read_bytes() == whole[0]
    assert digest(next(long.checkpoint.glob("*/model.safetensors"))) == whole[1]
    assert metrics(site.tracked([long])[long.directory.name]) == tracked_long


def rounds(paths: CellPaths) -> int:
    lines = read_lines(paths.journal)
    return int(lines[-1]["round"]) if lines else 0


def metrics(runs: dict[str, Any]) -> dict[str, Any]:
    """The points of a cell's one run, but those of the machine, which no two runs share."""
    ((_, run),) = runs.items()
    return {name: points for name, points in run[6].items() if not name.startswith("system/")}


def add_reader(site: Site) -> None:
    """Somebody who may read: of MLflow's own users."""
    site.call(sys.executable, "-c", """if True:
        from mlflow.server import get_app_client
        import os
        client = get_app_client("basic-auth", os.environ["MLFLOW_TRACKING_URI"])
        client.create_user("reader", "a long password of a reader")
    """)  # fmt: skip


def reader_may_read_only(site: Site) -> bool:
    said = site.call(sys.executable, "-c", """if True:
        import os
        os.environ |= {"MLFLOW_TRACKING_USERNAME": "reader", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                       "MLFLOW_TRACKING_PASSWORD": "a long password of a reader"}
        from mlflow.tracking import MlflowClient
        client = MlflowClient()
        run = client.search_runs([client.get_experiment_by_name("kept").experiment_id])[0]
        try:
            client.set_tag(run.info.run_id, "by", "a reader")
        except Exception as error:
            print("read only:", error)
    """)  # fmt: skip
    return "read only:" in said
