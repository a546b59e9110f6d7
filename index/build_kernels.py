"""All compiled build code: documents to blocks, blocks to summaries. A family of its own, which
calls nothing of `kernels` (a cached kernel keeps using a stale helper of another file).
"""

import numpy as np

from lsr.numba_support import kernel


@kernel
def document_heads(forward_ptr, forward_terms, forward_weights, width, head_ptr, head_terms, head_weights):
    """Write each document's ``width`` heaviest terms (of equal weights, the smaller term id).

    ``head_ptr`` (documents + 1) is given; the terms come out heaviest first.
    """
    taken = np.zeros(0, dtype=np.bool_)
    for row in range(len(forward_ptr) - 1):
        start, stop = forward_ptr[row], forward_ptr[row + 1]
        if stop - start > len(taken):
            taken = np.zeros(2 * (stop - start), dtype=np.bool_)
        taken[: stop - start] = False
        for h in range(head_ptr[row], head_ptr[row + 1]):
            best = -1
            for f in range(start, stop):
                if not taken[f - start] and (best < 0 or forward_weights[f] > forward_weights[best]):
                    best = f
            taken[best - start] = True
            head_terms[h] = forward_terms[best]
            head_weights[h] = forward_weights[best]


@kernel
def quantize_lists(
    first, last, ptr, rows, weights, begin, n_windows,
    step, length, kind, place, dense_codes, window_ptr, window_rows, window_codes, short_rows, short_codes,
):  # fmt: skip
    """Write lists ``first`` to ``last`` in 8 bits to where they have their place (`lsr.index.segment.Lists`).

    ``begin`` says where a windowed list's postings begin in window_rows. A list's step is the smallest
    float32 with 255 * step not below its largest weight, in exact arithmetic; a code is the smallest
    with step * code not below the weight (a product exact in float64), 1 to 255.
    """
    for listed in range(first, last):
        start, stop = ptr[listed], ptr[listed + 1]
        largest = np.float32(0)
        for p in range(start, stop):
            largest = max(largest, weights[p])
        unit = np.float32(np.float64(largest) / 255)
        if 255 * np.float64(unit) < np.float64(largest):
            unit = np.nextafter(unit, np.float32(np.inf))
        step[listed] = unit
        at = place[listed]
        window = 0
        if kind[listed] == 1:
            window_ptr[at] = begin[listed]
        for p in range(start, stop):
            exact = np.float64(unit)
            code = np.intp(np.ceil(np.float64(weights[p]) / exact))
            if code * exact < np.float64(weights[p]):
                code += 1
            row = np.intp(rows[p])
            if kind[listed] == 2:
                dense_codes[at + row] = code
            elif kind[listed] == 1:
                while row >> 16 > window:
                    window += 1
                    window_ptr[at + window] = begin[listed] + p - start
                window_rows[begin[listed] + p - start] = row & 65535
                window_codes[begin[listed] + p - start] = code
            else:
                short_rows[at + p - start] = row
                short_codes[at + p - start] = code
        if kind[listed] == 1:
            while window < n_windows:
                window += 1
                window_ptr[at + window] = begin[listed] + stop - start


@kernel
def _random(state):
    """The next number of a splitmix64 generator, 64 bits, and its new state."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31)), state


@kernel
def _sample(size, wanted, state, chosen):
    """Write ``wanted`` distinct numbers below ``size`` to ``chosen``, ascending (Knuth's method S)."""
    n_chosen = 0
    for i in range(size):
        number, state = _random(state)
        if np.int64(number % np.uint64(size - i)) < wanted - n_chosen:
            chosen[n_chosen] = i
            n_chosen += 1


@kernel
def _centroid_lists(
    rows, begin, chosen, n_centroids, forward_ptr, forward_terms, forward_weights,
    term_begin, term_end, terms, centroids, weights,
):  # fmt: skip
    """Invert the centroid documents: term → its centroids, in [term_begin, term_end).

    Returns the number of touched terms, which stand in ``terms``.
    """
    n_terms = 0
    for c in range(n_centroids):
        row = rows[begin + chosen[c]]
        for f in range(forward_ptr[row], forward_ptr[row + 1]):
            term = forward_terms[f]
            if term_end[term] == 0:
                terms[n_terms] = term
                n_terms += 1
            term_end[term] += 1
    total = 0
    for i in range(n_terms):
        count = term_end[terms[i]]
        term_begin[terms[i]] = total
        term_end[terms[i]] = total
        total += count
    for c in range(n_centroids):
        row = rows[begin + chosen[c]]
        for f in range(forward_ptr[row], forward_ptr[row + 1]):
            term = forward_terms[f]
            centroids[term_end[term]] = c
            weights[term_end[term]] = forward_weights[f]
            term_end[term] += 1
    return n_terms


@kernel
def _nearest(
    row,
    head_ptr,
    head_terms,
    head_weights,
    term_begin,
    term_end,
    centroids,
    weights,
    alive,
    scores,
    n_centroids,
):
    """The living centroid with the largest dot product with the document's head (ties: the first)."""
    for c in range(n_centroids):
        scores[c] = 0
    for h in range(head_ptr[row], head_ptr[row + 1]):
        term = head_terms[h]
        weight = head_weights[h]
        for e in range(term_begin[term], term_end[term]):
            scores[centroids[e]] += weight * weights[e]
    best = -1
    for c in range(n_centroids):
        if alive[c] and (best < 0 or scores[c] > scores[best]):
            best = c
    return best


@kernel
def cluster_lists(
    first, last, list_ptr, list_rows, forward_ptr, forward_terms, forward_weights,
    head_ptr, head_terms, head_weights, vocabulary_size, centroid_fraction, min_block_size, seed,
    block_rows, block_sizes, n_blocks,
):  # fmt: skip
    """Cluster the postings of lists ``first`` to ``last`` by shallow k-means, one assignment pass.

    Writes the lists' rows block by block to ``block_rows`` (at the lists' own places), the blocks'
    sizes to ``block_sizes`` (from the list's own place on), their number to ``n_blocks``. Within a
    block, rows ascend.
    """
    longest = 0
    for listed in range(first, last):
        longest = max(longest, list_ptr[listed + 1] - list_ptr[listed])
    most = max(1, np.intp(round(centroid_fraction * longest)))
    term_begin = np.zeros(vocabulary_size, dtype=np.int64)
    term_end = np.zeros(vocabulary_size, dtype=np.int64)
    touched = np.zeros(vocabulary_size, dtype=np.int64)
    centroids = np.zeros(0, dtype=np.int64)
    weights = np.zeros(0, dtype=np.float32)
    chosen = np.zeros(most, dtype=np.int64)
    scores = np.zeros(most, dtype=np.float32)
    alive = np.zeros(most, dtype=np.bool_)
    sizes = np.zeros(most, dtype=np.int64)
    assigned = np.zeros(longest, dtype=np.int64)
    for listed in range(first, last):
        begin, length = list_ptr[listed], list_ptr[listed + 1] - list_ptr[listed]
        if length == 0:
            n_blocks[listed] = 0
            continue
        n_centroids = max(1, np.intp(round(centroid_fraction * length)))
        if n_centroids == 1:
            block_rows[begin : begin + length] = list_rows[begin : begin + length]
            block_sizes[begin] = length
            n_blocks[listed] = 1
            continue
        _sample(length, n_centroids, np.uint64(seed) * np.uint64(1_000_003) + np.uint64(listed), chosen)
        needed = 0
        for c in range(n_centroids):
            row = list_rows[begin + chosen[c]]
            needed += forward_ptr[row + 1] - forward_ptr[row]
        if needed > len(centroids):
            centroids = np.zeros(2 * needed, dtype=np.int64)
            weights = np.zeros(2 * needed, dtype=np.float32)
        n_touched = _centroid_lists(
            list_rows, begin, chosen, n_centroids, forward_ptr, forward_terms, forward_weights,
            term_begin, term_end, touched, centroids, weights,
        )  # fmt: skip
        alive[:n_centroids] = True
        sizes[:n_centroids] = 0
        for i in range(length):
            assigned[i] = _nearest(
                list_rows[begin + i], head_ptr, head_terms, head_weights, term_begin, term_end, centroids, weights,
                alive, scores, n_centroids,
            )  # fmt: skip
            sizes[assigned[i]] += 1
        largest = 0
        for c in range(n_centroids):
            if sizes[c] > sizes[largest]:
                largest = c
        for c in range(n_centroids):
            alive[c] = sizes[c] >= min_block_size or c == largest
        for i in range(length):
            if not alive[assigned[i]]:
                assigned[i] = _nearest(
                    list_rows[begin + i], head_ptr, head_terms, head_weights, term_begin, term_end, centroids,
                    weights, alive, scores, n_centroids,
                )  # fmt: skip
        for i in range(n_touched):
            term_begin[touched[i]] = 0
            term_end[touched[i]] = 0
        n_blocks[listed] = _write_blocks(begin, length, assigned, n_centroids, list_rows, block_rows, block_sizes)


@kernel
def _write_blocks(begin, length, assigned, n_centroids, list_rows, block_rows, block_sizes):
    """Lay a list's rows out by cluster, empty clusters left out; returns the number of blocks."""
    sizes = np.zeros(n_centroids, dtype=np.int64)
    for i in range(length):
        sizes[assigned[i]] += 1
    place = np.zeros(n_centroids, dtype=np.int64)
    total = 0
    n_blocks = 0
    for c in range(n_centroids):
        place[c] = begin + total
        total += sizes[c]
        if sizes[c] > 0:
            block_sizes[begin + n_blocks] = sizes[c]
            n_blocks += 1
    for i in range(length):
        block_rows[place[assigned[i]]] = list_rows[begin + i]
        place[assigned[i]] += 1
    return n_blocks


@kernel
def _grown(array, needed):
    """The array itself, or a copy with room for ``needed`` elements."""
    if needed <= len(array):
        return array
    larger = np.zeros(2 * needed, dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@kernel
def _summarize(rows, begin, end, forward_ptr, forward_terms, forward_weights, maximum, touched, energy):
    """Coordinate-wise maximum of a block's documents, cut to its heaviest coordinates.

    Returns the kept terms, ascending, and their weights: the fewest heaviest (of equal weights, the
    smaller term id) whose sum reaches ``energy`` of the whole; all of them at energy 1.
    """
    n = 0
    for p in range(begin, end):
        row = rows[p]
        for f in range(forward_ptr[row], forward_ptr[row + 1]):
            term = forward_terms[f]
            if maximum[term] == 0:
                touched[n] = term
                n += 1
            maximum[term] = max(maximum[term], forward_weights[f])
    terms = np.sort(touched[:n])
    weights = np.empty(n, dtype=np.float32)
    total = 0.0
    for i in range(n):
        weights[i] = maximum[terms[i]]
        total += weights[i]
        maximum[terms[i]] = 0
    if energy >= 1:
        return terms, weights
    order = np.argsort(-weights, kind="mergesort")
    reached = 0.0
    kept = 0
    while kept < n and reached < energy * total:
        reached += weights[order[kept]]
        kept += 1
    keep = np.sort(order[:kept])
    return terms[keep], weights[keep]


@kernel
def quantize(weights, codes):
    """8-bit codes of positive weights, rounded up; returns (minimum, step) as float32.

    minimum + step * code, in float32, is never below the weight, so that a summary bounds its
    members; it is above by less than about one step.
    """
    low = weights.min()
    high = weights.max()
    step = np.float32(high - low) / np.float32(255)
    while low + step * np.float32(255) < high:
        step = np.nextafter(step, np.float32(np.inf))
    for i in range(len(weights)):
        code = np.intp(0)
        if step > 0:
            code = min(np.intp(255), np.intp(np.ceil((weights[i] - low) / step)))
        while low + step * np.float32(code) < weights[i]:
            code += 1
        codes[i] = code
    return low, step


@kernel
def summarize_lists(
    first, last, block_ptr, block_start, block_rows, forward_ptr, forward_terms, forward_weights,
    vocabulary_size, energy, block_minimum, block_step,
):  # fmt: skip
    """Summaries of the blocks of lists ``first`` to ``last``, stored term by term ("transposed").

    Writes the blocks' minimum and step. Returns, for these lists: the number of summary terms per
    list, the terms, the number of entries per term, and each entry's block (within its list) and code.
    """
    maximum = np.zeros(vocabulary_size, dtype=np.float32)
    touched = np.zeros(vocabulary_size, dtype=np.int64)
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    terms_per_list = np.zeros(last - first, dtype=np.int64)
    terms = np.zeros(1024, dtype=np.uint32)
    entries_per_term = np.zeros(1024, dtype=np.int64)
    blocks = np.zeros(1024, dtype=np.uint32)
    codes = np.zeros(1024, dtype=np.uint8)
    n_terms = 0
    n_entries = 0
    raw_terms = np.zeros(1024, dtype=np.int64)
    raw_blocks = np.zeros(1024, dtype=np.uint32)
    raw_codes = np.zeros(1024, dtype=np.uint8)
    for listed in range(first, last):
        n_raw = 0
        n_touched = 0
        for block in range(block_ptr[listed], block_ptr[listed + 1]):
            kept, weights = _summarize(
                block_rows, block_start[block], block_start[block + 1], forward_ptr, forward_terms, forward_weights,
                maximum, touched, energy,
            )  # fmt: skip
            raw_terms = _grown(raw_terms, n_raw + len(kept))
            raw_blocks = _grown(raw_blocks, n_raw + len(kept))
            raw_codes = _grown(raw_codes, n_raw + len(kept))
            block_minimum[block], block_step[block] = quantize(weights, raw_codes[n_raw : n_raw + len(kept)])
            for i in range(len(kept)):
                raw_terms[n_raw + i] = kept[i]
                raw_blocks[n_raw + i] = block - block_ptr[listed]
                counts[kept[i]] += 1
            n_raw += len(kept)
        for i in range(n_raw):  # which terms there are, once each
            if counts[raw_terms[i]] > 0:
                touched[n_touched] = raw_terms[i]
                n_touched += 1
                counts[raw_terms[i]] *= -1
        list_terms = np.sort(touched[:n_touched])
        terms = _grown(terms, n_terms + n_touched)
        entries_per_term = _grown(entries_per_term, n_terms + n_touched)
        blocks = _grown(blocks, n_entries + n_raw)
        codes = _grown(codes, n_entries + n_raw)
        place = n_entries
        for i in range(n_touched):
            count = -counts[list_terms[i]]
            terms[n_terms + i] = list_terms[i]
            entries_per_term[n_terms + i] = count
            counts[list_terms[i]] = place
            place += count
        for i in range(n_raw):
            at = counts[raw_terms[i]]
            blocks[at] = raw_blocks[i]
            codes[at] = raw_codes[i]
            counts[raw_terms[i]] += 1
        for i in range(n_touched):
            counts[list_terms[i]] = 0
        terms_per_list[listed - first] = n_touched
        n_terms += n_touched
        n_entries += n_raw
    return (
        terms_per_list,
        terms[:n_terms].copy(),
        entries_per_term[:n_terms].copy(),
        blocks[:n_entries].copy(),
        codes[:n_entries].copy(),
    )
