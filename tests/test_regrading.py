"""`banditgrid regrade`: which cells, what it tells, and what it refuses."""

import json
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from grids import catalog
from grids.cell import Cell
from grids.paths import Store, read_json, write_json
from orchestrator import regrading
from tests.synthetic_store import answers, write_answers, write_done, write_journal
from tests.test_cli import banditgrid  # noqa: F401  (a fixture)
from workers.data import load_questions
from workers.lease import held

GRID = """
name: small
study: test
base: {rounds: 100}
axes: {model: [olmo-2-1b-instruct], dataset: [gsm8k], rollouts: [1, 8]}
seeds: [0, 1, 2]
"""
PLUGIN = """
def fails(completion, gold):
    raise ValueError("not today")

GRADERS = {"fails": fails}
"""
FORMS = ("#### {}", "it is {}", "#### 0", "nothing")  # strict and flexible part on the second


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store of two arms with three seeds, answers and a data set of forty questions."""
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}?", "answer": f"#### {i + 1}"} for i in range(40)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    own = catalog.DATASETS["gsm8k"].model_copy(update={"path": str(folder)})
    monkeypatch.setitem(catalog.DATASETS, "gsm8k", own)
    for rollouts in (1, 8):
        for seed in (0, 1, 2):
            finish(tmp_path, rollouts, seed)
    return tmp_path


def finish(place, rollouts, seed):
    cell = Cell(
        model="olmo-2-1b-instruct", dataset="gsm8k", rollouts=rollouts, seed=seed, rounds=100,
        eval={"train_questions": 0},
    )  # fmt: skip
    paths = Store(place / "store").study("test").cell(cell.key)
    rows = []
    for phase, round in (("base", 0), ("final", 100)):
        shift = 0 if phase == "base" else 1 + seed + rollouts
        rows += answers(phase, round, "test", "greedy", [[0.0]] * 40)
        for i, (row, question) in enumerate(
            zip(rows[-40:], load_questions(cell.dataset_spec).test, strict=True)
        ):
            text = FORMS[(i // 3 + i * shift) % 4].format(question.gold)
            row |= {"question": question.id, "completion": text}
            row |= {"correct": float(text == f"#### {question.gold}"), "parsed": "####" in text}
    means = [np.mean([r["correct"] for r in rows if r["phase"] == p]) for p in ("base", "final")]
    lines = {r: {"test/pass_at_1": float(m)} for r, m in zip((0, 100), means, strict=True)}
    write_journal(paths, lines)
    paths.cell.write_text(cell.model_dump_json(), encoding="utf-8")
    write_done(cell, paths, lines)
    write_answers(paths, rows)
    return paths


def cells(place):
    folder = place / "store" / "test" / "cells"
    return [Store(place / "store").study("test").cell(f.name) for f in sorted(folder.iterdir())]


def refused(ran, told):
    assert ran.code == 2 and "Traceback" not in ran.err and told in ran.err


def test_a_study_is_regraded_and_what_changed_is_told(banditgrid, place):  # noqa: F811
    ran = banditgrid(
        "regrade", "test", "--grader", "flexible", "--store", place / "store", "--json"
    )
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert (told["evaluation"], told["cells"], told["left_out"]) == ("flexible", 6, [])
    base, one, eight = told["changes"]
    assert [c["arm"] for c in told["changes"]] == ["base", "(32,1,0) raw", "(32,8,0) raw"]
    assert (base["pair"], base["n"], base["questions"]) == ("OLMo-GSM8K", 1, 40)
    for change, count in ((base, 40), (one, 120), (eight, 120)):
        counts = change["counts"]
        assert counts["answers"] == count and counts["to_right"] > 0 == counts["to_wrong"]
        gained = counts["to_right"] / count
        assert change["difference"]["value"] == pytest.approx(gained)
        assert change["difference"]["low"] < gained < change["difference"]["high"]
        before, after = change["before"]["value"], change["after"]["value"]
        assert after - before == pytest.approx(gained)
        assert counts["unparsed"][0] > counts["unparsed"][1] > 0
    assert (one["n"], eight["difference"]["n"]) == (3, 3)
    records = [read_json(paths.evaluation("flexible").record) for paths in cells(place)]
    assert {record["grader"] for record in records} == {"gsm8k-flexible"}


def test_the_same_for_people_and_twice(banditgrid, place):  # noqa: F811
    words = ["regrade", place / "grid.yaml", "--grader", "gsm8k-flexible", "--store"]
    ran = banditgrid(*words, place / "store")
    assert ran.code == 0 and "6 cells regraded as gsm8k-flexible; 0 were there" in ran.out
    assert "OLMo-GSM8K" in ran.out and "(32,8,0) raw" in ran.out and " -> " in ran.out
    again = banditgrid(*words, place / "store")
    assert "0 cells regraded as gsm8k-flexible; 6 were there already" in again.out
    assert again.out.splitlines()[:-3] == ran.out.splitlines()[:-3]


def test_a_plug_ins_grader_that_fails_everywhere_is_counted(banditgrid, place):  # noqa: F811
    (place / "mine.py").write_text(PLUGIN)
    words = ["regrade", "test", "--grader", "fails", "--store", place / "store"]
    refused(banditgrid(*words), "--grader: unknown name; got 'fails'")
    ran = banditgrid(*words, "--plugin", place / "mine.py", "--json")
    assert ran.code == 0, ran.err
    for change in json.loads(ran.out)["changes"]:
        assert change["counts"]["unscored"][1] == change["counts"]["answers"]
        assert change["difference"]["value"] is None
        assert change["why"] == "0 questions were scored in every seed"


def test_what_is_not_finished_or_held_or_damaged_is_named(banditgrid, place):  # noqa: F811
    first, second, third, *_ = cells(place)
    first.done.unlink()
    second.outcomes.write_bytes(b"no parquet")
    with held(third, "x"):
        ran = banditgrid("regrade", "test", "--grader", "flexible", "--store", place / "store")
    assert ran.code == 1
    assert "left out, not finished: 1 cell: olmo-2-1b-instruct gsm8k" in ran.out
    assert "held by a worker" in ran.out and "failed: Arrow" in ran.out
    assert "3 cells regraded" in ran.out
    for paths in (first, second, third):
        assert not paths.evaluation("flexible").directory.exists()


def test_refusals(banditgrid, place):  # noqa: F811
    store = ["--store", place / "store"]
    refused(banditgrid("regrade", "tests", "--grader", "math", *store), "no study 'tests'")
    refused(banditgrid("regrade", "test", "--grader", "maths", *store), "did you mean 'math'")
    refused(banditgrid("regrade", "test", "--grader", "math", "--of", "x", *store), "of evaluation")
    words = ["regrade", "test", "--grader", "math", "--name"]
    refused(banditgrid(*words, "a/b", *store), "not a name")
    refused(banditgrid(*words, "x", "--of", "x", *store), "--of x: is what --name says too")
    assert banditgrid("regrade", "test", "--grader", "flexible", *store).code == 0
    refused(banditgrid(*words, "flexible", *store), "'flexible' is there already")
    assert banditgrid(*words, "flexible", "--replace", *store).code == 0
    record = read_json(cells(place)[0].evaluation("flexible").record)
    assert record["grader"] == "math"
    words = ["regrade", "test", "--grader", "flexible", "--name", "y", "--of", "flexible"]
    assert banditgrid(*words, *store).code == 0  # of the answers' own evaluation's grader
    assert read_json(cells(place)[0].evaluation("y").record)["grader"] == "math-flexible"


def test_a_data_set_that_has_changed_is_no_source_of_right_answers(banditgrid, place):  # noqa: F811
    regrading._located_json.cache_clear()
    shutil.copytree(place / "data", place / "kept")
    test = place / "data" / "gsm8k" / "test.jsonl"
    test.write_text(test.read_text().replace("#### 7", "#### 8"))
    words = ["regrade", "test", "--grader", "flexible", "--store", place / "store"]
    refused(banditgrid(*words), "is not there or has changed")
    assert banditgrid(*words, "--data", place / "kept").code == 0


def test_many_cells_take_several_processes_and_come_out_alike(place, monkeypatch, banditgrid):  # noqa: F811
    store = ["--store", place / "store", "--json"]
    words = ["regrade", "test", "--grader", "flexible", "--name"]
    alone = json.loads(banditgrid(*words, "alone", *store).out)
    monkeypatch.setattr(regrading, "MANY_CELLS", 2)
    monkeypatch.setattr(regrading, "CHUNK", 2)
    monkeypatch.setattr(regrading, "cores", lambda: 2)
    together = json.loads(banditgrid(*words, "together", *store).out)
    assert together["changes"] == alone["changes"] and together["cells"] == 6


def test_cells_whose_record_is_damaged_are_graded_anew(banditgrid, place):  # noqa: F811
    words = ["regrade", "test", "--grader", "flexible", "--store", place / "store"]
    banditgrid(*words)
    found = cells(place)[0].evaluation("flexible")
    whole = found.record.read_bytes()
    found.record.write_text("{")
    assert "1 cells regraded as flexible; 5 were there" in banditgrid(*words).out
    assert found.record.read_bytes() == whole
    for path, damaged in ((found.record, b'{"key": "x"}'), (found.outcomes, b"PAR1 cut short")):
        path.write_bytes(damaged)
        assert "1 cells regraded as flexible; 5 were there" in banditgrid(*words).out
        assert found.record.read_bytes() == whole
    write_json(found.record, json.loads(whole) | {"asked": {"kind": "x"}})
    refused(banditgrid(*words), "is there already, of other settings")


def test_a_process_that_dies_fails_its_cells_alone():
    dead, target = Future(), object()
    dead.set_exception(BrokenProcessPool("gone"))
    (end,) = regrading._made(dead, [target])
    assert end.target is target and not end.well and "a process that graded died" in end.told
