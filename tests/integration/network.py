"""What hosts in network namespaces need of the machine that they are on. Needs root.

Leaves out the hosts (`hosts.py`).
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

# What a host has of its own.
APART = ("net", "mount", "uts", "ipc", "pid")
NUMBERS = itertools.count()


def missing() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "hosts in network namespaces need Linux and root"
    for program in ("ip", "unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            return f"hosts in network namespaces need the program {program} (iproute2, util-linux)"
    tried = subprocess.run(
        ["unshare", *(f"--{apart}" for apart in APART), "--fork", "--mount-proc", "true"],
        capture_output=True, text=True,
    )  # fmt: skip
    if tried.returncode:
        return f"this machine allows no namespaces: {tried.stderr.strip()}"
    name = bridge_name()
    tried = subprocess.run(
        ["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"this machine allows no bridge: {tried.stderr.strip()}"
    ip("link", "delete", name)
    return None


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def sweep() -> None:
    """Take away bridges whose test was killed before it could."""
    for link in json.loads(ip("-json", "link", "show", "type", "bridge") or "[]"):
        found = re.fullmatch(r"bg(\d+)\.\w+", link["ifname"])
        if found and not Path(f"/proc/{found[1]}").exists():
            subprocess.run(["ip", "link", "delete", link["ifname"]], capture_output=True)


def free_network() -> ipaddress.IPv4Network:
    """A private network that this machine has no route to."""
    routes = [
        r.get("dst", "") for r in json.loads(ip("-json", "-4", "route", "show", "table", "all"))
    ]
    taken = [ipaddress.ip_network(dst, strict=False) for dst in routes if re.match(r"\d", dst)]
    while True:
        found = ipaddress.IPv4Network(
            f"10.{77 + secrets.randbelow(100)}.{secrets.randbelow(256)}.0/24"
        )
        if not any(found.overlaps(other) for other in taken):
            return found


def bridge_name() -> str:
    """A name for a bridge that tells whose it is, short enough for a network device."""
    return f"bg{os.getpid()}.{next(NUMBERS)}"
