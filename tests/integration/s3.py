"""An S3 server for tests: npm's s3rver, installed once into the user's cache.

Leaves out starting it (`s3.js` does, with keys of one's own).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

VERSION: Final = "3.7.1"
SCRIPT: Final = Path(__file__).with_name("s3.js")


def s3rver() -> Path | None:
    """The folder of npm's packages with s3rver; None where it cannot be installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / f"banditgrid-tests-s3rver-{VERSION}"
    modules = folder / "node_modules"
    if not (modules / "s3rver").is_dir() and shutil.which("npm") and shutil.which("node"):
        subprocess.run(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix",
             str(folder), f"s3rver@{VERSION}"],
            capture_output=True, timeout=300,
        )  # fmt: skip
    return modules if (modules / "s3rver").is_dir() and shutil.which("node") else None
