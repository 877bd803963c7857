"""At which learning rates a verdict is, and what lifts that from it."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.bundle import BundleSource, write_bundle
from analysis.declared import results
from analysis.sources import StoreSource
from analysis.study import Study
from grids.grid import Grid
from grids.paths import Store, write_json
from orchestrator.plan import make_plan
from orchestrator.searches import Searches
from tests.synthetic_store import evaluated, make_store, study_of, write_done, write_journal
from tests.test_declared import trained

RATES = {"raw": 1e-5, "grpo": 9.1e-5}
GIVEN: dict[str, Any] = {
    "name": "g", "study": "s", "seeds": [0, 1, 2, 3],
    "base": {"rounds": 20, "rollouts": 8, "eval": {"every": 10, "train_questions": 0}},
    "axes": {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "advantage": ["raw", "grpo"]},
    "contrasts": [{"name": "n", "a": {"advantage": "raw"}, "b": {"advantage": "grpo"}}],
    "search": {"lr": {"over": {"lr": {"choices": [1e-5, 9.1e-5, 3e-4]}}, "cells": 12}},
}  # fmt: skip
SHARES = {"raw": 0.4, "grpo": 0.7}


def overrides(rates: dict[str, float] = RATES, found: str | None = "lr") -> list[dict[str, Any]]:
    return [
        {"for": {"model": "tiny-qwen2", "advantage": name}, "set": {"lr": lr}, "found": found}
        for name, lr in rates.items()
    ]


def grid_of(**changed: Any) -> Grid:
    return Grid.model_validate(GIVEN | {"overrides": overrides()} | changed)


def search(store: Store, grid: Grid, waves: int = 3) -> None:
    """Train a search's cells: the best rates are those of `RATES`."""
    for wave in range(waves + 1):
        searches = Searches([grid], make_plan([grid], store), store)
        searches.write()
        for work in searches.more() if wave < waves else ():
            val = 0.5 if work.cell.lr == RATES[work.cell.advantage] else 0.2
            lines = {0: evaluated(0.1), 20: evaluated(0.9) | {"val/pass_at_1": val}}
            write_journal(work.paths(store), lines)
            write_done(work.cell, work.paths(store), lines)


def told(store: Store, grid: Grid, study: Study | None = None) -> tuple[str, tuple[str, ...]]:
    for cell in grid.cells():
        trained(store, grid, cell, SHARES[cell.advantage])
    (result,) = results(grid, study or study_of(grid, store))
    notes = tuple(note for note in result.notes if "lr" in note)
    return result.told, notes


@pytest.fixture
def store(tmp_path: Any) -> Store:
    return make_store(tmp_path)


def test_rates_that_a_search_found_lift_the_rate_from_the_verdict(store: Store) -> None:
    grid = grid_of()
    search(store, grid)
    assert told(store, grid) == ("better, each arm at its own lr (search lr, 12 cells)", ())


def test_a_bundle_tells_the_same(store: Store, tmp_path: Any) -> None:
    grid = grid_of()
    search(store, grid)
    told(store, grid)
    bundle = write_bundle(StoreSource(store.study("s")), tmp_path / "s.banditgrid.zip")
    (result,) = results(grid, Study(BundleSource(bundle)))
    assert result.told == "better, each arm at its own lr (search lr, 12 cells)"


def test_a_search_declared_in_another_grid_of_the_study_counts_too(store: Store) -> None:
    search(store, grid_of(name="tune"))
    tables = grid_of(search={})
    assert told(store, tables)[0] == "better, each arm at its own lr (search lr, 12 cells)"


def test_without_a_record_the_verdict_keeps_its_rates_and_says_why(store: Store) -> None:
    text, notes = told(store, grid_of())
    assert text == "better at lr 1e-05 and 9.1e-05"
    assert notes[0] == (
        "arm a: its lr is not taken as found by search lr: the study has no record of it"
    )
    assert len(notes) == 2


def test_a_search_that_is_not_over_lifts_nothing(store: Store) -> None:
    grid = grid_of()
    search(store, grid, waves=0)
    text, notes = told(store, grid)
    assert text == "better at lr 1e-05 and 9.1e-05"
    assert all(note.endswith("it is not over") for note in notes) and len(notes) == 2


def test_a_rate_that_is_not_the_best_found_lifts_nothing(store: Store) -> None:
    search(store, grid_of())
    grid = grid_of(overrides=overrides(RATES | {"grpo": 3e-4}))
    text, notes = told(store, grid)
    assert text == "better at lr 1e-05 and 0.0003"
    assert notes == (
        "arm b: its lr is not taken as found by search lr: it found lr 9.1e-05, the arm has 0.0003",
    )


def test_what_was_found_on_another_arm_lifts_nothing(store: Store) -> None:
    search(store, grid_of())
    other = grid_of(base=GIVEN["base"] | {"rollouts": 4})
    text, notes = told(store, other)
    assert text == "better at lr 1e-05 and 9.1e-05"
    assert all(note.endswith("it was made on other arms") for note in notes)


def test_one_arm_alone_is_not_enough(store: Store) -> None:
    grid = grid_of(overrides=overrides()[1:], base=GIVEN["base"] | {"lr": 1e-5})
    search(store, grid)
    text, notes = told(store, grid)
    assert text == "better at lr 1e-05 and 9.1e-05"
    assert notes == ("arm a: its lr was not searched for",)


def test_rates_that_differ_by_hand_are_told(store: Store) -> None:
    grid = grid_of(overrides=overrides(found=None), search={})
    assert told(store, grid) == ("better at lr 1e-05 and 9.1e-05", ())


def test_one_rate_for_both_is_told_once(store: Store) -> None:
    grid = grid_of(overrides=[], search={}, base=GIVEN["base"] | {"lr": 2e-5})
    assert told(store, grid) == ("better at lr 2e-05", ())


def test_a_contrast_of_rates_says_them_itself(store: Store) -> None:
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "lr": [1e-5, 1e-4]}
    contrast = {"name": "n", "a": {"lr": 1e-5}, "b": {"lr": 1e-4}}
    grid = grid_of(axes=axes, contrasts=[contrast], overrides=[], search={})
    for cell in grid.cells():
        trained(store, grid, cell, 0.4 if cell.lr == 1e-5 else 0.7)
    (result,) = results(grid, study_of(grid, store))
    assert result.told == "better"


def test_a_damaged_record_lifts_nothing(store: Store) -> None:
    path = store.study("s").searches / "g.lr.json"
    write_json(path, {"search": "lr", "grid": "g", "declared": {"over": {"lr": {}}}, "arms": [1]})
    _, notes = told(store, grid_of())
    assert all(note.endswith("its record cannot be read") for note in notes) and notes
    path.write_text("{", encoding="utf-8")
    _, notes = told(store, grid_of())
    assert all(note.endswith("the study has no record of it") for note in notes)
