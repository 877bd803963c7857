"""pass@k from n samples a question of which c are right (Chen et al. 2021, arXiv 2107.03374).

1 - C(n-c, k) / C(n, k): the share of the k-subsets of the n samples that hold a right one, unbiased
for the probability that one of k fresh samples is right. Leaves out the plug-in 1 - (1 - c/n)^k,
which is biased, and "any of the first k", which wastes samples.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.integer]


@overload
def pass_at_k(n: int, c: int, k: int) -> float: ...
@overload
def pass_at_k(n: Counts, c: Counts, k: int | Counts) -> npt.NDArray[np.float64]: ...
def pass_at_k(n: int | Counts, c: int | Counts, k: int | Counts) -> float | npt.NDArray[np.float64]:
    """Unbiased pass@k, question by question; the arguments broadcast.

    NaN where n < k: so few samples say nothing of k. Raises `ValueError` for a count that is
    negative or no integer, for c > n and for k < 1.
    """
    n_Q, c_Q, k_Q = np.broadcast_arrays(_counts("n", n), _counts("c", c), _counts("k", k))
    if (c_Q > n_Q).any():
        raise ValueError(f"c > n: got c = {c_Q[c_Q > n_Q][0]} right of n = {n_Q[c_Q > n_Q][0]}")
    if (k_Q < 1).any():
        raise ValueError(f"k: got {k_Q.min()}; expected at least 1")
    enough_Q = n_Q >= k_Q
    missed_Q = np.ones(n_Q.shape)  # C(n-c, k) / C(n, k), factor by factor: exact zeros, no overflow
    for j in range(int(np.where(enough_Q, k_Q, 0).max(initial=0))):
        factor_Q = np.maximum(n_Q - c_Q - j, 0) / np.maximum(n_Q - j, 1)
        missed_Q = np.where(j < k_Q, missed_Q * factor_Q, missed_Q)
    result_Q = np.where(enough_Q, 1.0 - missed_Q, np.nan)
    return float(result_Q) if result_Q.ndim == 0 else result_Q


def _counts(name: str, value: int | Counts) -> npt.NDArray[np.int64]:
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: got {value!r}; expected whole numbers")
    if (array < 0).any():
        raise ValueError(f"{name}: got {array.min()}; expected no negative count")
    return array.astype(np.int64)
