"""A query table that is learned while the documents stay what they are: sparse linear algebra, on a CPU.

Light queries weigh a term with count · w_t. Here w_t = table_t + b_t, and b is what minimizes

    Σ_q −mean over positives p of log softmax(s · score(q, ·))_p  +  shrinkage / 2 · Σ_t b_t²

over each query's positives and the documents that rank highest for it. A collection has a scale s of its own. The
score is linear in b, so that this is a conditional logit over terms (McFadden, 1974) with a normal prior around the
table: a term that the queries say little of stays about where it is, and one that none of them has stays there. L-BFGS
finds the minimum. Nothing is drawn but which queries of a collection are used, where that is limited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from tqdm import tqdm

from lsr.encoder import KEPT_SHARE, Encoder, LightSide, table_side
from lsr.errors import InputError
from lsr.training.data import Source, Tables
from lsr.training.stores import SparseStore
from lsr.training.validation import rank

#: Rows of features made at a time.
CHUNK = 1 << 17

#: The scale of scores from which L-BFGS starts.
FIRST_SCALE = 0.2


@dataclass(frozen=True)
class TuningOptions:
    """How a query table is learned.

    Attributes:
        shrinkage: how strongly a weight is held where it was; it counts as much as so many queries.
        candidates: documents that a query is compared over beside its positives: those it ranks highest. A training
            file with negatives has its own.
        queries: at most so many of a collection, None for all.
        steps: of L-BFGS, at most.
        seed: of the choice of queries.
    """

    shrinkage: float = 10.0
    candidates: int = 64
    queries: int | None = 20_000
    steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.shrinkage < float("inf"):
            raise InputError(f"the shrinkage must be a number above 0: got {self.shrinkage!r}")
        counts = {"candidates": self.candidates, "queries": self.queries, "steps": self.steps}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be 1 or more: got {value}")


@dataclass(frozen=True)
class Tuned:
    """What `tune_queries` returns.

    Attributes:
        encoder: the same documents, with the learned table.
        changes: what was added to each weight, float64 (vocabulary_size,); 0 for terms that no query has.
        queries: how many were learned from.
        before, after: the mean loss of a query, without the penalty, at the scale that suits it best.
    """

    encoder: Encoder
    changes: NDArray[np.float64]
    queries: int
    before: float
    after: float


@dataclass(frozen=True)
class Comparisons:
    """What a collection's queries say: a row for each query and document, a column for each term.

    Attributes:
        features: float32 (rows, terms), the query's count of a term times the document's weight.
        targets: float32 (rows,), 1 / positives for a query's positives and 0 for its other documents.
        starts: int64 (queries,), each query's first row.
        table: float32 (terms,), the weights that the collection's queries start from.
        weight: of each query's loss.
    """

    features: csr_array
    targets: NDArray[np.float32]
    starts: NDArray[np.int64]
    table: NDArray[np.float32]
    weight: float = 1.0


def tune_queries(
    encoder: Encoder,
    sources: Sequence[Source],
    options: TuningOptions | None = None,
    *,
    cache: Path,
    progress: bool = False,
) -> Tuned:
    """Learn the query table of an encoder from training files; see the module.

    Args:
        encoder: its queries are looked up in a table, or BM25's, or both joined.
        sources: judgments, or training files with negatives; ``weight`` is that of each query's loss.
        options: see `TuningOptions`.
        cache: folder for texts and document vectors, which are encoded once; an interrupted call resumes there.
        progress: show progress bars on stderr.

    Raises:
        InputError: the queries have no table, or a source is broken.
    """
    options = options or TuningOptions()
    _ = table_side(encoder.queries).table  # refused before any document is encoded
    if not sources:
        raise InputError("a query table is learned from a source at least")
    opened = [source.open(cache) for source in sources]  # all of them are looked at before any is encoded
    found = [
        compare(encoder, tables, options, cache, [options.seed, number], source.weight, progress=progress)
        for number, (source, tables) in enumerate(zip(sources, opened, strict=True))
    ]
    changes, before, after = fit(found, options.shrinkage, options.steps, progress=progress)
    n = sum(len(comparisons.starts) for comparisons in found)
    total = sum(comparisons.weight * len(comparisons.starts) for comparisons in found)
    return Tuned(encoder.adjusted(changes), changes, n, before / total, after / total)


def compare(
    encoder: Encoder,
    tables: Tables,
    options: TuningOptions,
    cache: Path,
    seed: list[int],
    weight: float = 1.0,
    *,
    progress: bool = False,
) -> Comparisons:
    """Encode a source's documents and put its queries' candidates side by side."""
    store = SparseStore(cache, encoder.documents, tables.documents)
    label = f"documents of {Path(tables.documents.name).parent.name}" if progress else None
    store.encode(np.arange(len(tables.documents)), label)
    documents = store.matrix()
    side = table_side(encoder.queries)
    if side.adapts:
        frequency = np.bincount(documents.indices, minlength=documents.shape[1])
        side = table_side(side.in_collection(frequency, documents.shape[0]))
    rows = np.arange(len(tables.rows))
    if options.queries is not None and options.queries < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, options.queries, replace=False))
    queries = side.encode([tables.queries.text(int(tables.rows.queries[row])) for row in rows]).vectors
    listed = [tables.rows.candidates_of(int(row)) for row in rows]
    if not tables.rows.n_negatives.any():
        ranked = rank(queries, documents, options.candidates)
        listed = [np.concatenate([own, np.setdiff1d(best, own)]) for own, best in zip(listed, ranked, strict=True)]
    return _side_by_side(queries, documents, listed, tables.rows.n_positives[rows], side, weight)


def _side_by_side(
    queries: csr_array,
    documents: csr_array,
    listed: Sequence[NDArray[np.integer]],
    n_positives: NDArray[np.int32],
    side: LightSide,
    weight: float,
) -> Comparisons:
    """Queries (n, vocabulary) and each one's documents, its positives first, as `Comparisons`."""
    table = side.table
    lengths = np.array([len(rows) for rows in listed])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    query_of, document_of = np.repeat(np.arange(len(listed)), lengths), np.concatenate(listed)
    counts = csr_array((queries.data / table[queries.indices], queries.indices, queries.indptr), shape=queries.shape)
    parts = [
        counts[query_of[first : first + CHUNK]].multiply(documents[document_of[first : first + CHUNK]]).tocsr()
        for first in range(0, len(query_of), CHUNK)
    ]
    features: csr_array = vstack(parts, format="csr", dtype=np.float32)
    place = np.arange(len(query_of)) - np.repeat(starts, lengths)
    targets = np.where(place < n_positives[query_of], 1 / n_positives[query_of], 0).astype(np.float32)
    return Comparisons(features, targets, starts, table, weight)


def fit(
    found: Sequence[Comparisons], shrinkage: float, steps: int, *, progress: bool = False
) -> tuple[NDArray[np.float64], float, float]:
    """Minimize the penalized loss of all collections.

    Returns:
        The changes b of shape (vocabulary_size,), and the summed loss without the penalty, before and after.
    """
    from scipy.optimize import minimize

    size = len(found[0].table)
    seen = np.zeros(size, dtype=bool)
    for comparisons in found:
        seen[comparisons.features.indices] = True
    columns = np.flatnonzero(seen)
    loss = _loss([_narrowed(comparisons, columns) for comparisons in found], shrinkage)
    least = np.min([comparisons.table[columns] for comparisons in found], axis=0)
    bounds = [((KEPT_SHARE - 1) * weight, None) for weight in least] + [(-5.0, 5.0)] * len(found)
    start = np.concatenate([np.zeros(len(columns)), np.full(len(found), np.log(FIRST_SCALE))])
    scales = slice(len(columns), None)

    def of_scales(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = loss(np.concatenate([start[: len(columns)], x]))
        return value, gradient[scales]

    options = {"maxiter": steps, "maxcor": 10}
    at_first = minimize(of_scales, start[scales], jac=True, method="L-BFGS-B", bounds=bounds[scales])
    start[scales] = at_first.x
    with tqdm(total=steps, desc="learning the table", unit=" steps", disable=not progress or None) as bar:
        best = minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=lambda x: bar.update()
        )
    changes = np.zeros(size)
    changes[columns] = best.x[: len(columns)]
    return changes, float(at_first.fun), float(best.fun - shrinkage / 2 * changes @ changes)


def _narrowed(comparisons: Comparisons, columns: NDArray[np.int64]) -> Comparisons:
    """The same over some of the columns, which hold all features."""
    features = comparisons.features
    indices = np.searchsorted(columns, features.indices)
    narrow = csr_array((features.data, indices, features.indptr), shape=(features.shape[0], len(columns)))
    table = comparisons.table[columns]
    return Comparisons(narrow, comparisons.targets, comparisons.starts, table, comparisons.weight)


def _loss(
    found: Sequence[Comparisons], shrinkage: float
) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
    """The penalized loss and its gradient, as a function of the changes and then the logarithms of the scales."""
    terms = found[0].features.shape[1]

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        changes = x[:terms]
        value, gradient = shrinkage / 2 * float(changes @ changes), np.zeros(len(x))
        gradient[:terms] = shrinkage * changes
        for number, comparisons in enumerate(found):
            own, of_weights, of_scale = _of_collection(comparisons, changes, float(np.exp(x[terms + number])))
            value += own
            gradient[:terms] += of_weights
            gradient[terms + number] = of_scale
        return value, gradient

    return loss


def _of_collection(
    comparisons: Comparisons, changes: NDArray[np.float64], scale: float
) -> tuple[float, NDArray[np.float64], float]:
    """A collection's loss, its gradient by the changes, and that by the logarithm of the scale."""
    starts, features = comparisons.starts, comparisons.features
    lengths = np.diff(np.append(starts, features.shape[0]))
    scores = (features @ (comparisons.table + changes).astype(np.float32)).astype(np.float64)
    logits = scale * scores
    logits -= np.repeat(np.maximum.reduceat(logits, starts), lengths)
    shares = np.exp(logits)
    sums = np.add.reduceat(shares, starts)
    value = float(np.log(sums).sum() - comparisons.targets @ logits)
    excess = comparisons.weight * scale * (shares / np.repeat(sums, lengths) - comparisons.targets)
    return comparisons.weight * value, features.T @ excess.astype(np.float32), float(excess @ scores)
