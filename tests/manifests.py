"""The files of `deploy/` as tests read them: overlays put together, objects held to their schemas.

Kustomize is not needed: of what it does, this knows resources, generated ConfigMaps and JSON
patches, which is all that the files use. Leaves out what the objects should say
(`test_manifests.py`).
"""

from __future__ import annotations

import copy
import importlib.resources
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

ROOT: Final = Path(__file__).resolve().parent.parent
DEPLOY: Final = ROOT / "deploy"
SCHEMAS: Final = ROOT / "tests" / "data" / "manifests"
KUBERNETES: Final = "1.33.0"  # the oldest with what the manifests use, as far as was looked
OWN: Final = {"ray.io/v1": "ray.io-v1", "kueue.x-k8s.io/v1beta2": "kueue-v1beta2"}
Object = dict[str, Any]


def objects(folder: Path) -> list[Object]:
    """What `kubectl kustomize FOLDER` prints, in any order."""
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    made = [one for name in told.get("resources", []) for one in _resource(folder / name)]
    for generated in told.get("configMapGenerator", []):
        data = {Path(name).name: (folder / name).read_text() for name in generated["files"]}
        metadata = {"name": generated["name"], "namespace": generated["namespace"]}
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for patch in told.get("patches", []):
        operations = json.loads((folder / patch["path"]).read_text())
        hit = [one for one in made if _is_meant(one, patch["target"])]
        assert hit, f"{folder.name}/{patch['path']} patches nothing: {patch['target']}"
        for one in hit:
            patched(one, operations)
    return made


def _resource(path: Path) -> list[Object]:
    return objects(path.resolve()) if path.is_dir() else documents(path)


def documents(path: Path) -> list[Object]:
    """Objects of their own: YAML's anchors make one of several."""
    return [copy_of(one) for one in yaml.safe_load_all(path.read_text()) if one is not None]


def copy_of(one: Object) -> Object:
    return json.loads(json.dumps(one))  # type: ignore[no-any-return]


def _is_meant(one: Object, target: dict[str, str]) -> bool:
    return one["kind"] == target["kind"] and target.get("name") in (None, one["metadata"]["name"])


def patched(one: Object, operations: list[dict[str, Any]]) -> None:
    """Apply a JSON patch (RFC 6902): add, replace, remove. Raises where a path is not there."""
    for operation in operations:
        *parents, last = (
            word.replace("~1", "/").replace("~0", "~") for word in operation["path"].split("/")[1:]
        )
        place: Any = one
        for word in parents:
            place = place[int(word) if isinstance(place, list) else word]
        key = int(last) if isinstance(place, list) else last
        if operation["op"] != "add":
            place[key]  # Kustomize refuses a path that is not there
        if operation["op"] == "remove":
            del place[key]
        else:
            place[key] = copy.deepcopy(operation["value"])


def wrongs(one: Object) -> list[str]:
    """What the schema of an object's kind has against it; an unknown field is wrong."""
    validator = Draft202012Validator(_schema(one["apiVersion"], one["kind"]), registry=_registry())
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(one)]


def _schema(version: str, kind: str) -> dict[str, Any]:
    if version in OWN:
        return {"$ref": f"urn:{OWN[version]}#/definitions/{kind}"}
    group = version.partition("/")[0].partition(".")[0] + "-" if "/" in version else ""
    return _kubernetes(f"{kind}-{group}{version.rpartition('/')[2]}".lower())


@cache
def _registry() -> Registry[Any]:
    """Our own schemas name Kubernetes' definitions by their address, which is in them."""
    own = {
        f"urn:{name}": json.loads((SCHEMAS / f"{name}.json").read_text()) for name in OWN.values()
    }
    known = [(uri, DRAFT202012.create_resource(content)) for uri, content in own.items()]
    return DRAFT202012.create_resource(_kubernetes("_definitions")) @ Registry().with_resources(
        known
    )


@cache
def _kubernetes(name: str) -> dict[str, Any]:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    file = folder / f"v{KUBERNETES}-local-strict" / f"{name}.json"
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def values_of(content: Any, key: str) -> Iterator[Any]:
    """Every value under a key, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from values_of(value, key)
