"""Generation engines side by side: SmolLM2-135M-Instruct on GSM8K with transformers and with vLLM.

`python -m tests.benchmarks.engines [--precision bf16] [--model M --dataset D]`, some ten minutes on
one core. Each engine trains cells in a process of its own, one thread each, and the two take turns,
round by round, so that a slow spell hits both alike; nothing runs beside. KL is off and answers are
hardly ever right, so that a round is generation and little else: what follows it is the same code
under both engines, and its share is measured apart, in rounds with a KL. Left out where vLLM or the
files are absent. Leaves out GPUs (`gpu_check.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.intervals import mean_t
from grids.errors import InputError
from tests.benchmarks.one_engine import MADE, TURN
from tests.benchmarks.ratios import compared
from tests.benchmarks.real_model import DATA, MODELS, NAME
from tests.benchmarks.told import ONE_CORE, ROOT, load, outside_work, told
from workers.engine_check import check

ENGINES = ("transformers", "vllm")
NO_GPU = ONE_CORE | {"CUDA_VISIBLE_DEVICES": ""}
QUESTIONS, RESPONSE = 100, 48
BASE: dict[str, Any] = {
    "model": NAME, "dataset": "gsm8k", "precision": "fp32", "kl": "off", "max_prompt": 256,
    "max_response": RESPONSE, "rounds": 1000,
}  # fmt: skip
FEW = {"every": 1000, "test_questions": 1, "train_questions": 0}


class Shape(NamedTuple):
    """One kind of round that is compared."""

    name: str
    settings: dict[str, Any]
    rounds: int
    questions: int  # of the base's evaluation


SHAPES = (
    Shape("(32,1,0) raw", {"batch": 32, "rollouts": 1}, 3, QUESTIONS),
    Shape("(8,8,0) grpo", {"batch": 8, "rollouts": 8, "advantage": "grpo"}, 3, 1),
)
SHARE_ROUNDS, SHARE_BATCH = 2, 8


def main(words: Sequence[str] = ()) -> None:
    """Measure and print."""
    given = {k: v for k, v in vars(_options(words)).items() if v is not None}
    settings = BASE | given
    print(f"\n{settings['model']} on {settings['dataset']}, engines in turns; {load()}", flush=True)
    if absent := _absent(settings):
        print(f"  not measured: {absent}")
        return
    for shape in SHAPES:
        compare(shape, settings)
    share_outside(settings)
    print(f"  then: {load()}", flush=True)


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--model")
    parser.add_argument("--dataset")
    parser.add_argument("--max-response", type=int)
    parser.add_argument("--max-prompt", type=int)
    return parser.parse_args(list(words))


def _absent(settings: dict[str, Any]) -> str:
    """What is missing for the comparison."""
    if settings["model"] == NAME:
        for path in (MODELS / NAME, DATA / "gsm8k"):
            if not path.is_dir():
                return f"no {path.parent.name}/{path.name}"
    try:
        check(on_gpu=False)
    except InputError as error:
        return str(error)
    return ""


def compare(shape: Shape, settings: dict[str, Any]) -> None:
    """Seconds and tokens a second of one kind of round, and of the base's greedy evaluation."""
    evaluation = FEW | {"test_questions": shape.questions}
    asked = settings | shape.settings | {"eval": evaluation}
    made = in_turns([asked | {"engine": engine} for engine in ENGINES], shape.rounds)
    print(f"\n  {shape.name}, at most {settings['max_response']} new tokens, "
          f"{settings['precision']}, KL off", flush=True)  # fmt: skip
    for engine, one in zip(ENGINES, made, strict=True):
        table(engine, one)
    plain, ours = ([x["all"] for x in one["seconds"]] for one in made)
    compared("seconds of a round, transformers over vLLM", plain, ours)
    plain, ours = (rates(one) for one in made)
    compared("tokens a second, vLLM over transformers", ours, plain)
    if shape.questions > 1:
        for engine, one in zip(ENGINES, made, strict=True):
            (first, *_) = one["evaluations"]
            rate = first["tokens"] / first["seconds"]
            told(f"{engine}: greedy evaluation of {shape.questions}, tokens/s (n=1)", rate)


def table(engine: str, made: dict[str, Any]) -> None:
    """Means over rounds with their t intervals."""
    rows = {
        "seconds of a round": [x["all"] for x in made["seconds"]],
        "  of which generate": [x["generate"] for x in made["seconds"]],
        "  of which update": [x["update"] for x in made["seconds"]],
        "  of which behaviour": [x.get("behaviour", 0.0) for x in made["seconds"]],
        "tokens a second, generating": rates(made),
        "tokens of a round": made["tokens"],
    }
    for name, values in rows.items():
        print(f"  {engine + ': ' + name:42} {mean_t(values).format(1)}, n {len(values)}")


def rates(made: dict[str, Any]) -> list[float]:
    """Tokens a second of each round's generation."""
    pairs = zip(made["tokens"], made["seconds"], strict=True)
    return [tokens / seconds["generate"] for tokens, seconds in pairs]


def share_outside(settings: dict[str, Any]) -> None:
    """With a KL, as by default: what of a vLLM round is neither generation, reference nor update.

    Of rounds that are not evaluated: 99 of 100. A larger batch makes it smaller.
    """
    asked = settings | {"batch": SHARE_BATCH, "eval": FEW, "engine": "vllm", "kl": 0.001}
    (made,) = in_turns([asked], SHARE_ROUNDS)
    print(f"\n  a vLLM round with a KL, ({SHARE_BATCH},1,0) raw, n {SHARE_ROUNDS}", flush=True)
    for phase in sorted({name for x in made["seconds"] for name in x} - {"evaluate"}):
        told(f"seconds: {phase}", float(np.mean([x.get(phase, 0.0) for x in made["seconds"]])))
    told("share outside the work", outside_work(made["seconds"]), "at most 0.1")


# ---- turns


class Player:
    """A process of `one_engine`, which works when it is its turn and else waits."""

    def __init__(self, settings: dict[str, Any], rounds: int) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        words = [sys.executable, "-m", "tests.benchmarks.one_engine", json.dumps(settings)]
        self.process = subprocess.Popen(
            [*words, str(rounds)], env=NO_GPU, cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.made: dict[str, Any] | None = None

    def turn(self, last: bool) -> None:
        """Let it work until its next turn; at the last, to its end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MADE):
                self.made = json.loads(line.removeprefix(MADE))
            if line.startswith(TURN) and not last:
                return
        if self.made is None:
            self.errors.seek(0)
            raise SystemExit(f"a benchmark's process failed: {self.errors.read()[-4000:]}")


def in_turns(cells: Sequence[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Each cell's first rounds, measured in turns."""
    players = [Player(settings, rounds) for settings in cells]
    try:
        for turn in range(1, rounds + 1):
            for player in players:
                player.turn(last=turn == rounds)
        return [player.made for player in players if player.made is not None]
    finally:
        for player in players:
            if player.process.poll() is None and player.made is None:
                player.process.kill()
            player.process.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
