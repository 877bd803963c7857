"""MODELS and DATASETS: a name -> a frozen spec, pinned to a revision.

A revision is a hub commit, or a fingerprint of the content where the files are local or ship with
banditgrid: it, and not the name, enters a cell's key. Leaves out loading, which is the workers'.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from grids.errors import InputError
from grids.reasoning_tasks import TASKS, TEST, TRAIN, VERSION, Task

EMBEDDED = Path(__file__).resolve().parent.parent / "workers" / "embedded"

# Raised when a fix changes what a grader answers, so that cells graded before it are trained anew.
GRADER_VERSIONS = {
    "gsm8k": 1, "gsm8k-flexible": 1, "math": 1, "math-flexible": 1, "reasoning-gym": 1,
}  # fmt: skip
# Names of the workers' registries, which grids cannot import.
ESTIMATORS = (
    "raw", "mean_centered", "grpo", "rloo", "max_rl",
    "reinforce_pp", "reinforce_pp_baseline", "opo", "ema", "batch_mean",
)  # fmt: skip
# Those whose groups of one get the singleton rule.
GROUP_RELATIVE = ("mean_centered", "grpo", "rloo", "max_rl", "reinforce_pp_baseline", "opo")
LOSSES = ("clip",)
AGGREGATIONS = (
    "token_mean_micro_batch", "token_mean", "seq_mean_token_mean", "seq_mean_token_sum",
)  # fmt: skip
KLS = ("k1", "k2", "k3")
REWARDS = ("correct", "format", "steps", "score", "random")
SOURCES = ("reasoning-gym",)
PARTIAL = ("reasoning-gym",)  # graders that give partial credit, which the reward `score` takes
FLEXIBLE = {"gsm8k": "gsm8k-flexible", "math": "math-flexible"}

GSM8K_PROMPT = '{question} Let\'s think step by step and output the final answer after "####".'
MATH_PROMPT = "{question} Let's think step by step and output the final answer within \\boxed{}."


class Spec(BaseModel):
    """What the two kinds of spec share: where the files are and which content they have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(description="the catalogue's name")
    hub: str | None = Field(None, description="id on the model hub; none for local files")
    path: str | None = Field(None, description="folder of a local copy, read instead of the hub")
    revision: str = Field("", description="hub commit or content fingerprint: enters the key")
    defaults: dict[str, Any] = Field({}, description="cell settings that this entry changes")
    embedded: bool = Field(False, description="ships with banditgrid: a pipeline check, no more")
    about: str = ""

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        made = getattr(self, "source", None)
        if made is not None and (self.path or self.hub):
            raise ValueError(
                f"{self.name}: has `source:` and `{'path' if self.path else 'hub'}:`; its rows "
                "come from one of them: take the other away"
            )
        if made is not None and made not in SOURCES:  # a plug-in's, known by its own source
            return self
        if self.path is None and self.hub is None and made is None:
            raise ValueError(
                f"{self.name}: names no files; give `path:`, or `hub:` and `revision:`"
            )
        if self.path is None and not self.revision:
            raise ValueError(
                f"{self.name}: not pinned; give the hub's commit as `revision:`, so that the cells "
                "that it trains can be told from those of another version"
            )
        return self


class ModelSpec(Spec):
    """A base model."""

    context: int = Field(2048, gt=0, description="longest prompt plus response, tokens")
    parameters: float = Field(0.0, ge=0, description="number of parameters")
    paper: str = Field("", description="what the paper calls it")


class DatasetSpec(Spec):
    """Questions with checkable answers."""

    config: str | None = Field(None, description="the hub's name of the configuration")
    question: str = Field("question", description="column with the question")
    answer: tuple[str, ...] = Field(("answer",), description="columns tried for the answer")
    answer_after: str | None = Field(None, description="marker before the answer in its column")
    prompt: str = Field("{question}", description="user message; {question} is replaced")

    @field_validator("answer", mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    grader: str = "gsm8k"
    source: str | None = Field(
        None, description="a function that makes the rows: reasoning-gym, or a plug-in's"
    )
    options: dict[str, Any] = Field({}, description="what the source is asked for")

    @field_validator("options")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        """They are part of a key."""
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"options: plain values only (text, numbers, lists): {error}"
            ) from None
        return value

    train_rows: int | None = Field(None, description="usable train questions; None: not counted")
    test_rows: int | None = None
    paper: str = ""


S = TypeVar("S", bound=Spec)


def fingerprint(folder: Path) -> str:
    """`sha256:` and 16 digits over names and contents of a folder's files.

    Hidden files and README are left out: they cannot change a policy.
    """
    return _fingerprint(str(folder.resolve()), stamp(folder))


def pinned(spec: S) -> S:
    """The spec with the revision of its local copy, where it has one.

    Raises `InputError` where the folder named by `path` does not exist.
    """
    if spec.path is None:
        return spec
    folder = Path(spec.path)
    if not folder.is_dir():
        raise InputError(
            f"{spec.name}: no folder {folder} with its local copy; put the files there, "
            "or take the path away to load it from the hub"
        )
    return spec.model_copy(update={"revision": fingerprint(folder)})


def use_local(models: Path | None, data: Path | None) -> None:
    """Read catalogue entries from local copies: subfolders by name of `models` and of `data`.

    Raises `InputError` where a folder is named that does not exist.
    """
    catalogues: tuple[tuple[Path | None, dict[str, Any]], ...] = (
        (models, MODELS),
        (data, DATASETS),
    )
    for folder, catalogue in catalogues:
        if folder is None:
            continue
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of local copies")
        for name, spec in catalogue.items():
            if not spec.embedded and (folder / name).is_dir():
                path = str((folder / name).resolve())
                catalogue[name] = spec.model_copy(update={"path": path})


def _files(folder: Path) -> list[Path]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p for p in found if not _hidden(p, folder) and not p.name.startswith("README")]


def _hidden(path: Path, folder: Path) -> bool:
    """The file, or a folder between, has a hidden name: a cache, a repository's own files."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a folder's files: changes whenever one of them does."""
    stats = ((str(p), p.stat()) for p in _files(folder))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=64)
def _fingerprint(folder: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path in _files(Path(folder)):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()[:16]}"


_TINY: dict[str, Any] = {"micro_batch": 64, "precision": "fp32", "lr": 3e-5}
_TINY |= {"max_prompt": 32, "max_response": 32}


def _tiny_model(name: str, paper: str) -> ModelSpec:
    return ModelSpec(
        name=name, path=str(EMBEDDED / "models" / name), embedded=True,
        context=64, parameters=3e5, defaults=_TINY, paper=paper,
        about=f"an embedded model of the {paper} class: a pipeline check",
    )  # fmt: skip


def _tiny_dataset(name: str, paper: str, **spec: Any) -> DatasetSpec:
    return DatasetSpec(
        name=name, path=str(EMBEDDED / "tasks" / name), embedded=True,
        train_rows=512, test_rows=500, paper=paper,
        about=f"an embedded task with answers as in {paper}: a pipeline check", **spec,
    )  # fmt: skip


def _reasoning(name: str, task: Task) -> DatasetSpec:
    return DatasetSpec(
        name=name, source="reasoning-gym", revision=VERSION, options=task.options,
        prompt=task.prompt, grader="reasoning-gym", train_rows=TRAIN, test_rows=TEST,
        about=f"reasoning-gym: {task.about}",
    )  # fmt: skip


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="qwen2.5-0.5b-instruct", hub="Qwen/Qwen2.5-0.5B-Instruct", paper="Qwen",
            revision="7ae557604adf67be50417f59c2c2f167def9a775",
            context=32768, parameters=494_032_768,
        ),
        ModelSpec(
            name="llama-3.2-1b-instruct", hub="meta-llama/Llama-3.2-1B-Instruct", paper="LLaMA",
            revision="9213176726f574b556790deb65791e0c5aa438b6",
            context=131072, parameters=1_235_814_400,
        ),
        ModelSpec(
            name="olmo-2-1b-instruct", hub="allenai/OLMo-2-0425-1B-Instruct", paper="OLMo",
            revision="48d788eca847d4d7548f375ad03d3c9312f6139e",
            context=4096, parameters=1_484_916_736,
        ),
        ModelSpec(
            name="smollm2-135m-instruct", hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            context=8192, parameters=134_515_008,
        ),
        _tiny_model("tiny-qwen2", "Qwen"),
        _tiny_model("tiny-llama", "LLaMA"),
        _tiny_model("tiny-olmo2", "OLMo"),
    )
}  # fmt: skip

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="gsm8k", hub="openai/gsm8k", config="main", paper="GSM8K",
            revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
            answer_after="####", prompt=GSM8K_PROMPT, grader="gsm8k",
            train_rows=7473, test_rows=1319,
        ),
        DatasetSpec(
            name="math", hub="DigitalLearningGmbH/MATH-lighteval", paper="MATH",
            revision="0530c78699ea5e8eb5530600900e1f328b48acad",
            question="problem", answer=("answer", "solution"), prompt=MATH_PROMPT, grader="math",
            train_rows=7498, test_rows=5000,
        ),
        _tiny_dataset(
            "tiny-sums", "GSM8K", answer_after="####", grader="gsm8k"
        ),
        _tiny_dataset(
            "tiny-boxed", "MATH",
            question="problem", answer=("answer", "solution"), grader="math",
        ),
        *(_reasoning(name, task) for name, task in TASKS.items()),
    )
}  # fmt: skip
