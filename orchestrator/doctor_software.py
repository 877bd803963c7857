"""What the grids' cells need of a machine's software: engines, extras, plug-ins of their own.

What nobody needs is a note where it is absent. Plug-ins are imported in a process of their own:
they are anybody's code. Leaves out what every cell needs (`doctor_packages.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from packaging.utils import canonicalize_name

from grids.cell import Cell
from grids.errors import InputError
from grids.plugin import PluginSpec
from orchestrator import doctor_child, doctor_packages
from orchestrator.doctor_lines import FAULT, Line, fault, note, of_error, ready, unchecked
from workers import engine_check

RG: Final = "reasoning-gym"
EXTRAS: Final = {RG: RG, "liger": "liger-kernel"}  # extra -> the package that it brings


def look(
    cells: Sequence[Cell], on_gpu: bool, wrong_packages: bool, seconds: float
) -> Iterator[Line]:
    """Engines, extras and plug-ins.

    Args:
        cells: of the grids; none: what is there is told.
        on_gpu: whether the cells would compute on a GPU.
        wrong_packages: another line tells that packages do not fit, on which vLLM depends.
        seconds: that plug-ins have to be imported.
    """
    yield engine_line(cells, on_gpu, wrong_packages)
    yield from extra_lines(cells, doctor_packages.installed())
    plugins = {spec.digest: spec for cell in cells for spec in cell.plugin_specs}
    if plugins:
        yield from plugin_lines(list(plugins.values()), seconds)


def engine_line(cells: Sequence[Cell], on_gpu: bool, wrong_packages: bool = False) -> Line:
    wanted = any(cell.engine == "vllm" for cell in cells)
    try:
        engine_check.check(on_gpu)
    except InputError as error:
        if wrong_packages:
            return unchecked("engine", "packages on which vLLM depends do not fit")
        if not wanted:
            told = f"transformers; no vLLM that would do ({_why(error)})"
            return note("engine", f"{told}: {_nobody(cells)}", engine_check.FIX)
        return _engine_fault(error)
    build = engine_check.Build()
    told = f"transformers, {build.name} {build.version}"
    return ready("engine", told if wanted or not cells else f"{told}; the grids take transformers")


def _engine_fault(error: InputError) -> Line:
    """What is wrong may be several things; the remedy is the same."""
    told, found, _ = str(error).partition(f"; {engine_check.FIX}")
    return fault("engine", told, engine_check.FIX) if found else of_error("engine", error, FAULT)


def _why(error: InputError) -> str:
    told = str(error).partition("; ")[0].removeprefix("engine: vllm")
    return "none is installed" if "not installed" in told else told.removeprefix(": ")


def _nobody(cells: Sequence[Cell]) -> str:
    return "these grids do not need it" if cells else "only grids with `engine: vllm` need it"


def extra_lines(cells: Sequence[Cell], here: Mapping[str, str]) -> Iterator[Line]:
    """One line for all that are well, or not needed; one for each that is needed and is not."""
    wanted = doctor_packages.asked().extras
    well, idle = [], []
    for extra, package in EXTRAS.items():
        told = list(doctor_packages.unfit(here, wanted.get(extra, [])))
        if (line := _needed(extra, cells, told)) is not None:
            yield line
        elif told:
            idle.append(extra)
        else:
            well.append(f"{extra} {here.get(canonicalize_name(package), '')}".strip())
    if idle:
        remedy = doctor_packages.extra(",".join(idle))
        told_idle = f"{', '.join(idle)} not installed, or of another version"
        yield note("extras", f"{told_idle}; no grid here needs it", remedy)
    elif well:
        yield ready("extras", ", ".join(well))


def _needed(extra: str, cells: Sequence[Cell], told: list[str]) -> Line | None:
    """The fault of an extra that is needed and is not as it must be."""
    remedy = doctor_packages.extra(extra)
    if extra == RG:
        from workers.reasoning import check_version

        specs = {c.dataset: c.dataset_spec for c in cells if c.dataset_spec.source == RG}
        for spec in specs.values():
            try:
                check_version(spec)
            except InputError as error:
                return of_error("extras", error)
        return None
    asking = next((cell for cell in cells if cell.liger), None)
    if asking is not None and told:
        return fault("extras", f"{asking.label} asks for liger, and {told[0]}", remedy)
    return None


def plugin_lines(plugins: Sequence[PluginSpec], seconds: float) -> Iterator[Line]:
    """Whether the grids' own packages can be imported, with the functions that they name."""
    request = {"plugins": [spec.model_dump(mode="json") for spec in plugins]}
    answers = doctor_child.ask(request, seconds)
    if answers is None:
        names = ", ".join(spec.name for spec in plugins)
        told = f"{names}: to import it did not end within {seconds:.0f} s"
        yield fault("plug-ins", told, "have it do at its import nothing that waits")
        return
    wrong = [answer["error"] for answer in answers if answer.get("error")]
    for told in dict.fromkeys(wrong):
        yield of_error("plug-ins", InputError(told))
    if not wrong:
        yield ready("plug-ins", ", ".join(spec.name for spec in plugins))
