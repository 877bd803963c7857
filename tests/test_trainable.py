"""One attempt at a cell, as a Tune trial makes it: real training, a real lease, a real MLflow."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths, Store, read_json, read_lines, write_json
from orchestrator import tracking
from orchestrator.attempts import BLIND, HELD, MISTAKE
from orchestrator.trainable import ENDING_PROCESS, Task, Trial
from workers import lease
from workers.engine import TransformersEngine
from workers.engine_check import EngineError, NoRoomError
from workers.run import run_cell


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    write_json(store.identity, {"id": "this one"})
    return store


@pytest.fixture(scope="module")
def client(store: Store) -> Any:
    return tracking.connect(store.tracking_uri)


@pytest.fixture
def trial(store: Store, client: Any, request: pytest.FixtureRequest) -> Callable[..., Trial]:
    """Makes attempts at a cell of the study that is named as the test is."""
    study = request.node.name[:40].replace("[", "-").strip("]")
    experiment = tracking.ensure_experiment(client, study)

    def make(cell: Cell, **more: Any) -> Trial:
        task = Task(
            study=study, key=cell.key, cell=cell.model_dump_json(), store=str(store.root),
            store_id="this one", experiment=experiment, grids=["g"], gpus=None, stale=None,
            halved=False,
        )  # fmt: skip
        return Trial(Task(**{**task, **more}), store.tracking_uri, "node")  # type: ignore[typeddict-item]

    return make


def run_of(client: Any, made: Trial) -> Any:
    (run,) = client.search_runs([made.task["experiment"]])
    return run


def asked_at(made: Trial, round: int, ask: Callable[[], None]) -> None:
    """Do something when the cell has made a round."""
    whole = made.wish.look

    def look() -> bool:
        if len(read_lines(made.paths.journal)) == round + 1:
            ask()
            made.wish._looked = -1e9
        return whole()

    made.wish.look = look  # type: ignore[method-assign]


def test_an_attempt_that_finishes(trial: Any, tiny: Any, client: Any) -> None:
    made = trial(tiny())
    assert made.run() == {"how": "finished", "reason": ""}
    (line,) = read_lines(made.paths.attempts)
    assert (line["attempt"], line["how"], line["node"]) == (1, "finished", "node")
    assert (line["from_round"], line["to_round"]) == (None, 4)
    assert line["peak_rss_bytes"] > 10**8 and line["peak_gpu_bytes"] is None
    holder = lease.read(made.paths)
    assert holder is not None and holder.released
    assert run_of(client, made).info.status == "FINISHED"


def test_a_cell_that_another_has_finished_gets_no_attempt(trial: Any, tiny: Any) -> None:
    made = trial(tiny())
    made.run()
    assert trial(tiny()).run() == {"how": "finished", "reason": ""}
    assert len(read_lines(made.paths.attempts)) == 1
    holder = lease.read(made.paths)
    assert holder is not None and holder.epoch == 1


def test_a_cell_asked_to_leave_saves_and_goes_on_as_if_never_asked(
    trial: Any, tiny: Any, client: Any, tmp_path: Path
) -> None:
    cell = tiny(rounds=5, eval={"every": 5})
    made = trial(cell)
    asked_at(made, 3, lambda: write_json(made.paths.leave, {"why": "stopped"}))
    assert made.run()["how"] == "stopped"
    assert [p.name for p in made.paths.checkpoint.iterdir()] == ["000003"]
    assert run_of(client, made).info.status == "KILLED"
    assert made.paths.leave.exists(), "until the next run"
    made.paths.leave.unlink()
    assert trial(cell).run()["how"] == "finished"
    run_cell(cell, tmp_path, lambda _: None)
    whole = CellPaths(tmp_path)
    for path in (whole.journal, whole.samples, whole.done):
        assert (made.paths.directory / path.name).read_bytes() == path.read_bytes()
    assert [a["how"] for a in read_lines(made.paths.attempts)] == ["stopped", "finished"]
    assert run_of(client, made).info.status == "FINISHED"


def test_sigterm_is_a_preemption_notice(trial: Any, tiny: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    made = trial(tiny())
    asked_at(made, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert made.run()["how"] == "preempted"
    assert read_lines(made.paths.attempts)[-1]["to_round"] == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_study_that_is_to_stop_stops_all_its_cells(trial: Any, tiny: Any, store: Store) -> None:
    made = trial(tiny())
    file = store.study(made.task["study"]).leave
    asked_at(made, 2, lambda: write_json(file, {"why": "stopped"}))
    assert made.run()["how"] == "stopped"
    assert trial(tiny(seed=1)).run()["how"] == "stopped", "before its first round"


def test_a_failure_is_noted_with_its_traceback_and_log(
    trial: Any, tiny: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        print("about to break")
        raise RuntimeError("broken at //user:secret@host")

    monkeypatch.setattr("workers.trainer.BanditTrainer.train", broken)
    made = trial(tiny())
    result = made.run()
    assert result == {"how": "failed", "reason": "RuntimeError: broken at //***@host"}
    failed = read_json(made.paths.failed)
    assert failed is not None and failed["attempts"] == 1 and "Traceback" in failed["traceback"]
    assert "secret" not in made.paths.failed.read_text() + made.paths.attempts.read_text()
    assert "about to break" in made.paths.log.read_text()
    assert run_of(client, made).info.status == "FAILED"


def test_memory_that_runs_out_is_told_apart(
    trial: Any, tiny: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    cell = tiny(rows_per_pass=4)
    with monkeypatch.context() as patch:
        patch.setattr("workers.trainer.BanditTrainer.train", full)
        made = trial(cell)
        assert made.run()["how"] == "out_of_memory"
    again = trial(cell, halved=True)
    assert again.run()["how"] == "finished"
    assert read_lines(made.paths.attempts)[-1]["rows_per_pass"] == 4
    assert run_of(client, made).data.tags["banditgrid.rows_per_pass"] == "4"
    assert not made.paths.failed.exists()


def test_an_engine_that_dies_is_told_with_its_round_and_nothing_is_lost(
    trial: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every round leaves a checkpoint here; the engine dies in the third."""
    monkeypatch.setattr("workers.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("workers.run.CHECKPOINT_SHARE", float("inf"))
    cell = tiny()
    with monkeypatch.context() as patch:
        made = trial(cell)
        whole = TransformersEngine.generate

        def dying(engine: Any, *args: Any, **kwargs: Any) -> Any:
            if len(read_lines(made.paths.journal)) == 3:
                raise EngineError("the engine died: RuntimeError: broken")
            return whole(engine, *args, **kwargs)

        patch.setattr(TransformersEngine, "generate", dying)
        reason = "the engine died: RuntimeError: broken (in round 3)"
        assert made.run() == {"how": "engine_died", "reason": reason}
    assert made.spoilt and "engine_died" in ENDING_PROCESS
    again = trial(cell)
    assert again.run()["how"] == "finished" and not again.spoilt
    first, second = read_lines(made.paths.attempts)
    assert (first["how"], first["to_round"], second["from_round"]) == ("engine_died", 2, 2)
    assert not made.paths.failed.exists()
    run_cell(cell, tmp_path / "whole", lambda _: None)
    assert made.paths.journal.read_bytes() == CellPaths(tmp_path / "whole").journal.read_bytes()


def test_an_engine_without_room_has_died_and_its_process_ends(
    trial: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*_: Any, **__: Any) -> None:
        raise NoRoomError("no room") from torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TransformersEngine, "generate", small)
    made = trial(tiny())
    assert made.run() == {"how": outcome.ENGINE_DIED, "reason": "no room"}
    assert made.spoilt


def test_a_person_s_mistake_is_its_own_message(trial: Any, tiny: Any) -> None:
    made = trial(tiny())
    made.paths.directory.mkdir(parents=True)
    write_json(made.paths.cell, tiny(seed=7).model_dump(mode="json"))
    result = made.run()
    assert result["how"] == MISTAKE and "holds another cell" in result["reason"]


def test_a_damaged_journal_is_named_and_left_as_it_is(trial: Any, tiny: Any) -> None:
    cell = tiny()
    made = trial(cell)
    asked_at(made, 2, lambda: write_json(made.paths.leave, {"why": "stopped"}))
    made.run()
    made.paths.leave.unlink()
    lines = made.paths.journal.read_text().splitlines()
    text = "\n".join([lines[0], lines[1][:-20], lines[2]]) + "\n"
    made.paths.journal.write_text(text)
    result = trial(cell).run()
    assert result["how"] == MISTAKE
    assert "journal.jsonl: line 2 is damaged" in result["reason"]
    assert "put the file back from a copy, or delete" in result["reason"]
    assert made.paths.journal.read_text() == text and made.paths.checkpoint.exists()


def test_a_worker_whose_cell_was_taken_over_leaves_no_trace_of_its_end(
    trial: Any, tiny: Any, client: Any
) -> None:
    made = trial(tiny())
    taken: list[lease.Lease] = []

    def take() -> None:
        taken.append(lease.acquire(made.paths, "cell", stale=1))

    asked_at(made, 1, take)
    assert made.run()["how"] == "lost"
    assert [line["round"] for line in read_lines(made.paths.journal)] == [0, 1]
    assert not made.paths.failed.exists() and not made.paths.attempts.exists()
    assert run_of(client, made).info.status == "RUNNING", "its successor's business"
    taken[0].release()
    assert trial(tiny()).run()["how"] == "finished"


def test_a_cell_that_another_has_is_left_alone(trial: Any, tiny: Any) -> None:
    made = trial(tiny())
    with lease.held(made.paths, "cell"):
        assert made.run()["how"] == HELD
    assert not made.paths.journal.exists() and not made.paths.attempts.exists()


def test_a_host_that_does_not_see_the_store_writes_nothing(
    trial: Any, tiny: Any, tmp_path: Path
) -> None:
    for changed in ({"store": str(tmp_path / "not mounted")}, {"store_id": "another"}):
        made = trial(tiny(), **changed)
        result = made.run()
        assert result["how"] == BLIND and "does not see the store" in result["reason"]
        assert not made.paths.directory.exists()
    assert not (tmp_path / "not mounted").exists()
