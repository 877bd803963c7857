"""The services of deploy/compose/compose.yaml as processes of this machine.

Docker Compose itself reads the file and .env. Each service runs the command, environment and health
check that the file gives it, in the order of its dependencies, with loopback for other services'
names, free ports for theirs, and folders for volumes. Two services are others than in the images:
PostgreSQL is Debian's, without the image's entry point, and RustFS, which nothing here can install,
is npm's s3rver; its health check is that it answers. Leaves out what containers do: networks,
read-only file systems, users, limits.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import psycopg2

from tests.conftest import ROOT
from tests.heads import free_ports
from tests.integration.common import wait_for
from tests.integration.s3 import SCRIPT, s3rver
from tests.integration.servers import Postgres
from tests.tools import tool

COMPOSE: Final = ROOT / "deploy" / "compose"
PORTS: Final = ("5432", "9000", "5000", "6379", "8265", "52365")
ONCE: Final = ("bucket", "users")
OWN: Final = "BANDITGRID_TEST_COMPOSED"
QUIET: Final = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Composed:
    """A context manager: all services of compose.yaml, healthy.

    Attributes:
        secrets: what make-env.sh wrote into .env.
        services: as Docker Compose understands them.
        seconds: that each service took until it was healthy, or done.
    """

    secrets: dict[str, str] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Composed:
        self._compose = tool("docker-compose")
        self.folder = Path(tempfile.mkdtemp(prefix="bg-", dir="/tmp"))  # Ray wants a short path
        self._mark = secrets.token_hex(16)
        self._modules = s3rver()
        self._ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        # Of a second node of Ray's on one machine, and one that compose.yaml does not name.
        self._agent, self._client = map(str, free_ports(2))
        self._postgres: Postgres | None = None
        try:
            self._read()
            for name in _in_order(self.services):
                began = time.monotonic()
                self._start(name)
                self.seconds[name] = round(time.monotonic() - began, 1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(_marked(self._mark), timeout=15)
        for left in (*alive, *_marked(self._mark)):
            left.kill()
        if self._postgres is not None:
            self._postgres.__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self._ports['5000']}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self._ports['8265']}"

    @property
    def gcs(self) -> str:
        return f"127.0.0.1:{self._ports['6379']}"

    @property
    def storage(self) -> str:
        return f"http://127.0.0.1:{self._ports['9000']}"

    @property
    def has_s3(self) -> bool:
        return self._modules is not None

    @property
    def store(self) -> Path:
        return self._volume("/store")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def once(self, name: str, **more: str) -> str:
        """Run a service that ends; answers what it printed."""
        done = subprocess.run(
            self._command(name), env=self.environment(name) | more, cwd=self.folder,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def environment(self, name: str) -> dict[str, str]:
        """Of a service: what compose.yaml says, and what stands for the image."""
        told = self.services[name].get("environment") or {}
        there = {key: self._here(str(value), name, key) for key, value in told.items()}
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self._volume("/home")), OWN: self._mark} | QUIET | there

    # ---- reading

    def _read(self) -> None:
        """Have the script make .env, and Docker Compose read both files."""
        for file in ("compose.yaml", "make-env.sh"):
            shutil.copy2(COMPOSE / file, self.folder)
        subprocess.run(["sh", "make-env.sh"], cwd=self.folder, check=True, capture_output=True)
        lines = (self.folder / ".env").read_text().splitlines()
        pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
        self.secrets = {name: value for name, _, value in pairs}
        told = subprocess.run(
            [self._compose, "-f", "compose.yaml", "config", "--format", "json"], cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder)}, capture_output=True, text=True,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        self.services = json.loads(told.stdout)["services"]

    # ---- starting

    def _start(self, name: str) -> None:
        if name == "postgres":
            return self._start_postgres()
        if name == "bucket" and not self.has_s3:
            return None
        if name in ONCE:
            (self.folder / f"{name}.log").write_text(self.once(name))
            return None
        if name != "storage" or self.has_s3:
            with (self.folder / f"{name}.log").open("w") as log:
                self._running.append(
                    subprocess.Popen(
                        self._command(name),
                        env=self._started(name),
                        cwd=self.folder,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )  # fmt: skip
                )
            process = self._running[-1]
            try:
                wait_for(name, lambda: self._is_healthy(name, process), timeout=180, every=0.5)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log(name)[-3000:]}") from None

    def _start_postgres(self) -> None:
        told = self.environment("postgres")
        assert told["POSTGRES_USER"] == "mlflow"
        postgres = Postgres(int(self._ports["5432"]), told["POSTGRES_PASSWORD"])
        self._postgres = postgres.__enter__()
        connection = psycopg2.connect(postgres.uri.replace("+psycopg2", ""))
        connection.autocommit = True
        connection.cursor().execute(f'CREATE DATABASE "{told["POSTGRES_DB"]}"')
        connection.close()
        wait_for("postgres", lambda: self._asked("postgres"), timeout=30)

    def _started(self, name: str) -> dict[str, str]:
        told = self.environment(name)
        if name == "storage":
            keys = {"S3_ACCESS_KEY": told["RUSTFS_ACCESS_KEY"]}
            return told | keys | {"S3_SECRET_KEY": told["RUSTFS_SECRET_KEY"]}
        if name == "mlflow" and not self.has_s3:
            return told | {"MLFLOW_ARTIFACTS_DESTINATION": str(self._volume("/artifacts"))}
        if not name.startswith("ray-"):
            return told
        ports = {
            "RAY_PORT": self._ports["6379"], "RAY_DASHBOARD_PORT": self._ports["8265"],
            "RAY_AGENT_PORT": self._port("52365", name), "RAY_DASHBOARD_HOST": "127.0.0.1",
            "RAY_NODE_IP": "127.0.0.1", "RAY_TEMP_DIR": str(self._volume(f"/{name}")),
            "RAY_OBJECT_STORE_BYTES": "100000000", "RAY_CLIENT_PORT": self._client,
        }  # fmt: skip
        return told | ports | ({"RAY_CPUS": "2"} if name == "ray-worker" else {})

    def _command(self, name: str) -> list[str]:
        if name == "storage":
            folder = str(self._volume("/data"))
            return ["node", str(SCRIPT), str(self._modules), self._ports["9000"], folder]
        first, *rest = self.services[name]["command"]
        programs = {
            "python": [sys.executable],
            "mlflow": [str(Path(sys.executable).parent / "mlflow")],
            "start-ray": ["sh", str(ROOT / "deploy" / "images" / "start-ray.sh")],
        }
        return [*programs[first], *(self._here(word, name) for word in rest)]

    # ---- health

    def _is_healthy(self, name: str, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, f"{name} ended"
        if name == "storage":
            return _answers(self.storage)
        return self._asked(name)

    def _asked(self, name: str) -> bool:
        """The service's own health check says that it is well."""
        kind, first, *rest = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        program = sys.executable if first == "python" else shutil.which(first)
        words = [str(program), *(self._here(word, name) for word in rest)]
        return subprocess.run(words, capture_output=True, timeout=30).returncode == 0

    # ---- from containers to this machine

    def _here(self, text: str, name: str, key: str = "") -> str:
        """A word of compose.yaml with loopback, our ports and our folders in it."""
        if key.endswith("HOST") and text in self.services:
            return "127.0.0.1"
        hosts = "|".join(map(re.escape, self.services))
        text = re.sub(rf"\b(?:{hosts}|0\.0\.0\.0)(?=:\d)|^--host=0\.0\.0\.0$", _loopback, text)
        text = re.sub(rf"(?<=[:=])(?:{'|'.join(PORTS)})\b", lambda m: self._port(m[0], name), text)
        if text in PORTS:
            return self._port(text, name)
        if text.startswith("/opt/mlflow/"):
            return text.replace("/opt/mlflow", str(ROOT / "deploy" / "mlflow"))
        return str(self._volume(text)) if text in ("/store", "/hub") else text

    def _port(self, port: str, name: str) -> str:
        return self._agent if (port, name) == ("52365", "ray-worker") else self._ports[port]

    def _volume(self, path: str) -> Path:
        folder = self.folder / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _loopback(found: re.Match[str]) -> str:
    return "--host=127.0.0.1" if found[0].startswith("--host") else "127.0.0.1"


def _in_order(services: dict[str, Any]) -> list[str]:
    """Services after those that they depend on."""
    done: list[str] = []
    while left := [name for name in services if name not in done]:
        ready = [name for name in left if set(services[name].get("depends_on") or ()) <= {*done}]
        assert ready, f"services wait for each other: {left}"
        done += sorted(ready)
    return done


def _marked(mark: str) -> list[psutil.Process]:
    """All processes that were started here, daemons too."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(OWN) == mark:
                found.append(process)
        except psutil.Error:
            pass
    return found


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=3).close()
    except HTTPError:  # it wants a signature
        return True
    except OSError:
        return False
    return True
