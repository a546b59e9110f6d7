"""Static pruning: which postings Seismic's lists keep."""

import numpy as np
from numpy.typing import NDArray

from lsr.index.invert import Inverted

#: As a mean per list, so many postings stay whatever their share: short lists are cheap.
LEAST_POSTINGS = 100


def prune(
    lists: Inverted, n_postings: int | None, max_fraction: float, posting_share: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Keep the ``n_postings · number of lists`` largest postings of the whole index, capped per list.

    Fewer where ``posting_share`` of all postings are fewer, but not below `LEAST_POSTINGS` as a mean.

    Equal weights are kept in the order of list, then row. No list keeps more than ``n_postings ·
    max_fraction`` of them, its largest.

    Returns:
        (ptr int64, rows int32) of the pruned lists; rows ascend within a list.
    """
    if n_postings is None:
        return lists.ptr, lists.rows
    wanted = max(int(posting_share * len(lists.weights)), LEAST_POSTINGS * len(lists.terms))
    kept = _largest(lists.weights, min(wanted, n_postings * len(lists.terms)))
    cap = max(1, int(n_postings * max_fraction))
    counts = np.add.reduceat(kept, lists.ptr[:-1], dtype=np.int64) if len(kept) else np.zeros(0, np.int64)
    for listed in np.flatnonzero(counts > cap):
        part = slice(lists.ptr[listed], lists.ptr[listed + 1])
        inside = np.flatnonzero(kept[part])
        kept[part] = False
        kept[lists.ptr[listed] + inside[_largest(lists.weights[part][inside], cap)]] = True
        counts[listed] = cap
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), lists.rows[kept]


def _largest(weights: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Mask of the ``count`` largest weights; of equal ones, the first."""
    if count >= len(weights):
        return np.ones(len(weights), dtype=np.bool_)
    threshold = np.partition(weights, len(weights) - count)[len(weights) - count]
    mask: NDArray[np.bool_] = weights > threshold
    mask[np.flatnonzero(weights == threshold)[: count - np.count_nonzero(mask)]] = True
    return mask
