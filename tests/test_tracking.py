"""orchestrator.tracking against a real MLflow store: its history equals the journal."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grids.errors import InputError
from grids.grid import Grid
from grids.paths import CellPaths, Store, write_json
from orchestrator import marks, tracking
from orchestrator.plan import Work, make_plan
from orchestrator.tracking import Writer

NOWHERE = "http://someone:secret@127.0.0.1:9"


def work_of(store: Store, name: str = "one", **base: Any) -> Work:
    axes = {"model": ["qwen2.5-0.5b-instruct"], "dataset": ["gsm8k"]}
    grid = Grid.model_validate({"name": name, "study": "s", "axes": axes, "base": base})
    return make_plan([grid], store).works[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(store: Store) -> Any:
    return tracking.connect(store.tracking_uri)


@pytest.fixture
def experiment(client: Any, request: pytest.FixtureRequest) -> str:
    return tracking.ensure_experiment(client, request.node.name[:60])


@pytest.fixture
def paths(tmp_path: Path) -> CellPaths:
    return CellPaths(tmp_path)


def write_journal(paths: CellPaths, lines: list[dict[str, float]]) -> None:
    paths.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def history(client: Any, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client.get_metric_history(run_id, metric)]


LINES = [
    {"round": r, "train/reward": r / 7, **({"test/pass_at_1": r / 100} if r % 5 == 0 else {})}
    for r in range(12)
]


def test_history_equals_the_journal_however_often_it_is_sent(
    client: Any, store: Store, experiment: str, paths: CellPaths
) -> None:
    work = work_of(store)
    run_id = tracking.ensure_run(client, experiment, work, {})
    write_journal(paths, LINES)
    for _ in range(3):
        Writer(store.tracking_uri, run_id, paths).level(LINES)
    assert history(client, run_id, "train/reward") == [(r, r / 7) for r in range(12)]
    assert history(client, run_id, "test/pass_at_1") == [(r, r / 100) for r in (0, 5, 10)]


def test_more_points_than_one_call_takes(
    client: Any, store: Store, experiment: str, paths: CellPaths
) -> None:
    run_id = tracking.ensure_run(client, experiment, work_of(store), {})
    lines = [{"round": r, "a": float(r), "b": -float(r)} for r in range(1300)]
    Writer(store.tracking_uri, run_id, paths).level(lines)
    assert len(history(client, run_id, "a")) == len(history(client, run_id, "b")) == 1300


def test_nan_is_sent_as_nan(client: Any, store: Store, experiment: str, paths: CellPaths) -> None:
    run_id = tracking.ensure_run(client, experiment, work_of(store), {})
    Writer(store.tracking_uri, run_id, paths).level([{"round": 3, "update/loss": math.nan}])
    ((step, value),) = history(client, run_id, "update/loss")
    assert step == 3 and math.isnan(value)


def test_a_run_is_found_again_and_takes_new_tags(
    client: Any, store: Store, experiment: str
) -> None:
    work = work_of(store)
    run_id = tracking.ensure_run(client, experiment, work, {})
    wider = replace(work, grids=("one", "two"))
    known = tracking.known_runs(client, experiment)
    assert tracking.ensure_run(client, experiment, wider, known) == run_id
    tags = client.get_run(run_id).data.tags
    assert tags["banditgrid.grid.one"] == tags["banditgrid.grid.two"] == "yes"
    assert tags["banditgrid.cell_key"] == work.cell.key
    assert client.get_run(run_id).data.params["batch"] == "32"
    assert client.get_run(run_id).info.run_name == work.cell.label


def test_scores_of_another_evaluation_get_a_run_of_their_own(
    client: Any, store: Store, experiment: str
) -> None:
    first = tracking.ensure_run(client, experiment, work_of(store), {})
    known = tracking.known_runs(client, experiment)
    again = work_of(store, eval={"samples": 4})
    second = tracking.ensure_run(client, experiment, again, known)
    assert second != first
    assert [r.info.run_id for r in tracking.known_runs(client, experiment).values()] == [second]


def test_a_run_of_a_cell_from_begin_to_finish(
    client: Any, store: Store, experiment: str, paths: CellPaths
) -> None:
    work = work_of(store)
    run_id = tracking.ensure_run(client, experiment, work, {})
    writer = Writer(store.tracking_uri, run_id, paths, ["one"])
    writer.begin(1)
    assert client.get_run(run_id).info.status == "RUNNING"
    write_journal(paths, LINES)
    for line in LINES:
        writer.write(line)
    done = {"rounds": 11, "status": "diverged", "reason": "loss is NaN"}
    done |= {"base": {"test/pass_at_1": 0.1}, "final": {"test/pass_at_1": 0.4}}
    write_json(paths.done, done)
    assert not marks.is_level(work, paths, store.tracking_uri)
    writer.finish(done)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["banditgrid.status"] == "diverged"
    assert history(client, run_id, "final/test/pass_at_1") == [(11, 0.4)]
    assert history(client, run_id, "train/reward") == [(r, r / 7) for r in range(12)]
    assert marks.is_level(work, paths, store.tracking_uri)
    assert not marks.is_level(replace(work, grids=("one", "new")), paths, store.tracking_uri)
    assert not marks.is_level(work, paths, store.tracking_uri, known={})


def test_an_absent_server_never_stops_training_and_is_made_up_for(
    client: Any, store: Store, experiment: str, paths: CellPaths, capfd: Any
) -> None:
    work = work_of(store)
    run_id = tracking.ensure_run(client, experiment, work, {})
    write_journal(paths, LINES)
    began = time.monotonic()
    writer = Writer(NOWHERE, run_id, paths)
    writer.begin(1)
    for line in LINES:
        writer.write(line)
    done = {"rounds": 11, "status": "finished", "base": {}, "final": {}}
    write_json(paths.done, done)
    writer.finish(done)
    assert time.monotonic() - began < 20
    assert writer.failures >= 2
    told = capfd.readouterr().err
    assert told.count("training goes on") == 1
    assert "secret" not in told
    assert tracking.bring_level(work, paths, store.tracking_uri, run_id)
    assert history(client, run_id, "train/reward") == [(r, r / 7) for r in range(12)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_absent_at_the_start_is_told_soon_without_the_password() -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        tracking.connect(NOWHERE)
    assert time.monotonic() - began < 10
    assert "http://***@127.0.0.1:9" in str(error.value)
    assert "--tracking-uri" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_database_in_an_absent_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        tracking.connect(f"sqlite:///{tmp_path}/none/mlflow.db")


def test_a_deleted_experiment_is_told(client: Any) -> None:
    made = tracking.ensure_experiment(client, "deleted")
    client.delete_experiment(made)
    with pytest.raises(InputError, match="restore"):
        tracking.ensure_experiment(client, "deleted")


def test_parameters_are_what_a_run_is_for_ever(store: Store) -> None:
    told = tracking.params(work_of(store).cell)
    assert not {"rounds", "eval", "model_spec", "rows_per_pass"} & told.keys()
    assert told["lr"] == "1e-06" and told["model_revision"]
    assert all("/" not in value for value in told.values())


def test_redacted() -> None:
    assert marks.redacted("at https://u:p@host:1/x") == "at https://***@host:1/x"
    assert marks.redacted("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
