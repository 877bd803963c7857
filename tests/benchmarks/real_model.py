"""A real model's round and its memory: what is spent outside the work, and what the KL costs.

SmolLM2-135M-Instruct on GSM8K in float32, each cell in a process of its own; not measured where
the files are absent. Responses are a few tokens and rounds are few, so that it takes two minutes;
the share outside the work is then larger than in a real run.
"""

from __future__ import annotations

import json
from typing import Any

from tests.benchmarks.told import ROOT, last_line, outside_work, told

NAME = "smollm2-135m-instruct"
MODELS, LOCAL_DATA = ROOT / "models", ROOT / "data"
# Where this is developed, the data stand beside the repository.
DATA = LOCAL_DATA if LOCAL_DATA.is_dir() else ROOT.parent / "shared" / "data"
CELL: dict[str, Any] = {
    "model": NAME, "dataset": "gsm8k", "precision": "fp32", "max_prompt": 80, "max_response": 8,
    "eval": {"every": 1000, "test_questions": 1, "train_questions": 0},
}  # fmt: skip
REFERENCE_GB = 134_515_008 * 4 / 1e9


def main() -> None:
    """Measure and print."""
    print(f"\n{NAME} on gsm8k", flush=True)
    for path in (MODELS / NAME, DATA / "gsm8k"):
        if not path.is_dir():
            print(f"  not measured: no {path.parent.name}/{path.name}")
            return
    made = first_rounds(1, batch=32)
    told("seconds of a (32,1,0) round", made["rounds"][0]["all"])
    told("of which outside the work", outside_work(made["rounds"]), "at most 0.1")
    gigabytes = {kl: first_rounds(2, batch=4, kl=kl)["peak"] / 1e9 for kl in (0.001, "off")}
    told("peak memory with a KL, GB", gigabytes[0.001])
    told("peak memory without, GB", gigabytes["off"])
    expected = f"the reference's weights, {REFERENCE_GB:.2f}"
    told("difference, GB", gigabytes[0.001] - gigabytes["off"], expected)


def first_rounds(rounds: int, **settings: Any) -> dict[str, Any]:
    """Seconds of a cell's first rounds by phase, and their process's peak memory in bytes."""
    made: dict[str, Any] = json.loads(
        last_line("first_rounds", json.dumps(CELL | settings), str(rounds))
    )
    return made


if __name__ == "__main__":
    main()
