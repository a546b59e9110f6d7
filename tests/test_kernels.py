"""Every kernel against its plain twin, and the postconditions of what the build makes."""

from itertools import pairwise

import numba
import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from strategies import ANY, collections, sparse_matrices

from lsr.index import block_kernels, kernels
from lsr.index.build import build_segment
from lsr.index.invert import count, one_by_one
from lsr.index.kernels import take_rows
from lsr.index.options import BuildOptions
from lsr.index.prune import choose, collect
from lsr.index.search import Searcher
from lsr.index.segment import DENSE_LIST, SHORT_LIST, WINDOW, WINDOWED_LIST, Forward, check_segment, n_windows, padded
from lsr.numba_support import at_least, count_bits, drop_lowest, half_to_float, kernel, largest, lowest_bit
from lsr.vectors import SparseRows, check_vectors

settings.register_profile("kernels", max_examples=60, deadline=None)
settings.load_profile("kernels")

BUILDS = st.builds(
    BuildOptions,
    seismic=st.just(True),
    n_postings=st.sampled_from([None, 1, 2, 4]),
    max_fraction=st.sampled_from([0.5, 1.0, 6.0]),
    centroid_fraction=st.sampled_from([0.1, 0.3, 1.0]),
    max_blocks=st.sampled_from([1, 3, 1_000]),
    min_list_size=st.sampled_from([1, 2, 4]),
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


#: A code for every document in all lists, in some, in none.
DENSE_SHARES = st.sampled_from([0.01, 0.4, 2.0])


@given(
    collections(),
    st.integers(1, 20),
    DENSE_SHARES,
    st.sampled_from([0.3, 0.9, 1.0]),
    st.sampled_from([0, 5, 100]),
    st.sampled_from([0, 1, 2, 16]),
)
def test_exact_search_equals_its_twin(collection, k, dense_share, mass, most_found, part_bits):
    documents, queries = collection
    k = min(k, documents.shape[0])
    segment = build_segment(check_vectors(documents), BuildOptions(dense_share=dense_share))
    expected = [oracle.exact_search(query, oracle.dense(documents), k) for query in oracle.dense(queries)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsr.index.search.EXACT_MASS", mass)
        patch.setattr("lsr.index.search.MOST_FOUND", most_found)
        patch.setattr("lsr.index.search.PART_BITS", part_bits)
        assert_found(Searcher(segment).exact(check_vectors(queries), k), expected)


@given(
    collections(),
    DENSE_SHARES,
    st.sampled_from([0.1, 0.5, 0.8, 1.0]),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_pruned_search_equals_its_twin(collection, dense_share, mass, k, candidates):
    documents, queries = collection
    k = min(k, documents.shape[0])
    candidates = min(max(k, candidates), documents.shape[0])
    segment = build_segment(check_vectors(documents), BuildOptions(dense_share=dense_share))
    dense = oracle.dense(documents)
    expected = [oracle.pruned_search(query, dense, k, candidates, mass, dense_share) for query in oracle.dense(queries)]
    assert_found(Searcher(segment).pruned(check_vectors(queries), k, candidates, mass), expected)


def decoded_list(segment, listed: int) -> tuple[list[int], np.ndarray]:
    """Rows and codes of a list, whatever its kind."""
    lists = segment.lists
    place, kind = int(lists.place[listed]), lists.kind[listed]
    if kind == DENSE_LIST:
        codes = lists.dense_codes[place : place + padded(segment.n_documents)]
        return np.flatnonzero(codes).tolist(), codes[codes > 0]
    if kind == SHORT_LIST:
        part = slice(place, place + int(lists.length[listed]))
        return lists.short_rows[part].tolist(), lists.short_codes[part]
    rows, codes = [], []
    for window in range(n_windows(segment.n_documents)):
        part = slice(lists.window_ptr[place + window], lists.window_ptr[place + window + 1])
        rows += (lists.window_rows[part].astype(int) + window * WINDOW).tolist()
        codes += lists.window_codes[part].tolist()
    return rows, np.array(codes)


def assert_lists_hold(segment, dense: np.ndarray) -> None:
    """Every posting once, in order, and never below its weight."""
    check_segment(segment)
    lists = segment.lists
    assert lists.terms.tolist() == np.flatnonzero(dense.any(axis=0)).tolist()
    for listed, term in enumerate(lists.terms.tolist()):
        rows, codes = decoded_list(segment, listed)
        step = float(lists.step[listed])
        assert rows == np.flatnonzero(dense[:, term]).tolist()
        assert lists.length[listed] == len(rows)
        weights = dense[rows, term].astype(np.float64)
        assert (codes >= 1).all()
        assert (step * codes >= weights).all()
        assert (step * codes <= weights + 1.001 * step).all()


@given(sparse_matrices(max_rows=30), DENSE_SHARES)
def test_lists_hold_every_posting_once_and_never_below_its_weight(documents, dense_share):
    segment = build_segment(check_vectors(documents), BuildOptions(dense_share=dense_share))
    assert_lists_hold(segment, oracle.dense(documents))


@pytest.mark.parametrize("n_terms", [1_000, 1_001])
def test_queries_too_long_for_accumulators_are_exact_too(monkeypatch, n_terms):
    monkeypatch.setattr("lsr.index.search.MOST_QUERY_TERMS", 1_000)
    rng = np.random.default_rng(0)
    documents = csr_array(rng.random((30, 1_200), dtype=np.float32) * (rng.random((30, 1_200)) < 0.3))
    query = csr_array((rng.random((2, 1_200)) * (np.arange(1_200) < [[n_terms], [900]])).astype(np.float32))
    searcher = Searcher(build_segment(check_vectors(documents), BuildOptions()))
    expected = [oracle.exact_search(row, oracle.dense(documents), 5) for row in oracle.dense(query)]
    assert_found(searcher.exact(check_vectors(query), 5), expected)
    assert_found(searcher.pruned(check_vectors(query), 5, 30, 1.0), expected)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="a window has 65,536 documents: too many for plain Python")
@pytest.mark.parametrize("n_documents", [65_535, 65_536, 65_537, 140_000])
def test_documents_may_fill_several_windows(n_documents):
    rng = np.random.default_rng(n_documents)
    shares = np.array(
        [0.5, 0.5, 0.05, 0.05, 5 / n_documents, 20 / n_documents]
    )  # of each kind, where there are windows
    dense = rng.choice(np.array([1, 2, 3], np.float32), (n_documents, 6)) * (rng.random((n_documents, 6)) < shares)
    dense = dense.astype(np.float32)
    segment = build_segment(check_vectors(csr_array(dense)), BuildOptions())
    assert_lists_hold(segment, dense)
    expected_kinds = {DENSE_LIST, WINDOWED_LIST} | ({SHORT_LIST} if n_documents > WINDOW else set())
    assert set(segment.lists.kind.tolist()) == expected_kinds
    searcher = Searcher(segment)
    queries = np.array([[1, 2, 0, 0, 3, 0.5], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 2]], dtype=np.float32)
    expected = [oracle.exact_search(query, dense, 50) for query in queries]
    for _ in range(2):  # scratch comes back clean
        assert_found(searcher.exact(csr_array(queries), 50), expected)


@pytest.mark.parametrize("weights", ["auto", "float16"])
@given(sparse_matrices(max_rows=30), st.integers(1, 20))
def test_16_bit_weights_are_scored_as_rounded(weights, documents, k):
    documents = check_vectors(documents)
    rounded = documents.copy()
    rounded.data = documents.data.astype(np.float16).astype(np.float32)
    assume((rounded.data > 0).all())
    segment = build_segment(documents if weights == "float16" else rounded, BuildOptions(weights=weights))
    assert segment.forward.weights.dtype == np.float16
    assert segment.forward.weights.tolist() == rounded.data.tolist()
    query = np.ones(documents.shape[1], dtype=np.float32)
    k = min(k, documents.shape[0])
    expected = [oracle.exact_search(query, oracle.dense(rounded), k)]
    assert_found(Searcher(segment).exact(csr_array(query[None]), k), expected)


def test_every_float16_is_decoded_as_its_value():
    bits = np.arange(31_744, dtype=np.uint16)  # all finite ones that are not negative
    decode = kernel(lambda values, i: half_to_float(values[i]))
    assert [decode(bits, i) for i in range(0, len(bits), 7)] == bits.view(np.float16)[::7].astype(np.float32).tolist()


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
    block_kernels.document_heads(*forward, width, ptr, terms, weights)
    for row, document in enumerate(oracle.dense(documents)):
        head = terms[ptr[row] : ptr[row + 1]].tolist()
        assert head == oracle.document_head(document, width)
        assert weights[ptr[row] : ptr[row + 1]].tolist() == document[head].tolist()


@given(
    sparse_matrices(),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([0.1, 0.5, 1.0, 6.0]),
    st.sampled_from([0.2, 0.6, 1.0]),
    st.sampled_from([1, 2, 100]),
    st.integers(1, 4),
    st.sampled_from([None, 1, 100]),
    st.booleans(),
)
def test_pruning_keeps_the_largest_postings(documents, n_postings, max_fraction, share, least, n_ranges, room, halves):
    documents = check_vectors(documents)
    if halves:
        documents.data = documents.data.astype(np.float16).astype(np.float32)
    weights = documents.data.astype(np.float16).view(np.uint16) if halves else documents.data
    forward = Forward(documents.indptr.astype(np.int64), documents.indices, weights)
    size = documents.shape[1]
    counted = count(forward, size, n_ranges, one_by_one)
    options = BuildOptions(n_postings=n_postings, max_fraction=max_fraction, posting_share=share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsr.index.prune.LEAST_POSTINGS", least)
        kept = choose(forward, size, counted, options, one_by_one)
    found = {}
    for part, ptr, rows in collect(forward, size, counted, kept, room, one_by_one):
        lists = [rows[first:last].tolist() for first, last in pairwise(ptr)]
        found |= dict(zip(counted.terms[part].tolist(), lists, strict=True))
        of_documents = [sum(int(np.diff(documents.indptr)[row]) for row in rows) for rows in lists]
        assert all(sizes <= most for sizes, most in zip(of_documents, kept.beside[part], strict=True))
    assert found == oracle.pruned_lists(oracle.dense(documents), n_postings, max_fraction, share, least)


@given(sparse_matrices(max_rows=30), BUILDS)
def test_blocks_partition_each_pruned_list(documents, options):
    segment = build_segment(check_vectors(documents), options)
    check_segment(segment)
    expected = oracle.pruned_lists(oracle.dense(documents), options.n_postings, options.max_fraction)
    for term, blocks in oracle.decoded_blocks(segment).items():
        assert sorted(row for block in blocks for row in block.rows) == expected[term]
        assert all(block.rows == sorted(block.rows) and block.rows for block in blocks)
        assert len(blocks) <= options.max_blocks
        small = [block for block in blocks if len(block.rows) < options.min_block_size]
        assert not small or len(blocks) == 1 or len(small) <= 1  # the largest cluster always stays


@given(sparse_matrices(max_rows=30), BUILDS)
def test_summaries_hold_the_heaviest_coordinates_and_bound_them(documents, options):
    segment = build_segment(check_vectors(documents), options)
    dense = oracle.dense(documents)
    for blocks in oracle.decoded_blocks(segment).values():
        for block in blocks:
            if sum(len(other.rows) for other in blocks) < options.min_list_size:
                assert not block.summary
                assert len(blocks) == 1
                continue
            expected = oracle.summary(dense, block.rows, options.summary_energy)
            assert sorted(block.summary) == sorted(expected)
            step = (max(expected.values()) - min(expected.values())) / np.float32(255)
            for term, weight in expected.items():
                assert weight <= block.summary[term] <= weight + np.float32(1.01) * step + 1e-6 * weight


@given(st.lists(ANY, min_size=1, max_size=40))
def test_quantized_weights_are_never_below_the_weights(weights):
    weights = np.array(weights, dtype=np.float32)
    codes = np.zeros(len(weights), dtype=np.uint8)
    low, step = block_kernels.quantize(weights, codes)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsr.index.build.ranges_for", lambda workers, *rest: workers)
        patch.setattr("lsr.index.blocks.TASK_POSTINGS", 5)
        one, many = (
            build_segment(documents, BuildOptions(seismic=True, n_postings=2), threads=n) for n in (1, threads)
        )
    for name, family in one.families().items():
        for a, b in zip(family, many.families()[name], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@given(
    sparse_matrices(), st.sampled_from(["nothing", "order", "range", "negative", "nan", "infinite", "zero", "indptr"])
)
def test_rows_that_keep_the_contract_are_told_from_others(documents, damage):
    documents = check_vectors(documents).copy()
    indptr, terms, weights = documents.indptr.copy(), documents.indices.copy(), documents.data.copy()
    size = documents.shape[1]
    assume(damage == "nothing" or len(terms) > 1)
    if damage == "order":
        long = np.flatnonzero(np.diff(indptr) > 1)
        assume(len(long))
        terms[indptr[long[0]] + 1] = terms[indptr[long[0]]]
    elif damage == "range":
        terms[-1] = size
    elif damage == "indptr":
        indptr[-1] += 1
    elif damage != "nothing":
        weights[0] = {"negative": -1, "nan": np.nan, "infinite": np.inf, "zero": 0}[damage]
    rows = SparseRows.empty(len(indptr) - 1, len(terms), size)
    copied = take_rows(indptr, terms, weights, size, rows.indptr, rows.indices, rows.data)
    assert copied == (damage == "nothing")
    if copied:
        assert (rows.to_csr() != documents).nnz == 0


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=300),
    st.sampled_from([1, 700, 1_023, 1_024, 1_025, 3_000]),
    st.integers(0, 32_896),
)
@settings(max_examples=20)
def test_contributions_are_rounded_up_by_vectors_and_one_by_one_alike(codes, length, multiplier):
    """The largest multiplier is that of a query of one term."""
    codes = np.resize(np.array(codes, dtype=np.uint8), length)
    expected = -(-codes.astype(np.int64) * multiplier // 256)
    sums = np.full(length + 5, 9, dtype=np.uint16)
    dense = np.concatenate([[7], codes, [7]]).astype(np.uint8)
    kernels._add_dense(sums, length, dense, 1, float(multiplier))
    assert sums.tolist() == [*(9 + expected), *[9] * 5]
    one_by_one = np.zeros(length, dtype=np.uint16)
    rows = np.arange(length, dtype=np.uint16)
    kernels._add_window(one_by_one, rows, codes, 0, length, float(multiplier))
    assert one_by_one.tolist() == expected.tolist()


@kernel
def masked(array, position, threshold, found):
    mask, n = at_least(array, position, np.uint16(threshold)), 0
    while mask:
        found[n] = position + lowest_bit(mask)
        mask = drop_lowest(mask)
        n += 1
    return n, count_bits(at_least(array, position, np.uint16(threshold))), largest(array, position)


@given(
    st.lists(st.integers(65_530, 65_535), min_size=kernels.MASK, max_size=2 * kernels.MASK),
    st.sampled_from([0, 65_531, 65_535]),
    st.integers(0, kernels.MASK),
)
def test_a_mask_tells_which_elements_are_at_least_the_threshold_and_what_the_largest_is(values, threshold, position):
    position = min(position, len(values) - kernels.MASK)
    found = np.zeros(kernels.MASK, dtype=np.int64)
    n, counted, most = masked(np.array(values, dtype=np.uint16), position, threshold, found)
    assert counted == n
    assert most == max(values[position : position + kernels.MASK])
    assert found[:n].tolist() == [i for i in range(position, position + kernels.MASK) if values[i] >= threshold]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from([1, 2, 30, kernels.FEW // kernels.MASK]), min_size=1, max_size=3),
    st.sampled_from([2, 300, kernels.MOST]),
    st.sampled_from([0.01, 0.3, 1.0]),
    st.sampled_from([1, 10, 100, 10_000]),
    st.sampled_from([0, 40, kernels.MOST]),
)
@settings(max_examples=40)
def test_collecting_finds_the_level_and_all_that_may_be_among_the_best(seed, groups, most, share, wanted, slack):
    """The level is the highest bucket that so many documents reach, and nothing that may be as good is missed."""
    rng = np.random.default_rng(seed)
    sizes = [kernels.MASK * n for n in groups]
    windows = [np.where(rng.random(n) < share, rng.integers(0, most + 1, n), 0).astype(np.uint16) for n in sizes]
    counts, best = np.zeros(kernels.BUCKETS, np.int32), np.full(WINDOW // kernels.MASK, 9, np.uint16)
    bounds, rows = np.zeros(sum(sizes), np.int64), np.zeros(sum(sizes), np.int64)
    level, above, found, first = np.int64(0), np.int64(0), 0, 0
    for window in windows:
        accumulator = window.copy()
        level, above, found = kernels._collect(
            accumulator, len(window), first, wanted, slack, counts, level, above, best, bounds, rows, found
        )
        assert not accumulator.any()
        first += len(window)
    every = np.concatenate(windows).astype(np.int64)
    ranked = np.sort(every[every > 0])[::-1] >> kernels.BUCKET
    expected = ranked[wanted - 1] if len(ranked) >= wanted else 0
    assert level == expected
    assert above == np.count_nonzero(ranked >= level)
    assert counts[level] == np.count_nonzero(ranked == level)
    assert (np.diff(rows[:found]) > 0).all()
    assert (bounds[:found] == every[rows[:found]]).all()
    lowest = max(1, (int(level) << kernels.BUCKET) - slack)
    assert set(np.flatnonzero(every >= lowest).tolist()) <= set(rows[:found].tolist())


@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(0, 5), st.integers(0, 45), st.integers(0, 60))
def test_the_best_found_are_taken_out_by_bucket_and_in_order(bounds, level, room, lowest):
    found, rows = np.array([*bounds, 0], np.int64), np.arange(len(bounds) + 1)
    top, top_rows = np.zeros_like(found), np.zeros_like(rows)
    buckets = [bound >> kernels.BUCKET for bound in bounds]
    same = [i for i, bucket in enumerate(buckets) if bucket == level][:room]
    best = [i for i, bucket in enumerate(buckets) if bucket > level or i in same]
    others = [i for i, bound in enumerate(bounds) if i not in best and bound >= lowest]
    n_top, kept = kernels._part(found, rows, len(bounds), level, room, lowest, top, top_rows)
    assert top_rows[:n_top].tolist() == best
    assert top[:n_top].tolist() == [bounds[i] for i in best]
    assert rows[:kept].tolist() == others
    assert found[:kept].tolist() == [bounds[i] for i in others]


@given(st.lists(st.integers(32, 90), min_size=1, max_size=40), st.integers(1, 40))
def test_candidates_are_ranked_by_bucket_and_in_order(bounds, wanted):
    ranked, rows = np.array(bounds, np.int64), np.arange(len(bounds))
    order = sorted(range(len(bounds)), key=lambda i: (-(bounds[i] >> kernels.BUCKET), i))[:wanted]
    n = kernels._rank(ranked, rows, len(bounds), wanted, 2, np.ones(kernels.BUCKETS, np.int32))
    assert rows[:n].tolist() == sorted(order)
    assert ranked[:n].tolist() == [bounds[i] for i in sorted(order)]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0]), max_size=30))
def test_lists_are_ordered_by_value_ties_by_position(values):
    order = np.zeros(len(values), dtype=np.int64)
    kernels._sort_descending(np.array(values, dtype=np.float64), order, len(values))
    assert order.tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))
