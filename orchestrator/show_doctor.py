"""What `banditgrid doctor` found, on a screen: a line each, with its remedy at the end.

Leaves out looking (`doctor.py`).
"""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from orchestrator.doctor import Report
from orchestrator.doctor_lines import FAULT, NOTE, READY, UNCHECKED, Line
from orchestrator.show import counted

STYLES: Final = {READY: "green", NOTE: "yellow", FAULT: "bold red", UNCHECKED: "dim"}
GRADES: Final = {UNCHECKED: "-"}
WIDE = 5  # of the longest grade


def show_report(report: Report, out: Console) -> None:
    """Every line, then how many are faults."""
    wide = max((len(line.check) for line in report.lines), default=0)
    for line in report.lines:
        out.print(_shown(line, wide, out.width if out.is_terminal else None), soft_wrap=True)
    out.print()
    out.print(Text(_sum(report), style="bold"), soft_wrap=True)


def _shown(line: Line, wide: int, width: int | None) -> Text:
    """One line, as pipes and files want it; on a screen of less than its `width` the remedy has a
    line of its own."""
    made = Text(f"{GRADES.get(line.grade, line.grade):<{WIDE}}", style=STYLES[line.grade])
    told = f"not checked: {line.told}" if line.grade == UNCHECKED else line.told
    made.append(f"  {line.check:<{wide}}  {told}", style="default")
    if line.remedy:
        parted = width is not None and len(made) + len("; remedy: ") + len(line.remedy) > width
        before = f"\n{'':<{WIDE + 2}}" if parted else "; "
        made.append(f"{before}remedy: {line.remedy}", style="default")
    return made


def _sum(report: Report) -> str:
    faults, notes = report.count(FAULT), report.count(NOTE)
    of = f"{counted(notes, 'note')}, {report.seconds:.1f} s"
    return f"{counted(faults, 'fault')}, {of}" if faults else f"no fault, {of}"
