"""What tests share: a quiet, offline, single-threaded process, and the smallest real cells."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TRL_EXPERIMENTAL_SILENCE="1",
    RAY_AUTH_MODE="disabled",
    MLFLOW_DISABLE_TELEMETRY="true",
    BANDITGRID_PATIENCE_SECONDS="0",  # tests that wait for a disk say so
)

ROOT = Path(__file__).resolve().parent.parent
GRIDS = sorted(p for p in (ROOT / "grids").rglob("*.yaml") if p.name != "reported.yaml")


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Builds a cell of the embedded models that trains in a second or two."""
    from grids.cell import Cell

    def build(**settings: Any) -> Cell:
        small = {"every": 2, "test_questions": 16, "train_questions": 8}
        settings["eval"] = small | settings.get("eval", {})
        return Cell(
            **{"model": "tiny-qwen2", "dataset": "tiny-sums", "batch": 8, "rounds": 4} | settings
        )

    return build


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a grid file and gives its path."""

    def write(text: str, name: str = "grid.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
