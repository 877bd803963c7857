"""What the answers of a cluster's nodes come to: a line a node, and one for what they say alike.

Leaves out asking (`doctor_cluster.py`) and what runs on a node (`doctor_nodes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from orchestrator import doctor_machine as machine
from orchestrator.doctor_lines import READY, Line, broken, fault, lines_of, note, ready, unchecked
from orchestrator.doctor_mlflow import CLOCK_REMEDY, CLOCKS_APART, SKEW
from orchestrator.doctor_packages import Asked, fits, install, unfit
from orchestrator.doctor_store import disk_line
from orchestrator.marks import sqlite_path
from orchestrator.show import bytes_for_people, counted

if TYPE_CHECKING:
    from orchestrator.doctor_cluster import There

SAME: Final = ("torch", "transformers", "trl", "vllm")  # of which unlike versions compute unlike


def lines(told: dict[str, Any], there: There, apart: float | None) -> Iterator[Line]:
    """The lines of what the nodes answered."""
    nodes = _named(told["nodes"])
    answered = [node for node in nodes if "python" in node]
    for node in nodes:
        yield _silent(node) if node not in answered else _summary(node, there.asked)
    if answered:
        yield from _agreeing(answered)
        yield from _gpus(answered, there)
        yield from _merged(answered)
        yield clocks_line(answered, apart)
    yield from _store(told, answered, there)


def _named(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes with a name each: of several on one host, also the beginning of their id."""
    hosts = [node["host"] for node in nodes]
    several = {host for host in hosts if hosts.count(host) > 1}
    return [
        node | {"name": f"{node['host']}/{node['id'][:6]}" if node["host"] in several else
                node["host"]}
        for node in nodes
    ]  # fmt: skip


def _silent(node: dict[str, Any]) -> Line:
    why = node.get("failed") or "it does not answer, as where a file system hangs"
    remedy = "look at the node (`ray status`; its /tmp/ray/session_latest/logs), or take it away"
    return fault("node", f"{node['name']}: {why}", remedy)


def _summary(node: dict[str, Any], asked: Asked) -> Line:
    """What a node is; a fault where its packages do not fit."""
    name, here = node["name"], node["versions"]
    wrong = list(unfit(here, asked.base))
    if not fits(node["python"].rstrip("+"), asked.python):
        wrong.insert(0, f"Python is {node['python']} (asked for: {asked.python})")
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        remedy = f"install banditgrid on every node: {install()}"
        return fault("node", f"{name}: {', '.join(wrong[:4])}{more}", remedy)
    free = "" if node["disk"] is None else f", {bytes_for_people(node['disk'])} disk"
    memory = "" if node["memory"] is None else f", {bytes_for_people(node['memory'])} memory"
    gpus = [machine.Gpu(*gpu) for gpu in node["gpus"]]
    of = f"{len(gpus)} GPUs ({gpus[0].name}, {bytes_for_people(gpus[0].free)} free)" if gpus else ""
    told = f"{name}: Python {node['python']}, Ray {here['ray']}, torch {here['torch']}"
    return ready("node", f"{told}; {of or 'no GPU'}; free: {(memory + free).strip(', ')}")


def _agreeing(nodes: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """Unlike versions are no fault, but cells then differ in more than their settings."""
    for package in SAME:
        found: dict[str, list[str]] = {}
        for node in nodes:
            if node["trains"] and (version := node["versions"].get(package)):
                found.setdefault(version, []).append(node["name"])
        if len(found) > 1:
            told = "; ".join(f"{version} on {', '.join(on)}" for version, on in found.items())
            remedy = "install one version on all nodes (constraints.txt)"
            yield note("versions", f"{package} is {told}: cells would not compute alike", remedy)


def _gpus(nodes: Sequence[dict[str, Any]], there: There) -> Iterator[Line]:
    """Whether some node has the GPUs that the cells need."""
    cells = [cell for grid, _ in there.grids for cell in grid.cells()]
    for node in nodes:
        if node["gpus"] and not node["ray_gpus"]:
            told = f"{node['name']} has {len(node['gpus'])}, and its Ray was started without"
            yield note("gpu", told, "start its Ray with --num-gpus")
    training = [node for node in nodes if node["trains"]]
    largest = max(training, key=lambda node: len(node["seen"]), default=None)
    if largest is None:
        remedy = "start workers, or give the head processors (`ray start --num-cpus`)"
        yield note("nodes", "none of them takes cells now: no processor, no GPU", remedy)
        return
    seen = [size for node in training for size in node["seen"]]
    found = [machine.Gpu(*gpu) for gpu in largest["gpus"]]
    some, torch = machine.Gpus(found, largest["trouble"], seen), largest["versions"].get("torch")
    most = len(largest["seen"]) or None
    yield machine.gpu_lines(some, cells, torch or "", "the largest node", most)


def _merged(nodes: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """What several nodes say alike is one line with their names."""
    found: dict[Line, list[str]] = {}
    for node in nodes:
        for line in lines_of(node["lines"]):
            found.setdefault(line, []).append(node["name"])
    training = sum(node["trains"] for node in nodes)
    for line, names in found.items():
        on = "on every node" if len(names) == training > 1 else f"on {', '.join(names)}"
        if (line.check, line.grade) != ("clock", READY):
            yield line._replace(told=f"{on}: {line.told}")


def clocks_line(nodes: Sequence[dict[str, Any]], apart: float | None) -> Line:
    """The nodes' clocks against the one that asked them, and the head's against ours."""
    off = {node["name"]: node["apart"] for node in nodes if abs(node["apart"]) > CLOCKS_APART}
    if apart is not None and abs(apart) > CLOCKS_APART:
        off["the head (from this machine's)"] = apart
    if off:
        told = ", ".join(f"{name}: {value:+.0f} s" for name, value in off.items())
        return note("clock", f"{told}: {SKEW}", CLOCK_REMEDY)
    return ready("clock", f"those of {counted(len(nodes), 'node')} agree to {CLOCKS_APART:.0f} s")


def _store(told: dict[str, Any], nodes: Sequence[dict[str, Any]], there: There) -> Iterator[Line]:
    """The store as the nodes see it, and MLflow's database where it is a file."""
    here = lines_of(told["store"])
    wrong = [line for line in here if line.check == "store"]
    blind = {node["name"]: node["unseen"] for node in nodes if node["unseen"]}
    if not wrong and blind:
        listed = "; ".join(f"{name}: {why}" for name, why in sorted(blind.items()))
        remedy = "share one folder between all nodes, under one path, and name it with --store"
        wrong = [fault("store", f"not every node sees {there.store} ({listed})", remedy)]
    if wrong:
        yield from wrong
        if there.tracking_uri is None:
            yield unchecked("mlflow", "its database lies in the store")
        return
    made = "" if told["place"] == there.store else " will be made"
    yield ready(
        "store", f"{there.store}{made}: shared, and written, by {counted(len(nodes), 'node')}"
    )
    if free := [node["disk"] for node in nodes if node["disk"] is not None]:
        yield disk_line(min(free), there.needed)
    yield from _database(here, nodes, there)


def _database(
    here: Sequence[Line], nodes: Sequence[dict[str, Any]], there: There
) -> Iterator[Line]:
    if there.tracking_uri is not None and sqlite_path(there.tracking_uri) is None:
        return
    if broken(here) or len(nodes) < 2:
        yield from here
        return
    remedy = "start an MLflow server, and name it with --tracking-uri"
    yield note("mlflow", f"{len(nodes)} nodes would write to one SQLite file in the store", remedy)
