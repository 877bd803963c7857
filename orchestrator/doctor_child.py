"""`python -m orchestrator.doctor_child`: what a check does in a process of its own.

Plug-ins are anybody's code, and the reader of data sets takes seconds to import and leaves threads
behind: neither belongs into the process that reports. The hub is not asked: what is not here
already is absent. Leaves out what the answers mean (`doctor_software.py`, `doctor_files.py`).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from grids.errors import InputError

MARK = "banditgrid-doctor: "  # before the answers, among what others print
JOINED = "banditgrid-doctor joined"  # printed once a cluster lets the process in
ROOT = Path(__file__).resolve().parent.parent


def ask(request: dict[str, Any], seconds: float) -> list[dict[str, Any]] | None:
    """The answers, one for each that was asked about, in order; None where they took too long."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": path}
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "orchestrator.doctor_child"], input=json.dumps(request),
            capture_output=True, text=True, timeout=seconds, env={**os.environ, **offline},
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    if (answers := marked(ran.stdout)) is None:
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"a process of the check ended with code {ran.returncode}: {last}")
    return list(answers)


def marked(text: str) -> Any:
    """What was printed with the mark; None where nothing was."""
    for line in reversed(text.splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    return None


def end_with_parent() -> None:
    """Have the system end this process when the one that started it goes, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end_after(seconds: float) -> None:
    """Have the system end this process in time; a library that waits cannot hold it up."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds))


def main() -> None:
    end_with_parent()
    request = json.load(sys.stdin)
    answers = [_plugin(one) for one in request.get("plugins", [])]
    answers += [_data(one) for one in request.get("data", [])]
    print(f"\n{MARK}{json.dumps(answers)}", flush=True)
    os._exit(0)  # threads that a plug-in left are nobody's


def _plugin(content: dict[str, Any]) -> dict[str, Any]:
    from grids.plugin import FUNCTIONS, SOURCES, PluginSpec
    from workers.plugins import function_of, module

    spec = PluginSpec.model_validate(content)
    try:
        module(spec)
        for registry in (*FUNCTIONS, SOURCES):
            for name in spec.provides.get(registry, ()):
                function_of(spec, registry, name)
    except InputError as error:
        return {"error": str(error)}
    return {}


def _data(content: dict[str, Any]) -> dict[str, Any]:
    """How many questions a data set has, or what is wrong; `absent`: it is not on this machine."""
    from grids.catalog import DatasetSpec
    from workers.data import load_questions

    spec = DatasetSpec.model_validate(content)
    try:
        made = load_questions(spec)
    except InputError as error:  # its cause is the hub's client, where that was asked
        absent = spec.path is None and error.__cause__ is not None
        return {"error": str(error), "absent": absent}
    except ModuleNotFoundError as error:
        return {"package": error.name}
    return {"train": len(made.train), "test": len(made.test)}


if __name__ == "__main__":
    main()
