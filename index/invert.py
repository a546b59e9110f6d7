"""Inverted lists: from documents to postings by term, and to the quantized lists that are searched.

Nothing is sorted twice and no copy of the postings is made: terms are counted, the layout of the lists
follows from the counts, and the postings go from the forward index straight to their places.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lsr.index import build_kernels
from lsr.index.segment import (
    DENSE_LIST,
    SHORT,
    SHORT_LIST,
    WINDOWED_LIST,
    Array,
    Forward,
    Lists,
    bits_of,
    frozen,
    n_windows,
    padded,
)

#: Does a task for each number below n, several at a time; the name is for people (`build.Threads`).
OverThreads = Callable[[Callable[[int], None], int, str], None]

#: Bytes that a posting of each kind of list takes (a dense list: a document), and a pointer to a window.
SHORT_POSTING, WINDOWED_POSTING, POINTER = 5, 3, 8


class Counted(NamedTuple):
    """What the first pass over the documents finds.

    bounds: the rows' ranges, which begin at each and end at the next; terms int64: the sorted used terms;
    counts int32 (ranges, lists): postings; largest float32 (lists): weight.
    """

    bounds: list[int]
    terms: Array
    counts: Array
    largest: Array

    @property
    def lengths(self) -> Array:
        """Postings by list, int64."""
        lengths: Array = self.counts.sum(axis=0, dtype=np.int64)
        return lengths


class Layout(NamedTuple):
    """Which kind each list is of and where it has its place, as `Lists`; begin int64: its first posting."""

    length: Array
    kind: Array
    place: Array
    begin: Array


def count(forward: Forward, vocabulary_size: int, n_ranges: int, over_threads: OverThreads) -> Counted:
    """Count the postings of each term in each range of rows."""
    forward = bits_of(forward)
    n_documents = len(forward.ptr) - 1
    ends = np.arange(1, n_ranges) * int(forward.ptr[-1]) // n_ranges
    bounds = [0, *np.searchsorted(forward.ptr, ends).tolist(), n_documents]
    counts = np.zeros((n_ranges, vocabulary_size), dtype=np.int32)
    largest = np.zeros((n_ranges, vocabulary_size), dtype=np.float32)

    def work(i: int) -> None:
        build_kernels.count_terms(bounds[i], bounds[i + 1], *forward, counts[i], largest[i])

    over_threads(work, n_ranges, "counting terms")
    terms = np.flatnonzero(counts.any(axis=0))
    return Counted(bounds, terms, counts[:, terms], largest[:, terms].max(axis=0))


def merged(counted: Counted) -> Counted:
    """The counts of all rows as one range."""
    return counted._replace(
        bounds=[0, counted.bounds[-1]], counts=counted.counts.sum(axis=0, keepdims=True, dtype=np.int32)
    )


def lay_out(lengths: Array, n_documents: int, dense_share: float) -> Layout:
    """The kinds and places of lists of so many postings, one kind after the other and in their order."""
    windows = n_windows(n_documents)
    kind = np.full(len(lengths), WINDOWED_LIST, dtype=np.uint8)
    if windows > 1:  # in a single window, 16 bits name every document
        kind[lengths < SHORT * windows] = SHORT_LIST
    kind[lengths >= dense_share * n_documents] = DENSE_LIST
    room = np.select([kind == DENSE_LIST, kind == WINDOWED_LIST], [padded(n_documents), windows + 1], lengths)
    place = np.zeros(len(lengths), dtype=np.int64)
    begin = np.zeros(len(lengths), dtype=np.int64)
    for each in (SHORT_LIST, WINDOWED_LIST, DENSE_LIST):
        chosen = kind == each
        place[chosen] = np.cumsum(room[chosen]) - room[chosen]
        begin[chosen] = np.cumsum(lengths[chosen]) - lengths[chosen]
    return Layout(lengths.astype(np.int32), kind, place, begin)


def list_bytes(layout: Layout, n_documents: int) -> Array:
    """Bytes of each list's own arrays, int64: codes, rows and pointers."""
    length = layout.length.astype(np.int64)
    windowed = WINDOWED_POSTING * length + POINTER * (n_windows(n_documents) + 1)
    of_kind = [layout.kind == DENSE_LIST, layout.kind == WINDOWED_LIST]
    return np.select(of_kind, [padded(n_documents), windowed], SHORT_POSTING * length)


def parts_of(sizes: Array, room: int | None) -> list[slice]:
    """Lists of so many bytes cut into parts of at most ``room`` bytes (None: one part); none is split."""
    n_lists = len(sizes)
    if room is None or n_lists == 0:
        return [slice(0, n_lists)]
    taken = np.concatenate([[0], np.cumsum(sizes)])
    bounds = [0]
    while bounds[-1] < n_lists:
        fitting = int(np.searchsorted(taken, taken[bounds[-1]] + room, side="right")) - 1
        bounds.append(max(bounds[-1] + 1, fitting))
    return [slice(first, last) for first, last in pairwise(bounds)]


def quantize_lists(
    forward: Forward, vocabulary_size: int, counted: Counted, dense_share: float, room: int | None,
    over_threads: OverThreads,
) -> Iterator[Lists]:  # fmt: skip
    """Quantize the postings, and lay each list out as its length asks for.

    Args:
        forward: the documents.
        vocabulary_size: columns of their vectors.
        counted: of these documents.
        dense_share: `BuildOptions.dense_share`.
        room: bytes that the lists of one part may take; None for a single part.
        over_threads: runs a task for each range of rows.

    Yields:
        The lists part by part: the parts' arrays, one after the other, are those of all lists.
    """
    n_documents = len(forward.ptr) - 1
    forward = bits_of(forward)
    whole = lay_out(counted.lengths, n_documents, dense_share)
    for part in parts_of(list_bytes(whole, n_documents), room):
        counts = counted.counts[:, part]
        here = lay_out(counts.sum(axis=0, dtype=np.int64), n_documents, dense_share)
        lists = _empty_lists(counted.terms[part], steps_of(counted.largest[part]), here, n_documents)
        cursors = here.begin + np.cumsum(counts, axis=0, dtype=np.int64) - counts
        _fill(lists, forward, vocabulary_size, counted.bounds, cursors, over_threads)
        lists.place[:] = whole.place[part]
        windowed = np.flatnonzero(here.kind == WINDOWED_LIST)
        if len(windowed):
            lists.window_ptr[:] += whole.begin[part][windowed[0]]
        yield Lists(*(frozen(array) for array in lists))


def _fill(
    lists: Lists, forward: Forward, vocabulary_size: int, bounds: list[int], cursors: Array,
    over_threads: OverThreads,
) -> None:  # fmt: skip
    list_of = numbered(lists.terms, vocabulary_size)

    def work(i: int) -> None:
        build_kernels.fill_lists(
            bounds[i], bounds[i + 1], *forward, list_of, cursors[i],
            lists.step, lists.kind, lists.place, *lists[5:],
        )  # fmt: skip

    over_threads(work, len(bounds) - 1, "building lists")


def _empty_lists(terms: Array, step: Array, layout: Layout, n_documents: int) -> Lists:
    """Lists with room for their postings, and the ends of their last windows."""
    length, kind, place, begin = layout
    n_short, n_windowed = (int(length[kind == each].sum(dtype=np.int64)) for each in (SHORT_LIST, WINDOWED_LIST))
    of_windows = kind == WINDOWED_LIST
    windows = n_windows(n_documents)
    window_ptr = np.zeros((windows + 1) * np.count_nonzero(of_windows), dtype=np.int64)
    window_ptr[place[of_windows] + windows] = begin[of_windows] + length[of_windows]
    return Lists(
        terms, step, length, kind, place,
        np.zeros(padded(n_documents) * np.count_nonzero(kind == DENSE_LIST), dtype=np.uint8),
        window_ptr,
        np.empty(n_windowed, dtype=np.uint16), np.empty(n_windowed, dtype=np.uint8),
        np.empty(n_short, dtype=np.uint32), np.empty(n_short, dtype=np.uint8),
    )  # fmt: skip


def numbered(terms: Array, vocabulary_size: int) -> Array:
    """Each term's number among ``terms``, -1 for one that is not there: int32 (vocabulary)."""
    list_of = np.full(vocabulary_size, -1, dtype=np.int32)
    list_of[terms] = np.arange(len(terms), dtype=np.int32)
    return list_of


def steps_of(largest: Array) -> Array:
    """The smallest float32 of each list with 255 * step not below its largest weight, in exact arithmetic."""
    step = (largest.astype(np.float64) / 255).astype(np.float32)
    return np.where(255 * step.astype(np.float64) < largest, np.nextafter(step, np.float32(np.inf)), step)


def one_by_one(work: Callable[[int], None], n_tasks: int, what: str) -> None:
    """`OverThreads` without threads."""
    for task in range(n_tasks):
        work(task)
