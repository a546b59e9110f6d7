"""Settings that `lsr bench` runs: those that the libraries' authors publish, and a range around them.

Each entry is one index, with the settings it is searched with:
``{"build": options, "search": [knobs, …]}``. Options and knobs are those of the adapters in `lsr.eval.peers`; a JSON
file of the same form replaces them (``--sweep``).
"""

from collections.abc import Sequence
from typing import Any


def _each(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """One dict per combination of values."""
    combinations: list[dict[str, Any]] = [{}]
    for name, choices in values.items():
        combinations = [{**chosen, name: choice} for chosen in combinations for choice in choices]
    return combinations


# n_postings, centroid_fraction, energy and max_fraction of the best configurations published for 95 % and 99 %;
# query_cut and heap_factor of the guidelines and around.
_SEISMIC_SEARCH = [
    *({"query_cut": cut, "heap_factor": factor} for cut in (3, 4, 6) for factor in (1.0, 0.9)),
    *({"query_cut": cut, "heap_factor": factor} for cut in (10, 20) for factor in (1.0, 0.9, 0.8, 0.7)),
    {"query_cut": 10, "heap_factor": 0.8, "first_sorted": False},
    {"query_cut": 40, "heap_factor": 0.6},
]
_SINDI_PRUNED = [{"query_prune_ratio": ratio, "n_candidate": n} for ratio in (0.0, 0.2, 0.4) for n in (20, 50, 100)]
SWEEPS: dict[str, list[dict[str, Any]]] = {
    "lsr": [{"build": {}, "search": [
        {"exact": True}, *_each(recall=(0.9, 0.95, 0.99)),
        *_each(query_mass=(0.6, 0.7, 0.75, 0.8, 0.85, 0.9), candidates=(12, 15, 20, 30, 50))]}],
    "pyseismic-lsr": [
        {"build": {"n_postings": n, "centroid_fraction": 0.2, "summary_energy": energy, "max_fraction": 6.0},
         "search": _SEISMIC_SEARCH} for n, energy in ((2000, 0.5), (3000, 0.4))
    ],
    "pyvsag": [
        {"build": {"doc_prune_ratio": 0.0, "use_reorder": False, "use_quantization": False},
         "search": _each(n_candidate=(10,), query_prune_ratio=(0.0, 0.1, 0.2))},
        {"build": {"doc_prune_ratio": 0.0, "use_reorder": False, "use_quantization": True},
         "search": _each(n_candidate=(10,), query_prune_ratio=(0.0, 0.1, 0.2))},
        {"build": {"doc_prune_ratio": 0.0, "use_reorder": True, "use_quantization": True}, "search": _SINDI_PRUNED},
        {"build": {"doc_prune_ratio": 0.2, "use_reorder": True, "use_quantization": True}, "search": _SINDI_PRUNED},
        {"build": {"doc_prune_ratio": 0.4, "use_reorder": True, "use_quantization": True}, "search": _SINDI_PRUNED},
    ],
    "kannolo": [
        {"build": {"m": 32, "ef_construction": 200}, "search": _each(ef_search=(40, 80, 120, 200, 400, 800))},
    ],
    "bmp": [
        {"build": {"bsize": size, "compress_range": True}, "search": [{"alpha": 1.0, "beta": 1.0},
            {"alpha": 0.9, "beta": 1.0}, {"alpha": 0.8, "beta": 1.0}, {"alpha": 0.9, "beta": 0.8}]} for size in (8, 32)
    ],
    "splade-index": [{"build": {}, "search": [{}]}],
    "scipy": [{"build": {"layout": layout}, "search": [{}]} for layout in ("csc", "csr")],
}  # fmt: skip

#: The same for `lsr.eval.peers_text`: bm25s by its two backends and both of its ways to split a query.
TEXT_SWEEPS: dict[str, list[dict[str, Any]]] = {
    "lsr (inference-free)": [{"build": {}, "search": [{"exact": True}, {}]}],
    "lsr (BM25)": [{"build": {}, "search": [{"exact": True}, {}]}],
    "bm25s": [
        {"build": {"backend": backend, "stemmer": "english"}, "search": _each(tokenize=("function", "class"))}
        for backend in ("numba", "numpy")
    ],
}
