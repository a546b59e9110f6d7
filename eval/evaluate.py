"""From an encoder and a collection to a report: metrics, sparsity, latency, sizes."""

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsr.errors import InputError, LsrWarning
from lsr.eval.datasets import Dataset, queries_are_documents
from lsr.eval.metrics import DEFAULT_METRICS, Scores, evaluate_run, measurable
from lsr.records import Document, Query
from lsr.retriever import Retriever
from lsr.run import Run, read_run

#: Queries that are timed one at a time for the latency of a report.
TIMED_QUERIES = 200


@dataclass(frozen=True)
class Report:
    """The evaluation of one encoder on one collection.

    Attributes:
        dataset: name and split.
        mode: "exact", "planned" (by recall), "pruned" (by candidates or query_mass) or "seismic" (by blocks).
        metrics: means over the judged queries.
        n_documents, n_queries, n_without_hits, n_unjudgeable: see `Scores`.
        self_matches: what was done about hits whose id is the query's.
        document_nnz, query_nnz: mean number of terms of a vector.
        flops: expected multiplications per query–document pair, Σ_j p_query(j) · p_document(j).
        latency_ms: median over queries, one at a time on one thread, vectors to k hits, warm.
        index_bytes: size of the index's arrays.
        k: depth of the run.
    """

    dataset: str
    mode: str
    metrics: dict[str, float]
    n_documents: int
    n_queries: int
    n_without_hits: int
    n_unjudgeable: int
    self_matches: str
    document_nnz: float
    query_nnz: float
    flops: float
    latency_ms: float
    index_bytes: int
    k: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def notes(self) -> list[str]:
        """What a reader of the metrics should know, a line each."""
        return [
            f"{self.n_documents:,} documents of {self.document_nnz:.0f} terms, {self.n_queries:,} judged queries of "
            f"{self.query_nnz:.1f} terms, {self.flops:.1f} FLOPS a pair",
            f"{self.latency_ms:.2f} ms a query (median, one thread, vectors to {self.k} hits), "
            f"index {self.index_bytes / 1e6:.1f} MB",
            *self.remarks(),
        ]

    def remarks(self) -> list[str]:
        """What is unusual about the queries, a line each."""
        lines = []
        if not self.self_matches.startswith("none"):
            lines.append(f"self-matches: {self.self_matches}")
        if self.n_without_hits:
            lines.append(f"{self.n_without_hits:,} queries found nothing and count as zero")
        if self.n_unjudgeable:
            lines.append(f"{self.n_unjudgeable:,} queries without a relevant document are left out")
        return lines


def evaluate_retriever(
    retriever: Retriever,
    dataset: Dataset,
    *,
    k: int = 100,
    metrics: Sequence[str] | None = None,
    drop_self_matches: bool | None = None,
    vectors: csr_array | None = None,
    **options: Any,
) -> tuple[Report, Run, Scores]:
    """Run a collection's queries and evaluate the ranked lists.

    Args:
        retriever: over the collection's documents.
        dataset: its queries and qrels.
        k: depth of the ranked lists.
        metrics: see `evaluate_run`; by default nDCG@10, MRR@10, recall@100 and MAP@100, cut at k.
        drop_self_matches: whether hits whose id is the query's are dropped; None finds out whether
            the queries are themselves documents.
        vectors: the queries' vectors in the order of ``dataset.queries``, where they are there already.
        options: of `Index.search`: exact, recall, threads, and the knobs of lists and of blocks.

    Raises:
        InputError: the index is not of this collection's documents.
    """
    metrics = measurable(metrics, k)
    index = retriever.index
    _check_documents(retriever, dataset)
    shared = _documents_named_as_queries(retriever, dataset.queries)
    drop, said = self_match_rule(dataset.queries, shared, drop_self_matches)
    vectors = retriever.encode_queries(dataset.queries) if vectors is None else vectors
    hits = index.search(vectors, min(k + drop, len(index)), **options)
    run = hits.to_run([query.id for query in dataset.queries])
    run = run.without_self_matches().truncated(k) if drop else run
    scores = evaluate_run(run, dataset.qrels, metrics)
    report = Report(
        dataset=dataset.name,
        mode=search_mode(options),
        metrics=scores.mean,
        n_documents=len(index),
        n_queries=scores.n_queries,
        n_without_hits=scores.n_without_hits,
        n_unjudgeable=scores.n_unjudgeable,
        self_matches=said,
        document_nnz=index.n_postings / len(index),
        query_nnz=vectors.nnz / max(1, vectors.shape[0]),
        flops=_flops(vectors, index.document_frequencies(), len(index)),
        latency_ms=_latency(retriever, vectors, min(k, len(index)), options),
        index_bytes=sum(index.sizes().values()),
        k=k,
    )
    return report, run, scores


@dataclass(frozen=True)
class RunReport:
    """The evaluation of a run file: the fields of `Report` that need no index."""

    dataset: str
    mode: str
    metrics: dict[str, float]
    n_queries: int
    n_without_hits: int
    n_unjudgeable: int
    self_matches: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def notes(self) -> list[str]:
        """What a reader of the metrics should know, a line each."""
        return [
            f"{self.n_queries:,} judged queries; {self.n_without_hits:,} found nothing and count as zero; "
            f"{self.n_unjudgeable:,} without a relevant document are left out",
            f"self-matches: {self.self_matches}",
        ]


def evaluate_run_file(
    path: str,
    dataset: Dataset,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    drop_self_matches: bool | None = None,
) -> tuple[RunReport, Scores]:
    """Evaluate a TREC run file against a collection's qrels; self-matches as in `evaluate_retriever`."""
    run = read_run(path)
    ids = {query.id for query in dataset.queries}
    shared = {} if drop_self_matches is not None else {d.id: d for d in dataset.corpus if d.id in ids}
    drop, said = self_match_rule(dataset.queries, shared, drop_self_matches)
    scores = evaluate_run(run.without_self_matches() if drop else run, dataset.qrels, metrics)
    counts = (scores.n_queries, scores.n_without_hits, scores.n_unjudgeable)
    return RunReport(dataset.name, "run file", scores.mean, *counts, said), scores


def _check_documents(retriever: Retriever, dataset: Dataset) -> None:
    judged = {doc_id for grades in dataset.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    missing = sum(1 for doc_id in judged if not retriever.index.has_document(doc_id))
    if 2 * missing > len(judged):
        raise InputError(
            f"{missing:,} of the {len(judged):,} relevant documents of {dataset.name} are not in the index: it is of "
            "another corpus"
        )
    if missing:
        message = f"{missing:,} of the {len(judged):,} relevant documents of {dataset.name} are not in the index"
        warnings.warn(message, LsrWarning, stacklevel=3)


def self_match_rule(queries: Sequence[Query], shared: dict[str, Document], asked: bool | None) -> tuple[bool, str]:
    """Whether to drop self-matches, and why; ``shared`` holds the documents whose id is a query's."""
    if asked is not None:
        return asked, "dropped, as asked" if asked else "kept, as asked"
    if queries_are_documents(queries, shared):
        return True, "dropped: the queries are themselves documents"
    return False, "none: no query is a document"


def _documents_named_as_queries(retriever: Retriever, queries: Sequence[Query]) -> dict[str, Document]:
    shared = {}
    for query in queries:
        if retriever.index.has_document(query.id):
            title, text = retriever.text_of(query.id)
            shared[query.id] = Document(query.id, text, title)
    return shared


def search_mode(options: Mapping[str, Any]) -> str:
    """How `Index.search` answers with these arguments: "exact", "planned", "pruned" or "seismic"."""
    if options.get("exact"):
        return "exact"
    if any(options.get(name) is not None for name in ("query_cut", "heap_factor", "neighbours")):
        return "seismic"
    return "pruned" if {"candidates", "query_mass"} & {n for n, v in options.items() if v is not None} else "planned"


def _flops(queries: csr_array, document_frequencies: NDArray[np.int64], n_documents: int) -> float:
    products = document_frequencies[queries.indices].sum(dtype=np.int64)
    return float(products / max(1, queries.shape[0]) / n_documents)


def _latency(retriever: Retriever, vectors: csr_array, k: int, options: dict[str, Any]) -> float:
    timed = [vectors[[i]] for i in range(min(TIMED_QUERIES, vectors.shape[0]))]
    options = {**options, "threads": 1}
    retriever.index.search(timed[0], k, **options)
    seconds = []
    for vector in timed:
        start = time.perf_counter()
        retriever.index.search(vector, k, **options)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)
