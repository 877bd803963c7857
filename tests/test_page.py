"""The report: one page that stands alone, names what is missing, and fits a phone."""

import base64
import re
from datetime import UTC, datetime

import pytest
from matplotlib.figure import Figure

from analysis.finding import Finding
from analysis.page import Group, Part, report_page
from analysis.picture import Picture
from analysis.report import write_report
from analysis.settings import grid_text, registered_sheet, shared_sheet
from analysis.versions import versions_sheet
from grids import InputError
from grids.grid import Grid
from orchestrator.register import register
from tests.reported_store import CONTRAST, a_grid, filled
from tests.synthetic_store import fail, make_grid, paths_of, write_journal
from tests.test_html import check_page, needs_chromium, width_in_browser

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="
)
MADE = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def part_of(small, folder, *more):
    """The grid with a picture of one pixel."""
    files = tuple(folder / f"curves.{name}" for name in ("png", "pdf"))
    files[0].parent.mkdir(parents=True, exist_ok=True)
    files[0].write_bytes(PIXEL)
    picture = Picture("curves", 'Mean & band of "3 seeds" <n>', files)
    return Part("small", small.table, small.study, (picture, *more))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("filled"))


@pytest.fixture(scope="module")
def text(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "report_figures" / "small"
    return report_page([part_of(small, folder)], MADE)


def test_the_page_is_well_formed_and_loads_nothing(text):
    page = check_page(text)
    wanted = {"summary", "findings", "grid-small", "grid-small-arms", "grid-small-contrasts",
              "grid-small-figures", "methods", "versions"}  # fmt: skip
    assert wanted <= set(page.ids)


def test_the_page_tells_when_and_from_what_it_was_made(text):
    assert "Made 2026-01-02 03:04 UTC from study test of the store" in text


def test_the_figure_is_inside_and_its_files_are_linked(text):
    assert f'src="data:image/png;base64,{base64.b64encode(PIXEL).decode()}"' in text
    assert 'alt="curves. Mean &amp; band of &#34;3 seeds&#34; &lt;n&gt;"' in text
    assert 'href="report_figures/small/curves.pdf"' in text


def test_the_summary_counts_and_names_runs(text):
    assert "6 cells: 5 finished, 1 diverged." in text
    assert re.search(r"<li>olmo-2-1b-instruct gsm8k \(32,8,0\) raw s2: .*loss is NaN</li>", text)


def test_findings_come_with_their_evidence(text, small):
    found = Part("small", small.table, small.study).findings
    assert found and all(finding.name in text for finding in found)
    assert text.count("<summary>Evidence (") == sum(bool(finding.evidence) for finding in found)


def test_settings_and_versions_are_told(text):
    assert "0123456789ab+" in text and "2.13.0" in text
    assert "rollouts: [1, 8]" in text and "margin: 0.05" in text


def test_the_same_store_and_time_give_the_same_page(small, tmp_path):
    assert report_page([part_of(small, tmp_path)], MADE) == report_page(
        [part_of(small, tmp_path)], MADE
    )


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_as_wide_as_its_window(text, tmp_path, width):
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    assert width_in_browser(path, width, tmp_path) == (width, width)


# ---- parts of it


def test_missing_runs_are_named_with_their_reason(tmp_path):
    small = filled(tmp_path, arms=("(32,1,0) raw",))
    cells = [cell for cell in small.grid.cells() if cell.rollouts == 8]
    fail(small.grid, cells[0], small.store, "OutOfMemoryError: <too> much")
    write_journal(paths_of(small.grid, cells[1], small.store), {0: {}, 40: {}})
    text = report_page([part_of(small, tmp_path / "figures")], MADE)
    assert "6 cells: 3 finished, 1 failed, 1 unfinished, 1 waiting." in text
    assert "(32,8,0) raw s0: OutOfMemoryError: &lt;too&gt; much" in text
    assert "(32,8,0) raw s1: at round 40 of 100" in text
    assert "(32,8,0) raw s2</li>" in text


def test_findings_are_counted_by_what_they_say():
    found = [Finding("x", "p", holds, "t") for holds in (True, False, None, None)]
    group = Group("x", tuple(found))
    assert group.counts == "holds in 1 of 4, does not hold in 1, cannot be told in 2"
    assert [(told, len(rest)) for told, rest in group.rest] == [
        ("does not hold", 1), ("cannot be told", 2)
    ]  # fmt: skip
    assert Group("x", tuple(found[:1])).counts == "holds in 1"


def test_a_grids_text_can_be_loaded_again():
    import yaml

    grid = a_grid()
    assert Grid.model_validate(yaml.safe_load(grid_text(grid))) == grid


def test_all_of_a_contrast_is_told_its_defaults_too():
    grid = make_grid(
        {"rollouts": [1, 8]}, contrasts=[{"name": "x", "a": {"rollouts": 1}, "b": {"rollouts": 8}}]
    )
    assert "margin: 0.02" in grid_text(grid) and "match: rounds" in grid_text(grid)


def test_settings_of_cells_are_told_once_or_all():
    rows = dict(shared_sheet(a_grid().cells()).rows)
    assert rows["rollouts"] == "1, 8" and rows["lr"] == "1e-06" and rows["seed"] == "0, 1, 2"
    assert rows["eval.samples"] == "4" and "model revision" in rows


def test_registrations_are_told(tmp_path):
    small = filled(tmp_path)
    assert registered_sheet(small.grid, small.study) is None
    register(small.grid, {cell.key: cell for cell in small.grid.cells()}, small.store)
    sheet = registered_sheet(small.grid, small.study)
    assert [row[0] for row in sheet.rows] == [CONTRAST["name"]]
    row = dict(zip(sheet.header, sheet.rows[0], strict=True))
    assert (row["seeds"], row["rounds"], row["outcomes known"]) == ("0, 1, 2", "100", "yes")


def test_versions_are_counted_and_untold_ones_said(tmp_path):
    small = filled(tmp_path)
    runs = [run for row in small.table.rows for run in row.runs]
    paths_of(small.grid, runs[0].cell, small.store).provenance.unlink()
    sheet = versions_sheet([(small.study, runs)])
    rows = [dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]
    assert [row["cells"] for row in rows] == ["5", "1"]
    assert (rows[0]["device"], rows[0]["torch"]) == ("cpu", "2.13.0")
    assert (rows[1]["device"], rows[1]["commit"]) == ("not told", "not told")


# ---- files


@pytest.fixture
def charts(monkeypatch):
    """Drawing takes seconds: an empty figure stands for all."""
    figure = Figure((1, 1))
    figure.text(0, 0, "How to read it.", gid="caption")
    monkeypatch.setattr("analysis.charts.figures_of", lambda table, study: {"by-cost": figure})


def test_the_page_and_its_figures_are_written(small, tmp_path, charts):
    out = tmp_path / "deep" / "page.html"
    paths = write_report([small.table], {"test": small.study}, out, MADE)
    names = [path.relative_to(out.parent).as_posix() for path in paths]
    assert names == [
        "page.html", "page_figures/small/by-cost.png", "page_figures/small/by-cost.pdf"
    ]  # fmt: skip
    text = out.read_text(encoding="utf-8")
    assert 'alt="small: by cost. How to read it."' in text
    links = re.findall(r'href="([^"#]+)"', out.read_text(encoding="utf-8"))
    assert links and all((out.parent / link).is_file() for link in links)


def test_nothing_to_report_is_told(tmp_path, charts):
    small = filled(tmp_path, arms=())
    with pytest.raises(InputError, match="study test: no cell of these grids has left anything"):
        write_report([small.table], {"test": small.study}, tmp_path / "r.html", MADE)
    assert not (tmp_path / "r.html").exists()


def test_a_place_that_cannot_be_written_is_told(small, tmp_path, charts):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        write_report([small.table], {"test": small.study}, tmp_path / "file" / "r.html", MADE)
    with pytest.raises(InputError, match="is a folder; name a file"):
        write_report([small.table], {"test": small.study}, tmp_path, MADE)
