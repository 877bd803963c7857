"""`ray up` and MLflow's chart: their own tools and keys, and what the project promises.

No cluster is needed. Leaves out Kubernetes' objects (`test_manifests.py`), SLURM's script
(`test_sbatch.py`), compose files and images.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
Object = dict[str, Any]


def test_no_file_holds_a_secret() -> None:
    """Everything that is named like one is empty, a reference, or the place where it is."""
    named = re.compile(
        r"(?i)(password|token|secret|access[-_]key)[\w-]*[\"']?\s*[:=]\s*[\"']?(\S+)"
    )
    allowed = re.compile(
        r"""^(["']{1,2}|"",?|\{.*|\$.*|banditgrid-.*|mlflow-.*|token[,;"']?|true|required.*|/.*|~/.*
        |ubuntu.*|optional:.*)$""",
        re.X,
    )
    for path in sorted(DEPLOY.rglob("*.yaml")) + sorted(DEPLOY.rglob("*.sbatch")):
        if "compose" in path.parts:
            continue  # their own tests
        for line in path.read_text().splitlines():
            for found in named.finditer(line.partition("#")[0]):
                assert allowed.match(found[2]), f"{path.name}: {line.strip()}"


# ---- MLflow's chart


def test_the_charts_values_are_values_that_it_has() -> None:
    values = yaml.safe_load((DEPLOY / "mlflow" / "values.yaml").read_text())
    known = yaml.safe_load(
        (ROOT / "tests" / "data" / "manifests" / "mlflow-chart.yaml").read_text()
    )
    assert unknown(values, known) == []
    assert unknown({"mlfow": {}}, known) == ["mlfow"]
    assert unknown({"probes": {"startup": {"period": 1}}}, known) == ["probes.startup.period"]
    assert unknown({"replicaCount": "1"}, known) == ["replicaCount"]


KINDS = {"string": str, "integer": int, "boolean": bool}


def unknown(values: Object, known: Object, at: str = "") -> list[str]:
    """Values that the chart does not have, or whose kind is another."""
    found = []
    for name, value in values.items():
        kind = known.get(name)
        if isinstance(kind, dict) and isinstance(value, dict):
            found += unknown(value, kind, f"{at}{name}.")
        elif kind is None or (kind != "any" and type(value) is not KINDS.get(kind)):
            found.append(f"{at}{name}")
    return found


def test_mlflows_server_knows_its_options() -> None:
    from mlflow.cli import server

    options = {name for option in server.params for name in option.opts}
    told = yaml.safe_load((DEPLOY / "mlflow" / "values.yaml").read_text())["server"]
    for name in (*told["value_options"], *told["flag_options"]):
        assert f"--{name.replace('_', '-')}" in options, name
    assert told["value_options"]["app_name"] == "basic-auth"
    hosts = set(told["value_options"]["allowed_hosts"].split(","))
    assert all(f"{host}:5000" in hosts for host in hosts if ":" not in host)
    settings = yaml.safe_load((DEPLOY / "kuberay" / "base" / "settings.yaml").read_text())
    assert settings["data"]["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts


def test_mlflow_starts_quietly_with_users() -> None:
    values = yaml.safe_load((DEPLOY / "mlflow" / "values.yaml").read_text())
    env = {one["name"]: one.get("value") for one in values["env"]}
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert values["image"] | {"tag": "3.17.2", "repository": "banditgrid-mlflow"} == values["image"]
    assert env["MLFLOW_AUTH_CONFIG_PATH"] and "@" not in values["mlflow"]["backendStoreUri"]


# ---- ray up


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_takes_the_file_of_a_cloud(cloud: str) -> None:
    """By Ray's own validator, in a process of its own; not with a field that it does not know."""
    code = (
        "import sys, yaml\n"
        "from ray.autoscaler._private.util import prepare_config, validate_config\n"
        "told = yaml.safe_load(open(sys.argv[1]))\n"
        "validate_config(prepare_config(dict(told)))\n"
        "try:\n"
        "    validate_config(prepare_config({**told, 'max_worker': 1}))\n"
        "except Exception:\n"
        "    print('refused')\n"
    )
    words = [sys.executable, "-c", code, str(DEPLOY / "ray-up" / f"{cloud}.yaml")]
    told = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1] == "refused"


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_cluster_in_a_cloud_is_closed_shared_and_spot(cloud: str) -> None:
    told: dict[str, Any] = yaml.safe_load((DEPLOY / "ray-up" / f"{cloud}.yaml").read_text())
    setup, head = "\n".join(told["setup_commands"]), "\n".join(told["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "RAY_AUTH_MODE=token" in setup
    assert "/home/ubuntu/.ray/auth_token" in told["file_mounts"]
    assert "--constraint ~/banditgrid/constraints.txt" in setup
    assert re.search(r"mount -t nfs4? .* /shared\)", setup)
    types = told["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"]
    assert re.search(r"spot|preemptible", json.dumps(types["gpu"]["node_config"]))


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_what_travels_to_a_cloud_is_the_program_without_passwords(
    cloud: str, tmp_path: Path
) -> None:
    """By rsync itself, as Ray calls it."""
    if shutil.which("rsync") is None:
        pytest.skip("no rsync here")
    told = yaml.safe_load((DEPLOY / "ray-up" / f"{cloud}.yaml").read_text())
    kept = {"workers/embedded/models/a.safetensors", "grids/data/a.yaml", "constraints.txt"}
    left = {".env", "deploy/compose/.env", ".git/config", ".venv/bin/python", "store/s/cells/k/a",
            "models/m/a.safetensors", "data/a", "tables/a", "bench/a", "gpu-report/a",
            "grids/__pycache__/a.pyc"}  # fmt: skip
    for name in kept | left:
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).touch()
    words = [word for name in told["rsync_exclude"] for word in ("--exclude", name)]
    command = ["rsync", "-a", *words, f"{tmp_path}/from/", f"{tmp_path}/to/"]
    subprocess.run(command, check=True, timeout=60)
    came = {str(p.relative_to(tmp_path / "to")) for p in (tmp_path / "to").rglob("*")
            if p.is_file()}  # fmt: skip
    assert came == kept
