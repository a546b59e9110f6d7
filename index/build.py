"""From checked vectors to a `Segment`: invert, prune, cluster into blocks, summarize."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.errors import InputError
from lsr.index import build_kernels
from lsr.index.blocks import build_blocks
from lsr.index.graph import build_graph
from lsr.index.invert import OverThreads, count, invert, quantize_lists
from lsr.index.options import BuildOptions
from lsr.index.prune import prune
from lsr.index.segment import Array, Forward, Segment, frozen, narrow
from lsr.index.sizes import announce, predict_sizes

Result = TypeVar("Result")

#: Postings that one task of the build handles; the result does not depend on it.
TASK_POSTINGS = 200_000


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
    if weights.dtype == np.float16:  # what is scored is what is kept: summaries are of it
        vectors = csr_array((weights.astype(np.float32), vectors.indices, vectors.indptr), shape=vectors.shape)
    inverted = invert(vectors, n_ranges, over_threads, counted)
    whole = forward._replace(weights=frozen(vectors.data))
    ptr, rows = prune(inverted, options.n_postings, options.max_fraction, options.posting_share)
    tasks = list(_tasks(ptr)) or [(0, 0)]  # documents without a single term
    bar: tqdm[Any]
    with tqdm(total=2 * len(tasks), desc="building blocks", unit=" tasks", disable=not progress or None) as bar:
        blocks, summaries = build_blocks(
            ptr, rows, whole, vocabulary_size, options, lambda work: _in_parallel(work, tasks, workers, bar)
        )
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
    """Runs tasks over threads, under a progress bar."""

    def run(work: Callable[[int], None], n_tasks: int, what: str) -> None:
        with tqdm(total=n_tasks, desc=what, unit=" tasks", disable=not progress or None) as bar:
            _in_parallel(work, [(task,) for task in range(n_tasks)], workers, bar)

    return run


def _tasks(ptr: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of lists of about `TASK_POSTINGS` postings each."""
    first = 0
    while first < len(ptr) - 1:
        last = max(first + 1, int(np.searchsorted(ptr, ptr[first] + TASK_POSTINGS, side="right")) - 1)
        yield first, last
        first = last


def _in_parallel(
    work: Callable[..., Result],
    tasks: Sequence[tuple[int, ...]],
    workers: int,
    bar: "tqdm[Any]",
) -> list[Result]:
    """Run the tasks over threads (the kernels hold no GIL); results in the order of the tasks."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, *task) for task in tasks]
        results = []
        for future in futures:
            results.append(future.result())
            bar.update()
        return results
