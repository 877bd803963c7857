"""Cell: one training run, fully described; its canonical form, key, arm_key and label.

The key is a hash of everything that can change the policy which the cell trains, and of nothing
else (`key.py`). Defaults are the paper's settings (arXiv 2601.22532) and, where it is
silent, verl's. Leaves out enumeration (`grid.py`) and training (`workers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from grids import key as keys
from grids import limits
from grids.catalog import (
    DATASETS,
    FLEXIBLE,
    MODELS,
    DatasetSpec,
    ModelSpec,
    pinned,
)
from grids.errors import listed, nearest
from grids.plugin import PluginSpec, used


def _off_is(value: Any, off: Any) -> Any:
    return off if value is False or value in (None, "off", "none", "no") else value


OffIsZero = BeforeValidator(lambda value: _off_is(value, 0.0))
OffIsNone = BeforeValidator(lambda value: _off_is(value, None))
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Gpus = Annotated[
    float, Field(gt=0, allow_inf_nan=False), BeforeValidator(limits.no_switch),
    AfterValidator(limits.check_gpus),
]  # fmt: skip
Decay = Annotated[float, Field(ge=0, lt=1)]


class Evaluation(BaseModel):
    """How a cell is scored. It has a key of its own: a new evaluation retrains nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    every: Positive = Field(100, description="rounds between evaluations")
    primary: Literal["greedy", "sampled"] = Field(
        "greedy", description="the one Pass@1 that contrasts use"
    )
    samples: int = Field(0, ge=0, description="K samples a question at the base and final; 0: none")
    temperature: Rate = Field(1.0, description="of those samples")
    test_questions: Positive | None = Field(None, description="first N of the test set; null: all")
    train_questions: int = Field(500, ge=0, description="size of the fixed train subset")

    @model_validator(mode="after")
    def _sampled_needs_samples(self) -> Self:
        if self.primary == "sampled" and self.samples == 0:
            raise ValueError("primary: sampled needs eval.samples of at least 1 (4 is usual)")
        return self


class Cell(BaseModel):
    """One training run. (batch, rollouts, replay) is the paper's (B, n, m)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # What is trained, on what.
    model: str = Field(description="name in the catalogue of models")
    dataset: str = Field(description="name in the catalogue of data sets")
    seed: int = Field(0, ge=0, description="of prompt order and sampling")

    # The design choices of the paper.
    batch: Positive = Field(32, description="queries a round, B")
    rollouts: Positive = Field(1, description="fresh rollouts a query, n")
    replay: int = Field(0, ge=0, description="replayed rollouts a query, m")
    advantage: str = Field("raw", description="estimator: a name in workers.advantages")
    singleton: Literal["raw", "zero", "batch_mean"] = Field(
        "raw", description="what a group-relative advantage gives over a group of one"
    )
    ema_decay: Decay = Field(
        0.9, description="of the ema estimator's running baseline of a question"
    )
    replay_mode: Literal["baseline", "train"] = Field(
        "baseline", description="replayed rollouts join the baseline only, or take gradient too"
    )
    replay_fill: Literal["cold", "base"] = Field(
        "cold", description="replay starts empty, or with rollouts of the base model"
    )
    replay_max_age: Positive | None = Field(None, description="in rounds; null: no limit")

    # The update.
    lr: Rate = Field(1e-6, description="learning rate, constant")
    loss: str = Field("clip", description="of a token: a name in workers.losses")
    kl: Annotated[Finite, OffIsZero] = Field(0.001, description="KL coefficient; off: none")
    kl_form: str = Field("k3", description="estimator of the KL in the loss: k1, k2, k3")
    kl_on_signal_only: bool = Field(False, description="no KL where the advantage is zero")
    clip: Annotated[Rate | None, OffIsNone] = Field(
        0.2, description="PPO clip; off: none, and no dual clip either"
    )
    clip_high: Rate | None = Field(None, description="upper clip where it differs")
    dual_clip: Annotated[Rate | None, OffIsNone] = Field(3.0, description="verl's clip_ratio_c")
    aggregation: str = Field(
        "token_mean_micro_batch", description="how token losses become one number"
    )
    micro_batch: Positive = Field(
        4,
        description="rows over which token losses are averaged; the default is at most an update's",
    )
    updates_per_round: Positive = Field(
        1, description="optimiser steps a round, each on as many queries; divides batch"
    )
    weight_decay: Finite = 0.01
    adam_beta1: Decay = 0.9
    adam_beta2: Decay = 0.999
    max_grad_norm: Rate = 1.0
    importance_correction: bool = Field(False, description="engine against trainer (verl: off)")
    lora_rank: int = Field(
        0, ge=0, le=1024, description="of adapters beside a frozen base; 0: none, all is trained"
    )
    lora_alpha: Positive = Field(32, description="an adapter counts lora_alpha / lora_rank times")
    lora_targets: Literal["all-linear", "attention", "mlp"] = Field(
        "all-linear", description="layers that get an adapter; never the head or the embeddings"
    )

    # Text.
    temperature: Rate = Field(1.0, description="of training rollouts")
    max_prompt: Positive = Field(512, description="longest question, tokens")
    max_response: Positive = Field(1024, description="longest response, tokens")
    grader: str = Field("", description="how answers are checked; empty: the data set's")
    reward: str = Field("correct", description="grade -> reward: a name in workers.rewards")
    reward_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="probability with which a reward r becomes 1 - r"
    )
    holdout: int = Field(
        0, ge=0, description="train questions that are never trained on, for val/pass_at_1"
    )

    # How it is computed: explicit, never chosen by the machine.
    engine: Literal["transformers", "vllm"] = "transformers"
    precision: Literal["fp32", "bf16"] = Field("bf16", description="of compute; master fp32")

    # Not in the key: horizon, evaluation, resources, when to give up.
    rounds: Positive = 1000
    eval: Evaluation = Evaluation()
    rows_per_pass: Positive | None = Field(None, description="bounds memory only; null: chosen")
    gradient_checkpointing: bool = False
    liger: bool = Field(
        False, description="liger-kernel's loss in place of ours; refused where they would differ"
    )
    gpus: Gpus | None = Field(
        None,
        description="share of a GPU up to 1, or how many GPUs of one node, in each a process; "
        "null: what its memory asks for",
    )
    keep: Literal["none", "weights"] = Field(
        "weights", description="after the end: nothing, or the last checkpoint"
    )
    max_unscored: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="share of answers whose grader may fail before the run stops as failed"
    )

    # Filled in from the catalogue: content, not names.
    model_spec: ModelSpec
    dataset_spec: DatasetSpec
    plugin_specs: tuple[PluginSpec, ...] = ()  # those that this cell uses

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        """Fill specs and, below what is given, the defaults that they bring."""
        if not isinstance(data, dict):
            return data
        model = _spec(data, "model", MODELS)
        dataset = _spec(data, "dataset", DATASETS)
        made = filled(data, model, dataset) | {"model_spec": model, "dataset_spec": dataset}
        specs = (PluginSpec.model_validate(spec) for spec in data.get("plugin_specs", ()))
        return made | {"plugin_specs": used(specs, made)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        limits.check(self)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, without the keys of the original: a change may alter them."""
        copied = super().model_copy(update=update, deep=deep)
        for name in KEYS:
            copied.__dict__.pop(name, None)
        return copied

    @property
    def generated_per_step(self) -> int:
        """Fresh rollouts a round, B × n."""
        return self.batch * self.rollouts

    @property
    def samples_per_step(self) -> int:
        """Rollouts that a round uses, B × (n + m)."""
        return self.batch * (self.rollouts + self.replay)

    @property
    def filled_samples(self) -> int:
        """Rollouts of the base model that replay starts with; 0 where train rows are unknown."""
        rows = max(0, (self.dataset_spec.train_rows or 0) - self.holdout)
        return self.replay * rows if self.replay_fill == "base" else 0

    @property
    def rows_per_update(self) -> int:
        """Rollouts that take gradient in one optimiser step."""
        return _rows_per_update(*(getattr(self, name) for name in ROWS))

    @property
    def processes(self) -> int:
        """Processes that train it together, each on a GPU of its own."""
        return max(1, int(self.gpus or 1))

    @property
    def on_policy(self) -> bool:
        """Every update is made with the policy that sampled, so that all ratios are 1."""
        return self.updates_per_round == 1 and not (self.replay and self.replay_mode == "train")

    @property
    def flexible_grader(self) -> str | None:
        """The lenient reading of the same answers, a secondary metric."""
        return FLEXIBLE.get(self.grader)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, n, m)."""
        return (self.batch, self.rollouts, self.replay)

    def canonical(self) -> dict[str, Any]:
        """Everything that can change the trained policy, as JSON; see `grids.key`."""
        return keys.canonical(self)

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits over `canonical`."""
        return keys.digest(self.canonical())

    @cached_property
    def arm_key(self) -> str:
        """The key without the seed."""
        return keys.digest({k: v for k, v in self.canonical().items() if k != "seed"})

    @cached_property
    def eval_key(self) -> str:
        """Of the evaluation and its graders; neither is part of `key`."""
        return keys.digest(keys.evaluation(self))

    @cached_property
    def base_key(self) -> str:
        """Of the base evaluation: shared by all cells with equal model, data set and evaluation."""
        return keys.digest(keys.base(self))

    @property
    def arm_label(self) -> str:
        """For people: `qwen2.5-0.5b-instruct gsm8k (32,8,0) grpo`."""
        b, n, m = self.shape
        return f"{self.model} {self.dataset} ({b},{n},{m}) {self.advantage}"

    @property
    def label(self) -> str:
        """For people: the arm and its seed."""
        return f"{self.arm_label} s{self.seed}"


# Fields that hold content and not settings.
SPECS = {"model_spec", "dataset_spec", "plugin_specs"}
KEYS = ("key", "arm_key", "eval_key", "base_key")  # computed once a cell, for it never changes


@lru_cache(maxsize=128)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def filled(given: dict[str, Any], model: ModelSpec, dataset: DatasetSpec) -> dict[str, Any]:
    """Settings with, below what is given, the defaults that model and data set bring.

    A `micro_batch` that is not given is lowered to the rows of an update, where it is larger.
    """
    settings: dict[str, Any] = {**model.defaults, **dataset.defaults, **given}
    settings["grader"] = settings.get("grader") or dataset.grader
    if "micro_batch" not in given and (lowered := _lowered_micro_batch(settings)):
        settings["micro_batch"] = lowered
    return settings


def _lowered_micro_batch(settings: dict[str, Any]) -> int | None:
    """The default, at most the rows of an update; None where some setting is not valid."""
    defaults = {name: Cell.model_fields[name].default for name in (*ROWS, "micro_batch")}
    try:
        held = {
            n: check_setting(n, settings[n]) if n in settings else defaults[n] for n in defaults
        }
    except ValueError:  # told at its own field
        return None
    rows = _rows_per_update(*(held[name] for name in ROWS))
    return max(1, min(int(held["micro_batch"]), rows))


ROWS = ("batch", "rollouts", "replay", "replay_mode", "updates_per_round")


def _rows_per_update(batch: int, rollouts: int, replay: int, replay_mode: str, updates: int) -> int:
    rows = batch * (rollouts + replay if replay_mode == "train" else rollouts)
    return rows // updates


def check_setting(name: str, value: Any, plugins: Iterable[PluginSpec] = ()) -> Any:
    """The value as a cell holds it: `"64"` as 64, `off` as 0; names of plug-ins are allowed.

    Raises `ValueError`, naming the setting and what is allowed, where `value` cannot be it.
    """
    try:
        made = _adapter(Cell.model_fields[name].rebuild_annotation()).validate_python(value)
    except ValidationError as error:
        finding = error.errors()[0]
        inner = "".join(f".{part}" for part in finding["loc"] if isinstance(part, str))
        message = finding["msg"][:1].lower() + finding["msg"][1:]
        place = f"{inner.removeprefix('.')}: " if inner else ""
        raise ValueError(f"{place}{message}; got {finding['input']!r}") from None
    if name in limits.NAMED:
        limits.check_name(name, value, limits.known(name, plugins))
    return made


def _spec(data: dict[str, Any], kind: str, catalogue: dict[str, Any]) -> Any:
    given = data.get(f"{kind}_spec")
    if given is not None:
        cls = ModelSpec if kind == "model" else DatasetSpec
        return given if isinstance(given, cls) else cls.model_validate(given)
    name = data.get(kind)
    if name not in catalogue:
        raise ValueError(
            f"{kind}: unknown name; got {name!r}; "
            f"allowed: {listed(catalogue)}{nearest(name, catalogue)}"
        )
    return pinned(catalogue[str(name)])
