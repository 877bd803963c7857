"""What a server with users refuses becomes one sentence with the fix.

Leaves out the servers: tests/integration/test_compose.py has them, with every role.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from grids.errors import InputError
from orchestrator import access
from orchestrator.tracking import brief, ensure_experiment, quiet_client


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where MLflow keeps credentials
    yield


def refused(code: str) -> RestException:
    return RestException({"error_code": code, "message": "API request failed"})


def artifact_error(status: int) -> requests.HTTPError:
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError("Client Error", response=answer)


def test_without_a_password_both_names_are_told() -> None:
    told = access.refusal(refused("UNAUTHENTICATED"))
    assert told is not None
    assert told.startswith("it asks for a user and a password: set MLFLOW_TRACKING_USERNAME and")


@pytest.mark.parametrize("error", [refused("UNAUTHENTICATED"), artifact_error(401)])
def test_a_wrong_password_names_the_user_and_not_the_password(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-word")
    told = access.refusal(error)
    assert told is not None and "no user 'ada' with this password" in told
    assert "wrong-word" not in told


@pytest.mark.parametrize("error", [refused("PERMISSION_DENIED"), artifact_error(403)])
def test_a_reader_is_told_of_the_role(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "bobs-word")
    told = access.refusal(error)
    assert told is not None and "user 'bob' may not do this: name one with the role trainer" in told
    assert brief(error) == told


@pytest.mark.parametrize(
    "error", [MlflowException("no such run"), artifact_error(500), OSError("gone")]
)
def test_other_errors_are_none_of_its_business(error: Exception) -> None:
    assert access.refusal(error) is None
    assert brief(error).startswith(type(error).__name__)


def test_a_file_has_no_users(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = quiet_client(uri)
    made = ensure_experiment(client, "mine", (tmp_path / "artifacts").as_uri())
    access.require_writing(client, {"mine": made}, uri)
    assert access.TAG_STUDY not in client.get_experiment(made).tags


def test_a_server_is_asked_before_anything_is_trained() -> None:
    client = quiet_client("http://127.0.0.1:1")  # nothing listens there
    with pytest.raises(Exception) as told:
        access.require_writing(client, {"mine": "1"}, "http://127.0.0.1:1")
    assert not isinstance(told.value, InputError)  # whoever calls says that it is silent
