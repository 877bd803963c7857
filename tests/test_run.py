"""run_cell: the files of a cell, stopping anywhere and going on, and what changes nothing."""

import json
import weakref
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grids import outcome
from grids.errors import InputError
from grids.outcome import OUTCOME_COLUMNS, Progress
from grids.paths import CellPaths, read_json, read_lines
from workers import checkpoint, lease
from workers.evaluate import Evaluated
from workers.run import _Run, run_cell
from workers.trainer import BanditTrainer


def quiet(progress: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


def test_a_cell_leaves_its_files(tiny, tmp_path, shared):
    told: list[Progress] = []
    cell = tiny(eval={"samples": 2})
    done = run_cell(cell, tmp_path, told.append, shared)
    paths = CellPaths(tmp_path)
    assert done == read_json(paths.done)
    assert (done["key"], done["rounds"], done["status"]) == (cell.key, 4, "finished")
    lines = read_lines(paths.journal)
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert [outcome.TEST_PASS in line for line in lines] == [True, False, True, False, True]
    assert lines[4]["test/pass_at_1_sampled"] == done["final"]["test/pass_at_1_sampled"]
    assert [p.round for p in told] == [0, 1, 2, 3, 4]
    assert told[0].seconds_left is None and told[4].seconds_left == 0
    assert [p.line for p in told] == lines
    timings = read_lines(paths.timings)
    assert [line["round"] for line in timings] == [1, 2, 3, 4]
    for line in timings:
        spent = line["seconds"]
        phases = sum(spent[phase] for phase in ("generate", "reference", "update"))
        assert 0 < phases <= spent["all"]
    assert {"question", "completion", "gold"} <= read_lines(paths.samples)[0].keys()
    assert read_json(paths.provenance)["versions"]["trl"] == "1.16.0"
    assert checkpoint.latest(paths.checkpoint, cell.key).round == 4


def test_outcomes_hold_a_row_for_each_question_and_sample(tiny, tmp_path, shared):
    done = run_cell(tiny(eval={"samples": 2}), tmp_path, quiet, shared)
    frame = pq.read_table(CellPaths(tmp_path).outcomes).to_pandas()
    assert tuple(frame.columns) == OUTCOME_COLUMNS
    counts = frame.groupby(["phase", "split", "decoding"]).size().to_dict()
    assert counts == {
        (phase, split, decoding): questions * samples
        for phase in ("base", "final")
        for split, questions in (("test", 16), ("train", 8))
        for decoding, samples in (("greedy", 1), ("sampled", 2))
    }
    chosen = frame.query("phase == 'final' and split == 'test' and decoding == 'greedy'")
    assert chosen.correct.mean() == done["final"]["test/pass_at_1"]
    assert chosen.completion.str.contains("####").any()


def test_a_done_cell_is_not_trained_again(tiny, tmp_path, shared):
    cell = tiny()
    done = run_cell(cell, tmp_path, quiet, shared)
    assert run_cell(cell, tmp_path, lambda p: pytest.fail("trained"), shared) == done


def test_more_rounds_continue_and_equal_a_longer_run(tiny, tmp_path, shared):
    run_cell(tiny(rounds=2), tmp_path / "a", quiet, shared)
    first = (tmp_path / "a" / "journal.jsonl").read_text()
    told: list[Progress] = []
    run_cell(tiny(rounds=4), tmp_path / "a", told.append, shared)
    assert [p.round for p in told] == [3, 4]
    run_cell(tiny(rounds=4), tmp_path / "b", quiet, shared)
    longer = (tmp_path / "a" / "journal.jsonl").read_text()
    assert longer.startswith(first)
    assert longer == (tmp_path / "b" / "journal.jsonl").read_text()


def test_a_new_evaluation_rescores_and_does_not_retrain(tiny, tmp_path, shared):
    run_cell(tiny(), tmp_path, quiet, shared)
    weights = (tmp_path / "checkpoint" / "000004" / "model.safetensors").read_bytes()
    before = read_lines(CellPaths(tmp_path).journal)
    cell = tiny(eval={"test_questions": 24})
    done = run_cell(cell, tmp_path, lambda p: pytest.fail("trained"), shared)
    after = read_lines(CellPaths(tmp_path).journal)
    assert done["eval_key"] == cell.eval_key
    assert weights == (tmp_path / "checkpoint" / "000004" / "model.safetensors").read_bytes()
    assert [line[outcome.REWARD] for line in after[1:]] == [
        line[outcome.REWARD] for line in before[1:]
    ]
    assert [outcome.TEST_PASS in line for line in after] == [True, False, False, False, True]
    assert after[4][outcome.TEST_PASS] == done["final"][outcome.TEST_PASS]


def test_a_new_evaluation_of_a_diverged_cell_scores_its_last_weights(tiny, tmp_path, shared):
    """Weights that broke after round 2 are scored at round 2, not as the base."""
    cell = tiny(rounds=6, lr=1e-3)
    run_cell(cell, tmp_path, quiet, shared)
    paths = CellPaths(tmp_path)
    assert checkpoint.latest(paths.checkpoint, cell.key).round == 6
    wider = tiny(rounds=6, lr=1e-3, eval={"test_questions": 64})
    done = run_cell(wider, tmp_path, quiet, shared)
    frame = pq.read_table(paths.outcomes).to_pandas()
    final = frame.query("phase == 'final' and split == 'test'")
    assert len(final) == 64 and set(final["round"]) == {6}
    assert done["final"][outcome.TEST_PASS] == final.correct.mean()
    assert done["final"][outcome.TEST_PASS] != done["base"][outcome.TEST_PASS]


def test_fewer_rounds_than_are_trained_are_refused_and_nothing_is_lost(tiny, tmp_path, shared):
    run_cell(tiny(rounds=4), tmp_path, quiet, shared)
    (tmp_path / "done.json").unlink()
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match="has trained to round 4, beyond rounds: 3"):
        run_cell(tiny(rounds=3), tmp_path, quiet, shared)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert run_cell(tiny(rounds=4), tmp_path, quiet, shared)["rounds"] == 4


@pytest.mark.parametrize("name", ["done.json", "cell.json", "provenance.json"])
def test_a_mark_that_a_crash_left_empty_is_written_again(tiny, tmp_path, shared, name):
    done = run_cell(tiny(), tmp_path, quiet, shared)
    (tmp_path / name).write_text("")
    if name != "done.json":
        (tmp_path / "done.json").unlink()
    assert run_cell(tiny(), tmp_path, quiet, shared) == done


def test_a_damaged_shared_base_evaluation_is_made_again(tiny, tmp_path):
    first = run_cell(tiny(), tmp_path / "a", quiet, tmp_path / "shared")
    (mark,) = (tmp_path / "shared").glob("*/metrics.json")
    mark.write_text("{")
    again = run_cell(tiny(seed=1), tmp_path / "b", quiet, tmp_path / "shared")
    assert again["base"] == first["base"]


def test_a_damaged_checkpoint_is_named_and_passed_over(tiny, tmp_path, shared, caplog):
    cell = tiny(rounds=6)
    run_cell(tiny(rounds=4), tmp_path / "whole", quiet, shared)
    run_cell(cell, tmp_path / "whole", quiet, shared)
    run_cell(tiny(rounds=4), tmp_path / "hurt", quiet, shared)
    folder = CellPaths(tmp_path / "hurt").checkpoint
    bad = folder / "000005"
    bad.mkdir()
    for path in (folder / "000004").iterdir():
        (bad / path.name).write_bytes(path.read_bytes()[:50])
    (bad / "state.json").write_text((folder / "000004" / "state.json").read_text())
    run_cell(cell, tmp_path / "hurt", quiet, shared)
    assert "000005 is damaged" in caplog.text
    journals = [(tmp_path / name / "journal.jsonl").read_text() for name in ("whole", "hurt")]
    assert journals[0] == journals[1]


def test_checkpoints_that_cannot_be_read_never_start_a_cell_over(tiny, tmp_path, shared):
    run_cell(tiny(), tmp_path, quiet, shared)
    (weights,) = CellPaths(tmp_path).checkpoint.glob("*/model.safetensors")
    weights.write_bytes(b"")
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(ValueError, match="no checkpoint in .* can be read; delete it"):
        run_cell(tiny(rounds=6), tmp_path, quiet, shared)
    assert weights.exists() and (tmp_path / "journal.jsonl").read_bytes() == before


def test_keep_none_leaves_no_weights_and_says_so_when_they_are_wanted(tiny, tmp_path, shared):
    cell = tiny(keep="none")
    run_cell(cell, tmp_path, quiet, shared)
    assert not CellPaths(tmp_path).checkpoint.exists()
    with pytest.raises(InputError, match="finished at round 4 and its weights were not kept"):
        run_cell(tiny(rounds=6), tmp_path, quiet, shared)
    assert read_json(tmp_path / "done.json")["rounds"] == 4


def test_two_processes_never_train_one_cell(tiny, tmp_path, shared):
    other = lease.acquire(CellPaths(tmp_path), "the cell")
    with pytest.raises(lease.Held, match="another process is training this cell"):
        run_cell(tiny(), tmp_path, quiet, shared)
    other.release()
    assert not (tmp_path / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("questions", "base", "now", "breaks"),
    [(16, 1 / 16, 0.0, False), (500, 0.5, 0.04, True), (500, 0.5, 0.05, False), (500, 0, 0, False)],
)
def test_a_fall_below_a_tenth_of_the_base_is_a_breakdown_unless_it_may_be_chance(
    tiny, tmp_path, questions, base, now, breaks
):
    cell = tiny(eval={"test_questions": questions})
    with lease.held(CellPaths(tmp_path), cell.label) as held:
        run = _Run(cell, held, quiet, tmp_path / "shared")
    run.base = Evaluated([], {outcome.TEST_PASS: base})
    assert bool(run._collapsed(Evaluated([], {outcome.TEST_PASS: now}))) is breaks


def test_a_directory_of_another_cell_is_refused(tiny, tmp_path, shared):
    run_cell(tiny(), tmp_path, quiet, shared)
    with pytest.raises(InputError, match="holds another cell .*tiny-qwen2 tiny-sums"):
        run_cell(tiny(seed=1), tmp_path, quiet, shared)


def test_the_shared_base_evaluation_equals_ones_own(tiny, tmp_path):
    run_cell(tiny(seed=0), tmp_path / "a", quiet, tmp_path / "shared")
    run_cell(tiny(seed=1), tmp_path / "b", quiet, tmp_path / "shared")
    run_cell(tiny(seed=1), tmp_path / "c", quiet)
    assert len(list((tmp_path / "shared").iterdir())) == 1
    found = (tmp_path / "b" / "journal.jsonl").read_text()
    assert found == (tmp_path / "c" / "journal.jsonl").read_text()


def test_the_same_cell_twice_is_the_same_and_another_seed_is_not(tiny, tmp_path, shared):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_cell(tiny(seed=seed, replay=2, advantage="grpo"), tmp_path / name, quiet, shared)
    journals = [(tmp_path / name / "journal.jsonl").read_text() for name in "abc"]
    assert journals[0] == journals[1] != journals[2]


def test_a_run_that_breaks_down_is_a_result(tiny, tmp_path, shared):
    done = run_cell(tiny(lr=1e6, rounds=6), tmp_path, quiet, shared)
    assert done["status"] == outcome.DIVERGED
    assert done["diverged_round"] <= 6 and done["reason"]
    assert outcome.TEST_PASS in done["final"]
    assert run_cell(tiny(lr=1e6, rounds=9), tmp_path, quiet, shared) == done
    frame = pq.read_table(CellPaths(tmp_path).outcomes).to_pandas()
    assert "base" in set(frame.phase)


def test_arms_of_a_seed_see_the_same_questions(tiny, tmp_path, shared):
    cells = {"raw": tiny(), "grpo": tiny(rollouts=2, advantage="grpo")}
    asked = {}
    for name, cell in cells.items():
        run_cell(cell, tmp_path / name, quiet, shared)
        lines = read_lines(CellPaths(tmp_path / name).samples)
        asked[name] = [line["question"] for line in lines if line["from"] == "train"]
    assert asked["raw"] == asked["grpo"]


def test_a_half_written_journal_line_is_not_a_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"round": 0}) + "\n" + '{"round": 1, "tr')
    assert read_lines(path) == [{"round": 0}]


def test_a_half_written_checkpoint_is_not_one(tiny, tmp_path, shared):
    cell = tiny()
    run_cell(cell, tmp_path, quiet, shared)
    folder = CellPaths(tmp_path).checkpoint
    (folder / ".000009").mkdir()
    (folder / "000010").mkdir()
    assert checkpoint.latest(folder, cell.key).round == 4


def test_updates_per_round_above_one(tiny, tmp_path, shared):
    done = run_cell(tiny(updates_per_round=2, batch=16), tmp_path, quiet, shared)
    assert done["updates"] == 8
    lines = read_lines(CellPaths(tmp_path).journal)
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]


def test_every_embedded_pair_learns_its_rounds(tiny, tmp_path, shared):
    for model in ("tiny-llama", "tiny-olmo2"):
        done = run_cell(
            tiny(model=model, dataset="tiny-boxed", rounds=2), tmp_path / model, quiet, shared
        )
        assert done["status"] == outcome.FINISHED


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum"])
def test_every_aggregation_trains(tiny, tmp_path, shared, aggregation):
    done = run_cell(tiny(aggregation=aggregation, rounds=1), tmp_path, quiet, shared)
    assert done["status"] == outcome.FINISHED


def test_seen_questions_are_those_that_training_drew(tiny, tmp_path, shared):
    run_cell(tiny(eval={"train_questions": 500}), tmp_path, quiet, shared)
    line = read_lines(CellPaths(tmp_path).journal)[4]
    seen, unseen = line[outcome.TRAIN_PASS_SEEN], line[outcome.TRAIN_PASS_UNSEEN]
    # 4 rounds of 8 questions of 512 were drawn; the subset of 500 holds nearly all of them
    shares = [
        s
        for s in range(20, 33)
        if abs((s * seen + (500 - s) * unseen) / 500 - line[outcome.TRAIN_PASS]) < 1e-9
    ]
    assert shares


def test_paths_are_relative_to_nothing(tiny, tmp_path, shared, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_cell(tiny(rounds=1), Path("here"), quiet, shared)
    assert (tmp_path / "here" / "done.json").exists()


def test_what_was_read_of_a_checkpoint_is_let_go_before_training(
    tiny, tmp_path, shared, monkeypatch
):
    run_cell(tiny(rounds=2), tmp_path, quiet, shared)
    read, train, seen = checkpoint._read, BanditTrainer.train, []

    def remembered(*args):
        found = read(*args)
        seen.append(weakref.ref(found))
        return found

    def trained(self):
        seen.append(seen[0]() is None)
        return train(self)

    monkeypatch.setattr(checkpoint, "_read", remembered)
    monkeypatch.setattr(BanditTrainer, "train", trained)
    run_cell(tiny(rounds=4), tmp_path, quiet, shared)
    assert seen[1:] == [True]
