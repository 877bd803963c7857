"""`banditgrid evaluate`: refused before anything starts, and once for real with a local Ray."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grids import catalog
from grids.cell import Cell
from grids.errors import InputError
from grids.load import load_grid
from grids.paths import Store, read_json, write_json
from orchestrator import scorers
from orchestrator.change import Change
from orchestrator.evaluating import Target, choose
from tests.conftest import ROOT
from tests.rescoring import own_files, trained
from tests.test_cli import banditgrid  # noqa: F401  (a fixture)
from workers import named, preflight
from workers.engine_check import EngineError, NoRoomError

GRID = """
name: small
study: small
base: {rounds: 4, batch: 8, eval: {every: 2, samples: 2, test_questions: 16, train_questions: 8}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
seeds: [0, 1, 2]
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store with two trained cells of three."""
    root = tmp_path_factory.mktemp("kept")
    for seed in (0, 1):
        trained(root / "store" / "small", seed=seed)
    (root / "grid.yaml").write_text(GRID, encoding="utf-8")
    return root


@pytest.fixture
def place(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "place")
    return tmp_path / "place"


def cells(place):
    store, grid = Store(place / "store"), load_grid(place / "grid.yaml")
    return [(cell, store.study("small").cell(cell.key)) for cell in grid.cells()]


def refused(ran, *parts):
    assert ran.code == 2 and "Traceback" not in ran.err and ran.err.count("error:") == 1
    for part in parts:
        assert part in ran.err


def command(place, *words):
    grid, store = place / "grid.yaml", place / "store"
    return ["evaluate", grid, "--store", store, "--name", "wide", *words]


def test_weights_that_are_gone_are_one_message(banditgrid, place):  # noqa: F811
    shutil.rmtree(cells(place)[1][1].checkpoint)
    ran = banditgrid(*command(place))
    refused(
        ran, "the weights are gone of 1 cell: tiny-qwen2 tiny-sums (8,1,0) raw s1;",
        "`keep: weights`", "--skip-gone",
    )  # fmt: skip
    assert not list((place / "store").rglob("evaluations"))


def test_weights_of_a_later_round_are_gone_for_a_grid_that_reads_an_earlier(banditgrid, place):  # noqa: F811
    path = place / "grid.yaml"
    path.write_text(path.read_text().replace("rounds: 4", "rounds: 2").replace("[0, 1, 2]", "[0]"))
    refused(banditgrid(*command(place)), "s0 (kept: round 4; asked: 2)")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--name", "../up"], "evaluation '../up': not a name; allowed: 1 to 64 letters"),
        (["--dataset", "gsm9k"], "--dataset: unknown name; got 'gsm9k'"),
        (["--grader", "lenient"], "--grader: unknown name; got 'lenient'"),
        (["--dataset", "tiny-boxed", "--max-response", "60"], "exceed the context of tiny-qwen2"),
        (["--temperature", "-1"], "should be greater than 0"),
    ],
)
def test_other_bad_input_is_told_before_anything_starts(banditgrid, place, words, told):  # noqa: F811
    refused(banditgrid(*command(place, *words)), told)


def test_a_store_without_a_finished_cell(banditgrid, place):  # noqa: F811
    for _, paths in cells(place):
        paths.done.unlink(missing_ok=True)
    ran = banditgrid(*command(place))
    refused(ran, "none of the cells is finished", "s2 (waiting)", "s0 (unfinished)")


def test_what_is_there_is_kept_and_a_name_stands_for_one_thing(place):
    [(cell, paths), *_] = cells(place)
    store, grid = Store(place / "store"), load_grid(place / "grid.yaml")
    wide = Change(evaluation={"samples": 4})
    form = named.asked_of_weights(wide.of(cell))
    scores = {"base": {}, "final": {}}
    record = named.record_of("wide", cell.key, wide.of(cell), form, {"round": 4}, 4, scores, ())
    write_json(paths.evaluation("wide").record, record)
    assert len(choose([grid], store, wide, "wide").todo) == 2  # it lacks its answers
    shutil.copy(paths.outcomes, paths.evaluation("wide").outcomes)
    chosen = choose([grid], store, wide, "wide")
    assert (chosen.there, [t.cell.seed for t in chosen.todo]) == ([cell.label], [1])
    assert chosen.unfinished == ["tiny-qwen2 tiny-sums (8,1,0) raw s2 (waiting)"]
    chosen = choose([grid], store, Change(evaluation={"samples": 8}), "wide")
    assert chosen.other == [cell.label] and len(chosen.todo) == 2
    write_json(paths.evaluation("wide").record, record | {"source": {"round": 2}})
    chosen = choose([grid], store, wide, "wide")  # trained further since: the same, made anew
    assert not chosen.there and not chosen.other and len(chosen.todo) == 2


def test_for_real(place):
    """Two cells on another data set, one of them held; then the other, then nothing."""
    [(first, paths), (second, others), _] = cells(place)
    before = own_files(paths)
    words = ["--dataset", "tiny-boxed", "--test-questions", "10", "--slots", "2"]
    hold = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(others.directory)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert hold.stdout.readline() == "held\n"
    ran = called(*command(place, *words))
    hold.communicate("done\n")
    assert ran.returncode == 1, ran.stderr
    assert "left out, not finished: 1 cell: tiny-qwen2 tiny-sums (8,1,0) raw s2" in ran.stdout
    assert f"{first.label}: scored: test Pass@1 " in ran.stdout
    assert f"held by a worker: {second.label}" in ran.stdout and "1 of 2 cells scored" in ran.stdout
    assert own_files(paths) == before
    record = read_json(paths.evaluation("wide").record)
    assert (record["dataset"], record["grader"], record["round"]) == ("tiny-boxed", "math", 4)
    ran = called(*command(place, *words))
    assert ran.returncode == 0 and "there already: 1" in ran.stdout, ran.stderr
    assert "1 of 1 cells scored as wide" in ran.stdout
    assert others.evaluation("wide").outcomes.is_file()
    bases = [p.name for p in (place / "store" / "small" / "shared").iterdir()]
    assert len(bases) == 2  # the cells' own and the new one, scored once
    ran = called(*command(place, *words))
    assert ran.returncode == 0 and "0 cells to score" in ran.stdout
    assert "starting Ray" not in ran.stdout
    ran = called(*command(place, "--samples", "1"))
    assert ran.returncode == 2 and "is there already, of other settings, in 2 cells" in ran.stderr


HOLD = """
import sys
from pathlib import Path
from grids.paths import CellPaths
from workers.lease import held
with held(CellPaths(Path(sys.argv[1])), "x"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def called(*words):
    """The command in a process of its own."""
    code = "from orchestrator.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True,
        check=False, cwd=Path(__file__).resolve().parent.parent, env=dict(os.environ),
    )  # fmt: skip


def test_the_record_is_json_that_says_what_was_asked(place):
    [(cell, _), *_] = cells(place)
    asked = Change(evaluation={"samples": 4}).of(cell)
    form = json.loads(json.dumps(named.asked_of_weights(asked)))
    assert form == named.asked_of_weights(asked)  # so that what is read compares equal
    assert form["eval"]["samples"] == 4 and form["kind"] == "evaluate"


@pytest.mark.parametrize(
    ("nodes", "share", "fit"),
    [
        ([{"CPU": 4.0, "GPU": 2.0}], 0.6, 2),  # 1.2 GPUs are not one and a bit
        ([{"CPU": 16.0, "GPU": 1.0}], 0.05, 16),
        ([{"CPU": 64.0, "GPU": 1.0}], 0.05, 20),
        ([{"CPU": 64.0, "GPU": 1.0}], 0.1, 10),
        ([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 4.0}], 1.0, 1),
        ([{"CPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}], None, 5),
    ],
)
def test_no_more_scorers_than_the_nodes_hold(nodes, share, fit):
    assert scorers.fitting(nodes, share) == fit


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (EngineError("the engine died"), scorers.DIED),
        (NoRoomError("no room"), scorers.DIED),  # a neighbour's memory may be free by then
        (InputError("no such file"), scorers.FAILED),
        (RuntimeError("broken"), scorers.BROKEN),
    ],
)
def test_how_a_scorers_cell_ended_is_told_apart(place, monkeypatch, error, how):
    def raises(*_):
        raise error

    monkeypatch.setattr("workers.rescore.evaluate_cell", raises)
    store, (cell, paths) = Store(place / "store"), cells(place)[0]
    write_json(store.identity, {"id": "this"})
    task = scorers._task(Target("small", cell, cell, paths), "wide", store, "this")
    assert scorers.Scorer({}, None).score(task)[0] == how


def test_a_cell_whose_engine_died_is_scored_once_more_by_a_fresh_worker(place):
    for deaths, (_, paths) in zip((1, 2), cells(place), strict=False):
        (paths.directory / "deaths").write_text(str(deaths))
    words = [sys.executable, "-m", "tests.dying_scorers", str(place)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {"0": "scored", "1": scorers.DIED}
    for _, paths in cells(place)[:2]:
        calls = (paths.directory / "calls").read_text().split()
        assert len(calls) == len(set(calls)) == 2, "each in a process of its own"


def test_data_sets_of_one_revision_are_told_apart():
    cell = Cell(model="tiny-qwen2", dataset="rg-knights-knaves")
    other = Change(dataset=catalog.DATASETS["rg-syllogism"]).of(cell)
    assert other.dataset == "rg-syllogism" and other.base_key != cell.base_key
    assert other.eval.train_questions == 0
    same = Change(dataset=catalog.DATASETS["rg-knights-knaves"]).of(cell)
    assert same == cell and named.same_questions(same, cell)
    assert not named.same_questions(other, cell)


def test_a_cell_rewarded_by_steps_is_scored_where_there_are_none():
    cell = Cell(model="tiny-qwen2", dataset="tiny-sums", reward="steps")
    asked = Change(dataset=catalog.DATASETS["tiny-boxed"]).of(cell)
    assert preflight.scorable(asked).reward == "correct"
    assert preflight.scorable(asked).base_key == asked.base_key
    preflight.check([preflight.scorable(asked)])
