"""Names of metrics, tags, files and columns: the one contract between writers and readers.

Leaves out every value: workers and the orchestrator write under these names, analysis reads them.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

# Metrics of the journal and of MLflow; step = round.
TEST_PASS: Final = "test/pass_at_1"
TRAIN_PASS: Final = "train/pass_at_1"
TRAIN_PASS_SEEN: Final = "train/pass_at_1_seen"
TRAIN_PASS_UNSEEN: Final = "train/pass_at_1_unseen"
TEST_PASS_FLEXIBLE: Final = "test/pass_at_1_flexible"
TEST_PARSED: Final = "test/parsed"
TEST_TRUNCATED: Final = "test/truncated"
TEST_TOKENS: Final = "test/tokens"
REWARD: Final = "train/reward"
REWARD_SD: Final = "train/reward_sd"
ADVANTAGE_MEAN: Final = "train/advantage_mean"
PARSED: Final = "train/parsed"
TRUNCATED: Final = "train/truncated"
RESPONSE_TOKENS: Final = "train/response_tokens"
GENERATED_TOKENS: Final = "train/generated_tokens"
GROUPS_ALL_WRONG: Final = "groups/all_wrong"
GROUPS_ALL_RIGHT: Final = "groups/all_right"
GROUPS_MIXED: Final = "groups/mixed"
GROUP_SIZE: Final = "groups/effective_size"
SINGLETONS: Final = "groups/singletons"
LOSS: Final = "update/loss"
KL: Final = "update/kl"
GRAD_NORM: Final = "update/grad_norm"
UPDATES: Final = "update/count"

BASE_PREFIX: Final = "base/"
FINAL_PREFIX: Final = "final/"
SAMPLED_SUFFIX: Final = "_sampled"

# Tags of an MLflow run.
TAG_CELL_KEY: Final = "banditgrid.cell_key"
TAG_ARM_KEY: Final = "banditgrid.arm_key"
TAG_EVAL_KEY: Final = "banditgrid.eval_key"
TAG_GRID_PREFIX: Final = "banditgrid.grid."
TAG_STATUS: Final = "banditgrid.status"
TAG_STATUS_REASON: Final = "banditgrid.status_reason"
TAG_ATTEMPTS: Final = "banditgrid.attempts"

# Files of a cell's directory.
CELL_FILE: Final = "cell.json"
JOURNAL_FILE: Final = "journal.jsonl"
TIMINGS_FILE: Final = "timings.jsonl"
OUTCOMES_FILE: Final = "outcomes.parquet"
SAMPLES_FILE: Final = "samples.jsonl"
PROVENANCE_FILE: Final = "provenance.json"
CHECKPOINT_DIR: Final = "checkpoint"
DONE_FILE: Final = "done.json"
FAILED_FILE: Final = "failed.json"

# Columns of outcomes.parquet: one row a question and sample.
OUTCOME_COLUMNS: Final = (
    "phase",  # base | final
    "round",
    "split",  # test | train
    "decoding",  # greedy | sampled
    "question",  # id: a hash of the question's text
    "sample",
    "correct",  # 0 or 1; NaN where it could not be scored
    "parsed",
    "truncated",
    "tokens",
    "completion",
)

# States of a cell.
FINISHED: Final = "finished"
DIVERGED: Final = "diverged"
FAILED: Final = "failed"
UNFINISHED: Final = "unfinished"
WAITING: Final = "waiting"
DAMAGED: Final = "damaged"


def reached(done: Mapping[str, Any], rounds: int | None, eval_key: str | None) -> bool:
    """Whether a cell with this `done.json` needs nothing more; None asks for no horizon or score.

    A diverged cell is a result: more rounds do not quietly retry it.
    """
    enough = rounds is None or done.get("rounds", 0) >= rounds
    enough |= done.get("status") == DIVERGED
    return enough and eval_key in (None, done.get("eval_key"))


class Progress(NamedTuple):
    """What a running cell reports after each round's journal line is on disk."""

    round: int
    rounds: int
    line: dict[str, float]  # the journal line, `round` among its keys
    seconds_left: float | None  # None before the first round
