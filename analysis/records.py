"""A cell's files as checked records: what cannot be trusted raises `Damaged`, naming the file.

Leaves out what the records mean for a grid (`runs.py`).
"""

from __future__ import annotations

import json
import math
from typing import Any

from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths

Numbers = dict[str, float]


class Damaged(Exception):
    """A file of a cell cannot be trusted; the text names it as `<key>/<file>`."""


def journal(paths: CellPaths) -> dict[int, Numbers]:
    """Round -> numbers. A last line without its newline is not yet written."""
    text = _text(paths, outcome.JOURNAL_FILE) or ""
    lines = text[: text.rfind("\n") + 1].split("\n")[:-1]
    name = _name(paths, outcome.JOURNAL_FILE)
    parsed = _at_once(lines) or [_parsed(x, f"{name}:{i}") for i, x in enumerate(lines, start=1)]
    rounds: dict[int, Numbers] = {}
    for i, told in enumerate(parsed, start=1):
        number = _number(told.pop("round", -1.0), f"{name}:{i}: round")
        numbers = _shares(told, f"{name}:{i}")
        if not number >= 0 or not number.is_integer():
            line = lines[i - 1][:60]
            raise Damaged(f"{name}:{i}: round: expected a whole number; the line is {line!r}")
        if int(number) in rounds and repr(numbers) != repr(rounds[int(number)]):
            raise Damaged(f"{name}:{i}: round {int(number)} is there twice, with different numbers")
        rounds[int(number)] = numbers
    return rounds


def _at_once(lines: list[str]) -> list[dict[str, Any]] | None:
    """The objects of all lines in one parse; None where line by line might tell another story."""
    try:
        parsed: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")
    except ValueError:
        return None
    whole = len(parsed) == len(lines) and all(isinstance(line, dict) for line in parsed)
    return parsed if whole else None


def seconds(paths: CellPaths) -> dict[int, float]:
    """Round -> seconds of one worker, evaluation left out; empty where no file tells them.

    Seconds are no result: where the file is damaged it tells none.
    """
    text = _text(paths, outcome.TIMINGS_FILE) or ""
    lines = _at_once(text[: text.rfind("\n") + 1].split("\n")[:-1]) or []
    try:
        return {int(line["round"]): float(line["seconds"]["all"]) for line in lines}
    except (KeyError, TypeError, ValueError):
        return {}


def done(paths: CellPaths, cell: Cell) -> dict[str, Any] | None:
    """The mark that a cell ended, or None where it has not."""
    mark = record(paths, outcome.DONE_FILE)
    if mark is None:
        return None
    where = _name(paths, outcome.DONE_FILE)
    expected = {"key": str, "eval_key": str, "status": str, "rounds": int}
    expected |= {"base": dict, "final": dict}
    for name, kind in expected.items():
        if not isinstance(mark.get(name), kind):
            raise Damaged(f"{where}: {name}: got {mark.get(name)!r}; expected {kind.__name__}")
    if mark["key"] != cell.key:
        raise Damaged(f"{where}: key: got {mark['key']}, another cell's; expected {cell.key}")
    if mark["status"] not in (outcome.FINISHED, outcome.DIVERGED):
        allowed = f"{outcome.FINISHED}, {outcome.DIVERGED}"
        raise Damaged(f"{where}: status: got {mark['status']!r}; allowed: {allowed}")
    tokens = _number(mark.get("generated_tokens"), f"{where}: generated_tokens")
    numbers = {phase: _shares(mark[phase], f"{where}: {phase}") for phase in ("base", "final")}
    return mark | numbers | {"generated_tokens": tokens}


def evaluation(paths: CellPaths, name: str, cell: Cell) -> dict[str, Any] | None:
    """What tells of a named evaluation, or None where the cell has none of this name."""
    file = f"{outcome.EVALUATIONS_DIR}/{name}/{outcome.EVALUATION_FILE}"
    told = record(paths, file)
    if told is None:
        return None
    where = _name(paths, file)
    expected = {"key": str, "kind": str, "grader": str, "dataset": str, "round": int}
    expected |= {"asked": dict, "eval": dict, "base": dict, "final": dict}
    for field, kind in expected.items():
        if not isinstance(told.get(field), kind):
            raise Damaged(f"{where}: {field}: got {told.get(field)!r}; expected {kind.__name__}")
    if told["key"] != cell.key:
        raise Damaged(f"{where}: key: got {told['key']}, another cell's; expected {cell.key}")
    numbers = {phase: _shares(told[phase], f"{where}: {phase}") for phase in ("base", "final")}
    return told | numbers


def merged(paths: CellPaths, line: Numbers, mark: Numbers, where: str) -> Numbers:
    """The journal's numbers and done.json's, which must agree where both have one."""
    for name in line.keys() & mark.keys():
        ours, theirs = line[name], mark[name]
        if not (math.isclose(ours, theirs, abs_tol=1e-6) or (ours != ours and theirs != theirs)):
            raise Damaged(
                f"{_name(paths, outcome.DONE_FILE)}: {name} of the {where} evaluation is "
                f"{theirs}; {outcome.JOURNAL_FILE} says {ours}"
            )
    return {**mark, **line}


def record(paths: CellPaths, name: str) -> dict[str, Any] | None:
    """The object in one of the cell's JSON files, or None where there is no file."""
    text = _text(paths, name)
    return None if text is None else _parsed(text, _name(paths, name))


def _name(paths: CellPaths, name: str) -> str:
    """Short and the same on every machine."""
    return f"{paths.directory.name}/{name}"


def _text(paths: CellPaths, name: str) -> str | None:
    try:
        return (paths.directory / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{_name(paths, name)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Damaged(f"{_name(paths, name)}: is not UTF-8 text") from None


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise Damaged(f"{where}: not valid JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise Damaged(f"{where}: got {type(loaded).__name__}; expected an object")
    return loaded


def _shares(numbers: dict[str, Any], where: str) -> Numbers:
    """Every value a number, every Pass@1 a share."""
    checked: Numbers = numbers
    if set(map(type, numbers.values())) != {float}:  # as a rule they are: JSON has it with a dot
        checked = {name: _number(value, f"{where}: {name}") for name, value in numbers.items()}
    for name in [name for name in checked if "/pass_at_1" in name]:
        value = checked[name]
        if not (math.isnan(value) or 0 <= value <= 1):
            raise Damaged(f"{where}: {name}: got {value}; expected a share between 0 and 1")
    return checked


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damaged(f"{where}: got {value!r}; expected a number")
    return float(value)
