"""A real head of a Ray cluster, with a dashboard and a token, for a test module.

Leaves out other nodes. Nothing of another cluster on the machine is touched: ports are free ones,
and only processes that carry the head's own mark are ended.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

MARK = "BANDITGRID_TEST_HEAD"
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider"
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # that it knows
EMPTY = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """Where it is, and what its people know."""

    url: str
    folder: Path
    address: str  # for a driver
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def environment(self) -> dict[str, str]:
        """Of those who may talk to it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def logs(self) -> Path:
        return self.folder / "session_latest" / "logs"


@contextmanager
def started(cpus: int = 1, workers: dict[str, Any] | None = None) -> Iterator[Head]:
    """A head in a folder of its own; Ray's sockets want a short path.

    `workers`: types of nodes that Ray's own fake provider starts here as they are asked for.
    """
    folder = Path(tempfile.mkdtemp(prefix="bg-", dir="/tmp"))
    ports = free_ports(4)
    head = Head(f"http://127.0.0.1:{ports[1]}", folder, f"127.0.0.1:{ports[0]}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    scaling = _scaling(head, cpus, workers, options) if workers else {}
    try:
        subprocess.run(
            [Path(sys.executable).with_name("ray"), "start", "--head", *options,
             f"--num-cpus={cpus}", f"--temp-dir={folder}", "--object-store-memory=104857600",
             "--disable-usage-stats", "--include-log-monitor=false"],
            env={**kept, **head.environment, **scaling, MARK: head.token}, check=True, timeout=120,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        yield head
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _scaling(head: Head, cpus: int, workers: dict[str, Any], options: list[str]) -> dict[str, str]:
    """Adds to the options of a head that starts workers; its environment."""
    own = {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "fake", "max_workers": 8, "idle_timeout_minutes": 1, "auth": {},
        **dict.fromkeys(EMPTY, ()), "file_mounts": {},
        "provider": {
            # By its module: the wheel lacks the defaults of the type "fake_multinode".
            "type": "external", "module": f"{FAKE}.FakeMultiNodeProvider",
            "launch_multiple": True, "gcs_address": head.address, "head_node_id": HEAD_ID,
        },
        "available_node_types": {HEAD_TYPE: own, **workers}, "head_node_type": HEAD_TYPE,
    }  # fmt: skip
    file = head.folder / "workers.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    options += [f"--autoscaling-config={file}", "--node-ip-address=127.0.0.1"]
    return {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }  # fmt: skip


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _end(head: Head) -> None:
    """Kill what the head started, jobs too."""
    for _ in range(3):  # one that is killed may have started another
        found = [process for process in psutil.process_iter() if _is_of(process, head)]
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=10)


def _is_of(process: psutil.Process, head: Head) -> bool:
    try:
        return process.environ().get(MARK) == head.token
    except psutil.Error:
        return False
