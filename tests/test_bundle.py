"""A bundle says what its store says, in the same bytes each time; a damaged one says nothing."""

import json
import sys
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.bundle import FORMAT, MANIFEST, OUTCOMES, BundleSource, write_bundle
from analysis.outcomes import Unusable
from analysis.study import Study
from grids import outcome
from grids.errors import InputError
from grids.paths import Store, write_json
from orchestrator import cli
from tests.synthetic_store import (
    answers,
    evaluated,
    fail,
    finish,
    make_grid,
    make_store,
    paths_of,
    right_of,
    study_of,
    write_answers,
)

GRID = make_grid({"batch": [32, 64], "advantage": ["raw", "batch_mean"]})
RAW, MEAN = ({"batch": 32, "advantage": name} for name in ("raw", "batch_mean"))


def lines_of(final):
    middle = {outcome.GENERATED_TOKENS: 70, outcome.UPDATES: 1, outcome.GROUP_SIZE: 1}
    return {
        0: evaluated(0.2, 0.3, 0.25),
        50: evaluated(0.4, 0.5) | middle,
        100: evaluated(final, 0.7, 0.5) | middle,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One cell in each state that files can tell."""
    store = make_store(tmp_path_factory.mktemp("bundle"))
    cells = {(c.batch, c.advantage, c.seed): c for c in GRID.cells()}
    for (batch, advantage, seed), cell in cells.items():
        if batch == 32:
            final = 0.6 + 0.02 * seed + 0.04 * (advantage == "batch_mean")
            paths = finish(GRID, cell, store, lines_of(final))
            write_json(paths.provenance, {"device": f"device {seed}"})
            line = {"round": 50, "host": "h", "seconds": {"all": 2.5}}
            paths.timings.write_text(json.dumps(line) + "\n")
    diverged = {"status": "diverged", "diverged_round": 70, "rounds": 100, "reason": "loss is nan"}
    lines = {r: x for r, x in lines_of(0.6).items() if r < 100}
    finish(GRID, cells[64, "raw", 0], store, lines, **diverged)
    paths = finish(GRID, cells[64, "raw", 1], store, lines_of(0.6))
    write_answers(paths, answers("final", 100, "test", "greedy", right_of(0.2)))  # contradicts
    fail(GRID, cells[64, "raw", 2], store, "out of memory")
    paths_of(GRID, cells[64, "batch_mean", 0], store).checkpoint.mkdir(parents=True)
    paths = finish(GRID, cells[64, "batch_mean", 1], store, lines_of(0.6))
    paths.outcomes.write_bytes(b"PAR1 and then nothing")
    return store


@pytest.fixture
def bundle(store, tmp_path):
    return write_bundle(study_of(GRID, store).source, tmp_path / "test.banditgrid.zip")


def both(store, bundle):
    return study_of(GRID, store), Study.open(bundle)


def test_its_runs_are_those_of_the_store(store, bundle):
    ours, theirs = both(store, bundle)
    assert (theirs.name, len(theirs.runs())) == ("test", 9)
    assert set(theirs.runs().state) == {"finished", "diverged"}
    pd.testing.assert_frame_equal(ours.runs(), theirs.runs())


@pytest.mark.parametrize(
    "changed",
    [{}, {"rounds": 50}, {"rounds": 200}, {"eval": {"samples": 4}}, {"eval": {"every": 50}}],
    ids=str,
)
def test_any_horizon_and_evaluation_is_read_alike(store, bundle, changed):
    ours, theirs = both(store, bundle)
    cells = make_grid(GRID.axes, base={"rounds": 100, **changed}).cells()
    runs = [ours.run(cell) for cell in cells]
    assert repr([theirs.run(cell) for cell in cells]) == repr(runs)  # NaN equals nothing
    assert len({run.state for run in runs}) >= 3  # failed and waiting ones among them


def test_its_comparisons_are_those_of_the_store(store, bundle):
    ours, theirs = both(store, bundle)
    for decoding in ("greedy", "sampled"):
        a, b = ours.outcomes(decoding, **RAW), theirs.outcomes(decoding, **RAW)
        assert (a.seeds, a.questions) == (b.seeds, b.questions) == ((0, 1, 2), a.questions)
        np.testing.assert_array_equal(a.correct_S_Q_K, b.correct_S_Q_K)
    compared = theirs.compare(RAW, MEAN)
    assert compared == ours.compare(RAW, MEAN)
    assert compared.difference.value == pytest.approx(0.04)


def test_answers_that_cannot_be_used_are_so_for_the_same_reason(store, bundle):
    ours, theirs = (reasons(study) for study in both(store, bundle))
    assert ours == theirs
    told = " ".join(ours)
    for part in ("is missing", "cannot be read as parquet", "the journal says 0.600000"):
        assert part in told


def reasons(study):
    told = []
    for run in (study.run(cell) for cell in GRID.cells() if cell.batch == 64):
        try:
            study.answers(run, "final", "test", "greedy")
        except Unusable as error:
            told.append(str(error))
    return told


def test_registrations_looks_and_hardware_go_along(store, tmp_path):
    ours = study_of(GRID, store).source
    ours.paths.registrations.write_text('{"registration": "r", "grid": "small"}\n')
    assert ours.note_looks([{"contrast": "r", "grid": "small", "data": "s0"}])
    theirs = BundleSource(write_bundle(ours, tmp_path / "x.zip"))
    assert theirs.registrations() == [{"registration": "r", "grid": "small"}]
    assert theirs.looks() == ours.looks() != []
    assert not theirs.note_looks([{"contrast": "r"}])
    for cell in ours.cells():
        assert theirs.hardware(cell) == ours.hardware(cell)


def test_equal_content_gives_equal_bytes(store, bundle, tmp_path):
    source = study_of(GRID, store).source
    for cell in source.cells():
        source.paths.cell(cell.key).journal.touch()
    assert write_bundle(source, tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_one_cells_answers_are_one_row_group(bundle):
    source = BundleSource(bundle)
    with zipfile.ZipFile(bundle) as file, file.open(OUTCOMES) as member:
        rows = pq.ParquetFile(pa.BufferReader(member.read()))
    assert rows.num_row_groups == len(source.row_groups) == 8
    for key, group in source.row_groups.items():
        assert set(rows.read_row_group(group)["cell"].to_pylist()) == {key}


def test_deleting_one_runs_answers_names_it(store, tmp_path):
    source = study_of(GRID, store).source
    cell = next(c for c in source.cells() if c.batch == 32 and c.advantage == "raw")
    held = source.paths.cell(cell.key).outcomes
    kept = held.rename(held.with_name("kept"))
    try:
        theirs = Study.open(write_bundle(source, tmp_path / "x.zip"))
    finally:
        kept.rename(held)
    stacked = theirs.stacked([theirs.run(c) for c in theirs.arm(RAW)], "final", "test", "greedy")
    assert stacked.outcomes.seeds == (1, 2)
    assert stacked.missing == {0: f"{cell.key}/outcomes.parquet: is missing"}


def test_completions_go_along_only_where_asked_for(store, tmp_path):
    source = study_of(GRID, store).source
    cell = source.cells()[0]
    name = f"cells/{cell.key}/{OUTCOMES}"
    for asked in (False, True):
        path = write_bundle(source, tmp_path / f"{asked}.zip", completions=asked)
        with zipfile.ZipFile(path) as file:
            columns = pq.ParquetFile(pa.BufferReader(file.read(OUTCOMES))).schema_arrow.names
            assert "completion" not in columns
            assert (name in file.namelist()) == asked
            if asked:
                assert file.read(name) == source.paths.cell(cell.key).outcomes.read_bytes()


# ---- files that are no bundle


def test_a_flipped_bit_is_damage_or_changes_nothing(store, bundle):
    """Dates and file modes carry no checksum, and nothing that is read."""
    content, damaged = bundle.read_bytes(), 0
    whole = study_of(GRID, store).runs()
    positions = [int(x) for x in np.linspace(0, len(content) - 1, 60)]
    for at in positions:
        flipped = content[at] ^ 4
        bundle.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        try:
            found = Study.open(bundle).runs()
        except InputError as error:
            damaged += 1
            assert "test.banditgrid.zip: the bundle is damaged" in str(error)
        else:
            pd.testing.assert_frame_equal(found, whole)
    assert damaged > len(positions) / 2


@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_part_of_a_bundle_is_damage(bundle, kept):
    bundle.write_bytes(bundle.read_bytes()[:kept])
    with pytest.raises(InputError, match="the bundle is damaged"):
        Study.open(bundle)


def rewritten(bundle, manifest):
    path = bundle.with_name("rewritten.zip")
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != MANIFEST:
                new.writestr(name, old.read(name))
        if manifest is not None:
            new.writestr(MANIFEST, manifest)
    return path


@pytest.mark.parametrize("manifest", [None, "[]", "{}", '{"format": 1}', '{"format": "x"}', "\xff"])
def test_another_zip_file_is_no_bundle(bundle, manifest):
    with pytest.raises(InputError, match="is no bundle of banditgrid: bundle.json is missing or"):
        Study.open(rewritten(bundle, manifest))


def test_a_newer_format_is_not_misread(bundle):
    newer = json.dumps({"format": FORMAT + 1, "anything": "else"})
    with pytest.raises(InputError, match="format 2; this banditgrid reads formats up to 1: update"):
        Study.open(rewritten(bundle, newer))


# ---- writing


def test_a_file_that_is_no_bundle_is_never_replaced(store, tmp_path):
    source = study_of(GRID, store).source
    held = tmp_path / "thesis.tex"
    held.write_text("years of work")
    for out in (held, tmp_path):
        with pytest.raises(InputError, match="exists and is no bundle; name another file"):
            write_bundle(source, out)
    assert held.read_text() == "years of work"
    with pytest.raises(InputError, match="there is no folder"):
        write_bundle(source, tmp_path / "absent" / "x.zip")


def test_a_failure_leaves_the_old_bundle_and_nothing_else(store, bundle, monkeypatch):
    before = bundle.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analysis.bundle._add_outcomes", full)
    with pytest.raises(InputError, match="cannot be written: .*No space left"):
        write_bundle(study_of(GRID, store).source, bundle)
    assert bundle.read_bytes() == before
    assert list(bundle.parent.iterdir()) == [bundle]


def exported(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["banditgrid", "export", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_writes_it_and_tells_how_to_open_it(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = exported(monkeypatch, capsys, "--store", store.root)
    assert code == 0
    assert "written: test.banditgrid.zip" in out
    assert "11 cells, 8 of them with graded answers" in out
    assert 'Study.open("test.banditgrid.zip")' in out
    assert len(Study.open("test.banditgrid.zip").runs()) == 9


def test_the_command_refuses_what_is_not_there(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    for arguments, told in [
        (["--store", "nowhere"], "nowhere: no such folder"),
        (["tset", "--store", store.root], "has no study 'tset'; it has test; did you mean 'test'?"),
        (["--store", tmp_path, "empty"], "a study without cells"),
    ]:
        code, _, err = exported(monkeypatch, capsys, *arguments)
        assert (code, told in err) == (2, True), err
    assert not list(tmp_path.glob("*.zip"))


def test_an_empty_study_is_not_exported(tmp_path):
    with pytest.raises(InputError, match="study test of the store has no cells"):
        write_bundle(study_of(GRID, Store(tmp_path)).source, tmp_path / "x.zip")
