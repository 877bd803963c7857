"""The key of a cell: what enters it, what does not, and what is inert."""

import pytest
from pydantic import ValidationError

from grids.catalog import GROUP_RELATIVE
from grids.cell import Cell
from workers.advantages import ADVANTAGES
from workers.grading import GRADERS
from workers.rewards import REWARDS

PAPER = {"model": "qwen2.5-0.5b-instruct", "dataset": "gsm8k"}


def cell(**settings: object) -> Cell:
    return Cell(**{**PAPER, **settings})


def test_defaults_are_the_papers_settings():
    made = cell()
    assert made.shape == (32, 1, 0)
    assert (made.advantage, made.lr, made.kl, made.clip) == ("raw", 1e-6, 0.001, 0.2)
    assert (made.max_prompt, made.max_response, made.micro_batch) == (512, 1024, 4)
    assert (made.dual_clip, made.weight_decay, made.aggregation) == (
        3.0,
        0.01,
        "token_mean_micro_batch",
    )


def test_a_key_is_stable():
    """A changed key means that every finished cell of every user is trained again."""
    assert cell().key == "0eae005da51b5dcb"
    assert cell(seed=3, advantage="grpo", rollouts=8).key == "a3c762895ab5a6c1"


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 7},
        {"eval": {"every": 3, "samples": 4}},
        {"rows_per_pass": 2},
        {"gradient_checkpointing": True},
        {"gpus": 0.5},
        {"max_unscored": 0.5},
    ],
)
def test_horizon_evaluation_and_resources_are_not_in_the_key(change):
    assert cell(**change).key == cell().key


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch": 64},
        {"rollouts": 2},
        {"lr": 2e-6},
        {"kl": 0},
        {"max_response": 512},
        {"precision": "fp32"},
        {"grader": "gsm8k-flexible"},
        {"micro_batch": 8},
        {"temperature": 0.9},
        {"aggregation": "token_mean"},
        {"updates_per_round": 2},
        {"kl_form": "k1"},
        {"kl_on_signal_only": True},
        {"advantage": "ema"},
    ],
)
def test_what_can_change_the_policy_is_in_the_key(change):
    assert cell(**change).key != cell().key


def test_the_names_of_a_model_and_a_data_set_are_not_in_the_key_but_their_revisions_are():
    made = cell()
    renamed = made.model_spec.model_copy(update={"name": "mine"})
    other = made.model_spec.model_copy(update={"revision": "0" * 40})
    assert cell(model="mine", model_spec=renamed).key == made.key
    assert cell(model_spec=other).key != made.key


@pytest.mark.parametrize(
    ("settings", "inert"),
    [
        ({}, {"clip": 0.3}),
        ({"updates_per_round": 2}, {"clip_high": 0.2}),
        ({"updates_per_round": 2, "clip": "off"}, {"dual_clip": "off"}),
        ({}, {"dual_clip": "off"}),
        ({"kl": 0}, {"kl_form": "k1"}),
        ({"kl": 0}, {"kl_on_signal_only": True}),
        ({}, {"replay_max_age": 5}),
        ({}, {"replay_mode": "train"}),
        ({}, {"replay_fill": "base"}),
        ({"advantage": "grpo"}, {"ema_decay": 0.5}),
        ({"rollouts": 8, "advantage": "grpo"}, {"singleton": "zero"}),
        ({"rollouts": 8, "advantage": "ema"}, {"singleton": "zero"}),
        ({"advantage": "raw"}, {"singleton": "zero"}),
        ({"advantage": "reinforce_pp"}, {"singleton": "zero"}),
        ({"advantage": "batch_mean"}, {"singleton": "zero"}),
        ({"advantage": "batch_mean", "replay": 7}, {"singleton": "zero"}),
        ({}, {"micro_batch": 4}),
        ({"aggregation": "token_mean"}, {"micro_batch": 8}),
        ({}, {"replay": 7}),
        ({}, {"replay": 7, "replay_fill": "base", "replay_max_age": 5}),
        ({"advantage": "ema"}, {"replay": 7}),
    ],
)
def test_inert_settings_are_dropped(settings, inert):
    assert cell(**settings).key == cell(**{**settings, **inert}).key


def test_the_clip_counts_where_updates_are_off_policy():
    twice = {"updates_per_round": 2}
    assert cell(**twice, clip=0.3).key != cell(**twice).key


REPLAYED = {"advantage": "grpo", "replay": 7}


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"advantage": "ema"}, {"ema_decay": 0.5}),
        ({"advantage": "ema"}, {"singleton": "zero"}),
        ({"advantage": "ema", "replay_fill": "base"}, {"replay": 7}),
        ({"advantage": "ema", "replay_mode": "train"}, {"replay": 7}),
        ({"replay_mode": "train"}, {"replay": 7}),
        ({"advantage": "batch_mean"}, {"replay": 7}),
        ({"advantage": "reinforce_pp"}, {"replay": 7}),
        (REPLAYED, {"singleton": "zero"}),
        (REPLAYED, {"replay_mode": "train"}),
        (REPLAYED, {"replay_fill": "base"}),
        (REPLAYED, {"replay_max_age": 5}),
        (REPLAYED | {"replay_mode": "train"}, {"clip": 0.3}),
    ],
)
def test_a_setting_counts_where_it_has_an_effect(settings, counts):
    assert cell(**settings).key != cell(**{**settings, **counts}).key


ALONE = [
    *((name, "raw", "raw", "raw") for name in GROUP_RELATIVE if name != "reinforce_pp_baseline"),
    *((name, "batch_mean", "batch_mean", "raw") for name in ("mean_centered", "grpo", "rloo")),
    *((name, "batch_mean", "batch_mean", "zero") for name in ("max_rl", "opo")),
    ("reinforce_pp_baseline", "raw", "reinforce_pp", "zero"),
    *((name, "zero", "mean_centered", "zero") for name in GROUP_RELATIVE),
]


@pytest.mark.parametrize(("advantage", "singleton", "same", "its_singleton"), ALONE)
def test_a_group_of_one_has_the_key_of_what_it_computes(advantage, singleton, same, its_singleton):
    alone = {"advantage": advantage, "singleton": singleton}
    other = {"advantage": same, "singleton": its_singleton}
    assert cell(**alone).key == cell(**other).key
    if advantage != same:
        for more in ({"replay": 7}, {"rollouts": 8}):
            assert cell(**alone, **more).key != cell(**other, **more).key


def test_groups_of_one_that_compute_different_things_have_different_keys():
    keys = {
        cell(advantage=advantage, singleton=singleton).key
        for advantage in GROUP_RELATIVE
        for singleton in ("raw", "zero", "batch_mean")
    }
    # raw, nothing, minus the batch's mean, reinforce_pp, reinforce_pp_baseline under batch_mean
    assert len(keys) == 5
    assert cell(advantage="reinforce_pp_baseline", singleton="batch_mean").key in keys


def test_arm_key_leaves_out_the_seed_alone():
    assert cell(seed=1).arm_key == cell(seed=2).arm_key != cell(seed=1, lr=1e-5).arm_key


def test_eval_key_is_of_the_evaluation_and_not_of_how_often_it_is_made():
    assert cell(eval={"every": 5}).eval_key == cell().eval_key
    assert cell(eval={"samples": 4}).eval_key != cell().eval_key


def test_eval_key_follows_what_an_evaluation_does():
    assert cell(eval={"temperature": 0.5}).eval_key == cell().eval_key  # nothing is sampled
    sampled = cell(eval={"samples": 2})
    assert cell(eval={"samples": 2, "temperature": 0.5}).eval_key != sampled.eval_key


def test_the_columns_of_the_data_are_in_the_key():
    spec = cell().dataset_spec
    for change in ({"answer": ("other",)}, {"question": "other"}, {"answer_after": "="}):
        assert cell(dataset_spec=spec.model_copy(update=change)).key != cell().key


def test_base_key_is_shared_by_arms_and_seeds():
    keys = {
        cell(seed=s, rollouts=n, lr=lr).base_key for s in (0, 1) for n in (1, 8) for lr in (1, 2)
    }
    assert len(keys) == 1
    assert cell(dataset="math").base_key not in keys


def test_a_cell_survives_json():
    made = cell(seed=2, eval={"samples": 4})
    again = Cell.model_validate_json(made.model_dump_json())
    assert (again.key, again.eval_key, again) == (made.key, made.eval_key, made)


def test_label():
    assert (
        cell(rollouts=8, advantage="grpo").label == "qwen2.5-0.5b-instruct gsm8k (32,8,0) grpo s0"
    )


def test_off_means_none():
    assert cell(kl="off").kl == 0 and cell(kl=False).kl == 0
    assert cell(clip="off").clip is None


def test_names_known_to_grids_are_the_workers_own():
    from grids.catalog import ESTIMATORS, GRADER_VERSIONS, PARTIAL
    from grids.catalog import REWARDS as REWARD_NAMES
    from workers.advantages import GROUP_RELATIVE as theirs

    assert set(ESTIMATORS) == set(ADVANTAGES)
    assert set(GROUP_RELATIVE) == set(theirs)
    assert set(GRADER_VERSIONS) == set(GRADERS)
    assert set(REWARD_NAMES) == set(REWARDS)
    assert set(PARTIAL) <= set(GRADERS)


TINY = {"model": "tiny-qwen2", "dataset": "tiny-sums"}  # its model brings micro_batch: 64


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"batch": 2}, 2),
        ({"batch": 8}, 4),
        ({"batch": "2"}, 2),
        ({"batch": 8, "updates_per_round": 4}, 2),
        ({**TINY, "batch": 8}, 8),
        ({**TINY, "batch": 8, "rollouts": 2}, 16),
        ({**TINY, "batch": 8, "rollouts": 2, "updates_per_round": 4}, 4),
        ({**TINY, "batch": 8, "replay": 3}, 8),
        ({**TINY, "batch": 8, "replay": 3, "replay_mode": "train"}, 32),
        ({**TINY, "batch": 128}, 64),
        ({**TINY, "batch": 8, "micro_batch": 8}, 8),
        ({**TINY, "batch": 8, "micro_batch": "2"}, 2),
    ],
)
def test_a_default_micro_batch_is_lowered_to_the_rows_of_an_update(settings, rows):
    made = cell(**settings)
    assert made.micro_batch == rows
    assert Cell.model_validate(made.model_dump()) == made
    assert cell(**{**settings, "micro_batch": rows}).key == made.key


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"micro_batch": 64}, r"64 rows, but an update has 32 \(batch × rollouts / updates_per"),
        ({"batch": 8, "rollouts": 2, "updates_per_round": 4, "micro_batch": "5"}, "at most 4 is"),
        (
            {"batch": 4, "replay": 1, "replay_mode": "train", "micro_batch": 9},
            r"an update has 8 \(batch × \(rollouts \+ replay\) / updates_per_round\)",
        ),
        ({**TINY, "batch": 8, "micro_batch": 64}, "micro_batch: 64 rows, but an update has 8"),
    ],
)
def test_a_written_micro_batch_beyond_the_rows_of_an_update_is_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        cell(**settings)


def test_replay_filled_from_the_base_model_is_drawn_for_every_train_question():
    filled = cell(advantage="grpo", replay=7, replay_fill="base")
    assert filled.filled_samples == 7 * 7473
    uncounted = filled.dataset_spec.model_copy(update={"train_rows": None})
    assert filled.model_copy(update={"dataset_spec": uncounted}).filled_samples == 0
    assert cell(advantage="grpo", replay=7).filled_samples == 0
    assert cell(replay_fill="base").filled_samples == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch": -4}, "greater than 0"),
        ({"batch": 7474}, "larger than the train set"),
        ({"max_response": 32768}, "exceed the context of qwen2.5-0.5b-instruct"),
        ({"model": "qwen2.5-0.5b"}, "did you mean 'qwen2.5-0.5b-instruct'"),
        ({"advantage": "gpro"}, "did you mean 'grpo'"),
        ({"updates_per_round": 3}, "3 does not divide the batch 32; allowed: .*take 2 or 4"),
        ({"updates_per_round": 33}, "33 does not divide the batch 32; allowed: .*take 32 "),
        ({"ema_decay": 1.0}, "less than 1"),
        ({"max_unscored": 1.5}, "less than or equal to 1"),
        ({"lr": float("nan")}, "finite"),
        ({"eval": {"primary": "sampled"}}, "needs eval.samples"),
        ({"batch": 1}, "at least 2"),
        ({"clip_high": 3.0}, "dual_clip: 3.0 lies below the upper clip"),
        ({"gpus": 1.5}, "or a whole number of GPUs; got 1.5; take 1 or 2"),
        ({"gpus": True}, "a share of one GPU or how many; take 1 for a whole one"),
        ({"gpus": 1_000_000}, "of one node, at most 64; got 1000000"),
    ],
)
def test_bad_settings_say_what_is_wrong(settings, told):
    with pytest.raises(ValidationError, match=told):
        cell(**settings)
