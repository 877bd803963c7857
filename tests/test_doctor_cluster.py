"""What is wrong with a cluster is one fault: it is not there, does not let us in, or its nodes do
not share the store. Two nodes, and hosts with folders of their own, are in the slow tests."""

# ruff: noqa: F811 (fixtures that are imported are also arguments)
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import doctor_cluster, doctor_nodes, doctor_packages
from orchestrator.doctor_answers import clocks_line, lines
from orchestrator.doctor_cluster import There
from orchestrator.doctor_lines import FAULT, NOTE, READY, UNCHECKED, Line
from orchestrator.doctor_store import probed
from tests import heads
from tests.doctoring import TINY, Told, apart, banditgrid, doctor  # noqa: F401
from tests.heads import Head, free_ports
from tests.integration.hosts import Hosts
from tests.integration.nodes import Nodes

LONG = ("--timeout", "100")  # of a busy machine


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with heads.started() as made:
        yield made


@pytest.fixture
def trusted(head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    """The head, whose token this process has."""
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    return head


# ---- who is let in


def test_a_cluster_that_is_not_there_is_one_fault(
    doctor: Callable[..., Told],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "some")
    for address in (f"http://127.0.0.1:{free_ports(1)[0]}", f"127.0.0.1:{free_ports(1)[0]}"):
        found = doctor("--address", address)
        found.one_fault("ray", address, "start it", "--address")
        assert {line.check for line in found.of(UNCHECKED)} == {"store", "mlflow", "nodes"}


@contextmanager
def silent() -> Iterator[str]:
    """The host:port of something that takes connections and says nothing."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield f"127.0.0.1:{made.getsockname()[1]}"


@pytest.mark.parametrize(("form", "words"), [
    ("http://{}", ("not in time", "start it")),
    ("{}", ("takes connections and does not answer", "a Ray's head")),
])  # fmt: skip
def test_what_is_silent_is_one_fault_and_soon(
    doctor: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, form: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "some")
    monkeypatch.setattr(doctor_cluster, "JOIN_SECONDS", 3.0)
    monkeypatch.setattr(doctor_cluster, "PATIENCE", (1.0, 1.0))
    with silent() as address:
        began = time.monotonic()
        found = doctor("--address", form.format(address))
    found.one_fault("ray", address, *words)
    assert {line.check for line in found.of(UNCHECKED)} == {"store", "mlflow", "nodes"}
    assert time.monotonic() - began < 30


def test_what_is_no_address_is_one_fault(doctor: Callable[..., Told]) -> None:
    doctor("--address", "foo").one_fault("ray", "got 'foo'", "host:port")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its parent")
def test_what_waits_inside_goes_with_the_doctor(tmp_path: Path) -> None:
    """Killed, it leaves no process behind; and what waits inside ends by itself."""
    env = {**os.environ, "RAY_AUTH_TOKEN": "some", "RAY_AUTH_MODE": "token"}
    program = [sys.executable, "-m", "orchestrator.cli", "doctor", "--address"]
    with silent() as address:
        with subprocess.Popen([*program, address], cwd=tmp_path, env=env) as command:
            child = until(lambda: [c for c in psutil.Process(command.pid).children()
                                   if "--inside" in c.cmdline()])[0]  # fmt: skip
            maps = Path(f"/proc/{child.pid}/maps")
            until(lambda: "_raylet" in maps.read_text())  # it is about to join
            command.terminate()
        assert not psutil.wait_procs([child], timeout=10)[1]
        words = [*program, address, "--inside", "--timeout", "4"]
        ran = subprocess.run(words, cwd=tmp_path, env=env, timeout=60, check=False)
        assert ran.returncode == -signal.SIGALRM


def until(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    return found


def test_a_wrong_token_and_none_are_one_fault(
    doctor: Callable[..., Told],
    head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    doctor("--address", head.url).one_fault("ray", "no token for the cluster", "RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-this-one")
    found = doctor("--address", head.url)
    found.one_fault("ray", "does not take the token from RAY_AUTH_TOKEN", "give the token")
    assert "not-this-one" not in found.text


def test_a_password_that_a_job_would_tell_is_refused(
    doctor: Callable[..., Told],
    trusted: Head,
) -> None:
    uri = "http://me:secret@mlflow.example:5000"
    found = doctor("--address", trusted.url, "--tracking-uri", uri)
    found.one_fault("ray", "holds a password", "MLFLOW_TRACKING_USERNAME")
    assert "secret" not in found.text


# ---- a cluster of one node


def test_a_node_is_looked_at_by_a_job_and_nothing_is_left(
    doctor: Callable[..., Told],
    trusted: Head, grid_file: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    grid, store = grid_file(TINY), tmp_path / "shared" / "store"
    store.parent.mkdir()
    at = ("--address", trusted.url, "--store", store, *LONG)
    found = doctor(grid, *at)
    assert found.code == 0, found.text
    assert "takes the token" in found.line("ray").told
    assert "will be made: shared, and written, by 1 node" in found.line("store").told
    assert "tiny-qwen2" in found.line("models").told and "512" in found.line("data").told
    assert found.line("clock").grade == READY and "free" in found.line("disk").told
    assert not list(store.parent.iterdir()) and trusted.token not in found.text
    (store.parent / "store").write_text("")
    found = doctor(*at)
    found.one_fault("store", str(store), "is no folder", "--store")
    assert {line.check for line in found.of(UNCHECKED)} == {"mlflow"}


# ---- what the answers come to


@pytest.fixture
def request_of(tmp_path: Path, tiny: Callable[..., Any]) -> dict[str, Any]:
    cell = tiny().model_dump_json()
    return {"place": str(tmp_path), "probe": None, "here": os.getcwd(), "cells": [cell],
            "uri": None, "studies": ["s"], "env": {}, "seconds": 60.0}  # fmt: skip


def answer(host: str, request: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a node of this name tells: what this machine does."""
    made = doctor_nodes.probe_node(request)
    about = {"id": host * 8, "host": host, "trains": True, "ray_gpus": 0, "apart": 0.0}
    return made | about | changes


def there(tmp_path: Path) -> There:
    wanted = doctor_packages.asked()
    return There("http://h:8265", str(tmp_path), None, (), 0, wanted, (), 30.0)


def judged(nodes: list[dict[str, Any]], tmp_path: Path) -> list[Line]:
    told = {"nodes": nodes, "store": [], "place": str(tmp_path)}
    return list(lines(told, there(tmp_path), None))


def faults(found: list[Line]) -> list[Line]:
    return [line for line in found if line.grade == FAULT]


def test_a_node_that_does_not_see_the_store_is_the_one_fault(
    request_of: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_nodes, "SEEN_SECONDS", 0.1)
    with probed(tmp_path) as probe:
        sees = answer("one", request_of | {"probe": probe.name})
    blind = answer("two", request_of | {"probe": probe.name})  # it is gone: another folder
    absent = answer("three", request_of | {"probe": probe.name, "place": str(tmp_path / "no")})
    assert (sees["unseen"], sees["lines"][0]["grade"]) == ("", READY)
    (line,) = faults(judged([sees, blind, absent], tmp_path))
    assert line.check == "store" and "one:" not in line.told and "under one path" in line.remedy
    assert "two: another folder of that name" in line.told and "three: no such folder" in line.told


def test_nodes_that_are_silent_or_lack_packages_are_named(
    request_of: dict[str, Any], tmp_path: Path
) -> None:
    well = answer("one", request_of)
    silent = {name: well[name] for name in ("id", "host", "trains", "ray_gpus")} | {"host": "two"}
    (line,) = faults(judged([well, silent], tmp_path))
    assert line.check == "node" and line.told.startswith("two: it does not answer")
    versions = {k: v for k, v in well["versions"].items() if k != "trl"} | {"ray": "2.1.0"}
    (line,) = faults(judged([well, well | {"host": "two", "versions": versions}], tmp_path))
    assert "two: ray is 2.1.0" in line.told and "trl is not installed" in line.told
    assert "on every node" in line.remedy


def test_nodes_that_would_compute_unlike_are_a_note(
    request_of: dict[str, Any], tmp_path: Path
) -> None:
    well = answer("one", request_of)
    other = well | {"host": "two", "versions": well["versions"] | {"torch": "2.12.0"}}
    found = judged([well, other], tmp_path)
    (line,) = [line for line in found if line.check == "versions"]
    assert line.grade == NOTE and "2.12.0 on two" in line.told and not faults(found)
    shared = [line for line in found if line.check == "models"]
    assert [line.told.startswith("on every node: ") for line in shared] == [True]
    (line,) = [line for line in found if line.check == "mlflow"]
    assert line.grade == NOTE and "2 nodes would write to one SQLite file" in line.told


def test_a_clock_that_is_off_is_named() -> None:
    nodes = [{"name": "one", "apart": 0.2}, {"name": "two", "apart": -61.0}]
    assert clocks_line(nodes[:1], 0.0).grade == READY
    line = clocks_line(nodes, 30.0)
    assert line.grade == NOTE and "two: -61 s" in line.told and "the head" in line.told


# ---- several nodes


@pytest.mark.slow
def test_two_nodes_are_looked_at_by_a_job_and_from_within(
    grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    grid = grid_file(TINY)
    with Nodes() as nodes:
        nodes.start()
        for address in (nodes.dashboard, f"127.0.0.1:{nodes.port}"):
            found = Told(2, [], "")
            for _ in range(20):  # until the second node has joined
                words = [grid, "--address", address, "--store", tmp_path / "store", *LONG]
                found = apart(words, nodes.environment(), tmp_path)
                if sum(line.check == "node" for line in found.lines) == 2:
                    break
            assert found.code == 0, found.text
            assert "shared, and written, by 2 nodes" in found.line("store").told
            assert found.line("models").told.startswith("on every node: ")
        wrong = nodes.environment() | {"RAY_AUTH_TOKEN": "not-this-one"}
        words = ["--address", f"127.0.0.1:{nodes.port}", *LONG]
        found = apart(words, wrong, tmp_path)
        found.one_fault("ray", "does not take the token from RAY_AUTH_TOKEN")


@pytest.mark.slow
def test_a_host_with_a_folder_of_its_own_is_named(tmp_path: Path) -> None:
    """Each host has a /tmp of its own: a store there is not shared."""
    with Hosts(2) as hosts:
        hosts.start_ray(hosts.head)
        hosts.start_ray(*hosts.hosts[1:])
        words = ["--address", hosts.dashboard, "--store", "/tmp/store", *LONG]
        found = apart(list(words), hosts.environment(), tmp_path)
        line = found.one_fault("store", "/tmp/store", "share one folder between all nodes")
        assert "another folder of that name" in line.told
