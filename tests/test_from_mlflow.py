"""What MLflow tells of a study, read in one search, against what the store's files tell."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis.from_mlflow import MlflowSource
from analysis.outcomes import Unusable
from analysis.study import Study
from grids import catalog, outcome
from grids.errors import InputError
from orchestrator import tracking
from orchestrator.plan import make_plan
from orchestrator.writer import Writer
from tests.synthetic_store import (
    evaluated,
    fail,
    finish,
    make_grid,
    make_store,
    paths_of,
    study_of,
    write_journal,
)
from workers.lease import held

EVAL = {"samples": 4, "every": 50, "primary": "sampled", "train_questions": 300}
AXES = {"advantage": ["raw", "batch_mean"], "clip": ["off", 0.2], "updates_per_round": [2]}
GRID = make_grid(AXES, base={"rounds": 100, "eval": EVAL})
TRAINED = {outcome.REWARD: 0.5, outcome.UPDATES: 2, outcome.GENERATED_TOKENS: 70}


def lines_of(final, until=100):
    lines = {0: evaluated(0.2, 0.3, 0.25)}
    lines |= {r: dict(TRAINED) for r in range(1, until + 1)}
    if until >= 50:
        lines[50] |= evaluated(0.4, 0.5)
    if until >= 100:
        lines[100] |= evaluated(final, 0.7, 0.5)
    return lines


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with one cell in each state, and MLflow as the orchestrator leaves it."""
    store = make_store(tmp_path_factory.mktemp("mlflow"))
    store.root.mkdir()
    works = {work.cell.key: work for work in make_plan([GRID], store).works}
    client = tracking.connect(store.tracking_uri)
    experiment = tracking.ensure_experiment(client, "test")
    cells = GRID.cells()
    for i, cell in enumerate(cells):
        paths = paths_of(GRID, cell, store)
        with held(paths, cell.label) as lease:
            work = works[cell.key]
            grids = ("small",)
            writer = Writer(store.tracking_uri, experiment, work.cell, grids, paths, lease)
            client.update_run(writer.run_id(), status="SCHEDULED")
            leave(i, cell, store, paths, writer)
            assert writer.failures == 0
    client.create_run(experiment, run_name="not banditgrid's")
    return SimpleNamespace(store=store, client=client, experiment=experiment, cells=cells)


def leave(i, cell, store, paths, writer):
    """What a worker does with the i-th cell of the grid."""
    broken = {"status": "diverged", "diverged_round": 70, "rounds": 100, "reason": "loss is nan"}
    if i < 6:
        paths = finish(GRID, cell, store, lines_of(0.6 + 0.02 * i))
    elif i == 6:
        lines = lines_of(0.0, until=70)
        lines[70][outcome.REWARD] = math.nan
        final = {outcome.TEST_PASS: 0.4, outcome.TRAIN_PASS: 0.5}
        finish(GRID, cell, store, lines, **broken, final=final)
    elif i == 7:  # it broke before its first evaluation
        final = {"final": evaluated(0.2, 0.3, 0.25)}
        finish(
            GRID, cell, store, lines_of(0.0, until=20), **broken | {"diverged_round": 20} | final
        )
    elif i < 10:
        write_journal(paths, lines_of(0.0, until=60))
        paths.cell.write_text(cell.model_dump_json())
    if i < 10:
        writer.begin(1)
    if i < 8:
        writer.finish(json.loads(paths.done.read_text()))
    if i == 9:
        fail(GRID, cell, store, "out of memory")
        writer.end("FAILED", "out of memory")


@pytest.fixture
def study(made):
    return Study.open(made.store.tracking_uri, "test")


STATES = ["finished"] * 6 + ["diverged"] * 2 + ["unfinished", "failed"] + ["waiting"] * 2


def test_each_run_is_in_the_state_that_the_store_tells(made, study):
    ours = [study_of(GRID, made.store).run(cell) for cell in made.cells]
    theirs = [study.run(cell) for cell in made.cells]
    assert [run.state for run in theirs] == [run.state for run in ours] == STATES
    for name in ("reason", "last_round", "scored_round", "diverged_round"):
        told = [getattr(run, name) for run in theirs]
        assert told == [getattr(run, name) for run in ours], name


def test_its_numbers_are_the_stores(made, study):
    ours = study_of(GRID, made.store).runs().set_index("key")
    theirs = study.runs().set_index("key").loc[ours.index]
    settings = [c for c in ours.columns if not c.startswith(("base_", "final_"))]
    scores = [c for c in ours.columns if c.startswith(("base_", "final_"))]
    told = [c for c in settings if not c.startswith("spent_")]  # what journals alone tell
    pd.testing.assert_frame_equal(ours[told], theirs[told], check_dtype=False)
    ended = ours.state.isin(["finished", "diverged"])
    assert ended.sum() == 8
    pd.testing.assert_frame_equal(ours.loc[ended, scores], theirs.loc[ended, scores])
    assert ours.loc[ended, "final_test_primary"].notna().any()
    assert theirs.loc[~ended, scores].isna().all(axis=None)  # a gap, and no number


def test_its_cells_are_the_stores_to_the_last_setting(made, study):
    ours = {cell.key: cell for cell in study_of(GRID, made.store).source.cells()}
    theirs = {cell.key: cell for cell in study.source.cells()}
    assert len(ours) == 10
    assert {key: theirs[key] for key in ours} == ours
    assert len(theirs) == 12  # MLflow knows those that no worker has begun


def test_one_search_a_page_and_no_other_call(made, monkeypatch):
    from mlflow.tracking import MlflowClient

    calls = []
    for name in ("search_runs", "get_run", "get_metric_history"):
        monkeypatch.setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name), calls))
    frames = []
    for page, pages in ((5000, 1), (5, 3)):
        calls.clear()
        monkeypatch.setattr("analysis.from_mlflow.PAGE", page)
        study = Study.open(made.store.tracking_uri, "test")
        frames.append(study.runs())
        for cell in made.cells:
            study.run(cell)
        assert calls == ["search_runs"] * pages
    pd.testing.assert_frame_equal(*frames)


def counted(name, call, calls):
    def counting(*arguments, **named):
        calls.append(name)
        return call(*arguments, **named)

    return counting


@pytest.mark.parametrize(
    "rounds, state, reason",
    [
        (50, "unfinished", "MLflow tells its final numbers at round 100 alone; the store has"),
        (200, "unfinished", "at round 100 of 200"),
    ],
)
def test_another_horizon_is_never_read_from_these_numbers(study, rounds, state, reason):
    cell = make_grid(AXES, base={"rounds": rounds, "eval": EVAL}).cells()[0]
    run = study.run(cell)
    assert run.state == state
    assert reason in run.reason
    assert run.final == {}


def test_a_diverged_run_counts_at_any_horizon_beyond_its_breakdown(made, study):
    for rounds, state in ((60, "unfinished"), (70, "diverged"), (200, "diverged")):
        cell = make_grid(AXES, base={"rounds": rounds, "eval": EVAL}).cells()[6]
        ours = study_of(GRID, made.store).run(cell)
        run = study.run(cell)
        assert run.state == state
        if state == "diverged":
            assert (run.state, run.reason, run.scored_round) == (
                ours.state,
                ours.reason,
                ours.scored_round,
            )


def test_another_evaluation_is_told_of(made, study):
    cell = make_grid(AXES, base={"rounds": 100}).cells()[0]
    run = study.run(cell)
    assert run.state == study_of(GRID, made.store).run(cell).state == "unfinished"
    assert "scored by another evaluation than this grid's" in run.reason


def test_finals_of_a_run_that_goes_on_are_not_those_of_its_new_horizon(made, tmp_path):
    """Tags tell the new horizon before the first new round is trained."""
    short, long = (make_grid(base={"rounds": rounds}, seeds=[7]) for rounds in (100, 300))
    cell, store = short.cells()[0], make_store(tmp_path)
    paths = finish(short, cell, store, lines_of(0.6))
    for rounds, grid in ((100, short), (300, long)):
        work = make_plan([grid], store).works[0]
        uri = made.store.tracking_uri
        with held(paths, cell.label) as lease:
            writer = Writer(uri, made.experiment, work.cell, work.grids, paths, lease)
            run_id = writer.run_id()
            if rounds == 100:
                writer.finish(json.loads(paths.done.read_text()))
    study = Study.open(made.store.tracking_uri, "test")
    made.client.delete_run(run_id)
    assert study.run(cell).state == "finished"
    run = study.run(work.cell)
    assert (run.state, run.reason) == ("unfinished", "at round 100 of 300")


def test_histories_are_fetched_when_asked_for(made, study):
    told = study.source.history(made.cells[0], [outcome.TEST_PASS, outcome.REWARD, "absent"])
    assert told[outcome.TEST_PASS] == {0: 0.2, 50: 0.4, 100: 0.6}
    assert list(told[outcome.REWARD]) == list(range(10, 101, 10))  # means of ten rounds
    assert told["absent"] == {}
    assert study.source.history(make_grid(seeds=[9]).cells()[0], ["x"]) == {"x": {}}


def test_it_holds_no_answers_and_says_where_they_are(made, study):
    assert not study.source.has_answers
    with pytest.raises(Unusable, match="MLflow holds no per-question outcomes; read the store"):
        study.source.answers(made.cells[0])
    with pytest.raises(InputError, match="no seed has sampled test answers"):
        study.outcomes(advantage="raw", clip=0.2)
    assert study.source.hardware(made.cells[0]) is None
    assert study.source.registrations() == study.source.looks() == []
    assert not study.source.note_looks([{}])


@pytest.mark.parametrize("missing", ["model", "eval", "param"])
def test_runs_that_mlflow_does_not_tell_in_full_are_named(made, monkeypatch, missing):
    source = MlflowSource(made.store.tracking_uri, "test")
    told = source._found[made.cells[0].key]
    if missing == "model":
        monkeypatch.delitem(catalog.MODELS, made.cells[0].model)
    elif missing == "eval":
        del told.tags[outcome.TAG_EVAL]
    else:
        told.params["lr"] = "0.5"
    with pytest.warns(UserWarning, match="runs left out .see `unreadable`., the first olmo"):
        cells = source.cells()
    assert len(cells) == (0 if missing == "model" else 11)
    why = source.unreadable[f"{made.cells[0].label} ({made.cells[0].key})"]
    reasons = {"model": "not in the catalogue", "eval": "MLflow tells no", "param": "have the key"}
    assert reasons[missing] in why
    assert source.run(made.cells[0]).state == "finished"  # for who has the grid


def test_the_older_of_two_runs_of_a_cell_counts(made):
    cell = made.cells[0]
    tags = {outcome.TAG_CELL_KEY: cell.key, outcome.TAG_STATUS: "running"}
    twin = made.client.create_run(made.experiment, tags=tags)
    source = MlflowSource(made.store.tracking_uri, "test")
    made.client.delete_run(twin.info.run_id)
    assert source.run(cell).state == "finished"


# ---- addresses


def test_the_only_study_needs_no_name(made):
    assert Study.open(made.store.tracking_uri).name == "test"
    other = made.client.create_experiment("other")
    try:
        with pytest.raises(InputError, match="has 2 studies .other, test.; name one"):
            Study.open(made.store.tracking_uri)
        with pytest.raises(InputError, match="experiment other of MLflow .* has no run of band"):
            Study.open(made.store.tracking_uri, "other")
    finally:
        made.client.delete_experiment(other)


def test_an_unknown_study_is_answered_with_the_known_ones(made):
    with pytest.raises(InputError, match="no experiment 'tset'; it has Default, test; did you"):
        Study.open(made.store.tracking_uri, "tset")


def test_an_absent_database_is_not_made(tmp_path):
    with pytest.raises(InputError, match="no file .*absent.db; name MLflow's database"):
        Study.open(f"sqlite:///{tmp_path}/absent.db", "test")
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer_is_told_without_its_password():
    with pytest.raises(InputError, match=r"no MLflow tracking store answers at http://\*\*\*@127"):
        Study.open("http://someone:secret@127.0.0.1:9", "test")


def test_a_file_that_is_no_database_is_told_of(tmp_path):
    path = tmp_path / "x.db"
    path.write_text("no database")
    with pytest.raises(InputError, match="no MLflow tracking store answers at sqlite:///"):
        Study.open(f"sqlite:///{path}", "test")
