"""`search:` of a grid: which arms it is on, its trials' cells, and every way to get it wrong."""

from __future__ import annotations

import pytest

from grids.errors import InputError
from grids.grid import Grid
from grids.load import load_grid
from grids.search import arm_digest, problems

LR = {"low": 1e-5, "high": 1e-3, "log": True}
GIVEN = {
    "name": "g", "study": "s", "base": {"rounds": 40, "batch": 8, "eval": {"every": 20}},
    "axes": {"model": ["tiny-qwen2", "tiny-llama"], "dataset": ["tiny-sums"],
             "rollouts": [2, 4], "advantage": ["raw", "grpo"]},
}  # fmt: skip


def grid_of(search=None, **changed):
    lr = {"over": {"lr": LR}, "cells": 8} | (search or {})
    return Grid.model_validate(GIVEN | {"search": {"lr": lr}} | changed)


def test_a_search_is_made_on_every_arm_of_every_pair():
    found = problems(grid_of())
    assert len(found) == 8
    assert found[0].settings == {
        "model": "tiny-qwen2", "dataset": "tiny-sums", "rollouts": 2, "advantage": "raw"
    }  # fmt: skip
    assert found[0].label == "search lr of tiny-qwen2 tiny-sums rollouts=2 advantage=raw"
    assert len({problem.sampler_seed for problem in found}) == 8


def test_where_and_each_choose_the_arms():
    grid = grid_of({"each": ["advantage"], "where": {"rollouts": 4, "model": "tiny-llama"}})
    assert [p.settings["advantage"] for p in problems(grid)] == ["raw", "grpo"]
    assert all((p.arm.rollouts, p.arm.model) == (4, "tiny-llama") for p in problems(grid))


def test_a_trials_cell_is_the_arms_but_for_what_is_searched():
    problem = problems(grid_of({"holdout": 30, "rounds": 20}))[0]
    cell = problem.cell({"lr": 5e-5}, 1000, 20)
    assert (cell.lr, cell.seed, cell.holdout, cell.rounds) == (5e-5, 1000, 30, 20)
    assert arm_digest(cell, ["lr"]) == arm_digest(problem.arm, ["lr"])
    assert arm_digest(cell, []) != arm_digest(problem.arm, [])
    assert arm_digest(problems(grid_of())[1].arm, ["lr"]) != arm_digest(problem.arm, ["lr"])


def test_suggestions_depend_on_the_seed_and_the_arm_and_not_on_name_place_or_budget():
    def seeds(grid):
        return [problem.sampler_seed for problem in problems(grid)]

    assert seeds(grid_of({"cells": 16, "wave": 2})) == seeds(grid_of())
    assert seeds(grid_of({"optuna": {"seed": 1}})) != seeds(grid_of())
    two = GIVEN["axes"] | {"model": ["tiny-llama", "tiny-qwen2"]}
    assert sorted(seeds(grid_of(axes=two))) == sorted(seeds(grid_of()))
    found = {"for": {"model": "tiny-qwen2"}, "set": {"lr": 9e-5}, "found": "lr"}
    assert seeds(grid_of(overrides=[found])) == seeds(grid_of())


BAD = {
    "the test set": (
        {"metric": "test/pass_at_1"},
        "search.lr.metric: got 'test/pass_at_1'; allowed: 'val/pass_at_1' alone: questions that",
    ),
    "nothing held out": ({"holdout": 0}, "search.lr.holdout: got 0; val/pass_at_1 is over train"),
    "too much held out": ({"holdout": 510}, "510 of them held out, so at most 2 is allowed"),
    "a design choice": (
        {"over": {"batch": {"choices": [8, 16]}}},
        "search.lr.over.batch: is a design choice, which tables compare: make it an axis",
    ),
    "the horizon": (
        {"over": {"rounds": {"choices": [20, 40]}}},
        "search.lr.over.rounds: is no part of what a cell trains",
    ),
    "how it is scored": (
        {"over": {"grader": {"choices": ["math", "gsm8k"]}}},
        "search.lr.over.grader: changes how answers are made or scored",
    ),
    "no such setting": (
        {"over": {"learning": LR}}, "search.lr.over.learning: unknown key; allowed: ",
    ),
    "ends that are one": (
        {"over": {"lr": {"low": 1e-5, "high": 1e-5}}},
        "search.lr.over.lr: got low 1e-05 and high 1e-05; low lies below high",
    ),
    "factors from nothing": (
        {"over": {"kl": {"low": 0, "high": 1, "log": True}}},
        "search.lr.over.kl: log: a range in factors begins above 0; got low 0.0",
    ),
    "an end that is no rate": (
        {"over": {"lr": {"low": -1, "high": 1}}}, "search.lr.over.lr: input should be greater than",
    ),
    "one choice": ({"over": {"kl": {"choices": [0.1]}}}, "search.lr.over.kl: choices: got [0.1]"),
    "neither": ({"over": {"lr": {"low": 1}}}, "search.lr.over.lr: got low 1.0 and high None"),
    "nothing at all": ({"over": {"lr": {}}}, "search.lr.over.lr: give either low and high, or"),
    "a range of words": (
        {"over": {"loss": {"low": 1, "high": 2}}}, "search.lr.over.loss: has no range",
    ),
    "an unknown choice": (
        {"over": {"loss": {"choices": ["clip", "klip"]}}},
        "search.lr.over.loss: unknown name; got 'klip'; allowed: ",
    ),
    "a choice that makes no cell": (
        {"over": {"updates_per_round": {"choices": [1, 3]}}},
        "search.lr.over.updates_per_round: 3: updates_per_round: 3 does not divide the batch 8",
    ),
    "a wave beyond the budget": (
        {"wave": 9}, "search.lr.wave: got 9, and the budget is cells: 8",
    ),
    "a budget that seeds do not divide": (
        {"cells": 9, "wave": 2, "seeds": [1, 2]},
        "search.lr.cells: got 9; each trial takes 2 cells, one a seed: give a multiple of 2",
    ),
    "a seed twice": ({"seeds": [1, 1], "wave": 2}, "search.lr.seeds: got [1, 1]"),
    "rungs beyond the end": (
        {"rungs": [20], "rounds": 20}, "search.lr.rungs: got [20]; all lie before rounds 20",
    ),
    "rungs that fall": ({"rungs": [30, 20]}, "search.lr.rungs: got [30, 20]; rounds, each beyond"),
    "a rung without an evaluation": (
        {"rungs": [15]}, "search.lr.rungs: got 15; cells are evaluated every 20 rounds",
    ),
    "beyond the grid's horizon": ({"rounds": 60}, "search.lr.rounds: got 60; the grid's rounds"),
    "arms left open": (
        {"each": ["advantage"]},
        "search.lr.each: ['advantage'] leaves rollouts open, and a search is on one arm",
    ),
    "no arm": ({"where": {"rollouts": 3}}, "search.lr.where: no cell of the grid has"),
    "each of what is searched": ({"each": ["lr"]}, "search.lr.each: lr is what is searched"),
    "no such sampler": ({"optuna": {"sampler": "cma"}}, "search.lr.optuna.sampler: input should"),
    "an unknown key": ({"budget": 3}, "search.lr.budget: unknown key; allowed: cells, each, "),
    "an unknown key of Optuna's": (
        {"optuna": {"pruner": 1}}, "search.lr.optuna.pruner: unknown key; allowed: sampler, seed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("search", "told"), BAD.values(), ids=BAD.keys())
def test_a_bad_search_is_told_in_one_line_with_its_place(search, told, grid_file):
    import yaml

    given = GIVEN | {"search": {"lr": {"over": {"lr": LR}, "cells": 8} | search}}
    path = grid_file(yaml.safe_dump(given, sort_keys=False))
    with pytest.raises(InputError) as error:
        load_grid(path)
    (line,) = str(error.value).splitlines()
    assert told in line and line.startswith(f"{path}:")
    number = int(line.removeprefix(f"{path}:").split(":")[0])
    assert number > path.read_text().splitlines().index("search:")


COMPARED = {
    "an axis": ({"axes": GIVEN["axes"] | {"lr": [1e-5, 1e-4]}}, "is an axis of this grid"),
    "a zipped axis": (
        {"zip": {"lr": [1e-5, 1e-4], "kl": [0.1, 0.2]}}, "is an axis of this grid",
    ),
    "an axis under a condition": (
        {"when": [{"if": {"rollouts": 2}, "axes": {"lr": [1e-5, 1e-4]}}]},
        "is an axis of this grid",
    ),
    "a contrast": (
        {"base": GIVEN["base"] | {"lr": 1e-5}, "contrasts": [
            {"name": "c", "a": {"rollouts": 2}, "b": {"rollouts": 4}, "with": {"lr": 1e-5}}]},
        "the contrast 'c' is declared at values of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "told"), COMPARED.values(), ids=COMPARED.keys())
def test_what_tables_and_contrasts_compare_is_not_searched(changed, told):
    with pytest.raises(ValueError, match=f"search.lr.over.lr: {told}"):
        grid_of(**changed)
