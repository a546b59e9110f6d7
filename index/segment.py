"""The arrays of an index, in memory and on disk alike (docs/file-format.md).

Rows are documents in the order they were added; a list belongs to a used term; a block is a part of
a list; a summary belongs to a block.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsr.errors import FormatError

Array = NDArray[Any]


class Forward(NamedTuple):
    """The documents as CSR: ptr int64 (documents + 1), terms uint16 or uint32, weights float16 or float32."""

    ptr: Array
    terms: Array
    weights: Array


#: Documents in a window of the inverted lists: 16 bits name a document within its window.
WINDOW = 2**16

#: A list with fewer postings a window than this is kept whole, without a pointer for each window.
SHORT = 16

#: Dense lists are padded to a multiple of this many documents, which search looks at together.
GROUP = 64

#: Terms of summaries between two whose first entry is stored.
TERM_GROUP = 8

#: Kinds of lists, as in ``Lists.kind``.
SHORT_LIST, WINDOWED_LIST, DENSE_LIST = 0, 1, 2


class Lists(NamedTuple):
    """Inverted lists with weights in 8 bits; step * code is never below the weight.

    A list is laid out by its length: *dense* lists have a code for every document, 0 where it lacks
    the term; *windowed* lists have 16-bit rows within windows of `WINDOW` documents; *short* ones have
    32-bit rows.

    Per list: terms int64, the sorted used terms; step float32; length int32, postings; kind uint8;
    place int64, where the list begins: in dense_codes, window_ptr or short_rows.
    dense_codes uint8: documents rounded up to `GROUP`, list by list. window_ptr int64: windows + 1 for
    each windowed list, positions in window_rows (uint16) and window_codes (uint8). short_rows
    uint32, short_codes uint8. Rows ascend within a list.
    """

    terms: Array
    step: Array
    length: Array
    kind: Array
    place: Array
    dense_codes: Array
    window_ptr: Array
    window_rows: Array
    window_codes: Array
    short_rows: Array
    short_codes: Array


class Blocks(NamedTuple):
    """Pruned lists cut into blocks.

    ptr int64 (lists + 1) counts blocks, start int64 (blocks + 1) counts rows, rows int32; minimum
    and step float32 (blocks) decode the block's summary.
    """

    ptr: Array
    start: Array
    rows: Array
    minimum: Array
    step: Array


class Summaries(NamedTuple):
    """Block summaries, transposed per list. A short list has none, and is one block.

    ptr int64 (lists + 1) counts terms. Per term: terms uint16 or uint32, further, its number of entries less 1.
    begin uint32 or int64: the first entry of every `TERM_GROUP`-th term, and at last the number of entries.
    Per entry: blocks, its number within the list, and codes uint8. further and blocks have as few bits as
    the number of blocks of the longest list allows: uint8, uint16 or uint32.
    """

    ptr: Array
    terms: Array
    further: Array
    begin: Array
    blocks: Array
    codes: Array


class Neighbours(NamedTuple):
    """The documents nearest to each document, by dot product (SeismicWave's graph).

    rows int32 (documents * `BuildOptions.neighbours`): document by document, the nearest first; -1 from where there
    are no more.
    """

    rows: Array


class Segment(NamedTuple):
    """One immutable set of documents with everything that answers queries on it.

    blocks and summaries are None where the index was built without Seismic, neighbours without a graph.
    """

    n_documents: int
    vocabulary_size: int
    forward: Forward
    lists: Lists
    blocks: Blocks | None
    summaries: Summaries | None
    neighbours: Neighbours | None = None

    def families(self) -> dict[str, NamedTuple]:
        """The families of arrays by name."""
        named = {
            "forward": self.forward,
            "lists": self.lists,
            "blocks": self.blocks,
            "summaries": self.summaries,
            "neighbours": self.neighbours,
        }
        return {name: family for name, family in named.items() if family is not None}

    @property
    def n_neighbours(self) -> int:
        """Neighbours kept of each document, 0 without a graph."""
        return 0 if self.neighbours is None else len(self.neighbours.rows) // self.n_documents

    def sizes(self) -> dict[str, int]:
        """Bytes by family."""
        return {name: sum(array.nbytes for array in family) for name, family in self.families().items()}

    def document(self, row: int) -> tuple[Array, Array]:
        """A document's term ids (int64) and weights."""
        start, stop = int(self.forward.ptr[row]), int(self.forward.ptr[row + 1])
        return self.forward.terms[start:stop].astype(np.int64), self.forward.weights[start:stop].astype(np.float32)


def bits_of(forward: Forward) -> Forward:
    """The documents as the kernels take them: Numba has no float16, and is given its bits."""
    halves = forward.weights.dtype == np.float16
    return forward._replace(weights=forward.weights.view(np.uint16)) if halves else forward


def n_windows(n_documents: int) -> int:
    """Windows that the inverted lists of so many documents have."""
    return -(-n_documents // WINDOW)


def padded(n_documents: int) -> int:
    """Codes of a dense list of so many documents."""
    return -(-n_documents // GROUP) * GROUP


def narrow(values: Array, largest: int) -> Array:
    """Unsigned integers in 16 bits where ``largest`` allows it, else in 32."""
    return values.astype(np.uint16 if largest < 2**16 else np.uint32)


def frozen(array: Array) -> Array:
    """The array as the kernels want it: contiguous, read-only, a plain ndarray."""
    array = np.ascontiguousarray(array).view(np.ndarray)
    array.flags.writeable = False
    return array


def check_segment(segment: Segment) -> None:
    """Hold the arrays' lengths against each other, so that no kernel reads outside of them.

    Raises:
        FormatError: naming what does not fit.
    """
    forward, lists = segment.forward, segment.lists
    of_kind = [lists.kind == kind for kind in (SHORT_LIST, WINDOWED_LIST, DENSE_LIST)]
    n_short, n_windowed, n_dense = (int(np.count_nonzero(chosen)) for chosen in of_kind)
    in_short, in_windowed, _ = (int(lists.length[chosen].sum(dtype=np.int64)) for chosen in of_kind)
    rules = {
        "forward.ptr": len(forward.ptr) == segment.n_documents + 1,
        "forward": len(forward.terms) == len(forward.weights) == forward.ptr[-1],
        "lists": len({len(lists.terms), len(lists.step), len(lists.length), len(lists.kind), len(lists.place)}) == 1,
        "lists.kind": n_short + n_windowed + n_dense == len(lists.terms),
        "lists.dense_codes": len(lists.dense_codes) == n_dense * padded(segment.n_documents),
        "lists.window_ptr": len(lists.window_ptr) == n_windowed * (n_windows(segment.n_documents) + 1),
        "lists.window": len(lists.window_rows) == len(lists.window_codes) == in_windowed,
        "lists.short": len(lists.short_rows) == len(lists.short_codes) == in_short,
    }
    blocks, summaries = segment.blocks, segment.summaries
    if (blocks is None) != (summaries is None):
        rules["blocks and summaries"] = False
    elif blocks is not None and summaries is not None:
        rules |= {
            "blocks.ptr": len(blocks.ptr) == len(lists.terms) + 1,
            "blocks.start": len(blocks.start) == blocks.ptr[-1] + 1,
            "blocks": len(blocks.minimum) == len(blocks.step) == blocks.ptr[-1],
            "blocks.rows": len(blocks.rows) == blocks.start[-1],
            "summaries.ptr": len(summaries.ptr) == len(lists.terms) + 1,
            "summaries.begin": len(summaries.begin) == -(-len(summaries.terms) // TERM_GROUP) + 1,
            "summaries.terms": len(summaries.terms) == len(summaries.further) == summaries.ptr[-1],
            "summaries": len(summaries.blocks) == len(summaries.codes) == summaries.begin[-1],
        }
    if segment.neighbours is not None:
        rules["neighbours.rows"] = len(segment.neighbours.rows) % segment.n_documents == 0
    wrong = [name for name, holds in rules.items() if not holds]
    if wrong:
        raise FormatError(f"the index's arrays do not fit together ({', '.join(wrong)}): build it again")
