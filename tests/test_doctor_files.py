"""Models and data sets that are damaged, absent, gated or out of reach: a fault for each cause."""

# ruff: noqa: F811 (fixtures that are imported are also arguments)
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grids.catalog import EMBEDDED
from orchestrator.doctor_files import damage_of
from tests.doctoring import TINY, Told, answering, apart, banditgrid, doctor  # noqa: F401
from tests.heads import free_ports

LOCAL = (
    TINY.replace("batch: 8", "batch: 8, max_prompt: 64, max_response: 64")
    .replace("tiny-qwen2", "mine")
    .replace("tiny-sums", "sums")
    + """
models: {mine: {path: mine, context: 256}}
datasets: {sums: {path: sums, answer_after: "####", prompt: "{question}", grader: gsm8k}}
"""
)
HUB = (
    TINY.replace("tiny-qwen2", "far").replace("tiny-sums", "away")
    + """
models: {far: {hub: nobody/model, revision: "1"}}
datasets: {away: {hub: nobody/data, revision: "1", prompt: "{question}", grader: gsm8k}}
"""
)


@pytest.fixture
def local(grid_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A grid whose model and data are copies beside it."""
    shutil.copytree(EMBEDDED / "models" / "tiny-qwen2", tmp_path / "mine")
    shutil.copytree(EMBEDDED / "tasks" / "tiny-sums", tmp_path / "sums")
    return grid_file(LOCAL)


def test_copies_that_are_whole_are_ready(doctor: Callable[..., Told], local: Path) -> None:
    found = doctor(local)
    assert found.code == 0, found.text
    assert "mine (local copy)" in found.line("models").told
    assert "sums (local copy, 512 + 500 questions)" in found.line("data").told


def few(path: Path, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)


@pytest.mark.parametrize(
    ("harm", "check", "words"),
    [
        (lambda at: cut(at / "mine/model.safetensors"), "models", ("not whole", "bytes")),
        (lambda at: (at / "mine/model.safetensors").unlink(), "models", ("safetensors",)),
        (lambda at: (at / "mine/config.json").write_text("{"), "models", ("config.json",)),
        (lambda at: (at / "mine/config.json").write_text("{}"), "models", ("no model_type",)),
        (lambda at: (at / "mine/tokenizer.json").write_text("{"), "models", ("tokenizer.json",)),
        (lambda at: few(at / "sums/train.jsonl", 7), "data", ("batch 8", "7 questions", "lower")),
        (lambda at: (at / "sums/train.jsonl").unlink(), "data", ("train.jsonl", "copy it again")),
        (lambda at: (at / "sums/test.jsonl").write_text("{}\n["), "data", ("wrong columns",)),
        (lambda at: (at / "sums/test.jsonl").write_text("["), "data", ("test.jsonl:1", "JSON")),
    ],
)
def test_a_damaged_copy_is_named(
    doctor: Callable[..., Told], local: Path, tmp_path: Path,
    harm: Callable[[Path], Any], check: str, words: tuple[str, ...],
) -> None:  # fmt: skip
    harm(tmp_path)
    line = doctor(local).one_fault(check, *words)
    assert "the hub's" not in line.remedy, "there is none to have it from"


def test_a_part_of_the_weights_that_is_absent_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "models" / "tiny-qwen2", folder)
    assert damage_of(folder) is None
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in str(damage_of(folder))


def test_what_is_neither_here_nor_to_be_fetched_is_one_fault(
    doctor: Callable[..., Told], grid_file: Callable[..., Path]
) -> None:
    words = ("far (nobody/model)", "away (nobody/data)", "unset HF_HUB_OFFLINE", "./models/NAME")
    doctor(grid_file(HUB)).one_fault("hub", *words)


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_one_fault(
    grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": nobody, "HF_HOME": str(tmp_path / "hf")}
    found = apart([grid_file(HUB)], env, tmp_path)
    found.one_fault("hub", "does not answer", "far (nobody/model)", "connect to it")


@pytest.mark.parametrize(
    ("token", "why"),
    [("", "HF_TOKEN is not set"), pytest.param("hf_secret", "access", marks=pytest.mark.slow)],
)
def test_a_gated_model_wants_a_token(
    grid_file: Callable[..., Path], tmp_path: Path, token: str, why: str
) -> None:
    grid = grid_file(HUB.replace("[away]", "[tiny-sums]"))
    with answering(403, {"X-Error-Code": "GatedRepo"}) as hub:
        env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf")}
        found = apart([grid], {**env, "HF_TOKEN": token}, tmp_path)
    found.one_fault("hub", "nobody/model is gated", why, "licence")
    assert "hf_secret" not in found.text
