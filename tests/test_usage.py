"""System metrics: hand-sized, absent where not measured, at the time when they were."""

from __future__ import annotations

import json

import pytest

from grids.paths import CellPaths
from orchestrator.usage import Timings, usage

SECONDS = {"generate": 2.0, "reference": 0.5, "update": 1.0, "all": 4.0, "evaluate": 1.0}
PROCESS = {
    "seconds": 5.0,
    "cpu_seconds": 2.5,
    "rss_bytes": 3_000_000_000,
    "gpu_bytes": None,
    "time": 1.7e9,
}
LINE = {"round": 3, "train/generated_tokens": 500.0}


def test_a_round_by_hand() -> None:
    assert usage({"seconds": SECONDS, "process": PROCESS}, LINE) == {
        "system/seconds_generate": 2.0, "system/seconds_reference": 0.5,
        "system/seconds_update": 1.0, "system/seconds_evaluate": 1.0, "system/seconds_a_round": 4.0,
        "system/tokens_a_second": 250.0, "system/processors_busy": 0.5, "system/memory_gb": 3.0,
    }  # fmt: skip


TIME = {"process": {"time": 1.7e9}}


@pytest.mark.parametrize(
    "timing",
    [{}, TIME, TIME | {"seconds": None}, TIME | {"seconds": {"all": "x"}}, {"seconds": SECONDS}],
)
def test_what_was_not_measured_is_absent(timing) -> None:
    assert usage(timing, LINE) == {}


def test_no_second_in_generation_is_no_rate() -> None:
    told = usage(TIME | {"seconds": SECONDS | {"generate": 0.0}}, LINE)
    assert "system/tokens_a_second" not in told and told["system/seconds_generate"] == 0.0


def test_timings_stand_beside_their_rounds(tmp_path) -> None:
    paths = CellPaths(tmp_path)
    line = {"round": 3, "seconds": SECONDS, "process": PROCESS}
    paths.timings.write_text(json.dumps(line) + "\n")
    timings = Timings.read(paths)
    beside = timings.beside([{"round": 2}, LINE])
    assert beside[0] == {"round": 2} and beside[1]["system/memory_gb"] == 3.0
    assert timings.time_ms(3) == 1_700_000_000_000 and timings.time_ms(2) is None


def test_a_damaged_file_costs_these_curves_alone(tmp_path) -> None:
    paths = CellPaths(tmp_path)
    paths.timings.write_text("no JSON\n")
    assert Timings.read(paths).beside([LINE]) == [LINE]
    assert Timings.read(CellPaths(tmp_path / "absent")).beside([LINE]) == [LINE]
