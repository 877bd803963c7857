"""Descriptions of studies and runs: what they say, what they leave to people, what cannot break
a page."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from grids import load_grid
from grids.cell import Cell
from grids.outcome import Verdict
from orchestrator import notes, views
from orchestrator.notes import Score
from tests.conftest import GRIDS

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def verdict(**changed: str) -> Verdict:
    given = {
        "study": "s", "grid": "g", "contrast": "shape", "where": "tiny-qwen2 tiny-sums",
        "a_key": "A", "b_key": "B", "a": "batch 16", "b": "batch 2", "told": "better at lr 1e-06",
        "numbers": "b - a +0.030 [+0.010, +0.050], 3 of 3 seeds, 500 questions",
        "standing": "registered",
    }  # fmt: skip
    return Verdict(**(given | changed))


def test_an_arms_name_tells_every_setting_of_its_own(tiny) -> None:
    assert notes.arm_name(tiny()) == "(8,1,0) raw"  # what its model brings is not told
    told = notes.arm_name(tiny(lr=0.001, rollouts=8, advantage="grpo", kl="off"))
    assert told == "(8,8,0) grpo lr=0.001 kl=0.0"
    assert notes.arm_name(tiny(engine="vllm")).endswith(" vllm")


@pytest.mark.parametrize(
    "one, other",
    [
        ({"lr": 1e-6}, {"lr": 3e-5}),  # the program's default, and the model's
        ({"lr": 1.2345678e-6}, {"lr": 1.2345681e-6}),
        ({"micro_batch": 4}, {"micro_batch": 8}),
        ({"precision": "fp32"}, {"precision": "bf16"}),
        ({"engine": "vllm"}, {"engine": "transformers"}),
        ({"grader": "gsm8k"}, {"grader": "gsm8k-flexible"}),
        ({"reward_noise": 0.1}, {"reward_noise": 0.3}),
    ],
)
def test_arms_with_other_keys_have_other_names(tiny, one, other) -> None:
    assert tiny(**one).arm_key != tiny(**other).arm_key
    assert notes.arm_name(tiny(**one)) != notes.arm_name(tiny(**other))


def test_arms_with_one_key_have_one_name(tiny) -> None:
    """Of one rollout GRPO's advantage is the raw reward, whichever grid named it last."""
    assert tiny(advantage="grpo").arm_key == tiny().arm_key
    assert notes.arm_name(tiny(advantage="grpo")) == notes.arm_name(tiny()) == "(8,1,0) raw"


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_arms_that_differ_have_names_that_differ(path) -> None:
    """MLflow's groups are by these names: two arms in one group would share a mean."""
    names: dict[tuple[str, str], set[str]] = {}
    for cell in load_grid(path).cells():
        names.setdefault((notes.pair_name(cell), notes.arm_name(cell)), set()).add(cell.arm_key)
    assert all(len(keys) == 1 for keys in names.values())


def test_a_run_says_what_it_is_how_it_stands_and_with_what_interval(tiny) -> None:
    scores = {"final": Score(0.5, 0.457, 0.543, 500)}
    note = notes.run_note(
        tiny(replay=3, advantage="grpo", rollouts=2), ["g"], "finished", scores, {}
    )
    assert "8 queries a round, 2 fresh rollouts each, up to 3 replayed; 4 rounds" in note
    assert "final test Pass@1 (greedy) 0.500 [0.457, 0.543], 500 questions" in note
    assert "None so far" in note


def test_what_people_wrote_stays_and_ours_is_made_anew() -> None:
    first = notes.joined("My own words.\n\n- and a list", "old")
    again = notes.joined(first, "new")
    assert again.startswith("My own words.\n\n- and a list\n\n")
    assert again.rstrip().endswith(f"new {notes.OURS}") and "old" not in again
    assert notes.joined(None, "new\nmore") == notes.joined("", "new\nmore")
    assert notes.joined(None, "new\nmore") == f"new {notes.OURS}\nmore"


def test_verdicts_replace_verdicts_alone(tiny) -> None:
    note = notes.joined("mine", notes.run_note(tiny(), ["g"], "finished", {}, {}))
    told = notes.run_verdicts([verdict()], "B")
    changed = notes.with_verdicts(note, {"g": told})
    assert changed is not None
    assert "this run is of b): **better at lr 1e-06**" in changed and "None so far" not in changed
    assert notes.with_verdicts(changed, {}) == note
    assert notes.with_verdicts("a person replaced it all", {"g": told}) is None


def test_an_arm_hears_of_its_own_contrasts_alone() -> None:
    made = [verdict(), verdict(contrast="other", a_key="C", b_key="D")]
    assert "this run is of a" in notes.run_verdicts(made, "A")
    assert "other" not in notes.run_verdicts(made, "A")
    assert notes.run_verdicts(made, "E") == ""


def test_text_of_a_grid_cannot_break_the_page() -> None:
    entry = {
        "section": "4.6", "title": "4.6 g", "view": "v", "cells": 2, "contrasts": ["a|b"],
        "about": "<img src=x onerror=alert(1)> | [x](javascript:1)\n# big",
    }  # fmt: skip
    note = notes.study_note("s", "7", {"g": entry}, {}, None)
    (row,) = [line for line in note.splitlines() if "onerror" in line]
    assert "\\<img" in row and "\\[x\\]" in row and "a\\|b" in row and row.endswith(" |")


def test_the_study_links_its_views_and_its_tables() -> None:
    entry = notes.grid_entry(load_grid(GRIDS[0]), 3)
    said = {"g": notes.study_verdicts([verdict()], NOON)}
    note = notes.study_note("s", "7", {"g": entry}, said, "r1")
    assert views.path("7", entry["view"]) in note and "#/experiments/7/runs/r1/artifacts" in note
    assert "2026-01-02 12:00 UTC" in note and "better at lr 1e-06" in note


def test_a_long_description_is_cut_at_a_line() -> None:
    many = [verdict(contrast=f"contrast{i}") for i in range(400)]
    told = notes.study_verdicts(many, NOON)
    assert len(told) <= notes.MOST_OF_A_GRID and told.endswith("(more: see the tables)")
    assert len(notes.joined("x" * 100, "y\n" * 9000)) <= notes.MOST_OF_A_RUN


def test_people_come_first_where_there_is_no_room_for_both() -> None:
    theirs = "a line of a person's own\n" * 400
    assert notes.joined(theirs, "**ours**\nmore") == theirs


def test_words_in_front_of_our_first_line_stay() -> None:
    note = notes.joined(None, "**ours**, old\nmore")
    again = notes.joined(f"Ask Ada. {note}", "**ours**, new")
    assert again == f"Ask Ada.\n\n**ours**, new {notes.OURS}\n"


def test_trials_of_a_search_are_in_no_table(tiny) -> None:
    note = notes.run_note(tiny(), ["g.search.lr"], "finished", {}, {})
    assert "A trial of the search `lr` of `g`; in no table." in note and "In the tables" not in note


def test_a_lowered_micro_batch_is_no_setting_of_the_arm() -> None:
    cell = Cell(model="tiny-qwen2", dataset="tiny-sums", batch=16, rounds=2)
    assert cell.micro_batch == 16 and notes.arm_name(cell) == "(16,1,0) raw"
