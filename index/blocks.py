"""Seismic's blocks and summaries (Bruch et al., SIGIR 2024, arXiv 2404.18812), from pruned lists."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lsr.index import block_kernels
from lsr.index.options import BuildOptions
from lsr.index.segment import TERM_GROUP, Array, Blocks, Forward, Summaries, frozen, narrow

#: Runs work over ranges of lists; results in the order of the lists.
OverTasks = Callable[[Callable[[int, int], Any]], list[Any]]


def build_blocks(
    ptr: Array, rows: Array, forward: Forward, vocabulary_size: int, options: BuildOptions, over_tasks: OverTasks
) -> tuple[Blocks, Summaries]:
    """Cut pruned lists into blocks and summarize them.

    Args:
        ptr: int64 (lists + 1).
        rows: int32; they ascend within a list.
        forward: the documents, with float32 weights.
        vocabulary_size: of the vectors.
        options: all that is said of blocks there.
        over_tasks: runs the work, twice.
    """
    blocks = _cluster(ptr, rows, forward, vocabulary_size, options, over_tasks)
    return blocks, _summarize(blocks, forward, vocabulary_size, options, over_tasks)


def document_heads(forward: Forward, width: int) -> tuple[Array, Array, Array]:
    """Each document's ``width`` heaviest terms as CSR, heaviest first (of equal weights, the smaller id)."""
    counts = np.minimum(np.diff(forward.ptr), width)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    terms = np.zeros(ptr[-1], dtype=forward.terms.dtype)
    weights = np.zeros(ptr[-1], dtype=np.float32)
    block_kernels.document_heads(*forward, width, ptr, terms, weights)
    return ptr, terms, weights


def _cluster(
    ptr: Array, rows: Array, forward: Forward, vocabulary_size: int, options: BuildOptions, over_tasks: OverTasks
) -> Blocks:
    heads = document_heads(forward, options.centroid_terms)
    block_rows = np.zeros(len(rows), dtype=np.int32)
    sizes_by_place = np.zeros(len(rows), dtype=np.int32)
    n_blocks = np.zeros(len(ptr) - 1, dtype=np.int64)

    def work(first: int, last: int) -> None:
        block_kernels.cluster_lists(
            first, last, frozen(ptr), frozen(rows), *forward, *heads, vocabulary_size, options.centroid_fraction,
            options.max_blocks, options.min_list_size, options.min_block_size, options.seed,
            block_rows, sizes_by_place, n_blocks,
        )  # fmt: skip

    over_tasks(work)
    block_ptr = np.concatenate([[0], np.cumsum(n_blocks)]).astype(np.int64)
    # a list's block sizes stand at the beginning of the list's own place
    places = np.repeat(ptr[:-1] - block_ptr[:-1], n_blocks) + np.arange(block_ptr[-1])
    start = np.concatenate([[0], np.cumsum(sizes_by_place[places])]).astype(np.int64)
    nothing = np.zeros(block_ptr[-1], dtype=np.float32)
    return Blocks(frozen(block_ptr), frozen(start), frozen(block_rows), nothing, nothing.copy())


def _summarize(
    blocks: Blocks, forward: Forward, vocabulary_size: int, options: BuildOptions, over_tasks: OverTasks
) -> Summaries:
    """Summarize every block; fills ``blocks.minimum`` and ``blocks.step``, and freezes them."""
    block_type = np.min_scalar_type(max(0, int(np.diff(blocks.ptr).max(initial=1)) - 1))

    def work(first: int, last: int) -> tuple[Array, ...]:
        n_terms, terms, further, in_blocks, codes = block_kernels.summarize_lists(
            first, last, blocks.ptr, blocks.start, blocks.rows, options.min_list_size, *forward, vocabulary_size,
            options.summary_energy, blocks.minimum, blocks.step,
        )  # fmt: skip
        narrowed = further.astype(block_type), in_blocks.astype(block_type)
        return n_terms, narrow(terms, vocabulary_size - 1), *narrowed, codes

    parts = over_tasks(work)
    n_terms, terms, further, in_blocks, codes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    begin = np.zeros(-(-len(further) // TERM_GROUP) + 1, dtype=np.uint32 if len(codes) < 2**32 else np.int64)
    if len(further):
        groups = np.arange(0, len(further), TERM_GROUP)
        sizes = np.add.reduceat(further, groups, dtype=np.int64) + np.minimum(TERM_GROUP, len(further) - groups)
        begin[1:] = np.cumsum(sizes)
    blocks.minimum.flags.writeable = blocks.step.flags.writeable = False
    return Summaries(
        frozen(np.concatenate([[0], np.cumsum(n_terms)]).astype(np.int64)),
        frozen(terms),
        frozen(further),
        frozen(begin),
        frozen(in_blocks),
        frozen(codes),
    )
