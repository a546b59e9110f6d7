"""From a retriever and a small collection to a report."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import lsr
from lsr.bm25 import Bm25
from lsr.corpus import Corpus
from lsr.errors import InputError, LsrWarning
from lsr.eval.datasets import Dataset
from lsr.eval.evaluate import evaluate_retriever, evaluate_run_file
from lsr.records import Document, Query
from lsr.run import Qrels

DOCUMENTS = [
    Document("d1", "cat", "Pets"),
    Document("d2", "cat cat dog"),
    Document("d3", "dog bird"),
    Document("d4", "fish"),
]


def dataset(queries: dict[str, str], qrels: Qrels, documents: list[Document] = DOCUMENTS) -> Dataset:
    corpus = Corpus("documents", lambda: iter(documents))
    return Dataset("pets/test", corpus, [Query(q, text) for q, text in queries.items()], qrels)


# cat: d2, d1; bird: d3; fish: d4
PETS = dataset(
    {"q1": "cat", "q2": "bird", "q3": "fish"},
    {"q1": {"d1": 1}, "q2": {"d3": 2}, "q3": {"d1": 1}},
)


@pytest.fixture(scope="module")
def retriever() -> lsr.Retriever:
    return lsr.Retriever.build(DOCUMENTS, Bm25())


def test_the_run_is_the_search_and_the_metrics_are_its(retriever: lsr.Retriever) -> None:
    report, run, scores = evaluate_retriever(retriever, PETS, metrics=["mrr@10", "ndcg@10"])
    assert {query: ranking.doc_ids for query, ranking in run.items()} == {
        "q1": ["d2", "d1"],
        "q2": ["d3"],
        "q3": ["d4"],
    }
    assert run.name == "lsr"
    assert report.metrics == scores.mean
    assert report.metrics["mrr@10"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert report.metrics["ndcg@10"] == pytest.approx((1 / math.log2(3) + 1 + 0) / 3)


def test_sparsity_is_counted(retriever: lsr.Retriever) -> None:
    report, _, _ = evaluate_retriever(retriever, PETS)
    assert report.document_nnz == 7 / 4  # pet cat; cat dog; dog bird; fish
    assert report.query_nnz == 1
    assert report.flops == pytest.approx((2 + 1 + 1) / 3 / 4)  # documents with cat, bird, fish
    two, _, _ = evaluate_retriever(
        retriever, dataset({"q1": "cat", "q2": "cat dog"}, {"q1": {"d1": 1}, "q2": {"d1": 1}})
    )
    assert two.query_nnz == 1.5
    assert two.flops == pytest.approx((2 + (2 + 2)) / 2 / 4)
    assert (report.dataset, report.n_documents, report.n_queries, report.k) == ("pets/test", 4, 3, 100)
    assert report.index_bytes == sum(retriever.index.sizes().values()) > 0


@pytest.mark.parametrize(
    ("built", "options", "mode"),
    [
        ({}, {}, "planned"),
        ({}, {"candidates": 30}, "pruned"),
        ({}, {"exact": True}, "exact"),
        ({"seismic": True}, {"query_cut": 3}, "seismic"),
    ],
)
def test_the_mode_is_what_was_searched(built: dict[str, Any], options: dict[str, Any], mode: str) -> None:
    retriever = lsr.Retriever.build(DOCUMENTS, Bm25(), options=lsr.BuildOptions(**built))
    assert evaluate_retriever(retriever, PETS, **options)[0].mode == mode


def test_k_cuts_the_run_and_may_pass_the_collection(retriever: lsr.Retriever) -> None:
    report, run, _ = evaluate_retriever(retriever, PETS, k=1)
    assert report.k == 1
    assert run["q1"].doc_ids == ["d2"]
    assert report.metrics["mrr@1"] == pytest.approx(1 / 3)
    assert evaluate_retriever(retriever, PETS, k=1000)[1]["q1"].doc_ids == ["d2", "d1"]


def test_queries_that_find_nothing_count_and_are_noted(retriever: lsr.Retriever) -> None:
    data = dataset({"q1": "cat", "q2": "unicorn", "q3": "dog"}, {"q1": {"d2": 1}, "q2": {"d1": 1}, "q3": {"d1": 0}})
    with pytest.warns(LsrWarning, match="1 of 3 queries have no term in the vocabulary"):
        report, run, _ = evaluate_retriever(retriever, data)
    assert run["q2"].doc_ids == []
    assert report.metrics["mrr@10"] == 0.5
    assert (report.n_queries, report.n_without_hits, report.n_unjudgeable) == (2, 1, 1)
    notes = report.notes()
    assert "1 queries found nothing and count as zero" in notes
    assert "1 queries without a relevant document are left out" in notes


# Documents that argue with one another: each is also a query.
ARGUMENTS = [Document("a", "cat dog"), Document("b", "cat"), Document("c", "dog dog bird")]
ARGUMENT_DATA = dataset({"a": "cat dog", "b": "cat"}, {"a": {"b": 1}, "b": {"a": 1}}, ARGUMENTS)


def test_queries_that_are_documents_do_not_find_themselves() -> None:
    retriever = lsr.Retriever.build(ARGUMENTS, Bm25())
    report, run, _ = evaluate_retriever(retriever, ARGUMENT_DATA, k=1)
    assert report.self_matches == "dropped: the queries are themselves documents"
    assert [len(ranking.doc_ids) for ranking in run.values()] == [1, 1]
    assert run["b"].doc_ids == ["a"]
    kept, run, _ = evaluate_retriever(retriever, ARGUMENT_DATA, k=1, drop_self_matches=False)
    assert kept.self_matches == "kept, as asked"
    assert run["b"].doc_ids == ["b"]


def test_equal_ids_alone_drop_nothing_unless_asked(retriever: lsr.Retriever) -> None:
    data = dataset({"d3": "dog bird unicorn", "d4": "cat"}, {"d3": {"d3": 1}, "d4": {"d1": 1}})
    report, run, _ = evaluate_retriever(retriever, data)
    assert report.self_matches == "none: no query is a document"
    assert run["d3"].doc_ids == ["d3", "d2"]
    asked, run, _ = evaluate_retriever(retriever, data, drop_self_matches=True)
    assert asked.self_matches == "dropped, as asked"
    assert run["d3"].doc_ids == ["d2"]
    _, run, _ = evaluate_retriever(retriever, data, k=1, drop_self_matches=True)
    assert [ranking.doc_ids for ranking in run.values()] == [["d2"], ["d2"]]


def test_an_index_of_another_corpus_is_refused() -> None:
    retriever = lsr.Retriever.build([("x1", "cat"), ("x2", "dog")], Bm25())
    with pytest.raises(InputError, match="2 of the 2 relevant documents of .* it is of another corpus"):
        evaluate_retriever(retriever, PETS)


def test_a_report_is_json(retriever: lsr.Retriever) -> None:
    report, _, _ = evaluate_retriever(retriever, PETS)
    assert json.loads(json.dumps(report.to_dict()))["metrics"] == report.metrics
    assert report.latency_ms > 0


def test_a_written_run_evaluates_to_the_same_metrics(retriever: lsr.Retriever, tmp_path: Path) -> None:
    report, run, scores = evaluate_retriever(retriever, PETS)
    run.write(tmp_path / "run.trec")
    from_file, from_file_scores = evaluate_run_file(str(tmp_path / "run.trec"), PETS)
    assert from_file.metrics == report.metrics
    assert from_file_scores.per_query == scores.per_query
    assert from_file.mode == "run file"
    assert (from_file.n_queries, from_file.n_without_hits, from_file.n_unjudgeable) == (3, 0, 0)
    assert json.loads(json.dumps(from_file.to_dict()))["dataset"] == "pets/test"
    assert from_file.notes() == [
        "3 judged queries; 0 found nothing and count as zero; 0 without a relevant document are left out",
        "self-matches: none: no query is a document",
    ]


@pytest.mark.parametrize(
    ("asked", "mrr", "said"),
    [
        (None, 1.0, "dropped: the queries are themselves documents"),
        (True, 1.0, "dropped, as asked"),
        (False, 0.75, "kept, as asked"),
    ],
)
def test_self_matches_of_a_run_file_are_dropped_likewise(
    tmp_path: Path, asked: bool | None, mrr: float, said: str
) -> None:
    path = tmp_path / "run.trec"
    path.write_text("a Q0 a 1 2 x\na Q0 b 2 1 x\nb Q0 a 1 1 x\n")
    report, _ = evaluate_run_file(str(path), ARGUMENT_DATA, metrics=["mrr"], drop_self_matches=asked)
    assert report.metrics["mrr"] == mrr
    assert report.self_matches == said


def test_relevant_documents_that_are_missing_are_said(retriever: lsr.Retriever) -> None:
    data = dataset({"q1": "cat"}, {"q1": {"d1": 1, "d2": 1, "gone": 1}})
    with pytest.warns(LsrWarning, match="1 of the 3 relevant documents of pets/test are not in the index"):
        evaluate_retriever(retriever, data)


def test_metrics_given_as_one_string_are_refused(retriever: lsr.Retriever) -> None:
    with pytest.raises(InputError, match=r"write \['ndcg@10'\]"):
        evaluate_retriever(retriever, PETS, metrics="ndcg@10")
