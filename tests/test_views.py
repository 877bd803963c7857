"""Saved views: of the right runs, over names that runs have, small enough, always the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grids import load_grid
from grids.grid import Grid
from grids.outcome import TAG_ARM, TAG_PAIR
from orchestrator import tracking, views
from orchestrator.plan import make_plan
from tests.conftest import GRIDS

MOST_OF_A_TAG = 20_000  # what MLflow takes in a tag of an experiment


def grid(name: str, seeds: list[int]) -> Grid:
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}
    return Grid.model_validate({"name": name, "study": "s", "axes": axes, "seeds": seeds})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tracking.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


def test_a_grids_view_finds_its_runs_and_no_other(client, tmp_path) -> None:
    from grids.paths import Store

    grids = [grid("one", [0, 1]), grid("one-more", [1, 2])]
    experiment = tracking.ensure_experiment(client, "s")
    for work in make_plan(grids, Store(tmp_path)).works:
        tracking.ensure_run(client, experiment, work.cell, work.grids, None)
    for of in grids:
        found = client.search_runs([experiment], views.of_grid(of)["searchFilter"])
        assert {int(run.data.params["seed"]) for run in found} == set(of.seeds)
    assert len(client.search_runs([experiment], views.of_study()["searchFilter"])) == 3


def test_columns_and_groups_are_of_names_that_runs_have(client, tmp_path) -> None:
    run = client.search_runs([client.get_experiment_by_name("s").experiment_id])[0]
    have = {f"tags.`{name}`" for name in run.data.tags} | {
        f"params.`{name}`" for name in run.data.params
    }
    columns = views.of_study()["selectedColumns"]
    sent = {f"metrics.`{views.BASE}`", f"metrics.`{views.FINAL}`", "tags.`banditgrid.status`"}
    assert set(columns) <= have | sent
    grouped = views.of_grid(grid("g", [0]))["groupBy"]["groupByKeys"]
    assert [key["groupByData"] for key in grouped] == [TAG_PAIR, TAG_ARM]
    assert {TAG_PAIR, TAG_ARM} <= set(run.data.tags)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_views_of_shipped_grids_fit_in_a_tag(path) -> None:
    loaded = load_grid(path)
    name, value = views.tag(views.key_of(loaded), views.title_of(loaded), views.of_grid(loaded))
    assert len(value) < MOST_OF_A_TAG and name.startswith("mlflow.sharedViewState.")
    assert json.loads(json.loads(value)["state"])["searchFilter"]


def test_equal_views_are_equal_tags() -> None:
    assert len({views.tag("k", "t", views.of_grid(grid("g", [0]))) for _ in range(3)}) == 1


def test_the_menu_has_the_study_first_and_then_the_papers_order() -> None:
    sections = [None, "4.10", "4.2"]
    made = [views.tag(str(x), f"{x} grid", {}, x) for x in sections]
    made.append(views.tag(views.STUDY, "all", {}))
    newest_first = sorted(made, key=lambda tag: -json.loads(tag[1])["createdAt"])
    assert [json.loads(tag[1])["name"] for tag in newest_first] == [
        "all", "4.2 grid", "4.10 grid", "None grid",
    ]  # fmt: skip
