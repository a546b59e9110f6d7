"""From checked vectors to a `Segment`: invert, prune, cluster into blocks, summarize."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.errors import InputError
from lsr.index import build_kernels
from lsr.index.invert import invert, quantize_lists
from lsr.index.options import BuildOptions
from lsr.index.prune import prune
from lsr.index.segment import Array, Blocks, Forward, Segment, Summaries, frozen, narrow

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
    if weights.dtype == np.float16:  # what is scored is what is kept: bounds and summaries are of it
        vectors = csr_array((weights.astype(np.float32), vectors.indices, vectors.indptr), shape=vectors.shape)
    forward = Forward(
        frozen(vectors.indptr.astype(np.int64)),
        frozen(narrow(vectors.indices, vocabulary_size - 1)),
        frozen(weights),
    )
    workers = threads or os.cpu_count() or 1
    inverted = invert(vectors)

    def over_lists(work: Callable[[int, int], None], ptr: Array) -> None:
        tasks = list(_tasks(ptr))
        with tqdm(total=len(tasks), desc="building lists", unit=" tasks", disable=not progress or None) as bar:
            _in_parallel(work, tasks, workers, bar)

    lists = quantize_lists(inverted, n_documents, options.dense_share, over_lists)
    if not options.seismic:
        return Segment(n_documents, vocabulary_size, forward, lists, None, None)
    whole = forward._replace(weights=frozen(vectors.data))
    ptr, rows = prune(inverted, options.n_postings, options.max_fraction)
    tasks = list(_tasks(ptr)) or [(0, 0)]  # documents without a single term
    bar: tqdm[Any]
    with tqdm(total=2 * len(tasks), desc="building blocks", unit=" tasks", disable=not progress or None) as bar:
        blocks = _cluster(ptr, rows, whole, vocabulary_size, options, tasks, workers, bar)
        summaries = _summarize(blocks, whole, vocabulary_size, options, tasks, workers, bar)
    return Segment(n_documents, vocabulary_size, forward, lists, blocks, summaries)


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
    with np.errstate(over="ignore", under="ignore"):
        half = weights.astype(np.float16)
    if kind == "auto":
        return half if np.array_equal(half.astype(np.float32), weights) else weights.copy()
    if not (np.isfinite(half).all() and (half > 0).all()):
        raise InputError(
            "weights='float16' takes weights from 6e-8 to 65,504: scale the vectors, or build with weights='auto'"
        )
    return half


def _tasks(ptr: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of lists of about `TASK_POSTINGS` postings each."""
    first = 0
    while first < len(ptr) - 1:
        last = max(first + 1, int(np.searchsorted(ptr, ptr[first] + TASK_POSTINGS, side="right")) - 1)
        yield first, last
        first = last


def _in_parallel(
    work: Callable[[int, int], Result],
    tasks: list[tuple[int, int]],
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


def _document_heads(forward: Forward, width: int) -> tuple[Array, Array, Array]:
    counts = np.minimum(np.diff(forward.ptr), width)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    terms = np.zeros(ptr[-1], dtype=forward.terms.dtype)
    weights = np.zeros(ptr[-1], dtype=np.float32)
    build_kernels.document_heads(*forward, width, ptr, terms, weights)
    return ptr, terms, weights


def _cluster(
    ptr: Array, rows: Array, forward: Forward, vocabulary_size: int, options: BuildOptions,
    tasks: list[tuple[int, int]], workers: int, bar: "tqdm[Any]",
) -> Blocks:  # fmt: skip
    heads = _document_heads(forward, options.centroid_terms)
    n_lists = len(ptr) - 1
    block_rows = np.zeros(len(rows), dtype=np.int32)
    sizes_by_place = np.zeros(len(rows), dtype=np.int64)
    n_blocks = np.zeros(n_lists, dtype=np.int64)

    def work(first: int, last: int) -> None:
        build_kernels.cluster_lists(
            first, last, frozen(ptr), frozen(rows), *forward, *heads, vocabulary_size, options.centroid_fraction,
            options.min_block_size, options.seed, block_rows, sizes_by_place, n_blocks,
        )  # fmt: skip

    _in_parallel(work, tasks, workers, bar)
    block_ptr = np.concatenate([[0], np.cumsum(n_blocks)]).astype(np.int64)
    # a list's block sizes stand at the beginning of the list's own place
    places = np.repeat(ptr[:-1] - block_ptr[:-1], n_blocks) + np.arange(block_ptr[-1])
    start = np.concatenate([[0], np.cumsum(sizes_by_place[places])]).astype(np.int64)
    nothing = np.zeros(block_ptr[-1], dtype=np.float32)
    return Blocks(frozen(block_ptr), frozen(start), frozen(block_rows), nothing, nothing.copy())


def _summarize(
    blocks: Blocks, forward: Forward, vocabulary_size: int, options: BuildOptions,
    tasks: list[tuple[int, int]], workers: int, bar: "tqdm[Any]",
) -> Summaries:  # fmt: skip
    """Summarize every block; fills ``blocks.minimum`` and ``blocks.step``, and freezes them."""
    most_blocks = int(np.diff(blocks.ptr).max(initial=1))

    def work(first: int, last: int) -> tuple[Array, ...]:
        counts, terms, entries, in_blocks, codes = build_kernels.summarize_lists(
            first, last, blocks.ptr, blocks.start, blocks.rows, *forward, vocabulary_size, options.summary_energy,
            blocks.minimum, blocks.step,
        )  # fmt: skip
        return (
            counts,
            narrow(terms, vocabulary_size - 1),
            entries,
            narrow(in_blocks, most_blocks - 1),
            codes,
        )

    parts = _in_parallel(work, tasks, workers, bar)
    counts, terms, entries, in_blocks, codes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    blocks.minimum.flags.writeable = blocks.step.flags.writeable = False
    return Summaries(
        frozen(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
        frozen(terms),
        frozen(np.concatenate([[0], np.cumsum(entries)]).astype(np.int64)),
        frozen(in_blocks),
        frozen(codes),
    )
