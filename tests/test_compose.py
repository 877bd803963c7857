"""deploy/compose and deploy/images by their own tools: Docker Compose, hadolint, ShellCheck.

Leaves out running them: tests/integration/test_compose.py starts the services as processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.tools import tool

COMPOSE = ROOT / "deploy" / "compose"
IMAGES = ROOT / "deploy" / "images"
DOCKERFILES = [IMAGES / "Dockerfile", IMAGES / "mlflow.Dockerfile"]
SCRIPTS = [COMPOSE / "make-env.sh", IMAGES / "start-ray.sh"]
DIGEST = r":[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}$"
ONCE = {"bucket", "users"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN$|ACCESS_KEY")


def made_env(folder: Path) -> Path:
    """compose.yaml and its like in a folder, with the .env that the script writes."""
    for file in COMPOSE.iterdir():
        if file.is_file() and file.name != ".env":
            shutil.copy2(file, folder)
    subprocess.run(["sh", "make-env.sh"], cwd=folder, check=True, capture_output=True)
    return folder / ".env"


def config(folder: Path, *files: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """What Docker Compose makes of the files, as JSON."""
    named = [word for file in files or ("compose.yaml",) for word in ("-f", file)]
    return subprocess.run(
        [tool("docker-compose"), *named, "config", "--format", "json"], cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **settings},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def services(folder: Path, *files: str, **settings: str) -> dict[str, Any]:
    told = config(folder, *files, **settings)
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)["services"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compose")
    made_env(made)
    return made


@pytest.fixture(scope="module")
def read(folder: Path) -> dict[str, Any]:
    return services(folder)


# ---- compose.yaml


def test_compose_takes_the_file_with_and_without_gpus(folder: Path, read: dict[str, Any]) -> None:
    assert {"postgres", "storage", "mlflow", "ray-head", "ray-worker"} | ONCE == set(read)
    cuda = services(folder, "compose.yaml", "compose.gpu.yaml")
    gpus = cuda["ray-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert [(one["driver"], one["count"], one["capabilities"]) for one in gpus] == [
        ("nvidia", -1, ["gpu"])
    ]
    assert cuda["ray-worker"]["build"]["target"] == "cuda"
    assert cuda["ray-worker"]["build"]["args"]["EXTRAS"] == "vllm"
    without = services(folder, "compose.yaml", "compose.gpu.yaml", EXTRAS="")
    assert without["ray-worker"]["build"]["args"]["EXTRAS"] == ""
    assert "devices" not in str(cuda["ray-head"])


def test_without_env_compose_says_what_to_run(tmp_path: Path) -> None:
    made_env(tmp_path).unlink()
    told = config(tmp_path)
    assert told.returncode != 0 and "run deploy/compose/make-env.sh" in told.stderr


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_every_variable_has_a_default_or_is_demanded_by_name(file: str) -> None:
    text = (COMPOSE / file).read_text(encoding="utf-8")
    used = re.findall(r"\$\{(\w+)([^}]*)\}", text)
    assert used and not re.search(r"\$(?!\{)", text)
    for name, rest in used:
        assert rest.startswith((":-", "-", ":?", ":+")), f"${{{name}{rest}}}"


def test_no_password_has_a_default() -> None:
    raw = yaml.safe_load((COMPOSE / "compose.yaml").read_text(encoding="utf-8"))
    seen = 0
    for name, service in raw["services"].items():
        for key, value in (service.get("environment") or {}).items():
            if SECRET.search(key) and key != "HF_TOKEN":
                seen += 1
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value)), f"{name}: {key}"
    assert seen >= 10


def test_nothing_listens_beyond_this_machine_unless_told(
    folder: Path, read: dict[str, Any]
) -> None:
    def listens(found: dict[str, Any]) -> dict[str, list[tuple[str, int, str]]]:
        return {
            name: [(one.get("host_ip", ""), one["target"], one["published"]) for one in ports]
            for name, service in found.items()
            if (ports := service.get("ports"))
        }

    assert listens(read) == {
        "mlflow": [("127.0.0.1", 5000, "5000")],
        "ray-head": [("127.0.0.1", 8265, "8265")],
    }
    told = listens(services(folder, BIND="0.0.0.0"))
    assert told["mlflow"] == [("0.0.0.0", 5000, "5000")]
    assert not [name for name, service in read.items() if service.get("network_mode")]


def test_what_only_mlflow_needs_reaches_nothing_else(read: dict[str, Any]) -> None:
    assert set(read["postgres"]["networks"]) == set(read["storage"]["networks"]) == {"behind"}
    assert {name for name, one in read.items() if "behind" in one["networks"]} == {
        "postgres", "storage", "bucket", "mlflow"
    }  # fmt: skip
    nodes = {*read["ray-head"]["environment"], *read["ray-worker"]["environment"]}
    assert not {"PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"} & nodes


def test_every_image_is_pinned(read: dict[str, Any]) -> None:
    for name, service in read.items():
        if "build" not in service:
            assert re.search(DIGEST, service["image"]), f"{name}: {service['image']}"
    for file in DOCKERFILES:
        text = file.read_text(encoding="utf-8")
        base = re.findall(r"^ARG PYTHON=(.*)$", text, re.M)
        assert len(base) == 1 and re.search(DIGEST, base[0])
        stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.M)
        names = {made for _, made in stages}
        assert all(source in {"${PYTHON}", *names} for source, _ in stages), stages


def test_services_are_shut_in_and_looked_after(read: dict[str, Any]) -> None:
    for name, service in read.items():
        assert service["read_only"] and service["init"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and not service.get("cap_add"), name
        if name in ONCE:
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"], name
        for other, how in (service.get("depends_on") or {}).items():
            done = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how["condition"] == done, (name, other)
    for name in ("mlflow", "bucket", "users", "ray-head", "ray-worker"):
        (home,) = (one for one in read[name]["tmpfs"] if one.startswith("/home/"))
        assert {"uid=10001", "gid=10001"} <= set(home.partition(":")[2].split(",")), name
    for name in ("ray-head", "ray-worker"):
        assert int(read[name]["shm_size"]) >= 2**30
        assert {one["target"] for one in read[name]["volumes"]} == {"/store", "/hub"}


def test_the_image_of_mlflow_is_named_by_its_version(read: dict[str, Any]) -> None:
    pinned = dict(_pins())
    assert read["mlflow"]["image"] == f"banditgrid-mlflow:{pinned['mlflow']}"


# ---- .env


def test_env_is_random_private_and_never_written_over(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        file = made_env(tmp_path / name)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        texts.append(file.read_text(encoding="utf-8"))
    first, second = (re.findall(r"^(\w+)=(.*)$", text, re.M) for text in texts)
    assert [name for name, _ in first] == [name for name, _ in second] and len(first) == 8
    values = [value for _, value in first + second]
    assert len(set(values)) == 16 and all(re.fullmatch("[0-9a-f]{48}", one) for one in values)
    again = subprocess.run(["sh", tmp_path / "one" / "make-env.sh"], capture_output=True, text=True)
    assert again.returncode == 0 and "stays as it is" in again.stderr
    assert (tmp_path / "one" / ".env").read_text(encoding="utf-8") == texts[0]
    assert sorted(path.name for path in (tmp_path / "one").glob(".env*")) == [".env"]


def test_env_names_all_that_compose_demands() -> None:
    demanded = re.findall(r"\$\{(\w+):\?", (COMPOSE / "compose.yaml").read_text(encoding="utf-8"))
    told = re.findall(r"^(?:# )?(\w+)=", SCRIPTS[0].read_text(encoding="utf-8"), re.M)
    assert set(demanded) <= set(told)
    text = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
    assert not [name for name in told if name.isupper() and f"${{{name}:" not in text]


# ---- images


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    told = subprocess.run([tool("hadolint"), file], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(file: Path) -> None:
    assert os.access(file, os.X_OK)
    subprocess.run(["bash", "-n", file], check=True)
    told = subprocess.run([tool("shellcheck"), file], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_nobody_in_particular(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"^USER (.*)$", text, re.M)[-1] == "10001:10001"
    installs = re.findall(r"pip install (.*?)(?:&&|\n(?! ))", text, re.S)
    assert installs and all("--constraint constraints.txt" in one or "--no-deps" in one
                            for one in installs)  # fmt: skip


def test_what_the_images_copy_is_let_in_and_secrets_are_not(tmp_path: Path) -> None:
    from docker.utils.build import exclude_paths

    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in rules if line and not line.startswith("#")]
    for path in (".env", "deploy/compose/.env", ".git/config", "store/x", "models/m/w.safetensors",
                 ".venv/bin/python", "grids/__pycache__/a.pyc"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert not {str(one) for one in exclude_paths(str(tmp_path), patterns)} & {
        ".env", "deploy/compose/.env", ".git/config", "store/x", "models/m/w.safetensors",
        ".venv/bin/python", "grids/__pycache__/a.pyc",
    }  # fmt: skip
    kept = {str(one) for one in exclude_paths(str(ROOT), patterns)}
    assert "workers/embedded/models/tiny-qwen2/model.safetensors" in kept
    for file in DOCKERFILES:
        for words in re.findall(r"^COPY (?!--from)(.*)$", file.read_text(), re.M):
            for source in words.split()[:-1]:
                assert source in kept, f"{file.name}: {source}"


def test_all_that_goes_into_an_image_has_a_version() -> None:
    pins = {canonicalize_name(name) for name, _ in _pins()}
    for line in (IMAGES / "mlflow.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert not (missing := set(_needed(Requirement(line))) - pins), (line, missing)
    for line in metadata.requires("banditgrid") or ():
        wanted = Requirement(line)
        if wanted.marker is None:
            assert not (missing := set(_needed(wanted)) - pins), (line, missing)


def _pins() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            yield name, version


def _needed(wanted: Requirement, seen: set[str] | None = None) -> set[str]:
    """The packages that a requirement brings here, itself included."""
    seen = set() if seen is None else seen
    if (name := canonicalize_name(wanted.name)) in seen:
        return seen
    try:
        brings = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return seen  # not on this platform
    seen.add(name)
    for line in brings:
        inner = Requirement(line)
        extras = ({"extra": extra} for extra in (*wanted.extras, ""))
        if inner.marker is None or any(inner.marker.evaluate(extra) for extra in extras):
            _needed(inner, seen)
    return seen


# ---- users.py, without a server


@pytest.fixture
def users() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("users", ROOT / "deploy" / "mlflow" / "users.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["users"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["users"]


def test_a_password_comes_from_the_environment_or_a_file(
    users: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ada.lovelace").write_text("from-a-file\n", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_PASSWORDS", str(tmp_path))
    assert users.password_of("ada.lovelace") == "from-a-file"
    monkeypatch.setenv("MLFLOW_PASSWORD_ADA_LOVELACE", "from-the-environment")
    assert users.password_of("ada.lovelace") == "from-the-environment"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(users.Wrong, match=r"no password for bob: give it in MLFLOW_PASSWORD_BOB"):
        users.password_of("bob")


def test_users_and_roles_are_read_from_one_line(users: ModuleType) -> None:
    assert users.named("ada=trainer, bob=reader") == [("ada", "trainer"), ("bob", "reader")]
    with pytest.raises(users.Wrong, match="expected NAME=ROLE"):
        users.named("ada")


def test_without_a_server_users_says_what_it_lacks(
    users: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert users.main(["list"]) == 2
    assert capsys.readouterr().err.startswith("MLFLOW_TRACKING_URI is not set")


def test_a_reader_has_no_right_to_write(users: ModuleType) -> None:
    assert set(users.ROLES["reader"].values()) == {"READ"}
    assert ("workspace", "*") not in users.ROLES["reader"]
    levels = users.ROLES["trainer"].values()
    assert "MANAGE" not in levels
    ini = (ROOT / "deploy" / "mlflow" / "basic_auth.ini").read_text(encoding="utf-8")
    assert "default_permission = NO_PERMISSIONS" in ini and "admin_password" not in ini
