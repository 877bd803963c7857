"""Data sets as inputs of runs, in a real MLflow."""

from __future__ import annotations

import json

import pytest

from grids.cell import Cell
from orchestrator import tracking
from orchestrator.inputs import inputs


@pytest.mark.parametrize("dataset", ["tiny-sums", "gsm8k", "math", "rg-syllogism"])
def test_mlflow_tells_what_was_trained_on_and_asked(tmp_path, dataset) -> None:
    client = tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = client.create_run(tracking.ensure_experiment(client, "s")).info.run_id
    cell = Cell(model="tiny-qwen2", dataset=dataset)
    for _ in range(2):  # sent again by another attempt
        client.log_inputs(run_id, inputs(cell))
    found = client.get_run(run_id).inputs.dataset_inputs
    told = {x.dataset.name: (x.tags[0].value, x.dataset.digest) for x in found}
    digest = str(cell.dataset_spec.revision)[:36]
    assert told == {
        f"{dataset} train": ("training", digest), f"{dataset} test": ("evaluation", digest),
    }  # fmt: skip
    assert all(json.loads(x.dataset.source) for x in found)
