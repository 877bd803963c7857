"""Rewards as a round gets them: context, noise, chance that any layout and any arm shares."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from grids.errors import InputError
from grids.paths import read_lines
from tests.trainers import build_trainer
from workers import scoring
from workers.data import Question
from workers.grading import GRADERS
from workers.rewards import REWARDS
from workers.run import run_cell
from workers.scoring import score

QUESTIONS = [Question(f"q{i // 4}", "1 + 1?", "2", solution="1 + 1 = 2") for i in range(4000)]
RIGHT = ["#### 2"] * len(QUESTIONS)


def test_a_reward_gets_the_answer_the_question_and_its_solution(tiny, monkeypatch):
    seen = []
    monkeypatch.setitem(REWARDS, "correct", lambda grade, context: seen.append(context) or 0.5)
    assert score(["#### 3"], QUESTIONS[:1], tiny(), 1).rewards == [0.5]
    (given,) = seen
    assert (given.text, given.question, given.gold) == ("#### 3", "1 + 1?", "2")
    assert given.solution == "1 + 1 = 2" and math.isnan(given.uniform)


def test_noise_turns_a_share_of_the_rewards_round_and_tells_which(tiny):
    made = score(RIGHT, QUESTIONS, tiny(reward_noise=0.25), 1)
    assert made.rewards == [0.0 if flip else 1.0 for flip in made.flipped]
    assert np.mean(made.flipped) == pytest.approx(0.25, abs=0.03)
    assert score(RIGHT[:8], QUESTIONS[:8], tiny(reward_noise=1.0), 1).rewards == [0.0] * 8
    turned = score(["#### 3"], QUESTIONS[:1], tiny(reward="format", reward_noise=1.0), 1)
    assert turned.rewards == [0.9]
    assert made.grades[0].correct  # the grade is what it is


def test_chance_is_a_function_of_seed_round_question_and_sample_alone(tiny):
    def drawn(round: int = 1, texts=RIGHT, questions=QUESTIONS, **settings) -> list[float]:
        return score(texts, questions, tiny(reward="random", **settings), round).rewards

    first = drawn()
    assert np.mean(first) == pytest.approx(0.5, abs=0.03)
    assert drawn(texts=["nothing"] * len(QUESTIONS)) == first  # whatever the answer
    assert drawn(advantage="grpo", rollouts=8, lr=1e-3) == first  # all arms of a seed
    assert drawn(texts=RIGHT[:4], questions=QUESTIONS[8:12]) == first[8:12]  # any layout
    assert drawn(round=2) != first and drawn(seed=1) != first
    noise = score(RIGHT, QUESTIONS, tiny(reward_noise=0.5), 1).flipped
    assert np.corrcoef(first, noise)[0, 1] == pytest.approx(0, abs=0.1)  # draws of their own


def test_nothing_is_drawn_where_nothing_needs_it(tiny, monkeypatch):
    def never(*args):
        raise AssertionError("drawn")

    monkeypatch.setattr(scoring, "uniforms", never)
    for reward in ("correct", "format", "steps"):
        assert score(RIGHT[:2], QUESTIONS[:2], tiny(reward=reward), 1).flipped == []


def test_an_unscored_answer_stays_so_under_noise_and_chance(tiny, monkeypatch):
    def broken(completion: str, gold: str):
        raise RuntimeError("out of paper")

    monkeypatch.setitem(GRADERS, "gsm8k", broken)
    cell = tiny(reward="random", reward_noise=1.0, max_unscored=1.0)
    assert all(math.isnan(r) for r in score(RIGHT[:3], QUESTIONS[:3], cell, 1).rewards)


def test_a_reward_that_raises_is_told_with_its_question(tiny, monkeypatch):
    monkeypatch.setitem(REWARDS, "correct", lambda grade: 1.0)  # takes no context
    with pytest.raises(InputError, match="'correct' raised TypeError for an answer to question q0"):
        score(RIGHT[:1], QUESTIONS[:1], tiny(), 1)


PLUGIN = """
from workers.grading import Grade


def drawn(grade, *, context):
    return context.uniform


def kind(completion, gold):
    if not completion:
        raise ValueError("nothing to grade")
    return Grade(True, True, completion, score=0.75)


REWARDS = {"drawn": drawn}
GRADERS = {"kind": kind}
"""


def test_a_plug_ins_grader_and_reward_are_looked_up(tiny, tmp_path):
    from grids.plugin import read

    (tmp_path / "scores.py").write_text(PLUGIN)
    specs = (read(tmp_path / "scores.py").spec,)
    cell = tiny(grader="kind", reward="score", plugin_specs=specs)
    made = score(["anything", ""], QUESTIONS[:2], cell, 1)
    assert made.rewards[0] == 0.75 and math.isnan(made.rewards[1])
    drawn = score(RIGHT[:4], QUESTIONS[:4], tiny(reward="drawn", plugin_specs=specs), 1).rewards
    assert len(set(drawn)) == 4 and all(0 <= number < 1 for number in drawn)
    Path(tmp_path / "scores.py").unlink()
    gone = cell.model_copy(update={"plugin_specs": (specs[0].model_copy(update={"digest": "x"}),)})
    with pytest.raises(InputError, match="plug-in scores: no "):  # not an unscored answer
        score(RIGHT[:1], QUESTIONS[:1], gone, 1)


# ---- in a cell


def test_noise_is_in_the_journal_and_a_resumed_cell_is_the_uninterrupted_one(tiny, tmp_path):
    cell = tiny(reward="random", reward_noise=0.3, rollouts=2, advantage="grpo", replay=2, lr=1e-3)
    cell = cell.model_copy(update={"replay_fill": "base"})
    whole = run_cell(cell, tmp_path / "whole", lambda progress: None, tmp_path / "shared")
    run_cell(cell, tmp_path / "cut", lambda progress: progress.round == 2, tmp_path / "shared")
    assert run_cell(cell, tmp_path / "cut", lambda progress: None, tmp_path / "shared")
    lines = [read_lines(tmp_path / name / "journal.jsonl") for name in ("whole", "cut")]
    assert lines[0] == lines[1] and whole is not None
    flipped = [line["train/reward_flipped"] for line in lines[0][1:]]
    assert len(flipped) == 4 and 0 < np.mean(flipped) < 0.6


@pytest.mark.parametrize("advantage", ["raw", "grpo"])
def test_graded_rewards_reach_the_update(tiny, tmp_path, advantage):
    cell = tiny(reward="steps", rollouts=8, advantage=advantage, rounds=1)
    trainer = build_trainer(cell, tmp_path)
    rewards = []
    kept = trainer._advantages
    trainer._advantages = lambda groups: rewards.append(groups.rewards_P_G) or kept(groups)
    trainer.train()
    (rewards_P_G,) = rewards
    between = (rewards_P_G > 0) & (rewards_P_G < 1)
    assert between.any() and torch.isfinite(rewards_P_G).all()
    assert trainer.round.metrics["train/reward"] > trainer.round.metrics["train/correct"]
    assert "train/reward_flipped" not in trainer.round.metrics
