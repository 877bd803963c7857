"""Saved views of MLflow's runs page: one for each grid (a section of the paper), one for the study.

A view is a tag of the experiment that MLflow's pages read: which runs, columns, groups, order and
charts. It is in the page's own menu of views, and a link opens it. What a person changes in a view
of ours is overwritten when the grid is run again; views that they save under other names stay.
Leaves out intervals: a group's mean on MLflow's pages has none, the tables have.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from grids.grid import Grid
from grids.outcome import (
    BASE_PREFIX,
    FINAL_PREFIX,
    KL,
    REWARD,
    TAG_ARM,
    TAG_GRID_PREFIX,
    TAG_PAIR,
    TAG_STATUS,
    TEST_PASS,
    TRAIN_PASS,
)

TAG_PREFIX: Final = "mlflow.sharedViewState."
STUDY: Final = "banditgrid-all"
BASE, FINAL = f"{BASE_PREFIX}{TEST_PASS}", f"{FINAL_PREFIX}{TEST_PASS}"


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _line(metric: str, title: str) -> dict[str, Any]:
    """A chart of a metric by round."""
    return {
        "type": "LINE", "uuid": f"banditgrid-{metric}", "metricSectionId": SECTION["uuid"],
        "deleted": False, "isGenerated": False, "displayName": title, "runsCountToCompare": 10,
        "metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step",
        "lineSmoothness": 0, "scaleType": "linear", "xAxisScaleType": "linear", "range": {},
        "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False,
        "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "selectedXAxisMetricKey": "",
    }  # fmt: skip


SECTION: Final[dict[str, Any]] = {
    "uuid": "banditgrid", "name": "banditgrid", "display": True, "isReordered": False,
    "deleted": False, "isGenerated": False,
}  # fmt: skip
CHARTS: Final = (
    (TEST_PASS, "Pass@1, test questions, greedy"),
    (TRAIN_PASS, "Pass@1, train questions, greedy"),
    (REWARD, "reward of the rollouts"),
    (KL, "KL from the base"),
)
COLUMNS: Final = (
    _column("tags", TAG_PAIR), _column("tags", TAG_ARM), _column("params", "seed"),
    _column("metrics", BASE), _column("metrics", FINAL), _column("tags", TAG_STATUS),
)  # fmt: skip
# In this order, and so wide; "0" and "1" are what MLflow calls the column of its tick boxes.
WIDTHS: Final = {
    "0": 73, "1": 73, _column("attributes", "Run Name"): 360, _column("metrics", BASE): 160,
    _column("metrics", FINAL): 160, _column("tags", TAG_ARM): 160, _column("tags", TAG_PAIR): 180,
    _column("params", "seed"): 70, _column("tags", TAG_STATUS): 140, "runDateAndNestInfo": 150,
    "duration": 90,
}  # fmt: skip


def of_grid(grid: Grid) -> dict[str, Any]:
    """Its cells, pair by pair and arm by arm, best mean of the final Pass@1 first."""
    groups = [{"mode": "tag", "groupByData": tag} for tag in (TAG_PAIR, TAG_ARM)]
    return _state(
        f"tags.`{TAG_GRID_PREFIX}{grid.name}` = 'yes'", _column("metrics", FINAL),
        groupBy={"aggregateFunction": "average", "groupByKeys": groups},
        useGroupedValuesInCharts=True,
    )  # fmt: skip


def of_study() -> dict[str, Any]:
    """Every run, newest first."""
    return _state("", "attributes.start_time")


def _state(search: str, order: str, **more: Any) -> dict[str, Any]:
    return {
        "searchFilter": search, "orderByKey": order, "orderByAsc": False,
        "selectedColumns": list(COLUMNS), "compareRunSections": [SECTION],
        "compareRunCharts": [_line(metric, title) for metric, title in CHARTS],
        "columnOrder": list(WIDTHS), "columnWidths": WIDTHS, "isAccordionReordered": True, **more,
    }  # fmt: skip


def key_of(grid: Grid) -> str:
    return f"banditgrid-grid-{grid.name}"


def title_of(grid: Grid) -> str:
    """What MLflow's menu calls the view of a grid."""
    return f"{grid.section or ''} {grid.name}".strip()


def tag(key: str, title: str, state: dict[str, Any], section: str | None = None) -> tuple[str, str]:
    """The experiment's tag that holds a view; equal views give equal tags, whenever made.

    MLflow's menu begins with the newest: the study, sections in the paper's order, then others.
    """
    numbers = [int(number) for number in re.findall(r"\d+", section or "")[:2]]
    age = sum(n * of for n, of in zip(numbers, (1000, 1), strict=False)) or 900_000
    made = 1_000_000 - (0 if key == STUDY else min(age, 900_000))
    content = {"name": title, "createdAt": made, "updatedAt": made, "state": json.dumps(state)}
    return f"{TAG_PREFIX}{key}", json.dumps(content)


def path(experiment: str, key: str, charts: bool = False) -> str:
    """The page that a view is on, relative to any other of the same server."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return (
        f"#/experiments/{experiment}/runs?workflowType=machine_learning"
        f"&viewStateShareKey={key}{mode}"
    )
