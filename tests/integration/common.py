"""What these tests share: waiting, free ports, the settings of a Ray that asks for a token."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody has, for now."""
    with socket.socket() as found:
        found.bind((address, 0))
        return int(found.getsockname()[1])


def quiet(token: str) -> dict[str, str]:
    """The settings of a Ray that takes only calls that know the token."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def wait_for(what: str, holds: Callable[[], Any], timeout: float = 60, every: float = 0.5) -> Any:
    """What `holds` answers as soon as it is true. Raises after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not (answer := holds()):
        assert time.monotonic() < until, f"{what}: not within {timeout:.0f} s"
        time.sleep(every)
    return answer
