"""The graph of nearest documents, over which a search is refined: SeismicWave (Bruch, Nardini, Rulli and Venturini,
CIKM 2024, arXiv 2408.04443).
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.index.blocks import document_heads
from lsr.index.search import Searcher
from lsr.index.segment import Array, Forward, Neighbours, Segment, bits_of, frozen

#: A document's neighbours are searched by its heaviest terms, so many; the search is by lists, with these knobs.
QUERY_TERMS = 24
QUERY_MASS = 0.7
CANDIDATES_PER_NEIGHBOUR = 3

#: Documents whose neighbours are searched at a time.
BATCH = 2_048


def build_graph(segment: Segment, width: int, *, threads: int | None = None, progress: bool = False) -> Neighbours:
    """Each document's ``width`` nearest others by dot product, as our own approximate search finds them."""
    rows = (batch.rows for batch in nearest(segment, width, threads=threads, progress=progress))
    return Neighbours(frozen(np.concatenate(list(rows))))


def nearest(
    segment: Segment, width: int, *, threads: int | None = None, progress: bool = False
) -> Iterator[Neighbours]:
    """Those of the documents of one batch after the other.

    They do not depend on the number of threads: a search does not.
    """
    searcher = Searcher(segment)
    n_documents = segment.n_documents
    with tqdm(total=n_documents, desc="finding neighbours", unit=" documents", disable=not progress or None) as bar:
        for first in range(0, n_documents, BATCH):
            last = min(first + BATCH, n_documents)
            k = min(width + 1, n_documents)  # one more: most documents find themselves
            wanted = CANDIDATES_PER_NEIGHBOUR * k
            _, found, _ = searcher.pruned(_heads(segment, first, last), k, wanted, QUERY_MASS, threads)
            yield Neighbours(_others(found, np.arange(first, last), width))
            bar.update(last - first)


def _heads(segment: Segment, first: int, last: int) -> csr_array:
    """Documents ``first`` to ``last`` with their heaviest terms alone."""
    forward = segment.forward
    part = slice(int(forward.ptr[first]), int(forward.ptr[last]))
    of_batch = Forward(forward.ptr[first : last + 1] - part.start, forward.terms[part], forward.weights[part])
    ptr, terms, weights = document_heads(bits_of(of_batch), QUERY_TERMS)
    heads = csr_array((weights, terms.astype(np.int64), ptr), shape=(last - first, segment.vocabulary_size))
    heads.sort_indices()
    return heads


def _others(found: Array, rows: Array, width: int) -> Array:
    """What each of ``rows`` found but itself, ``width`` of them, padded with -1: int32 (rows * width,)."""
    others = np.full((len(rows), width), -1, dtype=np.int32)
    keep = (found >= 0) & (found != rows[:, None])
    place = np.cumsum(keep, axis=1) - 1
    keep &= place < width
    at, _ = np.nonzero(keep)
    others[at, place[keep]] = found[keep]
    return others.ravel()
