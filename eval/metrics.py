"""Metrics of a run against qrels, computed by ranx: the only module that imports it."""

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsr.errors import InputError, optional_import
from lsr.run import Qrels, Run

#: nDCG with linear gains as trec_eval and BEIR have it, reciprocal rank, recall, average precision.
DEFAULT_METRICS = ("ndcg@10", "mrr@10", "recall@100", "map@100")
KNOWN = ("ndcg", "mrr", "recall", "precision", "map", "hit_rate")
#: A name, a cut, and for metrics of relevant or not the least grade that is relevant (1 unless given).
METRIC = re.compile(rf"(?:ndcg|({'|'.join(KNOWN[1:])}))(?:@([1-9]\d*))?(?(1)(?:-l([1-9]))?)")


def measurable(asked: Sequence[str] | None, depth: int, default: Sequence[str] = DEFAULT_METRICS) -> tuple[str, ...]:
    """The metrics to compute on ranked lists of ``depth`` documents: those asked for, or the default,
    cut at the depth.

    Raises:
        InputError: a metric is unknown, or looks deeper than the lists go.
    """
    if isinstance(asked, str):
        raise InputError(f"metrics is a list of names: write [{asked!r}]")
    for metric in asked or ():
        check_metric(metric)
        if _cut(metric) > depth:
            raise InputError(f"{metric} cannot be measured on lists of {depth} documents: ask for more (-k)")
    if asked:
        return tuple(asked)
    return tuple(metric.replace(f"@{_cut(metric)}", f"@{min(_cut(metric), depth)}") for metric in default)


def check_metric(metric: str) -> None:
    """Refuse a metric that `evaluate_run` does not know."""
    if not METRIC.fullmatch(metric):
        raise InputError(f"unknown metric {metric!r}: use {', '.join(KNOWN)}, with a cut such as @10")


def _cut(metric: str) -> int:
    return int(metric.partition("@")[2].partition("-")[0] or 0)


@dataclass(frozen=True)
class Scores:
    """Metrics over the judged queries.

    Attributes:
        mean: metric → mean over all judged queries.
        per_query: metric → query id → value.
        n_queries: judged queries; those that found nothing count as zero.
        n_without_hits: how many of them found nothing.
        n_unjudgeable: queries left out because no document is relevant to them.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]
    n_queries: int
    n_without_hits: int
    n_unjudgeable: int


def evaluate_run(run: Run, qrels: Qrels, metrics: Sequence[str] = DEFAULT_METRICS) -> Scores:
    """Evaluate a run on the queries that have a relevant document.

    Every such query counts: one that is missing from the run, or found nothing, as zero. Queries of
    the run without judgments are left out. Ranks are those of the run, ties included.

    Args:
        run: ranked lists.
        qrels: judgments; grades below 1 are not relevant.
        metrics: such as "ndcg@10", "mrr@10", "recall@100", "map", "precision@5", "hit_rate@1". With "-l2"
            behind them, as in "recall@1000-l2", those that ask relevant or not take grades below 2 for
            not relevant, as TREC's Deep Learning tracks do; a query without such a grade counts as zero.

    Raises:
        InputError: a metric is unknown, or no query of the qrels has a relevant document.
    """
    if isinstance(metrics, str):
        raise InputError(f"metrics is a list of names: write [{metrics!r}]")
    for metric in metrics:
        check_metric(metric)
    judged = {q: {d: g for d, g in grades.items() if g > 0} for q, grades in qrels.items()}
    judged = {query: grades for query, grades in judged.items() if grades}
    if not judged:
        raise InputError("no query of the qrels has a relevant document: nothing can be evaluated")
    query_ids = list(judged)
    with _ranx() as ranx:
        pairs = [_as_arrays(judged[query], run[query].doc_ids if query in run else []) for query in query_ids]
        values = _evaluate(ranx, pairs, metrics)
    return Scores(
        mean={metric: float(np.mean(values[metric])) for metric in metrics},
        per_query={m: dict(zip(query_ids, map(float, values[m]), strict=True)) for m in metrics},
        n_queries=len(query_ids),
        n_without_hits=sum(1 for query in query_ids if query not in run or not run[query].doc_ids),
        n_unjudgeable=len(qrels) - len(judged),
    )


def _as_arrays(grades: dict[str, int], doc_ids: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Qrels and ranking as ranx's kernels take them: (number, grade or score) rows, best first.

    Scores are replaced by descending ranks: ranx's own sort leaves the order of ties open.
    """
    numbers = {doc_id: i for i, doc_id in enumerate(grades)}
    judged = sorted(
        ((float(numbers[d]), float(grade)) for d, grade in grades.items()),
        key=lambda pair: -pair[1],
    )
    n = len(grades)
    ranked = [(float(numbers.get(d, n + rank)), float(-rank)) for rank, d in enumerate(doc_ids)]
    return np.array(judged), np.array(ranked).reshape(-1, 2)


def _evaluate(ranx: Any, pairs: list[Any], metrics: Sequence[str]) -> dict[str, Any]:
    from numba.core.errors import NumbaTypeSafetyWarning
    from numba.typed import List

    qrels, run = List(), List()
    for judged, ranked in pairs:
        qrels.append(judged)
        run.append(ranked)
    names = list(metrics) if len(metrics) > 1 else [metrics[0]] * 2  # ranx fails on a single one per query
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaTypeSafetyWarning)  # of ranx's own loops
        values = ranx.evaluate(qrels, run, names, return_mean=False, save_results_in_run=False)
    return dict(values)


@contextmanager
def _ranx() -> Iterator[Any]:
    """Import ranx and undo what it does to Numba: its import sets the threading layer, its
    ``evaluate`` the number of threads. torch's go with Numba's where both use OpenMP, and are put back, too.
    """
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else 0  # Numba sets them as soon as it is asked for its own
    import numba

    config: Any = numba.config
    layer, threads = config.THREADING_LAYER, numba.get_num_threads()
    try:
        yield optional_import("ranx", "eval", "computing metrics")
    finally:
        config.THREADING_LAYER = layer
        numba.set_num_threads(threads)
        if torch and torch.get_num_threads() != torch_threads:
            torch.set_num_threads(torch_threads)
