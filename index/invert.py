"""Inverted lists: from documents to postings by term, and to the quantized lists that are searched."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsr.index import build_kernels
from lsr.index.segment import WINDOW, Array, Lists, frozen, n_windows


class Inverted(NamedTuple):
    """Postings by term, as the build needs them.

    terms int64: the sorted used terms; ptr int64 (lists + 1); rows int32, ascending within a list;
    weights float32; places int64: each posting's position in the documents' CSR arrays.
    """

    terms: Array
    ptr: Array
    rows: Array
    weights: Array
    places: Array


def invert(vectors: csr_array) -> Inverted:
    """Sort the postings by term; within a list, rows ascend."""
    places = csr_array((np.arange(vectors.nnz), vectors.indices, vectors.indptr), shape=vectors.shape).tocsc()
    lengths = np.diff(places.indptr)
    used = np.flatnonzero(lengths)
    ptr = np.concatenate([[0], np.cumsum(lengths[used])]).astype(np.int64)
    rows = places.indices.astype(np.int32)
    return Inverted(used.astype(np.int64), ptr, rows, vectors.data[places.data], places.data)


def quantize_lists(inverted: Inverted, vectors: csr_array, head_mass: float) -> Lists:
    """Quantize the postings and part them into heads and tails."""
    is_head = np.zeros(vectors.nnz, dtype=np.bool_)
    build_kernels.mark_heads(vectors.indptr.astype(np.int64), vectors.data, head_mass, is_head)
    in_head = is_head[inverted.places]
    list_of = np.repeat(np.arange(len(inverted.terms)), np.diff(inverted.ptr))
    step = _steps(inverted)
    codes = _codes(inverted.weights, step[list_of])
    windows = n_windows(vectors.shape[0])
    window_of = list_of * windows + inverted.rows // WINDOW
    rows = (inverted.rows % WINDOW).astype(np.uint16)
    tiers = []
    for tier in (in_head, ~in_head):
        counts = np.bincount(window_of[tier], minlength=len(inverted.terms) * windows)
        ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        tiers += [frozen(ptr), frozen(rows[tier]), frozen(codes[tier])]
    return Lists(frozen(inverted.terms), frozen(step), *tiers)


def _steps(inverted: Inverted) -> NDArray[np.float32]:
    """The smallest float32 step with 255 * step at least the list's largest weight, in exact arithmetic."""
    if len(inverted.terms) == 0:
        return np.zeros(0, dtype=np.float32)
    largest = np.maximum.reduceat(inverted.weights, inverted.ptr[:-1]).astype(np.float64)
    step = (largest / 255).astype(np.float32)
    short = 255 * step.astype(np.float64) < largest
    step[short] = np.nextafter(step[short], np.float32(np.inf))
    return step


def _codes(weights: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes from 1 to 255 with step * code never below the weight (a product exact in float64)."""
    exact = step.astype(np.float64)
    codes = np.ceil(weights / exact)
    codes += codes * exact < weights
    return codes.astype(np.uint8)
