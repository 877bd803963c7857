"""What a driver does before training: MLflow that falls silent is not waited for run by run."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from grids.grid import Grid
from grids.paths import Store, write_json
from orchestrator import cluster, prepare, tracking
from orchestrator.plan import make_plan


@pytest.fixture
def done(tmp_path: Any) -> Any:
    """A plan of eight cells that are done, and none of which MLflow has."""
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}
    grid = Grid.model_validate(
        {"name": "g", "study": "s", "base": {"rounds": 1}, "axes": axes, "seeds": list(range(8))}
    )
    store = Store(tmp_path / "store")
    for cell in grid.cells():
        paths = store.study("s").cell(cell.key)
        paths.directory.mkdir(parents=True)
        told = {"status": "finished", "rounds": 1, "eval_key": cell.eval_key, "key": cell.key}
        write_json(paths.cell, json.loads(cell.model_dump_json()))
        write_json(paths.done, {**told, "base": {}, "final": {}})
        paths.journal.write_text('{"round": 0}\n{"round": 1, "train/reward": 0.5}\n')
    return make_plan([grid], store), store


def test_a_silent_mlflow_is_left_to_the_next_run(done: Any, monkeypatch: Any) -> None:
    plan, store = done
    assert not plan.todo and len(plan.works) == 8
    client = tracking.connect(store.tracking_uri)
    where = cluster.Tracking(store.tracking_uri, {"s": tracking.ensure_experiment(client, "s")})
    asked, out = [], io.StringIO()

    def away(*given: Any) -> bool:
        asked.append(given)
        return False

    with monkeypatch.context() as for_now:
        for_now.setattr(prepare, "bring_level", away)
        prepare.level(plan, where, store, Console(file=out, width=200))
    assert len(asked) == prepare.IN_A_ROW
    assert "5 more runs are left to the next run" in out.getvalue()
    prepare.level(plan, where, store, Console(file=out))
    runs = client.search_runs([where.experiments["s"]])
    assert len(runs) == 8 and all(run.info.status == "FINISHED" for run in runs)
