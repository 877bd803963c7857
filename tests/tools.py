"""Programs that check deploy/, from the extra `deploy` or of the machine; skipped where absent."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Where a program is; the test is skipped where it is not."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    if (found := _compose() if name == "docker-compose" else beside) is None:
        found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here (pip install -c constraints.txt -e '.[deploy]')")
    return found


def _compose() -> str | None:
    """Docker Compose itself: what the package puts beside Python always exits with 0."""
    spec = importlib.util.find_spec("compose")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "docker-compose"
    return str(program) if program.is_file() else None
