"""All compiled code of search by blocks (Seismic, arXiv 2404.18812). A family of its own, which calls nothing
of `kernels` (a cached kernel keeps using a stale helper of another file); scores are those of `kernels`.
"""

import numpy as np

from lsr.numba_support import half_to_float, kernel, prefetch

STEPS = 1024  # of block scores, by which blocks are ordered
TERM_GROUP = 8  # as in `lsr.index.segment`
LINE = 32  # 16-bit elements in a cache line
AHEAD = 2  # documents between asking for one and scoring it


@kernel
def _find(values, start, stop, wanted):
    """Position of ``wanted`` in the sorted slice, or -1."""
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < stop and values[low] == wanted else -1


@kernel
def _offer(scores, rows, base, size, k, score, row):
    """Put a hit among the at most k hits at ``base``, best first; returns how many there are.

    Promising blocks come first, so that most hits find their place near the end: no heap is needed.
    """
    if size == k:
        if score < scores[base + size - 1] or (score == scores[base + size - 1] and row > rows[base + size - 1]):
            return size
        size -= 1
    at = base + size
    while at > base and (score > scores[at - 1] or (score == scores[at - 1] and row < rows[at - 1])):
        scores[at] = scores[at - 1]
        rows[at] = rows[at - 1]
        at -= 1
    scores[at] = score
    rows[at] = row
    return size + 1


@kernel
def _score(row, forward_ptr, forward_terms, forward_weights, dense_query, in_query, places):
    """The score of one document: first, without a branch, which of its terms the query has."""
    start, stop = forward_ptr[row], forward_ptr[row + 1]
    terms, weights = forward_terms[start:stop], forward_weights[start:stop]  # slices: no negative positions
    n = np.uintp(0)
    for f in range(len(terms)):
        places[n] = f
        n += np.uintp(in_query[terms[f]])
    score = np.float32(0)
    for i in range(n):
        f = places[i]
        score += dense_query[terms[f]] * half_to_float(weights[f])
    return score


@kernel
def _fetch(row, forward_ptr, forward_terms, forward_weights):
    """Ask for a document's terms and weights before they are needed, a cache line at a time."""
    for f in range(forward_ptr[row], forward_ptr[row + 1], LINE):
        prefetch(forward_terms, f)
        prefetch(forward_weights, f)


@kernel
def _heaviest_lists(query_terms, query_weights, start, stop, list_terms, cut, share, chosen):
    """Write the lists of the heaviest query terms to ``chosen``, heaviest first; returns how many.

    Terms are taken until there are ``cut`` of them, or they hold ``share`` of the sum of the query's weights.
    All of the query's terms count, those without a list included.
    """
    total, held = 0.0, 0.0
    for q in range(start, stop):
        total += query_weights[q]
    n_chosen = 0
    bound_weight = np.float32(np.inf)
    bound = -1
    for _ in range(min(cut, stop - start)):
        if held >= share * total:
            break
        best = -1
        for q in range(start, stop):
            weight = query_weights[q]
            behind = weight < bound_weight or (weight == bound_weight and q > bound)
            if behind and (best < 0 or weight > query_weights[best]):
                best = q
        bound_weight, bound = query_weights[best], best
        held += query_weights[best]
        listed = _find(list_terms, 0, len(list_terms), query_terms[best])
        if listed >= 0:
            chosen[n_chosen] = listed
            n_chosen += 1
    return n_chosen


@kernel
def _score_summaries(
    listed, query_terms, query_weights, start, stop, block_ptr, block_minimum, block_step,
    summary_ptr, summary_terms, summary_further, summary_begin, entry_blocks, entry_codes, scores,
):  # fmt: skip
    """Dot products of the query with the summaries of one list's blocks, to ``scores``; inf without a summary."""
    first, n_blocks = block_ptr[listed], block_ptr[listed + 1] - block_ptr[listed]
    begin, end = summary_ptr[listed], summary_ptr[listed + 1]
    scores[:n_blocks] = np.inf if begin == end else 0
    minimum, step = block_minimum[first : first + n_blocks], block_step[first : first + n_blocks]
    at = begin
    for q in range(start, stop):
        found = _find(summary_terms, at, end, query_terms[q])
        if found >= 0:
            at = found + 1
            weight = query_weights[q]
            entry = np.int64(summary_begin[found // TERM_GROUP])
            for before in range(found // TERM_GROUP * TERM_GROUP, found):
                entry += np.int64(summary_further[before]) + 1
            for e in range(entry, entry + np.int64(summary_further[found]) + 1):
                block = entry_blocks[e]
                scores[block] += weight * (minimum[block] + step[block] * np.float32(entry_codes[e]))


@kernel
def _order(scores, n, counts, order):
    """Write the positions of n scores to ``order``, the highest first, to a `STEPS`-th of the highest finite one.

    A counting sort, ties by position. ``counts``: scratch, int64 (STEPS + 1,).
    """
    highest = np.float32(0)
    for i in range(n):
        if scores[i] < np.inf:
            highest = max(highest, scores[i])
    scale = np.float32(STEPS - 1) / highest if highest > 0 else np.float32(0)
    if not scale < np.inf:  # scores too small to tell apart
        scale = np.float32(0)
    counts[:] = 0
    for i in range(n):
        step = STEPS - np.intp(min(scores[i] * scale, np.float32(STEPS - 1))) if scores[i] < np.inf else 0
        order[n + i] = step
        counts[step] += 1
    place = 0
    for step in range(STEPS + 1):
        count = counts[step]
        counts[step] = place
        place += count
    for i in range(n):
        step = order[n + i]
        order[counts[step]] = i
        counts[step] += 1


@kernel
def _note(row, visited, seen, n_seen):
    """Add a document to those seen, unless it is among them; returns how many there are."""
    seen[n_seen] = row
    n_seen += 1 - np.intp(visited[row])
    visited[row] = 1
    return n_seen


@kernel
def _score_seen(
    first, n_seen, seen, forward_ptr, forward_terms, forward_weights, dense_query, in_query, places,
    k, hit_scores, hit_rows, base, size,
):  # fmt: skip
    """Score the documents seen from ``first`` on exactly and offer them; returns the number of hits."""
    for i in range(first, min(first + AHEAD, n_seen)):
        _fetch(seen[i], forward_ptr, forward_terms, forward_weights)
    for i in range(first, n_seen):
        if i + AHEAD < n_seen:
            _fetch(seen[i + AHEAD], forward_ptr, forward_terms, forward_weights)
        score = _score(seen[i], forward_ptr, forward_terms, forward_weights, dense_query, in_query, places)
        if score > 0:
            size = _offer(hit_scores, hit_rows, base, size, k, score, seen[i])
    return size


@kernel
def _see_neighbours(neighbour_rows, width, wanted, hit_rows, base, size, visited, seen, n_seen):
    """Add the first ``wanted`` of the ``width`` neighbours of every hit to the documents seen; -1 ends a row."""
    for hit in range(base, base + size):
        begin = hit_rows[hit] * width
        for p in range(begin, begin + wanted):
            if neighbour_rows[p] < 0:
                break
            n_seen = _note(neighbour_rows[p], visited, seen, n_seen)
    return n_seen


@kernel
def search_seismic(
    query_ptr, query_terms, query_weights, list_terms,
    forward_ptr, forward_terms, forward_weights,
    block_ptr, block_start, block_rows, block_minimum, block_step,
    summary_ptr, summary_terms, summary_further, summary_begin, entry_blocks, entry_codes, neighbour_rows,
    dense_query, in_query, places, visited, seen, block_scores, blocks, order, counts, chosen,
    query_cut, query_share, heap_factor, neighbours, k, hit_scores, hit_rows, hit_counts,
):  # fmt: skip
    """Approximate top k of n queries: Seismic's algorithm 2, with all lists' blocks in one order.

    Then the neighbours of the hits are scored, too (SeismicWave, CIKM 2024).

    Args:
        query_ptr, query_terms, query_weights: as in `kernels.search_lists`. list_terms: see `lsr.index.segment.Lists`.
        forward_ptr, forward_terms, forward_weights: the documents as CSR.
        block_ptr, …, entry_codes: see `lsr.index.segment.Blocks` and `lsr.index.segment.Summaries`.
        dense_query, in_query, places: scratch, as in `kernels.Scratch`.
        visited: scratch, uint8 zeros (documents,); left zero. seen: scratch, int64 (documents + 1,).
        block_scores, blocks, order: scratch, float32, int64 and int64 (twice as long), for the blocks of
            the lists walked. counts: scratch, int64 (STEPS + 1,). chosen: int64, for query_cut lists.
        neighbour_rows: see `lsr.index.segment.Neighbours`.
        query_cut, query_share: the heaviest terms' lists are walked, until there are so many or they hold
            this share of the query's weight.
        heap_factor: a block is skipped once there are k hits and its summary scores below heap_factor
            times the worst of them.
        neighbours: of each hit, scored at last; at most as many as are kept of a document.
    """
    width = len(neighbour_rows) // (len(forward_ptr) - 1)
    for query in range(len(query_ptr) - 1):
        start, stop = query_ptr[query], query_ptr[query + 1]
        base = query * k
        for q in range(start, stop):
            dense_query[query_terms[q]] = query_weights[q]
            in_query[query_terms[q]] = query_weights[q] > 0
        n_chosen = _heaviest_lists(query_terms, query_weights, start, stop, list_terms, query_cut, query_share, chosen)
        n = 0
        for i in range(n_chosen):
            listed = chosen[i]
            _score_summaries(
                listed, query_terms, query_weights, start, stop, block_ptr, block_minimum, block_step,
                summary_ptr, summary_terms, summary_further, summary_begin, entry_blocks, entry_codes, block_scores[n:],
            )  # fmt: skip
            for block in range(block_ptr[listed], block_ptr[listed + 1]):
                blocks[n] = block
                n += 1
        _order(block_scores, n, counts, order)
        size, n_seen = 0, 0
        for i in range(n):
            if size == k and block_scores[order[i]] < heap_factor * hit_scores[base + k - 1]:
                continue
            block, unseen = blocks[order[i]], n_seen
            for p in range(block_start[block], block_start[block + 1]):
                n_seen = _note(block_rows[p], visited, seen, n_seen)
            size = _score_seen(
                unseen, n_seen, seen, forward_ptr, forward_terms, forward_weights, dense_query, in_query, places,
                k, hit_scores, hit_rows, base, size,
            )  # fmt: skip
        if neighbours > 0:
            unseen = n_seen
            n_seen = _see_neighbours(neighbour_rows, width, neighbours, hit_rows, base, size, visited, seen, n_seen)
            size = _score_seen(
                unseen, n_seen, seen, forward_ptr, forward_terms, forward_weights, dense_query, in_query, places,
                k, hit_scores, hit_rows, base, size,
            )  # fmt: skip
        for i in range(n_seen):
            visited[seen[i]] = 0
        for q in range(start, stop):
            dense_query[query_terms[q]] = 0
            in_query[query_terms[q]] = 0
        hit_counts[query] = size
        hit_scores[base + size : base + k] = -np.inf
        hit_rows[base + size : base + k] = -1
