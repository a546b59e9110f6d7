"""The graph of neighbours and the share of a query: search by blocks against its plain twin."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from strategies import collections, sparse_matrices

import lsr
from lsr.errors import InputError
from lsr.index import graph
from lsr.index.build import build_segment
from lsr.index.options import BuildOptions
from lsr.index.search import Searcher
from lsr.vectors import check_vectors


def cut_of(query: np.ndarray, share: float) -> int:
    """How many of the heaviest terms hold the share of the query's weight."""
    weights = sorted(query[query > 0].astype(np.float64), reverse=True)
    total, held = sum(query[query > 0].astype(np.float64).tolist()), 0.0
    for count, weight in enumerate(weights):
        if held >= share * total:
            return count
        held += weight
    return len(weights)


@given(collections(), st.integers(1, 6), st.integers(1, 3), st.integers(0, 3), st.sampled_from([1, 2, 0.2, 0.5, 0.9]))
@settings(max_examples=40, deadline=None)
def test_refined_search_equals_its_twin(collection, k, width, used, query_cut):
    documents, queries = collection
    k, used = min(k, documents.shape[0]), min(used, width)
    options = BuildOptions(seismic=True, neighbours=width, n_postings=2, min_list_size=2, min_block_size=1)
    segment = build_segment(check_vectors(documents), options)
    near = segment.neighbours.rows.reshape(-1, width)
    dense, lists = oracle.dense(documents), oracle.decoded_blocks(segment)
    scores, rows, counts = Searcher(segment).seismic(check_vectors(queries), k, query_cut, 0.9, 1, used)
    for i, query in enumerate(oracle.dense(queries)):
        cut = query_cut if query_cut >= 1 else cut_of(query, query_cut)
        hits = oracle.seismic_search(query, dense, lists, k, cut, 0.9).rows
        wider = {*hits, *(int(row) for hit in hits for row in near[hit, :used] if row >= 0)}
        expected = oracle.best(oracle.scores_of(query, dense), sorted(wider), k)
        assert rows[i, : counts[i]].tolist() == expected.rows
        assert scores[i, : counts[i]].tolist() == expected.scores


@given(collections(), st.integers(1, 10), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=25, deadline=None)
def test_lossless_settings_with_any_neighbours_equal_exact_search(collection, k, width, heap_factor):
    documents, queries = collection
    k = min(k, documents.shape[0])
    index = lsr.Index.build(documents, options=BuildOptions.lossless(neighbours=width, min_list_size=1))
    exact = index.search(queries, k, exact=True)
    for used in range(width + 1):
        found = index.search(queries, k, query_cut=1_000, heap_factor=heap_factor, neighbours=used)
        np.testing.assert_array_equal(found.rows, exact.rows)
        np.testing.assert_array_equal(found.scores, exact.scores)


@given(sparse_matrices(max_rows=30), st.integers(1, 4), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_the_graph_holds_others_once_whatever_threads_and_batches(documents, width, threads, batch):
    segment = build_segment(check_vectors(documents), BuildOptions())
    whole = graph.build_graph(segment, width, threads=1).rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "BATCH", batch)
        assert graph.build_graph(segment, width, threads=threads).rows.tolist() == whole.tolist()
    for row, near in enumerate(whole.reshape(-1, width).tolist()):
        others = [other for other in near if other >= 0]
        assert near == others + [-1] * (width - len(others))
        assert row not in others
        assert len(set(others)) == len(others)


def test_a_saved_graph_comes_back_and_is_counted(tmp_path):
    documents = check_vectors(csr_array(np.array([[1, 1, 0], [1, 2, 0], [0, 1, 1], [0, 0, 3]], dtype=np.float32)))
    options = BuildOptions(seismic=True, neighbours=2)
    built = lsr.Index.build(documents, options=options)
    opened = lsr.Index.build(documents, path=tmp_path / "x.index", options=options)
    assert opened.sizes()["neighbours"] == 4 * 2 * 4
    assert opened._segment.neighbours.rows.tolist() == built._segment.neighbours.rows.tolist()
    assert opened.search({1: 1.0}, 2, query_cut=1).rows.tolist() == [[1, 0]]


def test_knobs_that_do_not_fit_are_refused():
    documents = csr_array(np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match="add seismic=True"):
        BuildOptions(neighbours=3)
    for wrong in (-1, 1.5, True):
        with pytest.raises(InputError, match="build option neighbours must be"):
            BuildOptions(seismic=True, neighbours=wrong)
    index = lsr.Index.build(check_vectors(documents), options=BuildOptions(seismic=True, neighbours=1))
    with pytest.raises(InputError, match="neighbours=2 is more than the 1 that the index keeps"):
        index.search({0: 1.0}, 1, neighbours=2)
    for wrong in (-1, 1.5, False, "1"):
        with pytest.raises(InputError, match="neighbours must be an integer of at least 0"):
            index.search({0: 1.0}, 1, neighbours=wrong)
    for wrong in (0.0, 1.0, 2.5, "1"):
        with pytest.raises(InputError, match="query_cut must be an integer of at least 1, or a share"):
            index.search({0: 1.0}, 1, query_cut=wrong)
    with pytest.raises(InputError, match="leave them out of exact search"):
        index.search({0: 1.0}, 1, exact=True, neighbours=1)
