"""Takes the documents' pictures: a study in MLflow, page by page, and the report.

    python -m tests.screenshots grids/demo.yaml --store store --out docs/images

The study must have been trained into the store. Needs Chromium (Debian's package `chromium`) and
the extra `screenshots`. What must be seen on each page is told here, so that the same list is a
test (`tests/integration/test_pages.py`). Leaves out driving the browser (`tests/pages.py`), and on
the picture of completions the line that tells where the store lies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from grids import load_grid
from grids.grid import Grid
from grids.outcome import FINAL_PREFIX, REWARD, TAG_CELL_KEY, TEST_PASS, TRAIN_PASS
from orchestrator import views
from tests.heads import free_ports
from tests.pages import COMMAND, CURVE, HEIGHT, Browser, chromium, keep, served

if TYPE_CHECKING:
    from mlflow.entities import Run

MODE = "workflowType=machine_learning"
UNFOLD = '[data-component-id="mlflow.experiment.metadata_editor.expand_button"]'
TO_THE_TOP = "found => found.scrollIntoView()"
COMPARED = 4
LOADED = 99  # runs that a page shows at first, the newest; one is that of the analysis


@dataclass(frozen=True)
class Shot:
    """A picture: its page, what a person does there first, and what must be seen then."""

    name: str
    address: str
    shows: tuple[str, ...]
    first: Callable[[Any], None] = lambda page: None
    height: int = HEIGHT


@dataclass(frozen=True)
class Study:
    """What pages are of: an experiment with a grid's view, four of its runs, one of them first."""

    experiment: str
    grid: Grid
    runs: tuple[Run, ...]


def study_of(address: str, grid: Grid) -> Study:
    """The grid's study on a server. Runs of one data set and seed, so that they compare."""
    from orchestrator.tracking import patient_client

    client = patient_client(address)
    found = client.get_experiment_by_name(grid.study)
    if found is None:
        raise SystemExit(f"there is no study {grid.study!r} in the store: run the grid first")
    runs = client.search_runs(
        [found.experiment_id], f"tags.`{TAG_CELL_KEY}` != '' AND attributes.status = 'FINISHED'",
        max_results=LOADED, order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    if len(runs) < COMPARED:
        raise SystemExit(f"{grid.study} has {len(runs)} finished runs; {COMPARED} are compared")
    runs = sorted(runs, key=_alike)[:COMPARED]
    best = max(runs, key=lambda run: run.data.metrics[f"{FINAL_PREFIX}{TEST_PASS}"])
    return Study(found.experiment_id, grid, (best, *(run for run in runs if run is not best)))


def _alike(run: Run) -> tuple[str, int, str]:
    told = run.data.params
    return told["dataset"], int(told["seed"]), run.info.run_name


def shots_of(study: Study) -> Iterator[Shot]:
    """The pages of MLflow, relative to the server."""
    runs = f"#/experiments/{study.experiment}/runs"
    run, name = f"{runs}/{study.runs[0].info.run_id}", study.runs[0].info.run_name
    view = views.key_of(study.grid)
    yield Shot(
        "study", views.path(study.experiment, views.STUDY),
        (f"text={study.grid.about}", f'a:has-text("{name}")', "text=matching runs"),
        lambda page: page.locator(UNFOLD).click(),
    )  # fmt: skip
    yield Shot(
        "section", views.path(study.experiment, view), ("text=Group: ", "text=matching runs")
    )
    yield Shot("section_charts", views.path(study.experiment, view, charts=True), (CURVE,))
    yield Shot(
        "run", f"{run}?{MODE}",
        (f'h2:has-text("{name}")', "text=finished after", "text=Datasets", "text=Metrics ("),
        lambda page: page.get_by_text("Show more").first.click(),
    )  # fmt: skip
    metrics = f"^({TEST_PASS}|{TRAIN_PASS}|{REWARD})$"
    yield Shot(
        "run_curves", f"{run}/model-metrics?{MODE}", (CURVE, 'text="pass_at_1"', 'text="reward"'),
        lambda page: page.get_by_placeholder("Search metric charts").fill(metrics), height=1040,
    )  # fmt: skip
    yield Shot("run_system", f"{run}/system-metrics?{MODE}", (CURVE,))
    yield Shot(
        "run_completions", f"{run}/artifacts/completions.json?{MODE}",
        ("text=View as table", '[role=cell]:has-text("test")'), _without_its_folder,
    )  # fmt: skip
    yield _compared(study)


def _without_its_folder(page: Any) -> None:
    page.get_by_text("Path: file:").evaluate("found => found.style.visibility = 'hidden'")


def _compared(study: Study) -> Shot:
    ids = [run.info.run_id for run in study.runs]
    query = urlencode({"runs": json.dumps(ids), "experiments": json.dumps([study.experiment])})
    names = (f'text="{run.info.run_name}"' for run in study.runs)
    return Shot(
        "compare", f"#/compare-runs?{query}&{MODE}",
        (f"text=Comparing {COMPARED} Runs", 'role=button[name="Metrics"]', *names),
        _differences, height=1100,
    )  # fmt: skip


def _differences(page: Any) -> None:
    """The settings that differ, and the metrics: the plot of all that stands above is folded."""
    page.get_by_role("button", name="Visualizations").click()
    for switch in page.get_by_role("switch").all():
        switch.click()
    page.get_by_role("heading", name="Comparing").scroll_into_view_if_needed()


def reports_of(grids: Sequence[Path], store: Path, folder: Path) -> list[Shot]:
    """The report, made by the command beside the store, so that it names no folder above."""
    out = folder / "report.html"
    command = [str(COMMAND), "report", *(str(path.resolve()) for path in grids)]
    subprocess.run(
        [*command, "--store", store.name, "--out", str(out)], cwd=store.resolve().parent, check=True
    )
    return [
        Shot(
            "report", out.as_uri(), ("h1", "section.grid table .interval"),
            lambda page: page.locator("section.grid h2").first.evaluate(TO_THE_TOP),
        ),
        Shot(
            "report_figure", out.as_uri(), ("figure img",),
            lambda page: page.locator('h3:has-text("Figures")').first.evaluate(TO_THE_TOP),
            height=1000,
        ),
    ]  # fmt: skip


def take(browser: Browser, server: str, shots: Iterator[Shot]) -> Iterator[tuple[Shot, bytes]]:
    """The picture of each page, as soon as it stands still."""
    for shot in shots:
        address = shot.address if "://" in shot.address else f"{server}/{shot.address}"
        shot.first(browser.open(address, shot.height))
        yield shot, browser.settle(shot.shows)


def main(words: Sequence[str] | None = None) -> int:
    asked = _options(words)
    if chromium() is None:
        raise SystemExit("there is no Chromium here; on Debian: apt-get install chromium")
    grid = load_grid(asked.grids[0])
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reports = reports_of(asked.grids, asked.store, folder)
        with served(asked.store, port, folder / "ui.log") as server, Browser(folder) as browser:
            shots = [*shots_of(study_of(server, grid)), *reports]
            shots = [shot for shot in shots if not asked.only or shot.name in asked.only]
            for shot, picture in take(browser, server, iter(shots)):
                path = asked.out / f"{shot.name}.png"
                print(f"{path}  {keep(picture, path) / 1000:.0f} kB", flush=True)
    for trouble in browser.troubles:
        print(f"trouble: {trouble}")
    return 1 if browser.troubles else 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots")
    parser.add_argument(
        "grids", nargs="+", type=Path, help="grid files of one study; views are of the first"
    )
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pictures alone")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="for the pictures")
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
