"""Retrieval during training: every document of a small collection is scored, no index is needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lsr.corpus import find_file, read_corpus, read_queries
from lsr.encoder import Encoder
from lsr.errors import InputError
from lsr.expansion import expand
from lsr.run import Qrels, read_qrels
from lsr.training.config import TrainConfig
from lsr.training.sparsity import SideStatistics, products_per_pair

#: Told the encoder as it is, gives numbers by name; the one called "ndcg@10" decides which checkpoint is best.
Validate: TypeAlias = Callable[[Encoder], Mapping[str, float]]

#: Scores held at a time.
BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Validation:
    """A small test collection in memory.

    Attributes:
        queries, documents: texts by id.
        qrels: judgments of these queries; a grade of 1 or more is relevant.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Qrels

    @classmethod
    def of(cls, config: TrainConfig) -> "Validation | None":
        """Read what a config validates on; None if it does not.

        Raises:
            InputError: no judgment of the split fits the collection.
        """
        asked = config.validation
        if asked is None:
            return None
        folder = Path(asked.collection or config.data.collection)
        qrels = read_qrels(folder / "qrels" / f"{asked.split}.tsv")
        read = read_queries(find_file(folder, "queries.jsonl"), skip_repeats=config.data.skip_repeats)
        texts = {query.id: query.text for query in read}
        kept = [q for q, grades in qrels.items() if q in texts and max(grades.values()) > 0][: asked.queries]
        judged = {doc_id for query_id in kept for doc_id in qrels[query_id]}
        first: dict[str, str] = {}
        others: dict[str, str] = {}
        corpus = read_corpus(folder, skip_repeats=config.data.skip_repeats)
        if config.data.expansions is not None and asked.collection is None:
            corpus = expand(corpus, config.data.expansions)
        for document in corpus:
            if document.id in judged:
                first[document.id] = document.content
            elif not asked.documents or len(others) < asked.documents:
                others[document.id] = document.content
        if not kept or not first:
            raise InputError(f"{folder}: no query of the split {asked.split!r} has a judged document there")
        room = len(others) if not asked.documents else max(0, asked.documents - len(first))
        documents = first | dict(list(others.items())[:room])
        return cls({q: texts[q] for q in kept}, documents, {q: qrels[q] for q in kept})

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """nDCG@10, MRR@10 and recall@100, and the statistics of both sides' vectors."""
        queries = encoder.queries.encode(list(self.queries.values())).vectors
        documents = encoder.documents.encode(list(self.documents.values())).vectors
        doc_ids = list(self.documents)
        ranked = rank(queries, documents, 100)
        rankings = {q: [doc_ids[row] for row in rows] for q, rows in zip(self.queries, ranked, strict=True)}
        return {
            **metrics(rankings, self.qrels),
            "products": products_per_pair(queries, documents),
            **SideStatistics.of(queries).as_dict("queries"),
            **SideStatistics.of(documents).as_dict("documents"),
        }


def rank(queries: csr_array, documents: csr_array, k: int) -> list[NDArray[np.int64]]:
    """Rows of the k best documents of each query, scores descending, ties by row; none with a score of 0."""
    block = max(1, BLOCK_ELEMENTS // documents.shape[0])
    transposed = documents.T.tocsr()
    ranked = []
    for start in range(0, queries.shape[0], block):
        for scores in (queries[start : start + block] @ transposed).toarray():
            found = np.flatnonzero(scores)
            if len(found) > k:
                least = np.partition(scores[found], len(found) - k)[len(found) - k]
                found = found[scores[found] >= least]
            ranked.append(found[np.argsort(-scores[found], kind="stable")][:k])
    return ranked


def metrics(rankings: Mapping[str, Sequence[str]], qrels: Qrels) -> dict[str, float]:
    """Means over the queries of nDCG@10 (gain = grade), MRR@10 and recall@100."""
    return {
        "ndcg@10": float(np.mean([_ndcg(rankings[q], qrels[q], 10) for q in rankings])),
        "mrr@10": float(np.mean([_reciprocal_rank(rankings[q], qrels[q], 10) for q in rankings])),
        "recall@100": float(np.mean([_recall(rankings[q], qrels[q], 100) for q in rankings])),
    }


def _ndcg(doc_ids: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Σ_r grade_r / log2(1 + r) over the first k, divided by what the best order would get."""
    gains = [max(0, grades.get(doc_id, 0)) for doc_id in doc_ids[:k]]
    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = float(np.dot(best, discounts[: len(best)]))
    return float(np.dot(gains, discounts[: len(gains)])) / ideal if ideal else 0.0


def _reciprocal_rank(doc_ids: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    ranks = (rank for rank, doc_id in enumerate(doc_ids[:k], start=1) if grades.get(doc_id, 0) > 0)
    return 1 / next(ranks, np.inf)


def _recall(doc_ids: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    relevant = {doc_id for doc_id, grade in grades.items() if grade > 0}
    return len(relevant & set(doc_ids[:k])) / len(relevant) if relevant else 0.0
