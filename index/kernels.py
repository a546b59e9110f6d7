"""All compiled search code. Arguments are contiguous 1-D arrays and scalars, checked by the callers.

A score is the float32 sum over the query's terms, in ascending order of term id, of query weight
times document weight. Every path adds in that order, so that scores are equal to the last bit.
Better means a larger score; of equal scores, the smaller row.
"""

import numpy as np

from lsr.numba_support import kernel


@kernel
def _better(score, row, other_score, other_row):
    return score > other_score or (score == other_score and row < other_row)


@kernel
def _sift_down(scores, rows, base, size):
    """Let the root of the heap at ``base`` sink: the worst hit is kept at the root."""
    at = 0
    while True:
        worst = at
        for child in range(2 * at + 1, min(2 * at + 3, size)):
            if _better(scores[base + worst], rows[base + worst], scores[base + child], rows[base + child]):
                worst = child
        if worst == at:
            return
        scores[base + at], scores[base + worst] = scores[base + worst], scores[base + at]
        rows[base + at], rows[base + worst] = rows[base + worst], rows[base + at]
        at = worst


@kernel
def _offer(scores, rows, base, size, k, score, row):
    """Put a hit into the heap of at most k hits at ``base``; returns the heap's size."""
    if size < k:
        at = size
        scores[base + at] = score
        rows[base + at] = row
        while at > 0:
            parent = (at - 1) // 2
            if not _better(scores[base + parent], rows[base + parent], score, row):
                break
            scores[base + at], scores[base + parent] = scores[base + parent], score
            rows[base + at], rows[base + parent] = rows[base + parent], row
            at = parent
        return size + 1
    if _better(score, row, scores[base], rows[base]):
        scores[base] = score
        rows[base] = row
        _sift_down(scores, rows, base, size)
    return size


@kernel
def _sort_hits(scores, rows, base, size):
    """Turn the heap at ``base`` into a list, best first."""
    for end in range(size - 1, 0, -1):
        scores[base], scores[base + end] = scores[base + end], scores[base]
        rows[base], rows[base + end] = rows[base + end], rows[base]
        _sift_down(scores, rows, base, end)


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
def search_exact(
    query_ptr, query_terms, query_weights, first, last, list_terms, list_ptr, list_rows, list_weights,
    accumulator, k, hit_scores, hit_rows, hit_counts,
):  # fmt: skip
    """Exact top k of queries ``first`` to ``last``, term at a time.

    Args:
        query_ptr, query_terms, query_weights: the queries as CSR (int64, int64, float32).
        first, last: the queries to answer.
        list_terms: sorted ids of the terms that have a list (int64).
        list_ptr, list_rows, list_weights: the lists (int64, int32, float32).
        accumulator: scratch, float32 zeros of shape (documents,); left zero.
        k: hits wanted, at most the number of documents.
        hit_scores, hit_rows, hit_counts: results of all queries: (n * k,), (n * k,), (n,).
    """
    for query in range(first, last):
        for q in range(query_ptr[query], query_ptr[query + 1]):
            listed = _find(list_terms, 0, len(list_terms), query_terms[q])
            if listed >= 0:
                weight = query_weights[q]
                for p in range(list_ptr[listed], list_ptr[listed + 1]):
                    accumulator[list_rows[p]] += weight * list_weights[p]
        size = 0
        base = query * k
        for row in range(len(accumulator)):
            score = accumulator[row]
            if score > 0:
                accumulator[row] = 0
                size = _offer(hit_scores, hit_rows, base, size, k, score, row)
        _sort_hits(hit_scores, hit_rows, base, size)
        hit_counts[query] = size


@kernel
def _heaviest_lists(query_terms, query_weights, start, stop, list_terms, cut, chosen):
    """Write the lists of the ``cut`` heaviest query terms to ``chosen``, heaviest first; returns how many.

    Selection goes over all of the query's terms, those without a list included.
    """
    n_chosen = 0
    bound_weight = np.float32(np.inf)
    bound = -1
    for _ in range(min(cut, stop - start)):
        best = -1
        for q in range(start, stop):
            weight = query_weights[q]
            behind = weight < bound_weight or (weight == bound_weight and q > bound)
            if behind and (best < 0 or weight > query_weights[best]):
                best = q
        bound_weight, bound = query_weights[best], best
        listed = _find(list_terms, 0, len(list_terms), query_terms[best])
        if listed >= 0:
            chosen[n_chosen] = listed
            n_chosen += 1
    return n_chosen


@kernel
def _score_summaries(
    listed, query_terms, query_weights, start, stop, block_ptr, block_minimum, block_step,
    summary_ptr, summary_terms, entry_ptr, entry_blocks, entry_codes, scores,
):  # fmt: skip
    """Dot products of the query with the summaries of one list's blocks, to ``scores``."""
    first = block_ptr[listed]
    for b in range(block_ptr[listed + 1] - first):
        scores[b] = 0
    for q in range(start, stop):
        at = _find(summary_terms, summary_ptr[listed], summary_ptr[listed + 1], query_terms[q])
        if at >= 0:
            weight = query_weights[q]
            for e in range(entry_ptr[at], entry_ptr[at + 1]):
                block = np.intp(entry_blocks[e])
                value = block_minimum[first + block] + block_step[first + block] * np.float32(entry_codes[e])
                scores[block] += weight * value


@kernel
def _sort_blocks(scores, order, size):
    """Write block numbers to ``order``, the highest score first, ties by number: a heap sort."""
    for block in range(size):
        order[block] = block
    for start in range(size // 2 - 1, -1, -1):
        _sink_block(scores, order, start, size)
    for end in range(size - 1, 0, -1):
        order[0], order[end] = order[end], order[0]
        _sink_block(scores, order, 0, end)


@kernel
def _sink_block(scores, order, at, size):
    while True:
        worst = at
        for child in range(2 * at + 1, min(2 * at + 3, size)):
            if _better(scores[order[worst]], order[worst], scores[order[child]], order[child]):
                worst = child
        if worst == at:
            return
        order[at], order[worst] = order[worst], order[at]
        at = worst


@kernel
def _score_block(
    begin, end, block_rows, forward_ptr, forward_terms, forward_weights, dense_query, visited, epoch,
    k, hit_scores, hit_rows, base, size,
):  # fmt: skip
    """Score a block's unseen documents exactly and offer them; returns the heap's size."""
    for p in range(begin, end):
        row = np.intp(block_rows[p])
        if visited[row] == epoch:
            continue
        visited[row] = epoch
        score = np.float32(0)
        for f in range(forward_ptr[row], forward_ptr[row + 1]):
            score += dense_query[forward_terms[f]] * forward_weights[f]
        if score > 0:
            size = _offer(hit_scores, hit_rows, base, size, k, score, row)
    return size


@kernel
def search_seismic(
    query_ptr, query_terms, query_weights, first, last, list_terms,
    forward_ptr, forward_terms, forward_weights,
    block_ptr, block_start, block_rows, block_minimum, block_step,
    summary_ptr, summary_terms, entry_ptr, entry_blocks, entry_codes,
    dense_query, visited, epoch, block_scores, block_order, chosen,
    query_cut, heap_factor, k, hit_scores, hit_rows, hit_counts,
):  # fmt: skip
    """Approximate top k of queries ``first`` to ``last`` (Seismic, arXiv 2404.18812, algorithm 2).

    Args:
        query_ptr, …, list_terms: as in `search_exact`.
        forward_ptr, forward_terms, forward_weights: the documents as CSR.
        block_ptr: blocks of each list (lists + 1); block_start: rows of each block (blocks + 1).
        block_rows: rows of the documents, block by block.
        block_minimum, block_step: decode a summary's 8-bit codes: minimum + step * code.
        summary_ptr: summary terms of each list; entry_ptr: entries of each summary term;
            entry_blocks: block number within the list; entry_codes: 8-bit weight.
        dense_query: scratch, float32 zeros (vocabulary,); left zero.
        visited: scratch, int64 (documents,), holding no number above ``epoch``; afterwards none above
            epoch + last - first.
        block_scores, block_order: scratch for the longest list's blocks. chosen: for query_cut lists.
        query_cut: lists walked. heap_factor: a block is skipped once the heap is full and its
            summary scores below heap_factor times the heap's minimum.
    """
    for query in range(first, last):
        start, stop = query_ptr[query], query_ptr[query + 1]
        base = query * k
        size = 0
        for q in range(start, stop):
            dense_query[query_terms[q]] = query_weights[q]
        n_chosen = _heaviest_lists(query_terms, query_weights, start, stop, list_terms, query_cut, chosen)
        for i in range(n_chosen):
            listed = chosen[i]
            n_blocks = block_ptr[listed + 1] - block_ptr[listed]
            _score_summaries(
                listed, query_terms, query_weights, start, stop, block_ptr, block_minimum, block_step,
                summary_ptr, summary_terms, entry_ptr, entry_blocks, entry_codes, block_scores,
            )  # fmt: skip
            if i == 0:
                _sort_blocks(block_scores, block_order, n_blocks)
            for b in range(n_blocks):
                block = block_order[b] if i == 0 else b
                if size == k and block_scores[block] < heap_factor * hit_scores[base]:
                    continue
                at = block_ptr[listed] + block
                size = _score_block(
                    block_start[at], block_start[at + 1], block_rows, forward_ptr, forward_terms, forward_weights,
                    dense_query, visited, epoch + query - first + 1, k, hit_scores, hit_rows, base, size,
                )  # fmt: skip
        for q in range(start, stop):
            dense_query[query_terms[q]] = 0
        _sort_hits(hit_scores, hit_rows, base, size)
        hit_counts[query] = size
