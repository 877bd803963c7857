"""Whether a Ray that goes with this program answers at an address, told before anything is sent.

Ray's own client waits without limit for a host that is silent, lets the environment overrule the
address that it is given, and tells a wrong token by a traceback. Leaves out jobs (`jobs.py`).
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from grids.errors import InputError
from orchestrator import tokens
from orchestrator.marks import redacted

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

TIMEOUT: Final = (5.0, 60.0)  # seconds to connect, and to wait for an answer
OVERRULES: Final = "RAY_API_SERVER_ADDRESS"  # Ray heeds it more than the address it is given
OLDEST_PYTHON: Final = (3, 11)


@dataclass(frozen=True)
class Versions:
    """What has to agree between two ends of a cluster; None where an end does not tell."""

    ray: str
    python: str | None


def url_of(address: str) -> str:
    """The dashboard's address, checked; the same however it was written."""
    parts = urlsplit(address.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"--address: got {redacted(address)!r}; expected the address of the cluster's "
            "dashboard, which takes its jobs: http://HOST:8265"
        )
    if parts.username or parts.password:
        raise InputError(
            f"--address: {redacted(address)} names a user or a password; take them out: a cluster "
            f"knows its people by a token ({tokens.TOKEN})"
        )
    return address.strip().rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at an address.

    Raises `InputError` where no Ray answers there, the token is none of its, or it is a Ray, or has
    a Python, that does not go with ours.
    """
    url = url_of(address)
    tokens.require_token(url)
    check_versions(versions(url), ours(), url)
    return _client(url)


def _client(url: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Every request ends; Ray's own may wait for ever on a host that is cut off."""

        def _do_request(self, method: str, endpoint: str, **settings: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": TIMEOUT, **settings})

    before = os.environ.get(OVERRULES)
    os.environ[OVERRULES] = url
    try:
        return Client(url, headers=tokens.headers())
    finally:
        if before is None:
            del os.environ[OVERRULES]
        else:
            os.environ[OVERRULES] = before


def ours() -> Versions:
    import ray

    return Versions(ray.__version__, platform.python_version())


def versions(url: str) -> Versions:
    """What the cluster runs."""
    found = _get(url, "/api/version").get("ray_version")
    if not isinstance(found, str):
        raise InputError(_not_ray(url))
    try:
        told = _get(url, "/api/v0/cluster_metadata").get("data") or {}
    except InputError:  # it answers, and is a Ray that keeps this to itself
        told = {}
    return Versions(found, told.get("pythonVersion"))


def check_versions(theirs: Versions, ours: Versions, url: str) -> None:
    """Raise `InputError` where the first two numbers of a version differ."""
    if _minor(theirs.ray) != _minor(ours.ray):
        raise InputError(
            f"the cluster at {url} runs Ray {theirs.ray}, this machine has Ray {ours.ray}; "
            "install the cluster's version here, or this one there"
        )
    if theirs.python is None:
        return
    if _minor(theirs.python) < OLDEST_PYTHON:
        raise InputError(
            f"the cluster at {url} runs Python {theirs.python}; banditgrid needs "
            f"{'.'.join(map(str, OLDEST_PYTHON))} or newer on its nodes"
        )
    if _minor(theirs.python) != _minor(ours.python or theirs.python):
        raise InputError(
            f"the cluster at {url} runs Python {theirs.python}, this machine {ours.python}; "
            "submit from an environment with the cluster's Python"
        )


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _get(url: str, path: str) -> dict[str, Any]:
    """The object that the dashboard answers with."""
    import requests

    try:
        answer = requests.get(
            url + path, headers=tokens.headers(), timeout=TIMEOUT, allow_redirects=False
        )
    except requests.RequestException as error:
        raise InputError(silent(url, error)) from None
    if answer.status_code in (401, 403):
        raise InputError(_refused(url, answer.status_code))
    try:
        told = answer.json() if answer.status_code == 200 else None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise InputError(_not_ray(url))
    return told


def silent(url: str, error: Exception) -> str:
    kind = "not in time" if "Timeout" in type(error).__name__ else "no connection"
    return (
        f"no cluster answers at {url} ({kind}); start it with a dashboard (`ray start --head`, "
        "with ray[default] installed), or correct --address"
    )


def _refused(url: str, status: int) -> str:
    if status == 401:
        return (
            f"the cluster at {url} wants a token and {tokens.MODE} is `disabled`; unset it, and "
            f"give the cluster's token in {tokens.TOKEN}, {tokens.TOKEN_PATH} or {tokens.USUAL}"
        )
    return (
        f"the cluster at {url} does not take the token from {tokens.source()}; give the token that "
        f"its nodes were started with in {tokens.TOKEN}, {tokens.TOKEN_PATH} or {tokens.USUAL}"
    )


def _not_ray(url: str) -> str:
    return (
        f"what answers at {url} is not the dashboard of a Ray cluster; its port is 8265 unless "
        "`ray start` was told otherwise; correct --address"
    )
