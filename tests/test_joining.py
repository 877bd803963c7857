"""A driver that joins a cluster: what does not fit is one message, before anything is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grids.errors import InputError
from grids.paths import Store, write_json
from orchestrator import cluster, nodes
from tests.heads import Head, started

GRID = """
name: g
study: s
base: {rounds: 2, batch: 4, eval: {every: 2, test_questions: 4, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
"""
# What Ray says where versions differ, with other numbers in it.
MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.12.4
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started() as head:
        yield head


def gcs(head: Head) -> str:
    """The head's own address, from the arguments of its processes."""
    told = (head.folder / "ray_current_cluster").read_text().strip()
    return told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "g.yaml").write_text(GRID)
    return tmp_path


def run(head: Head, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = "from orchestrator.cli import main; main()"
    words = ["run", "g.yaml", "--store", "store", "--address", gcs(head)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env={**kept, **head.environment, **env},
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip


def test_a_wrong_token_is_one_message(head: Head, folder: Path) -> None:
    ran = run(head, folder, RAY_AUTH_TOKEN="0" * 64)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert "does not take the token from RAY_AUTH_TOKEN" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert "0" * 64 not in ran.stdout + ran.stderr
    assert not list(folder.glob("store/s/cells/*"))


def test_the_right_token_trains(head: Head, folder: Path) -> None:
    ran = run(head, folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 finished" in ran.stdout


def test_other_versions_are_one_message() -> None:
    told = cluster._not_let_in("10.0.0.1:6379", MISMATCH)
    assert "Python: 3.12.4" in told and "Python: 3.11.7" in told and "\n" not in told
    assert "banditgrid submit" in told


def test_a_dashboards_address_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="address of a dashboard.*give host:port"):
        cluster.check("http://10.0.0.1:8265")


@pytest.mark.parametrize("address", ["foo", "foo:bar", ":6379", "http:/foo"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(InputError, match="expected host:port of the cluster's head"):
        cluster.check(address)


def test_a_node_tells_what_is_wrong_with_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_json(store.identity, {"id": "one"})
    assert nodes._look(str(tmp_path), "one")[1] == ""
    assert nodes._look(str(tmp_path), "other")[1] == "another folder of that name"
    assert nodes._look(str(tmp_path / "none"), "one")[1] == "no such folder"
    assert [p.name for p in tmp_path.iterdir()] == ["store.json"], "the probe is taken away"
