"""What an MLflow server that has users says to ours, told before training begins.

A run as somebody who may only read would train for hours and show nothing. A server without users
takes everything, and so does a file. Leaves out users and roles (`deploy/mlflow/users.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from grids.errors import InputError
from orchestrator.marks import redacted

TAG_STUDY: Final = "banditgrid.study"
NAMES: Final = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
UNKNOWN, FORBIDDEN = 401, 403
CODES: Final = {"UNAUTHENTICATED": UNKNOWN, "PERMISSION_DENIED": FORBIDDEN}


def refusal(error: Exception) -> str | None:
    """Why a server with users refused, and the fix; None where the error is another."""
    if (told := status(error)) not in (UNKNOWN, FORBIDDEN):
        return None
    user = _user()
    if told == UNKNOWN and user is None:
        return f"it asks for a user and a password: set {NAMES} (for a job, on the nodes)"
    if told == UNKNOWN:
        return (
            f"it knows no user {user!r} with this password: correct {NAMES} (for a job, on the "
            "nodes), or ask the server's admin"
        )
    return (
        f"user {user!r} may not do this: name one with the role trainer in {NAMES} (for a job, on "
        "the nodes), or ask the server's admin for that role"
    )


def require_writing(client: Any, experiments: Mapping[str, str], uri: str) -> None:
    """Raise `InputError` where a server does not let us write to one of the studies.

    MLflow tells by what it does alone, so something is written: a tag that is always the same.
    """
    if not uri.startswith(("http://", "https://")):
        return
    for study, experiment in experiments.items():
        try:
            client.set_experiment_tag(experiment, TAG_STUDY, study)
        except Exception as error:
            if (told := refusal(error)) is None:
                raise
            raise InputError(
                f"MLflow at {redacted(uri)} lets nothing be written to study {study}: {told}; "
                "nothing was trained"
            ) from None


def status(error: Exception) -> int | None:
    """401, 403 or another status, of MLflow's own errors and of those under its artifacts."""
    if (code := CODES.get(getattr(error, "error_code", ""))) is not None:
        return code
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _user() -> str | None:
    """Whom MLflow's client takes us for: by the environment, or its file of credentials."""
    from mlflow.utils.credentials import read_mlflow_creds

    return read_mlflow_creds().username
