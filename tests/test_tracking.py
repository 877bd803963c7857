"""orchestrator.tracking against a real MLflow store: its history tells what the journal does."""

from __future__ import annotations

import http.server
import itertools
import json
import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from grids.errors import InputError
from grids.grid import Grid
from grids.paths import CellPaths, Store, read_lines, write_json
from orchestrator import marks, tracking
from orchestrator import writer as writing
from orchestrator.plan import Work, make_plan
from orchestrator.writer import Writer
from workers import lease

NOWHERE = "http://someone:secret@127.0.0.1:9"
SEEDS = itertools.count()  # so that each run is of a cell of its own
Histories = dict[str, list[tuple[int, float]]]


def work_of(store: Store, name: str = "one", seed: int = 0, **base: Any) -> Work:
    axes = {"model": ["qwen2.5-0.5b-instruct"], "dataset": ["gsm8k"]}
    content = {"name": name, "study": "s", "axes": axes, "base": base, "seeds": [seed]}
    return make_plan([Grid.model_validate(content)], store).works[0]


def run_of(client: Any, experiment: str, work: Work, marked: str | None = None) -> str:
    return tracking.ensure_run(client, experiment, work.cell, work.grids, marked)


def writer_of(uri: str, experiment: str, work: Work, paths: CellPaths) -> Writer:
    """A writer with the cell's lease, taken from whoever had it."""
    before = lease.read(paths)
    held = lease.acquire(paths, "cell", stale=before.epoch if before else None)
    return Writer(uri, experiment, work.cell, work.grids, paths, held)


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


def journal(last: int) -> list[dict[str, float]]:
    """Rounds 0 to `last`: an evaluation every five, some metrics in some rounds only."""
    lines: list[dict[str, float]] = [{"round": 0, "test/pass_at_1": 0.0}]
    for r in range(1, last + 1):
        lines.append({"round": r, "train/reward": r / 7, "update/loss": math.sin(r)})
        lines[-1] |= {"test/pass_at_1": r / 100, "train/entropy": r / 3} if r % 5 == 0 else {}
        lines[-1] |= {"replay/age_mean": r / 9} if r > 33 else {}
    return lines


METRICS = ("test/pass_at_1", "train/reward", "update/loss", "train/entropy", "replay/age_mean")


def train(writer: Writer, last: int, start: int = 0) -> None:
    """What a worker does: cut the journal back to its checkpoint, go on, report each line."""
    kept = [line for line in read_lines(writer.paths.journal) if line["round"] <= start]
    write_journal(writer.paths, kept)
    writer.begin(1)
    for line in journal(last)[len(kept) :]:
        kept.append(line)
        write_journal(writer.paths, kept)
        writer.write(line)


def finish(writer: Writer, last: int, **more: Any) -> None:
    done = {"rounds": last, "status": "finished", "base": {}, "final": {}, **more}
    write_json(writer.paths.done, done)
    writer.finish(done)


def history(client: Any, run_id: str, metric: str) -> list[tuple[int, float]]:
    """Points by step; NaN as text, for it equals nothing."""
    points = client.get_metric_history(run_id, metric)
    return [(p.step, "NaN" if math.isnan(p.value) else p.value) for p in points]


def histories(client: Any, run_id: str) -> Histories:
    return {metric: history(client, run_id, metric) for metric in METRICS}


def mean(first: int, last: int) -> float:
    """The mean of `train/reward` over some rounds of `journal`."""
    return pytest.approx((first + last) / 2 / 7)


@pytest.fixture
def new_run(client: Any, store: Store, experiment: str, tmp_path: Path) -> Any:
    """Makes a run and its writer; each has a cell directory of its own."""

    def make() -> Writer:
        seed = next(SEEDS)
        paths = CellPaths(tmp_path / str(seed))
        return writer_of(store.tracking_uri, experiment, work_of(store, seed=seed), paths)

    return make


def again(writer: Writer, uri: str | None = None) -> Writer:
    """Another process's writer for the same cell."""
    work = Work("s", writer.cell, tuple(writer.grids), "unfinished")
    return writer_of(uri or writer.uri, writer.experiment, work, writer.paths)


@pytest.fixture(params=[0.0, 10.0], ids=["every line is due", "ten seconds"])
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_WRITES", request.param)


@pytest.fixture
def undisturbed(client: Any, new_run: Any) -> Histories:
    writer = new_run()
    train(writer, 64)
    finish(writer, 64)
    return histories(client, writer.run_id())


def test_evaluations_go_as_they_are_and_training_as_means(undisturbed: Histories) -> None:
    assert undisturbed["test/pass_at_1"] == [(r, r / 100) for r in range(0, 65, 5)]
    ends = [10, 20, 30, 40, 50, 60]
    whole = [(end, mean(end - 9, end)) for end in ends]
    assert undisturbed["train/reward"] == [*whole, (64, mean(61, 64))]
    # A mean is over the lines that have the metric: rounds 5 and 10, 15 and 20, ...
    assert undisturbed["train/entropy"] == [(r, pytest.approx((r - 2.5) / 3)) for r in ends]
    assert undisturbed["replay/age_mean"][0] == (40, pytest.approx(37 / 9))


def test_sent_again_without_a_mark_is_sent_once(
    client: Any, store: Store, new_run: Any, undisturbed: Histories
) -> None:
    writer = new_run()
    write_journal(writer.paths, journal(64))
    finish(writer, 64)
    for _ in range(2):
        marks.mark_path(writer.paths).unlink()
        writer.lease.release()
        work = Work("s", writer.cell, ("one",), "finished")
        assert writing.bring_level(work, writer.paths, writer.uri, writer.experiment)
    again(writer).begin(1)
    assert histories(client, writer.run_id()) == undisturbed


# Where a worker died, and the checkpoint from which the next one goes on.
KILLS = [(57, 57), (57, 51), (57, 47), (57, 30), (60, 60), (60, 58), (3, 0), (10, 9)]


@pytest.mark.parametrize(("killed", "checkpoint"), KILLS)
def test_a_resumed_run_has_the_history_of_an_undisturbed_one(
    client: Any, new_run: Any, pace: None, killed: int, checkpoint: int, undisturbed: Histories
) -> None:
    writer = new_run()
    train(writer, killed)
    # The driver closes the run of a worker that is gone; its last window waits for the next.
    closing = again(writer)
    closing.end("KILLED", "the run was stopped")
    assert {step % 10 for step, _ in history(client, writer.run_id(), "train/reward")} <= {0}
    writer = again(writer)
    train(writer, 64, start=checkpoint)
    finish(writer, 64)
    assert histories(client, writer.run_id()) == undisturbed


def test_a_mark_in_mid_window_leaves_the_window_whole(client: Any, new_run: Any) -> None:
    writer = new_run()
    write_journal(writer.paths, journal(57))
    writer.begin(1)
    assert json.loads(marks.mark_path(writer.paths).read_text())["round"] == 57
    left = marks.behind(writer.paths, writer.uri, writer.run_id())
    assert [line["round"] for line in left] == list(range(51, 58))
    write_journal(writer.paths, journal(60))
    again(writer).begin(2)
    assert history(client, writer.run_id(), "train/reward")[-1] == (60, mean(51, 60))
    assert marks.behind(writer.paths, writer.uri, writer.run_id()) == []


def test_mlflow_away_for_a_while_is_made_up_for(
    client: Any, store: Store, new_run: Any, undisturbed: Histories
) -> None:
    writer = new_run()
    train(writer, 26)
    away = again(writer, uri=NOWHERE)
    train(away, 38, start=26)
    assert away.failures == 1
    # It answers again: the same writer sends what it could not.
    away.uri, away._client, away._quiet_until = store.tracking_uri, None, 0.0
    for line in journal(45)[39:]:
        write_journal(away.paths, journal(int(line["round"])))
        away.write(line)
    assert [s for s, _ in history(client, away.run_id(), "train/reward")] == [10, 20, 30, 40]
    train(again(away), 64, start=45)
    finish(again(away), 64)
    assert histories(client, writer.run_id()) == undisturbed


def test_the_last_window_is_sent_once_and_the_whole_one_at_a_later_step(
    client: Any, new_run: Any
) -> None:
    writer = new_run()
    train(writer, 4)
    finish(writer, 4)
    for rounds in (6, 10, 13):  # the same cell, asked for more rounds
        writer = again(writer)
        train(writer, rounds, start=read_lines(writer.paths.journal)[-1]["round"])
        for _ in range(2):
            finish(writer, rounds)
    ends = [(4, mean(1, 4)), (6, mean(1, 6)), (10, mean(1, 10)), (13, mean(11, 13))]
    assert history(client, writer.run_id(), "train/reward") == ends


def test_a_cell_that_ends_with_a_window_sends_it_once(client: Any, new_run: Any) -> None:
    writer = new_run()
    train(writer, 20)
    finish(writer, 20)
    finish(again(writer), 20)
    ends = [(10, mean(1, 10)), (20, mean(11, 20))]
    assert history(client, writer.run_id(), "train/reward") == ends


def test_a_cell_that_diverges_in_mid_window_shows_it(client: Any, new_run: Any) -> None:
    writer = new_run()
    lines = journal(17)
    lines[-1]["update/loss"] = math.nan
    lines[-2]["train/reward"] = math.inf
    write_journal(writer.paths, lines)
    for _ in range(2):
        # Its `rounds` are those asked for: the points are at the round where it ended.
        finish(again(writer), 100, status="diverged", reason="loss is NaN")
        marks.mark_path(writer.paths).unlink()
    assert [step for step, _ in history(client, writer.run_id(), "update/loss")] == [10, 17]
    assert history(client, writer.run_id(), "update/loss")[-1] == (17, "NaN")
    (_, (step, reward)) = history(client, writer.run_id(), "train/reward")
    assert step == 17 and reward > 1e300  # MLflow's SQL store keeps infinity as its largest float


def test_more_points_than_one_call_takes(client: Any, new_run: Any) -> None:
    writer = new_run()
    lines = [{"round": r, "test/a": float(r), "test/b": -float(r)} for r in range(1300)]
    write_journal(writer.paths, lines)
    writer.begin(1)
    assert len(history(client, writer.run_id(), "test/a")) == 1300
    assert len(history(client, writer.run_id(), "test/b")) == 1300


def test_a_run_is_found_again_and_takes_new_tags(
    client: Any, store: Store, experiment: str
) -> None:
    work = work_of(store)
    run_id = run_of(client, experiment, work)
    wider = replace(work, grids=("one", "two"))
    for marked in (None, run_id):
        assert run_of(client, experiment, wider, marked) == run_id
    tags = client.get_run(run_id).data.tags
    assert tags["banditgrid.grid.one"] == tags["banditgrid.grid.two"] == "yes"
    assert tags["banditgrid.cell_key"] == work.cell.key
    assert client.get_run(run_id).data.params["batch"] == "32"
    assert client.get_run(run_id).info.run_name == work.cell.label


def test_scores_of_another_evaluation_get_a_run_of_their_own(
    client: Any, store: Store, experiment: str
) -> None:
    first = run_of(client, experiment, work_of(store))
    again = work_of(store, eval={"samples": 4})
    second = run_of(client, experiment, again, first)
    assert second != first
    assert [run.info.run_id for run in client.search_runs([experiment])] == [second]


def test_a_run_deleted_by_hand_is_made_anew_with_its_whole_history(
    client: Any, new_run: Any, undisturbed: Histories, capfd: Any
) -> None:
    writer = new_run()
    train(writer, 30)
    gone = writer.run_id()
    client.delete_run(gone)
    other = again(writer)
    train(other, 64, start=30)
    finish(other, 64)
    assert other.run_id() != gone and histories(client, other.run_id()) == undisturbed
    assert "deleted; a new one gets its history" in capfd.readouterr().out
    client.delete_run(other.run_id())
    deleted = tracking.deleted_runs(client, other.experiment)
    assert {gone, other.run_id()} <= deleted
    work = Work("s", other.cell, ("one",), "finished")
    assert marks.is_level(work, other.paths, other.uri)
    assert not marks.is_level(work, other.paths, other.uri, deleted)


def test_a_worker_that_lost_the_cell_sends_nothing_more(client: Any, new_run: Any) -> None:
    old = new_run()
    train(old, 20)
    new = again(old)
    write_journal(old.paths, journal(30))
    for send in (lambda: old.write({"test/pass_at_1": 1.0}), lambda: old.end("FAILED", "x")):
        with pytest.raises(lease.Lost):
            send()
    assert [s for s, _ in history(client, new.run_id(), "train/reward")] == [10, 20]
    assert client.get_run(new.run_id()).info.status == "RUNNING"


def test_a_run_of_a_cell_from_begin_to_finish(
    client: Any, store: Store, experiment: str, paths: CellPaths
) -> None:
    work = work_of(store)
    writer = writer_of(store.tracking_uri, experiment, work, paths)
    train(writer, 11)
    run_id = writer.run_id()
    assert client.get_run(run_id).info.status == "RUNNING"
    done = {"rounds": 11, "status": "diverged", "reason": "loss is NaN"}
    done |= {"base": {"test/pass_at_1": 0.1}, "final": {"test/pass_at_1": 0.4}}
    write_json(paths.done, done)
    assert not marks.is_level(work, paths, store.tracking_uri)
    writer.finish(done)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["banditgrid.status"] == "diverged"
    assert history(client, run_id, "final/test/pass_at_1") == [(11, 0.4)]
    assert history(client, run_id, "train/reward") == [(10, mean(1, 10)), (11, 11 / 7)]
    assert marks.is_level(work, paths, store.tracking_uri)
    assert not marks.is_level(replace(work, grids=("one", "new")), paths, store.tracking_uri)


def test_an_absent_server_never_stops_training_and_is_made_up_for(
    client: Any, store: Store, experiment: str, paths: CellPaths, capfd: Any
) -> None:
    work = work_of(store)
    began = time.monotonic()
    writer = writer_of(NOWHERE, experiment, work, paths)
    train(writer, 11)
    done = {"rounds": 11, "status": "finished", "base": {}, "final": {}}
    write_json(paths.done, done)
    writer.finish(done)
    assert time.monotonic() - began < 20
    assert writer.failures >= 2
    told = capfd.readouterr().err
    assert told.count("training goes on") == 1
    assert "secret" not in told
    writer.lease.release()
    assert writing.bring_level(work, paths, store.tracking_uri, experiment)
    run_id = run_of(client, experiment, work)
    assert history(client, run_id, "train/reward") == [(10, mean(1, 10)), (11, 11 / 7)]
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


def done_cell(writer: Writer) -> None:
    train(writer, 10)
    finish(writer, 10)


def test_a_run_tells_what_it_is_and_of_which_data_sets(client: Any, new_run: Any) -> None:
    writer = new_run()
    train(writer, 5)
    note = client.get_run(writer.run_id()).data.tags["mlflow.note.content"]
    assert "**running, attempt 1**" in note and "In the tables of `one`" in note
    client.set_tag(writer.run_id(), "mlflow.note.content", f"Seen by Ada.\n\n{note}")
    finish(writer, 5, status="diverged", diverged_round=5, reason="the loss is not finite")
    run = client.get_run(writer.run_id())
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("Seen by Ada.") and "diverged in round 5: the loss is not fin" in note
    assert [x.dataset.name for x in run.inputs.dataset_inputs] == ["gsm8k train", "gsm8k test"]
    assert run.data.tags["arm"] == "(32,1,0) raw"
    assert run.data.tags["pair"] == "qwen2.5-0.5b-instruct gsm8k"


def test_a_run_that_failed_says_why(client: Any, new_run: Any) -> None:
    writer = new_run()
    train(writer, 5)
    writer.end("FAILED", "CUDA is out of memory")
    note = client.get_run(writer.run_id()).data.tags["mlflow.note.content"]
    assert "**failed: CUDA is out of memory**" in note


def test_system_metrics_are_means_at_the_time_when_they_were(client: Any, new_run: Any) -> None:
    writer = new_run()
    lines = [
        {"round": r, "seconds": {"all": r / 10, "generate": 0.5}, "process": {"time": 1e9 + r}}
        for r in range(1, 15)
    ]
    writer.paths.directory.mkdir(parents=True, exist_ok=True)
    writer.paths.timings.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(writer, 14)
    finish(writer, 14)
    points = client.get_metric_history(writer.run_id(), "system/seconds_a_round")
    told = [(p.step, pytest.approx(p.value), p.timestamp) for p in points]
    assert told == [(10, 0.55, 1_000_000_010_000), (14, 1.25, 1_000_000_014_000)]
    assert history(client, writer.run_id(), "system/seconds_generate") == [(10, 0.5), (14, 0.5)]
    again(writer).finish(json.loads(writer.paths.done.read_text()))
    assert len(client.get_metric_history(writer.run_id(), "system/seconds_a_round")) == 2


def test_artifacts_that_are_refused_keep_no_number_back(
    client: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    experiment = tracking.ensure_experiment(client, "no artifacts", f"file://{tmp_path}/file")
    work, paths = work_of(store, seed=next(SEEDS)), CellPaths(tmp_path / "cell")
    writer = writer_of(store.tracking_uri, experiment, work, paths)
    paths.samples.write_text(json.dumps({"round": 5, "completion": "x"}) + "\n")
    done_cell(writer)
    assert writer.failures == 0 and marks.is_level(work, paths, store.tracking_uri)  # for good
    assert history(client, writer.run_id(), "test/pass_at_1")[-1] == (10, 0.1)
    assert capsys.readouterr().err.count("did not take the sample completions") == 1


def test_a_run_of_before_there_was_more_than_numbers_is_made_level(
    client: Any, store: Store, new_run: Any
) -> None:
    writer = new_run()
    done_cell(writer)
    work = Work("s", writer.cell, tuple(writer.grids), "finished")
    assert marks.is_level(work, writer.paths, store.tracking_uri)
    mark = json.loads(marks.mark_path(writer.paths).read_text())
    before = histories(client, writer.run_id())
    write_json(marks.mark_path(writer.paths), {k: v for k, v in mark.items() if k != "shown"})
    assert not marks.is_level(work, writer.paths, store.tracking_uri)
    again(writer).finish(json.loads(writer.paths.done.read_text()))
    assert marks.is_level(work, writer.paths, store.tracking_uri)
    assert histories(client, writer.run_id()) == before


class Slow503(http.server.BaseHTTPRequestHandler):
    """A proxy whose server is away, and which asks to come back in an hour."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "3600")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def away() -> Any:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow503)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_nobody_waits_as_long_as_a_proxy_asks(away: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="no MLflow tracking store answers"):
        tracking.connect(away)
    assert time.monotonic() - began < 60


def test_completions_that_are_away_are_sent_by_the_next_run(
    client: Any, store: Store, new_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = new_run()
    writer.paths.samples.write_text(json.dumps({"round": 5, "completion": "x"}) + "\n")

    def broken(*_: Any) -> None:
        raise requests.ConnectionError("the store of artifacts is away")

    with monkeypatch.context() as for_now:
        for_now.setattr(type(client), "log_text", broken)
        done_cell(writer)
    work = Work("s", writer.cell, tuple(writer.grids), "finished")
    assert writer.failures == 0 and not marks.is_level(work, writer.paths, store.tracking_uri)
    assert history(client, writer.run_id(), "test/pass_at_1")[-1] == (10, 0.1)
    again(writer).finish(json.loads(writer.paths.done.read_text()))
    assert marks.is_level(work, writer.paths, store.tracking_uri)
    assert [x.path for x in client.list_artifacts(writer.run_id())] == ["completions.json"]


def test_damaged_samples_keep_no_done_cell_behind(store: Store, new_run: Any) -> None:
    writer = new_run()
    writer.paths.samples.write_text("no JSON\n")
    done_cell(writer)
    work = Work("s", writer.cell, tuple(writer.grids), "finished")
    assert marks.is_level(work, writer.paths, store.tracking_uri)


def test_a_run_ended_when_its_cell_did_whenever_that_is_sent(client: Any, new_run: Any) -> None:
    writer = new_run()
    done_cell(writer)
    ended = client.get_run(writer.run_id()).info.end_time
    os.utime(writer.paths.done, (1e9, 1e9))
    again(writer).finish(json.loads(writer.paths.done.read_text()))
    assert client.get_run(writer.run_id()).info.end_time == 10**12 < ended


def test_a_cell_of_two_grids_is_level_with_both(store: Store, new_run: Any) -> None:
    """Runs of one grid and of the other, in turn, send nothing again."""
    writer = new_run()
    done_cell(writer)
    one = Work("s", writer.cell, tuple(writer.grids), "finished")
    other = replace(one, grids=("two",))
    assert not marks.is_level(other, writer.paths, store.tracking_uri)
    other_writer = writer_of(writer.uri, writer.experiment, other, writer.paths)
    other_writer.finish(json.loads(writer.paths.done.read_text()))
    for work in (one, other):
        assert marks.is_level(work, writer.paths, store.tracking_uri)


def test_a_superseded_run_is_in_no_view_and_never_taken_again(client: Any, new_run: Any) -> None:
    writer = new_run()
    done_cell(writer)
    old = writer.run_id()
    for name in ("banditgrid.cell_key", "banditgrid.grid.one"):  # as `_retire` leaves it
        client.delete_tag(old, name)
    assert again(writer).run_id() != old
