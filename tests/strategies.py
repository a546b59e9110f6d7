"""Hypothesis strategies: small sparse matrices with ties, empty rows, duplicates, one term."""

import numpy as np
from hypothesis import strategies as st
from scipy.sparse import csr_array

#: Few distinct weights make ties; arbitrary ones find rounding.
TIED = st.sampled_from([0.5, 1.0, 1.5, 3.0])
ANY = st.floats(min_value=2.0**-10, max_value=2.0**10, width=32)


@st.composite
def sparse_matrices(draw, max_rows: int = 14, n_terms: int | None = None, max_terms: int = 10) -> csr_array:
    """CSR float32 of at least one row, rows possibly empty or repeated."""
    width = n_terms or draw(st.integers(1, max_terms))
    weights = draw(st.sampled_from([TIED, ANY]))
    row = st.dictionaries(st.integers(0, width - 1), weights, max_size=width)
    rows = draw(st.lists(row, min_size=1, max_size=max_rows))
    if draw(st.booleans()):
        rows += rows[: draw(st.integers(0, len(rows)))]
    array = np.zeros((len(rows), width), dtype=np.float32)
    for i, entries in enumerate(rows):
        for term, weight in entries.items():
            array[i, term] = weight
    return csr_array(array)


@st.composite
def collections(draw) -> tuple[csr_array, csr_array]:
    """Documents and queries over one vocabulary; queries may hold terms that no document has."""
    documents = draw(sparse_matrices())
    return documents, draw(sparse_matrices(max_rows=3, n_terms=documents.shape[1]))
