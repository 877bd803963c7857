"""GPUs and limits of a machine: notes, unless a grid asks for what is not there."""

# ruff: noqa: F811 (fixtures that are imported are also arguments)
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.doctor_lines import FAULT, NOTE, READY
from orchestrator.doctor_machine import Gpu, Gpus, files_line, gpu_lines, memory_line, shared_line
from tests.doctoring import TINY, Told, banditgrid, doctor  # noqa: F401

GPUS = TINY.replace("batch: 8", "batch: 8, gpus: 2")


def test_gpus_are_a_fault_only_where_they_are_asked_for_or_unused(
    tiny: Callable[..., Any],
) -> None:
    card = Gpu("H100", 80 * 10**9, 79 * 10**9)
    plain, asking = [tiny()], [tiny(gpus=1.0)]
    assert gpu_lines(Gpus([]), plain, "2.13").grade == NOTE
    assert "gpus: 1" in gpu_lines(Gpus([]), asking, "2.13").told
    assert gpu_lines(Gpus([], "nvidia-smi fails: NVML"), plain, "2.13").grade == NOTE
    assert gpu_lines(Gpus([], "nvidia-smi fails: NVML"), asking, "2.13").grade == FAULT
    assert "sees none of them" in gpu_lines(Gpus([card]), plain, "2.13+cpu").told
    assert gpu_lines(Gpus([card], "", [card.total]), asking, "2.13").grade == READY
    few = gpu_lines(Gpus([card], "", [card.total]), [tiny(gpus=2.0)], "2.13")
    assert few.grade == FAULT and "this machine has 1" in few.told and few.remedy
    small = gpu_lines(Gpus([card], "", [10**6]), plain, "2.13")
    assert small.grade == FAULT and "is predicted to need" in small.told


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_a_grid_that_asks_for_gpus_is_told_that_there_are_none(
    doctor: Callable[..., Told], grid_file: Callable[..., Path]
) -> None:
    doctor(grid_file(GPUS)).one_fault("gpu", "gpus: 2", "--address")


def test_limits_of_the_machine_are_notes() -> None:
    assert files_line(1024).grade == NOTE and files_line(65536).grade == READY
    assert shared_line(64 * 2**20).grade == NOTE and shared_line(None).grade == READY
    assert memory_line(10**9, 2).grade == NOTE and memory_line(10**10, 2).grade == READY
