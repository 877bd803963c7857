"""What of a cell decides its cost, and the amounts of each kind of work in a stretch of it.

The amounts are counts alone: passes, rows, tokens, and tokens × parameters; no second is known
here. Passes of generation are counted at the mean response's length, for the longest is not known.
Leaves out seconds (`cost_fit.py`) and what finished runs tell of lengths (`cost_runs.py`).
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from grids.cell import Cell
from grids.errors import InputError
from workers.footprint import (
    GENERATION_ROWS,
    UNCOUNTED_ROWS,
    engine_plan,
    engine_rows,
    generation_rows,
    longest,
    token_bytes,
)
from workers.shapes import shape_of

# Of the longest allowed, what a prompt takes, and a response before any was seen.
USED: Final = 0.5
# Rollouts of an evaluated round whose gradients are looked at one by one (`workers.round`).
LOOKED: Final = 32
PARAMETERS: Final = 1e9  # the unit of them

VLLM: Final = "vllm"
# What generation counts: for transformers' engine, and for vLLM, which is given the weights before
# every call. Of a cell those of one engine are 0.
PLAIN: Final = ("steps", "steps × parameters", "tokens × parameters")
SERVED: Final = ("vllm calls × parameters", *(f"vllm {name}" for name in PLAIN))
# The phases of a cell, and what their amounts count.
PHASES: Final[dict[str, tuple[str, ...]]] = {
    "generate": (*PLAIN, *SERVED),
    "update": ("updates", "rows", "tokens × parameters"),
    "score": ("rounds", "rows", "tokens × parameters"),
    "evaluate": ("evaluations", "answers", *PLAIN, "looked at × parameters", *SERVED),
    "other": ("starts", "rounds", "rows"),
    "outside": ("starts", "rounds", "new processes", "new engines of vllm"),
}  # fmt: skip


class Sized(NamedTuple):
    """A cell as its cost sees it: cells that differ in their seed alone are equal, and so are those
    that differ in adapters, precision or checkpointing, which are priced alike.

    Attributes:
        parameters: of the model, 10^9.
        rows: generated a round.
        trained: rows a round that take gradient, where all have some.
        always: whether all rows do, as under a KL; else those with an advantage.
        scored: rows a round that take a pass without gradient, whatever their advantage.
        scored_trained: further such passes over each row that is trained.
        width: rows that are generated at once.
        questions: of a greedy evaluation.
        gpus: share of a GPU that the grid asks for.
    """

    model: str
    dataset: str
    advantage: str
    parameters: float
    rows: int
    trained: int
    always: bool
    updates: int
    scored: int
    scored_trained: float
    filled: int
    prompt: int
    response: int
    width: int
    every: int
    questions: int
    samples: int
    gpus: float | None
    engine: str = "transformers"

    @property
    def pair(self) -> tuple[str, str]:
        return self.model, self.dataset

    @property
    def base(self) -> tuple[Any, ...]:
        """Equal where cells of a study share the base model's evaluation."""
        return (*self.pair, self.response, self.questions, self.samples, self.engine)


class Seen(NamedTuple):
    """What finished runs tell of a cell's rows: tokens of a response, share that is trained."""

    tokens: float
    share: float = 1.0


class Stretch(NamedTuple):
    """Rounds of a cell in one attempt, and what goes before them."""

    start: int
    end: int
    fills: bool = False  # replay is to be filled
    bases: bool = False  # the base model is to be evaluated
    fresh: bool = False  # the worker's process is new, and imports everything
    rounds: int = 0  # of the whole cell: its last evaluation is the fullest


Amounts = dict[str, tuple[float, ...]]


def sized(cell: Cell) -> Sized:
    """The settings of a cell that decide its cost."""
    rows, updates, kl = cell.generated_per_step, cell.updates_per_round, cell.kl > 0
    replays = bool(cell.replay) and cell.replay_mode == "train"
    held_against = cell.engine == VLLM and cell.importance_correction
    later = 1.0 if held_against else (updates - 1) / updates
    spec = cell.dataset_spec
    tests = spec.test_rows or UNCOUNTED_ROWS
    tests = min(tests, cell.eval.test_questions or tests)
    return Sized(
        model=cell.model, dataset=cell.dataset, advantage=cell.advantage,
        parameters=cell.model_spec.parameters / PARAMETERS, rows=rows,
        trained=cell.rows_per_update * updates, always=kl and not cell.kl_on_signal_only,
        updates=updates, scored=rows * (1 + kl) if replays else 0,
        scored_trained=(0 if replays else kl) + later, filled=cell.filled_samples,
        prompt=cell.max_prompt, response=cell.max_response, width=_width(cell),
        every=cell.eval.every, questions=tests + cell.eval.train_questions + cell.holdout,
        samples=cell.eval.samples, gpus=cell.gpus, engine=cell.engine,
    )  # fmt: skip


_widths: dict[tuple[Any, ...], int] = {}


def _width(cell: Cell) -> int:
    spec = cell.model_spec
    served = engine_rows(cell) if cell.engine == VLLM else 0
    known = (spec.name, spec.revision, spec.path, longest(cell), cell.precision, served)
    if known not in _widths:
        try:
            _widths[known] = _served(cell) if served else generation_rows(cell, shape_of(spec))
        except InputError:  # neither its size nor its shape is known here
            _widths[known] = GENERATION_ROWS
    return _widths[known]


def _served(cell: Cell) -> int:
    """Rows of vLLM whose keys and values its cache on a GPU holds, at the length that is used."""
    plan, size = engine_plan(cell, on_gpu=True), 2 if cell.precision == "bf16" else 4
    row = USED * longest(cell) * token_bytes(shape_of(cell.model_spec), size)
    return max(1, min(plan.rows, int(plan.cache_bytes // row)))


def answers(size: Sized, stretch: Stretch) -> int:
    """Answers to evaluations of a stretch: greedy ones each time, samples at base and end."""
    times = evaluations(size, stretch) + stretch.bases
    sampled = size.samples * (_ends(stretch) + stretch.bases)
    return size.questions * (times + sampled)


def evaluations(size: Sized, stretch: Stretch) -> int:
    """Evaluations that are due in the rounds of a stretch; the base's is not among them."""
    due = stretch.end // size.every - stretch.start // size.every
    return due + (_ends(stretch) and stretch.end % size.every != 0)


def _ends(stretch: Stretch) -> bool:
    return stretch.end > stretch.start and stretch.end >= stretch.rounds


def generated(size: Sized, stretch: Stretch) -> int:
    """Rollouts of a stretch, with what fills its replay."""
    return size.rows * (stretch.end - stretch.start) + (size.filled if stretch.fills else 0)


def amounts(size: Sized, stretch: Stretch, seen: Seen) -> Amounts:
    """The amounts of each of `PHASES`."""
    rounds, giga, long = stretch.end - stretch.start, size.parameters, seen.tokens
    row = size.prompt * USED + long
    trained = size.trained * rounds * (1.0 if size.always else seen.share)
    scored = size.scored * rounds + size.scored_trained * trained
    fill = size.filled if stretch.fills else 0
    steps = long * (rounds * math.ceil(size.rows / size.width) + math.ceil(fill / size.width))
    drawn = (size.rows * rounds + fill) * long
    return {
        "generate": (*_plain(size, steps, drawn), *_vllm(size, rounds, steps, drawn)),
        "update": (rounds * size.updates, trained, trained * row * giga),
        "score": (rounds if scored else 0, scored, scored * row * giga),
        "evaluate": _evaluated(size, stretch, seen),
        "other": (1.0, rounds, rounds * (size.rows + size.trained)),
        "outside": (1.0, rounds, *_new(size, stretch)),
    }


def _new(size: Sized, stretch: Stretch) -> tuple[float, float]:
    return float(stretch.fresh), float(stretch.fresh and size.engine == VLLM)


def _plain(size: Sized, steps: float, drawn: float) -> tuple[float, ...]:
    """`PLAIN`, of transformers' engine."""
    here = size.engine != VLLM
    return steps * here, steps * size.parameters * here, drawn * size.parameters * here


def _vllm(size: Sized, calls: float, steps: float, drawn: float) -> tuple[float, ...]:
    """`SERVED`."""
    here = size.engine == VLLM
    own = (steps, steps * size.parameters, drawn * size.parameters)
    return calls * size.parameters * here, *(amount * here for amount in own)


def _evaluated(size: Sized, stretch: Stretch, seen: Seen) -> tuple[float, ...]:
    giga, long = size.parameters, seen.tokens
    times, ends = evaluations(size, stretch), _ends(stretch) + stretch.bases
    passes = math.ceil(size.questions / size.width)
    sampled = math.ceil(size.questions * size.samples / size.width)
    steps = long * ((times + stretch.bases) * passes + ends * sampled)
    given = answers(size, stretch)
    looked = times * min(LOOKED, size.rows) * (size.prompt * USED + long)
    asked = times + stretch.bases
    plain, served = _plain(size, steps, given * long), _vllm(size, asked, steps, given * long)
    return (asked, given, *plain, looked * giga, *served)
