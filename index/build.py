"""From checked vectors to a `Segment`: lists, and where they are wanted blocks, summaries and a graph."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.errors import InputError
from lsr.index import build_kernels
from lsr.index.blocks import build_blocks
from lsr.index.graph import build_graph
from lsr.index.invert import OverThreads, count, quantize_lists
from lsr.index.options import BuildOptions
from lsr.index.segment import Array, Forward, Segment, bits_of, frozen, narrow
from lsr.index.sizes import announce, predict_sizes


def build_segment(
    vectors: csr_array, options: BuildOptions, *, threads: int | None = None, progress: bool = False
) -> Segment:
    """Build every array of an index over ``vectors``, which `lsr.vectors.check_vectors` has passed.

    The result depends on the vectors and the options alone, not on the number of threads.
    """
    n_documents, vocabulary_size = vectors.shape
    weights = stored_weights(vectors.data, options.weights)
    forward = Forward(
        frozen(vectors.indptr.astype(np.int64)),
        frozen(narrow(vectors.indices, vocabulary_size - 1)),
        frozen(weights),
    )
    workers = threads or os.cpu_count() or 1
    over_threads = threads_over(workers, progress)
    n_ranges = ranges_for(workers, len(weights), vocabulary_size)
    counted = count(forward, vocabulary_size, n_ranges, over_threads)
    if progress:
        itemsize, share = weights.dtype.itemsize, options.dense_share
        announce(predict_sizes(counted.lengths, n_documents, vocabulary_size, itemsize, share))
    (lists,) = quantize_lists(forward, vocabulary_size, counted, options.dense_share, None, over_threads)
    if not options.seismic:
        return Segment(n_documents, vocabulary_size, forward, lists, None, None)
    blocks, summaries = build_blocks(bits_of(forward), vocabulary_size, counted, options, over_threads)
    segment = Segment(n_documents, vocabulary_size, forward, lists, blocks, summaries)
    if not options.neighbours:
        return segment
    graph = build_graph(segment, options.neighbours, threads=threads, progress=progress)
    return segment._replace(neighbours=graph)


def stored_weights(weights: NDArray[np.float32], kind: str) -> Array:
    """The weights as the forward index keeps them: a copy, since the caller may go on changing theirs.

    Args:
        weights: float32.
        kind: ``BuildOptions.weights``: "auto" takes float16 where no weight changes by it.

    Raises:
        InputError: "float16" is asked for, and a weight is beyond its range or rounds to zero.
    """
    if kind == "float32":
        return weights.copy()
    if kind == "auto":
        halves = np.empty(len(weights), dtype=np.uint16)
        return halves.view(np.float16) if build_kernels.exact_halves(weights, halves) else weights.copy()
    with np.errstate(over="ignore", under="ignore"):
        half = weights.astype(np.float16)
    if not (np.isfinite(half).all() and (half > 0).all()):
        raise InputError(
            "weights='float16' takes weights from 6e-8 to 65,504: scale the vectors, or build with weights='auto'"
        )
    return half


def ranges_for(workers: int, n_postings: int, vocabulary_size: int) -> int:
    """Ranges of rows that are worth it: each has a counter for every term of the vocabulary."""
    return max(1, min(workers, n_postings // (2 * vocabulary_size + 1)))


def threads_over(workers: int, progress: bool) -> OverThreads:
    """Runs tasks over threads (the kernels hold no GIL), under a progress bar that is gone when they are done."""

    def run(work: Callable[[int], None], n_tasks: int, what: str) -> None:
        bar = tqdm(total=n_tasks, desc=what, unit=" tasks", leave=False, disable=not progress or None)
        with bar, ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(work, range(n_tasks)):
                bar.update()

    return run
