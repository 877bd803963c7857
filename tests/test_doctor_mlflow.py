"""A tracking server that is away, is none, or does not let us write: one fault, with its remedy."""

# ruff: noqa: F811 (fixtures that are imported are also arguments)
from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator import doctor_mlflow
from orchestrator.doctor_lines import NOTE, READY
from tests.conftest import ROOT
from tests.doctoring import TINY, Told, answering, banditgrid, doctor  # noqa: F401
from tests.heads import free_ports
from tests.integration.servers import Mlflow, sqlite


def test_an_mlflow_that_is_not_there_is_one_fault_without_its_password(
    doctor: Callable[..., Told],
) -> None:
    uri = f"http://me:secret@127.0.0.1:{free_ports(1)[0]}"
    found = doctor("--tracking-uri", uri)
    found.one_fault("mlflow", "no MLflow answers at http://***@127.0.0.1", "--tracking-uri")
    assert "secret" not in found.text


def test_a_silent_host_ends_the_wait(
    doctor: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_mlflow, "PATIENCE", (1.0, 1.0))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        found = doctor("--tracking-uri", f"http://127.0.0.1:{silent.getsockname()[1]}")
        found.one_fault("mlflow", "not in time")
    assert time.monotonic() - began < 20


def test_what_is_no_mlflow_is_told(doctor: Callable[..., Told]) -> None:
    with answering(200, {}, b"a page") as uri:
        doctor("--tracking-uri", uri).one_fault("mlflow", uri)
    doctor("--tracking-uri", "ftp://here").one_fault("mlflow", "ftp://here", "http://HOST:5000")


def test_a_database_without_its_driver_is_told(doctor: Callable[..., Told]) -> None:
    uri = "postgresql+asyncpg://me:secret@127.0.0.1:1/x"
    found = doctor("--tracking-uri", uri)
    found.one_fault("mlflow", "asyncpg", "not installed", "postgresql+psycopg2://")
    assert "secret" not in found.text


DATE = "Mon, 23 Nov 2026 10:00:00 GMT"
AT = 1795428000.0  # the same moment


@pytest.mark.parametrize(
    ("before", "after", "apart"),
    [
        (AT, AT + 0.2, 0.0),
        (AT + 0.9, AT + 1.0, 0.0),  # the header's second is not over
        (AT - 60, AT - 59.5, 59.5),
        (AT + 61, AT + 61.5, -60.0),
    ],
)
def test_a_clock_is_read_from_a_date(before: float, after: float, apart: float) -> None:
    assert doctor_mlflow.skew(DATE, before, after) == apart
    assert doctor_mlflow.skew(None, before, after) is None
    assert doctor_mlflow.skew("soon", before, after) is None


def test_clocks_apart_are_a_note_that_says_what_it_harms() -> None:
    assert doctor_mlflow.clock_line("MLflow", -2).grade == READY
    line = doctor_mlflow.clock_line("MLflow", 90)
    assert line.grade == NOTE and "90 s ahead of this one" in line.told
    assert "leases compare no clocks" in line.told and "chrony" in line.remedy


# ---- a real server that has users


class Server(NamedTuple):
    """Where it is, and its people's passwords."""

    uri: str
    passwords: dict[str, str]

    def be(self, monkeypatch: pytest.MonkeyPatch, user: str, password: str | None = None) -> None:
        """Talk to it as this user from now on."""
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        given = self.passwords[user] if password is None else password
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", given)


PEOPLE = ("boss", "ada", "bob")
ROLES = "ada=trainer bob=reader"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """MLflow with its own users, as deploy/ starts it, on SQLite."""
    pytest.importorskip("flask_wtf", reason="MLflow's users need the extra `dev` (Flask-WTF)")
    folder = Path(tempfile.mkdtemp(prefix="users-"))
    passwords = {name: secrets.token_hex(12) for name in PEOPLE}
    settings = (ROOT / "deploy/mlflow/basic_auth.ini").read_text(encoding="utf-8")
    users = f"database_uri = sqlite:///{folder / 'users.db'}\nadmin_username = boss"
    ini = folder / "users.ini"
    ini.write_text(settings.replace("database_uri = postgresql+psycopg2://", users))
    env = {"MLFLOW_AUTH_CONFIG_PATH": str(ini), "MLFLOW_AUTH_ADMIN_PASSWORD": passwords["boss"],
           "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16)}  # fmt: skip
    words = ("--app-name", "basic-auth", "--enable-workspaces")
    with Mlflow(sqlite(folder), folder, options=words, environment=env) as mlflow:
        given = {f"MLFLOW_PASSWORD_{name.upper()}": word for name, word in passwords.items()}
        subprocess.run(
            [sys.executable, ROOT / "deploy/mlflow/users.py", "sync"], check=True, timeout=120,
            capture_output=True,
            env={**os.environ, **given, "MLFLOW_TRACKING_URI": mlflow.uri, "MLFLOW_USERS": ROLES,
                 "MLFLOW_TRACKING_USERNAME": "boss", "MLFLOW_TRACKING_PASSWORD": passwords["boss"]},
        )  # fmt: skip
        yield Server(mlflow.uri, passwords)
    shutil.rmtree(folder)


@pytest.mark.parametrize("study", ["s", "made"])
def test_who_may_write_is_told_and_nothing_is_written(
    doctor: Callable[..., Told],
    grid_file: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch, study: str,
) -> None:  # fmt: skip
    from mlflow.tracking import MlflowClient

    server.be(monkeypatch, "boss")
    client = MlflowClient(server.uri)
    if study == "made":
        client.create_experiment("made")
    before = [experiment.name for experiment in client.search_experiments()]
    grid = grid_file(TINY.replace("study: s", f"study: {study}"))
    words = (grid, "--tracking-uri", server.uri)
    for user in ("boss", "ada"):
        server.be(monkeypatch, user)
        found = doctor(*words)
        assert found.code == 0 and f"{user} may write" in found.line("mlflow").told, found.text
        assert found.line("clock").grade == READY
    server.be(monkeypatch, "bob")
    what = "write to the experiment 'made'" if study == "made" else "make an experiment"
    found = doctor(*words)
    found.one_fault("mlflow", f"user bob may not {what}", "role trainer")
    server.be(monkeypatch, "boss")
    after = client.search_experiments()
    assert [experiment.name for experiment in after] == before
    assert client.search_runs([experiment.experiment_id for experiment in after]) == []
    assert not any(word in found.text for word in server.passwords.values())


def test_a_wrong_password_and_none_are_told_apart(
    doctor: Callable[..., Told],
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    server.be(monkeypatch, "ada", "not-this-one")
    found = doctor("--tracking-uri", server.uri)
    found.one_fault("mlflow", "no user 'ada' with this password", "MLFLOW_TRACKING_PASSWORD")
    assert "not-this-one" not in found.text
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name)
    found = doctor("--tracking-uri", server.uri)
    found.one_fault("mlflow", "asks for a user and a password", "MLFLOW_TRACKING_USERNAME")


def test_a_study_whose_experiment_was_deleted_is_told(
    doctor: Callable[..., Told],
    grid_file: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from mlflow.tracking import MlflowClient

    server.be(monkeypatch, "boss")
    client = MlflowClient(server.uri)
    made = client.create_experiment("gone")
    client.delete_experiment(made)
    grid = grid_file(TINY.replace("study: s", "study: gone"))
    found = doctor(grid, "--tracking-uri", server.uri)
    found.one_fault("mlflow", "'gone' was deleted", f"mlflow experiments restore -x {made}")
