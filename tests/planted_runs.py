"""Finished runs whose seconds are known: written to a store as a worker leaves them."""

from __future__ import annotations

import json
from typing import Any

from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths, Store, write_json
from orchestrator.cost_sizes import Seen, Stretch, amounts, sized

TOKENS = 15
# Seconds of one of each amount; other than the defaults by different factors.
PLANTED: dict[str, tuple[float, ...]] = {
    "generate": (4e-3, 0.2, 0.3, 5.0, 8e-3, 0.1, 0.4),
    "update": (2e-2, 3e-3, 0.03),
    "score": (9e-3, 3e-4, 0.05),
    "evaluate": (0.4, 5e-4, 1e-3, 0.1, 0.2, 0.1, 5.0, 8e-3, 0.1, 0.4),
    "other": (0.5, 2e-2, 1e-4),
    "outside": (0.6, 4e-3, 20.0, 9.0),
}


def cell(**settings: Any) -> Cell:
    small = {"every": 10, "test_questions": 100, "train_questions": 50, "samples": 2}
    settings["eval"] = small | settings.get("eval", {})
    return Cell(**{"model": "tiny-qwen2", "dataset": "tiny-sums", "rounds": 20} | settings)


def seconds(made: Cell, fresh: bool = False) -> dict[str, float]:
    """By phase, as planted."""
    stretch = Stretch(0, made.rounds, fresh=fresh, rounds=made.rounds)
    found = amounts(sized(made), stretch, Seen(TOKENS))
    return {
        phase: sum(c * x for c, x in zip(coefficients, found[phase], strict=True))
        for phase, coefficients in PLANTED.items()
    }


def plant(
    store: Store, made: Cell, study: str = "s", factor: float = 1.0, device: str = "cpu",
    fresh: bool = False,
) -> CellPaths:  # fmt: skip
    """Write the files of a finished cell, whose rounds took `factor` times what is planted."""
    paths = store.study(study).cell(made.key)
    paths.directory.mkdir(parents=True)
    paths.cell.write_text(made.model_dump_json(), encoding="utf-8")
    took = {phase: factor * s for phase, s in seconds(made, fresh).items()}
    inner = {"generate": took["generate"], "reference": took["score"], "update": took["update"]}
    each = {name: value / made.rounds for name, value in inner.items()}
    each["all"] = (sum(inner.values()) + took["other"]) / made.rounds
    each["evaluate"] = took["evaluate"] / made.rounds
    rounds = range(1, made.rounds + 1)
    lines = [{"round": i, "attempt": 1, "seconds": each} for i in rounds]
    paths.timings.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tokens = {outcome.TRAINED_TOKENS: made.rows_per_update * TOKENS / 2}
    journal = [{"round": 0}, *({"round": i, **tokens} for i in rounds)]
    paths.journal.write_text("".join(json.dumps(x) + "\n" for x in journal), encoding="utf-8")
    write_json(paths.provenance, {"device": device})
    attempt = {
        "attempt": 1, "how": "finished", "from_round": None, "gpus": None, "fresh": fresh,
        "seconds": sum(took.values()), "began": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00",
    }  # fmt: skip
    paths.attempts.write_text(json.dumps(attempt) + "\n", encoding="utf-8")
    done = {"status": "finished", "rounds": made.rounds, "diverged_round": None, "reason": None}
    done |= {"generated_tokens": made.generated_per_step * made.rounds * TOKENS, "final": {}}
    write_json(paths.done, done | {"eval_key": made.eval_key, "key": made.key})
    return paths
