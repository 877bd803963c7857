"""Findings of a table in words: their order, what a sentence holds, and what is never said."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from analysis.bestset import best_set
from analysis.choices import EVERY_PAIR, FACTORIAL, FANOVA, Choices
from analysis.finding import Finding
from analysis.findings import findings, findings_markdown
from analysis.importance import Share
from analysis.intervals import Estimate
from analysis.signatures import SIGNATURES
from analysis.tables import make_table
from grids.outcome import DIVERGED
from tests.memory_study import Memory, grid_of, right, study_of

CONTRAST = {"name": "more", "a": {"rollouts": 1}, "b": {"rollouts": 8}, "margin": 0.02}
AXES = {"model": ["tiny-qwen2", "tiny-llama"], "rollouts": [1, 8]}


def shares_of(gains, spread=0.004):
    """Final share by model: 0.4 with one rollout, and its gain more with eight."""

    def tell(cell):
        gain = gains[cell.model] if cell.rollouts == 8 else 0.0
        final = 0.4 + gain + spread * (-1) ** (cell.seed + cell.rollouts)
        return {"test": (right(0.3, questions=1000), right(final, questions=1000))}

    return tell


def found_of(grid, tell, source=None):
    study = study_of(grid, tell, source)
    return findings(make_table(grid, study), study)


def told(grid, tell, name):
    return [finding for finding in found_of(grid, tell) if finding.name == name]


def contrast_of(claim="superior", gain=0.2, tell=None, **changed):
    grid = grid_of({"rollouts": [1, 8]}, contrasts=[CONTRAST | {"claim": claim} | changed])
    (found,) = told(grid, tell or shares_of({"tiny-qwen2": gain}), f"more: {claim}")
    return found


def test_contrasts_then_choices_then_signatures_pair_by_pair():
    grid = grid_of(AXES, contrasts=[CONTRAST])
    names = [f.name for f in found_of(grid, shares_of({"tiny-qwen2": 0.2, "tiny-llama": 0.0}))]
    kinds = list(dict.fromkeys(names))
    expected = ["more: differs between pairs", "more: superior", "some choice matters",
                "some arm is surely not the best", *SIGNATURES]  # fmt: skip
    assert kinds == [name for name in expected if name in kinds]
    assert names == sorted(names, key=kinds.index)
    assert names.count("more: superior") == 2 and names.count("no improvement") == 4


def test_a_contrast_across_pairs():
    grid = grid_of(AXES, contrasts=[CONTRAST])
    found = told(grid, shares_of({"tiny-qwen2": 0.2, "tiny-llama": 0.0}),
                 "more: differs between pairs")  # fmt: skip
    assert found[0].holds is True and found[0].text.startswith("2 pairs (better 1, equivalent 1):")
    assert re.fullmatch(r"tiny-qwen2 tiny-sums: \+0.200 \[.*\], better", found[0].evidence[0])
    tell = shares_of({"tiny-qwen2": 0.2, "tiny-llama": 0.0})
    found = told(grid, lambda cell: tell(cell) if cell.model == "tiny-qwen2" else None,
                 "more: differs between pairs")  # fmt: skip
    assert found[0].holds is None
    assert found[0].evidence[1] == "tiny-llama tiny-sums: —, no verdict, not in the mean"


def test_the_sentence_of_a_contrast():
    found = contrast_of("equivalent", 0.0)
    assert found.holds is True and found.where == "tiny-qwen2 tiny-sums"
    assert re.fullmatch(
        r"\(8,8,0\) raw against \(8,1,0\) raw: equivalent at lr 3e-05, within 0\.02: "
        r"\+0\.000 \[-0\.0\d\d, \+0\.0\d\d\], 4 of 4 seeds, 1000 questions "
        r"\(p 1\.000, TOST within 0\.02 0\.0\d\d\); exploratory \(0 looks\): "
        r"as it is declared now it was never registered",
        found.text,
    ), found.text
    assert found.evidence[0].startswith("by seed: s0 ")
    assert any(line.startswith("smallest effect that this design finds: 0.") for line in
               found.evidence)  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "gain", "holds", "verdict"),
    [("superior", 0.2, True, "better"), ("superior", -0.2, False, "worse"),
     ("superior", 0.0, False, "equivalent"), ("equivalent", 0.2, False, "better"),
     ("non-inferior", 0.0, True, "equivalent"), ("non-inferior", -0.2, False, "worse")],
)  # fmt: skip
def test_a_claim_follows_from_the_verdict(claim, gain, holds, verdict):
    found = contrast_of(claim, gain)
    assert found.holds is holds and f": {verdict} at lr 3e-05" in found.text
    assert ("worse by 0.02" in found.text) == (claim == "non-inferior")


@pytest.mark.parametrize("claim", ["superior", "equivalent", "non-inferior"])
def test_what_is_inconclusive_refutes_nothing(claim):
    found = contrast_of(claim, tell=shares_of({"tiny-qwen2": 0.0}, spread=0.04))
    assert found.holds is None and "inconclusive at lr 3e-05" in found.text


def test_what_is_inconclusive_may_still_be_no_worse():
    found = contrast_of("non-inferior", tell=shares_of({"tiny-qwen2": 0.015}, spread=0.006))
    assert found.holds is True and "inconclusive at lr 3e-05" in found.text


def test_holm_is_told_where_there_is_a_family():
    grid = grid_of(AXES, contrasts=[CONTRAST])
    for found in told(grid, shares_of({"tiny-qwen2": 0.2, "tiny-llama": 0.1}), "more: superior"):
        assert ", after Holm over 2 " in found.text


def test_no_verdict_has_its_reason_and_its_number():
    found = contrast_of(match="generated")
    assert found.holds is None
    assert "no verdict (match: generated was declared, and rollouts are 160 and 1,280): +0.2" in (
        found.text
    )


def test_no_comparison_has_its_reason_alone():
    tell = shares_of({"tiny-qwen2": 0.0})
    found = contrast_of(tell=lambda cell: tell(cell) if cell.rollouts == 1 else None)
    assert found.holds is None
    assert "no verdict (arm b: none of its 4 seeds has outcomes (waiting)); expl" in found.text
    assert "arm b s0 does not count: waiting" in found.evidence


def test_seeds_still_missing_are_in_the_sentence():
    tell = shares_of({"tiny-qwen2": 0.2})
    found = contrast_of(tell=lambda cell: tell(cell) if cell.seed < 2 else None)
    assert ", 2 of 4 seeds, " in found.text


def test_diverged_runs_have_the_same_contrast_at_0_beside_it():
    tell = shares_of({"tiny-qwen2": 0.0})

    def broke(cell):
        diverged = cell.rollouts == 8 and cell.seed == 0
        return tell(cell) | ({"state": DIVERGED, "broke": 5} if diverged else {})

    found = contrast_of(tell=broke)
    assert re.search(r"; with diverged runs at 0 -0\.1\d\d \[.*\], inconclusive$", found.text)
    assert "arm b s0 diverged, counted at its last evaluation" in found.evidence


def test_another_setting_of_a_contrast_names_the_arms():
    given = {"name": "more", "a": {"lr": 1e-5}, "b": {"lr": 3e-5}}
    grid = grid_of({"lr": [1e-5, 3e-5]}, contrasts=[given])
    (found,) = told(grid, lambda cell: {"test": (right(0.3), right(0.4))}, "more: superior")
    assert found.text.startswith("(8,1,0) raw lr=3e-05 against (8,1,0) raw lr=1e-05: ")


# ---- choices


def share(name, value, p, order=1):
    estimate = Estimate(value, math.nan, value - 0.1, value + 0.1, 8.0, 12)
    return Share(name, estimate, 1.0, p, 1, 8, order)


def of_choices(made):
    grid = grid_of({"rollouts": [1, 8]})
    study = study_of(grid, shares_of({"tiny-qwen2": 0.2}))
    table = replace(make_table(grid, study), choices=(made,))
    return [f for f in findings(table, study) if f.name not in SIGNATURES]


def test_a_choice_matters_after_holm():
    shares = (share("rollouts", 0.3, 0.03), share("advantage", 0.1, 0.04),
              share("seeds", 0.6, math.nan, 0))  # fmt: skip
    found = of_choices(Choices("tiny-qwen2 tiny-sums", shares, FACTORIAL, "what they are"))[0]
    assert found.holds is None  # 0.06 after Holm
    assert found.text == (
        "largest shares of the variance of test Pass@1: rollouts 0.30 [0.20, 0.40], advantage "
        "0.10 [0.00, 0.20] (factorial, 12 runs); above 0 after Holm over 2: none surely"
    )
    assert (
        found.evidence[-1] == "what they are" and "seeds 0.60 [0.50, 0.70], p —" in found.evidence
    )
    shares = (share("rollouts", 0.3, 0.02), *shares[1:])
    found = of_choices(Choices("tiny-qwen2 tiny-sums", shares, FACTORIAL))[0]
    assert found.holds is True and found.text.endswith("Holm over 2: rollouts, advantage")


PARTS = {"model": 0.5, "dataset": 0.3, "model:dataset": 0.1}


def test_model_and_data_set_are_no_choices():
    none = [share(name, value, 0.0) for name, value in PARTS.items()]
    shares = (*none, share("model:rollouts", 0.05, 0.2))
    found = of_choices(Choices(EVERY_PAIR, shares, FACTORIAL))[0]
    assert found.holds is None and "Holm over 1: none surely" in found.text
    assert "model 0.50" not in found.text and "model 0.50 [0.40, 0.60], p <0.001" in found.evidence


def test_a_surrogate_tests_nothing():
    found = of_choices(Choices("tiny-qwen2 tiny-sums", (share("rollouts", 0.9, math.nan),), FANOVA,
                               no_shares="not balanced"))[0]  # fmt: skip
    assert found.holds is None and found.text.endswith("; a surrogate tests none of them")
    assert "not balanced" in found.evidence


def test_the_best_set_is_told():
    rng = np.random.default_rng(0)
    values = {"x": rng.normal(0.5, 0.1, (4, 50)), "y": rng.normal(0.9, 0.1, (4, 50))}
    found = of_choices(Choices("tiny-qwen2 tiny-sums", best=best_set(values)))[-1]
    assert found.name == "some arm is surely not the best" and found.holds is True
    assert found.text.startswith("1 of 2 arms may be best at 95%: y; highest mean y 0.")
    assert "4 seeds, 50 questions" in found.text
    alone = {name: values_S_Q[:1] for name, values_S_Q in values.items()}
    found = of_choices(Choices("tiny-qwen2 tiny-sums", best=best_set(alone)))[-1]
    assert found.holds is None and "one seed says nothing about a method" in found.text


def test_what_has_no_shares_and_no_best_set_says_why():
    found = of_choices(Choices("tiny-qwen2 tiny-sums", no_shares="a reason", no_best="another"))
    assert [(f.holds, f.text) for f in found] == [
        (None, "no variance shares: a reason"), (None, "no arms compared: another"),
    ]  # fmt: skip


def test_where_a_pair_has_one_arm_there_is_no_choice():
    grid = grid_of({"model": AXES["model"], "rollouts": [1]})
    found = found_of(grid, shares_of({}))
    assert {f.name for f in found} == set(list(SIGNATURES)[:4])


# ---- markdown


def test_markdown_has_a_bullet_a_name_and_those_that_hold_first():
    text = findings_markdown([
        Finding("a", "p1", None, "left\nopen"), Finding("a", "p2", True, "shown"),
        Finding("a", "p3", None, "left open"), Finding("b", "p1", False, "not so"),
    ])  # fmt: skip
    assert text == (
        "- **a**: holds in 1, cannot be told in 2\n"
        "  - *holds*, p2: shown\n"
        "  - *cannot be told*, p1; p3: left open\n"
        "- **b**\n"
        "  - *does not hold*, p1: not so\n"
    )
    assert findings_markdown([]) == ""


def test_what_is_never_said():
    grid = grid_of(AXES, contrasts=[CONTRAST, CONTRAST | {"name": "x", "claim": "equivalent"}])
    tells = [shares_of({"tiny-qwen2": gain, "tiny-llama": 0.0}, spread)
             for gain in (0.0, 0.2, -0.2) for spread in (0.004, 0.04)]  # fmt: skip
    texts = [f.text for tell in tells for f in found_of(grid, tell, Memory())]
    assert len(texts) > 100
    for text in texts:
        assert not re.search(r"no effect|significant|\bnan\b|None|proves?\b", text), text
        assert re.search(r"\d seeds?\b|pairs|runs|no counted seed|no arms|no variance", text), text


def test_an_empty_study_says_that_nothing_counts():
    grid = grid_of(AXES, contrasts=[CONTRAST])
    found = found_of(grid, lambda cell: None)
    assert {f.holds for f in found} == {None} and len(found) > 10
    assert "nan" not in findings_markdown(found)


def test_without_answers_to_single_questions_findings_are_of_seeds():
    source = Memory()
    grid = grid_of(AXES, contrasts=[CONTRAST])
    study = study_of(grid, shares_of({"tiny-qwen2": 0.2, "tiny-llama": 0.0}), source)
    source.found, source.has_answers = {}, False
    found = findings(make_table(grid, study), study)
    holds = {finding.where: finding.holds for finding in found if finding.name == "no improvement"}
    assert holds["tiny-qwen2 tiny-sums (8,8,0) raw"] is False
    assert all(f.holds is None for f in found if f.name.startswith(("more", "diminishing")))
