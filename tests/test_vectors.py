"""The sparse-vector contract: what is accepted, what is refused, and with which message."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array, csr_matrix

from lsr.errors import InputError
from lsr.vectors import MAX_VOCABULARY, SparseVectors, as_query_vectors, check_vectors, from_dicts

WEIGHTS = st.floats(min_value=0, max_value=1e6, width=32)
ROWS = st.lists(st.dictionaries(st.integers(0, 99_999), WEIGHTS, max_size=8), max_size=6)


def csr(data: Any, terms: Any, indptr: Any, columns: int = 10) -> csr_array:
    """A CSR array of exactly these parts, broken ones too."""
    array = csr_array((len(indptr) - 1, columns), dtype=np.float32)
    array.data, array.indices, array.indptr = np.asarray(data), np.asarray(terms), np.asarray(indptr)
    return array


def rows_of(vectors: csr_array) -> list[dict[int, float]]:
    bounds = zip(vectors.indptr[:-1], vectors.indptr[1:], strict=True)
    return [dict(zip(vectors.indices[a:b].tolist(), vectors.data[a:b].tolist(), strict=True)) for a, b in bounds]


@given(ROWS)
def test_dicts_come_back_from_checked_vectors(rows: list[dict[int, float]]) -> None:
    checked = check_vectors(from_dicts(rows, 100_000), vocabulary_size=100_000)
    assert checked.shape == (len(rows), 100_000)
    assert checked.dtype == np.float32
    assert rows_of(checked) == [{term: weight for term, weight in row.items() if weight > 0} for row in rows]


@given(ROWS)
def test_checked_vectors_have_ascending_terms_and_positive_weights(rows: list[dict[int, float]]) -> None:
    checked = check_vectors(from_dicts(rows, 100_000))
    assert (checked.data > 0).all()
    for row in rows_of(checked):
        assert list(row) == sorted(row)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0, np.nan], r"row 2 has a NaN or infinite weight \(nan\) at term 4"),
        ([1.0, np.inf, 2.0], r"row 0 has a NaN or infinite weight \(inf\) at term 3"),
        ([1.0, 2.0, -np.inf], r"row 2 has a NaN or infinite weight \(-inf\) at term 4"),
        ([1.0, -0.5, 2.0], r"row 0 has a negative weight \(-0.5\) at term 3: weights must be finite and non-negative"),
        ([True, True, True], "weights must be numbers, not bool"),
        ([1j, 1j, 1j], "weights must be numbers, not complex128"),
        ([1.0, 2.0, 1e39], "weight beyond float32's range: scale them down"),
    ],
)
def test_bad_weights_are_refused(weights: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_vectors(csr(weights, [0, 3, 4], [0, 2, 2, 3]))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([0, 3, 10], "document row 2 has term id 10, beyond the vocabulary of 10 terms: widen the array's shape"),
        ([-1, 3, 4], "document row 0 has term id -1, beyond the vocabulary of 10 terms"),
        ([3, 0, 4], "document row 0 has unsorted or repeated term ids: call vectors.sum_duplicates"),
        ([3, 3, 4], "document row 0 has unsorted or repeated term ids"),
    ],
)
def test_bad_term_ids_are_refused(terms: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_vectors(csr([1.0, 2.0, 3.0], terms, [0, 2, 2, 3]))


def test_the_row_with_unsorted_terms_is_named_after_empty_and_descending_starts() -> None:
    with pytest.raises(InputError, match="query row 3 has unsorted"):
        check_vectors(csr([1.0] * 5, [8, 9, 5, 7, 6], [0, 0, 2, 3, 5, 5]), what="query")


def test_a_row_may_start_below_the_end_of_the_row_before() -> None:
    assert check_vectors(csr([1.0, 1.0, 1.0], [8, 9, 0], [0, 2, 2, 3])).nnz == 3


@pytest.mark.parametrize("indptr", [[0, 3, 2], [1, 2, 3], [0, 2, 4], [0, 1, 2], [0, 3], [0, 1, 2, 3]])
def test_a_broken_indptr_is_refused(indptr: list[int]) -> None:
    vectors = from_dicts([{0: 1.0, 2: 1.0}, {1: 1.0}], 10)
    vectors.indptr = np.array(indptr)
    with pytest.raises(InputError, match="broken indptr: rebuild the CSR array"):
        check_vectors(vectors)


def test_weights_and_terms_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="broken indptr"):
        check_vectors(csr([1.0], [0, 1], [0, 2]))


@pytest.mark.parametrize("make", [np.asarray, csc_array, lambda dense: csr_array(dense).tocoo(), lambda _: None])
def test_what_is_not_csr_is_refused_by_its_name(make: Callable[[Any], Any]) -> None:
    vectors = make(np.eye(3))
    with pytest.raises(InputError, match=rf"must be a scipy.sparse.csr_array .*, not {type(vectors).__name__}"):
        check_vectors(vectors)


def test_a_single_row_of_csr_is_told_how_to_stay_two_dimensional() -> None:
    with pytest.raises(InputError, match=r"shape \(n, vocabulary\), not \(3,\): take one row as v\[\[i\]\]"):
        check_vectors(csr_array(np.eye(3))[0].tocsr())


def test_another_number_of_columns_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="have 10 columns but the vocabulary has 30,522 terms"):
        check_vectors(from_dicts([{0: 1.0}], 10), vocabulary_size=30_522)


def test_more_columns_than_31_bits_are_refused() -> None:
    assert check_vectors(from_dicts([{MAX_VOCABULARY - 1: 1.0}], MAX_VOCABULARY)).nnz == 1
    with pytest.raises(InputError, match=r"2,147,483,648 columns: at most 2\^31 - 1"):
        check_vectors(from_dicts([{0: 1.0}], MAX_VOCABULARY + 1))


def test_explicit_zeros_are_dropped_from_a_copy() -> None:
    vectors = csr(np.array([1, 0, 2, -0.0], dtype=np.float32), [0, 3, 4, 5], [0, 2, 2, 4])
    checked = check_vectors(vectors)
    assert rows_of(checked) == [{0: 1.0}, {}, {4: 2.0}]
    assert vectors.data.tolist() == [1, 0, 2, 0]
    assert vectors.indices.tolist() == [0, 3, 4, 5]
    assert vectors.indptr.tolist() == [0, 2, 2, 4]


def test_weights_too_small_for_float32_are_dropped_as_zeros() -> None:
    assert check_vectors(csr([1.0, 1e-60], [0, 1], [0, 2])).indices.tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8])
def test_other_numbers_become_float32(dtype: Any) -> None:
    checked = check_vectors(csr(np.array([3, 2], dtype=dtype), [1, 0], [0, 1, 2]))
    assert checked.dtype == np.float32
    assert rows_of(checked) == [{1: 3.0}, {0: 2.0}]


def test_the_old_matrix_class_becomes_an_array() -> None:
    checked = check_vectors(csr_matrix(np.array([[0.0, 3.0], [2.0, 0.0]])))
    assert isinstance(checked, csr_array)
    assert checked.toarray().tolist() == [[0, 3], [2, 0]]


def test_term_ids_beyond_16_bits_are_kept() -> None:
    checked = check_vectors(from_dicts([{65_535: 1.0, 65_536: 2.0, 250_001: 3.0}], 250_002))
    assert checked.indices.tolist() == [65_535, 65_536, 250_001]


@pytest.mark.parametrize("row", [{"a": 1.0}, {"3": 1.0}, {1.5: 1.0}, {None: 1.0}, {0: "much"}, {0: None}, {2**70: 1.0}])
def test_dicts_that_do_not_map_integers_to_numbers_are_refused(row: dict[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"must map integer term ids to numbers .*: to search with text use"):
        from_dicts([row], 10)


def test_numpy_integers_are_term_ids() -> None:
    assert rows_of(from_dicts([{np.int32(4): np.float32(0.5)}], 10)) == [{4: 0.5}]


@pytest.mark.parametrize(
    "queries",
    [
        {7: 2.0, 1: 0.5},
        [{7: 2.0, 1: 0.5}],
        ([7, 1], [2.0, 0.5]),
        (np.array([7, 1], dtype=np.uint16), np.array([2.0, 0.5], dtype=np.float16)),
        from_dicts([{7: 2.0, 1: 0.5}], 10),
    ],
)
def test_every_form_of_a_query_gives_the_same_row(queries: Any) -> None:
    vectors = as_query_vectors(queries, 10)
    assert vectors.shape == (1, 10)
    assert rows_of(vectors) == [{1: 0.5, 7: 2.0}]


@pytest.mark.parametrize("queries", [[{1: 1.0}, {2: 3.0}], ({1: 1.0}, {2: 3.0})])
def test_two_dicts_are_two_queries(queries: Any) -> None:
    assert rows_of(as_query_vectors(queries, 10)) == [{1: 1.0}, {2: 3.0}]


@pytest.mark.parametrize("queries", [{}, [{}], ([], [])])
def test_a_query_may_be_empty(queries: Any) -> None:
    vectors = as_query_vectors(queries, 10)
    assert vectors.shape == (1, 10)
    assert vectors.nnz == 0


def test_an_empty_list_is_no_query() -> None:
    assert as_query_vectors([], 10).shape == (0, 10)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("cold fusion", r"takes vectors, not text: use lsr.Retriever, or encoder.encode_queries\(\[text\]\)"),
        (["cold fusion"], r"a list of queries must hold \{term id: weight\} dicts: encode texts with"),
        ([{1: 1.0}, "cold"], "a list of queries must hold"),
        (([1, 2], [1.0]), r"two 1-D arrays of one length, the ids integer: got shapes \(2,\) and \(1,\)"),
        (([0.5, 1.0], [1.0, 1.0]), "the ids integer"),
        (([[1, 2]], [[1.0, 1.0]]), "two 1-D arrays"),
        (([1, 1], [1.0, 2.0]), "query row 0 has unsorted or repeated term ids"),
        (([1], ["much"]), "query weights must be numbers"),
        ({10: 1.0}, "query row 0 has term id 10, beyond the vocabulary of 10 terms"),
        ({-1: 1.0}, "query row 0 has term id -1"),
        ({2**40: 1.0}, "query row 0 has term id 1099511627776"),
        ([{1: 1.0}, {2: -1.0}], r"query row 1 has a negative weight \(-1.0\) at term 2"),
        ({1: float("nan")}, "query row 0 has a NaN or infinite weight"),
        ({1: 1e39}, "query row 0 has a NaN or infinite weight"),
        (np.ones((1, 10)), "query vectors must be a scipy.sparse.csr_array .*, not ndarray"),
        (None, "query vectors must be .*, not NoneType"),
        (from_dicts([{1: 1.0}], 9), "query vectors have 9 columns but the vocabulary has 10 terms"),
    ],
)
def test_unacceptable_queries_are_refused(queries: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_query_vectors(queries, 10)


@pytest.mark.filterwarnings("error")
def test_overflow_is_reported_once_and_not_by_numpy() -> None:
    with pytest.raises(InputError, match="beyond float32's range"):
        check_vectors(csr([1e300], [0], [0, 1]))


def test_sparse_vectors_know_their_encoder_until_they_are_changed() -> None:
    vectors = SparseVectors(from_dicts([{1: 1.0}, {2: 2.0}], 10), encoder="abc")
    assert vectors.encoder == "abc"
    assert vectors[[0]].encoder is None
    assert (vectors * 2).encoder is None
    assert SparseVectors(vectors).encoder is None
    assert rows_of(check_vectors(vectors)) == [{1: 1.0}, {2: 2.0}]
