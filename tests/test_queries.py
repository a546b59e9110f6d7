"""Queries on their way to the kernels: every form as `as_query_vectors` has it, the usual ones without it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from strategies import sparse_matrices

from lsr.errors import InputError
from lsr.index import queries as module
from lsr.index.queries import as_rows, as_sample
from lsr.vectors import SparseRows, as_query_vectors, from_dicts

WIDTH = 10
ODD = (0.0, -0.0, -1.0, 1e-60, 1e39, 3.4e38, float("nan"), float("inf"), True, 2, "1.5", "much", None, [1.0])
TERMS = st.one_of(st.integers(-1, WIDTH), st.sampled_from([True, 1.5, "3", None, 2**70, np.int32(4), np.uint64(5)]))
WEIGHTS = st.one_of(st.floats(0.5, 4), st.sampled_from(ODD))


def outcome(bring: Any, queries: Any) -> Any:
    """What came out, for comparison: arrays and shape, or the error's words."""
    try:
        rows = bring(queries, WIDTH)
    except InputError as error:
        return str(error)
    return rows.shape, rows.indptr.tolist(), rows.indices.tolist(), rows.data.tobytes()


@settings(deadline=None)
@given(st.dictionaries(TERMS, WEIGHTS, max_size=5))
def test_a_dict_comes_out_as_by_the_long_way(query: dict[Any, Any]) -> None:
    assert outcome(as_rows, query) == outcome(as_query_vectors, query)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, WIDTH), st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e39, 1e-60])), max_size=6))
@pytest.mark.parametrize("terms", [list, np.int64, np.int32, np.uint16])
@pytest.mark.parametrize("weights", [list, np.float64, np.float32])
def test_a_pair_comes_out_as_by_the_long_way(terms: Any, weights: Any, entries: list[tuple[int, float]]) -> None:
    ids, values = [term for term, _ in entries], [weight for _, weight in entries]
    with np.errstate(over="ignore"):
        parts = [
            list(part) if kind is list else np.array(part, dtype=np.float64).astype(kind)
            for kind, part in ((terms, np.abs(ids) if terms is np.uint16 else ids), (weights, values))
        ]
    assert outcome(as_rows, tuple(parts)) == outcome(as_query_vectors, tuple(parts))


@settings(deadline=None)
@given(
    sparse_matrices(n_terms=WIDTH),
    st.sampled_from([np.int32, np.int64]),
    st.sampled_from([np.float32, np.float64, np.float16, np.int64]),
    st.sampled_from(["nothing", "order", "range", "negative", "zero", "nan", "width", "indptr", "one dimension"]),
)
def test_csr_rows_come_out_as_by_the_long_way(vectors: csr_array, index: Any, weight: Any, damage: str) -> None:
    one_dimension = csr_array(vectors.toarray()[0])
    vectors = vectors.copy()
    vectors.indices, vectors.indptr = vectors.indices.astype(index), vectors.indptr.astype(index)
    vectors.data = vectors.data.astype(weight)
    if damage == "width":
        vectors.resize((vectors.shape[0], WIDTH - 1))
    elif damage == "one dimension":
        vectors = one_dimension
    elif len(vectors.data) > 1 and damage != "nothing":
        if damage == "order":
            vectors.indices[:] = vectors.indices[::-1].copy()
        elif damage == "range":
            vectors.indices[-1] = WIDTH
        elif damage == "indptr":
            vectors.indptr[-1] -= 1
        elif damage != "nan" or weight is not np.int64:
            vectors.data[0] = {"negative": -1, "zero": 0, "nan": np.nan}[damage]
    assert outcome(as_rows, vectors) == outcome(as_query_vectors, vectors)


@pytest.mark.parametrize(
    "queries",
    [[{7: 2.0, 1: 0.5}, {}], ({1: 1.0}, {2: 3.0}), [], "cold", ["cold"], None, np.ones((1, WIDTH)), ([1, 2], [1.0])],
)
def test_other_forms_come_out_as_by_the_long_way(queries: Any) -> None:
    assert outcome(as_rows, queries) == outcome(as_query_vectors, queries)


def test_the_usual_forms_need_no_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """`as_query_vectors` is not asked, and nothing of what it gives is missing."""
    row = from_dicts([{1: 0.5, 7: 2.0}], WIDTH)
    usual = [row, SparseRows.of(row), {7: 2.0, 1: 0.5}, ([7, 1], [2.0, 0.5]), (row.indices, row.data)]
    expected = outcome(as_query_vectors, row)
    monkeypatch.delattr(module, "as_query_vectors")
    for query in usual:
        assert outcome(as_rows, query) == expected
        rows = as_rows(query, WIDTH)
        assert (rows.indptr.dtype, rows.indices.dtype, rows.data.dtype) == (np.int64, np.int64, np.float32)
        assert all(array.flags.owndata for array in (rows.indptr, rows.indices, rows.data))


@settings(deadline=None)
@given(sparse_matrices())
def test_rows_are_csr_by_another_name(vectors: csr_array) -> None:
    rows = SparseRows.of(vectors)
    assert rows.shape == vectors.shape
    assert (rows.to_csr() != vectors).nnz == 0
    assert not np.shares_memory(rows.data, vectors.data) or not len(rows.data)


def test_a_sample_must_hold_a_query() -> None:
    assert as_sample(None, WIDTH) is None
    sample = as_sample({1: 1.0}, WIDTH)
    assert sample is not None
    assert sample.shape == (1, WIDTH)
    for empty in ([], csr_array((0, WIDTH), dtype=np.float32)):
        with pytest.raises(InputError, match="the sample has no query: give some like those to come, or no sample"):
            as_sample(empty, WIDTH)
