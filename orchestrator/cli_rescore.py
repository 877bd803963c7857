"""The commands that score anew what is trained: kept weights, and stored answers.

Leaves out what they do: `evaluating.py`, `regrading.py`, and what changed by it (`analysis`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from grids.grid import Grid
from grids.paths import Store
from orchestrator import options
from orchestrator.options import STORE, AsJson, Data, GridFiles, Models, Slots, StoreFolder

if TYPE_CHECKING:
    from rich.table import Table

    from analysis.regraded import Change
    from orchestrator.regrading import Ended

Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A package with graders of your own: its path, or its name."),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Make an evaluation of this name anew, of other settings.")
]
SUFFIXES = (".yaml", ".yml")


def add_to(app: typer.Typer) -> None:
    """Put the commands on the app of the command line."""
    for command in (evaluate, regrade):
        app.command()(command)


def evaluate(
    grids: GridFiles,
    name: Annotated[str, typer.Option("--name", help="Of the evaluation; its tables name it.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Another data set. [default: the trained one]")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=0, help="K samples a question; 0: greedy alone.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of those samples.")
    ] = None,
    test_questions: Annotated[
        int | None, typer.Option("--test-questions", min=0, help="First N; 0: all of them.")
    ] = None,
    train_questions: Annotated[
        int | None, typer.Option("--train-questions", min=0, help="Size of the train subset.")
    ] = None,
    max_response: Annotated[
        int | None, typer.Option("--max-response", min=1, help="Longest response, tokens.")
    ] = None,
    grader: Annotated[str | None, typer.Option("--grader", help="How answers are checked.")] = None,
    plugin: Plugins = None,
    skip_gone: Annotated[
        bool, typer.Option("--skip-gone", help="Leave out cells whose weights are gone.")
    ] = False,
    replace: Replace = False,
    store: StoreFolder = STORE, models: Models = None, data: Data = None, slots: Slots = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster. [default: this machine]"),
    ] = None,
) -> None:  # fmt: skip
    """Score kept weights under another evaluation, beside the cells' own scores. Trains nothing."""
    from orchestrator.change import Change, check_grader, dataset_of, plugins_of
    from orchestrator.driver import Settings
    from orchestrator.evaluating import evaluate as score
    from orchestrator.show import console

    loaded = options.load(grids, models, data)
    plugins = plugins_of(loaded, plugin or [])
    given = {
        "samples": samples, "temperature": temperature, "train_questions": train_questions,
    }  # fmt: skip
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if test_questions is not None:
        changed["test_questions"] = test_questions or None
    change = Change(
        None if dataset is None else dataset_of(dataset, loaded), max_response,
        None if grader is None else check_grader(grader, plugins), changed, plugins,
    )  # fmt: skip
    code = score(
        loaded, Store(store), change, name, Settings(slots, address), console(),
        skip_gone=skip_gone, replace=replace,
    )  # fmt: skip
    raise typer.Exit(code)


def regrade(
    what: Annotated[
        list[str],
        typer.Argument(metavar="STUDY|GRID...", help="Studies of the store, or grid files (YAML)."),
    ],
    grader: Annotated[
        str,
        typer.Option(
            "--grader",
            help="How answers are checked now; flexible: by the lenient rule of each cell's own.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the evaluation. [default: the grader's]")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option("--of", help="Answers of a named evaluation. [default: the cells' own]"),
    ] = None,
    plugin: Plugins = None, replace: Replace = False,
    store: StoreFolder = STORE, models: Models = None, data: Data = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Grade stored answers with another grader, and tell what changed. Needs no GPU."""
    from orchestrator.change import Change, check_grader, plugins_of
    from orchestrator.regrading import Answers
    from orchestrator.regrading import regrade as grade
    from orchestrator.show import console

    loaded = _grids([word for word in what if _is_grid(word)], models, data)
    studies = _studies(Store(store), [word for word in what if not _is_grid(word)])
    plugins = plugins_of(loaded, plugin or [])
    change = Change(grader=check_grader(grader, plugins), plugins=plugins)
    answers, named = Answers(studies, tuple(loaded), of), name or grader
    ended = grade(answers, Store(store), change, named, console(stderr=as_json), replace)
    raise typer.Exit(int(_tell(ended, named, of, as_json)))


def _is_grid(word: str) -> bool:
    return word.endswith(SUFFIXES) or Path(word).is_file()


def _grids(words: list[str], models: Path | None, data: Path | None) -> list[Grid]:
    """The grids; without one, local copies of data sets are in use all the same."""
    return options.load([Path(word) for word in words], models, data)


def _studies(store: Store, names: list[str]) -> tuple[str, ...]:
    from orchestrator import lookup

    return tuple(dict.fromkeys(lookup.study(store, name) for name in names))


# ---- what changed


def _tell(ended: list[Ended], name: str, of: str | None, as_json: bool) -> bool:
    """Whether any cell was left out."""
    from analysis.regraded import Pair, changes

    done = [end for end in ended if end.well]
    pairs = []
    for end in done:
        paths = end.target.paths
        before = paths.outcomes if of is None else paths.evaluation(of).outcomes
        after = paths.evaluation(name).outcomes
        pairs.append(Pair(end.target.asked, before, after, end.target.trained))
    found, lost = changes(pairs)
    lost += [f"{end.target.asked.label}: {end.how}: {end.told}" for end in ended if not end.well]
    if as_json:
        counts = {"evaluation": name, "cells": len(done), "left_out": lost}
        options.print_json({**counts, "changes": [change.row() for change in found]})
    else:
        _show(found, lost, ended, name)
    return bool(lost)


def _show(found: list[Change], lost: list[str], ended: list[Ended], name: str) -> None:
    from orchestrator.show import console

    out = console()
    out.print("Pass@1 on test questions before and after, with 95% intervals: of an arm over its n")
    out.print("seeds and over questions, of a base, which is one policy, over questions alone")
    for pair in dict.fromkeys(change.pair for change in found):
        own = [change for change in found if change.pair == pair]
        for made in (_scores(own), _answers(own)):
            out.print()
            out.print(Text(pair, style="bold"))
            out.print(made)
    out.print()
    there = sum(end.how == "there already" for end in ended)
    told = f"{sum(end.well for end in ended) - there:,} cells regraded as {name}"
    out.print(f"{told}; {there:,} were there already", markup=False)
    for line in lost:
        out.print(f"left out: {line}", style="red", markup=False, soft_wrap=True)
    out.print(f"their tables: banditgrid tables GRID --evaluation {name}", markup=False)


def _scores(found: list[Change]) -> Table:
    from orchestrator.show import table

    made = table("arm", "#n", "#questions", "before", "after", "difference")
    for change in found:
        told = change.why or change.difference.format(sign=True)
        made.add_row(
            _arm(change), f"{change.n}", f"{change.questions:,}", Text(change.before.format()),
            Text(change.after.format()), Text(told),
        )  # fmt: skip
    return made


def _answers(found: list[Change]) -> Table:
    from orchestrator.show import table

    made = table("arm", "#answers", "#to right", "#to wrong", "#unparsed", "#unscored")
    for change in found:
        counts = change.counts
        both = (f"{a:,} -> {b:,}" for a, b in (counts.unparsed, counts.unscored))
        made.add_row(
            _arm(change), f"{counts.answers:,}", f"{counts.to_right:,}", f"{counts.to_wrong:,}",
            *both,
        )  # fmt: skip
    return made


def _arm(change: Change) -> Text:
    return Text(change.arm if change.decoding == "greedy" else f"{change.arm}, sampled")
