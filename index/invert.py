"""Inverted lists: from documents to postings by term, and to the quantized lists that are searched."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from lsr.index import build_kernels
from lsr.index.segment import DENSE_LIST, SHORT, SHORT_LIST, WINDOWED_LIST, Array, Lists, frozen, n_windows, padded

#: Runs work over ranges of lists, given by the lists' offsets: `build.in_parallel`.
OverLists = Callable[[Callable[[int, int], None], Array], None]


class Inverted(NamedTuple):
    """Postings by term, as the build needs them.

    terms int64: the sorted used terms; ptr int64 (lists + 1); rows int32, ascending within a list;
    weights float32.
    """

    terms: Array
    ptr: Array
    rows: Array
    weights: Array


def invert(vectors: csr_array) -> Inverted:
    """Sort the postings by term; within a list, rows ascend."""
    by_term = vectors.tocsc()
    lengths = np.diff(by_term.indptr)
    used = np.flatnonzero(lengths)
    ptr = np.concatenate([[0], np.cumsum(lengths[used])]).astype(np.int64)
    return Inverted(used.astype(np.int64), ptr, by_term.indices.astype(np.int32, copy=False), by_term.data)


def quantize_lists(inverted: Inverted, n_documents: int, dense_share: float, over_lists: OverLists) -> Lists:
    """Quantize the postings and lay each list out as its length asks for."""
    n_lists = len(inverted.terms)
    windows = n_windows(n_documents)
    length = np.diff(inverted.ptr)
    kind = np.full(n_lists, WINDOWED_LIST, dtype=np.uint8)
    if windows > 1:  # in a single window, 16 bits name every document
        kind[length < SHORT * windows] = SHORT_LIST
    kind[length >= dense_share * n_documents] = DENSE_LIST
    room = np.select(
        [kind == DENSE_LIST, kind == WINDOWED_LIST], [padded(n_documents), windows + 1], length
    )  # in the array of its kind
    place = np.zeros(n_lists, dtype=np.int64)
    begin = np.zeros(n_lists, dtype=np.int64)  # of a windowed list's postings
    for each in (SHORT_LIST, WINDOWED_LIST, DENSE_LIST):
        chosen = kind == each
        place[chosen] = np.cumsum(room[chosen]) - room[chosen]
        begin[chosen] = np.cumsum(length[chosen]) - length[chosen]
    in_kind = [int(room[kind == each].sum()) for each in (SHORT_LIST, WINDOWED_LIST, DENSE_LIST)]
    in_windows = int(length[kind == WINDOWED_LIST].sum())
    lists = Lists(
        inverted.terms,
        np.zeros(n_lists, dtype=np.float32),
        length.astype(np.int32),
        kind,
        place,
        np.zeros(in_kind[DENSE_LIST], dtype=np.uint8),
        np.zeros(in_kind[WINDOWED_LIST], dtype=np.int64),
        np.zeros(in_windows, dtype=np.uint16),
        np.zeros(in_windows, dtype=np.uint8),
        np.zeros(in_kind[SHORT_LIST], dtype=np.uint32),
        np.zeros(in_kind[SHORT_LIST], dtype=np.uint8),
    )

    def work(first: int, last: int) -> None:
        build_kernels.quantize_lists(
            first, last, inverted.ptr, inverted.rows, inverted.weights, begin, windows, *lists[1:]
        )

    over_lists(work, inverted.ptr)
    return Lists(*(frozen(array) for array in lists))
