"""A real 135M model and GSM8K through the command, where there are local copies of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grids import load_grid
from grids.catalog import DATASETS, MODELS, use_local
from grids.paths import Store, read_json, read_lines
from orchestrator.tracking import quiet_client
from tests.conftest import ROOT
from tests.test_data import REAL

MODEL_DIR = Path(os.environ.get("BANDITGRID_MODELS", ROOT / "models"))
GRID = ROOT / "grids" / "real" / "smollm2-gsm8k.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (MODEL_DIR / "smollm2-135m-instruct").is_dir() or not (REAL / "gsm8k").is_dir(),
        reason=f"no copy of smollm2-135m-instruct in {MODEL_DIR}, or of GSM8K in {REAL}",
    ),
]


def test_a_real_model_answers_real_questions(tmp_path, monkeypatch):
    for catalogue in (MODELS, DATASETS):
        for name, spec in list(catalogue.items()):
            monkeypatch.setitem(catalogue, name, spec)
    use_local(MODEL_DIR, REAL)
    store = Store(tmp_path / "store")
    words = ["run", str(GRID), "--store", str(store.root)]
    words += ["--models", str(MODEL_DIR), "--data", str(REAL)]
    subprocess.run([Path(sys.executable).parent / "banditgrid", *words], check=True, cwd=tmp_path)
    (cell,) = load_grid(GRID).cells()
    paths = store.study("real").cell(cell.key)
    done = read_json(paths.done)
    assert done is not None and done["status"] == "finished"
    asked = [line for line in read_lines(paths.samples) if line["from"] == "test"]
    assert all(len(line["completion"].split()) > 20 for line in asked)
    client = quiet_client(store.tracking_uri)
    experiment = client.get_experiment_by_name("real")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["final/test/pass_at_1"] == done["final"]["test/pass_at_1"]
