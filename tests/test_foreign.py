"""Other people's outcomes: read whatever their types and order, or refused with the reason."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.contrasts import compare
from analysis.foreign import ForeignSource
from analysis.outcomes import Unusable
from analysis.study import Study
from grids.errors import InputError

SEEDS, QUESTIONS, SAMPLES = (3, 5, 8), 40, 2


def cube(share, seed):
    drawn = np.random.default_rng(seed).random((len(SEEDS), QUESTIONS, SAMPLES))
    return (drawn < share).astype(float)


A, B = cube(0.4, 0), cube(0.6, 1)


def frame(**arms):
    rows = [
        {"arm": arm, "seed": seed, "question": f"q{q}", "sample": k, "correct": x}
        for arm, correct_S_Q_K in arms.items()
        for seed, correct_Q_K in zip(SEEDS, correct_S_Q_K, strict=True)
        for q, correct_K in enumerate(correct_Q_K)
        for k, x in enumerate(correct_K)
    ]
    return pd.DataFrame(rows)


def written(tmp_path, rows):
    path = tmp_path / "theirs.parquet"
    if isinstance(rows, pa.Table):
        pq.write_table(rows, path)
    else:
        rows.to_parquet(path)
    return path


def opened(tmp_path, rows):
    return Study.open(written(tmp_path, rows))


ROWS = frame(a=A, b=B)


def test_arms_are_compared_by_name(tmp_path):
    study = opened(tmp_path, ROWS)
    arm = study.outcomes(arm="a")
    assert (arm.seeds, arm.questions[:2], arm.samples) == (SEEDS, ("q0", "q1"), SAMPLES)
    np.testing.assert_array_equal(arm.correct_S_Q_K, A)
    compared = study.compare("a", "b")
    assert compared.difference == compare(A, B).difference
    assert compared.by_seed.keys() == set(SEEDS)
    assert compared == study.compare({"arm": "a"}, {"arm": "b"})


def test_its_runs_are_a_row_an_arm_and_seed(tmp_path):
    runs = opened(tmp_path, ROWS).runs()
    assert list(runs.columns) == ["arm", "seed", "pass_at_1", "questions", "samples", "unscored"]
    assert list(runs.arm) == ["a"] * 3 + ["b"] * 3
    assert list(runs.seed) == [*SEEDS, *SEEDS]
    np.testing.assert_allclose(runs.pass_at_1, [*A.mean(axis=(1, 2)), *B.mean(axis=(1, 2))])
    assert set(runs.questions) == {QUESTIONS}
    assert set(runs.samples) == {SAMPLES}


def test_the_order_of_rows_and_other_columns_are_nothing(tmp_path):
    shuffled = ROWS.sample(frac=1, random_state=0).assign(note="x", correct_too=0)
    arm = opened(tmp_path, shuffled).outcomes(arm="a")
    order = [arm.questions.index(f"q{q}") for q in range(QUESTIONS)]
    np.testing.assert_array_equal(arm.correct_S_Q_K[:, order], A)
    straight = opened(tmp_path, ROWS).compare("a", "b")
    turned = opened(tmp_path, shuffled).compare("a", "b")
    assert turned.difference.value == pytest.approx(straight.difference.value)
    assert turned.difference.se == pytest.approx(straight.difference.se)


@pytest.mark.parametrize(
    "types",
    [
        {"correct": "bool"},
        {"correct": "int8"},
        {"correct": "float32"},
        {"arm": "category", "question": "category"},
        {"seed": "float64", "sample": "uint8"},
    ],
    ids=str,
)
def test_types_are_as_people_write_them(tmp_path, types):
    arm = opened(tmp_path, ROWS.astype(types)).outcomes(arm="b")
    np.testing.assert_array_equal(arm.correct_S_Q_K, B)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()], ids=str)
def test_texts_of_any_kind(tmp_path, kind):
    table = pa.Table.from_pandas(ROWS, preserve_index=False)
    for i, name in ((0, "arm"), (2, "question")):
        table = table.set_column(i, name, table[name].cast(pa.string()).cast(kind))
    np.testing.assert_array_equal(opened(tmp_path, table).outcomes(arm="b").correct_S_Q_K, B)


def test_arms_and_questions_may_be_numbers_and_samples_begin_anywhere(tmp_path):
    rows = ROWS.assign(
        arm=ROWS.arm.map({"a": 1, "b": 2}),
        question=ROWS.question.str[1:].astype(int),
        sample=ROWS["sample"] * 10 + 7,
    )
    study = opened(tmp_path, rows)
    np.testing.assert_array_equal(study.outcomes(arm="2").correct_S_Q_K, B)
    assert study.compare(1, 2).difference == study.compare("1", "2").difference


def test_null_and_nan_are_not_scored(tmp_path):
    rows = ROWS.astype({"correct": "Int8"})
    rows.loc[0, "correct"] = pd.NA
    study = opened(tmp_path, rows)
    assert math.isnan(study.outcomes(arm="a").correct_S_Q_K[0, 0, 0])
    run = study.runs().iloc[0]
    scored = A[0].ravel()[1:]
    assert (run.pass_at_1, run.unscored) == (pytest.approx(scored.mean()), 1)
    rows = ROWS.copy()
    rows.loc[:1, "correct"] = math.nan  # both samples of seed 3, question q0
    assert opened(tmp_path, rows).compare("a", "b").unscored == 1


def test_a_run_without_a_scored_answer_has_no_number(tmp_path):
    rows = ROWS.assign(correct=ROWS.correct.where(ROWS.seed != 3, np.nan))
    runs = opened(tmp_path, rows).runs()
    assert runs.pass_at_1.isna().tolist() == [True, False, False] * 2


def test_arms_with_one_and_the_same_seed_are_two_runs(tmp_path):
    study = opened(tmp_path, ROWS[ROWS.seed == 5])
    assert study.runs()[["arm", "seed"]].to_numpy().tolist() == [["a", 5], ["b", 5]]
    np.testing.assert_array_equal(study.outcomes(arm="b").correct_S_Q_K, B[1:2])
    assert study.compare("a", "b").verdict == "inconclusive"


def test_many_row_groups_are_one_file(tmp_path):
    path = tmp_path / "theirs.parquet"
    ROWS.astype({"arm": "category", "question": "category"}).to_parquet(path, row_group_size=7)
    np.testing.assert_array_equal(Study.open(path).outcomes(arm="b").correct_S_Q_K, B)


# ---- what says nothing


def changed(at, **values):
    rows = ROWS.astype({"seed": float, "correct": float})
    for name, value in values.items():
        rows.loc[at, name] = value
    return rows


@pytest.mark.parametrize(
    "rows, told",
    [
        (
            ROWS.drop(columns=["seed", "sample"]),
            "has no column seed, sample; .* this file has arm, question",
        ),
        (ROWS.iloc[:0], "has no rows"),
        (
            pd.concat([ROWS, ROWS.iloc[[4]]]),
            "1 rows repeat .* arm a, seed 3, question q2, sample 0",
        ),
        (changed(1, correct=2), "correct: 1 of 480 rows are outside 0 to 1, the first is 2"),
        (
            changed(1, correct=-math.inf),
            "correct: 1 of 480 rows are outside 0 to 1, the first is -inf",
        ),
        (ROWS.assign(correct="yes"), "correct: got .*string; expected true or false, or 0 to 1"),
        (changed(1, seed=math.nan), "seed: (1 of 480 rows have none|1 rows have NaN)"),
        (changed(1, seed=0.5), "seed: got 0.5; expected whole numbers"),
        (ROWS.assign(seed="s0"), "seed: got .*string; expected whole numbers"),
        (ROWS.assign(arm=0.5), "arm: got double; expected text or whole numbers"),
        (ROWS.assign(arm=ROWS.arm.where(ROWS.arm == "a")), "arm: 240 of 480 rows have none"),
        (ROWS.assign(question=None), "question: 480 of 480 rows have none"),
    ],
)
def test_a_file_that_is_not_outcomes_is_refused_as_a_whole(tmp_path, rows, told):
    for read in (Study.runs, lambda study: study.compare("a", "b")):
        with pytest.raises(InputError, match=f"theirs.parquet: {told}"):
            read(opened(tmp_path, rows))


def test_a_nan_seed_in_a_file_of_numbers(tmp_path):
    table = pa.Table.from_pandas(ROWS, preserve_index=False)
    seeds = ROWS.seed.to_numpy(dtype=float, copy=True)
    seeds[0] = math.nan
    table = table.set_column(1, "seed", pa.array(seeds, from_pandas=False))
    with pytest.raises(InputError, match="seed: 1 rows have NaN or infinity"):
        opened(tmp_path, table).runs()


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = pa.Table.from_pandas(ROWS, preserve_index=False)
    with pytest.raises(InputError, match="has two of arm; outcomes have the columns"):
        opened(tmp_path, table.append_column("arm", table["arm"])).runs()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 cut short", b"arm,seed\n"])
def test_a_damaged_file_is_told_of(tmp_path, content):
    path = tmp_path / "theirs.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match="theirs.parquet: cannot be read as parquet"):
        Study.open(path).runs()


@pytest.mark.parametrize(
    "kept, told",
    [
        (~((ROWS.seed == 5) & (ROWS.question == "q1")), "question sets differ: 1 of 40 are s3's"),
        (~((ROWS.seed == 5) & (ROWS["sample"] == 1)), "s3 has K = 2, s5 has K = 1"),
        (
            ~((ROWS.seed == 5) & (ROWS["sample"] == 1) & (ROWS.question == "q1")),
            "s5 has 1 samples of some questions and 2 of others; expected equally many",
        ),
    ],
)
def test_seeds_that_do_not_fit_together_are_refused(tmp_path, kept, told):
    study = opened(tmp_path, ROWS[kept | (ROWS.arm == "b")])
    assert len(study.runs()) == 6  # each seed by itself is what it is
    study.outcomes(arm="b")
    with pytest.raises(Unusable, match=f"theirs.parquet: arm a: .*{told}"):
        study.compare("b", "a")


def test_a_run_with_uneven_samples_has_a_gap_for_their_number(tmp_path):
    rows = ROWS[~((ROWS.seed == 5) & (ROWS["sample"] == 1) & (ROWS.question == "q1"))]
    assert opened(tmp_path, rows).runs().samples.isna().sum() == 2


def test_arms_that_do_not_fit_together_are_refused(tmp_path):
    rows = ROWS[(ROWS.arm == "a") | (ROWS["sample"] == 0)]
    with pytest.raises(Unusable, match="a has K = 2, b has K = 1"):
        opened(tmp_path, rows).compare("a", "b")
    rows = ROWS[(ROWS.arm == "a") | (ROWS.question != "q7")]
    with pytest.raises(Unusable, match="question sets differ: 1 of 40 are a's alone"):
        opened(tmp_path, rows).compare("a", "b")
    rows = ROWS[((ROWS.arm == "a") & (ROWS.seed == 3)) | ((ROWS.arm == "b") & (ROWS.seed == 5))]
    with pytest.raises(Unusable, match="no common seed: a has s3, b has s5"):
        opened(tmp_path, rows).compare("a", "b")


def test_an_unknown_arm_is_answered_with_the_known_ones(tmp_path):
    study = opened(tmp_path, frame(grpo=A, raw=B))
    with pytest.raises(InputError, match="no arm 'gpro'; it has grpo, raw; did you mean 'grpo'"):
        study.compare("raw", "gpro")
    with pytest.raises(InputError, match="those of 0 arms"):
        study.outcomes(batch=32)


def test_it_holds_no_cells_and_no_registered_contrasts(tmp_path):
    source = ForeignSource(written(tmp_path, ROWS))
    assert source.cells() == ()
    assert source.registrations() == source.looks() == []
    assert not source.note_looks([{}])
