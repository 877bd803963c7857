"""An MLflow server over HTTP, on PostgreSQL or SQLite, that a test can stop and start again.

PostgreSQL listens on loopback alone and asks for a password; MLflow listens where the test says.
Leaves out artifacts' proxies and MLflow's own users.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.common import free_port, wait_for

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
DEBIAN = Path("/usr/lib/postgresql")


@dataclass
class Postgres:
    """A context manager: a PostgreSQL server with an empty data base `mlflow`, gone at the end."""

    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://mlflow:{self.password}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Postgres:
        if (initdb := _postgres_program("initdb")) is None:
            pytest.skip("there is no PostgreSQL server here (initdb, postgres)")
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        data, word = self._folder / "data", self._folder / "word"
        word.write_text(self.password, encoding="utf-8")
        if os.geteuid() == 0:
            shutil.chown(self._folder, _unprivileged())
            shutil.chown(word, _unprivileged())
        made = subprocess.run(
            [*_as_nobody(), initdb, f"--pgdata={data}", "--username=mlflow", f"--pwfile={word}",
             "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"],
            capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise AssertionError(f"initdb: {made.stdout}{made.stderr}")
        self._log = (self._folder / "log.txt").open("w")
        self._process = subprocess.Popen(
            [*_as_nobody("--pdeathsig=INT"), initdb.replace("initdb", "postgres"),
             "-D", str(data), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
             "-c", f"unix_socket_directories={self._folder}", "-c", "fsync=off"],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_for("PostgreSQL", lambda: _listens("127.0.0.1", self.port), every=0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)  # a fast shutdown
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass
class Mlflow:
    """A context manager: an MLflow server.

    Attributes:
        backend: address of its data base.
        folder: for its log and artifacts.
        address: of this machine, as the clients see it.
        options: more words of the command; `environment`: more of its settings.
    """

    backend: str
    folder: Path
    address: str = "127.0.0.1"
    port: int = 0
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{self.address}:{self.port}"

    def __enter__(self) -> Mlflow:
        self.port = self.port or free_port(self.address)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with (self.folder / "mlflow.log").open("a") as log:
            self._process = subprocess.Popen(
                [*_dying_with_us(), sys.executable, "-m", "mlflow", "server", "--workers=1",
                 f"--host={self.address}", f"--port={self.port}",
                 f"--artifacts-destination={self.folder / 'artifacts'}", *self.options],
                env={**kept, **QUIET, **self.environment, "MLFLOW_BACKEND_STORE_URI": self.backend},
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            wait_for("MLflow", self.answers, timeout=120, every=0.2)
        except AssertionError:
            self.stop()
            raise AssertionError((self.folder / "mlflow.log").read_text()[-3000:]) from None

    def stop(self) -> None:
        """End it with all its processes: nothing listens on its port any more."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            wait_for("MLflow's end", lambda: not _listens(self.address, self.port), every=0.1)

    def answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "MLflow ended"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def sqlite(folder: Path) -> str:
    """The address of a SQLite data base in a folder."""
    return f"sqlite:///{folder / 'served.db'}"


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _postgres_program(name: str) -> str | None:
    """Where a server program of PostgreSQL is: Debian keeps them off PATH."""
    found = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(found[-1]) if found else shutil.which(name)


def _unprivileged() -> str:
    """A user that is not root: PostgreSQL refuses to run as root."""
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _as_nobody(*options: str) -> Sequence[str]:
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam(_unprivileged())
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, *options]


def _dying_with_us() -> Sequence[str]:
    """What a server is started with so that it does not outlive a test that was killed."""
    return ["setpriv", "--pdeathsig=INT"] if shutil.which("setpriv") else []
