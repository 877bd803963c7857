"""What `banditgrid doctor --address` says of a cluster, from one task on each of its nodes.

A dashboard's address is asked through a short job, as `submit` and `status` ask; a head's host:port
through a process that joins the cluster, as `run` does. Where nobody lets us in, what lies behind
is not checked. Leaves out what is looked at there (`doctor_nodes.py`), and what the answers come to
(`doctor_answers.py`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grids.errors import InputError
from grids.grid import Grid
from orchestrator import cluster, endpoint, tokens
from orchestrator.doctor_answers import lines
from orchestrator.doctor_child import JOINED, marked
from orchestrator.doctor_lines import Line, fault, note, of_error, ready, unchecked
from orchestrator.doctor_mlflow import PATIENCE, skew
from orchestrator.doctor_packages import Asked, leave
from orchestrator.jobs import ASKED, KIND, Cluster
from orchestrator.marks import redacted
from orchestrator.shipping import Order, Shipped, command, packed

BEHIND: Final = "store", "mlflow", "nodes"
LOOK_SECONDS = 0.5
JOIN_SECONDS = 40.0  # in which a process joins a cluster, on a busy machine


@dataclass(frozen=True)
class There:
    """What is asked of a cluster, in words of the command line.

    Attributes:
        grids: with the files that they were read from; empty where they cannot be read.
        needed: bytes that the cells are predicted to leave.
    """

    address: str
    store: str
    tracking_uri: str | None
    grids: Sequence[tuple[Grid, Path]]
    needed: int
    asked: Asked
    options: Sequence[str]  # --models and --data
    seconds: float

    def words(self, address: str, paths: Sequence[str]) -> list[str]:
        uri = ["--tracking-uri", self.tracking_uri] if self.tracking_uri else []
        more = ["--timeout", f"{self.seconds * 0.7:.0f}", *self.options]
        return ["doctor", "--inside", "--address", address, "--store", self.store, *uri, *more,
                *paths]  # fmt: skip


def look(there: There) -> Iterator[Line]:
    """All lines about the cluster, its nodes, the store as they see it, and MLflow from there."""
    began = time.monotonic()
    try:
        _check_address(there)
        if there.address.startswith(("http://", "https://")):
            apart, is_open = _head(endpoint.url_of(there.address))
            joined = Cluster(there.address)
            yield _head_line(joined.address, is_open)
            text = _by_job(joined, there, began + there.seconds * 0.9)
        else:
            cluster.check(there.address)
            apart, text = None, _by_process(there, began + there.seconds * 0.9)
            if marked(text) is not None:
                yield ready("ray", f"{there.address} lets this machine in")
    except InputError as error:
        yield of_error("ray", error)
        yield from (unchecked(name, "the cluster was not reached") for name in BEHIND)
        return
    told = marked(text)
    if told is None:
        yield _no_answer(text)
        return
    yield from lines(told, there, apart)


def _check_address(there: There) -> None:
    """Raise `InputError` where a job would tell everybody the user of MLflow."""
    if there.tracking_uri is not None:
        Order("doctor", (), store=there.store, tracking_uri=there.tracking_uri)


def _no_answer(text: str) -> Line:
    said = [line for line in redacted(text).splitlines() if line.strip() not in ("", JOINED)]
    errors = [line for line in said if line.startswith("error: ")]
    if errors:
        return of_error("nodes", InputError(errors[-1].removeprefix("error: ")))
    last = said[-1][:300] if said else "it said nothing"
    remedy = "look at the cluster's free memory and processors (`ray status`), or give --timeout"
    return fault("nodes", f"the look at the nodes gave no answer: {last}", remedy)


def _head(url: str) -> tuple[float | None, bool]:
    """The clock of the cluster's head minus this machine's, seconds, and whether the head answers
    somebody who has no token. Raises `InputError` where it is silent, sooner than `Cluster`."""
    import requests

    before = time.time()
    try:
        answer = requests.get(f"{url}/api/version", timeout=PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        raise InputError(endpoint.silent(url, error)) from None
    return skew(answer.headers.get("Date"), before, time.time()), answer.status_code == 200


def _head_line(url: str, is_open: bool) -> Line:
    if not is_open:
        return ready("ray", f"{url} answers, and takes the token")
    remedy = f"start every node with {tokens.MODE}=token, and one token in {tokens.TOKEN}"
    return note("ray", f"{url} answers anybody, and runs what anybody sends", remedy)


def _by_job(joined: Cluster, there: There, until: float) -> str:
    """What the command prints on the cluster; its job is stopped where it takes too long."""
    shipped = [Shipped.of(grid, path) for grid, path in there.grids]
    with packed(shipped) as parcel:
        leave(parcel.folder)
        words = there.words("auto", [one.path for one in shipped])
        job_id = joined.start(None, command(*words), str(parcel.folder), {KIND: ASKED})
    assert job_id is not None  # Ray chose it
    try:
        while not joined.job(job_id).over:
            if time.monotonic() > until:
                return "it did not end in time"
            time.sleep(LOOK_SECONDS)
        with joined.asking() as client:
            text = str(client.get_job_logs(job_id))
        return text if text.strip() else joined.job(job_id).message
    finally:
        if not joined.job(job_id).over:
            joined.stop(job_id)
        joined.sweep()


def _by_process(there: There, until: float) -> str:
    paths = [str(path.absolute()) for _, path in there.grids]
    words = [sys.executable, "-m", "orchestrator.cli", *there.words(there.address, paths)]
    with tempfile.TemporaryDirectory(prefix="banditgrid-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("wb") as told, err.open("wb") as errors:
            child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=told, stderr=errors)
        try:
            is_over = _await(child, out, there.address, until)
        finally:
            child.kill()
            child.wait()
        said, wrong = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
    if not is_over:
        return "it did not end in time"
    if child.returncode == 2 and wrong.startswith("error: "):
        raise InputError(wrong.strip().removeprefix("error: "))
    return said + wrong


def _await(child: subprocess.Popen[bytes], out: Path, address: str, until: float) -> bool:
    """Whether the process ended in time. Raises `InputError` where it is not let in, nor refused:
    Ray's own client waits for a head that is silent."""
    joined_by = min(until, time.monotonic() + JOIN_SECONDS)
    while child.poll() is None:
        now = time.monotonic()
        if now > joined_by and JOINED not in out.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"{address} takes connections and does not answer; look whether a Ray's head "
                "listens there (its port is 6379 unless `ray start` was told otherwise), or "
                "correct --address"
            )
        if now > until:
            return False
        time.sleep(0.1)
    return True
