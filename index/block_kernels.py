"""All compiled code that builds blocks: postings to blocks, blocks to summaries. A family of its own, which
calls nothing of the other ones (a cached kernel keeps using a stale helper of another file).
"""

import numpy as np

from lsr.numba_support import half_to_float, kernel

#: A summary's weights are told apart by the bits of a float32 from here on: 4 of its mantissa.
ENERGY_BITS = 19


@kernel
def document_heads(forward_ptr, forward_terms, forward_weights, width, head_ptr, head_terms, head_weights):
    """Write each document's ``width`` heaviest terms (of equal weights, the smaller term id).

    ``head_ptr`` (documents + 1) is given; the terms come out heaviest first.
    """
    for row in range(len(forward_ptr) - 1):
        begin, size = head_ptr[row], 0
        most = head_ptr[row + 1] - begin
        for f in range(forward_ptr[row], forward_ptr[row + 1]):
            weight = half_to_float(forward_weights[f])
            if size == most and weight <= head_weights[begin + size - 1]:
                continue
            size = min(size + 1, most)
            at = begin + size - 1
            while at > begin and head_weights[at - 1] < weight:
                head_terms[at] = head_terms[at - 1]
                head_weights[at] = head_weights[at - 1]
                at -= 1
            head_terms[at] = forward_terms[f]
            head_weights[at] = weight


# --- clustering ----------------------------------------------------------------------------------


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
            weights[term_end[term]] = half_to_float(forward_weights[f])
            term_end[term] += 1
    return n_terms


@kernel
def _nearest(row, head_ptr, head_terms, head_weights, term_begin, term_end, centroids, weights, lowest, scores):
    """The centroid with the largest dot product with the document's head (ties: the first).

    ``lowest`` holds what the scores begin with: 0, or -inf for a centroid that is out.
    """
    for c in range(len(lowest)):
        scores[c] = lowest[c]
    for h in range(head_ptr[row], head_ptr[row + 1]):
        term = head_terms[h]
        weight = head_weights[h]
        for e in range(term_begin[term], term_end[term]):
            scores[centroids[e]] += weight * weights[e]
    best = 0
    for c in range(len(lowest)):
        if scores[c] > scores[best]:
            best = c
    return best


@kernel
def _n_centroids(length, fraction, most, shortest):
    """How many blocks a list of this length is cut into, at most."""
    if length < shortest:
        return 1
    return max(1, min(most, np.intp(round(fraction * length))))


@kernel
def cluster_lists(
    first, last, numbered_from, list_ptr, list_rows, forward_ptr, forward_terms, forward_weights,
    head_ptr, head_terms, head_weights, vocabulary_size, centroid_fraction, most_blocks, shortest, min_block_size, seed,
    block_rows, block_sizes, n_blocks,
):  # fmt: skip
    """Cluster the postings of lists ``first`` to ``last`` by shallow k-means, one assignment pass.

    Writes the lists' rows block by block to ``block_rows`` (at the lists' own places), the blocks'
    sizes to ``block_sizes`` (from the list's own place on), their number to ``n_blocks``. Within a
    block, rows ascend. A list shorter than ``shortest`` is one block. The first of the lists given has the number
    ``numbered_from`` among all lists, which decides its centroids.
    """
    longest = 0
    for listed in range(first, last):
        longest = max(longest, list_ptr[listed + 1] - list_ptr[listed])
    most = _n_centroids(longest, centroid_fraction, most_blocks, shortest)
    term_begin = np.zeros(vocabulary_size, dtype=np.int64)
    term_end = np.zeros(vocabulary_size, dtype=np.int64)
    touched = np.zeros(vocabulary_size, dtype=np.int64)
    centroids = np.zeros(0, dtype=np.uint32)
    weights = np.zeros(0, dtype=np.float32)
    chosen = np.zeros(most, dtype=np.int64)
    scores = np.zeros(most, dtype=np.float32)
    lowest = np.zeros(most, dtype=np.float32)
    sizes = np.zeros(most, dtype=np.int64)
    assigned = np.zeros(longest, dtype=np.int64)
    for listed in range(first, last):
        begin, length = list_ptr[listed], list_ptr[listed + 1] - list_ptr[listed]
        n_centroids = _n_centroids(length, centroid_fraction, most_blocks, shortest)
        if length == 0 or n_centroids == 1:
            block_rows[begin : begin + length] = list_rows[begin : begin + length]
            if length > 0:
                block_sizes[begin] = length
            n_blocks[listed] = min(1, length)
            continue
        _sample(length, n_centroids, np.uint64(seed) * np.uint64(1_000_003) + np.uint64(numbered_from + listed), chosen)
        needed = 0
        for c in range(n_centroids):
            row = list_rows[begin + chosen[c]]
            needed += forward_ptr[row + 1] - forward_ptr[row]
        if needed > len(centroids):
            centroids = np.zeros(2 * needed, dtype=np.uint32)
            weights = np.zeros(2 * needed, dtype=np.float32)
        n_touched = _centroid_lists(
            list_rows, begin, chosen, n_centroids, forward_ptr, forward_terms, forward_weights,
            term_begin, term_end, touched, centroids, weights,
        )  # fmt: skip
        lowest[:n_centroids] = 0
        sizes[:n_centroids] = 0
        for i in range(length):
            assigned[i] = _nearest(
                list_rows[begin + i], head_ptr, head_terms, head_weights, term_begin, term_end, centroids, weights,
                lowest[:n_centroids], scores,
            )  # fmt: skip
            sizes[assigned[i]] += 1
        largest = 0
        for c in range(n_centroids):
            if sizes[c] > sizes[largest]:
                largest = c
        for c in range(n_centroids):
            if sizes[c] < min_block_size and c != largest:
                lowest[c] = -np.inf
        for i in range(length):
            if lowest[assigned[i]] < 0:
                assigned[i] = _nearest(
                    list_rows[begin + i], head_ptr, head_terms, head_weights, term_begin, term_end, centroids,
                    weights, lowest[:n_centroids], scores,
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


# --- summaries -----------------------------------------------------------------------------------


@kernel
def _maximum(rows, begin, end, forward_ptr, forward_terms, forward_weights, maximum, touched):
    """The coordinate-wise maximum of a block's documents; returns how many terms it has, in ``touched``."""
    n = np.uintp(0)
    for p in range(begin, end):
        row = rows[p]
        for f in range(forward_ptr[row], forward_ptr[row + 1]):
            term = forward_terms[f]
            touched[n] = term
            n += np.uintp(maximum[term] == 0)
            maximum[term] = max(maximum[term], half_to_float(forward_weights[f]))
    return np.intp(n)


@kernel
def _least_bits(maximum, touched, n, energy, masses):
    """Where a summary is cut: the weights that stay are those whose highest bits are at least these.

    They are the fewest that hold ``energy`` of the whole, where weights equal in those bits stay or go
    together. ``masses``: scratch, float64 zeros; left zero.
    """
    if energy >= 1:
        return 0
    bits = maximum.view(np.int32)
    total = 0.0
    highest = 0
    for i in range(n):
        bucket = bits[touched[i]] >> ENERGY_BITS
        masses[bucket] += maximum[touched[i]]
        total += maximum[touched[i]]
        highest = max(highest, bucket)
    reached = masses[highest]
    least = highest
    while reached < energy * total and least > 0:
        least -= 1
        reached += masses[least]
    for i in range(n):
        masses[bits[touched[i]] >> ENERGY_BITS] = 0
    return least


@kernel
def quantize(weights, codes):
    """8-bit codes of positive weights, rounded up; returns (minimum, step) as float32.

    minimum + step * code, in float32, is never below the weight, so that a summary bounds its
    members; it is above by less than about one step.
    """
    low = weights[0]
    high = weights[0]
    for i in range(len(weights)):
        low = min(low, weights[i])
        high = max(high, weights[i])
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
def _summarize_block(
    rows, begin, end, forward_ptr, forward_terms, forward_weights, energy, maximum, touched, masses, weights,
    raw_terms, raw_codes,
):  # fmt: skip
    """Write a block's summary, its terms as they are met; returns its number of terms, its minimum and its step."""
    n = _maximum(rows, begin, end, forward_ptr, forward_terms, forward_weights, maximum, touched)
    least = _least_bits(maximum, touched, n, energy, masses)
    bits = maximum.view(np.int32)
    kept = 0
    for i in range(n):
        if bits[touched[i]] >> ENERGY_BITS >= least:
            raw_terms[kept] = touched[i]
            weights[kept] = maximum[touched[i]]
            kept += 1
    for i in range(n):
        maximum[touched[i]] = 0
    low, step = quantize(weights[:kept], raw_codes[:kept])
    return kept, low, step


@kernel
def summarize_lists(
    first, last, block_ptr, block_start, block_rows, shortest, forward_ptr, forward_terms, forward_weights,
    vocabulary_size, energy, block_minimum, block_step, terms_per_list, raw_terms, raw_blocks, raw_codes,
    terms, further, blocks, codes,
):  # fmt: skip
    """Summaries of the blocks of lists ``first`` to ``last``, stored term by term ("transposed").

    A list of fewer than ``shortest`` rows has no summary.

    Args:
        block_minimum, block_step: written, from the first block of these lists on.
        terms_per_list: written, int64: the number of summary terms per list.
        raw_terms, raw_blocks, raw_codes: scratch, each with room for the terms of all documents of a list.
        terms, further, blocks, codes: written, with room for those of all lists: the terms, each term's number of
            entries less 1, and each entry's block (within its list) and code.

    Returns the numbers of terms and entries.
    """
    maximum = np.zeros(vocabulary_size, dtype=np.float32)
    touched = np.zeros(vocabulary_size + 1, dtype=np.int64)
    weights = np.zeros(vocabulary_size, dtype=np.float32)
    masses = np.zeros(2 ** (31 - ENERGY_BITS), dtype=np.float64)
    places = np.zeros(vocabulary_size, dtype=np.int64)
    first_block = block_ptr[first]
    n_terms = 0
    n_entries = 0
    for listed in range(first, last):
        begin, end = block_ptr[listed], block_ptr[listed + 1]
        if block_start[end] - block_start[begin] < shortest:
            continue
        n_raw = 0
        for block in range(begin, end):
            kept, low, step = _summarize_block(
                block_rows, block_start[block], block_start[block + 1], forward_ptr, forward_terms, forward_weights,
                energy, maximum, touched, masses, weights, raw_terms[n_raw:], raw_codes[n_raw:],
            )  # fmt: skip
            raw_blocks[n_raw : n_raw + kept] = block - begin
            block_minimum[block - first_block], block_step[block - first_block] = low, step
            n_raw += kept
        n_listed = 0
        for i in range(n_raw):
            if places[raw_terms[i]] == 0:
                touched[n_listed] = raw_terms[i]
                n_listed += 1
            places[raw_terms[i]] += 1
        list_terms = np.sort(touched[:n_listed])
        place = n_entries
        for i in range(n_listed):
            count = places[list_terms[i]]
            terms[n_terms + i] = list_terms[i]
            places[list_terms[i]] = place
            place += count
            further[n_terms + i] = count - 1
        for i in range(n_raw):
            at = places[raw_terms[i]]
            blocks[at] = raw_blocks[i]
            codes[at] = raw_codes[i]
            places[raw_terms[i]] += 1
        for i in range(n_listed):
            places[list_terms[i]] = 0
        terms_per_list[listed - first] = n_listed
        n_terms += n_listed
        n_entries += n_raw
    return n_terms, n_entries
