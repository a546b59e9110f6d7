"""Several models on several collections: one encoding of each corpus, one table per model, paired tests."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lsr.bm25 import Bm25
from lsr.corpus import Corpus
from lsr.encoder import Encoder
from lsr.errors import InputError
from lsr.eval.cache import Cache
from lsr.eval.datasets import Collection, Dataset, load_dataset
from lsr.eval.ensemble import ENSEMBLE_DEPTH, Ensemble, Model, encode_dense, evaluate_dense, evaluate_ensemble
from lsr.eval.evaluate import Report, evaluate_retriever, search_mode
from lsr.eval.metrics import Scores, measurable
from lsr.eval.report import markdown_table, number
from lsr.eval.significance import Comparison, Interval, bootstrap, compare, with_holm
from lsr.expansion import expand, expansions_file
from lsr.index.options import BuildOptions
from lsr.retriever import Retriever
from lsr.run import Run


@dataclass(frozen=True)
class Evaluation:
    """One model on one collection.

    Attributes:
        model: what the model is called.
        collection: what it was evaluated on.
        report: metrics, sparsity, latency, size.
        run: the ranked lists.
        scores: metrics of each query.
    """

    model: str
    collection: Collection
    report: Report
    run: Run
    scores: Scores

    def intervals(self) -> dict[str, Interval]:
        """The bootstrap interval of each metric's mean."""
        return {
            metric: bootstrap([np.array(list(values.values()))]) for metric, values in self.scores.per_query.items()
        }

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """For JSON."""
        fields = {
            **self.report.to_dict(),
            "collection": self.collection.name,
            "intervals": {metric: [i.low, i.high] for metric, i in self.intervals().items()},
        }
        return {**fields, "per_query": self.scores.per_query} if per_query else fields


class Harness:
    """Evaluates models on collections, each loaded once.

    Args:
        collections: see `lsr.eval.datasets.find_collections`.
        cache: where vectors and indexes are kept; None makes all of them anew.
        split, skip_repeats: see `load_dataset`.
        k: depth of the ranked lists; by default what each collection is measured at.
        metrics: what to measure; by default what the field reports of each collection.
        drop_self_matches: see `evaluate_retriever`.
        vectors: folder of one corpus' vectors (see `Retriever.build`); it takes the place of the cache.
        expansions: file of the expansions of one collection's documents (see `lsr.expansion`).

    Raises:
        InputError: a metric is unknown or looks deeper than k, or there are no such expansions.
    """

    def __init__(
        self,
        collections: Sequence[Collection],
        cache: Cache | None = None,
        *,
        split: str | None = None,
        skip_repeats: bool = False,
        k: int | None = None,
        metrics: Sequence[str] | None = None,
        drop_self_matches: bool | None = None,
        vectors: str | os.PathLike[str] | None = None,
        expansions: str | os.PathLike[str] | None = None,
    ) -> None:
        self.collections = [
            replace(c, depth=k or c.depth, metrics=measurable(metrics, k or c.depth, c.metrics)) for c in collections
        ]
        self.cache = cache
        self._vectors = vectors
        self._expansions = None if expansions is None else expansions_file(expansions)
        self._split = split
        self._skip_repeats = skip_repeats
        self._drop = drop_self_matches
        self._datasets: dict[str, Dataset] = {}
        self._corpora: dict[str, Corpus] = {}
        self._last: dict[tuple[Corpus, Encoder | Bm25], Retriever] = {}

    def dataset(self, collection: Collection) -> Dataset:
        """The collection's data; collections over the same documents share one `Corpus`."""
        if collection.source not in self._datasets:
            loaded = load_dataset(collection.source, self._split, skip_repeats=self._skip_repeats)
            corpus = loaded.corpus if self._expansions is None else expand(loaded.corpus, self._expansions)
            corpus = self._corpora.setdefault(corpus.name, corpus)
            self._datasets[collection.source] = replace(loaded, corpus=corpus)
        return self._datasets[collection.source]

    def evaluate(
        self,
        model: str,
        encoder: Model,
        *,
        build: BuildOptions | None = None,
        threads: int | None = None,
        progress: bool = False,
        begin: Callable[[Collection], object] | None = None,
        **search: Any,
    ) -> Iterator[Evaluation]:
        """Evaluate one model, yielding each collection's result when it is there.

        Args:
            model: what to call it.
            encoder: the encoder; BM25's parameters, which are fitted to each corpus; a dense model; an ensemble.
            build: options of the indexes.
            threads: of the builds.
            progress: show progress bars on stderr.
            begin: told the collection before each.
            search: options of `Index.search`.
        """
        self._last.clear()
        for collection in self.collections:
            if begin:
                begin(collection)
            how = _How(_enough_for(search, build or BuildOptions()), threads, progress, search)
            report, run, scores = self._measure(encoder, collection, how)
            yield Evaluation(model, collection, report, run, scores)

    def _measure(self, model: Model, collection: Collection, how: "_How") -> tuple[Report, Run, Scores]:
        dataset = self.dataset(collection)
        measured: dict[str, Any] = {
            "k": collection.depth,
            "metrics": collection.metrics,
            "drop_self_matches": self._drop,
        }
        if isinstance(model, Ensemble):
            deeper = replace(collection, depth=max(collection.depth, ENSEMBLE_DEPTH))
            parts = [self._measure(member, deeper, how) for member in model.members]
            return evaluate_ensemble(parts, model, dataset, collection.depth, collection.metrics)
        if isinstance(model, Encoder | Bm25):
            retriever = self._retriever(dataset.corpus, model, how)
            vectors = self.cache.queries(dataset.queries, retriever, progress=how.progress) if self.cache else None
            return evaluate_retriever(retriever, dataset, vectors=vectors, **measured, **how.search)
        dense = (
            self.cache.dense(dataset.corpus, model.identity, lambda: encode_dense(model, dataset))
            if self.cache
            else None
        )
        return evaluate_dense(model, dataset, documents=dense, **measured)

    def _retriever(self, corpus: Corpus, encoder: Encoder | Bm25, how: "_How") -> Retriever:
        """The retriever over a corpus; the last corpus' retrievers are held, for the collections that share it."""
        if self._last and next(iter(self._last))[0] is not corpus:
            self._last.clear()
        key = (corpus, encoder)
        if key not in self._last:
            options: dict[str, Any] = {"threads": how.threads, "progress": how.progress}
            if self.cache:
                self._last[key] = self.cache.retriever(corpus, encoder, how.build, **options)
            else:
                made = Retriever.build(corpus, encoder, options=how.build, vectors=self._vectors, **options)
                self._last[key] = made
        return self._last[key]


def _enough_for(search: Mapping[str, Any], build: BuildOptions) -> BuildOptions:
    """The index without a plan where no search asks for one: on a large collection it takes seconds to make."""
    return build if search_mode(search) == "planned" else replace(build, plan_queries=0)


class _How(NamedTuple):
    """Options of building and searching."""

    build: BuildOptions
    threads: int | None
    progress: bool
    search: Mapping[str, Any]


# --- tables ------------------------------------------------------------------------------------------------


def table(evaluations: Sequence[Evaluation]) -> str:
    """One model's results as a Markdown table: a row per collection, then the means.

    A metric that a collection was not measured by is left empty. A mean is given where all of its
    collections have the value: over each group of `lsr.eval.datasets.GROUPS`, and over all.
    """
    metrics = list(dict.fromkeys(metric for e in evaluations for metric in e.report.metrics))
    headers = ["collection", *metrics, "d nnz", "q nnz", "FLOPS", "ms/query", "index MB"]
    rows = [_numbers(e.report, metrics) for e in evaluations]
    cells = [[e.collection.name, *map(number, row)] for e, row in zip(evaluations, rows, strict=True)]
    for label, members in _means(evaluations).items():
        columns = zip(*(rows[i] for i in members), strict=True)
        means = [None if None in column else float(np.mean([v for v in column if v is not None])) for column in columns]
        cells.append([label, *map(number, means)])
    return markdown_table(headers, cells)


def _numbers(report: Report, metrics: Sequence[str]) -> list[float | None]:
    measured = [report.metrics.get(metric) for metric in metrics]
    beside = (report.document_nnz, report.query_nnz, report.flops, report.latency_ms, report.index_bytes / 1e6)
    return [*measured, *beside]


def _means(evaluations: Sequence[Evaluation]) -> dict[str, list[int]]:
    """Label → positions of the evaluations that the mean is over."""
    groups: dict[str, list[int]] = {}
    for i, evaluation in enumerate(evaluations):
        groups.setdefault(evaluation.collection.group, []).append(i)
    labelled = {f"mean of {g} ({len(of)})": of for g, of in groups.items() if g and len(of) > 1 and len(groups) > 1}
    if len(evaluations) > 1:
        labelled[f"mean ({len(evaluations)})"] = list(range(len(evaluations)))
    return labelled


# --- models against one another ----------------------------------------------------------------------------


def compare_models(results: Mapping[str, Sequence[Evaluation]]) -> list[Comparison]:
    """Every model against the first, by each collection's main metric, and on all of them together.

    Args:
        results: model → evaluations on the same collections.

    Returns:
        The comparisons, their p-values corrected over all of them (Holm).
    """
    names = list(results)
    if len(names) < 2:
        return []
    first = {e.collection.name: e for e in results[names[0]]}
    found = []
    for name in names[1:]:
        others = {e.collection.name: e for e in results[name]}
        if others.keys() != first.keys():
            raise InputError(f"{names[0]} and {name} were evaluated on different collections")
        main = {c: next(iter(e.scores.per_query)) for c, e in first.items()}
        pairs = {c: (first[c].scores.per_query[m], others[c].scores.per_query[m]) for c, m in main.items()}
        for c, (a, b) in pairs.items():
            found.append(compare({c: a}, {c: b}, main[c], (names[0], name)))
        if len(pairs) > 1 and len(set(main.values())) == 1:
            a_all, b_all = ({c: pair[i] for c, pair in pairs.items()} for i in (0, 1))
            found.append(compare(a_all, b_all, next(iter(main.values())), (names[0], name)))
    return with_holm(found)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Comparisons as a Markdown table."""
    headers = ["system", "against", "on", "metric", "difference", "95 % interval", "p", "p (Holm)", "better : worse"]
    rows = [
        [
            c.system,
            c.baseline,
            c.on,
            c.metric,
            f"{c.difference.mean:+.4f}",
            f"{c.difference.low:+.4f} … {c.difference.high:+.4f}",
            f"{c.p_fisher:.4f}",
            f"{c.p_holm:.4f}",
            f"{c.wins} : {c.losses}",
        ]
        for c in comparisons
    ]
    return markdown_table(headers, rows)
