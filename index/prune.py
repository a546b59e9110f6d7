"""Static pruning: which postings Seismic's blocks keep. They are chosen without a copy of all postings: the weights are
counted to find the least one that stays, and those that stay are then collected, as many lists at a time as are wanted.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsr.index import build_kernels
from lsr.index.invert import Counted, OverThreads, numbered, parts_of
from lsr.index.options import BuildOptions
from lsr.index.segment import Array, Forward

#: As a mean per list, so many postings stay whatever their share: short lists are cheap.
LEAST_POSTINGS = 100

#: Values of half of a float32's bits.
HALF = 2**16

#: Bytes that a kept posting takes while its list is pruned and clustered.
KEPT_POSTING = 32


class Kept(NamedTuple):
    """Which postings stay: those above ``threshold``, of those at it the first in the order of list, then row, and of
    these at most the ``most`` largest of a list.

    bounds: the rows' ranges, as `Counted`; threshold: float32; counts int32 (ranges, lists): postings that stay,
    before lists are cut to ``most``; ties int32 (ranges, lists): those of them at the threshold; beside int64 (lists):
    so many terms, at most, have the documents of a list's postings together; most: None for any number.
    """

    bounds: list[int]
    threshold: np.float32
    counts: Array
    ties: Array
    beside: Array
    most: int | None

    @property
    def lengths(self) -> Array:
        """Postings of each list that are collected, int64."""
        lengths: Array = self.counts.sum(axis=0, dtype=np.int64)
        return lengths


def choose(
    forward: Forward, vocabulary_size: int, counted: Counted, options: BuildOptions, over_threads: OverThreads
) -> Kept:
    """Keep the ``n_postings · number of lists`` largest postings of the whole index.

    Fewer where ``posting_share`` of all postings are fewer, but not below `LEAST_POSTINGS` as a mean. No list keeps
    more than ``n_postings · max_fraction``, its largest. Of equal weights, the first in the order of list, then row,
    stay.

    Args:
        forward: the documents, 16-bit weights as their bits (`bits_of`).
        vocabulary_size: columns of their vectors.
        counted: of these documents.
        options: n_postings, max_fraction, posting_share.
        over_threads: runs a task for each range of rows.
    """
    n_ranges, n_lists = counted.counts.shape
    n_postings = len(forward.terms)
    threshold, room, most = np.float32(0), 0, None
    if options.n_postings is not None:
        least = max(int(options.posting_share * n_postings), LEAST_POSTINGS * n_lists)
        wanted = min(least, options.n_postings * n_lists)
        most = max(1, int(options.n_postings * options.max_fraction))
        if wanted < n_postings:
            threshold, room = _threshold(forward.weights, wanted, n_ranges, over_threads)
    above, equal = np.zeros((n_ranges, n_lists), np.int32), np.zeros((n_ranges, n_lists), np.int32)
    beside = np.zeros((n_ranges, n_lists), np.int64)
    list_of = numbered(counted.terms, vocabulary_size)

    def work(i: int) -> None:
        build_kernels.count_kept(
            counted.bounds[i], counted.bounds[i + 1], *forward, list_of, threshold, above[i], equal[i], beside[i]
        )

    over_threads(work, n_ranges, "pruning")
    together = beside.sum(axis=0)
    if most is not None:
        together = np.minimum(together, most * longest_document(forward.ptr))
    ties = _first(equal, room)
    return Kept(counted.bounds, threshold, above + ties, ties, together, most)


def longest_document(ptr: Array) -> int:
    """Terms of the longest document, looked for in as many at a time as `HALF`."""
    return max((int(np.diff(ptr[i : i + HALF + 1]).max()) for i in range(0, len(ptr) - 1, HALF)), default=0)


def _threshold(weights: Array, wanted: int, n_ranges: int, over_threads: OverThreads) -> tuple[np.float32, int]:
    """The ``wanted``-th largest weight, and how many of those that equal it are among so many."""
    bits, left = -1, wanted
    for _ in range(2):  # the upper half of the bits, then the lower
        bits, left = _nth_bits(weights, bits, left, n_ranges, over_threads)
    return np.uint32(bits).view(np.float32), left


def _nth_bits(weights: Array, upper: int, wanted: int, n_ranges: int, over_threads: OverThreads) -> tuple[int, int]:
    """The bits of the ``wanted``-th largest weight, one half more than given, and how many of these bits are wanted."""
    counts = np.zeros((n_ranges, HALF), dtype=np.int64)
    bounds = [len(weights) * i // n_ranges for i in range(n_ranges + 1)]

    def work(i: int) -> None:
        build_kernels.count_bits(bounds[i], bounds[i + 1], weights, upper, counts[i])

    over_threads(work, n_ranges, "counting weights")
    downwards = np.cumsum(counts.sum(axis=0)[::-1])
    at = int(np.searchsorted(downwards, wanted))
    before = int(downwards[at - 1]) if at else 0
    return max(upper, 0) * HALF + HALF - 1 - at, wanted - before


def _first(counts: NDArray[np.int32], room: int) -> NDArray[np.int32]:
    """How many of each range's and list's postings are among the first ``room``, by list, then range."""
    by_list = counts.T.ravel().astype(np.int64)
    before = np.cumsum(by_list) - by_list
    taken: NDArray[np.int32] = np.clip(room - before, 0, by_list).astype(np.int32).reshape(counts.T.shape).T
    return np.ascontiguousarray(taken)


def collect(
    forward: Forward, vocabulary_size: int, counted: Counted, kept: Kept, room: int | None, over_threads: OverThreads
) -> Iterator[tuple[slice, Array, Array]]:
    """The kept postings part by part, in at most ``room`` bytes, where each list has `KEPT_POSTING` a posting.

    Yields:
        (lists, ptr int64, rows int32) of the lists of a part; rows ascend within a list.
    """
    for part in parts_of(KEPT_POSTING * kept.lengths, room):
        counts = kept.counts[:, part]
        ptr = np.concatenate([[0], np.cumsum(counts.sum(axis=0, dtype=np.int64))])
        cursors = ptr[:-1] + np.cumsum(counts, axis=0, dtype=np.int64) - counts
        ties = np.ascontiguousarray(kept.ties[:, part])
        rows, weights = np.empty(ptr[-1], dtype=np.int32), np.empty(ptr[-1], dtype=np.float32)
        list_of = numbered(counted.terms[part], vocabulary_size)
        _fill(forward, kept, list_of, ties, cursors, rows, weights, over_threads)
        yield part, *_capped(ptr, rows, weights, kept.most)


def _fill(
    forward: Forward, kept: Kept, list_of: Array, ties: Array, cursors: Array, rows: Array, weights: Array,
    over_threads: OverThreads,
) -> None:  # fmt: skip
    def work(i: int) -> None:
        build_kernels.fill_kept(
            kept.bounds[i], kept.bounds[i + 1], *forward, list_of, kept.threshold, ties[i].copy(), cursors[i],
            rows, weights,
        )  # fmt: skip

    over_threads(work, len(kept.bounds) - 1, "inverting")


def _capped(ptr: Array, rows: Array, weights: Array, most: int | None) -> tuple[Array, Array]:
    """The lists with at most their ``most`` largest postings."""
    lengths = np.diff(ptr)
    if most is None or not (lengths > most).any():
        return ptr, rows
    stays = np.ones(len(rows), dtype=np.bool_)
    for listed in np.flatnonzero(lengths > most):
        part = slice(ptr[listed], ptr[listed + 1])
        stays[part] = _largest(weights[part], most)
    return np.concatenate([[0], np.cumsum(np.minimum(lengths, most))]), rows[stays]


def _largest(weights: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Mask of the ``count`` largest of more weights; of equal ones, the first."""
    threshold = np.partition(weights, len(weights) - count)[len(weights) - count]
    mask: NDArray[np.bool_] = weights > threshold
    mask[np.flatnonzero(weights == threshold)[: count - np.count_nonzero(mask)]] = True
    return mask
