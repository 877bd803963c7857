"""MLflow's pages of a study in a real Chromium: they show what is promised, and ask nobody else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from grids import load_grid
from grids.grid import Grid
from tests.conftest import ROOT
from tests.heads import free_ports
from tests.pages import COMMAND, CURVE, Browser, chromium, served
from tests.screenshots import Shot, Study, reports_of, shots_of, study_of, take

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SMALL = """\
name: small
study: pages
about: one rollout against groups of eight
base: {rounds: 4, eval: {every: 2, test_questions: 16, train_questions: 8}}
axes:
  model: [tiny-qwen2]
  dataset: [tiny-sums]
  rollouts: [1, 8]
  batch: [32, 8]
  advantage: [raw, grpo]
seeds: [0, 1]
exclude:
  - {batch: 8, rollouts: 1, why: two shapes only}
  - {batch: 32, rollouts: 8, why: two shapes only}
  - {rollouts: 1, advantage: grpo, why: one rollout earns its raw reward}
  - {rollouts: 8, advantage: raw, why: groups get GRPO's advantage}
"""
CHART = ".js-plotly-plot"
COLUMNS = {"arm", "seed", "base/test/pass_at_1", "final/test/pass_at_1"}


@dataclass(frozen=True)
class Seen:
    """What was on a page when it stood still."""

    text: str
    columns: set[str]
    curves: int  # of all charts
    points: int  # of the first chart
    bytes: int  # of its picture


@dataclass(frozen=True)
class Visit:
    study: Study
    seen: dict[str, Seen]
    troubles: list[str]
    asked: set[str]


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """All pages, one after the other; each has to show what `shots_of` says of it."""
    pytest.importorskip("playwright", reason="pip install -e '.[screenshots]'")
    if chromium() is None:
        pytest.skip("there is no Chromium here; on Debian: apt-get install chromium")
    folder = tmp_path_factory.mktemp("pages")
    path, grid = _trained(folder)
    reports = reports_of([path], folder / "store", folder)
    (port,) = free_ports(1)
    seen: dict[str, Seen] = {}
    with (
        served(folder / "store", port, folder / "ui.log") as server,
        Browser(folder, width=1920) as browser,
    ):
        study = study_of(server, grid)
        for shot, picture in take(browser, server, _all(study, reports)):
            seen[shot.name] = _seen(browser, picture)
    return Visit(study, seen, browser.troubles, browser.asked)


def _trained(folder: Path) -> tuple[Path, Grid]:
    path = folder / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    run = subprocess.run(
        [str(COMMAND), "run", str(path), "--store", str(folder / "store")],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return path, load_grid(path)


def _all(study: Study, reports: list[Shot]) -> Iterator[Shot]:
    yield from shots_of(study)
    yield from reports


def _seen(browser: Browser, picture: bytes) -> Seen:
    page = browser.page
    return Seen(
        page.inner_text("body"),
        set(page.locator(".ag-header-cell").all_inner_texts()),
        page.locator(CURVE).count(),
        page.locator(CHART).first.locator(".scatterlayer .trace .points path").count(),
        len(picture),
    )


def test_every_page_renders_without_an_error(visit: Visit) -> None:
    assert visit.troubles == []
    assert all(seen.bytes > 10_000 for seen in visit.seen.values()), "a picture of nothing"


def test_pages_ask_nobody_but_the_server(visit: Visit) -> None:
    assert visit.asked == {"127.0.0.1"}


def test_the_study_shows_its_description_runs_and_columns(visit: Visit) -> None:
    seen = visit.seen["study"]
    assert "one rollout against groups of eight" in seen.text
    assert all(run.info.run_name in seen.text for run in visit.study.runs)
    assert seen.columns >= COLUMNS


def test_the_view_of_a_grid_has_its_columns_groups_and_charts(visit: Visit) -> None:
    table, charts = visit.seen["section"], visit.seen["section_charts"]
    assert table.columns >= COLUMNS
    assert "You're viewing a shared view" in table.text
    assert table.text.count("Group: ") == 2, "one of each arm"
    assert charts.curves >= 2, "a curve of each arm"


def test_a_run_tells_what_it_is_and_shows_its_curve(visit: Visit) -> None:
    run, curves = visit.seen["run"], visit.seen["run_curves"]
    assert "finished after 4 rounds" in run.text and "tiny-sums train" in run.text
    assert curves.points == 3, "Pass@1 after 0, 2 and 4 rounds"


def test_completions_are_a_table_and_the_machines_use_is_drawn(visit: Visit) -> None:
    assert {"question", "completion"} <= set(visit.seen["run_completions"].text.split())
    assert visit.seen["run_system"].curves >= 1


def test_four_runs_are_compared(visit: Visit) -> None:
    text = visit.seen["compare"].text
    assert "Comparing 4 Runs" in text
    assert all(run.info.run_name in text for run in visit.study.runs)
    assert "rollouts\t" in text and "temperature\t" not in text, "parameters that differ alone"


def test_the_report_has_its_tables_and_figures(visit: Visit) -> None:
    assert "pipeline check" in visit.seen["report"].text
    assert visit.seen["report_figure"].bytes != visit.seen["report"].bytes
