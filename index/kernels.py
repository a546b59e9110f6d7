"""Exact search and search by lists, compiled. Arguments are contiguous 1-D arrays and scalars, checked by the callers.

A score is the float32 sum over the query's terms, in ascending order of term id, of query weight
times document weight. Every path adds in that order, so that scores are equal to the last bit.
Better means a larger score; of equal scores, the smaller row.
"""

import numpy as np

from lsr.numba_support import half_to_float, kernel, prefetch, product16


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
def _spread(query_terms, query_weights, start, stop, dense_query, in_query, share):
    """Lay a query out by term id; with a ``share`` of 0, clear what was laid out."""
    for q in range(start, stop):
        dense_query[query_terms[q]] = share * query_weights[q]
        in_query[query_terms[q]] = share * query_weights[q] > 0


@kernel
def _fetch(row, forward_ptr, forward_terms, forward_weights):
    """Ask for a document's terms and weights before they are needed, a cache line at a time."""
    for f in range(forward_ptr[row], forward_ptr[row + 1], LINE):
        prefetch(forward_terms, f)
        prefetch(forward_weights, f)


@kernel
def _score_rows(
    rows, bounds, n_rows, beyond, unit, rounding, forward_ptr, forward_terms, forward_weights,
    dense_query, in_query, places, k, hit_scores, hit_rows, base, n_hits,
):  # fmt: skip
    """Score the documents that can still be among the k best; returns the number of hits.

    (bound + beyond) * unit + rounding is never below a document's score.
    """
    for i in range(min(2 * AHEAD, n_rows)):
        prefetch(forward_ptr, rows[i])
    for i in range(min(AHEAD, n_rows)):
        _fetch(rows[i], forward_ptr, forward_terms, forward_weights)
    for i in range(n_rows):
        if i + 2 * AHEAD < n_rows:
            prefetch(forward_ptr, rows[i + 2 * AHEAD])
        if i + AHEAD < n_rows:
            _fetch(rows[i + AHEAD], forward_ptr, forward_terms, forward_weights)
        most = (bounds[i] + beyond) * unit + rounding
        if n_hits == k and most < min(np.float64(hit_scores[base]), LARGEST):
            continue
        score = _score(rows[i], forward_ptr, forward_terms, forward_weights, dense_query, in_query, places)
        if score > 0:
            n_hits = _offer(hit_scores, hit_rows, base, n_hits, k, score, rows[i])
    return n_hits


# --- inverted lists: integer bounds, then exact scores -------------------------------------------
#
# A posting adds its contribution, multiplier * code / 256 rounded up, to its document's 16-bit
# accumulator. The multipliers are scaled so that no accumulator passes 2^15 - 1, and everything is
# rounded up: with all lists walked, bound * unit is never below the score, and above it by at most
# `slack` units. The lists that promise most for their length are walked first; what the others
# could add at most is `beyond`. So with k documents whose bounds are at least B, no document whose bound
# is below B - slack - beyond can be among the k best. The few that are left are scored exactly.
#
# B rises while documents are looked at: their bounds are counted in buckets, and `level` is the highest
# bucket with k documents in it or above it. That costs less than a heap.

MOST = 2**15 - 1  # of an accumulator
BLOCK, PART = 256, 32  # documents looked at together, and, where one of these may be among the best
LARGEST = np.float64(np.finfo(np.float32).max)
SMALLEST = 2.0**-149  # above 0, of float32
BUCKET = 4  # bits: bounds are counted in buckets of 16 units
BUCKETS = 2 ** (15 - BUCKET)
GROUP = 64  # documents: dense lists are padded to a multiple of so many
LINE = 32  # 16-bit elements in a cache line
AHEAD = 4  # documents between asking for one and scoring it
CHUNK = 1024  # codes of a dense list added between asking for more
BYTES = 64  # in a cache line


@kernel
def _match(
    query_terms, query_weights, start, stop, list_starts, shift, list_terms, list_step, list_length,
    matched, multipliers, priorities, order,
):  # fmt: skip
    """Find the query's lists, scale their steps to accumulator units, and order them.

    Returns the number of lists, the unit (float64) and the slack in units; ``matched`` and
    ``multipliers`` are filled, and ``order`` sorts them by what they can add to a score over the square
    root of their length. No list: (0, 0, 0).
    """
    n = 0
    total = 0.0
    for q in range(start, stop):
        listed, end = list_starts[query_terms[q] >> shift], list_starts[(query_terms[q] >> shift) + 1]
        while listed < end and list_terms[listed] < query_terms[q]:
            listed += 1
        if listed < end and list_terms[listed] == query_terms[q]:
            most = np.float64(query_weights[q]) * np.float64(list_step[listed]) * 255
            matched[n] = listed
            multipliers[n] = most
            priorities[n] = most / np.sqrt(np.float64(list_length[listed]))
            total += most
            n += 1
    if n == 0:
        return 0, 0.0, 0
    unit = total / (MOST - 2 * n - 1)
    for i in range(n):
        multipliers[i] = np.ceil(multipliers[i] / 255 / unit * 256 * (1 + 1e-12))
    _sort_descending(priorities, order, n)
    # codes, multipliers and products are each rounded up; the last term covers float32's own rounding
    slack = np.int64(np.ceil(1.001 * total / 255 / unit)) + 2 * n + 2 + n // 50
    if total >= 0.99 * LARGEST or unit < n * SMALLEST:
        slack = np.int64(MOST)  # float32 scores may overflow or underflow: no bound rules anything out
    return n, unit, slack


@kernel
def _sort_descending(values, order, size):
    """Sort values, the largest first, ties by position, and write their positions to ``order``.

    By insertion: for the dozens of lists that a query has, that takes a fraction of what a heap takes.
    """
    for i in range(size):
        value, at = values[i], i
        while at > 0 and values[at - 1] < value:
            values[at] = values[at - 1]
            order[at] = order[at - 1]
            at -= 1
        values[at] = value
        order[at] = i


@kernel
def _share(multipliers, order, n, mass):
    """How many lists, in order, hold ``mass`` of the sum of what all can add, and what the others can."""
    total = 0.0
    for i in range(n):
        total += multipliers[i]
    reached = 0.0
    walked = 0
    while walked < n and reached < mass * total:
        reached += multipliers[order[walked]]
        walked += 1
    beyond = np.int64(0)
    for i in range(walked, n):
        beyond += np.int64(multipliers[order[i]]) * 255 // 256 + 1
    return walked, beyond


@kernel
def _add_dense(accumulator, documents, codes, begin, multiplier):
    """Add a list that has a code for every document.

    Over slices, whose positions Numba knows not to be negative, and with products of 16 bits, LLVM makes it a
    loop over vectors.
    """
    high, low = np.uint16(np.int64(multiplier) >> 8), np.uint16(np.int64(multiplier) & 255)
    for first in range(0, documents, CHUNK):
        size = min(CHUNK, documents - first)
        _fetch_bytes(codes, begin + first + 4 * CHUNK, size)
        sums, parts = accumulator[first : first + size], codes[begin + first : begin + first + size]
        for d in range(len(sums)):
            code = np.uint16(parts[d])
            rest = np.uint16(product16(code, low) + np.uint16(255)) >> np.uint16(8)
            sums[d] = np.uint16(sums[d] + product16(code, high) + rest)


@kernel
def _contribution(code, factor):
    return np.uint16((factor * np.uint32(code) + np.uint32(255)) >> np.uint32(8))


@kernel
def _add_window(accumulator, rows, codes, begin, end, multiplier):
    """Add the postings of a window of a windowed list: over slices, too, at half the cost."""
    factor = np.uint32(multiplier)
    to, parts = rows[begin:end], codes[begin:end]
    for p in range(len(to)):
        accumulator[to[p]] += _contribution(parts[p], factor)


@kernel
def _add_short(accumulator, rows, codes, begin, end, first_row, multiplier):
    """Add the postings of a short list that are in the window; returns where the next window's begin."""
    factor = np.uint32(multiplier)
    p = begin
    while p < end and np.int64(rows[p]) - first_row < len(accumulator):
        accumulator[np.int64(rows[p]) - first_row] += _contribution(codes[p], factor)
        p += 1
    return p


@kernel
def _fetch_bytes(codes, begin, size):
    for p in range(begin, begin + size, BYTES):
        prefetch(codes, p)


@kernel
def _fetch_list(kind, place, window, first_row, dense_codes, window_ptr, window_rows, window_codes):
    """Ask for a list's part in a window while the list before it is added: of a dense one, for its begin."""
    if kind == 2:
        _fetch_bytes(dense_codes, place + first_row, 4 * CHUNK)
    elif kind == 1:
        begin, end = window_ptr[place + window], window_ptr[place + window + 1]
        _fetch_bytes(window_codes, begin, end - begin)
        for p in range(begin, end, LINE):
            prefetch(window_rows, p)


@kernel
def _largest(bounds):
    most = np.uint16(0)
    for d in range(len(bounds)):
        most = max(most, bounds[d])
    return np.int64(most)


@kernel
def _count(bucket, wanted, counts, level, above):
    """Count a document; the level rises to the highest bucket with ``wanted`` documents in it or above it."""
    counts[bucket] += 1
    above += 1
    while above - counts[level] >= wanted:
        above -= counts[level]
        level += 1
    return level, above


@kernel
def _collect(
    accumulator, documents, first_row, wanted, slack, counts, level, above, best, found_bounds, found_rows, n_found
):  # fmt: skip
    """Note the window's documents that may be among the best as found, and clear the accumulators.

    The best of each block are counted first: they raise the level so far that few others are looked at.
    ``counts`` holds the found documents by bucket, from ``level`` on exact; ``above`` those from there on; ``best`` is
    scratch. Returns the new level, above and number of found documents, whose rows ascend.
    """
    n_blocks = (documents + BLOCK - 1) // BLOCK
    for b in range(n_blocks):
        best[b] = _largest(accumulator[b * BLOCK : min((b + 1) * BLOCK, documents)])
        if best[b] > 0 and best[b] >> BUCKET >= level:
            level, above = _count(best[b] >> BUCKET, wanted, counts, level, above)
    for b in range(n_blocks):
        threshold = max(np.int64(1), (level << BUCKET) - slack)
        if best[b] < threshold:
            continue
        for begin in range(b * BLOCK, min((b + 1) * BLOCK, documents), PART):
            bounds = accumulator[begin : min(begin + PART, documents)]
            if _largest(bounds) < threshold:
                continue
            for d in range(len(bounds)):
                bound = np.int64(bounds[d])
                if bound < threshold:
                    continue
                found_bounds[n_found] = bound
                found_rows[n_found] = first_row + begin + d
                n_found += 1
                if bound == best[b]:
                    best[b] = -1  # counted, but once
                elif bound >> BUCKET >= level:
                    level, above = _count(bound >> BUCKET, wanted, counts, level, above)
                    threshold = max(np.int64(1), (level << BUCKET) - slack)
    window = accumulator[:documents]
    for d in range(len(window)):
        window[d] = 0
    return level, above, n_found


@kernel
def _part(found_bounds, found_rows, n_found, level, room, lowest, top_bounds, top_rows):
    """Take the best found documents out: those in buckets above ``level``, and the first ``room`` in it.

    Returns how many there are, and how many others with bounds of at least ``lowest`` stay.
    """
    n_top, kept = 0, 0
    for i in range(n_found):
        bound, row = found_bounds[i], found_rows[i]
        bucket = bound >> BUCKET
        if bucket > level or (bucket == level and room > 0):
            room -= bucket == level
            top_bounds[n_top] = bound
            top_rows[n_top] = row
            n_top += 1
        elif bound >= lowest:
            found_bounds[kept] = bound
            found_rows[kept] = row
            kept += 1
    return n_top, kept


@kernel
def _walk(
    matched, multipliers, order, walked, cursors,
    list_length, list_kind, list_place, dense_codes, window_ptr, window_rows, window_codes, short_rows, short_codes,
    n_documents, accumulator, wanted, slack, counts, best, found_bounds, found_rows,
):  # fmt: skip
    """Walk the first ``walked`` lists, in order, window by window; returns as `_collect`."""
    window = len(accumulator)
    level, above, n_found = np.int64(0), np.int64(0), 0
    counts[:] = 0
    for i in range(walked):
        cursors[i] = list_place[matched[order[i]]]
    for w in range((n_documents + window - 1) // window):
        first_row = w * window
        documents = min(window, n_documents - first_row)
        padded = (documents + GROUP - 1) // GROUP * GROUP
        for i in range(walked):
            if i + 1 < walked:
                following = matched[order[i + 1]]
                _fetch_list(
                    list_kind[following], list_place[following], w, first_row,
                    dense_codes, window_ptr, window_rows, window_codes,
                )  # fmt: skip
            listed, multiplier = matched[order[i]], multipliers[order[i]]
            place = list_place[listed]
            if list_kind[listed] == 2:
                _add_dense(accumulator, padded, dense_codes, place + first_row, multiplier)
            elif list_kind[listed] == 1:
                begin, end = window_ptr[place + w], window_ptr[place + w + 1]
                _add_window(accumulator, window_rows, window_codes, begin, end, multiplier)
            else:
                end = place + list_length[listed]
                cursors[i] = _add_short(
                    accumulator, short_rows, short_codes, cursors[i], end, first_row, multiplier
                )  # fmt: skip
        level, above, n_found = _collect(
            accumulator, documents, first_row, wanted, slack, counts, level, above, best,
            found_bounds, found_rows, n_found,
        )  # fmt: skip
    return level, above, n_found


@kernel
def search_lists(
    query_ptr, query_terms, query_weights, first, last, list_starts, shift,
    list_terms, list_step, list_length, list_kind, list_place,
    dense_codes, window_ptr, window_rows, window_codes, short_rows, short_codes,
    forward_ptr, forward_terms, forward_weights,
    accumulator, dense_query, in_query, places, found_bounds, found_rows,
    candidates, mass, most_terms, most_found, k, hit_scores, hit_rows, hit_counts,
):  # fmt: skip
    """Top k of queries ``first`` to ``last`` through the inverted lists, term at a time.

    Args:
        query_ptr, query_terms, query_weights: the queries as CSR (int64, int64, float32).
        first, last: the queries to answer.
        list_starts, shift: the lists of terms t with t >> shift equal to i begin at list_starts[i].
        list_terms, …, short_codes: see `lsr.index.segment.Lists`.
        forward_ptr, forward_terms, forward_weights: the documents as CSR, 16-bit weights as uint16.
        accumulator: scratch, uint16 zeros, one per document of a window; left zero.
        dense_query, in_query: scratch, float32 and uint8 zeros (vocabulary,); left zero.
        places: scratch, uint32, one more than the longest document has terms.
        found_bounds, found_rows: scratch, int64 (documents,).
        candidates: 0 for exact search; else this many documents, those in the highest buckets of
            bounds (of equal buckets, the first), are scored. A query whose walked lists hold fewer is answered exactly.
        mass: share of what the query's lists can add to a score that the walked ones must hold. Exact
            search makes up for the others by scoring more documents, and where those would be more
            than ``most_found``, it walks all lists.
        most_terms: a query with more is answered by scoring every document.
        k: hits wanted, at most the number of documents.
        hit_scores, hit_rows, hit_counts: results of all queries: (n * k,), (n * k,), (n,), padded with -inf and -1.
    """
    n_documents = len(forward_ptr) - 1
    counts, best = np.empty(BUCKETS, dtype=np.int64), np.empty(len(accumulator) // BLOCK + 1, dtype=np.int64)
    top_bounds, top_rows = np.empty(max(k, candidates), dtype=np.int64), np.empty(max(k, candidates), dtype=np.int64)
    longest = 0
    for query in range(first, last):
        longest = max(longest, query_ptr[query + 1] - query_ptr[query])
    matched, order, cursors = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    multipliers, priorities = np.empty(longest, dtype=np.float64), np.empty(longest, dtype=np.float64)
    for query in range(first, last):
        start, stop = query_ptr[query], query_ptr[query + 1]
        base = query * k
        _spread(query_terms, query_weights, start, stop, dense_query, in_query, np.float32(1))
        if stop - start > most_terms:
            for row in range(n_documents):
                found_bounds[row], found_rows[row] = 0, row
            n_hits = _score_rows(
                found_rows, found_bounds, n_documents, 0, 0.0, LARGEST, forward_ptr, forward_terms, forward_weights,
                dense_query, in_query, places, k, hit_scores, hit_rows, base, 0,
            )  # fmt: skip
        else:
            n, unit, slack = _match(
                query_terms, query_weights, start, stop, list_starts, shift, list_terms, list_step, list_length,
                matched, multipliers, priorities, order,
            )  # fmt: skip
            exact = candidates == 0
            walked, beyond = _share(multipliers, order, n, mass)
            while True:
                wanted = k if exact else candidates
                margin = slack + beyond if exact else np.int64(0)
                level, above, n_found = _walk(
                    matched, multipliers, order, walked, cursors, list_length, list_kind, list_place,
                    dense_codes, window_ptr, window_rows, window_codes, short_rows, short_codes,
                    n_documents, accumulator, wanted, margin, counts, best, found_bounds, found_rows,
                )  # fmt: skip
                lowest = max(np.int64(1), (level << BUCKET) - margin)
                if exact and (walked == n or ((level << BUCKET) > margin and n_found <= most_found)):
                    break
                if not exact and above >= wanted:
                    break
                exact, walked, beyond = True, n, np.int64(0)  # too many, or too few, by these lists alone
            # float32's own rounding may lift a sum of n products above its bound
            lifted, rounding = unit * (1 + (n + 2) * 2.0**-23), n * SMALLEST
            room = wanted - above + counts[level]
            n_top, n_found = _part(found_bounds, found_rows, n_found, level, room, lowest, top_bounds, top_rows)
            n_hits = _score_rows(
                top_rows, top_bounds, n_top, beyond, lifted, rounding, forward_ptr, forward_terms, forward_weights,
                dense_query, in_query, places, k, hit_scores, hit_rows, base, 0,
            )  # fmt: skip
            if exact:
                n_hits = _score_rows(
                    found_rows, found_bounds, n_found, beyond, lifted, rounding,
                    forward_ptr, forward_terms, forward_weights,
                    dense_query, in_query, places, k, hit_scores, hit_rows, base, n_hits,
                )  # fmt: skip
        _spread(query_terms, query_weights, start, stop, dense_query, in_query, np.float32(0))
        _sort_hits(hit_scores, hit_rows, base, n_hits)
        hit_counts[query] = n_hits
        hit_scores[base + n_hits : base + k] = -np.inf
        hit_rows[base + n_hits : base + k] = -1
