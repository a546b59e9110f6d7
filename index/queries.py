"""Queries on their way to the kernels: any accepted form to checked rows, most of them in one look at each entry.

For one query, scipy's constructor and NumPy's reductions would take as long as the search. So what keeps the contract
of `lsr.vectors` is copied by one kernel; all else goes through `as_query_vectors`, which mends it or refuses it.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsr.errors import InputError
from lsr.index.kernels import take_rows
from lsr.vectors import QueryVectors, SparseRows, as_query_vectors

Array: TypeAlias = NDArray[Any]

#: Whose arrays are taken as they are. A tuple: to make a union takes longer than to look.
CSR = (SparseRows, csr_array)

#: What `take_rows` is compiled for.
TERM_DTYPES = (np.dtype(np.int32), np.dtype(np.int64))
WEIGHT_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def as_rows(queries: QueryVectors, vocabulary_size: int) -> SparseRows:
    """Bring any accepted form of queries to checked rows: int64, int64 and float32 arrays of their own.

    Raises:
        InputError: the form or the content is not acceptable.
    """
    arrays = _arrays_of(queries, vocabulary_size)
    if arrays is not None:
        indptr, terms, weights = arrays
        if terms.dtype in TERM_DTYPES and weights.dtype in WEIGHT_DTYPES and terms.shape == weights.shape:
            new = np.empty(len(indptr), np.int64), np.empty(len(terms), np.int64), np.empty(len(terms), np.float32)
            if take_rows(indptr, terms, weights, vocabulary_size, *new):
                return SparseRows(*new, vocabulary_size)
    return SparseRows.of(as_query_vectors(queries, vocabulary_size))


def is_plain_row(queries: Any, vocabulary_size: int) -> bool:
    """Whether it is one CSR row, of any content, in types that `lsr.index.kernels.answer` is compiled for."""
    return (
        isinstance(queries, CSR)
        and queries.shape == (1, vocabulary_size)
        and len(queries.indptr) == 2
        and queries.data.dtype is WEIGHT_DTYPES[0]
        and queries.indices.dtype is queries.indptr.dtype
        and queries.indices.dtype in TERM_DTYPES
    )


def as_sample(queries: "QueryVectors | None", vocabulary_size: int) -> SparseRows | None:
    """The planner's sample, None where it has to make one.

    Raises:
        InputError: as `as_rows`, or there is no query.
    """
    if queries is None:
        return None
    rows = as_rows(queries, vocabulary_size)
    if rows.shape[0] == 0:
        raise InputError("the sample has no query: give some like those to come, or no sample")
    return rows


def _arrays_of(queries: Any, vocabulary_size: int) -> tuple[Array, Array, Array] | None:
    """Indptr, term ids and weights, unchecked; None of a form, or with a content, that is less simple."""
    if isinstance(queries, CSR):
        shape = queries.shape
        if len(shape) == 2 and shape[1] == vocabulary_size and len(queries.indptr) == shape[0] + 1:
            return queries.indptr, queries.indices, queries.data
        return None
    try:
        if isinstance(queries, Mapping):
            ordered = sorted(queries)
            terms, weights = np.array(ordered), np.array([queries[term] for term in ordered], dtype=np.float64)
        elif isinstance(queries, tuple) and len(queries) == 2:
            terms, weights = np.asarray(queries[0]), np.asarray(queries[1])
            if terms.ndim != 1 or terms.shape != weights.shape:
                return None
            order = terms.argsort(kind="stable")
            terms, weights = terms[order], weights[order]
        else:
            return None
    except (TypeError, ValueError, OverflowError):
        return None
    return np.array((0, len(terms))), terms, weights
