"""Several hosts on one machine: namespaces of Linux, a bridge between them, Ray on each; as root.

Each host has its own network address, processes, boot id, host name, /tmp and /dev/shm, as a
machine of a cluster has; what the hosts share is what the test names, at the same path, and the
rest of the file system (the code). The machine that the test runs on is on the bridge as well: it
is the client, and where the servers are. When the test's process dies, its hosts die with it.
Leaves out slow or lossy links: a link is up or down. A folder that hosts share is no network file
system either: a host that is cut off still writes to it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.common import quiet
from tests.integration.network import APART, bridge_name, free_network, ip, missing, sweep
from tests.integration.processes import Process, processes_below

ROOT = Path(__file__).resolve().parent.parent.parent
PORT, DASHBOARD_PORT = 6379, 8265
# The first process of a host. It says when all is mounted, and ignores SIGCHLD so that the kernel
# reaps what others leave to it. Shared folders below /tmp are bound into the new /tmp before that
# one covers the old.
INIT = """
set -e
hostname {name}
mount -t tmpfs tmpfs {stage}
for folder in {shared}; do
  mkdir -p {stage}/"$folder"
  mount --bind /tmp/"$folder" {stage}/"$folder"
done
echo {boot} > {stage}/.boot
mount --bind {stage}/.boot /proc/sys/kernel/random/boot_id
mount --move {stage} /tmp
mount -t tmpfs tmpfs /dev/shm
mkdir /tmp/home
echo ready
trap '' CHLD
exec sleep infinity
"""


@dataclass
class Host:
    """One host.

    Attributes:
        link: the end of its cable that is plugged into the bridge.
        init: id, outside, of its first process, with which all others die.
    """

    name: str
    address: str
    link: str
    init: int
    holder: subprocess.Popen[str]


@dataclass
class Hosts:
    """A context manager: `count` hosts, the first of which is the head, and their bridge.

    Attributes:
        shared: folders that all hosts see at their path outside.
        env: for Ray and all that it starts; the token of the cluster is in it.
    """

    count: int = 3
    shared: Sequence[Path] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    hosts: list[Host] = field(default_factory=list)

    def __enter__(self) -> Hosts:
        if (reason := missing()) is not None:
            pytest.skip(reason)
        sweep()
        with ExitStack() as stack:
            self._stage = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stage-")))
            self._bridge = bridge_name()
            self._net = free_network()
            ip("link", "add", self._bridge, "type", "bridge")
            stack.callback(ip, "link", "delete", self._bridge)
            ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
            ip("link", "set", self._bridge, "up")
            stack.callback(self._power_off)
            for number in range(self.count):
                self.hosts.append(self._boot(number))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _power_off(self) -> None:
        for host in self.hosts:
            _end(host)

    @property
    def outside(self) -> str:
        """The address of the machine that the test runs on."""
        return str(self._net[1])

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def environment(self) -> dict[str, str]:
        """Of a client of the cluster, and of everything on a host."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))},
            **quiet(self.token),
            **self.env,
        }

    # ---- machines

    def _boot(self, number: int) -> Host:
        name, address = f"host{number}", str(self._net[11 + number])
        link = f"{self._bridge}.{number}"
        seen = [path.resolve() for path in (ROOT, Path(sys.prefix), *self.shared)]
        below = [path.relative_to("/tmp") for path in seen if path.is_relative_to("/tmp")]
        script = INIT.format(
            name=name, boot=uuid.uuid4(), stage=self._stage,
            shared=" ".join(shlex.quote(str(path)) for path in below),
        )  # fmt: skip
        apart = [*(f"--{apart}" for apart in APART), "--mount-proc"]
        holder = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", *apart, "--fork", "--kill-child",
             "bash", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            holder.kill()
            pytest.skip(f"{name} cannot have its own /tmp: mounting is not allowed here")
        init = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])
        host = Host(name, address, link, init, holder)
        self._plug(host)
        return host

    def _plug(self, host: Host) -> None:
        peer = ["peer", "name", "eth0", "netns", str(host.init)]
        ip("link", "add", host.link, "type", "veth", *peer)
        ip("link", "set", host.link, "master", self._bridge, "up")
        inside = ["nsenter", "--target", str(host.init), "--net", "ip"]
        for words in (
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{host.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["route", "add", "default", "via", self.outside],
        ):
            subprocess.run([*inside, *words], check=True, capture_output=True)

    def reboot(self, host: Host) -> Host:
        """A host that was killed, as it is after it was switched on again: nothing runs on it."""
        number = self.hosts.index(host)
        _end(host)
        self.hosts[number] = self._boot(number)
        return self.hosts[number]

    def cut(self, host: Host) -> None:
        """Unplug its network cable: what it sends is lost, and nobody is told."""
        ip("link", "set", host.link, "down")

    def join(self, host: Host) -> None:
        """Plug its network cable in again."""
        ip("link", "set", host.link, "up")

    # ---- processes

    def start(self, host: Host, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on a host, as from its console; do not wait for it."""
        enter = ["nsenter", "--target", str(host.init), *(f"--{apart}" for apart in APART)]
        here = {**self.environment(), "HOME": "/tmp/home"}
        return subprocess.Popen([*enter, "--wd=/", "--", *command], env=here, text=True, **options)

    def run(self, host: Host, command: Sequence[str], timeout: float = 60) -> str:
        """Run a command on a host; its output. Raises where it fails."""
        piped = self.start(host, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with piped as process:
            try:
                told, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, f"{host.name}: {shlex.join(command)}\n{told}"
        return told

    def processes(self, host: Host, matching: str = "") -> list[Process]:
        """The processes of a host whose command line has a match of the pattern."""
        return [p for p in processes_below(host.init) if re.search(matching, p.command)]

    def kill_host(self, host: Host) -> int:
        """End all processes of a host without a word to them; how many. Its kernel stays up."""
        killed: set[int] = set()
        while left := [p for p in self.processes(host) if p.pid not in killed]:
            for process in left:
                process.kill()
                killed.add(process.pid)
        return len(killed)

    # ---- Ray

    def start_ray(self, *hosts: Host, cpus: int = 1) -> None:
        """Start Ray on hosts: the head on the first of all, nodes of it on the others, which need
        a head that runs. Each node has one of a resource with its host's name."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: self._start_ray(host, cpus), hosts))

    def _start_ray(self, host: Host, cpus: int) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        words = [
            "start", f"--node-ip-address={host.address}", f"--num-cpus={cpus}",
            f"--object-store-memory={100 * 2**20}", "--disable-usage-stats",
            f"--resources={json.dumps({host.name: 1})}",
        ]  # fmt: skip
        if host is self.head:
            words += ["--head", f"--port={PORT}", "--dashboard-host=0.0.0.0"]
            words += [f"--dashboard-port={DASHBOARD_PORT}", "--include-dashboard=true"]
        else:
            words += [f"--address={self.head.address}:{PORT}"]
        self.run(host, [ray, *words], timeout=120)


def _end(host: Host) -> None:
    """Switch a host off. Its network namespace and its link go with its last process."""
    try:
        os.kill(host.init, signal.SIGKILL)
    except ProcessLookupError:
        pass
    host.holder.wait()
    if host.holder.stdout is not None:
        host.holder.stdout.close()
    subprocess.run(["ip", "link", "delete", host.link], capture_output=True)
