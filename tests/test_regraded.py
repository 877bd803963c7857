"""What a grader changes, by hand-sized examples."""

import numpy as np
import pytest

from analysis.intervals import over_questions, two_way
from analysis.regraded import Pair, changes
from grids.cell import Cell
from tests.synthetic_store import answers, write_answers

NAN = float("nan")


def cell_of(seed=0, **settings):
    return Cell(model="olmo-2-1b-instruct", dataset="gsm8k", seed=seed, **settings)


def pair_of(folder, cell, before, after, base=None):
    """Two files of outcomes; `before` and `after` are correct_Q."""
    paths = []
    for name, correct in (("before", before), ("after", after)):
        rows = answers("final", 100, "test", "greedy", [[x] for x in correct])
        rows += answers("base", 0, "test", "greedy", [[x] for x in base or (0, 0, 1, 1)])
        rows += answers("final", 100, "train", "greedy", [[1.0]])
        for row in rows:
            row["parsed"] = row["correct"] == row["correct"]
        path = folder / f"{cell.key}-{name}.parquet"
        write_answers(type("P", (), {"directory": folder, "outcomes": path}), rows)
        paths.append(path)
    return Pair(cell, *paths)


def test_an_arm_over_seeds_and_questions(tmp_path):
    first = pair_of(tmp_path, cell_of(0), (0, 0, 1, 1), (1, 0, 1, 0))
    second = pair_of(tmp_path, cell_of(1), (0, 0, 0, 1), (1, 1, 0, 1))
    found, lost = changes([first, second])
    assert not lost
    base, arm = found
    diff_S_Q = np.array([[1, 0, 0, -1], [1, 1, 0, 0]], dtype=float)
    assert (arm.arm, arm.n, arm.questions, arm.difference) == (
        "(32,1,0) raw", 2, 4, two_way(diff_S_Q)
    )  # fmt: skip
    assert (arm.counts.answers, arm.counts.to_right, arm.counts.to_wrong) == (8, 3, 1)
    assert (base.arm, base.n, base.counts.answers) == ("base", 1, 4)  # the seeds share it
    assert base.before == over_questions(np.array([0.0, 0, 1, 1]))
    assert base.difference.value == 0 == base.difference.se


def test_one_seed_has_a_value_and_no_interval(tmp_path):
    _, arm = changes([pair_of(tmp_path, cell_of(), (0, 0, 1, 1), (1, 1, 1, 1))])[0]
    assert arm.difference.value == 0.5 and np.isnan(arm.difference.low)
    assert arm.row()["difference"]["low"] is None


def test_unscored_answers_are_counted_and_in_no_mean(tmp_path):
    _, arm = changes([pair_of(tmp_path, cell_of(), (0, 0, 1, 1), (1, NAN, 1, 1))])[0]
    assert arm.questions == 3 and arm.difference.value == pytest.approx(1 / 3)
    assert arm.counts.unscored == arm.counts.unparsed == (0, 1)
    assert (arm.counts.to_right, arm.counts.to_wrong) == (1, 0)
    _, arm = changes([pair_of(tmp_path, cell_of(), (0, 0, 1, 1), (NAN, NAN, NAN, 1))])[0]
    assert arm.difference.n == 0 and arm.why == "1 questions were scored in every seed"


def test_arms_of_one_name_are_told_apart_and_other_questions_are_refused(tmp_path):
    pairs = [pair_of(tmp_path, cell_of(lr=lr), (0, 0, 1, 1), (1, 1, 1, 1)) for lr in (1e-6, 1e-5)]
    found, _ = changes(pairs)
    assert {c.arm for c in found[1:]} == {"(32,1,0) raw lr=1e-06", "(32,1,0) raw lr=1e-05"}
    shorter = pair_of(tmp_path, cell_of(1, lr=1e-5), (0, 1, 1), (0, 1, 1), base=(0, 0, 1))
    arm = next(c for c in changes([*pairs, shorter])[0] if c.arm.endswith("1e-05"))
    assert "question sets differ" in arm.why and arm.difference.n == 0


def test_a_file_that_cannot_be_read_leaves_its_cell_out(tmp_path):
    good = pair_of(tmp_path, cell_of(0), (0, 0, 1, 1), (1, 1, 1, 1))
    bad = pair_of(tmp_path, cell_of(1), (0, 0, 1, 1), (1, 1, 1, 1))
    bad.after.write_bytes(b"none")
    found, lost = changes([good, bad])
    assert found[1].n == 1 and len(lost) == 1 and lost[0].startswith(f"{bad.cell.label}: ")


def test_arms_that_were_trained_under_two_graders_stay_two(tmp_path):
    strict, lenient = cell_of(), cell_of(grader="gsm8k-flexible")
    asked = strict.model_copy(update={"grader": "gsm8k-flexible"})
    one = pair_of(tmp_path, strict, (0, 0, 1, 1), (1, 1, 1, 1))
    other = pair_of(tmp_path, lenient, (0, 0, 0, 1), (0, 0, 0, 1))
    pairs = [p._replace(cell=asked, trained=c) for p, c in ((one, strict), (other, lenient))]
    arms = [change for change in changes(pairs)[0] if change.arm != "base"]
    assert {(c.arm, c.n, c.difference.value) for c in arms} == {
        ("(32,1,0) raw grader=gsm8k", 1, 0.5), ("(32,1,0) raw grader=gsm8k-flexible", 1, 0.0),
    }  # fmt: skip
