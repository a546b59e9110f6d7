"""Every kernel against its plain twin, and the postconditions of what the build makes."""

import numba
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from strategies import ANY, collections, sparse_matrices

from lsr.index import build_kernels
from lsr.index.build import build_segment
from lsr.index.invert import invert
from lsr.index.options import BuildOptions
from lsr.index.prune import prune
from lsr.index.search import Searcher
from lsr.index.segment import check_segment
from lsr.vectors import check_vectors

settings.register_profile("kernels", max_examples=60, deadline=None)
settings.load_profile("kernels")

BUILDS = st.builds(
    BuildOptions,
    seismic=st.just(True),
    n_postings=st.sampled_from([None, 1, 2, 4]),
    max_fraction=st.sampled_from([0.5, 1.0, 6.0]),
    centroid_fraction=st.sampled_from([0.1, 0.3, 1.0]),
    min_block_size=st.integers(1, 4),
    centroid_terms=st.integers(1, 15),
    summary_energy=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 3),
)


def assert_found(searched, expected: list[oracle.Found]) -> None:
    scores, rows, counts = searched
    for query, found in enumerate(expected):
        n = counts[query]
        assert rows[query, :n].tolist() == found.rows
        assert scores[query, :n].tolist() == found.scores  # to the last bit
        assert (rows[query, n:] == -1).all()
        assert (scores[query, n:] == -np.inf).all()


@given(collections(), st.integers(1, 20))
def test_exact_search_equals_its_twin(collection, k):
    documents, queries = collection
    k = min(k, documents.shape[0])
    segment = build_segment(check_vectors(documents), BuildOptions())
    expected = [oracle.exact_search(query, oracle.dense(documents), k) for query in oracle.dense(queries)]
    assert_found(Searcher(segment).exact(check_vectors(queries), k), expected)


@given(
    collections(),
    st.sampled_from([0.1, 0.5, 0.8, 1.0]),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([0, 1, 1_000]),
)
def test_pruned_search_equals_its_twin(collection, head_mass, k, candidates, per_score):
    documents, queries = collection
    k = min(k, documents.shape[0])
    candidates = min(max(k, candidates), documents.shape[0])
    segment = build_segment(check_vectors(documents), BuildOptions(head_mass=head_mass))
    dense = oracle.dense(documents)
    heads = oracle.heads(dense, head_mass)
    expected = [oracle.pruned_search(q, dense, heads, k, candidates, per_score) for q in oracle.dense(queries)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsr.index.search.POSTINGS_PER_SCORE", per_score)
        assert_found(Searcher(segment).pruned(check_vectors(queries), k, candidates), expected)


@given(sparse_matrices(max_rows=30), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
def test_lists_hold_every_posting_once_and_never_below_its_weight(documents, head_mass):
    segment = build_segment(check_vectors(documents), BuildOptions(head_mass=head_mass))
    check_segment(segment)
    dense = oracle.dense(documents)
    heads = oracle.heads(dense, head_mass)
    lists = segment.lists
    for listed, term in enumerate(lists.terms.tolist()):
        rows = {}
        step = float(lists.step[listed])
        for name in ("head", "tail"):
            ptr, in_window, codes = (getattr(lists, f"{name}_{part}") for part in ("ptr", "rows", "codes"))
            part = slice(ptr[listed], ptr[listed + 1])
            rows[name] = in_window[part].tolist()
            weights = dense[rows[name], term].astype(np.float64)
            assert (codes[part] >= 1).all()
            assert (step * codes[part] >= weights).all()
            assert (step * codes[part] <= weights + 1.001 * step).all()
        assert rows["head"] == np.flatnonzero(heads[:, term]).tolist()
        assert rows["tail"] == np.flatnonzero((dense[:, term] > 0) & ~heads[:, term]).tolist()


@pytest.mark.parametrize("n_terms", [1_000, 1_001])
def test_queries_too_long_for_accumulators_are_exact_too(monkeypatch, n_terms):
    monkeypatch.setattr("lsr.index.search.MOST_QUERY_TERMS", 1_000)
    rng = np.random.default_rng(0)
    documents = csr_array(rng.random((30, 1_200), dtype=np.float32) * (rng.random((30, 1_200)) < 0.3))
    query = csr_array((rng.random((2, 1_200)) * (np.arange(1_200) < [[n_terms], [900]])).astype(np.float32))
    searcher = Searcher(build_segment(check_vectors(documents), BuildOptions()))
    expected = [oracle.exact_search(row, oracle.dense(documents), 5) for row in oracle.dense(query)]
    assert_found(searcher.exact(check_vectors(query), 5), expected)
    assert_found(searcher.pruned(check_vectors(query), 5, 30), expected)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="a window has 65,536 documents: too many for plain Python")
@pytest.mark.parametrize("n_documents", [65_535, 65_536, 65_537, 140_000])
def test_documents_may_fill_several_windows(n_documents):
    rng = np.random.default_rng(n_documents)
    dense = rng.choice(np.array([0, 0, 0, 1, 2, 3], np.float32), (n_documents, 6))
    searcher = Searcher(build_segment(check_vectors(csr_array(dense)), BuildOptions()))
    queries = np.array([[1, 2, 0, 0, 3, 0.5], [0, 0, 0, 1, 0, 0]], dtype=np.float32)
    expected = [oracle.exact_search(query, dense, 50) for query in queries]
    for _ in range(2):  # scratch comes back clean
        assert_found(searcher.exact(csr_array(queries), 50), expected)


@pytest.mark.parametrize("query_scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30, 1e37])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_weights_of_any_size_keep_search_exact(scale, query_scale):
    """Also where float32 scores are denormal, or overflow to infinity and tie."""
    rng = np.random.default_rng(1)
    dense = (rng.random((200, 12)) * (rng.random((200, 12)) < 0.4) * scale).astype(np.float32)
    query = (query_scale * rng.random(12) * (rng.random(12) < 0.7)).astype(np.float32)
    segment = build_segment(check_vectors(csr_array(dense)), BuildOptions())
    expected = [oracle.exact_search(query, dense, 10)]
    assert_found(Searcher(segment).exact(check_vectors(csr_array(query[None])), 10), expected)


@given(
    collections(), BUILDS, st.integers(1, 20), st.sampled_from([1, 2, 5, 1_000]), st.sampled_from([0.0, 0.7, 0.9, 1.0])
)
def test_seismic_search_equals_its_twin(collection, options, k, query_cut, heap_factor):
    documents, queries = collection
    k = min(k, documents.shape[0])
    segment = build_segment(check_vectors(documents), options)
    lists = oracle.decoded_blocks(segment)
    dense = oracle.dense(documents)
    expected = [oracle.seismic_search(q, dense, lists, k, query_cut, heap_factor) for q in oracle.dense(queries)]
    assert_found(Searcher(segment).seismic(check_vectors(queries), k, query_cut, heap_factor), expected)


@given(sparse_matrices(), st.integers(1, 6))
def test_document_heads_are_the_heaviest_terms(documents, width):
    documents = check_vectors(documents)
    counts = np.minimum(np.diff(documents.indptr), width)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    terms, weights = np.zeros(ptr[-1], np.int64), np.zeros(ptr[-1], np.float32)
    forward = (documents.indptr.astype(np.int64), documents.indices.astype(np.int64), documents.data)
    build_kernels.document_heads(*forward, width, ptr, terms, weights)
    for row, document in enumerate(oracle.dense(documents)):
        head = terms[ptr[row] : ptr[row + 1]].tolist()
        assert head == oracle.document_head(document, width)
        assert weights[ptr[row] : ptr[row + 1]].tolist() == document[head].tolist()


@given(sparse_matrices(), st.sampled_from([None, 1, 2, 3]), st.sampled_from([0.1, 0.5, 1.0, 6.0]))
def test_pruning_keeps_the_largest_postings(documents, n_postings, max_fraction):
    documents = check_vectors(documents)
    lists = invert(documents)
    ptr, rows = prune(lists, n_postings, max_fraction)
    expected = oracle.pruned_lists(oracle.dense(documents), n_postings, max_fraction)
    assert lists.terms.tolist() == list(expected)
    assert [rows[ptr[i] : ptr[i + 1]].tolist() for i in range(len(ptr) - 1)] == list(expected.values())


@given(sparse_matrices(max_rows=30), BUILDS)
def test_blocks_partition_each_pruned_list(documents, options):
    segment = build_segment(check_vectors(documents), options)
    check_segment(segment)
    expected = oracle.pruned_lists(oracle.dense(documents), options.n_postings, options.max_fraction)
    for term, blocks in oracle.decoded_blocks(segment).items():
        assert sorted(row for block in blocks for row in block.rows) == expected[term]
        assert all(block.rows == sorted(block.rows) and block.rows for block in blocks)
        small = [block for block in blocks if len(block.rows) < options.min_block_size]
        assert not small or len(blocks) == 1 or len(small) <= 1  # the largest cluster always stays


@given(sparse_matrices(max_rows=30), BUILDS)
def test_summaries_hold_the_heaviest_coordinates_and_bound_them(documents, options):
    segment = build_segment(check_vectors(documents), options)
    dense = oracle.dense(documents)
    for blocks in oracle.decoded_blocks(segment).values():
        for block in blocks:
            expected = oracle.summary(dense, block.rows, options.summary_energy)
            assert sorted(block.summary) == sorted(expected)
            step = (max(expected.values()) - min(expected.values())) / np.float32(255)
            for term, weight in expected.items():
                assert weight <= block.summary[term] <= weight + np.float32(1.01) * step + 1e-6 * weight


@given(st.lists(ANY, min_size=1, max_size=40))
def test_quantized_weights_are_never_below_the_weights(weights):
    weights = np.array(weights, dtype=np.float32)
    codes = np.zeros(len(weights), dtype=np.uint8)
    low, step = build_kernels.quantize(weights, codes)
    decoded = np.float32(low) + np.float32(step) * codes.astype(np.float32)
    assert (decoded >= weights).all()
    assert (decoded <= weights + 1.01 * np.float32(step) + 1e-6 * weights).all()


@pytest.mark.parametrize("vocabulary_size", [10, 70_000])
def test_terms_are_narrow_only_where_the_vocabulary_allows(vocabulary_size):
    terms = np.array([0, 3, vocabulary_size - 1])
    documents = csr_array((np.ones(3, np.float32), terms, np.array([0, 3])), shape=(1, vocabulary_size))
    segment = build_segment(check_vectors(documents), BuildOptions(seismic=True))
    assert segment.forward.terms.dtype == (np.uint16 if vocabulary_size == 10 else np.uint32)
    assert segment.forward.terms.tolist() == terms.tolist()
    for found in (Searcher(segment).exact(documents, 1), Searcher(segment).seismic(documents, 1, 10, 1.0)):
        assert found[0].tolist() == [[3.0]]


@given(sparse_matrices(max_rows=30), st.integers(1, 5))
def test_build_does_not_depend_on_the_number_of_threads(documents, threads):
    documents = check_vectors(documents)
    one, many = (build_segment(documents, BuildOptions(seismic=True), threads=n) for n in (1, threads))
    for name, family in one.families().items():
        for a, b in zip(family, many.families()[name], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
