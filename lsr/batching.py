"""Texts of similar length together, and their vectors back in order: shared by sides that run a transformer."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

#: A text's terms (int32, sorted) and weights (float32).
Row = tuple[NDArray[np.int32], NDArray[np.float32]]

EMPTY_ROW: Row = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


def batches_by_length(lengths: Sequence[int], *, shortest: int, tokens: int, texts: int) -> Iterator[list[int]]:
    """Positions of texts of similar length, the longest first.

    Args:
        lengths: tokens of each text.
        shortest: texts below this length are in no batch.
        tokens: the most in a batch, padding included; a single text may have more.
        texts: the most in a batch.
    """
    batch: list[int] = []
    for i in sorted((i for i, n in enumerate(lengths) if n >= shortest), key=lambda i: (-lengths[i], i)):
        if batch and (lengths[batch[0]] * (len(batch) + 1) > tokens or len(batch) == texts):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad(token_ids: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, (texts, longest): 0 behind a text's end."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(token_ids)
    return ids, mask.astype(np.int64)


def sparse_rows(pooled: NDArray[np.float32]) -> Iterator[Row]:
    """The non-zero entries of every row of (texts, vocabulary)."""
    for weights in pooled:
        terms = np.flatnonzero(weights).astype(np.int32)
        yield terms, weights[terms]


def encode_batches(
    token_ids: Sequence[NDArray[np.int32]],
    batches: Iterable[Sequence[int]],
    rows_of: Callable[[list[NDArray[np.int32]]], Iterable[Row]],
    vocabulary_size: int,
    advance: Callable[[int], object] | None,
) -> csr_array:
    """Encode batch by batch; texts that are in none get an empty vector.

    Args:
        token_ids: of all texts.
        batches: positions of texts, from `batches_by_length`.
        rows_of: makes the rows of a batch, given its token ids.
        vocabulary_size: columns of the vectors.
        advance: told how many texts were finished.
    """
    rows = [EMPTY_ROW] * len(token_ids)
    for batch in batches:
        for i, row in zip(batch, rows_of([token_ids[i] for i in batch]), strict=True):
            rows[i] = row
        if advance:
            advance(len(batch))
    return stack_rows(rows, vocabulary_size)


def stack_rows(rows: Sequence[Row], vocabulary_size: int) -> csr_array:
    """float32 vectors of shape (len(rows), vocabulary_size)."""
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(terms) for terms, _ in rows], out=indptr[1:])
    terms = np.concatenate([*(terms for terms, _ in rows), EMPTY_ROW[0]])
    weights = np.concatenate([*(weights for _, weights in rows), EMPTY_ROW[1]])
    return csr_array((weights, terms, indptr), shape=(len(rows), vocabulary_size))
