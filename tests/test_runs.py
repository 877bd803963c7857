"""What a cell's files come to: each state, the grid's own horizon, and no number from damage."""

import json
import math

import pytest

from analysis.runs import frame_of, read_run
from grids import outcome
from tests.synthetic_store import (
    evaluated,
    fail,
    finish,
    make_grid,
    make_store,
    paths_of,
    write_done,
    write_journal,
)

TOKENS = outcome.GENERATED_TOKENS
LINES = {
    0: evaluated(0.2, 0.3),
    50: {**evaluated(0.4, 0.5), TOKENS: 30},
    100: {**evaluated(0.6, 0.7), TOKENS: 40},
}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


def first(grid, store):
    cell = grid.cells()[0]
    return cell, paths_of(grid, cell, store)


def frame_of_all(grid, store):
    return frame_of(read_run(cell, paths_of(grid, cell, store)) for cell in grid.cells())


def test_a_finished_cell_is_a_row_with_its_numbers(store):
    grid = make_grid()
    extra = {outcome.TEST_PASS_FLEXIBLE: 0.65, outcome.TEST_PARSED: 0.9, outcome.TEST_TRUNCATED: 0}
    lines = {**LINES, 100: {**LINES[100], **extra}}
    finish(grid, grid.cells()[0], store, lines)
    frame = frame_of_all(grid, store)
    assert len(frame) == 3
    row = frame.iloc[0]
    assert (row.state, row.last_round, row.scored_round) == ("finished", 100, 100)
    assert (row.base_test, row.final_test, row.base_train, row.final_train) == (0.2, 0.6, 0.3, 0.7)
    assert (row.final_test_flexible, row.final_test_parsed, row.final_test_truncated) == (
        0.65,
        0.9,
        0,
    )
    assert (row.rounds, row.spent_rounds, row.spent_generated_tokens) == (100, 2, 70)
    assert (row.key, row.seed, row.lr) == (grid.cells()[0].key, 0, 1e-6)
    assert row["eval.every"] == 100
    assert math.isnan(row.final_test_sampled)


def test_nothing_there_is_waiting(store):
    frame = frame_of_all(make_grid(), store)
    assert set(frame.state) == {"waiting"}
    assert frame.filter(regex="^(base|final)_").isna().all(axis=None)


def test_a_journal_without_its_mark_is_unfinished_with_a_base(store):
    grid = make_grid()
    cell, paths = first(grid, store)
    write_journal(paths, {0: evaluated(0.2), 40: {outcome.REWARD: 0.5}})
    run = read_run(cell, paths)
    assert (run.state, run.last_round, run.reason) == ("unfinished", 40, "at round 40 of 100")
    assert run.primary("base", "test") == 0.2
    assert math.isnan(run.primary("final", "test"))


def test_a_checkpoint_alone_is_unfinished(store):
    cell, paths = first(make_grid(), store)
    paths.checkpoint.mkdir(parents=True)
    assert read_run(cell, paths).state == "unfinished"


def test_a_last_line_without_its_end_is_not_yet_written(store):
    cell, paths = first(make_grid(), store)
    write_journal(paths, {0: evaluated(0.2)})
    with paths.journal.open("a") as file:
        file.write('{"round": 1, "train/re')
    assert read_run(cell, paths).last_round == 0


def test_a_failed_cell_says_why(store):
    grid = make_grid()
    cell = grid.cells()[0]
    paths = fail(grid, cell, store, "OutOfMemoryError: too much")
    run = read_run(cell, paths)
    assert (run.state, run.reason) == ("failed", "OutOfMemoryError: too much")


def test_a_diverged_cell_counts_at_its_last_evaluation(store):
    grid = make_grid()
    lines = {0: evaluated(0.2), 25: evaluated(0.1), 40: {outcome.LOSS: math.nan}}
    paths = finish(
        grid, grid.cells()[0], store, lines,
        status="diverged", reason="loss is NaN", diverged_round=40, final=lines[25],
    )  # fmt: skip
    run = read_run(grid.cells()[0], paths)
    assert (run.state, run.diverged_round, run.scored_round) == ("diverged", 40, 25)
    assert run.counted and run.primary("final", "test") == 0.1
    assert run.reason == "at round 40: loss is NaN"


def test_a_grid_reads_at_its_own_horizon(store):
    short, long = make_grid(base={"rounds": 50}), make_grid()
    paths = finish(long, long.cells()[0], store, LINES)
    assert short.cells()[0].key == long.cells()[0].key
    run = read_run(short.cells()[0], paths)
    assert (run.state, run.primary("final", "test"), run.scored_round) == ("finished", 0.4, 50)
    assert run.training.costs.generated_tokens == 30  # not those of the longer run


def test_what_diverged_later_is_finished_at_a_shorter_horizon(store):
    short, long = make_grid(base={"rounds": 50}), make_grid(base={"rounds": 200})
    paths = finish(
        long, long.cells()[0], store, LINES, status="diverged", diverged_round=100, reason="x"
    )
    assert read_run(short.cells()[0], paths).state == "finished"
    assert read_run(long.cells()[0], paths).state == "diverged"


def test_a_raised_horizon_is_unfinished_again(store):
    grid = make_grid()
    paths = finish(grid, grid.cells()[0], store, LINES)
    run = read_run(make_grid(base={"rounds": 200}).cells()[0], paths)
    assert (run.state, run.reason) == ("unfinished", "at round 100 of 200")


def test_a_horizon_between_evaluations_has_no_number(store):
    grid = make_grid()
    paths = finish(grid, grid.cells()[0], store, LINES)
    run = read_run(make_grid(base={"rounds": 75}).cells()[0], paths)
    assert run.state == "unfinished"
    assert "no evaluation at round 75; rounds evaluated: 0, 50, 100" in run.reason


def test_another_evaluations_numbers_are_not_this_grids(store):
    grid = make_grid()
    paths = finish(grid, grid.cells()[0], store, LINES)
    other = make_grid(base={"rounds": 100, "eval": {"test_questions": 10}}).cells()[0]
    run = read_run(other, paths)
    assert run.state == "unfinished" and "another evaluation" in run.reason
    paths.done.unlink()
    assert math.isnan(read_run(other, paths).primary("base", "test"))


def test_the_sampled_primary_is_read(store):
    evaluation = {"primary": "sampled", "samples": 4}
    grid = make_grid(base={"rounds": 100, "eval": evaluation})
    lines = {0: evaluated(0.2, sampled=0.1), 100: evaluated(0.6, sampled=0.5)}
    cell, paths = first(grid, store)
    write_journal(paths, {0: evaluated(0.2), 100: evaluated(0.6)})  # samples are in done.json only
    write_done(cell, paths, lines)
    run = read_run(cell, paths)
    assert (run.primary("base", "test"), run.primary("final", "test")) == (0.1, 0.5)


def break_journal(paths):
    text = paths.journal.read_text().splitlines()
    paths.journal.write_text("\n".join([text[0], text[1][:-9], text[2]]) + "\n")


def break_done(paths):
    paths.done.write_text("{")


def change_done(**changed):
    def change(paths):
        paths.done.write_text(json.dumps(json.loads(paths.done.read_text()) | changed))

    return change


def change_journal(old, new):
    return lambda paths: paths.journal.write_text(paths.journal.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_journal, "journal.jsonl:2: not valid JSON"),
        (
            change_journal('"round": 50', '"round": 100'),
            "journal.jsonl:3: round 100 is there twice",
        ),
        (change_journal('"round": 50', '"round": null'), "journal.jsonl:2: round"),
        (change_journal('"round": 50, ', ""), "journal.jsonl:2: round"),
        (change_journal("0.4", '"0.4"'), "journal.jsonl:2: test/pass_at_1: got '0.4'"),
        (change_journal("0.4", "40"), "expected a share"),
        (change_journal("0.6", "0.5"), "done.json: test/pass_at_1 of the round 100 evaluation"),
        (lambda paths: paths.journal.write_bytes(b"\xff\n"), "journal.jsonl: is not UTF-8"),
        (break_done, "done.json: not valid JSON"),
        (lambda paths: paths.done.write_text("[]"), "done.json: got list"),
        (change_done(key="0" * 16), "done.json: key"),
        (change_done(status="great"), "done.json: status: got 'great'"),
        (change_done(final=None), "done.json: final: got None; expected dict"),
        (change_done(rounds="100"), "done.json: rounds"),
        (change_done(base={"test/pass_at_1": -1}), "expected a share"),
    ],
)
def test_a_damaged_file_is_named_and_gives_no_number(store, damage, said):
    grid = make_grid()
    cell = grid.cells()[0]
    paths = finish(grid, cell, store, LINES)
    damage(paths)
    run = read_run(cell, paths)
    assert run.state == "damaged"
    assert said in run.reason and cell.key in run.reason
    assert math.isnan(run.primary("base", "test")) and math.isnan(run.primary("final", "test"))


def test_a_folder_in_a_files_place_is_named(store):
    cell, paths = first(make_grid(), store)
    paths.done.mkdir(parents=True)
    run = read_run(cell, paths)
    assert run.state == "damaged" and "done.json: cannot be read" in run.reason
