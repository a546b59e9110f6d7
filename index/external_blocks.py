"""Blocks, summaries and their rooms: what `lsr.index.blocks` builds, straight into a folder and in bounded memory."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from lsr.errors import InputError
from lsr.index.blocks import begins, cluster, entry_bytes, heads_of, summarize
from lsr.index.invert import Counted, OverThreads
from lsr.index.options import BuildOptions
from lsr.index.prune import KEPT_POSTING, Kept, longest_document
from lsr.index.segment import Array, Blocks, Forward, Summaries
from lsr.index.writers import written

#: Bytes that building blocks needs for each column of the vectors, for each list, and for each list and range of rows
#: (`Kept`, positions).
COLUMN, LIST, LIST_AND_RANGE = 8, 120, 44

#: Bytes that a thread needs for each column while it clusters lists, or summarizes blocks, and for each term of a
#: centroid.
CLUSTER_COLUMN, SUMMARY_COLUMN, CENTROID_TERM = 24, 32, 24

#: Bytes of a count of weights, or of masses, by their bits.
HISTOGRAM = 2**20


class Begin(NamedTuple):
    """`Summaries.begin`, or a part of it."""

    begin: Array


class BlockRooms(NamedTuple):
    """Bytes for a part's lists while they are clustered, while their blocks are summarized, and how many threads."""

    cluster: int | None
    summarize: int | None
    threads: int


def rooms_for_blocks(
    max_memory: int | None, kept: Kept, forward: Forward, vocabulary_size: int, options: BuildOptions, threads: int
) -> BlockRooms:
    """What is left for blocks beside what each thread needs for itself, with as many threads as leave enough.

    Raises:
        InputError: the longest list does not fit in.
    """
    if max_memory is None:
        return BlockRooms(None, None, threads)
    n_ranges, n_lists = kept.counts.shape
    longest = int(kept.lengths.max(initial=0))
    n_centroids = max(1, min(options.max_blocks, round(options.centroid_fraction * longest)))
    centroids = CENTROID_TERM * n_centroids * longest_document(forward.ptr)
    entry = entry_bytes(vocabulary_size, np.min_scalar_type(n_centroids - 1).itemsize)
    fixed = COLUMN * vocabulary_size + LIST_AND_RANGE * n_ranges * n_lists + LIST * n_lists
    least_summary = entry * int(kept.beside.max(initial=0))
    for workers in sorted({threads, 1}, reverse=True):
        clustering = fixed + workers * (CLUSTER_COLUMN * vocabulary_size + centroids)
        summarizing = fixed + workers * (SUMMARY_COLUMN * vocabulary_size + HISTOGRAM)
        least = max(fixed + HISTOGRAM * n_ranges, clustering + KEPT_POSTING * longest, summarizing + least_summary)
        if least <= max_memory:
            return BlockRooms(max_memory - clustering, max_memory - summarizing, workers)
    raise InputError(
        f"max_memory={max_memory:,} bytes is too little for the blocks of {len(forward.ptr) - 1:,} documents of "
        f"{n_lists:,} different terms: give at least {least:,}"
    )


def write_blocks(
    place: Path, forward: Forward, vocabulary_size: int, counted: Counted, kept: Kept, options: BuildOptions,
    rooms: BlockRooms, over_threads: OverThreads,
) -> tuple[Blocks, Summaries]:  # fmt: skip
    """`blocks.build_blocks`, part by part; what is not a file of the index goes into a folder that is deleted."""
    with TemporaryDirectory(dir=place) as beside:
        heads = written(Path(beside), "heads", heads_of(forward, options.centroid_terms))
        parts = cluster(forward, vocabulary_size, counted, kept, heads, options, rooms.cluster, over_threads)
        clusters = written(place, "blocks", parts)
    found = written(place, "summaries", summarize(
        forward, vocabulary_size, clusters, kept.beside, options, rooms.summarize, over_threads
    ))  # fmt: skip
    for name in ("minimum", "step"):
        (place / f"summaries.{name}.npy").rename(place / f"blocks.{name}.npy")
    begin = written(place, "summaries", (Begin(some) for some in begins(found.further, len(found.codes)))).begin
    summaries = Summaries(found.ptr, found.terms, found.further, begin, found.blocks, found.codes)
    return Blocks(*clusters, found.minimum, found.step), summaries
