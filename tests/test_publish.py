"""Artifacts in MLflow: one analysis run a study, reused, never taken for a cell's; failures cost a
line."""

import pytest

from grids import outcome
from grids.paths import Store
from orchestrator import tracking
from orchestrator.publish import TAG_KIND, analysis_run, publish, tracking_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return folder, uri, tracking.quiet_client(uri)


@pytest.fixture
def files(tmp_path):
    deep = tmp_path / "out" / "report_figures" / "small"
    deep.mkdir(parents=True)
    paths = [tmp_path / "out" / "report.html", deep / "curves.png"]
    for path in paths:
        path.write_text("first")
    return paths


def runs_of(client, study):
    return client.search_runs([client.get_experiment_by_name(study).experiment_id])


def test_files_keep_their_place_in_one_run_a_study(place, files, tmp_path, capsys):
    folder, uri, client = place
    for text in ("first", "second"):
        files[0].write_text(text)
        assert publish(files, tmp_path / "out", "report", ["one", "two"], uri)
    assert capsys.readouterr().err == ""
    for study in ("one", "two"):
        (run,) = runs_of(client, study)
        assert (run.info.run_name, run.info.status) == ("analysis", "FINISHED")
        assert run.data.tags[TAG_KIND] == "analysis"
        assert outcome.TAG_CELL_KEY not in run.data.tags
        logged = folder / "artifacts" / run.info.run_id / "artifacts" / "report"
        assert (logged / "report.html").read_text() == "second"
        assert (logged / "report_figures" / "small" / "curves.png").is_file()


def test_the_analysis_run_is_no_cells(place, files, tmp_path):
    _, uri, client = place
    assert publish(files, tmp_path / "out", "tables", ["three"], uri)
    experiment = client.get_experiment_by_name("three").experiment_id
    tagged = f"tags.`{outcome.TAG_CELL_KEY}` != ''"
    assert client.search_runs([experiment]) and not client.search_runs([experiment], tagged)


def test_runs_of_cells_are_left_alone(place):
    _, _, client = place
    experiment = tracking.ensure_experiment(client, "four")
    cell = client.create_run(experiment, tags={outcome.TAG_CELL_KEY: "k"}).info.run_id
    made = analysis_run(client, experiment)
    assert made != cell and analysis_run(client, experiment) == made


def test_a_server_that_is_absent_costs_a_line(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "http://user:secret@127.0.0.1:9"
    assert not publish(files, tmp_path / "out", "tables", ["s"], uri)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "all is on disk; --no-log leaves MLflow out" in told
    assert "secret" not in told


def test_a_store_without_a_database_is_not_published_to(tmp_path):
    store = Store(tmp_path)
    assert tracking_of(store, None) is None
    assert tracking_of(store, "http://x") == "http://x" and tracking_of(None, None) is None
    (tmp_path / "mlflow.db").write_text("")
    assert tracking_of(store, None) == store.tracking_uri
