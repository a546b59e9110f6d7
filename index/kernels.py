"""Exact search and search by lists, compiled. Arguments are contiguous arrays, alone or as the families of
`lsr.index.segment`, and scalars, checked by the callers; queries are checked here.

A score is the float32 sum over the query's terms, in ascending order of term id, of query weight
times document weight. Every path adds in that order, so that scores are equal to the last bit.
Better means a larger score; of equal scores, the smaller row.
"""

from typing import NamedTuple

import numpy as np

from lsr.index.segment import DENSE_LIST, GROUP, WINDOWED_LIST, Array, Forward, Lists
from lsr.numba_support import (
    MASK,
    array_at,
    at_least,
    count_bits,
    drop_lowest,
    half_to_float,
    kernel,
    largest,
    lowest_bit,
    prefetch,
    product16,
)


class Scratch(NamedTuple):
    """What `search_lists` needs for itself, at first zeros; it leaves the first three as zeros.

    accumulator uint16, one per document of a window; dense_query float32 and in_query uint8, one per term; query_terms
    uint32, one per term; places uint32, one more than the longest document has terms. Of a query's lists: matched,
    order and cursors int64, multipliers and priorities float64, for the longest query that is answered by lists.
    counts int32 (`BUCKETS`); best uint16, one per `MASK` documents of a window. Of the documents found, and of the best
    of them: found_bounds, found_rows, top_bounds and top_rows int64, one more than there are documents.
    """

    accumulator: Array
    dense_query: Array
    in_query: Array
    query_terms: Array
    places: Array
    matched: Array
    order: Array
    cursors: Array
    multipliers: Array
    priorities: Array
    counts: Array
    best: Array
    found_bounds: Array
    found_rows: Array
    top_bounds: Array
    top_rows: Array


@kernel
def _lists_at(addresses):
    return Lists(
        array_at(addresses, 1, np.int64), array_at(addresses, 2, np.float32),
        array_at(addresses, 3, np.int32), array_at(addresses, 4, np.uint8),
        array_at(addresses, 5, np.int64), array_at(addresses, 6, np.uint8),
        array_at(addresses, 7, np.int64), array_at(addresses, 8, np.uint16),
        array_at(addresses, 9, np.uint8), array_at(addresses, 10, np.uint32),
        array_at(addresses, 11, np.uint8),
    )  # fmt: skip


@kernel
def _scratch_at(addresses):
    return Scratch(
        array_at(addresses, 13, np.uint16), array_at(addresses, 14, np.float32),
        array_at(addresses, 15, np.uint8), array_at(addresses, 16, np.uint32),
        array_at(addresses, 17, np.uint32), array_at(addresses, 18, np.int64),
        array_at(addresses, 19, np.int64), array_at(addresses, 20, np.int64),
        array_at(addresses, 21, np.float64), array_at(addresses, 22, np.float64),
        array_at(addresses, 23, np.int32), array_at(addresses, 24, np.uint16),
        array_at(addresses, 25, np.int64), array_at(addresses, 26, np.int64),
        array_at(addresses, 27, np.int64), array_at(addresses, 28, np.int64),
    )  # fmt: skip


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
def _sort_hits(scores, rows, base, size, k):
    """Turn the heap at ``base`` into a list of k, best first, the rest of it padding."""
    scores[base + size : base + k] = -np.inf
    rows[base + size : base + k] = -1
    for end in range(size - 1, 0, -1):
        scores[base], scores[base + end] = scores[base + end], scores[base]
        rows[base], rows[base + end] = rows[base + end], rows[base]
        _sift_down(scores, rows, base, end)


@kernel
def _score(row, forward, dense_query, in_query, places):
    """The score of one document: first, without a branch, which of its terms the query has."""
    start, stop = forward.ptr[row], forward.ptr[row + 1]
    terms, weights = forward.terms[start:stop], forward.weights[start:stop]  # slices: no negative positions
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
def _spread(terms, weights, scratch):
    """Lay a query out by term id, and copy its terms; False, and nothing is laid out, if it is not as
    `lsr.vectors.check_vectors` returns queries.
    """
    query_terms, dense_query, in_query = scratch.query_terms, scratch.dense_query, scratch.in_query
    last = np.int64(-1)
    for q in range(len(terms)):
        term, weight = np.int64(terms[q]), np.float32(weights[q])
        if not (last < term < len(dense_query) and 0 < weight <= LARGEST):
            _clear(scratch, q)
            return False
        query_terms[q], dense_query[term], in_query[term] = term, weight, 1
        last = term
    return True


@kernel
def _clear(scratch, n_terms):
    """Take away what `_spread` laid out."""
    for q in range(n_terms):
        scratch.dense_query[scratch.query_terms[q]] = 0
        scratch.in_query[scratch.query_terms[q]] = 0


@kernel
def _fetch(row, forward):
    """Ask for a document's terms and weights before they are needed, a cache line at a time."""
    for f in range(forward.ptr[row], forward.ptr[row + 1], LINE):
        prefetch(forward.terms, f)
        prefetch(forward.weights, f)


@kernel
def _score_rows(rows, bounds, n_rows, beyond, unit, rounding, forward, scratch, k, hit_scores, hit_rows, base, n_hits):
    """Score the documents that can still be among the k best; returns the number of hits.

    (bound + beyond) * unit + rounding is never below a document's score.
    """
    dense_query, in_query, places = scratch.dense_query, scratch.in_query, scratch.places
    for i in range(min(2 * AHEAD, n_rows)):
        prefetch(forward.ptr, rows[i])
    for i in range(min(AHEAD, n_rows)):
        _fetch(rows[i], forward)
    for i in range(n_rows):
        if i + 2 * AHEAD < n_rows:
            prefetch(forward.ptr, rows[i + 2 * AHEAD])
        if i + AHEAD < n_rows:
            _fetch(rows[i + AHEAD], forward)
        most = (bounds[i] + beyond) * unit + rounding
        if n_hits == k and most < min(np.float64(hit_scores[base]), LARGEST):
            continue
        score = _score(rows[i], forward, dense_query, in_query, places)
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
# bucket with k documents in it or above it. That costs less than a heap. In each window it begins at what the
# best of groups of documents reach, found without a branch on their bounds, which no processor can foresee.

MOST = 2**15 - 1  # of an accumulator
FEW = 2**14  # documents, of which the best are found by places
LARGEST = np.float64(np.finfo(np.float32).max)
SMALLEST = 2.0**-149  # above 0, of float32
BUCKET = 4  # bits: bounds are counted in buckets of 16 units
BUCKETS = 2 ** (15 - BUCKET)
LINE = 32  # 16-bit elements in a cache line
REACH = 3  # documents whose bounds are refined by the dense lists that were not walked, for each that is scored
AHEAD = 4  # documents between asking for one and scoring it
CHUNK = 1024  # codes of a dense list added between asking for more
BYTES = 64  # in a cache line


@kernel
def _fetch_head(listed, lists):
    """Ask for what is known of a list before it is needed: each of these arrays is a cache miss of its own."""
    prefetch(lists.terms, listed)
    prefetch(lists.step, listed)
    prefetch(lists.length, listed)
    prefetch(lists.kind, listed)
    prefetch(lists.place, listed)


@kernel
def _match(n_terms, shift, addresses):
    """Find the query's lists, scale their steps to accumulator units, and order them.

    Returns the number of lists, the unit (float64) and the slack in units; ``matched`` and
    ``multipliers`` are filled, and ``order`` sorts them by what they can add to a score over the square
    root of their length. No list: (0, 0, 0).
    """
    list_starts, lists, scratch = array_at(addresses, 0, np.int64), _lists_at(addresses), _scratch_at(addresses)
    matched, multipliers, priorities = scratch.matched, scratch.multipliers, scratch.priorities
    for q in range(n_terms):
        prefetch(list_starts, np.int64(scratch.query_terms[q]) >> shift)
    for q in range(n_terms):
        _fetch_head(list_starts[np.int64(scratch.query_terms[q]) >> shift], lists)
    n = 0
    total = 0.0
    for q in range(n_terms):
        term = np.int64(scratch.query_terms[q])
        listed, end = list_starts[term >> shift], list_starts[(term >> shift) + 1]
        while listed < end and lists.terms[listed] < term:
            listed += 1
        if listed < end and lists.terms[listed] == term:
            most = np.float64(scratch.dense_query[term]) * np.float64(lists.step[listed]) * 255
            matched[n] = listed
            multipliers[n] = most
            priorities[n] = most / np.sqrt(np.float64(lists.length[listed]))
            total += most
            n += 1
            prefetch(lists.window_ptr, lists.place[listed])
    if n == 0:
        return 0, 0.0, 0
    unit = total / (MOST - 2 * n - 1)
    for i in range(n):
        multipliers[i] = np.ceil(multipliers[i] / 255 / unit * 256 * (1 + 1e-12))
    _sort_descending(priorities, scratch.order, n)
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
def _share(matched, multipliers, order, n, mass, lists):
    """How many lists, in order, hold ``mass`` of the sum of what all can add.

    Returns that, what the others can add, and whether a dense one is among those.
    """
    total = 0.0
    for i in range(n):
        total += multipliers[i]
    reached = 0.0
    walked = 0
    while walked < n and reached < mass * total:
        reached += multipliers[order[walked]]
        walked += 1
    beyond, any_dense = np.int64(0), False
    for i in range(walked, n):
        beyond += _most(multipliers[order[i]])
        any_dense |= lists.kind[matched[order[i]]] == DENSE_LIST
    return walked, beyond, any_dense


@kernel
def _most(multiplier):
    """What a list can add to a bound."""
    return np.int64(multiplier) * 255 // 256 + 1


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
def _fetch_list(listed, window, first_row, lists):
    """Ask for a list's part in a window while the list before it is added: of a dense one, for its begin."""
    place = lists.place[listed]
    if lists.kind[listed] == DENSE_LIST:
        _fetch_bytes(lists.dense_codes, place + first_row, 4 * CHUNK)
    elif lists.kind[listed] == WINDOWED_LIST:
        begin, end = lists.window_ptr[place + window], lists.window_ptr[place + window + 1]
        _fetch_bytes(lists.window_codes, begin, end - begin)
        for p in range(begin, end, LINE):
            prefetch(lists.window_rows, p)


@kernel
def _empty(values):
    """Zeros, by a loop: of an assignment to a slice LLVM makes none over vectors."""
    for i in range(len(values)):
        values[i] = 0


@kernel
def _best_of_each(accumulator, documents, best):
    """Write the best of each `MASK` documents to ``best``, and then zeros; returns how many there are, with these."""
    n = np.int64(0)
    for begin in range(0, documents, MASK):
        best[n] = largest(accumulator, begin)
        n += 1
    while n % MASK:
        best[n] = 0
        n += 1
    return n


@kernel
def _best_of_places(accumulator, documents, best):
    """Write the best of the documents at each place of so many to ``best``; returns how many there are.

    Where there are few documents, that makes more groups of fewer of them.
    """
    n = min(documents, len(best))
    places = best[:n]
    _empty(places)
    for begin in range(0, documents, n):
        part = accumulator[begin : min(begin + n, documents)]
        for d in range(len(part)):
            places[d] = max(places[d], part[d])
    return n


@kernel
def _reached(best, n, wanted, level):
    """The highest bucket, from ``level`` on, that ``wanted`` of the n best documents reach; by halves, no branches."""
    low, high, middle = level, np.int64(BUCKETS), level + 1
    while middle < high:
        above = np.int64(0)
        for begin in range(0, n, MASK):
            above += count_bits(at_least(best, begin, np.uint16(middle << BUCKET)))
        if above >= wanted:
            low = middle
        else:
            high = middle
        middle = max((low + high) // 2, low + 1)
    return low


@kernel
def _collect(
    accumulator, documents, first_row, wanted, slack, counts, level, above, best, found_bounds, found_rows, n_found
):  # fmt: skip
    """Note the window's documents that may be among the best as found, and clear the accumulators.

    ``documents`` is a multiple of `MASK`. ``counts`` holds the found documents by bucket, from ``level`` on exact;
    ``above`` those from there on; ``best`` is scratch. Returns the new level, above and number of found documents,
    whose rows ascend.
    """
    reached = level
    if documents < FEW:
        reached = _reached(best, _best_of_places(accumulator, documents, best), wanted, level)
    n = _best_of_each(accumulator, documents, best)
    if documents >= FEW:
        reached = _reached(best, n, wanted, level)
    if above > 0:
        for bucket in range(level, reached):
            above -= counts[bucket]
    level = reached
    for first in range(0, n, MASK):
        blocks = at_least(best, first, np.uint16(max(np.int64(1), (level << BUCKET) - slack)))
        while blocks:
            begin = (first + lowest_bit(blocks)) * MASK
            blocks = drop_lowest(blocks)
            mask = at_least(accumulator, begin, np.uint16(max(np.int64(1), (level << BUCKET) - slack)))
            while mask:
                d = begin + lowest_bit(mask)
                mask = drop_lowest(mask)
                bound = np.int64(accumulator[d])
                found_bounds[n_found] = bound
                found_rows[n_found] = first_row + d
                n_found += 1
                counts[bound >> BUCKET] += 1
                above += np.int64(bound >> BUCKET >= level)
            while above - counts[level] >= wanted:
                above -= counts[level]
                level += 1
    _empty(accumulator[:documents])
    return level, above, n_found


@kernel
def _part(found_bounds, found_rows, n_found, level, room, lowest, top_bounds, top_rows):
    """Take the best found documents out: those in buckets above ``level``, and the first ``room`` in it.

    Returns how many there are, and how many others with bounds of at least ``lowest`` stay. Without a branch on where a
    document goes: it is written to both places, and what is not to stay there is written over.
    """
    n_top, kept = 0, 0
    for i in range(n_found):
        bound, row = found_bounds[i], found_rows[i]
        at_level = np.int64(bound >> BUCKET == level) & np.int64(room > 0)
        top = np.int64(bound >> BUCKET > level) | at_level
        room -= at_level
        top_bounds[n_top], top_rows[n_top] = bound, row
        found_bounds[kept], found_rows[kept] = bound, row
        n_top += top
        kept += (1 - top) & np.int64(bound >= lowest)
    return n_top, kept


@kernel
def _rank(bounds, rows, n, wanted, level, counts):
    """Keep the ``wanted`` best of n candidates, in place: those of the highest buckets, of equal ones the first.

    All of them are in bucket ``level`` or above it.
    """
    _empty(counts)
    for i in range(n):
        counts[bounds[i] >> BUCKET] += 1
    above = n
    while above - counts[level] >= wanted:
        above -= counts[level]
        level += 1
    room, kept = wanted - above + counts[level], 0
    for i in range(n):
        at_level = np.int64(bounds[i] >> BUCKET == level) & np.int64(room > 0)
        room -= at_level
        bounds[kept], rows[kept] = bounds[i], rows[i]
        kept += np.int64(bounds[i] >> BUCKET > level) | at_level
    return kept


@kernel
def _refine(bounds, rows, n, matched, multipliers, order, walked, n_lists, lists):
    """Add to candidates' bounds what the dense lists hold of them that were not walked: a code is found by its row.

    Returns what the lists can add that are left.
    """
    beyond = np.int64(0)
    for i in range(walked, n_lists):
        listed, multiplier = matched[order[i]], multipliers[order[i]]
        if lists.kind[listed] == DENSE_LIST:
            place, factor = lists.place[listed], np.uint32(multiplier)
            for c in range(n):
                bounds[c] += np.int64(_contribution(lists.dense_codes[place + rows[c]], factor))
        else:
            beyond += _most(multiplier)
    return beyond


@kernel
def _walk(walked, n_documents, wanted, slack, addresses):
    """Walk the first ``walked`` lists, in order, window by window; returns as `_collect`."""
    lists, scratch = _lists_at(addresses), _scratch_at(addresses)
    matched, multipliers, order, cursors = scratch.matched, scratch.multipliers, scratch.order, scratch.cursors
    accumulator = scratch.accumulator
    window = len(accumulator)
    level, above, n_found = np.int64(0), np.int64(0), 0
    _empty(scratch.counts)
    for i in range(walked):
        cursors[i] = lists.place[matched[order[i]]]
    for w in range((n_documents + window - 1) // window):
        first_row = w * window
        padded = (min(window, n_documents - first_row) + GROUP - 1) // GROUP * GROUP
        for i in range(walked):
            if i + 1 < walked:
                _fetch_list(matched[order[i + 1]], w, first_row, lists)
            listed, multiplier = matched[order[i]], multipliers[order[i]]
            place = lists.place[listed]
            if lists.kind[listed] == DENSE_LIST:
                _add_dense(accumulator, padded, lists.dense_codes, place + first_row, multiplier)
            elif lists.kind[listed] == WINDOWED_LIST:
                begin, end = lists.window_ptr[place + w], lists.window_ptr[place + w + 1]
                _add_window(accumulator, lists.window_rows, lists.window_codes, begin, end, multiplier)
            else:
                end = place + lists.length[listed]
                cursors[i] = _add_short(
                    accumulator, lists.short_rows, lists.short_codes, cursors[i], end, first_row, multiplier
                )
        level, above, n_found = _collect(
            accumulator, padded, first_row, wanted, slack, scratch.counts, level, above, scratch.best,
            scratch.found_bounds, scratch.found_rows, n_found,
        )  # fmt: skip
    return level, above, n_found


@kernel
def _search_one(n_terms, shift, addresses, forward, candidates, mass, most_found, k, scores, rows, base):
    """Top k of the query that is laid out, a heap at ``base``; see `search_lists`. Returns the number of hits."""
    lists, scratch = _lists_at(addresses), _scratch_at(addresses)
    order, counts, found_bounds, found_rows = scratch.order, scratch.counts, scratch.found_bounds, scratch.found_rows
    top_bounds, top_rows, multipliers = scratch.top_bounds, scratch.top_rows, scratch.multipliers
    n, unit, slack = _match(n_terms, shift, addresses)
    exact = candidates == 0
    walked, beyond, look_up = _share(scratch.matched, multipliers, order, n, mass, lists)
    reach = REACH * candidates if look_up else candidates
    while True:
        wanted = k if exact else reach
        margin = slack + beyond if exact else np.int64(0)
        level, above, n_found = _walk(walked, len(forward.ptr) - 1, wanted, margin, addresses)
        lowest = max(np.int64(1), (level << BUCKET) - margin)
        if exact and (walked == n or ((level << BUCKET) > margin and n_found <= most_found)):
            break
        if not exact and above >= candidates:
            break
        exact, walked, beyond = True, n, np.int64(0)  # too many, or too few, by these lists alone
    # float32's own rounding may lift a sum of n products above its bound
    lifted, rounding = unit * (1 + (n + 2) * 2.0**-23), n * SMALLEST
    room = wanted - above + counts[level]
    n_top, n_found = _part(found_bounds, found_rows, n_found, level, room, lowest, top_bounds, top_rows)
    if not exact and look_up:
        beyond = _refine(top_bounds, top_rows, n_top, scratch.matched, multipliers, order, walked, n, lists)
        n_top = _rank(top_bounds, top_rows, n_top, candidates, level, counts)
    n_hits = _score_rows(
        top_rows, top_bounds, n_top, beyond, lifted, rounding, forward, scratch, k, scores, rows, base, 0
    )  # fmt: skip
    if exact:
        n_hits = _score_rows(
            found_rows, found_bounds, n_found, beyond, lifted, rounding, forward, scratch, k, scores, rows, base, n_hits
        )  # fmt: skip
    return n_hits


@kernel
def _score_all(forward, scratch, k, hit_scores, hit_rows, base):
    """Top k of the query that is laid out by scoring every document; returns as `_search_one`."""
    n_documents = len(forward.ptr) - 1
    for row in range(n_documents):
        scratch.found_bounds[row], scratch.found_rows[row] = 0, row
    return _score_rows(
        scratch.found_rows, scratch.found_bounds, n_documents, 0, 0.0, LARGEST, forward, scratch,
        k, hit_scores, hit_rows, base, 0,
    )  # fmt: skip


@kernel
def search_lists(
    query_ptr, query_terms, query_weights, addresses, forward_terms, forward_weights,
    candidates, mass, hit_scores, hit_rows, hit_counts,
):  # fmt: skip
    """Top k of n queries through the inverted lists, term at a time; False if a query is not as it should be.

    Numba looks at each array that it is given from Python, and a short search takes no longer than thirty such looks.
    So what stays comes in one array, by addresses.

    Args:
        query_ptr, query_terms, query_weights: the queries as CSR (int32 or int64, the same, float32), with any content.
            They are answered if they are as `lsr.vectors.check_vectors` returns them.
        addresses: of list_starts int64, the arrays of `Lists`, forward.ptr, those of `Scratch`, and knobs int64: shift,
            most_terms, most_found. The lists of terms t with t >> shift equal to i begin at list_starts[i]; a query of
            more than most_terms is answered by scoring every document.
        forward_terms, forward_weights: see `lsr.index.segment.Forward`; 16-bit weights as uint16.
        candidates: 0 for exact search; else this many documents, those in the highest buckets of
            bounds (of equal buckets, the first), are scored. A query whose walked lists hold fewer is answered exactly.
        mass: share of what the query's lists can add to a score that the walked ones must hold. Exact
            search makes up for the others by scoring more documents, and where those would be more than
            most_found and ten a hit, it walks all lists. Search by lists looks up what the dense ones of them hold
            of `REACH` times as many documents as it scores.
        hit_scores, hit_rows, hit_counts: results, float32 (n, k), int64 (n, k) and int64 (n,), padded with -inf and
            -1; k is at most the number of documents.
    """
    scratch, knobs = _scratch_at(addresses), array_at(addresses, 29, np.int64)
    forward = Forward(array_at(addresses, 12, np.int64), forward_terms, forward_weights)
    n_queries, k = hit_scores.shape
    scores, rows = hit_scores.reshape(n_queries * k), hit_rows.reshape(n_queries * k)
    candidates = min(candidates, len(forward.ptr) - 1)
    if len(query_ptr) - 1 != n_queries or len(query_terms) != len(query_weights):
        return False
    if query_ptr[0] != 0 or query_ptr[n_queries] != len(query_terms):
        return False
    for query in range(n_queries):
        start, stop, base = np.int64(query_ptr[query]), np.int64(query_ptr[query + 1]), query * k
        if not 0 <= start <= stop <= len(query_terms):
            return False
        if not _spread(query_terms[start:stop], query_weights[start:stop], scratch):
            return False
        n_terms = stop - start
        if n_terms > knobs[1]:
            n_hits = _score_all(forward, scratch, k, scores, rows, base)
        else:
            n_hits = _search_one(
                n_terms, knobs[0], addresses, forward, candidates, mass, knobs[2] + 10 * k, k, scores, rows, base
            )  # fmt: skip
        _clear(scratch, n_terms)
        _sort_hits(scores, rows, base, n_hits, k)
        hit_counts[query] = n_hits
    return True


@kernel
def take_rows(indptr, terms, weights, vocabulary_size, new_indptr, new_terms, new_weights):
    """Copy CSR rows that are as `lsr.vectors.check_vectors` returns them, without a zero; False if they are not."""
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(terms) or len(terms) != len(weights):
        return False
    new_indptr[0] = 0
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        if stop < start or stop > len(terms):
            return False
        last = np.int64(-1)
        for p in range(start, stop):
            if terms[p] <= last or terms[p] >= vocabulary_size or not (0 < weights[p] <= LARGEST):
                return False
            last = np.int64(terms[p])
            new_terms[p] = last
            new_weights[p] = weights[p]
            if new_weights[p] == 0:  # a float64 too small for float32
                return False
        new_indptr[row + 1] = stop
    return True
