"""Writes the files that a worker leaves in a cell's directory, for tests of who reads them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.sources import StoreSource
from analysis.study import Study
from grids import outcome
from grids.grid import Grid
from grids.paths import Store, write_json

QUESTIONS = 300  # of the synthetic answers
PAIR = {"model": ["olmo-2-1b-instruct"], "dataset": ["gsm8k"]}


def make_grid(axes=None, **settings):
    """A small grid on OLMo-GSM8K; its three seeds train 100 rounds."""
    given = {"name": "small", "study": "test", "base": {"rounds": 100}, "seeds": [0, 1, 2]}
    return Grid.model_validate({**given, "axes": {**PAIR, **(axes or {})}, **settings})


def evaluated(test, train=None, sampled=None):
    """The numbers of one evaluation."""
    numbers = {outcome.TEST_PASS: test}
    if train is not None:
        numbers[outcome.TRAIN_PASS] = train
    if sampled is not None:
        numbers[outcome.TEST_PASS + outcome.SAMPLED_SUFFIX] = sampled
    return numbers


def paths_of(grid, cell, store):
    return store.study(grid.study).cell(cell.key)


def write_journal(paths, lines):
    """`lines` is round -> numbers."""
    paths.directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"round": r, **numbers}) + "\n" for r, numbers in lines.items())
    paths.journal.write_text(text, encoding="utf-8")


def write_done(cell, paths, lines, **changed):
    """done.json that agrees with the journal's first and last line."""
    rounds = max(lines)
    content = {"key": cell.key, "eval_key": cell.eval_key, "rounds": rounds, "status": "finished"}
    content |= {"reason": None, "diverged_round": None, "base": lines[0], "final": lines[rounds]}
    write_json(paths.done, content | {"generated_tokens": 1000, "updates": rounds} | changed)


def answers(phase, round, split, decoding, correct_Q_K):
    """Rows of outcomes.parquet for one evaluation; questions are named q0, q1, ..."""
    shared = {"phase": phase, "round": round, "split": split, "decoding": decoding}
    about = {"parsed": True, "truncated": False, "tokens": 7, "completion": "#### 1"}
    return [
        shared | {"question": f"q{q}", "sample": k, "correct": float(x)} | about
        for q, correct_K in enumerate(correct_Q_K)
        for k, x in enumerate(correct_K)
    ]


def right_of(share, samples=1):
    """correct_Q_K of which this share is right, the first questions first."""
    right = round(share * QUESTIONS * samples)
    assert abs(right - share * QUESTIONS * samples) < 1e-6, f"{share}: no share of {QUESTIONS}"
    flat = [1.0] * right + [0.0] * (QUESTIONS * samples - right)
    return [flat[i : i + samples] for i in range(0, len(flat), samples)]


def write_answers(paths, rows):
    paths.directory.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.select(list(outcome.OUTCOME_COLUMNS)), paths.outcomes)


def write_outcomes(paths, lines, samples=4):
    """Answers that agree with the base and the last evaluation of a journal."""
    scored = max(r for r, line in lines.items() if outcome.TEST_PASS in line)
    rows = []
    for phase, round in (("base", 0), ("final", scored)):
        for split, metric in (("test", outcome.TEST_PASS), ("train", outcome.TRAIN_PASS)):
            if (share := lines[round].get(metric)) is not None:
                rows += answers(phase, round, split, "greedy", right_of(share))
            if (share := lines[round].get(metric + outcome.SAMPLED_SUFFIX)) is not None:
                rows += answers(phase, round, split, "sampled", right_of(share, samples))
    write_answers(paths, rows)


def finish(grid, cell, store, lines, **changed):
    """A finished cell, or what `changed` makes of its done.json, with answers that agree."""
    paths = paths_of(grid, cell, store)
    write_journal(paths, lines)
    paths.cell.write_text(cell.model_dump_json(), encoding="utf-8")
    write_done(cell, paths, lines, **changed)
    write_outcomes(paths, lines)
    return paths


def study_of(grid, store):
    """The grid's study, read anew."""
    return Study(StoreSource(store.study(grid.study)))


def fail(grid, cell, store, error):
    paths = paths_of(grid, cell, store)
    content = {"key": cell.key, "error": error, "traceback": "", "attempts": 3}
    write_json(paths.failed, content)
    return paths


def make_store(tmp_path):
    return Store(tmp_path / "store")
