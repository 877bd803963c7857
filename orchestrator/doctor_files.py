"""The grids' models and data sets: local copies that are whole, the hub's cache, or the hub.

What is neither local nor in the cache is one question to the hub for all: one that cannot be
reached is one fault, and not one for each model. Nothing is fetched. Leaves out data that a plug-in
or reasoning-gym makes, which would take as long as making it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from grids.catalog import DatasetSpec, ModelSpec, Spec
from grids.cell import Cell
from grids.errors import InputError
from orchestrator import doctor_child
from orchestrator.doctor_lines import Line, fault, of_error, ready
from orchestrator.marks import redacted

HUB_SECONDS: Final = 5.0
TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
COPIES: Final = "put local copies at ./models/NAME and ./data/NAME (--models, --data)"


class Found(NamedTuple):
    """What came of one kind of file: lines, what is well, and what only the hub may have."""

    lines: list[Line]
    well: list[str]
    absent: list[Spec]


def look(cells: Sequence[Cell], seconds: float) -> Iterator[Line]:
    """One line for the models that are there, one for the data sets, one for each that is damaged,
    and one for all that is to come from the hub."""
    models = _models({cell.model: cell.model_spec for cell in cells})
    data = _data(cells, seconds)
    for check, found in (("models", models), ("data", data)):
        yield from found.lines
        if found.well:
            yield ready(check, ", ".join(found.well))
    if absent := models.absent + data.absent:
        yield from _from_hub(absent)


def _models(specs: dict[str, ModelSpec]) -> Found:
    found = Found([], [], [])
    for name, spec in specs.items():
        folder = Path(spec.path) if spec.path else _cached(spec)
        damage = None if folder is None else damage_of(folder)
        if folder is not None and damage is None:
            found.well.append(f"{name} ({_where(spec)})")
        elif spec.path is None:  # a part of it may be in the cache: the hub has the rest
            found.absent.append(spec)
        else:
            told = f"{name}: the copy at {spec.path} is not whole: {damage}"
            hub = ", or take the folder away to have the hub's" if spec.hub else ""
            found.lines.append(fault("models", told, f"copy it again{hub}"))
    return found


def _where(spec: Spec) -> str:
    if spec.embedded:
        return "shipped"
    return "local copy" if spec.path else "in the hub's cache"


def _cached(spec: ModelSpec) -> Path | None:
    """The folder of the hub's cache that has the model, or some of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from workers.models import TEXT_FILES, WEIGHTS

    try:
        revision = spec.revision or None
        return Path(
            snapshot_download(
                str(spec.hub), revision=revision, allow_patterns=[*WEIGHTS, *TEXT_FILES],
                local_files_only=True,
            )
        )  # fmt: skip
    except (LocalEntryNotFoundError, ValueError):
        return None


def damage_of(folder: Path) -> str | None:
    """What a model's folder lacks or has cut short; None where it is whole.

    Weights are not read: the head of a safetensors file tells how long it must be.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not config.get("model_type"):
            return "config.json names no model_type"
        wanted = _weights(folder)
    except (OSError, ValueError) as error:
        return f"config.json, or the index of its weights: {_brief(error)}"
    if (told := _tokenizer_damage(folder)) is not None:
        return told
    for name in wanted:
        try:
            if told := _cut_short(folder / name):
                return f"{name} {told}"
        except (OSError, ValueError) as error:
            return f"{name}: {_brief(error)}"
    return None if wanted else "no *.safetensors file (weights in other formats are not read)"


def _tokenizer_damage(folder: Path) -> str | None:
    there = [folder / name for name in TOKENIZERS if (folder / name).is_file()]
    for path in there:
        try:
            if path.suffix == ".json" and not json.loads(path.read_text(encoding="utf-8")):
                return f"{path.name} is empty"
        except (OSError, ValueError) as error:
            return f"{path.name}: {_brief(error)}"
    return None if there else f"none of {', '.join(TOKENIZERS)}"


def _weights(folder: Path) -> list[str]:
    """The files that hold the weights: those of the index, where there is one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _cut_short(path: Path) -> str | None:
    """Eight bytes with the head's length, the head (JSON), then what its offsets name."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return f"ends within its head, after {size} bytes"
        head = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for key, entry in head.items() if key != "__metadata__"]
    whole = 8 + length + max(ends, default=0)
    return f"has {size} of {whole} bytes" if size < whole else None


def _brief(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0][:120]


def _data(cells: Sequence[Cell], seconds: float) -> Found:
    specs = {cell.dataset: cell.dataset_spec for cell in cells}
    found = Found([], [], [])
    read = {name: spec for name, spec in specs.items() if spec.source is None}
    found.well.extend(f"{name} (made by {s.source})" for name, s in specs.items() if s.source)
    request = {"data": [spec.model_dump(mode="json") for spec in read.values()]}
    answers = doctor_child.ask(request, seconds) if read else []
    if answers is None:
        told = f"to read {', '.join(read)} did not end within {seconds:.0f} s"
        found.lines.append(fault("data", told, "look whether the disk that has them answers"))
        return found
    for (name, spec), answer in zip(read.items(), answers, strict=True):
        of = [cell for cell in cells if cell.dataset == name]
        _judge(max(of, key=lambda cell: cell.batch + cell.holdout), spec, answer, found)
    return found


def _judge(asking: Cell, spec: DatasetSpec, answer: dict[str, Any], found: Found) -> None:
    """What a data set's answer comes to; `asking`: the cell that takes most of its questions."""
    if package := answer.get("package"):
        raise ModuleNotFoundError(name=str(package))
    if answer.get("absent"):
        found.absent.append(spec)
    elif told := answer.get("error"):
        found.lines.append(of_error("data", InputError(told)))
    elif asking.batch > (left := answer["train"] - asking.holdout):
        told = f"{asking.label}: batch {asking.batch}; {spec.name} has {left} questions to train on"
        found.lines.append(fault("data", told, f"lower batch to {left} or less"))
    else:
        questions = f"{answer['train']} + {answer['test']} questions"
        found.well.append(f"{spec.name} ({_where(spec)}, {questions})")


def _from_hub(absent: Sequence[Spec]) -> Iterator[Line]:
    """Whether the hub has, and gives us, what is not here."""
    from huggingface_hub import HfApi, constants

    names = ", ".join(f"{spec.name} ({spec.hub})" for spec in absent)
    if constants.HF_HUB_OFFLINE:
        told = f"{names}: neither local nor in the hub's cache, and HF_HUB_OFFLINE is set"
        yield fault("hub", told, f"unset HF_HUB_OFFLINE, or {COPIES}")
        return
    api, well = HfApi(), []
    for spec in absent:
        try:
            line = _refused(api, spec)
        except Exception as error:  # of its client's many kinds: it cannot be reached
            told = f"it does not answer ({type(error).__name__}), and has {names}"
            yield fault("hub", told, f"connect to it, or {COPIES}")
            return
        if line is None:
            well.append(spec.name)
        else:
            yield line
    if well:
        yield ready("hub", f"{', '.join(well)} will be fetched at first use")


def _refused(api: Any, spec: Spec) -> Line | None:
    """Why the hub does not give us a model or a data set; None where it does."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kind = "model" if isinstance(spec, ModelSpec) else "dataset"
    try:
        about = api.repo_info(
            spec.hub, revision=spec.revision or None, repo_type=kind, timeout=HUB_SECONDS
        )
        if getattr(about, "gated", False):
            api.auth_check(spec.hub, repo_type=kind)
    except GatedRepoError:
        how = "the token in use has no access" if get_token() else "HF_TOKEN is not set"
        remedy = "agree to its licence on its page of the hub, and set HF_TOKEN to a token of yours"
        return fault("hub", f"{spec.name}: {spec.hub} is gated, and {how}", remedy)
    except RevisionNotFoundError:
        told = f"{spec.name}: {spec.hub} has no revision {spec.revision}"
        return fault("hub", told, "correct `revision:`")
    except RepositoryNotFoundError:
        told = f"{spec.name}: the hub shows us no {kind} {redacted(spec.hub)}"
        return fault("hub", told, "correct `hub:`; of one that is private, set HF_TOKEN")
    return None
