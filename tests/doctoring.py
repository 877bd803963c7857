"""What tests of `banditgrid doctor` share: running it, and what it must have said.

Leaves out clusters (`test_doctor_cluster.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator.doctor_lines import FAULT, Line
from tests.test_cli import Ran, banditgrid  # noqa: F401

TINY = """
name: g
study: s
base: {rounds: 4, batch: 8}
axes: {model: [tiny-qwen2], dataset: [tiny-sums], advantage: [raw]}
seeds: [0]
"""


class Told(NamedTuple):
    """What the command said, to programs."""

    code: int
    lines: list[Line]
    text: str

    def of(self, grade: str) -> list[Line]:
        return [line for line in self.lines if line.grade == grade]

    def line(self, check: str) -> Line:
        (found,) = [line for line in self.lines if line.check == check]
        return found

    def one_fault(self, check: str, *words: str) -> Line:
        """The only fault, which is of this check, names the thing, and ends with a remedy."""
        assert self.code == 2 and "Traceback" not in self.text
        (found,) = self.of(FAULT)
        assert found.check == check and found.remedy
        for word in words:
            assert word in f"{found.told}; {found.remedy}", found
        return found


def told(ran: Ran) -> Told:
    content = json.loads(ran.out)
    assert content["ready"] == (ran.code == 0) and content["seconds"] >= 0
    return Told(ran.code, [Line(**row) for row in content["lines"]], ran.out + ran.err)


@pytest.fixture
def doctor(banditgrid: Callable[..., Ran]) -> Callable[..., Told]:  # noqa: F811
    return lambda *words: told(banditgrid("doctor", "--json", *words))


def apart(words: list[str | Path], env: dict[str, str], folder: Path, alone: bool = False) -> Told:
    """The command in a process of its own; `alone`: without the environment's packages."""
    program = [sys.executable, *(["-S"] if alone else []), "-m", "orchestrator.cli", "doctor"]
    ran = subprocess.run(
        [*program, "--json", *map(str, words)], capture_output=True, text=True, cwd=folder,
        env={**os.environ, **env}, timeout=120,
    )  # fmt: skip
    assert ran.stdout, ran.stderr
    return told(Ran(ran.returncode, ran.stdout, ran.stderr))


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes = b"{}") -> Iterator[str]:
    """The address of a server that gives every request the same answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
