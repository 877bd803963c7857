"""Searches: waves, rungs and resuming, over what cells are said to have reached."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from grids import outcome
from grids.cell import Cell
from grids.grid import Grid
from grids.paths import Store, read_json
from grids.search import problems
from orchestrator.plan import make_plan
from orchestrator.searches import Searches
from orchestrator.searching import LEFT, UNSCORED, Hunt, Reading, reading
from orchestrator.show_search import show_searches, show_waiting
from tests.synthetic_store import evaluated, write_done, write_journal

LR = {"low": 1e-5, "high": 1e-3, "log": True}
GIVEN: dict[str, Any] = {
    "name": "g", "study": "s", "base": {"rounds": 40, "batch": 8, "eval": {"every": 10}},
    "axes": {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]},
}  # fmt: skip


def grid_of(search: dict[str, Any] | None = None, **changed: Any) -> Grid:
    lr = {"over": {"lr": LR}, "cells": 12, "wave": 4} | (search or {})
    return Grid.model_validate(GIVEN | {"search": {"lr": lr}} | changed)


def val_of(cell: Cell) -> float:
    """Best near lr 1e-4, and the better the longer."""
    return 0.5 - abs(math.log10(cell.lr) + 4) / 10 + cell.rounds / 1000


class Bench:
    """Reads cells as if they were trained, up to a number of them, each once."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.trained = most, dict[tuple[str, int], Cell]()

    def read(self, cell: Cell) -> Reading | None:
        where = (cell.key, cell.rounds)
        if where not in self.trained and len(self.trained) >= self.most:
            return None
        self.trained[where] = cell
        return Reading(val_of(cell))


def hunt_of(search: dict[str, Any] | None = None, bench: Bench | None = None) -> Hunt:
    (problem,) = problems(grid_of(search))
    hunt = Hunt(problem, (bench or Bench()).read)
    hunt.wanted()
    return hunt


def told(hunt: Hunt) -> list[tuple[Any, ...]]:
    return [(t.number, t.settings, t.seen, t.state) for t in hunt.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_equal_seeds_suggest_the_same_and_others_something_else(sampler: str) -> None:
    one = hunt_of({"optuna": {"sampler": sampler}})
    assert one.complete and len(one.trials) == 12 and one.wanted() == []
    assert told(one) == told(hunt_of({"optuna": {"sampler": sampler}}))
    other = hunt_of({"optuna": {"sampler": sampler, "seed": 1}})
    assert not {t.settings["lr"] for t in one.trials} & {t.settings["lr"] for t in other.trials}


def test_suggestions_follow_what_was_told() -> None:
    """Else a search would be a draw at random."""
    (problem,) = problems(grid_of())
    contrary = Hunt(problem, lambda cell: Reading(-val_of(cell)))
    contrary.wanted()
    one = hunt_of()
    assert [t.settings for t in one.trials[:4]] == [t.settings for t in contrary.trials[:4]]
    assert [t.settings for t in one.trials[4:]] != [t.settings for t in contrary.trials[4:]]


@pytest.mark.parametrize("most", [0, 3, 4, 7, 11])
def test_an_interrupted_search_goes_on_as_an_uninterrupted_one(most: int) -> None:
    bench = Bench(most)
    (problem,) = problems(grid_of())
    wanted = Hunt(problem, bench.read).wanted()
    assert len(wanted) == 4 - most % 4  # what is left of the open wave, and no more
    bench.most = 1000
    again = Hunt(problem, bench.read)
    assert again.wanted() == [] and told(again) == told(hunt_of())
    assert len(bench.trained) == 12


def test_a_larger_budget_goes_on_from_the_same_trials() -> None:
    assert told(hunt_of({"cells": 20}))[:12] == told(hunt_of())


def test_the_best_half_of_a_wave_goes_on_from_each_rung() -> None:
    bench = Bench()
    hunt = hunt_of({"rungs": [10, 20], "cells": 8}, bench)
    for wave in (hunt.trials[:4], hunt.trials[4:]):
        ranked = sorted(wave, key=lambda t: -t.seen[10])
        assert [list(t.seen) for t in ranked] == [[10, 20, 40], [10, 20], [10], [10]]
        assert [t.state for t in ranked] == ["finished", LEFT, LEFT, LEFT]
    assert len(bench.trained) == 2 * (4 + 2 + 1)
    assert hunt.best is not None and hunt.best.seen.keys() == {10, 20, 40}
    assert {cell.rounds for t in hunt.trials for cell in hunt.cells(t)} == {10, 20, 40}


def test_a_suggestion_that_came_before_counts_and_is_trained_once() -> None:
    bench = Bench(0)
    choices = {"over": {"kl": {"choices": ["off", 0.001]}}}
    (problem,) = problems(grid_of(choices))
    hunt = Hunt(problem, bench.read)
    assert 1 <= len(hunt.wanted()) <= 2 and len(hunt.trials) == 4
    bench.most = 1000
    assert hunt.wanted() == [] and len(hunt.trials) == 12
    assert len(bench.trained) == 2
    assert {t.settings["kl"] for t in hunt.trials} == {0.0, 0.001}


def test_a_trial_tells_the_mean_over_its_seeds() -> None:
    (problem,) = problems(grid_of({"seeds": [5, 6], "cells": 4, "wave": 2}))
    hunt = Hunt(problem, lambda cell: Reading(cell.seed / 10))
    assert hunt.wanted() == [] and len(hunt.trials) == 2
    assert hunt.trials[0].val == pytest.approx(0.55)
    assert hunt.trials[0].by_seed == {5: 0.5, 6: 0.6}


def test_a_diverged_trial_is_told_its_last_score_and_is_never_the_best() -> None:
    (problem,) = problems(grid_of({"cells": 4, "rungs": [20]}))

    def read(cell: Cell) -> Reading:
        return Reading(0.9, diverged=True) if cell.lr > 1e-4 else Reading(val_of(cell))

    hunt = Hunt(problem, read)
    assert hunt.wanted() == []
    high = [t for t in hunt.trials if t.settings["lr"] > 1e-4]
    assert high and all((t.state, t.seen) == ("diverged", {20: 0.9}) for t in high)
    assert hunt.best is not None and hunt.best.settings["lr"] <= 1e-4


def test_without_a_score_a_trial_is_none() -> None:
    (problem,) = problems(grid_of({"cells": 4}))
    hunt = Hunt(problem, lambda _: Reading(math.nan))
    assert hunt.wanted() == [] and hunt.complete and hunt.best is None
    assert {t.state for t in hunt.trials} == {UNSCORED}


def test_numbers_that_are_suggested_have_few_digits_and_stay_in_their_range() -> None:
    narrow = {"over": {"lr": {"low": 1.2345e-5, "high": 1.2349e-5}}}
    for tried in hunt_of(narrow).trials:
        assert 1.2345e-5 <= tried.settings["lr"] <= 1.2349e-5
    assert all(len(f"{t.settings['lr']:.10g}".split("e")[0]) <= 4 or t.settings["lr"] >= 1e-4
               for t in hunt_of().trials)  # fmt: skip


# ---- what cells say


def cell_in(store: Store, lines: dict[int, dict[str, float]], **mark: Any) -> Cell:
    (problem,) = problems(grid_of())
    cell = problem.cell({"lr": 1e-4}, 1000, 20)
    paths = store.study("s").cell(cell.key)
    write_journal(paths, lines)
    if mark:
        write_done(cell, paths, lines, **mark)
    return cell


def scored(val: float) -> dict[str, float]:
    return evaluated(0.9) | {outcome.VAL_PASS: val}


def read(store: Store, cell: Cell) -> Reading | None:
    return reading(store.study("s").cell(cell.key), cell)


def test_a_score_is_read_at_the_trials_own_round(tmp_path: Path) -> None:
    store = Store(tmp_path)
    lines = {0: scored(0.1), 10: scored(0.2), 20: scored(0.3)}
    cell = cell_in(store, lines)
    assert read(store, cell) is None  # its end is not written yet
    cell = cell_in(store, lines, status="finished")
    assert read(store, cell) == Reading(0.3)
    longer = lines | {30: {}, 40: scored(0.7)}
    assert read(store, cell_in(store, longer, status="finished")) == Reading(0.3)
    store.study("s").cell(cell.key).done.unlink()
    assert read(store, cell_in(store, longer)) == Reading(0.3)


def test_a_diverged_cell_is_read_at_its_last_score(tmp_path: Path) -> None:
    store, lines = Store(tmp_path), {0: scored(0.1), 10: scored(0.2), 15: {}}
    broke = {"status": "diverged", "diverged_round": 15, "base": {}, "final": {}}
    assert read(store, cell_in(store, lines, **broke)) == Reading(0.2, diverged=True)
    later = lines | {20: scored(0.4), 33: {}}
    assert read(store, cell_in(store, later, **broke | {"diverged_round": 33})) == Reading(0.4)


# ---- beside the tables


SHARED = {"base": GIVEN["base"] | {"holdout": 20, "kl": 0.001, "keep": "none"}, "seeds": [1000]}


def test_a_cell_that_a_table_needs_is_trained_to_its_end_whatever_the_rungs_say(
    tmp_path: Path,
) -> None:
    search = {"over": {"kl": {"choices": [0.001, 0.5]}}, "holdout": 20, "rungs": [10]}
    grid, store = grid_of(search, **SHARED), Store(tmp_path)
    plan = make_plan([grid], store)
    (needed,) = plan.works
    searches = Searches([grid], plan, store)
    (hunt,) = searches.hunts
    wanted = {cell.key for tried in hunt.trials for cell in hunt.cells(tried)}
    assert needed.cell.key in wanted  # the search tries it too ...
    assert [w.cell.key for w in searches.works] == [key for key in wanted - {needed.cell.key}]
    more = {work.cell.key: work.cell for work in searches.more()}
    assert more[needed.cell.key].rounds == 40 and needed.cell.rounds == 40  # ... at full length
    (other,) = searches.works
    assert other.cell.rounds == 10 and other.grids == ("g.search.lr",)
    assert other.cell.keep == "weights"  # it may have to go on


def test_what_is_found_is_written_as_one_file_a_search(tmp_path: Path) -> None:
    grid, store = grid_of({"cells": 4}), Store(tmp_path)
    searches = Searches([grid], make_plan([grid], store), store)
    for work in searches.works:
        lines = {0: scored(0.1), 40: scored(val_of(work.cell))}
        write_journal(work.paths(store), lines)
        write_done(work.cell, work.paths(store), lines)
    assert searches.more() == []
    path = store.study("s").searches / "g.lr.json"
    found = read_json(path)
    assert found is not None and found["declared"]["metric"] == "val/pass_at_1"
    (arm,) = found["arms"]
    assert arm["complete"] and len(arm["trials"]) == 4
    best = arm["trials"][arm["best"]]
    assert best["val"] == max(trial["val"] for trial in arm["trials"])
    assert best["cells"][0]["key"] in {work.cell.key for work in searches.works}
    before = path.stat().st_mtime_ns
    Searches([grid], make_plan([grid], store), store).write()
    assert path.stat().st_mtime_ns == before
    noted = json.loads((store.study("s").directory / "planned.json").read_text())["grids"]
    assert len(noted["g.search.lr"]) == 4


def test_people_are_told_how_far_searches_are_and_what_they_wait_for(tmp_path: Path) -> None:
    grid, store = grid_of({"cells": 8, "wave": 4}), Store(tmp_path)
    searches = Searches([grid], make_plan([grid], store), store)
    for work in searches.works:
        lines = {0: scored(0.1), 40: scored(val_of(work.cell))}
        write_journal(work.paths(store), lines)
        write_done(work.cell, work.paths(store), lines)
    (failed, *_) = searches.more()
    out = io.StringIO()
    console = Console(file=out, width=160)
    show_searches(searches.hunts, console)
    show_waiting([failed], console)
    (hunt,) = searches.hunts
    line = next(x for x in out.getvalue().splitlines() if x.startswith("lr of"))
    assert line.split()[4:7] == ["8", "4", "4"] and line.endswith("(not over)")
    assert f"val {max(t.val for t in hunt.trials[:4]):.3f}" in line
    assert "1 search, at most 8 cells beside those of the tables" in out.getvalue()
    assert f"search lr of grid g waits for {failed.cell.label}, which failed" in out.getvalue()
