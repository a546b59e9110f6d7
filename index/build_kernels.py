"""Compiled code that turns documents into inverted lists. A family of its own, which calls nothing of
`kernels` or `block_kernels` (a cached kernel keeps using a stale helper of another file).

The postings are sorted by counting: a first pass counts each term's postings in each range of rows, so
that in the second every range knows where its postings go, and the ranges are filled side by side.
"""

import numpy as np

from lsr.numba_support import half_to_float, kernel


@kernel
def exact_halves(weights, halves):
    """Write float32 weights as float16 bits; False, at the first weight that float16 does not have.

    The float32 of 2^-112 times the weight has its exponent and mantissa where float16 has them.
    """
    for i in range(len(weights)):
        bits = np.float32(weights[i] * np.float32(2.0**-112)).view(np.uint32)
        halves[i] = bits >> np.uint32(13)
        if bits >= np.uint32(0x7C00 << 13) or half_to_float(halves[i]) != weights[i]:
            return False
    return True


@kernel
def count_terms(first, last, ptr, terms, weights, counts, largest):
    """Count the postings of rows ``first`` to ``last`` by term; note each term's largest weight."""
    for p in range(ptr[first], ptr[last]):
        term = terms[p]
        counts[term] += 1
        largest[term] = max(largest[term], half_to_float(weights[p]))


@kernel
def count_bits(first, last, weights, upper, counts):
    """Count weights ``first`` to ``last`` by the upper 16 bits of their float32; where ``upper`` is not below 0, those
    that have these by the lower 16. Positive floats are ordered as their bits are.
    """
    for p in range(first, last):
        bits = np.int64(np.float32(half_to_float(weights[p])).view(np.uint32))
        if upper < 0:
            counts[bits >> 16] += 1
        elif bits >> 16 == upper:
            counts[bits & 0xFFFF] += 1


@kernel
def count_kept(first, last, ptr, terms, weights, list_of, threshold, above, equal, beside):
    """Count, of each list, the postings of rows ``first`` to ``last`` above the threshold and at it.

    ``beside`` adds up the terms of the documents that these belong to.
    """
    for row in range(first, last):
        for p in range(ptr[row], ptr[row + 1]):
            weight = half_to_float(weights[p])
            if weight < threshold:
                continue
            listed = list_of[terms[p]]
            if weight > threshold:
                above[listed] += 1
            else:
                equal[listed] += 1
            beside[listed] += ptr[row + 1] - ptr[row]


@kernel
def fill_kept(first, last, ptr, terms, weights, list_of, threshold, ties, cursor, kept_rows, kept_weights):
    """Write the postings of rows ``first`` to ``last`` above the threshold by list, and of each list ``ties`` at it.

    ``list_of`` is below 0 for terms whose lists are not written now; ``cursor`` says where these rows' postings go;
    ``ties`` is used up.
    """
    for row in range(first, last):
        for p in range(ptr[row], ptr[row + 1]):
            weight = half_to_float(weights[p])
            listed = list_of[terms[p]]
            if listed < 0 or weight < threshold:
                continue
            if weight == threshold:
                if ties[listed] == 0:
                    continue
                ties[listed] -= 1
            at = cursor[listed]
            cursor[listed] = at + 1
            kept_rows[at] = row
            kept_weights[at] = weight


@kernel
def fill_lists(
    first, last, ptr, terms, weights, list_of, cursor,
    step, kind, place, dense_codes, window_ptr, window_rows, window_codes, short_rows, short_codes,
):  # fmt: skip
    """Write the postings of rows ``first`` to ``last`` in 8 bits to their lists (`lsr.index.segment.Lists`).

    ``list_of`` is below 0 for terms whose lists are not written now. ``cursor`` says where these rows'
    postings of a windowed or short list go. A code is the smallest with step * code not below the weight
    (a product exact in float64), 1 to 255; the division may miss it by one.
    """
    for row in range(first, last):
        if row & 65535 == 0:  # a window begins: where it does so in its lists
            for listed in range(len(kind)):
                if kind[listed] == 1:
                    window_ptr[place[listed] + (row >> 16)] = cursor[listed]
        for p in range(ptr[row], ptr[row + 1]):
            listed = np.intp(list_of[terms[p]])
            if listed < 0:
                continue
            weight = np.float64(half_to_float(weights[p]))
            unit = np.float64(step[listed])
            code = np.intp(weight / unit)
            if code * unit < weight:
                code += 1
            if kind[listed] == 2:
                dense_codes[place[listed] + row] = code
                continue
            at = cursor[listed]
            cursor[listed] = at + 1
            if kind[listed] == 1:
                window_rows[at] = row & 65535
                window_codes[at] = code
            else:
                short_rows[at] = row
                short_codes[at] = code
