"""A study that is trained while a script disturbs it: its grids, its commands, who is at work.

Everything that the script does is told with its time, in `diary.txt` and on the output.
Leaves out machines (`hosts.py`, `nodes.py`) and how studies are compared (`histories.py`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from grids.load import load_grid
from grids.outcome import LOST, PREEMPTED
from grids.paths import CellPaths, Store, StudyPaths, read_lines
from tests.integration import histories
from tests.integration.common import wait_for
from workers import lease

STUDY = "disturbed"


@dataclass(frozen=True)
class Attempt:
    """A worker that has a cell, and is training it.

    Attributes:
        rounds: lines of the cell's journal.
    """

    key: str
    holder: lease.Holder
    rounds: int

    def __str__(self) -> str:
        who = f"host {self.holder.host}, process {self.holder.pid}"
        return f"attempt {self.holder.epoch} at {self.key} ({who}, {self.rounds} rounds)"


@dataclass
class Disturbed:
    """A study, its store, and what was done to it when.

    Attributes:
        environment: of every command.
        hit: attempts that the script has ended, or made useless.
    """

    folder: Path
    environment: Mapping[str, str]
    hit: list[Attempt] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _grids: list[Path] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def study(self) -> StudyPaths:
        return self.store.study(STUDY)

    def grid(self, name: str, text: str) -> Path:
        """Write a grid of the study."""
        path = self.folder / f"{name}.yaml"
        path.write_text(f"name: {name}\nstudy: {STUDY}\n{text}", encoding="utf-8")
        self._grids.append(path)
        return path

    def cells(self) -> dict[str, CellPaths]:
        """Of all grids, by key."""
        keys = {cell.key for path in self._grids for cell in load_grid(path).cells()}
        return {key: self.study.cell(key) for key in sorted(keys)}

    def tell(self, what: object) -> None:
        line = f"{time.monotonic() - self._began:6.1f} s  {what}"
        print(line, flush=True)
        with (self.folder / "diary.txt").open("a", encoding="utf-8") as diary:
            print(line, file=diary)

    # ---- commands

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start `banditgrid WORDS`; what it prints goes to `NAME.txt`."""
        self.tell(f"banditgrid {' '.join(words)}")
        code = "from orchestrator.cli import main; main()"
        with (self.folder / f"{name}.txt").open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-c", code, *words], cwd=self.folder, env=dict(self.environment),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def end(self, name: str, process: subprocess.Popen[bytes], timeout: float) -> str:
        """Wait for a command that must come out well; what it printed."""
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        told = (self.folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        self.tell(f"{name} ended with {code}")
        assert code == 0, f"{name}: exit code {code}\n{told[-6000:]}"
        return told

    def run(self, name: str, *words: str, timeout: float = 120) -> str:
        return self.end(name, self.start(name, *words), timeout)

    def level(self, uri: str) -> None:
        """The next run: it trains nothing, and sends MLflow what it was away for."""
        words = ["--store", str(self.store.root), "--tracking-uri", uri]
        told = self.run("level", "run", *map(str, self._grids), *words)
        assert "nothing to train" in told, told

    def wait_for(self, name: str, text: str, timeout: float = 120) -> None:
        """Until a command has printed a text."""
        file = self.folder / f"{name}.txt"
        wait_for(f"{name}: {text}", lambda: text in file.read_text(errors="replace"), timeout)

    # ---- who is at work

    def at_work(self) -> list[Attempt]:
        found = []
        for key, paths in self.cells().items():
            holder = lease.read(paths)
            if holder is not None and holder.pid and not holder.released:
                found.append(Attempt(key, holder, len(read_lines(paths.journal))))
        return found

    def find(
        self, suits: Callable[[Attempt], bool] = lambda _: True, rounds: int = 3,
        timeout: float = 120,
    ) -> Attempt:  # fmt: skip
        """An attempt that has trained some rounds of its own, as soon as there is one."""

        def looked() -> Attempt | None:
            for attempt in self.unhurt():
                if suits(attempt) and attempt.rounds > (attempt.holder.from_round or 0) + rounds:
                    return attempt
            return None

        found: Attempt = wait_for("a worker that trains", looked, timeout, every=0.1)
        return found

    def unhurt(self) -> list[Attempt]:
        """Attempts at work but those that were hit, and whose lease nobody has taken over yet."""
        hit = {(attempt.key, attempt.holder.epoch) for attempt in self.hit}
        return [a for a in self.at_work() if (a.key, a.holder.epoch) not in hit]

    def strike(self, what: str, *attempts: Attempt) -> None:
        """Tell of a disturbance that these attempts do not survive."""
        self.tell(what + "".join(f"\n{'':10}hits {attempt}" for attempt in attempts))
        self.hit.extend(attempts)

    def taken_over(self, attempt: Attempt) -> bool:
        holder = lease.read(self.study.cell(attempt.key))
        return holder is not None and holder.epoch > attempt.holder.epoch


def assert_equals(study: Disturbed, whole: Disturbed, uri: str) -> None:
    """Every attempt that was hit ended so; every cell was trained by one worker at a time, is done
    once, and is what it is in a study that nobody disturbed, in the store and in MLflow."""
    for hit in study.hit:
        lines = read_lines(study.study.cell(hit.key).attempts)
        how = {line["attempt"]: line["how"] for line in lines}
        assert how.get(hit.holder.epoch) in (LOST, PREEMPTED), f"{hit}: {how}"
    for key, paths in study.cells().items():
        ended = [line["how"] for line in histories.assert_one_at_a_time(paths)]
        study.tell(f"{key}: {', '.join(ended)}")
    histories.assert_same_studies(study.study, whole.study)
    expected = histories.tracked(whole.store.tracking_uri, STUDY)
    histories.assert_same_histories(histories.tracked(uri, STUDY), expected)
