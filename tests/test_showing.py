"""A study in MLflow: description and views are made once, kept level, and leave people's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from grids import outcome
from grids.grid import Grid
from grids.paths import Store
from orchestrator import notes, tracking, views
from orchestrator.plan import make_plan
from orchestrator.showing import TAG_ANALYSIS, show_study, show_verdicts, under
from tests.test_notes import verdict

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def grid(name: str, about: str = "") -> Grid:
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "rollouts": [1, 8]}
    return Grid.model_validate({"name": name, "study": "s", "about": about, "axes": axes})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tracking.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


@pytest.fixture
def experiment(client: Any, request: pytest.FixtureRequest) -> str:
    return tracking.ensure_experiment(client, request.node.name)


def tags(client: Any, experiment: str) -> dict[str, str]:
    return dict(client.get_experiment(experiment).tags)


def test_what_earlier_runs_said_of_other_grids_stays(client, experiment) -> None:
    show_study(client, experiment, [(grid("one", "first of all"), 2)])
    show_study(client, experiment, [(grid("two", "then this"), 2)])
    note = tags(client, experiment)[outcome.TAG_NOTE]
    assert "first of all" in note and "then this" in note
    kept = under(views.TAG_PREFIX, tags(client, experiment))
    assert set(kept) == {views.STUDY, "banditgrid-grid-one", "banditgrid-grid-two"}


def test_nothing_is_sent_twice(client, experiment) -> None:
    sent = []

    class Counting(type(client)):
        def set_experiment_tag(self, *given: Any) -> None:
            sent.append(given)
            super().set_experiment_tag(*given)

    counting = Counting(client.tracking_uri)
    show_study(counting, experiment, [(grid("one"), 2)])
    assert len(sent) == 5
    show_study(counting, experiment, [(grid("one"), 2)])
    assert len(sent) == 5


def test_a_persons_words_and_views_stay(client, experiment) -> None:
    client.set_experiment_tag(experiment, outcome.TAG_NOTE, "Ask Ada before you delete.")
    client.set_experiment_tag(experiment, f"{views.TAG_PREFIX}mine", "{}")
    show_study(client, experiment, [(grid("one"), 2)])
    assert tags(client, experiment)[outcome.TAG_NOTE].startswith("Ask Ada before you delete.\n\n")
    assert tags(client, experiment)[f"{views.TAG_PREFIX}mine"] == "{}"


@pytest.fixture
def runs(client, experiment, tmp_path) -> dict[int, str]:
    """rollouts -> the run of a cell of the grid `g`, with a description as its worker makes it."""
    made = {}
    for work in make_plan([grid("g")], Store(tmp_path)).works:
        run_id = tracking.ensure_run(client, experiment, work.cell, work.grids, None)
        ours = notes.run_note(work.cell, work.grids, "running", {}, {})
        client.set_tag(run_id, outcome.TAG_NOTE, notes.joined("mine", ours))
        made[work.cell.rollouts] = run_id
    return made


def test_verdicts_reach_the_study_and_the_runs_of_both_arms(client, experiment, runs) -> None:
    keys = {n: client.get_run(r).data.tags[outcome.TAG_ARM_KEY] for n, r in runs.items()}
    said = verdict(a_key=keys[1], b_key=keys[8])
    assert show_verdicts(client, experiment, "r1", {"g": [said]}, NOON) == 2
    assert show_verdicts(client, experiment, "r1", {"g": [said]}, NOON) == 0
    assert "better at lr 1e-06" in tags(client, experiment)[outcome.TAG_NOTE]
    assert tags(client, experiment)[TAG_ANALYSIS] == "r1"
    for rollouts, side in ((1, "a"), (8, "b")):
        note = client.get_run(runs[rollouts]).data.tags[outcome.TAG_NOTE]
        assert note.startswith("mine") and f"this run is of {side}): **better" in note
    # Tables of another grid, which say something else of the same arm, stand beside them.
    other = said._replace(grid="h", told="inconclusive at lr 1e-06")
    client.set_tag(runs[1], f"{outcome.TAG_GRID_PREFIX}h", "yes")
    show_verdicts(client, experiment, "r1", {"h": [other]}, NOON)
    note = client.get_run(runs[1]).data.tags[outcome.TAG_NOTE]
    assert "**better" in note and "**inconclusive" in note
    # What the last tables no longer say is gone, from the study too.
    show_verdicts(client, experiment, "r1", {"g": []}, NOON)
    note = client.get_run(runs[1]).data.tags[outcome.TAG_NOTE]
    assert "**better" not in note and "**inconclusive" in note
    assert "better at lr" not in tags(client, experiment)[outcome.TAG_NOTE]


def test_tables_without_contrasts_change_no_run(client, experiment, runs) -> None:
    before = client.get_run(runs[1]).data.tags
    show_verdicts(client, experiment, "r1", {"g": []}, NOON)
    assert client.get_run(runs[1]).data.tags == before
    assert "#/experiments" in tags(client, experiment)[outcome.TAG_NOTE]
