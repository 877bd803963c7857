"""`banditgrid ui`: MLflow's own pages over the store, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from rich.console import Console

from grids.errors import InputError
from grids.outcome import TAG_GRID_PREFIX
from grids.paths import Store
from orchestrator import views
from orchestrator.driver import termination_as_interrupt
from orchestrator.showing import under
from orchestrator.tracking import brief, quiet_client

HOST = "127.0.0.1"
MOST_STUDIES: Final = 10  # whose pages are told at the start


def serve(store: Store, port: int, out: Console) -> int:
    """Serve until Ctrl-C. The exit code: 0, or the server's own where it ends by itself."""
    database = store.root / "mlflow.db"
    if not database.is_file():
        raise InputError(
            f"{store.root} has no MLflow database ({database.name}); run a grid into it first, "
            "or name another store with --store"
        )
    _check_free(port)
    out.print(f"MLflow on http://{HOST}:{port} (Ctrl-C ends it)", soft_wrap=True)
    for title, path in _views(store):
        out.print(f"  {title}: http://{HOST}:{port}/{path}", soft_wrap=True, markup=False)
    with (
        termination_as_interrupt(),
        subprocess.Popen(_command(store, port), env=_environment(), start_new_session=True) as run,
    ):
        try:
            return run.wait()
        except KeyboardInterrupt:
            _end(run)
            return 0


def _views(store: Store) -> Iterator[tuple[str, str]]:
    """The pages to begin with: each study's, and each of its grids'."""
    try:
        for found in quiet_client(store.tracking_uri).search_experiments(max_results=MOST_STUDIES):
            grids = under(TAG_GRID_PREFIX, found.tags)
            if f"{views.TAG_PREFIX}{views.STUDY}" not in found.tags:
                continue
            yield found.name, views.path(found.experiment_id, views.STUDY)
            for name, entry in sorted(grids.items()):
                yield (
                    f"{found.name}, {name}",
                    views.path(found.experiment_id, json.loads(entry)["view"]),
                )
    except Exception as error:  # the server will tell what is wrong with its database
        print(f"the pages to begin with cannot be told ({brief(error)})", file=sys.stderr)


def _command(store: Store, port: int) -> list[str]:
    artifacts = (store.root.resolve() / "artifacts").as_uri()
    return [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port),
        "--backend-store-uri", store.tracking_uri, "--default-artifact-root", artifacts,
        "--workers", "1",
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return {**os.environ, **quiet}


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used ({error.strerror}); name another with --port"
            ) from None


def _end(run: subprocess.Popen[bytes]) -> None:
    """The server with its workers: all are of its own process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(run.pid, sign)
            run.wait(timeout=5)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
