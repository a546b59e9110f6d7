"""The sparse-vector contract: ``scipy.sparse.csr_array``, float32, checked at every boundary.

A row is a text, a column is a term. Within a row, term ids are sorted and unique; weights are
finite and non-negative. Term ids may be up to 32 bits wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, issparse

from lsr.errors import InputError

MAX_VOCABULARY = 2**31 - 1
LARGEST = float(np.finfo(np.float32).max)

#: What `Index.search` takes as queries: CSR rows, one {term id: weight} dict or a list of them, or
#: one (term ids, weights) pair.
QueryVectors: TypeAlias = (
    "csr_array | SparseRows | Mapping[int, float] | Sequence[Mapping[int, float]] | tuple[ArrayLike, ArrayLike]"
)


class SparseVectors(csr_array):  # type: ignore[misc]
    """A ``csr_array`` that remembers which encoder made it.

    Attributes:
        encoder: the encoder's fingerprint, or None when unknown. An index refuses queries whose
            encoder is known to differ from its own. Slicing and arithmetic forget it.
    """

    encoder: str | None

    def __init__(self, *args: Any, encoder: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoder = encoder


@dataclass(slots=True, eq=False)
class SparseRows:
    """CSR rows as plain arrays, named as those of ``csr_array``: a row is made in a microsecond, scipy's takes ten.

    Attributes:
        indptr: int64 (rows + 1).
        indices: int64 term ids.
        data: float32 weights.
        vocabulary_size: columns.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    data: NDArray[np.float32]
    vocabulary_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.indptr) - 1, self.vocabulary_size

    @classmethod
    def empty(cls, n_rows: int, n_weights: int, vocabulary_size: int) -> "SparseRows":
        """Room for so many rows and weights, with anything in it."""
        indptr, indices = np.empty(n_rows + 1, dtype=np.int64), np.empty(n_weights, dtype=np.int64)
        return cls(indptr, indices, np.empty(n_weights, dtype=np.float32), vocabulary_size)

    @classmethod
    def of(cls, vectors: csr_array) -> "SparseRows":
        """A copy of checked vectors."""
        indptr, indices = vectors.indptr.astype(np.int64), vectors.indices.astype(np.int64)
        return cls(indptr, indices, vectors.data.astype(np.float32), int(vectors.shape[1]))

    def part(self, first: int, last: int) -> "SparseRows":
        """The rows from ``first`` to before ``last``, which share the arrays."""
        begin, end = self.indptr[first], self.indptr[last]
        indptr = self.indptr[first : last + 1] - begin
        return SparseRows(indptr, self.indices[begin:end], self.data[begin:end], self.vocabulary_size)

    def to_csr(self) -> csr_array:
        """The same as scipy's type, which may share the arrays."""
        return csr_array((self.data, self.indices, self.indptr), shape=self.shape)


def check_vectors(
    vectors: Any, *, vocabulary_size: int | None = None, what: str = "document", first_row: int = 0
) -> csr_array:
    """Check the contract and return the vectors as float32 CSR without explicit zeros.

    Args:
        vectors: CSR array or matrix of shape (n, vocabulary).
        vocabulary_size: required number of columns, if known.
        what: "document" or "query", for the messages.
        first_row: number of the first row, for the messages: of a chunk that is not the first.

    Raises:
        InputError: with the first offending row.
    """
    if not issparse(vectors) or vectors.format != "csr":
        raise InputError(
            f"{what} vectors must be a scipy.sparse.csr_array of shape (n, vocabulary), "
            f"not {type(vectors).__name__}: build one with lsr.vectors.from_dicts or call .tocsr()"
        )
    if vectors.ndim != 2:
        raise InputError(f"{what} vectors must have shape (n, vocabulary), not {vectors.shape}: take one row as v[[i]]")
    if vectors.shape[1] > MAX_VOCABULARY:
        raise InputError(f"{what} vectors have {vectors.shape[1]:,} columns: at most 2^31 - 1 are supported")
    if vocabulary_size is not None and vectors.shape[1] != vocabulary_size:
        raise InputError(
            f"{what} vectors have {vectors.shape[1]:,} columns but the vocabulary has {vocabulary_size:,} "
            "terms: encode them with the encoder the index was built with"
        )
    indptr, terms, weights = vectors.indptr, vectors.indices, vectors.data
    whole = len(indptr) == vectors.shape[0] + 1 and indptr[0] == 0 and indptr[-1] == len(terms) == len(weights)
    if not whole or (len(indptr) > 2 and np.any(indptr[1:] < indptr[:-1])):
        raise InputError(f"{what} vectors have a broken indptr: rebuild the CSR array")
    _check_weights(indptr, terms, weights, what, first_row)
    _check_terms(indptr, terms, int(vectors.shape[1]), what, first_row)
    has_zeros = np.count_nonzero(weights) != len(weights)
    if isinstance(vectors, csr_array) and weights.dtype == np.float32 and not has_zeros:
        return vectors
    clean = csr_array((_as_float32(weights), terms, indptr), shape=vectors.shape)
    if np.count_nonzero(clean.data) != len(clean.data):
        clean = clean.copy()
        clean.eliminate_zeros()
    return clean


def _as_float32(weights: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        return weights.astype(np.float32, copy=False)


def _row_of(indptr: NDArray[Any], position: int) -> int:
    return int(np.searchsorted(indptr, position, side="right")) - 1


def _check_weights(indptr: NDArray[Any], terms: NDArray[Any], weights: NDArray[Any], what: str, first_row: int) -> None:
    if weights.dtype.kind not in "fiu":
        raise InputError(f"{what} weights must be numbers, not {weights.dtype}: convert them to float32")
    if len(weights) == 0 or (float(weights.min()) >= 0 and float(weights.max()) <= LARGEST):  # NaN fails both
        return
    for bad, name in ((~np.isfinite(weights), "NaN or infinite"), (weights < 0, "negative")):
        if bad.any():
            at = int(np.argmax(bad))
            row = first_row + _row_of(indptr, at)
            raise InputError(
                f"{what} row {row} has a {name} weight ({weights[at]}) at term {terms[at]}: "
                "weights must be finite and non-negative"
            )
    raise InputError(f"{what} vectors have a weight beyond float32's range: scale them down")


def _check_terms(indptr: NDArray[Any], terms: NDArray[Any], vocabulary_size: int, what: str, first_row: int) -> None:
    if len(terms) == 0:
        return
    if terms.min() < 0 or terms.max() >= vocabulary_size:
        outside = (terms < 0) | (terms >= vocabulary_size)
        at = int(np.argmax(outside))
        raise InputError(
            f"{what} row {first_row + _row_of(indptr, at)} has term id {terms[at]}, beyond the vocabulary of "
            f"{vocabulary_size:,} terms: widen the array's shape or mend the ids"
        )
    ascending = terms[1:] > terms[:-1]
    starts = indptr[1:-1]
    ascending[starts[(starts > 0) & (starts < len(terms))] - 1] = True
    if not ascending.all():
        row = first_row + _row_of(indptr, int(np.argmin(ascending)))
        raise InputError(f"{what} row {row} has unsorted or repeated term ids: call vectors.sum_duplicates() first")


def from_dicts(rows: Sequence[Mapping[int, float]], vocabulary_size: int) -> csr_array:
    """Stack {term id: weight} dicts into CSR rows of shape (len(rows), vocabulary_size).

    Raises:
        InputError: a term id is not an integer or a weight is not a number.
    """
    try:
        ordered = [sorted((index(term), float(weight)) for term, weight in row.items()) for row in rows]
        terms = np.array([term for row in ordered for term, _ in row], dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"a vector given as a dict must map integer term ids to numbers ({error}): "
            "to search with text use lsr.Retriever"
        ) from error
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in ordered], out=indptr[1:])
    weights = _as_float32(np.array([weight for row in ordered for _, weight in row], dtype=np.float64))
    return csr_array((weights, terms, indptr), shape=(len(rows), vocabulary_size))


def as_query_vectors(queries: QueryVectors, vocabulary_size: int) -> csr_array:
    """Bring any accepted form of queries to checked CSR rows.

    Raises:
        InputError: the form or the content is not acceptable.
    """
    if isinstance(queries, SparseRows):
        queries = queries.to_csr()
    elif isinstance(queries, Mapping):
        queries = from_dicts([queries], vocabulary_size)
    elif isinstance(queries, tuple) and len(queries) == 2 and not isinstance(queries[0], Mapping):
        terms, weights = (np.atleast_1d(np.asarray(part)) for part in queries)
        terms = terms if terms.size else terms.astype(np.int64)  # NumPy takes [] for floats
        if terms.shape != weights.shape or terms.ndim != 1 or terms.dtype.kind not in "iu":
            raise InputError(
                "a query given as (term ids, weights) needs two 1-D arrays of one length, the ids integer: "
                f"got shapes {terms.shape} and {weights.shape}"
            )
        order = np.argsort(terms, kind="stable")
        indptr = np.array([0, len(terms)])
        queries = csr_array((weights[order], terms[order], indptr), shape=(1, vocabulary_size))
    elif isinstance(queries, Sequence) and not isinstance(queries, str):
        rows = [query for query in queries if isinstance(query, Mapping)]
        if len(rows) != len(queries):
            raise InputError(
                "a list of queries must hold {term id: weight} dicts: encode texts with "
                "encoder.encode_queries(texts), or search with lsr.Retriever"
            )
        queries = from_dicts(rows, vocabulary_size)
    elif isinstance(queries, str):
        raise InputError("an index takes vectors, not text: use lsr.Retriever, or encoder.encode_queries([text])")
    return check_vectors(queries, vocabulary_size=vocabulary_size, what="query")
