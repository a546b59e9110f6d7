"""More documents than there are texts: real vectors, recombined so that an index finds them as hard as real ones.

A new document takes its terms from two real ones, A and B: those of one part of the vocabulary from A, those of the
other part from B. The parts are drawn anew for each document (a term belongs to A's with probability ``share``). B
stands near A in the order of the documents by their heaviest terms, so that the two are about the same things.

- **Lists keep their lengths and weights.** A runs through all documents evenly, and so does B: a step in a circular
  order reaches each document as often. So each real posting is drawn with the same probability: a term's list has,
  as an expectation, n / n₀ times its length, and its own distribution of weights.
- **Terms keep their company.** Two terms of A stay together where both fall into A's part; where not, the second
  comes from a document like A, which has it more often than a random one.

`check` measures what became of both. Recombining a third of a real collection back to its full size and holding that
against the real whole shows what the generator loses: see docs/benchmarks.md.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from tqdm import tqdm

from lsr.errors import InputError

Array = NDArray[Any]
SHARE = 0.8
REACH = 8
CHUNK = 20_000
#: Terms that a document is ordered by, heaviest first.
_KEYS = 4


def recombine(
    documents: csr_array, n: int, *, seed: int = 0, share: float = SHARE, reach: int = REACH, progress: bool = False
) -> csr_array:
    """Real documents first, then recombined ones, n in all.

    Args:
        documents: float32 CSR of shape (n₀, vocabulary) with sorted terms, two rows at least.
        n: rows wanted, at least n₀.
        seed: the same seed gives the same documents.
        share: probability that a term is taken from A.
        reach: B is at most so many places from A.
        progress: show a progress bar on stderr.

    Raises:
        InputError: there are too few documents, or more than are wanted.
    """
    n_real = documents.shape[0]
    if n_real < 2 or n < n_real:
        raise InputError(f"{n_real:,} documents cannot be recombined to {n:,}: give two at least, and ask for more")
    if not (0 < share < 1 and reach >= 1):
        raise InputError(f"share must be between 0 and 1 and reach at least 1: got {share!r} and {reach!r}")
    rng = np.random.default_rng(seed)
    order = by_heaviest_terms(documents)
    place = np.empty(n_real, dtype=np.int64)
    place[order] = np.arange(n_real)
    rounds = -(-(n - n_real) // n_real)
    first = np.concatenate([rng.permutation(n_real) for _ in range(rounds)] or [np.empty(0, np.int64)])[: n - n_real]
    steps = rng.integers(1, min(reach, n_real - 1) + 1, size=len(first)) * rng.choice((-1, 1), size=len(first))
    second = order[(place[first] + steps) % n_real]
    parts = [documents]
    for start in tqdm(range(0, len(first), CHUNK), desc="recombining", unit_scale=CHUNK, disable=not progress or None):
        a, b = (documents[rows[start : start + CHUNK]] for rows in (first, second))
        parts.append(_splice(a, b, share, rng))
    return vstack(parts, format="csr")


def by_heaviest_terms(documents: csr_array) -> Array:
    """Rows in the order of their heaviest term, then their second heaviest, …"""
    n = documents.shape[0]
    rows = np.repeat(np.arange(n), np.diff(documents.indptr))
    heaviest = np.lexsort((-documents.data, rows))
    keys = np.full((_KEYS, n), -1, dtype=np.int64)
    lengths = np.diff(documents.indptr)
    for key in range(_KEYS):
        has = lengths > key
        keys[key, has] = documents.indices[heaviest[documents.indptr[:-1][has] + key]]
    order: Array = np.lexsort(keys[::-1])
    return order


def _splice(a: csr_array, b: csr_array, share: float, rng: np.random.Generator) -> csr_array:
    """Rows of ``a`` and ``b`` joined over a part of the vocabulary that is drawn for each row."""
    salt = rng.integers(0, 2**63, size=a.shape[0], dtype=np.uint64)
    bound = np.uint64(share * 2**64)
    kept = []
    for vectors, of_first in ((a, True), (b, False)):
        rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
        keep = (_hash(salt[rows] + vectors.indices.astype(np.uint64)) < bound) == of_first
        kept.append((rows[keep], vectors.indices[keep], vectors.data[keep]))
    rows, terms, weights = (np.concatenate(part) for part in zip(*kept, strict=True))
    order = np.lexsort((terms, rows))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=a.shape[0]))])
    return csr_array((weights[order], terms[order], indptr), shape=a.shape)


def _hash(values: Array) -> Array:
    """64 random-looking bits for each 64-bit number (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


def check(made: csr_array, real: csr_array, queries: csr_array, *, k: int = 10) -> dict[str, Any]:
    """How far the lists, documents and scores of ``made`` are from those of ``real``.

    The two need not have the same number of documents: lengths and ranks are taken as shares of it.

    Returns:
        - ``list_length_ratio``: 5th, 50th and 95th percentile over the terms with 100 postings and more of a list's
          share of the documents, made to real; ``list_length_correlation``: of their logarithms.
        - ``terms_a_document``: percentiles 5, 50 and 95 of both.
        - ``score_ks``: Kolmogorov–Smirnov distance between the scores of the documents that share a term with a query,
          mean over queries.
        - ``touched``: share of the documents that do, made and real.
        - ``top_score_ratio``: made to real, the score at the rank k and at 100 and 1,000 (in real's documents), median.
    """
    lengths = [np.bincount(v.indices, minlength=v.shape[1]) / v.shape[0] for v in (made, real)]
    used = lengths[1] * real.shape[0] >= min(100, real.shape[0] / 10)
    ratio = lengths[0][used] / lengths[1][used]
    logs = [np.log(np.maximum(share[used], 0.1 / real.shape[0])) for share in lengths]
    by_term = [v.tocsc() for v in (made, real)]
    ranks = [rank for rank in dict.fromkeys((k, 100, 1000)) if rank <= real.shape[0]]
    distances, touched, tops = [], [], []
    for query in range(queries.shape[0]):
        a, b = queries.indptr[query : query + 2]
        scores = [matrix[:, queries.indices[a:b]] @ queries.data[a:b].astype(np.float64) for matrix in by_term]
        found = [np.sort(each[each > 0]) for each in scores]
        if min(map(len, found)) == 0:
            continue
        distances.append(_kolmogorov_smirnov(*found))
        touched.append([len(each) / len(all_) for each, all_ in zip(found, scores, strict=True)])
        tops.append(
            [
                _at_rank(scores[0], rank / real.shape[0]) / max(_at_rank(scores[1], rank / real.shape[0]), 1e-9)
                for rank in ranks
            ]
        )
    percent = (5, 50, 95)
    return {
        "list_length_ratio": np.percentile(ratio, percent).tolist(),
        "list_length_correlation": float(np.corrcoef(*logs)[0, 1]),
        "terms_a_document": [np.percentile(np.diff(v.indptr), percent).tolist() for v in (made, real)],
        "score_ks": float(np.mean(distances)),
        "touched": np.mean(touched, axis=0).tolist(),
        "top_score_ratio": dict(zip(map(str, ranks), np.median(tops, axis=0).tolist(), strict=True)),
    }


def _at_rank(scores: Array, share: float) -> float:
    """The score that this share of the documents reaches."""
    rank = max(1, round(share * len(scores)))
    return float(np.partition(scores, len(scores) - rank)[len(scores) - rank])


def _kolmogorov_smirnov(a: Array, b: Array) -> float:
    """Largest distance between the distribution functions of two sorted samples."""
    values = np.concatenate([a, b])
    below = [np.searchsorted(sample, values, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(below[0] - below[1]).max())
