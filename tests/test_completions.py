"""Sample completions in MLflow: a table that its own reader reads, the same however often sent."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from grids.paths import CellPaths
from orchestrator import completions, tracking

LINES = [
    {"round": 5, "from": "train", "question": "1 + 1?", "gold": "2", "completion": "#### 2",
     "reward": 1.0},
    {"round": 5, "from": "test", "question": "2 + 2?", "gold": "4", "completion": "#### 5",
     "correct": math.nan, "truncated": False},
]  # fmt: skip


def test_mlflow_reads_the_table_and_sending_again_changes_nothing(tmp_path: Path) -> None:
    client = tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = tracking.ensure_experiment(client, "s", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    paths = CellPaths(tmp_path)
    completions.send(client, run_id, paths)  # nothing to show yet
    assert client.list_artifacts(run_id) == []
    paths.samples.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    for _ in range(2):
        completions.send(client, run_id, paths)
        place = client.download_artifacts(run_id, completions.FILE, str(tmp_path))
        table = pd.read_json(place, orient="split")  # as MLflow's own reader of tables does
        assert completions.FILE in client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
        assert list(table["question"]) == ["1 + 1?", "2 + 2?"]
        assert list(table["round"]) == [5, 5]
        assert table["reward"].isna().tolist() == [False, True]


def test_what_was_not_scored_has_no_number() -> None:
    made = completions.table(LINES)
    assert made["data"][1][made["columns"].index("correct")] is None
    json.dumps(made, allow_nan=False)


def test_a_long_run_shows_its_newest_samples() -> None:
    many = [{"round": r, "completion": "x"} for r in range(completions.MOST_ROWS + 5)]
    made = completions.table(many)
    assert len(made["data"]) == completions.MOST_ROWS
    assert made["data"][-1][0] == completions.MOST_ROWS + 4
