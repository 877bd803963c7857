"""The report: one page with what a study's grids say, its evidence, and how it was made.

It loads nothing and needs no script: style and figures are inside. The time is told by who asks for
it. Leaves out every computation, and writing files (`report.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from analysis.finding import Finding
from analysis.findings import HOLDS, READING, findings
from analysis.html import render
from analysis.picture import Picture
from analysis.runs import STATES, Run
from analysis.settings import grid_text, registered_sheet, shared_sheet
from analysis.sheet import LONGEST, Document, Sheet, one_line
from analysis.sheets import document
from analysis.study import Study
from analysis.tables import Table
from analysis.versions import versions_sheet


@dataclass(frozen=True)
class Group:
    """Findings of one name."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> str:
        """`holds in 2 of 24, does not hold in 10, cannot be told in 12`."""
        counts = {told: len(self.of(holds)) for holds, told in HOLDS.items()}
        told = [f"{word} in {n}" for word, n in counts.items() if n]
        told[0] += f" of {len(self.findings)}" if len(told) > 1 else ""
        return ", ".join(told)

    @property
    def rest(self) -> list[tuple[str, tuple[Finding, ...]]]:
        """Those that do not hold, then those that cannot be told."""
        return [(HOLDS[holds], found) for holds in (False, None) if (found := self.of(holds))]

    def of(self, holds: bool | None) -> tuple[Finding, ...]:
        """Those that hold, do not, or cannot be told."""
        return tuple(finding for finding in self.findings if finding.holds is holds)


@dataclass(frozen=True)
class Part:
    """One grid on the page."""

    stem: str
    table: Table
    study: Study
    pictures: tuple[Picture, ...] = ()

    @property
    def anchor(self) -> str:
        """Its section's name in the page's address."""
        return f"grid-{self.stem}"

    @cached_property
    def document(self) -> Document:
        """Its tables."""
        return document(self.table)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What its data says."""
        return findings(self.table, self.study)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Its findings by name."""
        by_name: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_name.setdefault(finding.name, []).append(finding)
        return tuple(Group(name, tuple(found)) for name, found in by_name.items())

    @property
    def settings(self) -> str:
        """The grid as YAML."""
        return grid_text(self.table.grid)

    @property
    def shared(self) -> Sheet:
        """Settings of its cells."""
        return shared_sheet(self.table.grid.cells())

    @property
    def registered(self) -> Sheet | None:
        """Registrations of its contrasts."""
        return registered_sheet(self.table.grid, self.study)


def report_page(parts: Sequence[Part], made: datetime) -> str:
    """The page of the given grids, as HTML."""
    studies = dict.fromkeys(part.study.name for part in parts)
    runs = _runs(parts)
    return render(
        "report.html.j2",
        title=f"{', '.join(studies)}: report",
        parts=parts,
        reading=READING,
        made=made.strftime("%Y-%m-%d %H:%M %Z").strip(),
        sources=list(dict.fromkeys(part.table.source for part in parts)),
        warnings=_warnings(parts),
        summary=_summary(runs.values()),
        by_grid=_by_grid(parts),
        lost=_lost(runs),
        versions=_versions(parts),
        over_questions={part.table.over_questions for part in parts},
    )


def _warnings(parts: Iterable[Part]) -> dict[str, list[str]]:
    """Each warning once, with the grids that it is of."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for warning in part.document.warnings:
            found.setdefault(warning, []).append(part.document.title)
    return found


# ---- which runs there are

Key = tuple[str, str, int]


def _runs(parts: Iterable[Part]) -> dict[Key, Run]:
    """Each run once, though several rows and grids show it."""
    return {
        (part.study.name, run.cell.key, run.cell.rounds): run
        for part in parts for row in part.table.rows for run in row.runs
    }  # fmt: skip


def _counts(runs: Iterable[Run]) -> Counter[str]:
    return Counter(run.state for run in runs)


def _summary(runs: Iterable[Run]) -> str:
    """`Of 126 cells 120 are finished, 6 waiting.`"""
    counts = _counts(runs)
    told = [f"{counts[state]:,} {state}" for state in STATES if counts[state]]
    return f"{counts.total():,} cells: {', '.join(told)}."


def _by_grid(parts: Sequence[Part]) -> Sheet:
    """A row a grid: how many of its cells are in which state."""
    rows = []
    for part in parts:
        counts = _counts(_runs([part]).values())
        states = (f"{counts[state]:,}" if counts[state] else "" for state in STATES)
        rows.append((part.document.title, f"{counts.total():,}", *states))
    header = ("grid", "cells", *STATES)
    return Sheet("cells", "", header, tuple(rows), keys=1).without_empty()


def _lost(runs: dict[Key, Run]) -> list[tuple[str, list[str]]]:
    """State -> its cells by name, with the reason; finished ones are left out."""
    return [(state, lines) for state in STATES[1:] if (lines := list(_named(runs, state)))]


def _named(runs: dict[Key, Run], state: str) -> Iterator[str]:
    """A line an arm where no reason tells its seeds apart."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for (study, _, _), run in runs.items():
        if run.state == state:
            why = one_line(run.reason, LONGEST)
            seeds.setdefault((study, run.cell.arm_label, why), []).append(run.cell.seed)
    several = len({study for study, _, _ in runs}) > 1
    for (study, arm, why), found in seeds.items():
        where = f"{study}: {arm}" if several else arm
        told = ", ".join(f"s{seed}" for seed in found)
        yield f"{where} {told}: {why}" if why else f"{where} {told}"


def _versions(parts: Sequence[Part]) -> Sheet:
    runs: dict[str, dict[str, Run]] = {}
    for part in parts:
        for run in _runs([part]).values():
            runs.setdefault(part.study.name, {})[run.cell.key] = run
    studies = {part.study.name: part.study for part in parts}
    return versions_sheet((studies[name], found.values()) for name, found in runs.items())
