"""Queries on their way to the kernels: any accepted form to checked rows, most of them in one look at each entry.

For one query, scipy's constructor and NumPy's reductions would take as long as the search. So what keeps the contract
of `lsr.vectors` is copied by one kernel; all else goes through `as_query_vectors`, which mends it or refuses it.
"""

from array import array
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


def plain_row(queries: Any, vocabulary_size: int) -> tuple[Array, Array, Array] | None:
    """One query, of any content, as indptr, terms and weights of types that `kernels.search_lists` is compiled for.

    None of more than one query, and of other forms and types.
    """
    if isinstance(queries, CSR):
        if queries.shape != (1, vocabulary_size):
            return None
        arrays = queries.indptr, queries.indices, queries.data
    elif (parts := _parts_of(queries)) is not None:
        if parts[0].dtype not in TERM_DTYPES:
            return None
        arrays = np.array((0, len(parts[0])), parts[0].dtype), *parts
    else:
        return None
    dtype = arrays[1].dtype
    if dtype in TERM_DTYPES and arrays[0].dtype is dtype and arrays[2].dtype is WEIGHT_DTYPES[0]:
        return arrays
    return None


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
    parts = _parts_of(queries)
    return None if parts is None else (np.array((0, len(parts[0]))), *parts)


def _parts_of(queries: Any) -> tuple[Array, Array] | None:
    """Term ids in ascending order, and their weights, of a dict (float32) or a pair, unchecked; None of all else."""
    try:
        if isinstance(queries, Mapping):  # array is twice as fast as NumPy in looking at Python's floats
            ordered = sorted(queries)
            floats = array("f", map(queries.__getitem__, ordered))
            return np.array(ordered), np.frombuffer(floats, dtype=np.float32)
        if isinstance(queries, tuple) and len(queries) == 2:
            terms, weights = np.asarray(queries[0]), np.asarray(queries[1])
            if terms.ndim == 1 and terms.shape == weights.shape:
                order = terms.argsort(kind="stable")
                return terms[order], weights[order]
    except (TypeError, ValueError, OverflowError):
        pass
    return None
