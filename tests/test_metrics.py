"""Metrics against values worked out by hand, and against a plain twin."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsr.errors import InputError
from lsr.eval.metrics import DEFAULT_METRICS, evaluate_run, measurable
from lsr.run import Qrels, Ranking, Run


def run_of(**rankings: Sequence[str]) -> Run:
    """Rankings of ids, with scores n, n - 1, …."""
    return Run({q: Ranking(list(ids), np.arange(len(ids), 0, -1, dtype=np.float32)) for q, ids in rankings.items()})


# --- by hand -----------------------------------------------------------------------------------

# Grades in rank order: 0, 1, none, 3; a relevant document of grade 2 is not found.
QRELS: Qrels = {"q": {"a": 0, "b": 1, "d": 3, "e": 2}}
RUN = run_of(q="abcd")
IDEAL = [3, 2, 1]


def discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("ndcg@10", discounted([0, 1, 0, 3]) / discounted(IDEAL)),
        ("ndcg", discounted([0, 1, 0, 3]) / discounted(IDEAL)),
        ("ndcg@2", discounted([0, 1]) / discounted(IDEAL[:2])),
        ("ndcg@1", 0.0),
        ("mrr@10", 1 / 2),
        ("mrr@1", 0.0),
        ("mrr", 1 / 2),
        ("recall@4", 2 / 3),
        ("recall@3", 1 / 3),
        ("recall@100", 2 / 3),
        ("recall", 2 / 3),
        ("precision@2", 1 / 2),
        ("precision@4", 2 / 4),
        ("precision@10", 2 / 10),
        ("precision", 2 / 4),
        ("map@100", (1 / 2 + 2 / 4) / 3),
        ("map@3", (1 / 2) / 3),
        ("map", (1 / 2 + 2 / 4) / 3),
        ("hit_rate@1", 0.0),
        ("hit_rate@2", 1.0),
        ("hit_rate", 1.0),
        ("recall@4-l2", 1 / 2),
        ("recall@1000-l3", 1.0),
        ("mrr@10-l2", 1 / 4),
        ("map-l2", (1 / 4) / 2),
        ("precision@4-l2", 1 / 4),
        ("hit_rate@3-l2", 0.0),
    ],
)
def test_values_worked_out_by_hand(metric: str, value: float) -> None:
    scores = evaluate_run(RUN, QRELS, [metric])
    assert scores.mean == {metric: pytest.approx(value)}
    assert scores.per_query == {metric: {"q": pytest.approx(value)}}


def test_a_perfect_ranking_has_ndcg_one() -> None:
    assert evaluate_run(run_of(q="dba"), {"q": {"a": 1, "b": 2, "d": 3}}, ["ndcg@10"]).mean["ndcg@10"] == 1.0
    assert evaluate_run(run_of(q="abd"), {"q": {"a": 1, "b": 2, "d": 3}}, ["ndcg@10"]).mean["ndcg@10"] < 0.9


def test_equal_scores_are_ranked_as_the_run_has_them() -> None:
    tied = np.zeros(3, dtype=np.float32)
    for ids, rank in (("rxy", 1), ("xry", 2), ("yxr", 3)):
        run = Run({"q": Ranking(list(ids), tied)})
        assert evaluate_run(run, {"q": {"r": 1}}, ["mrr@10"]).mean["mrr@10"] == pytest.approx(1 / rank)


def test_unjudged_documents_are_not_relevant() -> None:
    with_unjudged = evaluate_run(run_of(q="uvbw"), QRELS)
    with_grade_zero = evaluate_run(run_of(q="aubv"), QRELS | {"q": QRELS["q"] | {"a": -1}})
    assert with_unjudged.mean["mrr@10"] == with_grade_zero.mean["mrr@10"] == pytest.approx(1 / 3)


def test_judged_queries_that_found_nothing_count_as_zero() -> None:
    qrels: Qrels = {"hit": {"a": 1}, "empty": {"a": 1}, "missing": {"a": 1}, "wrong": {"a": 1}}
    scores = evaluate_run(run_of(hit="a", empty="", wrong="b"), qrels)
    for metric in DEFAULT_METRICS:
        assert scores.mean[metric] == 0.25
        assert scores.per_query[metric] == {"hit": 1.0, "empty": 0.0, "missing": 0.0, "wrong": 0.0}
    assert (scores.n_queries, scores.n_without_hits, scores.n_unjudgeable) == (4, 2, 0)


def test_queries_without_a_relevant_document_are_left_out_and_counted() -> None:
    qrels: Qrels = {"good": {"a": 1}, "zero": {"a": 0, "b": 0}, "negative": {"a": -2}, "bare": {}}
    scores = evaluate_run(run_of(good="a", zero="ab", negative="a"), qrels, ["map"])
    assert scores.mean["map"] == 1.0
    assert list(scores.per_query["map"]) == ["good"]
    assert (scores.n_queries, scores.n_without_hits, scores.n_unjudgeable) == (1, 0, 3)


def test_a_query_without_a_document_of_the_asked_grade_counts_as_zero() -> None:
    scores = evaluate_run(run_of(high="a", low="a"), {"high": {"a": 2}, "low": {"a": 1}}, ["recall@10-l2", "recall@10"])
    assert scores.mean == {"recall@10-l2": 0.5, "recall@10": 1.0}


def test_default_metrics_are_cut_at_the_depth() -> None:
    assert measurable(None, 10) == ("ndcg@10", "mrr@10", "recall@10", "map@10")
    assert measurable(None, 100, ("ndcg@10", "map@1000-l2")) == ("ndcg@10", "map@100-l2")
    assert measurable(["recall@50-l2", "map"], 50) == ("recall@50-l2", "map")
    with pytest.raises(InputError, match="recall@1000-l2 cannot be measured on lists of 100 documents"):
        measurable(["recall@1000-l2"], 100)


def test_queries_of_the_run_without_judgments_are_left_out() -> None:
    scores = evaluate_run(run_of(q="b", other="x"), QRELS, ["mrr"])
    assert scores.per_query == {"mrr": {"q": 1.0}}
    assert scores.n_queries == 1


def test_a_run_of_nothing_scores_zero() -> None:
    scores = evaluate_run(Run({}), QRELS)
    assert scores.mean == dict.fromkeys(DEFAULT_METRICS, 0.0)
    assert scores.n_without_hits == 1


@pytest.mark.parametrize("qrels", [{}, {"q": {"a": 0}}])
def test_qrels_without_a_relevant_document_are_refused(qrels: Qrels) -> None:
    with pytest.raises(InputError, match="no query of the qrels has a relevant document: nothing can be evaluated"):
        evaluate_run(RUN, qrels)


@pytest.mark.parametrize(
    "metric",
    ["ndgc@10", "ndcg@0", "ndcg@", "ndcg10", "ndcg@10-l2", "NDCG@10", "", "f1", "mrr@-1", "map-l0", "map-l2@10"],
)
def test_an_unknown_metric_is_refused_with_the_known_ones(metric: str) -> None:
    with pytest.raises(InputError, match=rf"unknown metric '{metric}': use ndcg, mrr, .*, with a cut such as @10"):
        evaluate_run(RUN, QRELS, ["mrr", metric])


def test_one_metric_instead_of_a_list_is_refused() -> None:
    with pytest.raises(InputError, match=r"metrics is a list of names: write \['ndcg@10'\]"):
        evaluate_run(RUN, QRELS, "ndcg@10")


# --- the twin ----------------------------------------------------------------------------------


def ndcg(grades: list[int], relevant: list[int], k: int | None) -> float:
    return discounted(grades[:k]) / discounted(sorted(relevant, reverse=True)[:k])


def mrr(grades: list[int], relevant: list[int], k: int | None) -> float:
    return next((1 / rank for rank, grade in enumerate(grades[:k], start=1) if grade), 0.0)


def recall(grades: list[int], relevant: list[int], k: int | None) -> float:
    return sum(grade > 0 for grade in grades[:k]) / len(relevant)


def precision(grades: list[int], relevant: list[int], k: int | None) -> float:
    return sum(grade > 0 for grade in grades[:k]) / max(1, k or len(grades))


def average_precision(grades: list[int], relevant: list[int], k: int | None) -> float:
    at_hits = [precision(grades, relevant, i) for i, grade in enumerate(grades[:k], start=1) if grade]
    return sum(at_hits) / len(relevant)


def hit_rate(grades: list[int], relevant: list[int], k: int | None) -> float:
    return float(any(grades[:k]))


TWINS: dict[str, Callable[[list[int], list[int], int | None], float]] = {
    "ndcg": ndcg,
    "mrr": mrr,
    "recall": recall,
    "precision": precision,
    "map": average_precision,
    "hit_rate": hit_rate,
}
METRICS = [f"{name}{cut}" for name in TWINS for cut in ("", "@1", "@3", "@20")]
DOCUMENTS = [f"d{i}" for i in range(12)]
GRADES = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), max_size=8)


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    doc_ids = draw(st.lists(st.sampled_from(DOCUMENTS), max_size=10, unique=True))
    scores = draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=len(doc_ids), max_size=len(doc_ids)))
    return Ranking(doc_ids, np.array(sorted(scores, reverse=True), dtype=np.float32))


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.integers(0, 15).map(str), GRADES, max_size=12),
    st.dictionaries(st.integers(0, 15).map(str), rankings(), max_size=12),
)
def test_every_metric_equals_its_twin(qrels: Qrels, ranked: dict[str, Ranking]) -> None:
    qrels = qrels | {"always": {"d0": 1}}
    scores = evaluate_run(Run(ranked), qrels, METRICS)
    judged = [query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())]
    for metric in METRICS:
        name, _, cut = metric.partition("@")
        expected = {}
        for query in judged:
            doc_ids = ranked[query].doc_ids if query in ranked else []
            gains = [max(0, qrels[query].get(doc_id, 0)) for doc_id in doc_ids]
            relevant = [grade for grade in qrels[query].values() if grade > 0]
            expected[query] = TWINS[name](gains, relevant, int(cut) if cut else None)
        assert scores.per_query[metric] == pytest.approx(expected), metric
        assert scores.mean[metric] == pytest.approx(np.mean(list(expected.values()))), metric


def test_many_queries_keep_their_own_values() -> None:
    queries = {f"q{i}": [f"d{j}" for j in range(1, i + 2)] for i in range(300)}
    scores = evaluate_run(run_of(**queries), {q: {f"d{i + 1}": 1} for i, q in enumerate(queries)}, ["mrr"])
    assert scores.per_query["mrr"] == {f"q{i}": pytest.approx(1 / (i + 1)) for i in range(300)}


# --- what ranx does to Numba and torch ---------------------------------------------------------

THREADS = """
import sys, torch
torch.set_num_threads(1)
torch.ones(300, 300) @ torch.ones(300, 300)
import numba, numpy as np
from lsr.eval.metrics import evaluate_run
from lsr.run import Ranking, Run
assert "ranx" not in sys.modules
layer = numba.config.THREADING_LAYER
evaluate_run(Run({"q": Ranking(["a"], np.ones(1, dtype=np.float32))}), {"q": {"a": 1}}, ["mrr"])
print(torch.get_num_threads(), numba.get_num_threads(), numba.config.THREADING_LAYER == layer)
assert "ranx" in sys.modules
"""


def test_threading_layer_and_thread_counts_are_restored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        env={**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 2 True\n"
