"""`banditgrid doctor`: what is well is ready, what breaks is a line, and nothing is left behind."""

# ruff: noqa: F811 (fixtures that are imported are also arguments)
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grids.errors import InputError
from orchestrator import cli_doctor, show_doctor
from orchestrator.doctor import SECONDS, SECONDS_OF_A_CLUSTER
from orchestrator.doctor_lines import FAULT, READY, Check, Line, fault, gather, of_error, ready
from tests.conftest import ROOT
from tests.doctoring import TINY, Told, banditgrid, doctor  # noqa: F401
from tests.test_cli import Ran


def test_a_machine_that_is_ready_and_nothing_is_left_behind(
    doctor: Callable[..., Told], grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = grid_file(TINY)
    before = sorted(tmp_path.rglob("*"))
    found = doctor(path)
    assert found.code == 0 and not found.of(FAULT), found.text
    assert "512 + 500 questions" in found.line("data").told
    assert "will be made" in found.line("store").told and found.line("models").grade == READY
    assert "predicted to take" in found.line("disk").told
    assert sorted(tmp_path.rglob("*")) == before


def test_people_read_a_line_each_with_its_remedy_at_the_end(
    banditgrid: Callable[..., Ran],
) -> None:
    ran = banditgrid("doctor", "--store", "/dev/null")
    assert ran.code == 2 and "1 fault, " in ran.out
    (line,) = [line for line in ran.out.splitlines() if line.startswith("fault")]
    assert line.split()[:2] == ["fault", "store"] and "; remedy: name another folder" in line
    assert "not checked: its database lies in the store" in ran.out


def test_a_grid_that_cannot_be_read_is_the_one_fault(
    doctor: Callable[..., Told], grid_file: Callable[..., Path]
) -> None:
    found = doctor(grid_file(TINY.replace("seeds", "seedz")))
    found.one_fault("grids", "grid.yaml:6: seedz: unknown key")
    assert {line.check for line in found.of("not checked")} == {"engine", "models", "data"}


def test_the_page_and_the_help_say_how_long_it_may_take() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    here, there = f"{SECONDS:.0f}", f"{SECONDS_OF_A_CLUSTER:.0f}"
    assert f"({here} s; of a cluster {there} s)" in " ".join(page.split())
    told = Path(cli_doctor.__file__).read_text(encoding="utf-8")
    assert f"[default: {here}; of a cluster {there}]" in told


def test_a_mode_that_ray_does_not_know_is_told(
    doctor: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "tokn")
    doctor().one_fault("ray", "RAY_AUTH_MODE", "tokn", "disabled")


def test_a_check_that_breaks_or_hangs_is_a_line() -> None:
    def broken() -> list[Line]:
        raise TypeError("at http://me:secret@host\nand more")

    def wrong() -> list[Line]:
        raise InputError("no x: got 1; give 2")

    def lacking() -> list[Line]:
        raise ModuleNotFoundError(name="mlflow")

    looks: dict[str, Callable[[], Any]] = {
        "hangs": lambda: time.sleep(5), "breaks": broken, "wrong": wrong, "lacks": lacking,
        "well": lambda: [ready("well", "yes")],
    }  # fmt: skip
    began = time.monotonic()
    lines, late = gather([Check(name, look, 0.5) for name, look in looks.items()])
    assert late and time.monotonic() - began < 3
    assert [(line.check, line.grade) for line in lines] == [
        ("hangs", FAULT), ("breaks", FAULT), ("wrong", FAULT), ("lacks", "not checked"),
        ("well", READY),
    ]  # fmt: skip
    assert "TypeError: at http://***@host" in lines[1].told and "\n" not in lines[1].told
    assert (lines[2].told, lines[2].remedy) == ("no x: got 1", "give 2")


def test_a_message_is_parted_into_what_is_wrong_and_what_to_do() -> None:
    line = of_error("x", InputError("MLflow at http://h: it is down; start it"))
    assert (line.told, line.remedy) == ("MLflow at http://h: it is down", "start it")
    assert of_error("x", InputError("nothing more")).remedy == "correct it"
    line = of_error("grids", InputError("no.yaml: cannot be read: No such file or directory"))
    assert line.told.endswith("cannot be read: No such file or directory")
    assert line.remedy == "correct the file"


@pytest.mark.parametrize(("width", "lines"), [(None, 1), (200, 1), (40, 2)])
def test_on_a_narrow_screen_the_remedy_has_a_line_of_its_own(width: int | None, lines: int) -> None:
    shown = show_doctor._shown(fault("store", "it is full", "free some space there"), 5, width)
    made = shown.plain.splitlines()
    assert len(made) == lines and made[-1].endswith("remedy: free some space there")
    assert lines == 1 or made[1].startswith("       remedy: ")
