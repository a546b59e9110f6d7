"""How many bytes an index takes: asked for, predicted before it is written, and told to people."""

import re
import sys

import numpy as np

from lsr.errors import InputError
from lsr.index.invert import Layout, lay_out, list_bytes
from lsr.index.segment import DENSE_LIST, SHORT_LIST, WINDOWED_LIST, Array

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

KINDS = {"dense lists": DENSE_LIST, "windowed lists": WINDOWED_LIST, "short lists": SHORT_LIST}

#: Bytes of terms, step, length, kind and place, which every list has.
LIST_HEAD = 8 + 4 + 4 + 1 + 8


def bytes_of(size: int | str) -> int:
    """A number of bytes, given as such or as text: "4GB", "500 MB", "1.5GB" (powers of 1,000).

    Raises:
        InputError: it is neither, or not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", size.strip().upper()) if isinstance(size, str) else None
    number = float(found[1]) * UNITS[found[2]] if found else size
    if isinstance(number, int | float | np.integer) and not isinstance(number, bool) and number >= 1:
        return int(number)
    raise InputError(f"max_memory must be a number of bytes above 0, or one like '4GB' or '500MB': got {size!r}")


def predict_sizes(
    lengths: Array,
    n_documents: int,
    vocabulary_size: int,
    weight_bytes: int,
    dense_share: float,
    id_bytes: int | None = None,
) -> dict[str, int]:
    """Bytes of every part of an index, from counts alone; blocks and summaries come on top.

    Args:
        lengths: postings of each used term.
        n_documents: documents.
        vocabulary_size: columns of the vectors.
        weight_bytes: 2 where weights are kept as float16, else 4.
        dense_share: `BuildOptions.dense_share`.
        id_bytes: of all ids as UTF-8; None to leave the ids out.

    Returns:
        forward, the lists by kind, list heads, ids: their sum is that of `Index.sizes`.
    """
    layout: Layout = lay_out(np.asarray(lengths, dtype=np.int64), n_documents, dense_share)
    own = list_bytes(layout, n_documents)
    term_bytes = 2 if vocabulary_size <= 2**16 else 4
    ids = {} if id_bytes is None else {"ids": 8 * (n_documents + 1) + id_bytes}
    return {
        "forward": 8 * (n_documents + 1) + (term_bytes + weight_bytes) * int(np.sum(lengths)),
        **{name: int(own[layout.kind == kind].sum()) for name, kind in KINDS.items()},
        "list heads": LIST_HEAD * len(own),
        **ids,
    }


def describe(sizes: dict[str, int]) -> str:
    """The sizes in one line, their sum at the end."""
    parts = [f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()]
    return "  ".join([*parts, f"together {sum(sizes.values()) / 1e6:.1f} MB"])


def announce(predicted: dict[str, int]) -> None:
    """Say on stderr how large an index will be."""
    print(f"predicted: {describe(predicted)}", file=sys.stderr)
