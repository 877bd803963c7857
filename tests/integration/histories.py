"""What a study left, and that two studies left the same: in the store, and in MLflow.

Two studies of the same cells are compared by cell key. Leaves out how they came about.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from grids import outcome
from grids.paths import CellPaths, StudyPaths, read_json, read_lines
from orchestrator.tracking import quiet_client
from tests.kills import assert_equal

PAGE = 1000


@dataclass(frozen=True)
class Tracked:
    """One MLflow run.

    Attributes:
        histories: metric -> (step, timestamp, value) of every point, in order. A value is its
            `repr`, so that NaN equals NaN. System metrics, which tell how long things took, are
            left out.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    histories: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)


def tracked(uri: str, study: str) -> dict[str, Tracked]:
    """The active runs of a study by cell key. Asserts that a cell has one."""
    client = quiet_client(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None, f"{uri} has no experiment {study}"
    found: dict[str, Tracked] = {}
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=PAGE, page_token=token)
        for run in page:
            key = run.data.tags[outcome.TAG_CELL_KEY]
            assert key not in found, f"{run.info.run_name}: runs {found[key].run_id}, {run.info}"
            found[key] = _tracked(client, run)
        if not (token := page.token):
            return found


def _tracked(client: Any, run: Any) -> Tracked:
    run_id = run.info.run_id
    histories = {
        name: sorted(
            (point.step, point.timestamp, repr(point.value))
            for point in client.get_metric_history(run_id, name)
        )
        for name in sorted(run.data.metrics)
        if not name.startswith(outcome.SYSTEM_PREFIX)
    }
    return Tracked(run_id, run.info.status, run.data.tags, run.data.params, histories)


def assert_same_histories(one: dict[str, Tracked], other: dict[str, Tracked]) -> None:
    """Each has each (metric, step) once, and both the same points of the same cells."""
    assert one.keys() == other.keys()
    for key, run in one.items():
        for name, points in run.histories.items():
            often = Counter(step for step, _, _ in points)
            twice = [step for step, count in often.items() if count > 1]
            assert not twice, f"{key}: {name} has several points at steps {twice}"
        assert run.histories.keys() == other[key].histories.keys(), key
        for name, points in run.histories.items():
            assert points == other[key].histories[name], f"{key}: {name}"
        assert (run.status, run.params) == (other[key].status, other[key].params), key


def assert_same_studies(one: StudyPaths, other: StudyPaths) -> None:
    """All cells are done; journals, samples, marks, answers and weights are equal to the byte."""
    keys = [sorted(path.name for path in study.cells.iterdir()) for study in (one, other)]
    assert keys[0] == keys[1]
    for key in keys[0]:
        for study in (one, other):
            mark = read_json(study.cell(key).done)
            assert mark is not None and mark["status"] in ("finished", "diverged"), key
        assert_equal(one.cell(key).directory, other.cell(key).directory)


def assert_one_at_a_time(paths: CellPaths) -> list[dict[str, Any]]:
    """The attempts at a cell, of which no two were at work at once, and the last finished it.

    Hosts of one machine have one clock, so that times of attempts can be compared. An attempt that
    fell silent ends when its successor says so. Rounds are timed once each, by the attempt whose
    work counts: attempts follow each other from round to round.
    """
    lines = read_lines(paths.attempts)
    numbers = [line["attempt"] for line in lines]
    assert numbers == list(range(1, len(lines) + 1)), f"{paths.directory}: attempts {numbers}"
    assert lines and lines[-1]["how"] in ("finished", "diverged"), lines
    assert all(line["how"] not in ("finished", "diverged") for line in lines[:-1]), lines
    for before, after in zip(lines, lines[1:], strict=False):
        _assert_after(before, after, paths)
    timed = read_lines(paths.timings)
    by_round = [(line["round"], line["attempt"]) for line in timed]
    assert by_round == sorted(by_round), f"{paths.directory}: rounds went back: {by_round}"
    assert len({round for round, _ in by_round}) == len(by_round), "a round is timed twice"
    assert {attempt for _, attempt in by_round} <= set(numbers)
    return lines


def _assert_after(before: dict[str, Any], after: dict[str, Any], paths: CellPaths) -> None:
    """An attempt began when the one before had ended, with what that had left.

    The end of one that was `lost` is noted within its successor's attempt.
    """
    told = f"{paths.directory}: {before} then {after}"
    assert _time(before["began"]) <= _time(after["began"]), told
    if before["how"] != outcome.LOST:
        assert _time(before["ended"]) <= _time(after["began"]), told
    assert before["to_round"] == after["from_round"], told


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
