"""The `Index` interface: what it takes, what it gives, what it refuses."""

import copy
import dataclasses
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from strategies import collections

import lsr
from lsr.errors import InputError, LsrWarning, MismatchError
from lsr.vectors import SparseRows, SparseVectors

settings.register_profile("index", max_examples=40, deadline=None)
settings.load_profile("index")


def random_vectors(n: int, n_terms: int, nnz: int, seed: int) -> csr_array:
    rng = np.random.default_rng(seed)
    dense = np.zeros((n, n_terms), dtype=np.float32)
    for row in dense:
        row[rng.choice(n_terms, nnz, replace=False)] = rng.exponential(size=nnz).astype(np.float32) + 0.01
    return csr_array(dense)


DOCUMENTS = random_vectors(200, 50, 8, seed=0)
QUERIES = random_vectors(20, 50, 5, seed=1)
IDS = [f"d{i}" for i in range(200)]
BLOCKS = lsr.BuildOptions(seismic=True)

#: The three ways to search, the approximate ones so generous that they miss nothing in tiny collections.
METHODS = [{"exact": True}, {"candidates": 40}, {"query_cut": 10, "heap_factor": 0.5}]


@pytest.fixture(scope="module")
def index() -> lsr.Index:
    return lsr.Index.build(DOCUMENTS, IDS, options=BLOCKS)


def small() -> lsr.Index:
    return lsr.Index.build(csr_array(np.eye(3, 4, dtype=np.float32)), ["a", "b", "c"], options=BLOCKS)


@given(
    collections(),
    st.integers(1, 15),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.integers(1, 4),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2),
)
def test_seismic_at_lossless_settings_equals_exact_search(
    collection, k, fraction, min_size, min_list, heap_factor, seed
):
    documents, queries = collection
    k = min(k, documents.shape[0])
    options = lsr.BuildOptions.lossless(
        centroid_fraction=fraction, min_block_size=min_size, min_list_size=min_list, seed=seed
    )
    index = lsr.Index.build(documents, options=options)
    exact = index.search(queries, k, exact=True)
    seismic = index.search(queries, k, query_cut=1_000, heap_factor=heap_factor)
    np.testing.assert_array_equal(seismic.rows, exact.rows)
    np.testing.assert_array_equal(seismic.scores, exact.scores)


@pytest.mark.parametrize("knobs", [{}, {"candidates": 50}, {"query_cut": 10}])
def test_default_settings_keep_a_recall_floor(index, knobs):
    exact, found = index.search(QUERIES, 10, exact=True), index.search(QUERIES, 10, **knobs)
    pairs = zip(exact.rows, found.rows, strict=True)
    recalls = [len(set(a[a >= 0]) & set(b[b >= 0])) / len(a[a >= 0]) for a, b in pairs]
    assert np.mean(recalls) >= 0.95


@given(collections(), st.integers(1, 15), st.sampled_from([0.01, 0.4, 2.0]))
def test_as_many_candidates_and_all_lists_equal_exact_search(collection, k, dense_share):
    documents, queries = collection
    n = documents.shape[0]
    index = lsr.Index.build(documents, options=lsr.BuildOptions(dense_share=dense_share))
    exact = index.search(queries, min(k, n), exact=True)
    found = index.search(queries, min(k, n), candidates=n, query_mass=1.0)
    np.testing.assert_array_equal(found.rows, exact.rows)
    np.testing.assert_array_equal(found.scores, exact.scores)


def test_a_light_term_is_still_found():
    documents = csr_array(np.array([[9.0, 9.0, 0.1], [9.0, 9.0, 0.2], [9.0, 9.0, 0.0]], dtype=np.float32))
    hits = lsr.Index.build(documents, ["a", "b", "c"]).search({2: 1.0}, 2)
    assert [doc_id for doc_id, _ in hits[0]] == ["b", "a"]


def test_exact_search_orders_near_ties_that_8_bits_cannot_tell_apart():
    rng = np.random.default_rng(0)
    documents = (1 + rng.random((3_000, 4)) * 1e-3).astype(np.float32)
    query = np.array([[1.0, 0.7, 0.9, 0.3]], dtype=np.float32)
    hits = lsr.Index.build(csr_array(documents)).search(csr_array(query), 20, exact=True)
    assert hits.rows[0].tolist() == oracle.exact_search(query[0], documents, 20).rows


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_what_single_queries_give(index, method):
    batch = index.search(QUERIES, 7, **method, threads=3)
    for i in range(len(batch)):
        single = index.search(QUERIES[[i]], 7, **method, threads=1)
        assert single[0] == batch[i]


@pytest.mark.parametrize("method", METHODS)
def test_a_query_gives_the_same_in_every_form(index, method):
    batch = index.search(QUERIES, 7, **method)
    for i in range(QUERIES.shape[0]):
        row = QUERIES[[i]]
        wide = csr_array((row.data, row.indices.astype(np.int64), row.indptr.astype(np.int64)), shape=row.shape)
        forms = [row, wide, row.astype(np.float64), SparseRows.of(row), (row.indices, row.data)]
        forms.append(dict(zip(row.indices.tolist(), row.data.tolist(), strict=True)))
        for form in forms:
            assert index.search(form, 7, **method)[0] == batch[i]


@pytest.mark.parametrize("method", METHODS)
def test_single_queries_may_come_from_many_threads(index, method):
    batch = index.search(QUERIES, 7, **method)
    rows = [QUERIES[[i]] for i in range(QUERIES.shape[0])] * 20
    with ThreadPoolExecutor(8) as pool:
        singles = list(pool.map(lambda row: index.search(row, 7, **method)[0], rows))
    assert singles == list(batch) * 20


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ([1, 2], [1.0, -1.0], "negative weight"),
        ([1, 2], [1.0, np.nan], "finite"),
        ([1, 50], [1.0, 1.0], "beyond the vocabulary"),
        ([2, 1], [1.0, 1.0], "unsorted or repeated"),
    ],
)
def test_a_single_bad_query_is_refused_like_a_batch_of_them(index, terms, weights, message):
    bad = csr_array((np.array([1, 1], np.float32), ([0, 0], [1, 2])), shape=(1, 50))
    bad.indices[:], bad.data[:] = terms, weights
    two = csr_array((np.tile(bad.data, 2), np.tile(bad.indices, 2), np.array([0, 2, 4])), shape=(2, 50))
    for queries in (bad, two):
        with pytest.raises(InputError, match=message):
            index.search(queries, 5, exact=True)


@pytest.mark.parametrize("indptr", [[0], list(range(6)), [0, 2, 5]])
def test_a_row_whose_pointers_are_of_another_number_of_rows_is_refused(index, indptr):
    """Its shape says one row: the kernel must not answer as many queries as it has pointers."""
    bad = csr_array(QUERIES[[0]])
    bad.indptr = np.array(indptr, dtype=bad.indices.dtype)
    with pytest.raises(InputError, match="broken indptr"):
        index.search(bad, 150, exact=True)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_threads(index, threads):
    np.testing.assert_array_equal(index.search(QUERIES, 10, threads=threads).rows, index.search(QUERIES, 10).rows)


def test_permuting_documents_permutes_results():
    order = np.random.default_rng(2).permutation(200)
    permuted = lsr.Index.build(DOCUMENTS[order], [IDS[row] for row in order])
    straight = lsr.Index.build(DOCUMENTS, IDS)
    assert (
        permuted.search(QUERIES, 10, exact=True).ids.tolist() == straight.search(QUERIES, 10, exact=True).ids.tolist()
    )


def test_ties_go_to_the_document_added_first():
    index = lsr.Index.build(csr_array(np.ones((5, 1), np.float32)), list("edcba"), options=BLOCKS)
    for method in METHODS:
        assert [doc_id for doc_id, _ in index.search({0: 1.0}, 3, **method)[0]] == ["e", "d", "c"]


def test_hits_hold_ids_scores_and_padding(index):
    hits = index.search(QUERIES, 10, exact=True)
    assert hits.ids.shape == hits.scores.shape == (20, 10)
    dense_query = oracle.dense(QUERIES)[0]
    found = oracle.exact_search(dense_query, oracle.dense(DOCUMENTS), 10)
    assert hits.ids[0].tolist() == [IDS[row] for row in found.rows]
    two = small().search([{0: 1.0}, {}], 2)
    assert two.ids.tolist() == [["a", None], [None, None]]
    assert two.scores.tolist() == [[1.0, -np.inf], [-np.inf, -np.inf]]
    assert two[0] == [("a", 1.0)]
    assert two[1] == []


def test_queries_may_be_dicts_or_arrays():
    index = small()
    csr = index.search(csr_array(np.array([[0, 2, 0, 1]], dtype=np.float32)), 3)
    assert csr[0] == [("b", 2.0)]
    assert index.search({1: 2.0, 3: 1.0}, 3)[0] == csr[0]
    assert index.search([{1: 2.0, 3: 1.0}], 3)[0] == csr[0]
    assert index.search((np.array([3, 1]), np.array([1.0, 2.0])), 3)[0] == csr[0]


def test_ids_default_to_row_numbers():
    index = lsr.Index.build(csr_array(np.eye(3, dtype=np.float32)))
    assert index.search({2: 1.0}, 1)[0] == [("2", 1.0)]


def test_more_hits_than_documents_are_padded_and_said():
    with pytest.warns(LsrWarning, match="k = 10 is more than the 3 documents"):
        hits = small().search({0: 1.0}, 10, exact=True)
    assert hits.ids.shape == (1, 10)
    assert hits[0] == [("a", 1.0)]


def test_an_empty_document_is_kept_and_never_found():
    index = lsr.Index.build(
        csr_array(np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)), ["empty", "full"], options=BLOCKS
    )
    for method in METHODS:
        assert index.search({0: 1.0, 1: 1.0}, 2, **method)[0] == [("full", 2.0)]


def test_explain_adds_up_to_the_score(index):
    hits = index.search(QUERIES[[3]], 1, exact=True)
    doc_id, score = hits[0][0]
    matches = index.explain(QUERIES[[3]], doc_id)
    assert sum(match.contribution for match in matches) == pytest.approx(score, rel=1e-6)
    assert [match.contribution for match in matches] == sorted((m.contribution for m in matches), reverse=True)


def test_blocks_are_an_option():
    plain = lsr.Index.build(DOCUMENTS, IDS)
    blocked = lsr.Index.build(DOCUMENTS, IDS, options=BLOCKS)
    assert plain.search(QUERIES, 5).ids.tolist() == blocked.search(QUERIES, 5).ids.tolist()
    assert set(plain.sizes()) == {"forward", "lists", "ids"}
    assert set(blocked.sizes()) == {"forward", "lists", "blocks", "summaries", "ids"}
    for knob in ({"query_cut": 3}, {"heap_factor": 0.5}):
        with pytest.raises(InputError, match="the index has no blocks for query_cut, heap_factor and neighbours"):
            plain.search(QUERIES, 5, **knob)


def test_a_vocabulary_beyond_16_bits():
    terms = [70_000, 200_000, 249_999]
    documents = csr_array((np.ones(3, np.float32), ([0, 1, 2], terms)), shape=(3, 250_000))
    index = lsr.Index.build(documents, ["a", "b", "c"], options=BLOCKS)
    for method in METHODS:
        assert index.search({200_000: 2.0, 5: 1.0}, 2, **method)[0] == [("b", 2.0)]


def test_queries_of_another_encoder_are_refused():
    index = lsr.Index.build(SparseVectors(np.eye(3, dtype=np.float32), encoder="one"), ["a", "b", "c"])
    assert index.search(SparseVectors(np.eye(3, dtype=np.float32), encoder="one"), 1).ids.tolist() == [
        ["a"],
        ["b"],
        ["c"],
    ]
    with pytest.raises(MismatchError, match="made by the encoder two"):
        index.search(SparseVectors(np.eye(3, dtype=np.float32), encoder="two"), 1)


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True, None])
def test_k_must_be_a_positive_integer(k):
    with pytest.raises(InputError, match="k must be an integer of at least 1"):
        small().search({0: 1.0}, k)


def test_what_equals_an_option_that_was_taken_is_refused_all_the_same():
    index = small()
    index.search({0: 1.0}, 1, recall=1)
    for k, recall in ((True, 1), (1.0, 1), (1, True), (1, [1]), ([1], 1)):
        with pytest.raises(InputError, match="must be"):
            index.search({0: 1.0}, k, recall=recall)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("query_cut", 0),
        ("query_cut", 2.5),
        ("query_cut", True),
        ("candidates", 0),
        ("candidates", 1.5),
        ("heap_factor", -0.1),
        ("heap_factor", "1"),
    ],
)
def test_knobs_out_of_range_are_refused(knob, value):
    with pytest.raises(InputError, match=knob):
        small().search({0: 1.0}, 1, **{knob: value})


@pytest.mark.parametrize("knob", [{"query_cut": 3}, {"heap_factor": 0.5}, {"candidates": 5}, {"query_mass": 0.5}])
def test_knobs_of_approximate_search_are_refused_in_exact_search(knob):
    with pytest.raises(InputError, match="leave them out of exact search"):
        small().search({0: 1.0}, 1, exact=True, **knob)


@pytest.mark.parametrize("knobs", [{"candidates": 3, "query_cut": 3}, {"query_mass": 0.5, "heap_factor": 1.0}])
def test_knobs_of_two_searches_are_refused_together(knobs):
    with pytest.raises(InputError, match="goes without .*: they are knobs of another search"):
        small().search({0: 1.0}, 1, **knobs)


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_threads_must_be_positive(threads):
    with pytest.raises(InputError, match="threads must be an integer of at least 1"):
        small().search({0: 1.0}, 1, threads=threads)
    with pytest.raises(InputError, match="threads must be an integer of at least 1"):
        lsr.Index.build(DOCUMENTS, threads=threads)


def test_the_index_keeps_nothing_of_the_caller_s_array():
    documents = csr_array(np.eye(3, dtype=np.float32))
    index = lsr.Index.build(documents, ["a", "b", "c"], options=BLOCKS)
    documents.data[:] = 9
    for method in METHODS:
        assert index.search({0: 1.0}, 1, **method)[0] == [("a", 1.0)]


def test_a_run_needs_one_id_for_each_query(index):
    hits = index.search(QUERIES[:2], 3)
    assert hits.to_run(["q1", "q2"])["q1"].doc_ids == [doc_id for doc_id, _ in hits[0]]
    for ids in (["q1"], ["q1", "q1"]):
        with pytest.raises(InputError, match="2 queries need as many different ids"):
            hits.to_run(ids)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="query_cutt"):
        small().search({0: 1.0}, 1, query_cutt=3)
    with pytest.raises(TypeError, match="n_posting"):
        lsr.BuildOptions(n_posting=3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dense_share", 0),
        ("weights", "float8"),
        ("n_postings", 0),
        ("n_postings", 2.5),
        ("n_postings", "3"),
        ("max_fraction", float("inf")),
        ("seismic", 1),
        ("max_fraction", 0),
        ("centroid_fraction", 0),
        ("centroid_fraction", 1.5),
        ("min_block_size", 0),
        ("centroid_terms", 0),
        ("summary_energy", 0),
        ("summary_energy", 1.1),
        ("seed", -1),
    ],
)
def test_build_options_out_of_range_are_refused(option, value):
    with pytest.raises(InputError, match=f"build option {option} must be"):
        lsr.BuildOptions(**{option: value})


def test_build_options_survive_a_manifest():
    options = lsr.BuildOptions(n_postings=7, seed=3)
    assert lsr.BuildOptions.from_dict(options.to_dict()) == options
    assert set(options.to_dict()) == {field.name for field in dataclasses.fields(options)}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b"], "2 ids were given for 3 documents"),
        (["a", "b", "a"], "'a' is used twice, at rows 0 and 2"),
        (["a", "", "c"], "row 1 is ''"),
        (["a", 2, "c"], "row 1 is 2"),
    ],
)
def test_bad_ids_are_refused_and_nothing_is_written(tmp_path, ids, message):
    with pytest.raises(InputError, match=message):
        lsr.Index.build(csr_array(np.eye(3, dtype=np.float32)), ids, tmp_path / "x.index")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0])
def test_bad_weights_are_refused_and_nothing_is_written(tmp_path, weight):
    documents = csr_array(np.eye(3, dtype=np.float32))
    documents.data[1] = weight
    with pytest.raises(InputError, match="document row 1 has a"):
        lsr.Index.build(documents, path=tmp_path / "x.index")
    assert list(tmp_path.iterdir()) == []


def test_no_documents_are_refused():
    with pytest.raises(InputError, match="no documents"):
        lsr.Index.build(csr_array((0, 5), dtype=np.float32))


def test_queries_of_another_width_are_refused():
    with pytest.raises(InputError, match="vocabulary has 4 terms"):
        small().search(csr_array(np.eye(2, 7, dtype=np.float32)))
    with pytest.raises(InputError, match="term id 9, beyond the vocabulary"):
        small().search({9: 1.0})
    with pytest.raises(InputError, match="use lsr.Retriever"):
        small().search("a text")


def test_a_copy_of_an_index_has_scratch_of_its_own():
    index = lsr.Index.build(csr_array(np.eye(40, dtype=np.float32)))
    query = csr_array(np.eye(40, dtype=np.float32)[[3]])
    expected = index.search(query, 2)
    copied = copy.deepcopy(index)
    del index
    gc.collect()
    actual = copied.search(query, 2)
    np.testing.assert_array_equal(actual.rows, expected.rows)
    np.testing.assert_array_equal(actual.scores, expected.scores)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_pairs_of_small_integers_are_queries(dtype):
    index = lsr.Index.build(csr_array(np.eye(300, dtype=np.float32)))
    terms = np.arange(np.iinfo(dtype).max + 1 if dtype != np.int16 else 300).astype(dtype)
    hits = index.search((terms, np.ones(len(terms), dtype=np.float32)), 3)
    assert hits.rows.tolist() == [[0, 1, 2]]


def test_an_option_that_cannot_be_looked_up_is_refused():
    index = lsr.Index.build(csr_array(np.eye(4, dtype=np.float32)))
    with pytest.raises(InputError, match="exact must be True or False"):
        index.search({0: 1.0}, 2, exact=[])
    assert index.search({0: 1.0}, np.int64(2), candidates=np.int64(3)).rows[0, 0] == 0
