"""deploy/gpu-check.sh: what it installs for which words, by programs that only tell their calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks import gpu_check
from tests.conftest import ROOT


def program(folder: Path, name: str, text: str) -> None:
    """A shell script in place of a program."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def called(folder: Path, *words: str) -> tuple[str, list[str]]:
    """What the script says, and which of make and python it called, in a clone with neither."""
    (folder / "deploy").mkdir()
    script = shutil.copy(ROOT / "deploy" / "gpu-check.sh", folder / "deploy")
    log = f'echo "$(basename "$0") $*" >>"{folder}/called"'
    for place, name in (("bin", "make"), ("bin", "nvidia-smi"), (".venv/bin", "python")):
        program(folder / place, name, log)
    env = os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([script, *words], env=env, capture_output=True, text=True, check=True)
    made = folder / "called"
    return done.stdout, made.read_text().splitlines() if made.exists() else []


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_the_script_tells_its_words_and_installs_nothing(word, tmp_path, capsys):
    said, made = called(tmp_path, "--engine", "vllm", word)
    assert made == []
    with pytest.raises(SystemExit):
        gpu_check.options(["--help"])
    check_says = capsys.readouterr().out
    assert set(re.findall(r"--\w+", said)) == set(re.findall(r"--\w+", check_says))
    assert f"{{{','.join(gpu_check.ENGINES)}}}" in said


@pytest.mark.parametrize(
    ("words", "installs"),
    [
        ([], True), (["--engine", "both"], True), (["--engine=vllm", "--tiny"], True),
        (["--engine", "transformers"], False), (["--tiny", "--engine=transformers"], False),
        (["--engine", "transformers", "--engine", "vllm"], True),  # the last one counts
    ],
)  # fmt: skip
def test_the_script_installs_vllm_where_it_is_asked_for(words, installs, tmp_path):
    first, *_, last = made = called(tmp_path, *words)[1]
    assert first == "make setup"
    assert any(".[vllm]" in line for line in made) == installs
    assert last == " ".join(["python -m tests.benchmarks.gpu_check", *words])
