"""`banditgrid regrade` of a study of 1,000 finished runs, from the strict to the flexible grader.

`python -m tests.benchmarks.regrade [FOLDER]` writes a synthetic store there (a minute or two, once:
two models, 200 arms, five seeds; 1,319 test and 500 train questions, answered greedily by base and
final policy in about 300 characters), then times the command as a whole process: all runs, and
again where nothing is left to do. Leaves out training: the answers are drawn.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from grids import catalog, outcome
from grids.cell import Cell
from grids.load import load_grid
from grids.paths import CellPaths, Store, write_json
from tests.benchmarks.many_runs import measured
from tests.benchmarks.told import ROOT, load, told
from workers.data import Question, load_questions
from workers.grading import GRADERS

RUNS, TEST, TRAIN, TRAIN_SET = 1000, 1319, 500, 7473
STUDY = "regraded"
GRID = {
    "name": "regraded", "study": STUDY, "base": {"rounds": 100},
    "axes": {
        "model": ["qwen2.5-0.5b-instruct", "llama-3.2-1b-instruct"], "dataset": ["gsm8k"],
        "batch": [8, 16, 32, 64, 128], "rollouts": [2, 4, 8, 16, 32],
        "advantage": ["grpo", "rloo"], "lr": [1e-6, 3e-6],
    },
    "seeds": [0, 1, 2, 3, 4],
}  # fmt: skip
# How an answer ends, by how well the form is learned: right form, right number in another, neither.
ENDINGS = (
    "#### {}", "The answer is {}", "So she has {} of them left in the end", "#### ${}",
    "That is all.",
)  # fmt: skip
SHARES = (0.6, 0.15, 0.1, 0.1, 0.05)
THINGS = np.array(["apples", "marbles", "tickets", "pages", "dollars", "eggs", "stamps", "boxes"])
WHO = np.array(["Natalia", "Weng", "Betty", "Julie", "James", "Albert", "Ken", "Tina"])


def write_data(folder: Path) -> None:
    """A data set of GSM8K's size and columns."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", TRAIN_SET), ("test", TEST)):
        golds = rng.integers(1, 5000, count)
        rows = (
            {"question": f"{WHO[i % 8]} counts, {split} {i}: what is it?", "answer": f"#### {gold}"}
            for i, gold in enumerate(golds)
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def write_store(store: Store, grid: Path) -> None:
    """Finish every cell of the grid."""
    cells, began = load_grid(grid).cells(), time.monotonic()
    assert len(cells) == RUNS
    found = load_questions(cells[0].dataset_spec)
    asked = {"test": found.test, "train": found.train[:TRAIN]}
    for i, cell in enumerate(cells):
        paths = store.study(STUDY).cell(cell.key)
        if not paths.done.exists():
            finish(cell, paths, asked)
        if i % 200 == 0:
            print(f"  {i} of {RUNS} runs, {time.monotonic() - began:.0f} s", flush=True)


def finish(cell: Cell, paths: CellPaths, asked: dict[str, tuple[Question, ...]]) -> None:
    """Leave what a worker leaves, its answers drawn: a base's alike for all cells of its model."""
    paths.directory.mkdir(parents=True, exist_ok=True)
    tables, means = [], {}
    for phase, round, seed in (("base", 0, len(cell.model)), ("final", cell.rounds, cell.key)):
        rng = np.random.default_rng(int(seed, 16) if isinstance(seed, str) else seed)
        means[phase] = {}
        for split, questions in asked.items():
            texts = completions(questions, rng)
            grades = [GRADERS["gsm8k"](t, q.gold) for t, q in zip(texts, questions, strict=True)]
            correct = [float(grade.correct) for grade in grades]
            means[phase][f"{split}/pass_at_1"] = float(np.mean(correct))
            count = len(questions)
            tables.append(pa.table({
                "phase": [phase] * count, "round": [round] * count, "split": [split] * count,
                "decoding": ["greedy"] * count, "question": [q.id for q in questions],
                "sample": [0] * count, "correct": correct, "parsed": [g.parsed for g in grades],
                "truncated": [False] * count, "tokens": [90] * count, "completion": texts,
            }))  # fmt: skip
    pq.write_table(pa.concat_tables(tables), paths.outcomes, compression="zstd")
    lines = ({"round": 0, **means["base"]}, {"round": cell.rounds, **means["final"]})
    paths.journal.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    paths.cell.write_text(cell.model_dump_json(), encoding="utf-8")
    done = {"key": cell.key, "eval_key": cell.eval_key, "rounds": cell.rounds, "reason": None}
    done |= {"status": outcome.FINISHED, "diverged_round": None, **means}
    write_json(paths.done, done | {"generated_tokens": 1000, "updates": cell.rounds})


def completions(questions: tuple[Question, ...], rng: np.random.Generator) -> list[str]:
    """Reasoning of about 300 characters and an end of some form, right or wrong."""
    count = len(questions)
    numbers = rng.integers(2, 2000, (count, 6)).tolist()
    names, things = WHO[rng.integers(0, 8, count)], THINGS[rng.integers(0, 8, count)]
    right, ends = rng.random(count) < 0.5, rng.choice(len(ENDINGS), count, p=SHARES)
    return [
        f"First we find how many {thing} {name} had: {a} + {b} = {a + b}. Then {name} gave {c} of "
        f"the {thing} away, so {a + b} - {c} = {a + b - c} {thing} are left. After that the number "
        f"is taken {d} times, which makes {d * (a + b - c)}, and {e} more come in, {f} of which do "
        f"not count, as the question says. {ENDINGS[end].format(q.gold if is_right else f)}"
        for (a, b, c, d, e, f), name, thing, is_right, end, q in zip(
            numbers, names, things, right, ends, questions, strict=True
        )
    ]


def main() -> None:
    """Write, measure."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench" / "regrade"
    write_data(folder / "data" / "gsm8k")
    catalog.use_local(None, folder / "data")
    grid, store = folder / "grid.yaml", Store(folder / "store")
    grid.write_text(yaml.safe_dump(GRID), encoding="utf-8")
    write_store(store, grid)
    words = ["regrade", STUDY, "--grader", "gsm8k-flexible", "--store", str(store.root)]
    for what, least, more in (
        ("regrade of 1,000 runs, seconds", "at most 60", ["--replace"]),
        ("the same where all is there, seconds", "", []),
    ):
        if more:  # scores of an earlier call are put aside
            for record in store.study(STUDY).cells.glob("*/evaluations/*/evaluation.json"):
                record.unlink()
        seconds, gigabytes = measured([*words, *more])
        told(what, seconds, least)
        told("peak GB of its largest process", gigabytes)
    print(f"  {load()}")


if __name__ == "__main__":
    main()
