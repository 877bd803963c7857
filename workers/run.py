"""run_cell: one cell -> one trained policy and its outcomes. The only door to the workers.

May be stopped anywhere and called again: it goes on from its checkpoint, and the journal and the
weights come out as those of an uninterrupted run. Leaves out scheduling and MLflow.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from grids import outcome
from grids.cell import Cell
from grids.outcome import Progress
from grids.paths import CellPaths
from workers import checkpoint, claim, ranks, warm
from workers.data import Questions
from workers.evaluate import Evaluated, Rows
from workers.journal import Journal, is_evaluation, write_outcomes
from workers.lease import Lease, held
from workers.models import Policy, check_context
from workers.provenance import provenance
from workers.scores import Scores
from workers.trainer import BanditTrainer

# A checkpoint is due when the last is this old, and so old that writing them takes no larger share
# of the time than this: at most so much work is ever repeated.
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 0.05
# A Pass@1 below this share of its base is a breakdown, and ends a run: the one way in which an
# evaluation can touch training. With fewer right answers than this at the base, it may be chance.
COLLAPSE = 0.1
COLLAPSE_FROM = 20
# Mean |log p of the engine - log p of the trainer| of a round's tokens, nats, above which the
# rollouts are no longer those of the policy that is trained, and a person is told.
GAP_WARNING = {"fp32": 1e-3, "bf16": 0.05}
# Answers kept for people to read at each evaluation.
SHOWN = 4

logger = logging.getLogger(__name__)

Report = Callable[[Progress], bool | None]


def run_cell(
    cell: Cell, directory: Path, report: Report, shared: Path | None = None,
    lease: Lease | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Train and evaluate a cell, or go on with it, or do nothing where it is done.

    Args:
        cell: what to train.
        directory: the cell's own; `grids.outcome` names its files.
        report: called after each round's journal line is on disk; where it answers True, the cell
            saves a checkpoint and is left.
        shared: folder of base evaluations that cells share; None: this cell's alone.
        lease: the caller's, on this directory; None: one is taken and released here.

    Returns:
        The content of done.json; None where the cell was left before its end.

    Raises:
        InputError: for what a person can mend (no such model, wrong columns, ...). `Held`, one of
            them, where another worker has the cell.
        Lost: another worker took the cell over; nothing was written after that.
    """
    paths = CellPaths(Path(directory))
    if lease is None:
        if (mark := claim.done(cell, paths)) is not None and claim.is_tidy(cell, paths):
            return mark
        with held(paths, cell.label) as own:
            return run_cell(cell, directory, report, shared, own)
    if (mark := claim.done(cell, paths)) is not None:
        claim.leave(cell, lease)  # where a kill came between the mark and this
        return mark
    claim.take(cell, lease)
    shared = shared or paths.directory / "shared"
    if cell.processes > 1:
        from workers.crew import train

        return train(cell, lease, report, shared)
    return attempt(cell, lease, report, shared)


def attempt(
    cell: Cell, lease: Lease | ranks.Lent, report: Report, shared: Path
) -> dict[str, Any] | None:
    """`run_cell` in a process that trains, or helps to, under a lease that is taken."""
    transformers_logging.disable_progress_bar()
    return _Run(cell, lease, report, shared).go()


class _Run:
    """One attempt at a cell."""

    def __init__(self, cell: Cell, lease: Lease | ranks.Lent, report: Report, shared: Path) -> None:
        self.cell, self.lease, self.report = cell, lease, report
        self.paths = lease.paths
        self.journal = Journal(lease)
        self.policy: Policy = warm.policy(cell)
        check_context(cell, self.policy.folder)
        self.questions: Questions = warm.questions(cell, self.policy)
        self.engine = ranks.sharing(warm.engine(cell, self.policy))
        self.scores = Scores(cell, self.questions, self.engine, lease, shared)
        self.start = 0
        self.save_seconds = 0.0
        self.last: Evaluated | None = None
        self.diverged: tuple[int, str] | None = None
        self.left = False
        self.asked_to_leave = False
        self.warned = False
        found = provenance(self.questions.notes) | {"attempt": lease.epoch}
        lease.write_json(self.paths.provenance, found)

    def go(self) -> dict[str, Any] | None:
        """Base evaluation, the rounds that are left, final evaluation, done.json."""
        self.base = self.scores.base()
        found = checkpoint.agreed(self.paths.checkpoint, self.cell.key)
        self.start = found.round if found else 0
        claim.refuse_a_shorter_run(self.cell, self.paths, self.start)
        self.journal.cut_back(self.start if found else -1)
        checkpoint.prune(self.lease, checkpoint.KEPT, after=self.start)
        with TemporaryDirectory(dir=self.lease.folder, ignore_cleanup_errors=True) as scratch:
            trainer = self._trainer(found, scratch)
            del found  # weights and moments in this machine's memory
            self._begin(trainer)
            self._catch_up()
            self.left = self.asked_to_leave and self.start < self.cell.rounds
            if self.start < self.cell.rounds and not self.left:
                trainer.train()
        return None if self.left else self._finish()

    def _trainer(self, found: checkpoint.Checkpoint | None, scratch: str) -> BanditTrainer:
        trainer = BanditTrainer(
            self.cell, self.policy, self.engine, self.questions.train, self.start, scratch
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_EachRound(self, trainer))
        if found is not None:
            trainer.create_optimizer()
            checkpoint.restore(found, self.policy.model, trainer.optimizer)
            trainer.recall(found.memory)
        self.saved_at, self.began = time.monotonic(), time.monotonic()
        return trainer

    def _begin(self, trainer: BanditTrainer) -> None:
        """The line of round 0; before it, what must be drawn from the base beforehand."""
        if lines := self.journal.rounds():
            if outcome.TEST_PASS not in lines[0]:
                self.journal.score(0, self.base.metrics)
            return
        cost: dict[str, float] = {}
        fill = self.cell.replay > 0 and self.cell.replay_fill == "base"
        if fill:
            cost = trainer.fill_replay()
            trainer.create_optimizer()
        self._write_line(0, self.base.metrics | cost, None)
        if fill:
            self._save(trainer, 0, due=True)

    def _catch_up(self) -> None:
        """Score the weights that training goes on from, where they are due and are not scored.

        So a new evaluation scores what is kept, and a longer run what was the end of a shorter.
        """
        due = self.start == self.cell.rounds or self.start % self.cell.eval.every == 0
        line = self.journal.rounds()[-1]
        if self.start and due and outcome.TEST_PASS not in line:
            self.last = self._due_evaluation(self.start, self.start == self.cell.rounds)
            self._write_outcomes(self.last)
            self.journal.score(self.start, self.last.metrics)  # last: it says that both are there

    # ---- evaluations

    def _write_outcomes(self, last: Evaluated | None) -> None:
        """The base's answers and the newest."""
        rows = self.base.rows + (last.rows if last else [])
        self.lease.make(self.paths.outcomes, lambda made: write_outcomes(made, rows))

    # ---- rounds

    def after_round(self, trainer: BanditTrainer) -> bool:
        """Evaluate, write, report and save what is due; False where training must stop."""
        made, began = trainer.round, time.perf_counter()
        made.settle()
        metrics = dict(made.metrics)
        broken = _not_finite(metrics)
        last = made.number == self.cell.rounds
        due = not broken and (last or made.number % self.cell.eval.every == 0)
        if due:
            self.last = self._due_evaluation(made.number, last)
            metrics |= self.last.metrics
            broken = self._collapsed(self.last)
            self._write_outcomes(self.last)
            self._show(made.number, made.rollouts)
        made.seconds["evaluate"] = time.perf_counter() - began
        self._write_line(made.number, metrics, trainer)
        if broken:
            self.diverged = (made.number, broken)
            return False
        self._warn_of_gap(made.number, metrics.get(outcome.ENGINE_GAP, 0.0))
        self.left = self.asked_to_leave and not last
        self._save(trainer, made.number, due or self.left)
        return not self.left

    def _warn_of_gap(self, round: int, gap: float) -> None:
        if not gap <= GAP_WARNING[self.cell.precision] and not self.warned:  # NaN is wide
            self.warned = True
            logger.warning(
                "%s: in round %d the engine's log-probabilities lay %.4f nats a token from the "
                "trainer's, more than %g: what is learned is not quite what was drawn. See "
                "%s of every round; importance_correction: true weighs the tokens, precision: "
                "fp32 or engine: transformers ends the gap",
                self.cell.label, round, gap, GAP_WARNING[self.cell.precision], outcome.ENGINE_GAP,
            )  # fmt: skip

    def _due_evaluation(self, round: int, last: bool) -> Evaluated:
        return self.scores.final(round) if last else self.scores.greedy(round)

    def _collapsed(self, evaluated: Evaluated) -> str:
        """Why a Pass@1 is a breakdown, or nothing; with a base near zero it cannot be told."""
        held_out = self.questions.val  # a search reads a breakdown: it must not come from the test
        metric = outcome.VAL_PASS if held_out else outcome.TEST_PASS
        now, base = evaluated.metrics[metric], self.base.metrics[metric]
        asked = len(held_out or self.questions.test)
        if base * asked < COLLAPSE_FROM or now >= COLLAPSE * base:
            return ""
        return f"{metric.split('/')[0]} Pass@1 {now:.3f} fell below a tenth of its base {base:.3f}"

    def _write_line(
        self, round: int, metrics: dict[str, float], trainer: BanditTrainer | None
    ) -> None:
        line = self.journal.write(round, metrics)
        if trainer is not None:
            self.journal.time(round, trainer.round.seconds, self.lease.epoch)
        progress = Progress(round, self.cell.rounds, line, self._seconds_left(round))
        self.asked_to_leave |= bool(ranks.told(lambda: self.report(progress)))

    def _seconds_left(self, round: int) -> float | None:
        made = round - self.start
        if made <= 0:
            return None
        return (time.monotonic() - self.began) / made * (self.cell.rounds - round)

    def _save(self, trainer: BanditTrainer, round: int, due: bool) -> None:
        began = time.monotonic()
        wait = max(CHECKPOINT_SECONDS, self.save_seconds / CHECKPOINT_SHARE)
        if ranks.told(lambda: due or began - self.saved_at > wait):
            memory = trainer.memory()
            model, optimizer = self.policy.model, trainer.optimizer
            checkpoint.save(self.lease, round, self.cell.key, model, optimizer, memory)
            self.saved_at = time.monotonic()
            self.save_seconds = self.saved_at - began

    def _show(self, round: int, rollouts: list[dict[str, Any]]) -> None:
        texts = {q.id: q for q in self.questions.test}
        rows: Rows = self.last.rows if self.last else []
        tests = [row for row in rows if row["split"] == "test"][:SHOWN]
        self.journal.show({"round": round, "from": "train"} | made for made in rollouts)
        self.journal.show(
            {
                "round": round, "from": "test", "question": texts[row["question"]].text,
                "gold": texts[row["question"]].gold, "completion": row["completion"],
                "correct": row["correct"], "truncated": row["truncated"],
            }
            for row in tests
        )  # fmt: skip

    # ---- the end

    def _finish(self) -> dict[str, Any]:
        lines = self.journal.rounds()
        evaluated = [line for line in lines if outcome.TEST_PASS in line]
        if not self.paths.outcomes.exists():  # it broke down before its first evaluation
            self._write_outcomes(None)
        done = {
            "key": self.cell.key,
            "eval_key": self.cell.eval_key,
            "rounds": self.cell.rounds,
            "status": outcome.DIVERGED if self.diverged else outcome.FINISHED,
            "diverged_round": self.diverged[0] if self.diverged else None,
            "reason": self.diverged[1] if self.diverged else None,
            "base": self.base.metrics,
            "final": {k: v for k, v in evaluated[-1].items() if is_evaluation(k)},
            "generated_tokens": int(sum(line.get(outcome.GENERATED_TOKENS, 0) for line in lines)),
            "updates": int(sum(line.get(outcome.UPDATES, 0) for line in lines)),
            "notes": list(self.questions.notes),
        }
        self.lease.write_json(self.paths.done, done)
        claim.leave(self.cell, self.lease)
        return done


class _EachRound(TrainerCallback):
    """Tells a run when the last update of a round is made, and how long updates took."""

    def __init__(self, run: _Run, trainer: BanditTrainer) -> None:
        self.run, self.trainer = run, trainer
        self.began = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self.trainer.update_began
        self.trainer.round.seconds["update"] += seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step % self.run.cell.updates_per_round == 0:
            now = time.perf_counter()
            self.trainer.round.seconds["all"] = now - self.began
            control.should_training_stop |= not self.run.after_round(self.trainer)
            self.began = time.perf_counter()
        return control


def _not_finite(metrics: dict[str, float]) -> str:
    broken = [n for n in (outcome.LOSS, outcome.GRAD_NORM) if not math.isfinite(metrics.get(n, 0))]
    return f"{' and '.join(broken)} not finite" if broken else ""
