"""A tracking server: whether it answers, knows the user, and lets that user write.

Nothing is made there. Who may write is asked by a request that the server must refuse: it lacks
what the server looks at only after it has looked at who asks. 403 then means that the user may not,
400 that the user may. Leaves out databases that are files (`doctor_store.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any, Final
from urllib.parse import quote

from grids.errors import InputError
from orchestrator.access import FORBIDDEN, NAMES, UNKNOWN
from orchestrator.doctor_lines import Line, fault, note, of_error, ready
from orchestrator.doctor_store import schema_line
from orchestrator.marks import redacted

PATIENCE: Final = (5.0, 5.0)  # seconds to connect, and to wait for an answer
API: Final = "/api/2.0/mlflow"
CLOCKS_APART = 5.0  # seconds; a `Date` header is told to the second
SKEW: Final = (
    "times in registrations, logs and MLflow are off by that, and the ages that `status` tells; "
    "leases compare no clocks"
)
CLOCK_REMEDY: Final = "set the clock, or have chrony or ntpd keep it"


def look(uri: str, studies: Iterable[str]) -> Iterator[Line]:
    """The server, or the data base, at an address."""
    if uri.startswith(("http://", "https://")):
        yield from _server(uri.rstrip("/"), sorted(set(studies)))
    elif uri.partition("://")[0].partition("+")[0] in ("postgresql", "mysql", "mssql"):
        yield _database(uri)
    else:
        remedy = "give http://HOST:5000, or leave --tracking-uri out"
        yield fault("mlflow", f"{redacted(uri)} is no address of a tracking server", remedy)


def _database(uri: str) -> Line:
    import sqlalchemy

    try:
        with sqlalchemy.create_engine(uri).connect() as database:
            made = sqlalchemy.inspect(database).has_table("alembic_version")
            told = sqlalchemy.text("select version_num from alembic_version")
            found = [str(row[0]) for row in database.execute(told)] if made else []
    except Exception as error:  # of whichever driver it is
        if isinstance(error, ModuleNotFoundError):
            return _without_driver(uri, str(error.name))
        first = redacted(error).strip().splitlines()[0][:200]
        remedy = "start it, or correct --tracking-uri"
        return fault("mlflow", f"no data base answers at {redacted(uri)} ({first})", remedy)
    if not made:
        return ready("mlflow", f"{redacted(uri)} is empty: MLflow makes its tables there")
    return schema_line(redacted(uri), found, "ADDRESS")


def _without_driver(uri: str, package: str) -> Line:
    remedy = f"install {package}"
    if uri.startswith("postgresql"):  # without a driver's name SQLAlchemy takes psycopg
        remedy = "write postgresql+psycopg2://..., whose driver banditgrid brings"
    told = f"{redacted(uri)} needs the package {package}, which is not installed"
    return fault("mlflow", told, remedy)


def _server(uri: str, studies: list[str]) -> Iterator[Line]:
    import requests

    try:
        before = time.time()
        answer = requests.get(f"{uri}/health", timeout=PATIENCE, allow_redirects=False)
        apart = skew(answer.headers.get("Date"), before, time.time())
    except requests.RequestException as error:
        kind = "not in time" if "Timeout" in type(error).__name__ else "no connection"
        remedy = "start it, correct --tracking-uri, or leave it out for a file in the store"
        yield fault("mlflow", f"no MLflow answers at {redacted(uri)} ({kind})", remedy)
        return
    line = _allowed(uri, studies)
    yield line
    if apart is not None and line.grade == "ready":
        yield clock_line("MLflow", apart)


def skew(date: str | None, before: float, after: float) -> float | None:
    """A server's clock minus ours, seconds, by the `Date` header of an answer.

    Times are told in whole seconds and the answer took some: what that explains is 0.
    """
    try:
        told = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    ahead, behind = told - after, told + 1 - before
    return ahead if ahead > 0 else behind if behind < 0 else 0.0


def clock_line(whose: str, apart: float) -> Line:
    if abs(apart) <= CLOCKS_APART:
        return ready("clock", f"{whose}'s agrees with this one to {CLOCKS_APART:.0f} s")
    how = "ahead of" if apart > 0 else "behind"
    told = f"{whose}'s is {abs(apart):.0f} s {how} this one: {SKEW}"
    return note("clock", told, CLOCK_REMEDY)


def _allowed(uri: str, studies: list[str]) -> Line:
    """Whether our user may read and write there."""
    from orchestrator.tracking import connect, quiet_client

    quiet_client(uri)  # sets how long a request waits
    try:
        connect(uri)
    except InputError as error:
        return _refused(error)
    name = _name(_ask(uri, f"{API}/users/current"))
    for study in studies or [""]:
        if (line := _may_write(uri, study, name)) is not None:
            return line
    of, ours = _version(uri), metadata.version("mlflow")
    told = f"{redacted(uri)} answers{f', and {name} may write' if name else ' and takes writes'}"
    if of and of.split(".")[:2] != ours.split(".")[:2]:
        remedy = f"install MLflow {of} here, or {ours} there, should calls fail"
        return note("mlflow", f"{told}; it is MLflow {of}, and here is {ours}", remedy)
    return ready("mlflow", told)


def _refused(error: InputError) -> Line:
    """A message of `access.refusal` has what to do after a colon."""
    parted = re.fullmatch(r"(.*): ((?:set|correct|name one) .*)", redacted(error), re.DOTALL)
    if parted and NAMES in parted[2]:
        return fault("mlflow", parted[1], parted[2])
    return of_error("mlflow", error)


def _may_write(uri: str, study: str, name: str) -> Line | None:
    """The line that says why a study cannot be written; None where it can."""
    found = _experiment(uri, study) if study else None
    if found is not None and found.get("lifecycle_stage") == "deleted":
        remedy = (
            f"mlflow experiments restore -x {found['experiment_id']}, or give the grid another "
            "`study:`"
        )
        return fault("mlflow", f"its experiment {study!r} was deleted", remedy)
    if found is None:  # no name: it could not be made
        answer = _ask(uri, f"{API}/experiments/create", {})
    else:  # no number of milliseconds: neither could this
        wrong = {"experiment_id": found["experiment_id"], "start_time": "none"}
        answer = _ask(uri, f"{API}/runs/create", wrong)
    if answer.status_code == 400:
        return None
    if answer.status_code in (UNKNOWN, FORBIDDEN):
        what = "make an experiment" if found is None else f"write to the experiment {study!r}"
        who = f"user {name}" if name else "whoever asks from here"
        remedy = f"name one with the role trainer in {NAMES}, or ask its admin for that role"
        return fault("mlflow", f"{redacted(uri)}: {who} may not {what}", remedy)
    told = f"{redacted(uri)} did not tell whether it takes writes (HTTP {answer.status_code})"
    return note("mlflow", told, "look at the server's log")


def _experiment(uri: str, study: str) -> dict[str, Any] | None:
    answer = _ask(uri, f"{API}/experiments/get-by-name?experiment_name={quote(study)}")
    made = answer.json() if answer.status_code == 200 else {}
    found: dict[str, Any] | None = made.get("experiment")
    return found


def _name(answer: Any) -> str:
    """Of the user that the server takes us for; empty where it knows no users."""
    try:
        told = answer.json() if answer.status_code == 200 else {}
    except ValueError:
        return ""
    return str(told.get("user", told).get("username", "")) if isinstance(told, dict) else ""


def _version(uri: str) -> str:
    answer = _ask(uri, "/version")
    told = answer.text.strip() if answer.status_code == 200 else ""
    return told if told[:1].isdigit() and len(told) < 30 else ""


def _ask(uri: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """The server's answer, whatever it is, to a request with our user and password."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    more = {} if content is None else {"json": content}
    return http_request(
        get_default_host_creds(uri), path, "GET" if content is None else "POST",
        max_retries=0, timeout=PATIENCE[1], raise_on_status=False, **more,
    )  # fmt: skip
