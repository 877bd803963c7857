"""Kubernetes manifests: their schemas, what KubeRay and Kueue refuse, what the project promises.

No cluster is needed. Leaves out the other files of `deploy/` (`test_launchers.py`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grids.load import load_grid
from tests import manifests
from tests.manifests import DEPLOY, ROOT, Object

pytest.importorskip("kubernetes_validate", reason="install the extra deploy to check manifests")

KUBERAY = DEPLOY / "kuberay"
STUDIES = ("base", "cpu", "kueue")
# Made from this repository (deploy/images); who deploys them gives a registry and a tag or digest.
OWN_IMAGES = {"banditgrid:cpu", "banditgrid:cuda"}
SAVING_SECONDS = 180  # what deploy/kuberay/README.md promises a cell for its last round


def study(name: str) -> Object:
    (job,) = (one for one in manifests.objects(KUBERAY / name) if one["kind"] == "RayJob")
    return job


def pods(job: Object) -> list[Object]:
    """The head's pod, and one of each group."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def every_object() -> list[Object]:
    found = [one for name in STUDIES for one in manifests.objects(KUBERAY / name)]
    return found + manifests.documents(KUBERAY / "secrets.example.yaml")


# ---- schemas


@pytest.mark.parametrize("name", STUDIES)
def test_every_object_has_the_form_of_its_kind(name: str) -> None:
    for one in manifests.objects(KUBERAY / name):
        assert manifests.wrongs(one) == [], f"{one['kind']} {one['metadata']['name']}"


def test_the_example_of_secrets_has_their_form_and_no_value() -> None:
    secrets = manifests.documents(KUBERAY / "secrets.example.yaml")
    for one in secrets:
        assert manifests.wrongs(one) == []
        assert set(one["stringData"].values()) == {""} and "data" not in one
    wanted = {value["name"] for value in manifests.values_of(study("base"), "secretKeyRef")}
    wanted |= {study("base")["spec"]["rayClusterSpec"]["authOptions"]["secretName"]}
    assert {one["metadata"]["name"] for one in secrets} == wanted


@pytest.mark.parametrize(
    "path, value",
    [
        ("spec/preRuningDeadlineSeconds", 60),
        ("spec/submissionMode", "SideCarMode"),
        ("spec/backoffLimit", "3"),
        ("spec/deletionStrategy/deletionRules/0/condition/jobStatus", "STOPPED"),
        ("spec/deletionStrategy/deletionRules/0/condition/jobDeploymentStatus", "Failed"),
        ("spec/rayClusterSpec/authOptions/secret", "x"),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/securityContext/runAsNonroot", True),
        ("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/resource", {}),
        ("spec/rayClusterSpec/workerGroupSpecs/0/maxReplica", 8),
    ],
)
def test_a_misspelt_field_or_value_of_a_study_is_found(path: str, value: object) -> None:
    job = study("base")
    manifests.patched(job, [{"op": "add", "path": f"/{path}", "value": value}])
    assert manifests.wrongs(job)


@pytest.mark.parametrize(
    "name, kind, path, value",
    [
        ("base", "NetworkPolicy", "spec/policyType", ["Ingress"]),
        ("base", "PersistentVolumeClaim", "spec/accessMode", "ReadWriteMany"),
        ("base", "ConfigMap", "dta", {}),
        ("kueue", "ClusterQueue", "spec/resourceGroups/0/flavors/0/quota", 8),
        ("kueue", "LocalQueue", "spec/queue", "gpu"),
        ("kueue", "ResourceFlavor", "spec/nodeLabel", {}),
    ],
)
def test_a_misspelt_field_of_any_kind_is_found(
    name: str, kind: str, path: str, value: object
) -> None:
    one = next(one for one in manifests.objects(KUBERAY / name) if one["kind"] == kind)
    manifests.patched(one, [{"op": "add", "path": f"/{path}", "value": value}])
    assert manifests.wrongs(one)


@pytest.mark.parametrize("name", STUDIES)
def test_overlays_are_put_together_as_kustomize_does(name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, whose `kustomize` this compares with")
    told = subprocess.run(
        ["kubectl", "kustomize", str(KUBERAY / name)], check=True, capture_output=True, text=True
    )
    theirs = list(yaml.safe_load_all(told.stdout))
    assert by_name(theirs) == by_name(manifests.objects(KUBERAY / name))


def by_name(found: list[Object]) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


# ---- what KubeRay and Kueue refuse, though the schema allows it


@pytest.mark.parametrize("name", STUDIES)
def test_kuberay_takes_the_study(name: str) -> None:
    assert refusals(study(name)) == []


@pytest.mark.parametrize(
    "path, value, refusal",
    [
        ("spec/shutdownAfterJobFinishes", True, "deletionRules"),
        ("spec/ttlSecondsAfterFinished", 5, "ttlSecondsAfterFinished"),
        ("spec/deletionStrategy/deletionRules/0/policy", "DeleteWorkers", "DeleteWorkers"),
        ("spec/deletionStrategy/deletionRules/3/condition/ttlSeconds", 1, "before"),
        ("spec/submitterConfig", {"backoffLimit": 1}, "SidecarMode"),
        ("spec/rayClusterSpec/rayVersion", "2.51.0", "token"),
        (
            "spec/rayClusterSpec/headGroupSpec/template/spec/restartPolicy",
            "Always",
            "restartPolicy",
        ),
        ("spec/rayClusterSpec/workerGroupSpecs/0/suspend", True, "suspend"),
    ],
)
def test_what_kuberay_refuses_is_found(path: str, value: object, refusal: str) -> None:
    job = study("base")
    manifests.patched(job, [{"op": "add", "path": f"/{path}", "value": value}])
    assert any(refusal in told for told in refusals(job)), refusals(job)


def refusals(job: Object) -> list[str]:
    """Rules of KubeRay's own validation (ray-operator/controllers/ray/utils/validation.go)."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    scales = cluster.get("enableInTreeAutoscaling", False)
    restarts = {pod.get("restartPolicy", "Never") for pod in pods(job)}
    version = tuple(map(int, cluster["rayVersion"].split(".")))
    wrong = {
        "shutdownAfterJobFinishes and deletionRules": (
            rules and spec.get("shutdownAfterJobFinishes")
        ),
        "ttlSecondsAfterFinished without shutdownAfterJobFinishes": (
            spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes")
        ),
        "DeleteWorkers with an autoscaler": (
            scales and any(rule["policy"] == "DeleteWorkers" for rule in rules)
        ),
        "a later stage is to be deleted before an earlier one": not staged(rules),
        "SidecarMode with submitterConfig or submitterPodTemplate": (
            spec["submissionMode"] == "SidecarMode"
            and spec.keys() & {"submitterConfig", "submitterPodTemplate"}
        ),
        "token authentication before Ray 2.52": version < (2, 52),
        "restartPolicy other than Never": restarts != {"Never"},
        "suspend of a group": any("suspend" in group for group in cluster["workerGroupSpecs"]),
        "a name that is no DNS label of at most 47": (
            not re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
        ),
    }
    return [told for told, holds in wrong.items() if holds]


def staged(rules: list[Object]) -> bool:
    """Workers go before the cluster, the cluster before the job; and none of it twice."""
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    times: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = dict(rule["condition"])
        after = condition.pop("ttlSeconds", 0)
        of_one = times.setdefault(json.dumps(condition), {})
        if rule["policy"] in of_one:
            return False
        of_one[rule["policy"]] = after
    told = [[one[policy] for policy in order if policy in one] for one in times.values()]
    return all(seconds == sorted(seconds) for seconds in told)


def test_kueue_takes_its_variant() -> None:
    job = study("kueue")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] and "deletionStrategy" not in spec
    assert not spec["rayClusterSpec"]["enableInTreeAutoscaling"] and "clusterSelector" not in spec
    queue = job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    objects = by_name(manifests.objects(KUBERAY / "kueue"))
    cluster_queue = objects["LocalQueue", queue]["spec"]["clusterQueue"]
    groups = objects["ClusterQueue", cluster_queue]["spec"]["resourceGroups"]
    covered = {name for group in groups for name in group["coveredResources"]}
    assert all(("ResourceFlavor", f["name"]) in objects for g in groups for f in g["flavors"])
    for pod in pods(job):
        for container in pod["containers"]:
            assert container["resources"]["requests"].keys() <= covered
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


# ---- what the project promises


@pytest.mark.parametrize("name", STUDIES)
def test_nobody_without_the_token_is_answered(name: str) -> None:
    auth = study(name)["spec"]["rayClusterSpec"]["authOptions"]
    assert auth["mode"] == "token" and auth["secretName"]
    policy = next(o for o in manifests.objects(KUBERAY / name) if o["kind"] == "NetworkPolicy")
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    cluster = study(name)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert chosen <= group["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", STUDIES)
def test_pods_have_no_rights_that_they_do_not_need(name: str) -> None:
    for pod in pods(study(name)):
        assert (
            pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        )
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_pod_lives_until_its_cells_have_saved(name: str) -> None:
    for pod in pods(study(name)):
        for container in pod["containers"]:
            env = {one["name"]: one.get("value") for one in container["env"]}
            drained = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] or 0)
            assert SAVING_SECONDS <= drained <= pod["terminationGracePeriodSeconds"] - 20
    assert f"{SAVING_SECONDS} s" in (KUBERAY / "README.md").read_text()


@pytest.mark.parametrize("name", ["base", "cpu"])
def test_workers_come_when_cells_ask_and_go_after_them(name: str) -> None:
    cluster = study(name)["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


@pytest.mark.parametrize("name", STUDIES)
def test_cells_ask_for_as_many_workers_as_there_may_be(name: str) -> None:
    """Else the autoscaler starts none, or fewer than it might."""
    (group,) = study(name)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    asked = container["resources"]["requests"]
    each = asked["cpu"] if name == "cpu" else asked["nvidia.com/gpu"]
    words = study(name)["spec"]["entrypoint"].split()
    option = "--slots" if name == "cpu" else "--gpus"
    assert int(words[words.index(option) + 1]) == group["maxReplicas"] * int(each)
    assert ("--gpu-memory" in words) == (name != "cpu")


READ = """#!{python}
import sys
from typer.main import get_command
from grids.load import load_grids
from orchestrator.cli import app
context = get_command(app).commands[sys.argv[1]].make_context("run", sys.argv[2:])
print(*(grid.name for grid in load_grids(context.params["grids"])), context.params["address"])
"""


@pytest.mark.parametrize("name", STUDIES)
def test_the_entrypoint_finds_the_grids(name: str, tmp_path: Path) -> None:
    """KubeRay's shell, where no grid is, splits it; `ray job submit` quotes every word; a shell on
    the head, where the grids lie as a ConfigMap, runs it."""
    grids, program = tmp_path / "grids", tmp_path / "bin" / "banditgrid"
    line = study(name)["spec"]["entrypoint"].replace("/grids", str(grids))
    there = ["bash", "-c", f"printf '%s\\n' {line}"]
    words = subprocess.check_output(there, cwd=tmp_path, text=True).splitlines()
    data = grids / "..data"
    data.mkdir(parents=True)
    for one in ("b", "a"):
        text = (KUBERAY / "cpu" / "grid.yaml").read_text().replace("name: first", f"name: {one}")
        (data / f"{one}.yaml").write_text(text)
        (grids / f"{one}.yaml").symlink_to(f"..data/{one}.yaml")
    program.parent.mkdir()
    program.write_text(READ.format(python=sys.executable))
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        ["sh", "-c", shlex.join(words)], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert (told.stdout.split(), told.returncode) == (["a", "b", "auto"], 0), told.stderr


def test_the_small_study_is_a_grid_that_ends_soon() -> None:
    grid = load_grid(KUBERAY / "cpu" / "grid.yaml")
    cells = grid.cells()
    assert 2 <= len(cells) <= 4 and all(cell.rounds <= 20 for cell in cells)
    for pod in pods(study("cpu")):
        for container in pod["containers"]:
            assert "nvidia.com/gpu" not in json.dumps(container["resources"])
            assert container["image"] == "banditgrid:cpu"


def test_every_image_is_ours_or_pinned() -> None:
    images = {image for one in every_object() for image in manifests.values_of(one, "image")}
    assert images and images <= OWN_IMAGES
