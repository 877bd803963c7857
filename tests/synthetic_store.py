"""Writes the files that a worker leaves in a cell's directory, for tests of who reads them."""

import json

from grids import outcome
from grids.grid import Grid
from grids.paths import Store, write_json

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


def finish(grid, cell, store, lines, **changed):
    """A finished cell, or what `changed` makes of its done.json."""
    paths = paths_of(grid, cell, store)
    write_journal(paths, lines)
    paths.cell.write_text(cell.model_dump_json(), encoding="utf-8")
    write_done(cell, paths, lines, **changed)
    return paths


def fail(grid, cell, store, error):
    paths = paths_of(grid, cell, store)
    content = {"key": cell.key, "error": error, "traceback": "", "attempts": 3}
    write_json(paths.failed, content)
    return paths


def make_store(tmp_path):
    return Store(tmp_path / "store")
