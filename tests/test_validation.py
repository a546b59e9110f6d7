"""Retrieval during training: exact ranking, metrics equal to the evaluation's, the part of a collection."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from tiny_training import tiny_config

from lsr.training.validation import Validation, metrics, rank


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_ranking_is_that_of_all_scores_sorted(seed, k):
    rng = np.random.default_rng(seed)
    queries, documents = (
        csr_array((rng.random((n, 9)) < 0.3) * rng.integers(1, 4, (n, 9)).astype(np.float32)) for n in (4, 30)
    )
    scores = queries.toarray() @ documents.toarray().T
    for row, found in zip(scores, rank(queries, documents, k), strict=True):
        expected = sorted((-score, i) for i, score in enumerate(row) if score > 0)[:k]
        assert found.tolist() == [i for _, i in expected]


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_metrics_are_those_of_the_evaluation(seed):
    from lsr.eval.metrics import evaluate_run
    from lsr.run import Ranking, Run

    rng = np.random.default_rng(seed)
    rankings = {f"q{i}": [f"d{j}" for j in rng.permutation(30)[: rng.integers(1, 30)]] for i in range(4)}
    qrels = {q: {f"d{j}": int(rng.integers(0, 4)) for j in rng.permutation(30)[:6]} | {"d0": 1} for q in rankings}
    scored = {q: Ranking(docs, np.arange(len(docs), 0, -1).astype(np.float32)) for q, docs in rankings.items()}
    expected = evaluate_run(Run(scored), qrels, ["ndcg@10", "mrr@10", "recall@100"]).mean
    assert metrics(rankings, qrels) == pytest.approx(expected)


def test_validation_takes_judged_documents_first(collection, model, tmp_path):
    config = tiny_config(tmp_path, collection, model, validation={"queries": 5, "documents": 7})
    validation = Validation.of(config)
    assert list(validation.queries) == [f"q{i}" for i in range(5)]
    assert set(validation.documents) == {f"d{i}" for i in range(7)}
