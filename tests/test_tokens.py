"""The token for a cluster: where it is looked for, and what is told where it is not found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grids.errors import InputError
from orchestrator import tokens
from orchestrator.endpoint import Versions, check_versions, url_of

URL = "http://head:8265"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (tokens.TOKEN, tokens.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(tokens.MODE, "")
    monkeypatch.setenv("HOME", str(tmp_path))


def leave(path: Path, text: str = "from-a-file\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_no_token_names_the_three_places_and_the_way_out() -> None:
    with pytest.raises(InputError) as told:
        tokens.require_token(URL)
    for word in (URL, tokens.TOKEN, tokens.TOKEN_PATH, tokens.USUAL, "RAY_AUTH_MODE=disabled"):
        assert word in str(told.value)
    assert os.environ[tokens.MODE] == ""


def test_a_token_is_taken_from_the_first_place_that_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leave(tmp_path / ".ray" / "auth_token", "usual")
    tokens.require_token(URL)
    assert os.environ[tokens.MODE] == "token"
    assert tokens.headers() == {"Authorization": "Bearer usual"}
    monkeypatch.setenv(tokens.TOKEN_PATH, str(leave(tmp_path / "named")))
    assert (tokens.token(), tokens.source()) == ("from-a-file", str(tmp_path / "named"))
    monkeypatch.setenv(tokens.TOKEN, " direct ")
    assert (tokens.token(), tokens.source()) == ("direct", tokens.TOKEN)


def test_mode_disabled_wants_no_token_and_sends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tokens.MODE, "disabled")
    monkeypatch.setenv(tokens.TOKEN, "secret")
    tokens.require_token(URL)
    assert tokens.headers() == {}


@pytest.mark.parametrize("mode", ["on", "tokens", "k8s"])
def test_a_mode_that_ray_would_take_for_disabled_is_refused(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv(tokens.MODE, mode)
    with pytest.raises(InputError, match=f"RAY_AUTH_MODE: got '{mode}'; allowed: token, disabled"):
        tokens.require_token(URL)


def test_a_named_file_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leave(tmp_path / ".ray" / "auth_token")
    monkeypatch.setenv(tokens.TOKEN_PATH, str(tmp_path / "none"))
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH: no file .*none"):
        tokens.require_token(URL)
    monkeypatch.setenv(tokens.TOKEN_PATH, str(tmp_path))
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        tokens.require_token(URL)


@pytest.mark.parametrize("text", ["two\nlines", "dröge", "a\x00b"])
def test_what_no_header_can_carry_is_told_without_its_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    leave(tmp_path / ".ray" / "auth_token", text)
    with pytest.raises(InputError, match="holds no token") as told:
        tokens.require_token(URL)
    assert text not in str(told.value)


@pytest.mark.parametrize("address", ["http://head:8265", " http://head:8265/ ", "https://h"])
def test_a_dashboards_address(address: str) -> None:
    assert url_of(address) == address.strip().rstrip("/")


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://head:10001", "", "http://"])
def test_other_addresses_are_told(address: str) -> None:
    with pytest.raises(InputError, match="expected the address of the cluster's dashboard"):
        url_of(address)


def test_a_password_in_the_address_is_refused_and_not_told() -> None:
    with pytest.raises(InputError, match="names a user or a password") as told:
        url_of("http://me:hunter2@head:8265")
    assert "hunter2" not in str(told.value)


OURS = Versions("2.60.0", "3.12.4")


@pytest.mark.parametrize(
    "theirs", [OURS, Versions("2.60.9", "3.12.0"), Versions("2.60.0", None)]
)  # fmt: skip
def test_versions_that_go_together(theirs: Versions) -> None:
    check_versions(theirs, OURS, URL)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (Versions("2.58.1", "3.12.4"), "runs Ray 2.58.1, this machine has Ray 2.60.0"),
        (Versions("3.60.0", "3.12.4"), "runs Ray 3.60.0"),
        (Versions("2.60.0", "3.10.2"), "runs Python 3.10.2; banditgrid needs 3.11 or newer"),
        (Versions("2.60.0", "3.13.0"), "runs Python 3.13.0, this machine 3.12.4"),
    ],
)
def test_versions_that_do_not(theirs: Versions, message: str) -> None:
    with pytest.raises(InputError) as told:
        check_versions(theirs, OURS, URL)
    assert message in str(told.value) and URL in str(told.value)
