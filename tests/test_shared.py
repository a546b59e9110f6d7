"""The real collections and the real model, where they stand beside the checkout (../shared)."""

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_array

import lsr
from lsr.eval.datasets import load_dataset
from lsr.eval.evaluate import evaluate_retriever


def stored_vectors(path) -> csr_array:
    arrays = np.load(path)
    data = arrays["data"].astype(np.float32)
    shape = (len(arrays["indptr"]) - 1, 30_522)
    return csr_array((data, arrays["indices"].astype(np.int32), arrays["indptr"]), shape=shape)


def recall(found: lsr.Hits, exact: lsr.Hits) -> float:
    shares = [
        len(set(f[f >= 0]) & set(e[e >= 0])) / len(e[e >= 0]) for f, e in zip(found.rows, exact.rows, strict=True)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("scifact", 0.66, 0.69), ("cranfield", 0.34, 0.38), ("cisi", 0.35, 0.39)]
)
@pytest.mark.filterwarnings("ignore::lsr.errors.LsrWarning")
def test_bm25_reaches_its_known_ndcg(shared, name, low, high):
    dataset = load_dataset(shared / "data" / name)
    retriever = lsr.Retriever.build(dataset.corpus, lsr.Bm25())
    report, _, _ = evaluate_retriever(retriever, dataset, exact=True)
    assert low < report.metrics["ndcg@10"] < high
    assert report.self_matches == "none: no query is a document"


@pytest.mark.filterwarnings("ignore::lsr.errors.LsrWarning")
def test_splade_reaches_its_known_ndcg_on_cranfield(shared):
    """0.372, measured independently."""
    dataset = load_dataset(shared / "data" / "cranfield")
    encoder = lsr.load_encoder(shared / "models" / "splade-tiny")
    retriever = lsr.Retriever.build(dataset.corpus, encoder)
    for exact in (True, False):
        report, _, _ = evaluate_retriever(retriever, dataset, exact=exact)
        assert report.metrics["ndcg@10"] == pytest.approx(0.372, abs=0.005)


@pytest.mark.filterwarnings("ignore::lsr.errors.LsrWarning")
def test_splade_vectors_equal_those_of_half_precision(shared):
    encoder = lsr.load_encoder(shared / "models" / "splade-tiny", document_max_length=256)
    documents = list(itertools.islice(lsr.read_corpus(shared / "data" / "wiki-en-passages"), 40))
    ours = encoder.encode_documents(documents).toarray()
    theirs = stored_vectors(shared / "vectors" / "wiki-112k.splade-tiny.npz")[:40].toarray()
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    assert np.abs(ours - theirs).mean() < 1e-4


@pytest.mark.filterwarnings("ignore::lsr.errors.LsrWarning")
def test_splade_vectors_equal_the_reference_library_s(shared):
    from sentence_transformers import SparseEncoder

    path = shared / "models" / "splade-tiny"
    documents = list(itertools.islice(lsr.read_corpus(shared / "data" / "scifact"), 12))
    theirs = SparseEncoder(str(path), device="cpu").encode([d.content for d in documents]).to_dense().numpy()
    np.testing.assert_allclose(lsr.load_encoder(path).encode_documents(documents).toarray(), theirs, atol=1e-4)


def test_seismic_keeps_its_recall_on_real_vectors(shared):
    """On a part; tests/benchmarks/bench_index.py measures the whole."""
    documents = stored_vectors(shared / "vectors" / "wiki-112k.splade-tiny.npz")[:6_000]
    queries = stored_vectors(shared / "vectors" / "squad-dev-questions.splade-tiny.npz")[:300]
    index = lsr.Index.build(documents, options=lsr.BuildOptions(seismic=True))
    exact = index.search(queries, 10, exact=True)
    assert recall(index.search(queries, 10, query_cut=10), exact) >= 0.95
    assert recall(index.search(queries, 10), exact) >= 0.99
    lossless = lsr.Index.build(documents[:2_000], options=lsr.BuildOptions.lossless())
    a, b = lossless.search(queries, 10, query_cut=1_000, heap_factor=1.0), lossless.search(queries, 10, exact=True)
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(a.scores, b.scores)
