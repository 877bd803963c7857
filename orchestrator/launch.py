"""`python3 -m orchestrator.launch`: the command, started by the Python that the node's Ray runs on.

A job is a shell command, and the `python3` of its shell need not be Ray's: a cluster that was
started by `/some/venv/bin/ray` leaves the path as it was. The node's raylet, from which the job
descends, names Ray's own. Imports nothing but the standard library before that Python runs.
"""

import importlib.util
import os
import sys
from pathlib import Path

NAMED = "--python_worker_command="
NEEDED = ("mlflow", "pydantic", "ray", "rich", "torch", "transformers", "trl", "typer", "yaml")
START = "from orchestrator.launch import start; start()"


def main() -> None:
    """Go on in Ray's Python, or in this one where Ray's cannot be found."""
    python = rays_python(os.getppid()) or sys.executable
    os.execv(python, [python, "-c", START, *sys.argv[1:]])


def rays_python(pid: int) -> "str | None":
    """The Python of the raylet from which a process descends."""
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # another system than Linux, or a process of somebody else
            return None
        for word in words:
            python = word[len(NAMED) :].split(" ")[0]
            if word.startswith(NAMED) and os.access(python, os.X_OK):
                return python
        pid = int(after_name[1])
    return None


def start() -> None:
    """Run the command; exit code 2 where this Python lacks what it needs."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {sys.executable} on this node of the cluster lacks {', '.join(missing)}; "
            "install banditgrid on every node: its code travels, what it needs does not",
            file=sys.stderr,
        )
        sys.exit(2)
    from orchestrator.cli import main

    sys.argv[0] = "banditgrid"
    main()


if __name__ == "__main__":
    main()
