"""Baselines that are no sparse encoder: dense models by brute force, and ensembles of rankings.

They are what a student learns from (`lsr distill`), so they are measured like everything else.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lsr.bm25 import Bm25
from lsr.encoder import Encoder
from lsr.errors import InputError
from lsr.eval.datasets import Dataset
from lsr.eval.evaluate import TIMED_QUERIES, Report, self_match_rule
from lsr.eval.metrics import Scores, evaluate_run
from lsr.run import Ranking, Run
from lsr.training.teachers import DenseModel

#: Ensembles add the scores of each member's best documents, as many as this.
ENSEMBLE_DEPTH = 200
DENSE = "dense"
DENSE_KINDS = ("dense", "dense-cls", "dense-mean", "dense-cls-cosine", "dense-mean-cosine")


@dataclass(frozen=True)
class Ensemble:
    """Members whose scores are added; ``normalize`` brings each to 0 … 1 per query before."""

    members: tuple["Encoder | Bm25 | DenseModel", ...]
    normalize: bool = True


#: What the harness evaluates.
Model: TypeAlias = "Encoder | Bm25 | DenseModel | Ensemble"


def dense_model(spec: str, device: str | None = None) -> DenseModel:
    """The dense model that ``KIND:FOLDER`` names, KIND being one of `DENSE_KINDS`; see `lsr.training.teachers`."""
    kind, _, source = spec.partition(":")
    _, *rest = kind.split("-")
    return DenseModel(source, pooling=rest[0] if rest else None, normalize=rest[1:] == ["cosine"], device=device)


def fuse(runs: Sequence[Run], *, normalize: bool = True, depth: int = ENSEMBLE_DEPTH) -> Run:
    """Add the scores of several runs.

    z = (s − min) / (max − min + 1e-6) over the best ``depth`` documents of a query in a run, as ensemble
    distillation has it (arXiv 2411.04403); a document that a run does not have gets nothing from it.

    Args:
        runs: ranked lists of the same queries.
        normalize: False adds the scores as they are, for comparison.
        depth: documents of each list that count.
    """
    rankings = {}
    for query in dict.fromkeys(query for run in runs for query in run):
        total: dict[str, float] = {}
        for run in runs:
            ids, scores = run[query] if query in run else Ranking([], np.empty(0, dtype=np.float32))
            best = scores[:depth].astype(np.float64)
            if normalize and len(best):
                best = (best - best[-1]) / (best[0] - best[-1] + 1e-6)
            for doc_id, score in zip(ids, best.tolist(), strict=False):
                total[doc_id] = total.get(doc_id, 0.0) + score
        ranked = sorted(total.items(), key=lambda item: -item[1])
        rankings[query] = Ranking([d for d, _ in ranked], np.array([s for _, s in ranked], dtype=np.float32))
    return Run(rankings, "ensemble")


def search_dense(documents: NDArray[Any], ids: Sequence[str], queries: NDArray[Any], k: int) -> list[Ranking]:
    """The k largest dot products of each query; of equal ones the document that comes first.

    Args:
        documents: float32 (n, dimension).
        ids: n document ids.
        queries: float32 (m, dimension).
        k: documents wanted.
    """
    found = []
    for vector in queries:
        scores = documents @ vector
        best = np.argsort(-scores, kind="stable")[:k]
        found.append(Ranking([ids[row] for row in best], scores[best].astype(np.float32)))
    return found


def evaluate_dense(
    model: DenseModel,
    dataset: Dataset,
    *,
    k: int,
    metrics: Sequence[str],
    drop_self_matches: bool | None = None,
    documents: NDArray[Any] | None = None,
) -> tuple[Report, Run, Scores]:
    """Evaluate a dense model by brute force; every document is multiplied in all dimensions.

    Args:
        model: the encoder.
        dataset: documents, queries and qrels.
        k: depth of the ranked lists.
        metrics: see `evaluate_run`.
        drop_self_matches: see `evaluate_retriever`.
        documents: the documents' vectors in the corpus' order, where they are there already.
    """
    wanted = {query.id for query in dataset.queries}
    ids, named = [], {}
    for document in dataset.corpus:
        ids.append(document.id)
        if document.id in wanted:
            named[document.id] = document
    vectors = encode_dense(model, dataset) if documents is None else documents
    if vectors.shape != (len(ids), model.dimension):
        raise InputError(f"the vectors have shape {vectors.shape} but {dataset.name} has {len(ids):,} documents")
    drop, said = self_match_rule(dataset.queries, named, drop_self_matches)
    queries = model.encode([query.text for query in dataset.queries], model.prompts.get("query", ""))
    depth = min(k + drop, len(ids))
    rankings = search_dense(vectors, ids, queries, depth)
    run = Run({query.id: ranking for query, ranking in zip(dataset.queries, rankings, strict=True)}, DENSE)
    run = run.without_self_matches().truncated(k) if drop else run
    scores = evaluate_run(run, dataset.qrels, metrics)
    start = time.perf_counter()
    search_dense(vectors, ids, queries[:TIMED_QUERIES], depth)
    seconds = (time.perf_counter() - start) / min(TIMED_QUERIES, len(queries))
    size = float(model.dimension)
    counts = (len(ids), scores.n_queries, scores.n_without_hits, scores.n_unjudgeable)
    report = Report(dataset.name, DENSE, scores.mean, *counts, said, size, size, size, 1e3 * seconds, vectors.nbytes, k)
    return report, run, scores


def encode_dense(model: DenseModel, dataset: Dataset, batch: int = 512) -> NDArray[np.float32]:
    """All documents' vectors: float32 (n, dimension)."""
    parts, waiting = [], []
    prompt = model.prompts.get("document", "")
    for document in dataset.corpus:
        waiting.append(document.content)
        if len(waiting) == batch:
            parts.append(model.encode(waiting, prompt))
            waiting = []
    if waiting:
        parts.append(model.encode(waiting, prompt))
    return np.concatenate(parts)


def evaluate_ensemble(
    parts: Sequence[tuple[Report, Run, Scores]], ensemble: Ensemble, dataset: Dataset, k: int, metrics: Sequence[str]
) -> tuple[Report, Run, Scores]:
    """Evaluate an ensemble from its members' evaluations; what they cost is added up."""
    run = fuse([run for _, run, _ in parts], normalize=ensemble.normalize).truncated(k)
    scores = evaluate_run(run, dataset.qrels, metrics)
    reports = [report for report, _, _ in parts]
    report = Report(
        dataset=dataset.name,
        mode="ensemble",
        metrics=scores.mean,
        n_documents=reports[0].n_documents,
        n_queries=scores.n_queries,
        n_without_hits=scores.n_without_hits,
        n_unjudgeable=scores.n_unjudgeable,
        self_matches=reports[0].self_matches,
        document_nnz=sum(r.document_nnz for r in reports),
        query_nnz=sum(r.query_nnz for r in reports),
        flops=sum(r.flops for r in reports),
        latency_ms=sum(r.latency_ms for r in reports),
        index_bytes=sum(r.index_bytes for r in reports),
        k=k,
    )
    return report, run, scores
