"""Runs the blocks of the documents that are marked to run, in a copy of the working tree.

All blocks of one name are one bash script, with an empty home, ports of its own and the present
environment as `.venv`. Whatever it starts, daemons too, is ended. Leaves out reading the documents
(`tests/documents.py`).
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import ROOT
from tests.documents import Block
from tests.heads import free_ports

OWN = "BANDITGRID_TEST_DOCUMENT"
# Ports that documents name; where they run, each is a free one.
PORTS = ("5000", "6379", "8265", "8266", "10001", "52365", "52366", "52367")
BEGUN = "\x1e block {}"  # in the output before each block
ANYTHING = "…"
NUMBER = re.compile(r"(?<![\d.])(?:\\[+-])?\d+\\\.\d+(?!\\\.)")  # as `re.escape` writes it
STARTED = """\
for _ in $(seq {timeout}); do curl -s -o /dev/null {url} && break; sleep 1; done
curl -s -o /dev/null {url}
"""


@dataclass(frozen=True)
class Ran:
    """How a script ended; `printed` is what each block put out, the last one perhaps cut short."""

    code: int
    printed: list[str]


def run(blocks: Sequence[Block]) -> Ran:
    """Run blocks one after the other until one fails."""
    folder = Path(tempfile.mkdtemp(prefix="bg-", dir="/tmp"))  # Ray's sockets want a short path
    mark = secrets.token_hex(16)
    try:
        clone(folder / "banditgrid")
        for name in ("home", "t"):
            (folder / name).mkdir()
        ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        script = _renamed(script_of(blocks), ports)
        seconds = sum(block.mark.timeout for block in blocks if block.mark)
        code, out = _bash(script, folder, {OWN: mark}, seconds)
        out = _renamed(out, {value: key for key, value in ports.items()})
        parts = re.split(rf"^{BEGUN.format('[0-9]+')}\n", out, flags=re.M)
        return Ran(code, parts[1:])
    finally:
        _end(mark)
        shutil.rmtree(folder, ignore_errors=True)


def clone(to: Path) -> None:
    """What a clone of the working tree would have, and `.venv`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    for name in ("pyproject.toml", "constraints.txt"):  # older than `.venv`: `make setup` is done
        os.utime(to / name, (0, 0))
    (to / ".venv").symlink_to(Path(sys.executable).parent.parent)


def script_of(blocks: Sequence[Block]) -> str:
    """One bash script that ends at the first line that fails."""
    parts = ["set -eo pipefail"]
    for number, block in enumerate(blocks):
        parts += [f"echo; echo {shlex.quote(BEGUN.format(number))}", _part(block)]
    return "\n".join(parts) + "\n"


def _part(block: Block) -> str:
    assert block.mark is not None
    mark, body = block.mark, block.text
    if mark.writes:
        quoted = shlex.quote(mark.writes)
        return f"mkdir -p $(dirname {quoted}); cat > {quoted} <<'END OF FILE'\n{body}END OF FILE"
    if block.language == "python":
        body = f".venv/bin/python - <<'END OF PROGRAM'\n{body}END OF PROGRAM\n"
    if mark.serves:
        return f"(\n{body}) &\n" + STARTED.format(
            timeout=mark.timeout, url=shlex.quote(mark.serves)
        )
    if mark.exit:
        check = f'[ $code = {mark.exit} ] || {{ echo "ended with $code"; exit 1; }}'
        return f"set +e\n{body}code=$?; set -e\n{check}"
    return body


def _bash(script: str, folder: Path, more: dict[str, str], seconds: int) -> tuple[int, str]:
    """The exit code, 124 where the time is over; all output."""
    kept = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "BANDITGRID_", "COV_", "PYTEST_"))
    }  # fmt: skip
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "t"), "PAGER": "cat",
           "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip
    out = folder / "output.txt"
    with out.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=folder / "banditgrid", env={**kept, **own, **more},
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 124
    return code, out.read_text(encoding="utf-8", errors="replace")


def _renamed(text: str, ports: dict[str, str]) -> str:
    """Ports in place of others. 5000 may be a count: it is a port where it stands like one."""

    def other(found: re.Match[str]) -> str:
        before = text[: found.start()]
        counts = found[0] == "5000" and not before.endswith((":", "port ", "port="))
        return found[0] if counts else ports.get(found[0], found[0])

    return re.sub(r"(?<![\w.,])\d{4,5}(?![\w.,]\d|\w)", other, text)


def _end(mark: str) -> None:
    """Kill what a script started: all of it carries the script's own mark."""
    for _ in range(3):  # one that is killed may have started another
        if not (found := [one for one in psutil.process_iter() if _is_of(one, mark)]):
            return
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(found, timeout=10)


def _is_of(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(OWN) == mark
    except psutil.Error:
        return False


def shown(expected: str, printed: str) -> bool:
    """The lines are in the output, one after another. `…` stands for anything within a line, on a
    line of its own for any lines; how many spaces separate columns does not matter, nor which
    number with a decimal point it is."""
    wanted = "".join(_pattern(line.rstrip()) for line in expected.strip("\n").splitlines())
    return re.search(wanted, "\n" + printed + "\n") is not None


def _pattern(line: str) -> str:
    if line.strip() == ANYTHING:
        return r"(?:\n.*)*?"
    parts = (_words(part) for part in re.split(r" *… *", line))
    return r"\n" + ".*?".join(parts) + r"[ \t]*(?=\n)"


def _words(text: str) -> str:
    """Any number with a decimal point is as good as another: they differ between machines."""
    words = (NUMBER.sub(r"[+-]?\\d+\\.\\d+", re.escape(word)) for word in text.split())
    ends = (" *" * text.startswith(" "), " *" * (text.endswith(" ") and bool(text.strip())))
    return r"[ \t]+".join(words).join(ends)
