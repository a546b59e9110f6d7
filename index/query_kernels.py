"""Queries checked and copied in one compiled look at each entry."""

import numpy as np

from lsr.numba_support import kernel

MOST_WEIGHT = np.finfo(np.float32).max


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
            if terms[p] <= last or terms[p] >= vocabulary_size or not (0 < weights[p] <= MOST_WEIGHT):
                return False
            last = np.int64(terms[p])
            new_terms[p] = last
            new_weights[p] = weights[p]
            if new_weights[p] == 0:  # a float64 too small for float32
                return False
        new_indptr[row + 1] = stop
    return True
