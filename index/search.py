"""Calling the search kernels: queries over threads, each thread with scratch of its own."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsr.index import kernels
from lsr.index.segment import Array, Segment

Found = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


@dataclass
class _Scratch:
    """What a kernel call needs for itself; kept between calls, allocated when first needed."""

    arrays: dict[str, Array] = field(default_factory=dict)
    epoch: int = 0

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
        self._free: list[_Scratch] = []
        self._lock = threading.Lock()

    def exact(self, queries: csr_array, k: int, threads: int | None = None) -> Found:
        """Exact top k: (scores, rows, counts) of shapes (n, k), (n, k), (n,)."""
        segment = self.segment

        def work(first: int, last: int, scratch: _Scratch, arguments: tuple[Array, ...], results: Found) -> None:
            accumulator = scratch.zeros("accumulator", segment.n_documents, np.float32)
            kernels.search_exact(*arguments, first, last, *segment.lists, accumulator, k, *results)

        return self._run(work, queries, k, threads)

    def seismic(
        self,
        queries: csr_array,
        k: int,
        query_cut: int | None,
        heap_factor: float,
        threads: int | None = None,
    ) -> Found:
        """Approximate top k, as `exact`. ``query_cut`` None walks the lists of all query terms."""
        segment = self.segment
        if segment.blocks is None or segment.summaries is None:
            raise AssertionError("the caller checks that blocks were built")
        blocks, summaries = segment.blocks, segment.summaries
        most_blocks = int(np.diff(blocks.ptr).max(initial=0))
        longest = int(np.diff(queries.indptr).max(initial=0))
        cut = longest if query_cut is None else min(query_cut, longest)

        def work(first: int, last: int, scratch: _Scratch, arguments: tuple[Array, ...], results: Found) -> None:
            kernels.search_seismic(
                *arguments, first, last, segment.lists.terms, *segment.forward, *blocks, *summaries,
                scratch.zeros("dense_query", segment.vocabulary_size, np.float32),
                scratch.zeros("visited", segment.n_documents, np.int64), scratch.epoch,
                scratch.zeros("block_scores", most_blocks, np.float32),
                scratch.zeros("block_order", most_blocks, np.int64),
                scratch.zeros("chosen", max(cut, 1), np.int64),
                cut, np.float32(heap_factor), k, *results,
            )  # fmt: skip
            scratch.epoch += last - first

        return self._run(work, queries, k, threads)

    def _run(self, work, queries: csr_array, k: int, threads: int | None) -> Found:  # type: ignore[no-untyped-def]
        """Cut the queries into one range per thread and let ``work`` fill the results."""
        n = queries.shape[0]
        scores = np.full(n * k, -np.inf, dtype=np.float32)
        rows = np.full(n * k, -1, dtype=np.int64)
        counts = np.zeros(n, dtype=np.int64)
        arguments = (
            queries.indptr.astype(np.int64),
            queries.indices.astype(np.int64),
            np.array(queries.data),
        )
        workers = max(1, min(threads or os.cpu_count() or 1, n))
        bounds = np.linspace(0, n, workers + 1).astype(int).tolist()

        def task(first: int, last: int) -> None:
            with self._lock:
                scratch = self._free.pop() if self._free else _Scratch()
            work(first, last, scratch, arguments, (scores, rows, counts))
            with self._lock:  # not given back after an error: its arrays may not be clean
                self._free.append(scratch)

        if workers == 1:
            task(0, n)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(task, bounds[:-1], bounds[1:]))
        return scores.reshape(n, k), rows.reshape(n, k), counts
