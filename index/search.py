"""Calling the search kernels: queries over threads, each thread with scratch of its own."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy import empty
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsr.index import kernels, seismic_kernels
from lsr.index.kernels import search_lists
from lsr.index.segment import WINDOW, Array, Segment, bits_of
from lsr.numba_support import MASK, addresses_of
from lsr.vectors import SparseRows

#: Above this, 16-bit accumulators would be too coarse: every document is scored instead.
MOST_QUERY_TERMS = 8_000

#: Share of what a query's lists can add to a score that exact search walks at first, and how many
#: documents it may then have to score before it walks the others too (measured on splade-tiny vectors).
EXACT_MASS = 0.985
MOST_FOUND = 1_000

#: The vocabulary has at most 2 to the power of so many parts, in which a query's lists are looked for.
PART_BITS = 16

#: Checked rows; csr_array rows are copied.
Queries: TypeAlias = SparseRows | csr_array

Found: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]

#: As objects: NumPy makes them of types anew with each array.
FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)

#: Runs a kernel, with scratch, for queries (indptr, terms and weights), into the results.
Work: TypeAlias = "Callable[[_Scratch, tuple[Array, Array, Array], Found], None]"


@dataclass
class _Scratch:
    """What a kernel call needs for itself; kept between calls, allocated when first needed."""

    arrays: dict[str, Array] = field(default_factory=dict)
    addresses: NDArray[np.int64] | None = None

    def zeros(self, name: str, length: int, dtype: type) -> Array:
        """A kept array of zeros, or of whatever the kernels left there."""
        array = self.arrays.get(name)
        if array is None or len(array) < length:
            array = self.arrays[name] = np.zeros(length, dtype=dtype)
        return array


class Searcher:
    """Answers queries on one segment. Safe to use from several threads."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._ptr, self._terms, self._weights = bits_of(segment.forward)
        self._neighbours = np.zeros(0, np.int32) if segment.neighbours is None else segment.neighbours.rows
        self._most_blocks = 0 if segment.blocks is None else int(np.diff(segment.blocks.ptr).max(initial=0))
        self._starts, self._shift = _starts(segment.lists.terms, segment.vocabulary_size)
        self._free: list[_Scratch] = []  # pop and append are atomic

    def exact(self, queries: Queries, k: int, threads: int | None = None) -> Found:
        """Exact top k: (scores, rows, counts) of shapes (n, k), (n, k), (n,)."""
        return self.lists(queries, k, 0, EXACT_MASS, threads)

    def pruned(self, queries: Queries, k: int, candidates: int, query_mass: float, threads: int | None = None) -> Found:
        """Top k of the ``candidates`` documents that look best by the query's heaviest lists, as `exact`."""
        return self.lists(queries, k, max(candidates, k), query_mass, threads)

    def lists(self, queries: Queries, k: int, candidates: int, mass: float, threads: int | None) -> Found:
        """`exact` with 0 candidates, which then walks ``mass`` of the lists at first; with more, `pruned`."""

        def work(scratch: _Scratch, rows: tuple[Array, Array, Array], results: Found) -> None:
            if not self._answer(scratch, rows, candidates, mass, results):
                raise AssertionError("checked queries are taken")

        return self._run(work, queries, k, threads)

    def one(self, rows: tuple[Array, Array, Array], k: int, candidates: int, mass: float) -> Found | None:
        """As `lists`, of one query as `lsr.index.queries.plain_row` has it; None if the kernel does not take it.

        The kernel checks it: it then has to be mended or refused.
        """
        found = empty((1, k), FLOAT32), empty((1, k), INT64), empty(1, INT64)
        scratch = self._take()
        taken = self._answer(scratch, rows, candidates, mass, found)
        self._free.append(scratch)
        return found if taken else None

    def _take(self) -> _Scratch:
        """Scratch for one call. It is not given back after an error: its arrays may not be clean."""
        try:
            return self._free.pop()
        except IndexError:
            return _Scratch()

    def _answer(
        self, scratch: _Scratch, rows: tuple[Array, Array, Array], candidates: int, mass: float, found: Found
    ) -> bool:
        addresses = scratch.addresses
        if addresses is None:
            addresses = scratch.addresses = self._addresses(scratch)
        taken: bool = search_lists(*rows, addresses, self._terms, self._weights, candidates, mass, *found)
        return taken

    def _addresses(self, scratch: _Scratch) -> NDArray[np.int64]:
        """Where the arrays are that `kernels.search_lists` takes by address: the segment and the scratch keep them."""
        size, n_documents, longest = self.segment.vocabulary_size, self.segment.n_documents, MOST_QUERY_TERMS
        lists = kernels.Scratch(
            accumulator=scratch.zeros("accumulator", WINDOW, np.uint16),
            dense_query=scratch.zeros("dense_query", size, np.float32),
            in_query=scratch.zeros("in_query", size, np.uint8),
            query_terms=scratch.zeros("query_terms", size, np.uint32),
            places=scratch.zeros("places", size + 1, np.uint32),
            matched=scratch.zeros("matched", longest, np.int64),
            order=scratch.zeros("order", longest, np.int64),
            cursors=scratch.zeros("cursors", longest, np.int64),
            multipliers=scratch.zeros("multipliers", longest, np.float64),
            priorities=scratch.zeros("priorities", longest, np.float64),
            counts=scratch.zeros("counts", kernels.BUCKETS, np.int32),
            best=scratch.zeros("best", WINDOW // MASK, np.uint16),
            found_bounds=scratch.zeros("found_bounds", n_documents + 1, np.int64),
            found_rows=scratch.zeros("found_rows", n_documents + 1, np.int64),
            top_bounds=scratch.zeros("top_bounds", n_documents + 1, np.int64),
            top_rows=scratch.zeros("top_rows", n_documents + 1, np.int64),
        )
        knobs = np.array([self._shift, MOST_QUERY_TERMS, MOST_FOUND], dtype=np.int64)
        scratch.arrays["knobs"] = knobs
        return addresses_of([self._starts, *self.segment.lists, self._ptr, *lists, knobs])

    def seismic(
        self,
        queries: Queries,
        k: int,
        query_cut: float,
        heap_factor: float,
        threads: int | None = None,
        neighbours: int = 0,
    ) -> Found:
        """Top k by the blocks of the heaviest terms' lists, and the neighbours of these hits, as `exact`.

        query_cut: so many terms; or, below 1, those that hold this share of the query's weight.
        """
        segment = self.segment
        if segment.blocks is None or segment.summaries is None:
            raise AssertionError("the caller checks that blocks were built")
        blocks, summaries = segment.blocks, segment.summaries
        longest = _longest(queries)
        cut, share = (longest, query_cut) if query_cut < 1 else (min(int(query_cut), longest), np.inf)
        most_blocks = cut * self._most_blocks

        def work(scratch: _Scratch, rows: tuple[Array, Array, Array], results: Found) -> None:
            seismic_kernels.search_seismic(
                *rows, segment.lists.terms, self._ptr, self._terms, self._weights,
                *blocks, *summaries, self._neighbours,
                scratch.zeros("dense_query", segment.vocabulary_size, np.float32),
                scratch.zeros("in_query", segment.vocabulary_size, np.uint8),
                scratch.zeros("places", segment.vocabulary_size + 1, np.uint32),
                scratch.zeros("visited", segment.n_documents, np.uint8),
                scratch.zeros("seen", segment.n_documents + 1, np.int64),
                scratch.zeros("block_scores", most_blocks, np.float32),
                scratch.zeros("blocks", most_blocks, np.int64),
                scratch.zeros("block_order", 2 * most_blocks, np.int64),
                scratch.zeros("block_counts", seismic_kernels.STEPS + 1, np.int64),
                scratch.zeros("chosen", max(cut, 1), np.int64),
                cut, share, np.float32(heap_factor), neighbours, k,
                *(array.ravel() for array in results),  # views
            )  # fmt: skip

        return self._run(work, queries, k, threads)

    def _run(self, work: Work, queries: Queries, k: int, threads: int | None) -> Found:
        """Let ``work`` fill the results: on one thread at once, on several part by part."""
        given = queries if isinstance(queries, SparseRows) else SparseRows.of(queries)
        n = len(given.indptr) - 1
        scores, rows, counts = empty((n, k), FLOAT32), empty((n, k), INT64), empty(n, INT64)

        def task(first: int, last: int) -> None:
            part = given.part(first, last)
            hits = scores[first:last], rows[first:last], counts[first:last]
            scratch = self._take()
            work(scratch, (part.indptr, part.indices, part.data), hits)
            self._free.append(scratch)

        workers = 1 if n == 1 or threads == 1 else min(threads or os.cpu_count() or 1, n)  # counting cores takes 10 µs
        if workers < 2:
            task(0, n)
        else:
            parts = min(n, 4 * workers)  # smaller than a thread's share, so that none waits for the slowest
            bounds = np.linspace(0, n, parts + 1).astype(int).tolist()
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(task, bounds[:-1], bounds[1:]))
        return scores, rows, counts


def _starts(terms: Array, vocabulary_size: int) -> tuple[Array, int]:
    """Where the lists of each part of the vocabulary begin, and by how many bits a term is shifted to have its part."""
    shift = max(0, (vocabulary_size - 1).bit_length() - PART_BITS)
    parts = np.arange(((vocabulary_size - 1) >> shift) + 2, dtype=np.int64)
    return np.searchsorted(terms, parts << shift), shift


def _longest(queries: Queries) -> int:
    """Terms of the longest query."""
    return len(queries.indices) if len(queries.indptr) == 2 else int(np.diff(queries.indptr).max(initial=0))
