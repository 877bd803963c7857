"""What opens what, and what is said of a place that holds no study."""

import pytest

from analysis.bundle import BundleSource, write_bundle
from analysis.foreign import ForeignSource
from analysis.opening import source_at, store_at
from analysis.sources import StoreSource
from analysis.study import Study
from grids.errors import InputError
from tests.synthetic_store import evaluated, finish, make_grid, make_store, study_of

LINES = {0: evaluated(0.2), 100: evaluated(0.6)}


@pytest.fixture
def store(tmp_path):
    store = make_store(tmp_path)
    add(store, "one")
    return store


def add(store, study):
    grid = make_grid(study=study, seeds=[0])
    finish(grid, grid.cells()[0], store, LINES)


def test_a_store_of_one_study_and_a_studys_folder(store, monkeypatch):
    for where in (store.root, str(store.root), store.root / "one", f"{store.root}/one/"):
        source = source_at(where)
        assert (type(source), source.name) == (StoreSource, "one")
    assert source_at(store.root, "one").name == source_at(store.root / "one", "one").name == "one"
    monkeypatch.chdir(store.root / "one")
    assert Study.open(".").name == "one"
    assert len(Study.open(".").runs()) == 1


def test_one_of_several_studies_is_named(store):
    add(store, "two")
    (store.root / "mlflow.db").touch()
    assert source_at(store.root, "two").name == "two"
    with pytest.raises(InputError, match="store: holds 2 studies; name one of one, two"):
        source_at(store.root)
    with pytest.raises(InputError, match="has no study 'tow'; it has one, two; did you mean 'two'"):
        source_at(store.root, "tow")
    with pytest.raises(InputError, match="is the folder of one study, not a store with .*'two'"):
        source_at(store.root / "one", "two")


def test_files_are_told_by_how_they_begin(store, tmp_path):
    grid = make_grid(study="one")
    bundle = write_bundle(study_of(grid, store).source, tmp_path / "a.banditgrid.zip")
    assert isinstance(source_at(bundle), BundleSource)
    assert isinstance(source_at(bundle.rename(tmp_path / "a.download"), "one"), BundleSource)
    answers = store.study("one").cell(grid.cells()[0].key).outcomes
    assert isinstance(source_at(answers), ForeignSource)
    assert isinstance(source_at(answers.rename(tmp_path / "answers")), ForeignSource)
    with pytest.raises(InputError, match="a.download: holds one, not 'two'; leave the study out"):
        source_at(tmp_path / "a.download", "two")


@pytest.mark.parametrize(
    "name, content, told",
    [
        (
            "x.csv",
            b"arm,seed\n",
            "neither a bundle nor parquet; expected a store, a study's folder",
        ),
        (
            "x.db",
            b"SQLite format 3\0 and more",
            "a database; MLflow's is given as sqlite:///.*x.db",
        ),
        ("x.zip", b"", "the bundle is damaged"),
        ("x", b"", "neither a bundle nor parquet"),
        ("x.tar", b"PK\3\4 and then nothing", "the bundle is damaged"),
    ],
)
def test_other_files_are_told_of(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: {told}"):
        source_at(tmp_path / name)


def test_places_without_a_study_are_told_of(tmp_path):
    with pytest.raises(InputError, match="absent: there is nothing; expected a store, a study's"):
        Study.open(tmp_path / "absent")
    with pytest.raises(InputError, match="a folder without a study; it holds nothing; expected"):
        Study.open(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="a folder without a study; it holds notes.txt; expected"):
        Study.open(tmp_path)
    (tmp_path / "study" / "cells").mkdir(parents=True)
    (tmp_path / "study" / "cells" / ".DS_Store").touch()
    for where in (tmp_path, tmp_path / "study"):
        with pytest.raises(InputError, match="study: a study without cells; `banditgrid run`"):
            Study.open(where)
    with pytest.raises(InputError, match="absent: no such folder; expected a store or a study's"):
        store_at(tmp_path / "absent")
