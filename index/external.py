"""An index built straight into a folder, in bounded memory: the documents come chunk by chunk.

Two passes. The first writes the forward index as the chunks come. The second goes over the forward index,
memory-mapped: it counts the terms, from which the layout of the lists follows, and then writes as many
lists at a time as the memory allows; blocks, summaries and graph after them in the same way, where they are wanted. The
files are byte for byte those of a build in memory.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array, issparse

from lsr.errors import InputError
from lsr.index.build import ranges_for, stored_weights, threads_over
from lsr.index.external_blocks import rooms_for_blocks, write_blocks
from lsr.index.graph import nearest
from lsr.index.ids import Ids
from lsr.index.invert import Counted, count, lay_out, list_bytes, merged, quantize_lists
from lsr.index.options import BuildOptions, check_threads
from lsr.index.planner import fit_plan
from lsr.index.prune import choose
from lsr.index.queries import as_sample
from lsr.index.search import Searcher
from lsr.index.segment import Forward, Segment, bits_of, narrow
from lsr.index.sizes import announce, bytes_of, predict_sizes
from lsr.index.storage import Manifest, open_array
from lsr.index.writers import ArrayWriter, StringsWriter, written
from lsr.vectors import QueryVectors, SparseVectors, check_vectors

if TYPE_CHECKING:
    from lsr.encoder import Encoder

#: Bytes that a posting needs on its way into the forward index: checked, narrowed, rounded.
POSTING_IN_WORK = 40

#: Bytes that building needs for each column of the vectors and range of rows, for each list, and for each
#: list and range of rows (`Counted`, `Layout`, positions).
COLUMN, LIST, LIST_AND_RANGE = 8, 120, 24

#: Bytes for each document that a thread needs that searches for neighbours.
SEARCHED = 24

#: The folder of the arrays in an index's.
SEGMENT = "segment-00000"

#: Ids that are packed at a time.
IDS = 10_000


def write_parts(
    folder: Path,
    chunks: Iterable[csr_array],
    ids: Iterable[str] | None,
    *,
    options: BuildOptions | None = None,
    encoder: "Encoder | None" = None,
    sample: "QueryVectors | None" = None,
    threads: int | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
) -> Manifest:
    """Build into an existing folder as `Index.build` does with ``max_memory``; `storage.finish` makes it an index.

    ``ids`` are first asked for after the last chunk.
    """
    options = options or BuildOptions()
    check_threads(threads)
    memory = None if max_memory is None else bytes_of(max_memory)
    identity = [encoder.identity()] if encoder else []
    segment = build_into(
        folder / SEGMENT, _noting_encoder(chunks, identity), ids, options,
        max_memory=memory, threads=threads or os.cpu_count() or 1, progress=progress,
    )  # fmt: skip
    queries = as_sample(sample, segment.vocabulary_size)
    plan = fit_plan(Searcher(segment), queries, options.plan_queries, seed=options.seed, progress=progress)
    n_documents, vocabulary_size = segment.n_documents, segment.vocabulary_size
    return Manifest(n_documents, vocabulary_size, options, plan.to_dict(), identity[0] if identity else None)


def _noting_encoder(chunks: Iterable[csr_array], identity: list[dict[str, Any]]) -> Iterator[csr_array]:
    """The chunks as they are; who made them, if they know it and nothing is known yet, goes to ``identity``."""
    for chunk in chunks:
        if not identity and isinstance(chunk, SparseVectors) and chunk.encoder:
            identity.append({"fingerprint": chunk.encoder})
        yield chunk


def build_into(
    place: Path,
    chunks: Iterable[csr_array],
    ids: Iterable[str] | None,
    options: BuildOptions,
    *,
    max_memory: int | None = None,
    threads: int,
    progress: bool = False,
) -> Segment:
    """Build the arrays of an index into a new folder.

    Args:
        place: the folder of the segment; it must not exist.
        chunks: the documents' vectors, float32 CSR of one width, in order; each is used once.
        ids: as in `Index.build`, taken after the last chunk.
        options: of the build.
        max_memory: bytes that the build may take, on top of a chunk and the ids as they were given;
            None to write all lists at once.
        threads: of the build.
        progress: show a progress bar on stderr.

    Returns:
        The segment, memory-mapped.

    Raises:
        InputError: vectors or ids are not acceptable, or the memory is too little for them.
    """
    place.mkdir()
    vocabulary_size = write_forward(place, chunks, options.weights, max_memory)
    forward = Forward(*(open_array(place / f"forward.{part}.npy") for part in Forward._fields))
    n_documents = len(forward.ptr) - 1
    id_bytes = write_ids(place, ids, n_documents)
    n_ranges = ranges_for(threads, len(forward.terms), vocabulary_size)
    if max_memory is not None:
        n_ranges = max(1, min(n_ranges, max_memory // (4 * COLUMN * vocabulary_size)))
    over_threads = threads_over(threads, progress)
    counted = count(forward, vocabulary_size, n_ranges, over_threads)
    if progress:
        weight_bytes = forward.weights.dtype.itemsize
        share = options.dense_share
        announce(predict_sizes(counted.lengths, n_documents, vocabulary_size, weight_bytes, share, id_bytes))
    room = None
    if max_memory is not None:
        counted, room = room_for_lists(max_memory, counted, n_documents, vocabulary_size, options)
    bits = bits_of(forward)
    kept = None  # chosen before anything is written: then a memory too small for the blocks is known
    if options.seismic:
        in_one = counted if max_memory is None else merged(counted)
        kept = choose(bits, vocabulary_size, in_one, options, over_threads)
        rooms = rooms_for_blocks(max_memory, kept, bits, vocabulary_size, options, threads)
    parts = quantize_lists(forward, vocabulary_size, counted, options.dense_share, room, over_threads)
    lists = written(place, "lists", parts)
    segment = Segment(n_documents, vocabulary_size, forward, lists, None, None)
    if kept is None:
        return segment
    over_threads = threads_over(rooms.threads, progress)
    blocks, summaries = write_blocks(place, bits, vocabulary_size, counted, kept, options, rooms, over_threads)
    segment = segment._replace(blocks=blocks, summaries=summaries)
    if not options.neighbours:
        return segment
    searchers = threads if max_memory is None else max(1, min(threads, max_memory // (SEARCHED * n_documents)))
    graph = written(place, "neighbours", nearest(segment, options.neighbours, threads=searchers, progress=progress))
    return segment._replace(neighbours=graph)


def room_for_lists(
    max_memory: int, counted: Counted, n_documents: int, vocabulary_size: int, options: BuildOptions
) -> tuple[Counted, int]:
    """Bytes that are left for the lists of one part, and the counts, of one range where those of more need too much.

    Raises:
        InputError: the longest list does not fit in.
    """
    layout = lay_out(counted.lengths, n_documents, options.dense_share)
    longest = int(list_bytes(layout, n_documents).max(initial=0))
    for counts in (counted, merged(counted)):
        n_ranges, n_lists = counts.counts.shape
        fixed = (COLUMN * n_ranges + 4) * vocabulary_size + (LIST + LIST_AND_RANGE * n_ranges) * n_lists
        if fixed + longest <= max_memory:
            return counts, max_memory - fixed
    raise InputError(
        f"max_memory={max_memory:,} bytes is too little for {n_documents:,} documents of {n_lists:,} different "
        f"terms: give at least {fixed + longest:,}"
    )


def write_forward(place: Path, chunks: Iterable[csr_array], weights: str, max_memory: int | None) -> int:
    """Write the forward index, piece by piece; returns the vectors' width."""
    width: int | None = None
    total = rows = 0
    at_once = None if max_memory is None else max_memory // POSTING_IN_WORK
    with ExitStack() as files:
        ptr = files.enter_context(ArrayWriter(place / "forward.ptr.npy", "<i8"))
        ptr.append(np.zeros(1, dtype=np.int64))
        for chunk in chunks:
            for piece in pieces_of(chunk, at_once):
                checked = check_vectors(piece, vocabulary_size=width, first_row=rows)
                kept = stored_weights(checked.data, weights)
                if width is None:
                    width = int(checked.shape[1])
                    dtype = narrow(np.zeros(0, dtype=np.int64), width - 1).dtype.str
                    terms = files.enter_context(ArrayWriter(place / "forward.terms.npy", dtype))
                    values = files.enter_context(ArrayWriter(place / "forward.weights.npy", kept.dtype.str))
                if kept.dtype.itemsize > values.dtype.itemsize:
                    values = files.enter_context(_widened(values))
                ptr.append(checked.indptr[1:] + np.int64(total))
                terms.append(checked.indices)
                values.append(kept)
                total += len(kept)
                rows += checked.shape[0]
    if rows == 0 or width is None:
        raise InputError("there are no documents to index: the vectors have no row")
    return width


def _widened(halves: ArrayWriter) -> ArrayWriter:
    """The writer of a file that float32 weights go into after all, with what was there in float16."""
    halves.close()
    partial = halves.path.with_name(f".{halves.path.name}")
    wide = ArrayWriter(partial, "<f4")
    so_far = open_array(halves.path)
    for first in range(0, len(so_far), IDS):
        wide.append(so_far[first : first + IDS])
    partial.replace(halves.path)  # the file stays open under its new name
    return wide


def pieces_of(chunk: csr_array, at_once: int | None) -> Iterator[csr_array]:
    """Cut a chunk's rows into pieces of at most so many postings; a row is not split."""
    csr = issparse(chunk) and chunk.format == "csr" and chunk.ndim == 2
    if at_once is None or not csr or chunk.nnz <= at_once or np.any(chunk.indptr[1:] < chunk.indptr[:-1]):
        yield chunk  # what is no CSR array is refused as a whole
        return
    first = 0
    while first < chunk.shape[0]:
        begin = int(chunk.indptr[first])
        last = max(first + 1, int(np.searchsorted(chunk.indptr, begin + at_once, side="right")) - 1)
        part = slice(begin, int(chunk.indptr[last]))
        shape = (last - first, chunk.shape[1])
        yield csr_array((chunk.data[part], chunk.indices[part], chunk.indptr[first : last + 1] - begin), shape=shape)
        first = last


def write_ids(place: Path, ids: Iterable[str] | None, n_documents: int) -> int:
    """Check and write the ids, some at a time; returns the bytes of all."""
    given: Sequence[str] | None = ids if ids is None or isinstance(ids, Sequence) else list(ids)
    if given is not None and _suspicious(given, n_documents):
        Ids.check(given, n_documents)  # says what is wrong
    names = iter(given if given is not None else map(str, range(n_documents)))
    with StringsWriter(place, "ids") as writer:
        while some := list(islice(names, IDS)):
            writer.append(some)
        return writer.data.length


def _suspicious(ids: Sequence[str], n_documents: int) -> bool:
    """Whether `Ids.check`, which takes more memory, has to have a look."""
    if isinstance(ids, str) or len(ids) != n_documents or not all(isinstance(name, str) and name for name in ids):
        return True
    hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=n_documents)
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any())
