"""Calling the search kernels: queries over threads, each thread with scratch of its own."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsr.index import kernels, seismic_kernels
from lsr.index.segment import WINDOW, Array, Segment, bits_of
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

#: Runs a kernel, with scratch, for the queries and their range, into the results.
Work: TypeAlias = "Callable[[_Scratch, tuple[Any, ...], Found], None]"


@dataclass
class _Scratch:
    """What a kernel call needs for itself; kept between calls, allocated when first needed."""

    arrays: dict[str, Array] = field(default_factory=dict)
    _lists: tuple[Array, ...] = ()

    def zeros(self, name: str, length: int, dtype: type) -> Array:
        """A kept array of zeros, or of whatever the kernels left there."""
        array = self.arrays.get(name)
        if array is None or len(array) < length:
            array = self.arrays[name] = np.zeros(length, dtype=dtype)
        return array

    def for_lists(self, segment: Segment) -> tuple[Array, ...]:
        """What `kernels.search_lists` needs."""
        if not self._lists:
            self._lists = (
                self.zeros("accumulator", WINDOW, np.uint16),
                self.zeros("dense_query", segment.vocabulary_size, np.float32),
                self.zeros("in_query", segment.vocabulary_size, np.uint8),
                self.zeros("places", segment.vocabulary_size + 1, np.uint32),
                self.zeros("found_bounds", segment.n_documents, np.int64),
                self.zeros("found_rows", segment.n_documents, np.int64),
            )
        return self._lists


class Searcher:
    """Answers queries on one segment. Safe to use from several threads."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._forward = bits_of(segment.forward)
        self._neighbours = np.zeros(0, np.int32) if segment.neighbours is None else segment.neighbours.rows
        self._most_blocks = 0 if segment.blocks is None else int(np.diff(segment.blocks.ptr).max(initial=0))
        self._searched = *_starts(segment.lists.terms, segment.vocabulary_size), *segment.lists, *self._forward
        self._free: list[_Scratch] = []  # pop and append are atomic

    def exact(self, queries: Queries, k: int, threads: int | None = None) -> Found:
        """Exact top k: (scores, rows, counts) of shapes (n, k), (n, k), (n,)."""
        return self._lists(queries, k, 0, EXACT_MASS, threads)

    def pruned(self, queries: Queries, k: int, candidates: int, query_mass: float, threads: int | None = None) -> Found:
        """Top k of the ``candidates`` documents that look best by the query's heaviest lists, as `exact`."""
        return self._lists(queries, k, min(max(candidates, k), self.segment.n_documents), query_mass, threads)

    def _lists(self, queries: Queries, k: int, candidates: int, mass: float, threads: int | None) -> Found:
        def work(scratch: _Scratch, arguments: tuple[Any, ...], results: Found) -> None:
            kernels.search_lists(
                *arguments, *self._searched, *scratch.for_lists(self.segment),
                candidates, mass, MOST_QUERY_TERMS, MOST_FOUND + 10 * k, k, *results,
            )  # fmt: skip

        return self._run(work, queries, k, threads)

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

        def work(scratch: _Scratch, arguments: tuple[Any, ...], results: Found) -> None:
            seismic_kernels.search_seismic(
                *arguments, segment.lists.terms, *self._forward, *blocks, *summaries, self._neighbours,
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
                cut, share, np.float32(heap_factor), neighbours, k, *results,
            )  # fmt: skip

        return self._run(work, queries, k, threads)

    def _run(self, work: Work, queries: Queries, k: int, threads: int | None) -> Found:
        """Let ``work`` fill the results: on one thread at once, on several range by range."""
        given = queries if isinstance(queries, SparseRows) else SparseRows.of(queries)
        n = len(given.indptr) - 1
        results = np.empty(n * k, dtype=np.float32), np.empty(n * k, dtype=np.int64), np.empty(n, dtype=np.int64)

        def task(first: int, last: int) -> None:
            try:
                scratch = self._free.pop()
            except IndexError:
                scratch = _Scratch()
            work(scratch, (given.indptr, given.indices, given.data, first, last), results)
            self._free.append(scratch)  # not given back after an error: its arrays may not be clean

        workers = 1 if n == 1 or threads == 1 else min(threads or os.cpu_count() or 1, n)  # counting cores takes 10 µs
        if workers < 2:
            task(0, n)
        else:
            parts = min(n, 4 * workers)  # smaller than a thread's share, so that none waits for the slowest
            bounds = np.linspace(0, n, parts + 1).astype(int).tolist()
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(task, bounds[:-1], bounds[1:]))
        scores, rows, counts = results
        return scores.reshape(n, k), rows.reshape(n, k), counts


def _starts(terms: Array, vocabulary_size: int) -> tuple[Array, int]:
    """Where the lists of each part of the vocabulary begin, and by how many bits a term is shifted to have its part."""
    shift = max(0, (vocabulary_size - 1).bit_length() - PART_BITS)
    parts = np.arange(((vocabulary_size - 1) >> shift) + 2, dtype=np.int64)
    return np.searchsorted(terms, parts << shift), shift


def _longest(queries: Queries) -> int:
    """Terms of the longest query."""
    return len(queries.indices) if len(queries.indptr) == 2 else int(np.diff(queries.indptr).max(initial=0))
