"""Files of tables: names, formats, order; and the command's looks, messages and exit codes."""

import math

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.bundle import write_bundle
from analysis.report import FORMATS, formats_of, make_tables, open_studies, write_tables
from analysis.sources import StoreSource
from analysis.tables import frame
from grids import InputError
from grids.paths import Store, read_lines
from orchestrator.tracking import quiet_client
from tests.reported_store import a_grid, filled
from tests.synthetic_store import make_grid, make_store, study_of
from tests.test_cli import banditgrid  # noqa: F401  (a fixture)

GRID = """
name: small
study: test
base: {rounds: 100, eval: {samples: 4}}
axes: {model: [olmo-2-1b-instruct], dataset: [gsm8k], rollouts: [1, 8]}
seeds: [0, 1, 2]
contrasts:
  - {name: shape, a: {rollouts: 1}, b: {rollouts: 8}, claim: superior, margin: 0.05, match: prompts}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("filled"))


@pytest.fixture
def grid_path(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def tables_of(*grids, store):
    return make_tables(grids, {grid.study: study_of(grid, store) for grid in grids})


# ---- which files


def test_every_format_of_every_grid_and_of_all(small, tmp_path):
    other = make_grid(name="zebra", section="4.3")
    paths = write_tables(tables_of(small.grid, other, store=small.store), tmp_path / "deep" / "out")
    names = [
        "4.3-zebra.md", "4.3-zebra.csv", "4.3-zebra.tex", "4.3-zebra.html", "small.md", "small.csv",
        "small-contrasts.csv", "small.tex", "small.html", "tables.md", "tables.tex", "tables.html",
    ]  # fmt: skip
    assert [path.name for path in paths] == names
    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == sorted(names)
    joined = paths[-3].read_text(encoding="utf-8")
    assert joined.index("# 4.3 zebra") < joined.index("# small")


def test_chosen_formats_alone(small, tmp_path):
    paths = write_tables([small.table], tmp_path, ("csv", "md"))
    assert {path.suffix for path in paths} == {".csv", ".md"}


def test_csv_holds_the_very_numbers(small, tmp_path):
    write_tables([small.table], tmp_path, ("csv",))
    read, table = pd.read_csv(tmp_path / "small.csv"), frame(small.table)
    numeric = table.select_dtypes("number").columns
    assert len(numeric) > 30
    pd.testing.assert_frame_equal(
        read[numeric], table[numeric], check_exact=True, check_dtype=False
    )
    contrasts = pd.read_csv(tmp_path / "small-contrasts.csv")
    made = small.table.results[0].comparison
    assert contrasts.difference_value[0] == made.difference.value
    assert contrasts.p[0] == made.p and contrasts.seeds[0] == 3


def test_the_same_store_gives_the_same_bytes(small, tmp_path):
    texts = [
        [path.read_bytes() for path in write_tables([small.table], tmp_path / name)]
        for name in ("one", "two")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 8


def test_equal_names_of_two_studies_do_not_overwrite(tmp_path):
    store = make_store(tmp_path)
    grids = [make_grid(study="one"), make_grid(study="two"), make_grid(name="tables")]
    names = [path.name for path in write_tables(tables_of(*grids, store=store), tmp_path, ("md",))]
    assert set(names) == {"small-one.md", "small-two.md", "tables-test.md", "tables.md"}


@pytest.mark.parametrize("other", ["small", "small-contrasts"])
def test_two_tables_of_one_name_are_told(small, tmp_path, other):
    grids = [small.grid, make_grid(name=other)]
    with pytest.raises(InputError, match="2 tables would be written to small-"):
        write_tables(tables_of(*grids, store=small.store), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_told(small, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out: the tables cannot be written there"):
        write_tables([small.table], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_section_cannot_lead_out_of_the_folder(tmp_path):
    grid, store = make_grid(section="../../x"), make_store(tmp_path)
    paths = write_tables(tables_of(grid, store=store), tmp_path / "out")
    assert all(path.parent == tmp_path / "out" for path in paths)


def test_formats_are_named():
    assert formats_of("md, csv,md") == ("md", "csv") and formats_of("") == FORMATS
    with pytest.raises(InputError, match="--format: got 'docx'; allowed: csv, html, md, tex"):
        formats_of("md,docx")


# ---- where runs are read


def test_a_store_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no store .*nowhere; run a grid first, or name one with"):
        open_studies([a_grid()], Store(tmp_path / "nowhere"))


def test_a_bundle_shows_what_the_store_does(small, tmp_path):
    bundle = tmp_path / "test.zip"
    write_bundle(StoreSource(small.store.study("test")), bundle)
    studies = open_studies([small.grid], str(bundle))
    (table,) = make_tables([small.grid], studies)
    pd.testing.assert_frame_equal(frame(table), frame(small.table))
    assert "bundle" in table.source


# ---- the command


def test_tables_counts_its_look_once_and_says_exploratory_after(banditgrid, grid_path, tmp_path):  # noqa: F811
    small = filled(tmp_path)
    words = ("tables", grid_path, "--store", small.store.root, "--out", tmp_path / "out")
    first, second = banditgrid(*words), banditgrid(*words)
    assert (first.code, second.code, first.err) == (0, 0, "")
    assert len(read_lines(small.store.study("test").looks)) == 1
    assert "exploratory (0 looks)" in first.out and "exploratory (1 look)" in second.out
    assert "# small" in first.out and "written: " in first.out


def test_a_look_that_cannot_be_counted_is_told(banditgrid, grid_path, tmp_path):  # noqa: F811
    small = filled(tmp_path)
    bundle = tmp_path / "test.zip"
    write_bundle(StoreSource(small.store.study("test")), bundle)
    ran = banditgrid("tables", grid_path, "--from", bundle, "--out", tmp_path / "out")
    assert ran.code == 0
    assert ran.err == (
        "this look could not be counted: study test of the bundle test.zip cannot be written\n"
    )


def test_a_foreign_study_is_logged_only_where_the_command_names_the_server(
    banditgrid,  # noqa: F811
    grid_path,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    """A server that the environment names may have a study of that name, and it is another."""
    small, bundle = filled(tmp_path), tmp_path / "test.zip"
    write_bundle(StoreSource(small.store.study("test")), bundle)
    uri = f"sqlite:///{tmp_path}/server.db"
    words = ("tables", grid_path, "--from", bundle, "--out", tmp_path / "out")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "logged to the run" not in banditgrid(*words).out
    assert not (tmp_path / "server.db").exists()
    assert "logged to the run `analysis` of test" in banditgrid(*words, "--tracking-uri", uri).out


@pytest.mark.parametrize(
    "words, message",
    [
        (("tables", "--store", "nowhere"), "error: no store nowhere"),
        (("report", "--store", "nowhere"), "error: no store nowhere"),
        (("tables", "--from", "nothing.zip"), "error: nothing.zip: there is nothing"),
        (("tables", "--format", "docx"), "error: --format: got 'docx'"),
        (("tables", "--store", ".", "--out", "grid.yaml"), "error: grid.yaml: the tables cannot"),
        (("report", "--store", "."), "error: study test: no cell of these grids has left anything"),
    ],
)
def test_bad_input_is_one_message(banditgrid, grid_path, words, message):  # noqa: F811
    ran = banditgrid(words[0], grid_path, *words[1:])
    assert ran.code == 2 and ran.err.startswith(message)
    assert ran.err.count("\n") == 1


def test_an_empty_study_shows_waiting_arms(banditgrid, grid_path, tmp_path):  # noqa: F811
    ran = banditgrid("tables", grid_path, "--store", tmp_path, "--out", tmp_path / "out")
    assert ran.code == 0 and "3 of 3 seeds waiting" in ran.out
    read = pd.read_csv(tmp_path / "out" / "small.csv")
    assert math.isnan(read.gain_test_value[0]) and read.gain_test_n[0] == 0


def test_the_report_is_written_and_logged(banditgrid, grid_path, tmp_path, monkeypatch):  # noqa: F811
    figure = Figure((1, 1))
    monkeypatch.setattr("analysis.charts.figures_of", lambda table, study: {"by-cost": figure})
    small = filled(tmp_path)
    client = quiet_client(small.store.tracking_uri)
    client.search_experiments()  # makes the database
    out = tmp_path / "page.html"
    ran = banditgrid("report", grid_path, "--store", small.store.root, "--out", out)
    assert (ran.code, ran.err) == (0, "")
    assert f"written: {out}, and 2 files of figures beside it" in ran.out
    assert "logged to the run `analysis` of test in MLflow" in ran.out
    assert len(read_lines(small.store.study("test").looks)) == 1
    logged = {path.name for path in (small.store.root / "artifacts").rglob("*") if path.is_file()}
    assert logged == {"page.html", "by-cost.png", "by-cost.pdf"}
    again = banditgrid("tables", grid_path, "--store", small.store.root, "--no-log")
    assert again.code == 0 and "logged" not in again.out
    assert len(read_lines(small.store.study("test").looks)) == 1
