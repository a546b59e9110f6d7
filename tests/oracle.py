"""Plain twins of the compiled code: slow, obvious, and the judge of it."""

from typing import NamedTuple

import numpy as np

F32 = np.float32


class Found(NamedTuple):
    rows: list[int]
    scores: list[np.float32]


def dense(vectors) -> np.ndarray:
    return vectors.toarray().astype(F32)


def scores_of(query: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """float32 sums in ascending order of term id, for every document."""
    scores = np.zeros(len(documents), dtype=F32)
    for term in np.flatnonzero(query):
        with np.errstate(over="ignore"):
            scores = scores + query[term] * documents[:, term]
    return scores


def best(scores: np.ndarray, rows: list[int], k: int) -> Found:
    """Score descending, ties by row; documents of score 0 are no hits."""
    order = sorted((row for row in rows if scores[row] > 0), key=lambda row: (-scores[row], row))[:k]
    return Found(order, [scores[row] for row in order])


def exact_search(query: np.ndarray, documents: np.ndarray, k: int) -> Found:
    return best(scores_of(query, documents), list(range(len(documents))), k)


def walked_terms(query: np.ndarray, documents: np.ndarray, mass: float) -> list[int]:
    """The query's terms that add most for the length of their lists, until they hold the share of all."""
    used, steps, unit = _lists(query, documents)
    priority = {t: float(query[t]) * float(steps[t]) * 255 / np.sqrt(np.count_nonzero(documents[:, t])) for t in used}
    multipliers = {term: _multiplier(query[term], steps[term], unit) for term in used}
    walked: list[int] = []
    for term in sorted(used, key=lambda term: (-priority[term], term)):
        if sum(multipliers[t] for t in walked) >= mass * sum(multipliers.values()):
            break
        walked.append(term)
    return walked


def bounds(query: np.ndarray, documents: np.ndarray, terms: list[int]) -> np.ndarray:
    """Every document's bound in accumulator units, from the lists of these terms alone."""
    _, steps, unit = _lists(query, documents)
    bound = np.zeros(len(documents), dtype=np.int64)
    for term in terms:
        multiplier = _multiplier(query[term], steps[term], unit)
        for row in np.flatnonzero(documents[:, term]):
            weight, step = float(documents[row, term]), float(steps[term])
            code = int(np.ceil(weight / step))
            code += step * code < weight
            bound[row] += -(-multiplier * code // 256)
    return bound


def _lists(query: np.ndarray, documents: np.ndarray) -> tuple[list[int], dict[int, np.float32], float]:
    """The query's terms that have a list, the lists' steps, and the unit of the accumulators."""
    used = [term for term in np.flatnonzero(query).tolist() if documents[:, term].any()]
    steps = {term: _step(documents[:, term].max()) for term in used}
    total = 0.0
    for term in used:
        total += float(query[term]) * float(steps[term]) * 255
    return used, steps, total / (2**15 - 2 - 2 * len(used))


def _multiplier(weight: np.float32, step: np.float32, unit: float) -> int:
    return int(np.ceil(float(weight) * float(step) * 255 / 255 / unit * 256 * (1 + 1e-12)))


def _step(largest: np.float32) -> np.float32:
    step = F32(float(largest) / 255)
    return step if 255 * float(step) >= float(largest) else np.nextafter(step, F32(np.inf))


#: Documents whose bounds are refined for each that is scored.
REACH = 3


def pruned_search(
    query: np.ndarray, documents: np.ndarray, k: int, candidates: int, mass: float, dense_share: float
) -> Found:
    """The exact scores of the documents in the highest buckets of bounds, of equal ones the first.

    The bounds are those by the walked lists, refined, for the best of these documents, by all dense lists. Where the
    walked lists hold fewer documents than candidates are wanted, the search is exact.
    """
    walked = walked_terms(query, documents, mass)
    bound = bounds(query, documents, walked)
    if np.count_nonzero(bound) < candidates:
        return exact_search(query, documents, k)
    lengths = np.count_nonzero(documents, axis=0)
    dense = [t for t in _lists(query, documents)[0] if t not in walked and lengths[t] >= dense_share * len(documents)]
    rows = np.flatnonzero(bound).tolist()
    if dense:
        rows = _highest(bound, rows, REACH * candidates)
        bound = bound + bounds(query, documents, dense)
    return best(scores_of(query, documents), _highest(bound, rows, candidates), k)


def _highest(bound: np.ndarray, rows: list[int], n: int) -> list[int]:
    return sorted(sorted(rows, key=lambda row: (-(bound[row] // 16), row))[:n])


def document_head(document: np.ndarray, width: int) -> list[int]:
    """The heaviest terms, of equal weights the smaller id first."""
    return sorted(np.flatnonzero(document).tolist(), key=lambda term: (-document[term], term))[:width]


def pruned_lists(
    documents: np.ndarray, n_postings: int | None, max_fraction: float, share: float = 1.0, least: int = 100
) -> dict[int, list[int]]:
    """Term → rows kept."""
    used = np.flatnonzero(documents.any(axis=0)).tolist()
    postings = [(term, row) for term in used for row in np.flatnonzero(documents[:, term]).tolist()]
    if n_postings is None:
        kept = postings
    else:
        ranked = sorted(postings, key=lambda posting: (-documents[posting[1], posting[0]], *posting))
        wanted = max(int(share * len(postings)), least * len(used))
        kept = sorted(ranked[: min(wanted, n_postings * len(used))])
    lists = {term: [row for t, row in kept if t == term] for term in used}
    if n_postings is None:
        return lists
    cap = max(1, int(n_postings * max_fraction))
    for term, rows in lists.items():
        heaviest = sorted(rows, key=lambda row: (-documents[row, term], row))[:cap]
        lists[term] = sorted(heaviest)
    return lists


def summary(documents: np.ndarray, rows: list[int], energy: float) -> dict[int, np.float32]:
    """Coordinate-wise maximum, the fewest heaviest coordinates that reach the share of its mass.

    Weights that agree in sign, exponent and 4 bits of mantissa stay or go together.
    """
    maximum = documents[rows].max(axis=0)
    # as met, document by document: the order in which masses are added up
    terms = list(dict.fromkeys(term for row in rows for term in np.flatnonzero(documents[row]).tolist()))
    bits = {term: int(maximum[term].view(np.int32)) >> 19 for term in terms}
    masses: dict[int, float] = {}
    total = 0.0
    for term in terms:
        masses[bits[term]] = masses.get(bits[term], 0.0) + float(maximum[term])
        total += float(maximum[term])
    reached, least = 0.0, 0
    for bucket in sorted(masses, reverse=True):
        if energy < 1 and reached >= energy * total:
            break
        reached += masses[bucket]
        least = bucket
    return {term: maximum[term] for term in sorted(terms) if bits[term] >= least}


class Block(NamedTuple):
    rows: list[int]
    summary: dict[int, np.float32]  # empty where its list is too short for one


def decoded_blocks(segment) -> dict[int, list[Block]]:
    """Term → blocks, read out of a segment's arrays."""
    blocks, summaries, lists = segment.blocks, segment.summaries, segment.lists
    decoded: dict[int, list[Block]] = {}
    ends = np.cumsum(summaries.further.astype(np.int64) + 1)
    assert summaries.begin.tolist() == [0, *ends[7::8].tolist(), *(ends[-1:].tolist() if len(ends) % 8 else [])]
    for listed, term in enumerate(lists.terms.tolist()):
        first, last = blocks.ptr[listed], blocks.ptr[listed + 1]
        of_list = [Block(blocks.rows[blocks.start[b] : blocks.start[b + 1]].tolist(), {}) for b in range(first, last)]
        for s in range(summaries.ptr[listed], summaries.ptr[listed + 1]):
            for e in range(ends[s] - int(summaries.further[s]) - 1, ends[s]):
                number = int(summaries.blocks[e])
                at = first + number
                value = F32(blocks.minimum[at] + blocks.step[at] * F32(summaries.codes[e]))
                of_list[number].summary[int(summaries.terms[s])] = value
        decoded[term] = of_list
    return decoded


def seismic_search(
    query: np.ndarray,
    documents: np.ndarray,
    lists: dict[int, list[Block]],
    k: int,
    query_cut: int,
    heap_factor: float,
) -> Found:
    """Algorithm 2 of the paper, the blocks of all lists in the order of their scores, to 1,023 steps."""
    scores = scores_of(query, documents)
    terms = sorted(np.flatnonzero(query).tolist(), key=lambda term: (-query[term], term))[:query_cut]
    seen: set[int] = set()
    blocks = [block for term in terms for block in lists.get(term, [])]
    bounds = [_summary_score(query, block) if block.summary else F32(np.inf) for block in blocks]
    highest = max((bound for bound in bounds if bound < np.inf), default=F32(0))
    with np.errstate(over="ignore"):
        scale = F32(1023) / highest if highest > 0 else F32(0)
    scale = scale if scale < np.inf else F32(0)
    steps = [-1025 if bound == np.inf else -int(min(bound * scale, F32(1023))) for bound in bounds]
    for b in sorted(range(len(blocks)), key=lambda b: (steps[b], b)):
        found = best(scores, sorted(seen), k)
        if len(found.rows) == k and bounds[b] < F32(heap_factor) * found.scores[-1]:
            continue
        seen.update(blocks[b].rows)
    return best(scores, sorted(seen), k)


def _summary_score(query: np.ndarray, block: Block) -> np.float32:
    score = F32(0)
    for term in np.flatnonzero(query).tolist():
        if term in block.summary:
            score = F32(score + query[term] * block.summary[term])
    return score
