"""The token without which Ray answers nobody, as Ray itself looks for it.

A cluster that takes calls without a token runs the code of anybody who can reach it. So token mode
is on wherever `RAY_AUTH_MODE` does not say otherwise, and a mode that Ray does not know, which it
would take for `disabled`, is an error. Leaves out making tokens: `ray get-auth-token --generate`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from grids.errors import InputError
from orchestrator.marks import redacted

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
MODES: Final = ("token", "disabled")
USUAL: Final = "~/.ray/auth_token"


def require_token(address: str) -> None:
    """Have Ray send the token to the cluster at an address.

    Sets `RAY_AUTH_MODE` for this process and its children where it is not set. Raises `InputError`
    where there is no token to send.
    """
    mode = os.environ.get(MODE, "").strip().lower() or "token"
    if mode not in MODES:
        raise InputError(f"{MODE}: got {os.environ[MODE]!r}; allowed: {', '.join(MODES)}")
    if mode == "token" and not token():
        raise InputError(
            f"no token for the cluster at {redacted(address)}; give its token in {TOKEN}, or a "
            f"file with it in {TOKEN_PATH} or at {USUAL}; for a cluster that is open to "
            f"everybody set {MODE}=disabled"
        )
    before, os.environ[MODE] = os.environ.get(MODE), mode
    if before != mode and "ray" in sys.modules:  # it read its settings when it was imported
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def headers() -> dict[str, str]:
    """What a request to the cluster's dashboard carries; nothing in mode `disabled`."""
    found = token() if os.environ.get(MODE, "").lower() != "disabled" else None
    return {"Authorization": f"Bearer {found}"} if found else {}


def token() -> str | None:
    """The token that Ray would send, or None. Raises `InputError` where it cannot be read."""
    if found := os.environ.get(TOKEN, "").strip():
        return _checked(found, TOKEN)
    given = os.environ.get(TOKEN_PATH, "").strip()
    path = Path(given) if given else Path(USUAL).expanduser()
    try:
        return _checked(path.read_text(encoding="utf-8").strip(), str(path)) or None
    except FileNotFoundError:
        if not given:
            return None
        raise InputError(f"{TOKEN_PATH}: no file {path}; name the file with the token") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"the token's file {path} cannot be read: {why}") from None


def source() -> str:
    """Where the token comes from, for messages."""
    if os.environ.get(TOKEN, "").strip():
        return TOKEN
    return os.environ.get(TOKEN_PATH, "").strip() or USUAL


def _checked(found: str, where: str) -> str:
    """A token that a header can carry; its text must not get into a library's message."""
    if not found.isascii() or not found.isprintable():
        raise InputError(f"{where}: holds no token: a token is one line of printable ASCII")
    return found
