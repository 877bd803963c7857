"""What noise alone says: contrasts between seeds of one and the same arm, on real training.

`python -m tests.benchmarks.aa` trains `aa.yaml` (one arm, twenty seeds, six embedded pairs; into
./bench) and compares random fives of its seeds: no true difference, so at most about 5 in 100 may
say better or worse. It also prints each pair's spread over seeds. Random
splits share seeds, so that their shares have less information than as many separate contrasts: the
splits within one draw are disjoint, and the printed error is that of the draws.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from analysis.contrasts import compare
from analysis.sources import StoreSource
from analysis.study import Study
from grids import load_grid
from grids.paths import Store
from tests.benchmarks.bench import COMMAND
from tests.benchmarks.told import HERE, ROOT

DRAWS = 30  # of all twenty seeds into four groups of five: two contrasts each
GROUP = 5


def main(store: Path) -> None:
    """Tell it, pair by pair."""
    grid = load_grid(HERE / "aa.yaml")
    study = Study(StoreSource(Store(store).study(grid.study)))
    pairs: dict[tuple[str, str], list[int]] = {}
    for cell in grid.cells():
        pairs.setdefault((cell.model, cell.dataset), []).append(cell.seed)
    print(f"{'pair':24} seeds  Pass@1  sd over seeds [95%]       better or worse of")
    said_in_all, made_in_all = 0, 0
    for (model, dataset), seeds in pairs.items():
        arm = study.outcomes(model=model, dataset=dataset)
        if len(arm.seeds) < len(seeds):
            print(f"{model} {dataset}: {len(arm.seeds)} of {len(seeds)} seeds have answers")
        said, made = contrasts(arm.means_S_Q, np.random.default_rng(0))
        said_in_all, made_in_all = said_in_all + said, made_in_all + made
        finals_S = arm.means_S_Q.mean(axis=1)
        print(
            f"{model + ' ' + dataset:24} {len(finals_S):5}  {finals_S.mean():.3f}   "
            f"{told_sd(finals_S)}    {said:3} of {made}"
        )
    error = math.sqrt(0.05 * 0.95 / made_in_all)
    print(
        f"in all {said_in_all} of {made_in_all}: {said_in_all / made_in_all:.3f}; nominal 0.05, "
        f"its standard error over as many separate contrasts {error:.3f}"
    )


def contrasts(means_S_Q: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """How many say better or worse, of how many."""
    verdicts = []
    for _ in range(DRAWS):
        order = rng.permutation(len(means_S_Q))
        groups = [order[i : i + GROUP] for i in range(0, len(order) - GROUP + 1, GROUP)]
        for a, b in zip(groups[::2], groups[1::2], strict=True):
            verdicts.append(compare(means_S_Q[a], means_S_Q[b]).verdict)
    return sum(v in ("better", "worse") for v in verdicts), len(verdicts)


def told_sd(values: np.ndarray) -> str:
    """`0.0123 [0.0094, 0.0180]`: the interval is that of a normal sample."""
    df, sd = len(values) - 1, float(np.std(values, ddof=1))
    low, high = (sd * math.sqrt(df / stats.chi2.ppf(p, df)) for p in (0.975, 0.025))
    return f"{sd:.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench"
    if len(sys.argv) < 2:
        words = [COMMAND, "run", str(HERE / "aa.yaml"), "--store", str(where)]
        subprocess.run(words, check=True, cwd=ROOT)
    main(where)
