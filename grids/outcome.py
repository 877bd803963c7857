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
VAL_PASS: Final = "val/pass_at_1"  # of train questions held out; cells that hold out alone
TEST_PASS_FLEXIBLE: Final = "test/pass_at_1_flexible"
TEST_PARSED: Final = "test/parsed"
TEST_TRUNCATED: Final = "test/truncated"
TEST_TOKENS: Final = "test/tokens"
TEST_UNSCORED: Final = "test/unscored"
REWARD: Final = "train/reward"
REWARD_SD: Final = "train/reward_sd"
REWARD_FLIPPED: Final = "train/reward_flipped"  # share that noise turned round; cells with noise
CORRECT: Final = "train/correct"
CORRECT_FLEXIBLE: Final = "train/correct_flexible"
ADVANTAGE_MEAN: Final = "train/advantage_mean"
PARSED: Final = "train/parsed"
TRUNCATED: Final = "train/truncated"
UNSCORED: Final = "train/unscored"  # share of answers whose grader failed
RESPONSE_TOKENS: Final = "train/response_tokens"
GENERATED_TOKENS: Final = "train/generated_tokens"
ENTROPY: Final = "train/entropy"  # of the policy that wrote, nats a token; evaluated rounds only
GROUPS_ALL_WRONG: Final = "groups/all_wrong"
GROUPS_ALL_RIGHT: Final = "groups/all_right"
GROUPS_MIXED: Final = "groups/mixed"
GROUP_SIZE: Final = "groups/effective_size"
SINGLETONS: Final = "groups/singletons"
# Rollouts of earlier rounds; absent where a round replays none.
AGE_MEAN: Final = "replay/age_mean"  # rounds
AGE_MAX: Final = "replay/age_max"
RATIO_MEAN: Final = "replay/ratio_mean"  # policy now over the policy that wrote, by token
RATIO_SD: Final = "replay/ratio_sd"
RATIO_CLIPPED: Final = "replay/clip_share"
# E |A grad log pi(response)|^2 over the same rollouts; evaluated rounds only.
SECOND_MOMENT_RAW: Final = "gradient/second_moment_raw"  # A = the reward
SECOND_MOMENT_GROUP: Final = "gradient/second_moment_group"  # A = the reward minus its group's mean
GRADIENT_ROLLOUTS: Final = "gradient/rollouts"  # how many the two are means over
LOSS: Final = "update/loss"
KL: Final = "update/kl"
GRAD_NORM: Final = "update/grad_norm"
CLIP_SHARE: Final = "update/clip_share"  # of tokens, where an update is off-policy
TRAINED_TOKENS: Final = "update/tokens"  # of responses that took a forward and backward pass
UPDATES: Final = "update/count"
# Of tokens that took a pass: |log p of the engine that drew them - log p of the trainer|, nats.
ENGINE_GAP: Final = "engine/log_p_gap"  # mean; absent where the trainer's own model drew them
ENGINE_GAP_MAX: Final = "engine/log_p_gap_max"

BASE_PREFIX: Final = "base/"
FINAL_PREFIX: Final = "final/"
SAMPLED_SUFFIX: Final = "_sampled"
SYSTEM_PREFIX: Final = "system/"  # what rounds took: MLflow shows these on a page of their own

# Tags of an MLflow run.
TAG_CELL_KEY: Final = "banditgrid.cell_key"
TAG_ARM_KEY: Final = "banditgrid.arm_key"
TAG_EVAL_KEY: Final = "banditgrid.eval_key"
TAG_EVAL: Final = "banditgrid.eval"  # its settings, as JSON
TAG_ROUNDS: Final = "banditgrid.rounds"
TAG_PLUGINS: Final = "banditgrid.plugins"  # of a run that uses any: their specs, as JSON
TAG_GRID_PREFIX: Final = "banditgrid.grid."
SEARCH: Final = ".search."  # GRID.search.NAME: in such tags, and in what is planned
TAG_STATUS: Final = "banditgrid.status"
TAG_STATUS_REASON: Final = "banditgrid.status_reason"
TAG_ATTEMPTS: Final = "banditgrid.attempts"
TAG_ROWS_PER_PASS: Final = "banditgrid.rows_per_pass"  # where memory ran out: the halved bound
TAG_VERDICTS_PREFIX: Final = "banditgrid.verdicts."  # a grid's: what its last tables said
# For columns and groups of MLflow's pages.
TAG_PAIR: Final = "pair"  # model and data set
TAG_ARM: Final = "arm"  # the label without model, data set and seed

# MLflow's own: what its pages show as description, and as a table of an artifact.
TAG_NOTE: Final = "mlflow.note.content"
TAG_ARTIFACTS: Final = "mlflow.loggedArtifacts"

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
ATTEMPTS_FILE: Final = "attempts.jsonl"  # one line an attempt that ended, and how
LOG_FILE: Final = "log.txt"  # what its workers printed
LEAVE_FILE: Final = "leave.json"  # a request to save a checkpoint and leave
EVALUATIONS_DIR: Final = "evaluations"  # a folder for each named evaluation
EVALUATION_FILE: Final = "evaluation.json"  # in it, beside an outcomes file

# Columns of outcomes.parquet: one row a question and sample.
OUTCOME_COLUMNS: Final = (
    "phase",  # base | final
    "round",
    "split",  # test | train | val
    "decoding",  # greedy | sampled
    "question",  # id: a hash of the question's text
    "sample",
    "correct",  # 0 or 1; NaN where it could not be scored
    "parsed",
    "truncated",
    "tokens",
    "completion",
)

# How an attempt at a cell ends; `finished` and `diverged` are states of the cell too.
OUT_OF_MEMORY: Final = "out_of_memory"
ENGINE_DIED: Final = "engine_died"
PREEMPTED: Final = "preempted"  # its machine is wanted for something else
STOPPED: Final = "stopped"  # by a person
LOST: Final = "lost"  # its worker fell silent, and another took over

# States of a cell.
FINISHED: Final = "finished"
DIVERGED: Final = "diverged"
FAILED: Final = "failed"
UNFINISHED: Final = "unfinished"
RUNNING: Final = "running"
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


class Verdict(NamedTuple):
    """What tables say of a declared contrast in one pair, in words; differences are b - a."""

    study: str
    grid: str
    contrast: str
    where: str  # the pair, and what else the contrast leaves free
    a_key: str  # arm keys
    b_key: str
    a: str  # what the arm is in the contrast: `batch 32, rollouts 8`
    b: str
    told: str  # the verdict with what limits it
    numbers: str  # the difference with its interval and n
    standing: str  # registered or exploratory
