"""Seismic's blocks and summaries (Bruch et al., SIGIR 2024, arXiv 2404.18812), from pruned lists.

Lists are clustered, and then their blocks summarized, as many at a time as the memory allows: the parts' arrays, one
after the other, are those of all lists, and do not depend on the parts.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lsr.index import block_kernels
from lsr.index.invert import Counted, OverThreads, parts_of
from lsr.index.options import BuildOptions
from lsr.index.prune import HALF, Kept, choose, collect
from lsr.index.segment import TERM_GROUP, Array, Blocks, Forward, Summaries, frozen

#: Postings that one task of the build handles; the result does not depend on it.
TASK_POSTINGS = 200_000

#: Documents whose heads, and terms of summaries whose positions, are written at a time.
BATCH = TERM_GROUP * 2**14

Arrays = TypeVar("Arrays", bound=NamedTuple)


class Clusters(NamedTuple):
    """Lists cut into blocks, as `Blocks`."""

    ptr: Array
    start: Array
    rows: Array


class Summarized(NamedTuple):
    """What the summaries of some lists' blocks add to `Blocks` (minimum, step) and `Summaries`."""

    minimum: Array
    step: Array
    ptr: Array
    terms: Array
    further: Array
    blocks: Array
    codes: Array


def build_blocks(
    forward: Forward, vocabulary_size: int, counted: Counted, options: BuildOptions, over_threads: OverThreads
) -> tuple[Blocks, Summaries]:
    """Prune the lists, cut them into blocks and summarize these, in memory.

    Args:
        forward: the documents, 16-bit weights as their bits (`bits_of`).
        vocabulary_size: columns of their vectors.
        counted: of these documents.
        options: all that is said of blocks there.
        over_threads: runs the work.
    """
    kept = choose(forward, vocabulary_size, counted, options, over_threads)
    heads = joined(heads_of(forward, options.centroid_terms))
    clusters = joined(cluster(forward, vocabulary_size, counted, kept, heads, options, None, over_threads))
    found = joined(summarize(forward, vocabulary_size, clusters, kept.beside, options, None, over_threads))
    begin = np.concatenate(list(begins(found.further, len(found.codes))))
    summaries = Summaries(found.ptr, found.terms, found.further, frozen(begin), found.blocks, found.codes)
    return Blocks(*clusters, found.minimum, found.step), summaries


def joined(parts: Iterable[Arrays]) -> Arrays:
    """The arrays of all parts, one after the other."""
    some = list(parts)
    return some[0]._make(frozen(np.concatenate(arrays)) for arrays in zip(*some, strict=True))


def document_heads(forward: Forward, width: int) -> Forward:
    """Each document's ``width`` heaviest terms, heaviest first (of equal weights, the smaller id); float32 weights."""
    counts = np.minimum(np.diff(forward.ptr), width)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    terms = np.zeros(ptr[-1], dtype=forward.terms.dtype)
    weights = np.zeros(ptr[-1], dtype=np.float32)
    block_kernels.document_heads(*forward, width, ptr, terms, weights)
    return Forward(ptr, terms, weights)


def heads_of(forward: Forward, width: int) -> Iterator[Forward]:
    """The documents' heads, `BATCH` documents at a time."""
    so_far = np.zeros(1, dtype=np.int64)
    for first in range(0, len(forward.ptr) - 1, BATCH):
        ptr = forward.ptr[first : first + BATCH + 1]
        part = slice(int(ptr[0]), int(ptr[-1]))
        ends, terms, weights = document_heads(
            Forward(ptr - part.start, forward.terms[part], forward.weights[part]), width
        )
        ends += so_far[-1]
        yield Forward(ends if first == 0 else ends[1:], terms, weights)
        so_far = ends


def cluster(
    forward: Forward, vocabulary_size: int, counted: Counted, kept: Kept, heads: Forward, options: BuildOptions,
    room: int | None, over_threads: OverThreads,
) -> Iterator[Clusters]:  # fmt: skip
    """Cut the lists of the kept postings into blocks, in at most ``room`` bytes (`prune.collect`)."""
    blocks_before, rows_before = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for part, ptr, rows in collect(forward, vocabulary_size, counted, kept, room, over_threads):
        n_blocks, sizes, block_rows = _cluster(
            part.start, frozen(ptr), frozen(rows), forward, heads, vocabulary_size, options, over_threads
        )
        block_ptr, start = _ends(blocks_before, n_blocks), _ends(rows_before, sizes)
        skip = int(part.start > 0)  # where the part before ended
        yield Clusters(block_ptr[skip:], start[skip:], block_rows)
        blocks_before, rows_before = block_ptr[-1:], start[-1:]


def _ends(before: Array, counts: Array) -> Array:
    """Where each of some things ends that begin at ``before`` (1,), and at first that: int64."""
    return np.concatenate([before, before + np.cumsum(counts, dtype=np.int64)])


def _cluster(
    numbered_from: int, ptr: Array, rows: Array, forward: Forward, heads: Forward, vocabulary_size: int,
    options: BuildOptions, over_threads: OverThreads,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Blocks of each list, rows of each block, and the rows."""
    block_rows = np.zeros(len(rows), dtype=np.int32)
    sizes_by_place = np.zeros(len(rows), dtype=np.int32)
    n_blocks = np.zeros(len(ptr) - 1, dtype=np.int64)
    tasks = _tasks(ptr)

    def work(task: int) -> None:
        block_kernels.cluster_lists(
            *tasks[task], numbered_from, ptr, rows, *forward, *heads, vocabulary_size, options.centroid_fraction,
            options.max_blocks, options.min_list_size, options.min_block_size, options.seed,
            block_rows, sizes_by_place, n_blocks,
        )  # fmt: skip

    over_threads(work, len(tasks), "clustering lists")
    # a list's block sizes stand at the beginning of the list's own place
    first_blocks = np.cumsum(n_blocks) - n_blocks
    places = np.repeat(ptr[:-1] - first_blocks, n_blocks) + np.arange(n_blocks.sum())
    return n_blocks, sizes_by_place[places], block_rows


def summarize(
    forward: Forward, vocabulary_size: int, clusters: Clusters, beside: Array, options: BuildOptions,
    room: int | None, over_threads: OverThreads,
) -> Iterator[Summarized]:  # fmt: skip
    """Summarize every block, in at most ``room`` bytes, of which a list takes `entry_bytes` for each of ``beside``.

    Args:
        forward: as in `build_blocks`.
        vocabulary_size: columns of the vectors.
        clusters: of all lists.
        beside: `Kept.beside`: a list's summaries have no more entries together.
        options: min_list_size, summary_energy.
        room: None for a single part.
        over_threads: runs the work.
    """
    block_type = np.min_scalar_type(max(0, int(np.diff(clusters.ptr).max(initial=1)) - 1))
    before = np.zeros(1, dtype=np.int64)
    for part in parts_of(entry_bytes(vocabulary_size, block_type.itemsize) * beside, room):
        found = _summarize(part, forward, vocabulary_size, clusters, beside, block_type, options, over_threads)
        for i, one in enumerate(found):
            ends = _ends(before, one.ptr)
            yield one._replace(ptr=ends[int(i > 0 or part.start > 0) :])
            before = ends[-1:]


def entry_bytes(vocabulary_size: int, block_bytes: int) -> int:
    """Bytes that an entry of a summary may take until it is written: by block, and by term."""
    term_bytes = 2 if vocabulary_size <= HALF else 4
    return (term_bytes + block_bytes + 1) + (term_bytes + 2 * block_bytes + 1)


def _summarize(
    part: slice, forward: Forward, vocabulary_size: int, clusters: Clusters, beside: Array, block_type: Any,
    options: BuildOptions, over_threads: OverThreads,
) -> list[Summarized]:  # fmt: skip
    """The summaries of a part's lists, task by task; ``ptr`` is each list's number of terms."""
    of_lists = clusters.start[clusters.ptr[part.start : part.stop + 1]]
    tasks = [(part.start + first, part.start + last) for first, last in _tasks(of_lists)]
    term_type = np.uint16 if vocabulary_size <= HALF else np.uint32
    found: dict[int, Summarized] = {}

    def work(task: int) -> None:
        first, last = tasks[task]
        n_blocks, most = int(clusters.ptr[last] - clusters.ptr[first]), int(beside[first:last].sum())
        longest = int(beside[first:last].max(initial=0))
        minimum, step = np.zeros(n_blocks, dtype=np.float32), np.zeros(n_blocks, dtype=np.float32)
        n_terms_of = np.zeros(last - first, dtype=np.int64)
        raw = np.empty(longest, term_type), np.empty(longest, block_type), np.empty(longest, np.uint8)
        terms, further = np.empty(most, term_type), np.empty(most, block_type)
        blocks, codes = np.empty(most, block_type), np.empty(most, np.uint8)
        n_terms, n_entries = block_kernels.summarize_lists(
            first, last, *clusters, options.min_list_size, *forward, vocabulary_size, options.summary_energy,
            minimum, step, n_terms_of, *raw, terms, further, blocks, codes,
        )  # fmt: skip
        for array, size in ((terms, n_terms), (further, n_terms), (blocks, n_entries), (codes, n_entries)):
            array.resize(size, refcheck=False)  # gives the rest of the room back
        found[task] = Summarized(minimum, step, n_terms_of, terms, further, blocks, codes)

    over_threads(work, len(tasks), "summarizing blocks")
    return [found[task] for task in range(len(tasks))]


def begins(further: Array, n_entries: int) -> Iterator[Array]:
    """`Summaries.begin`, some at a time."""
    kind = np.uint32 if n_entries < 2**32 else np.int64
    before = np.zeros(1, dtype=np.int64)
    yield before.astype(kind)
    for first in range(0, len(further), BATCH):
        some = further[first : first + BATCH]
        groups = np.arange(0, len(some), TERM_GROUP)
        sizes = np.add.reduceat(some, groups, dtype=np.int64) + np.minimum(TERM_GROUP, len(some) - groups)
        ends = _ends(before, sizes)
        yield ends[1:].astype(kind)
        before = ends[-1:]


def _tasks(ptr: Array) -> list[tuple[int, int]]:
    """Ranges of lists of about `TASK_POSTINGS` postings each, at least one."""
    bounds = [0]
    while bounds[-1] < len(ptr) - 1:
        last = int(np.searchsorted(ptr, ptr[bounds[-1]] + TASK_POSTINGS, side="right")) - 1
        bounds.append(max(bounds[-1] + 1, last))
    return list(pairwise(bounds)) or [(0, 0)]  # documents without a single term
