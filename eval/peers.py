"""Adapters: our index and its peers behind one interface, `lsr.eval.bench_worker.System`.

Only numpy is imported here, each library by its own adapter, so that this file also runs in an interpreter that
has a peer and not lsr. What an adapter's ``__init__`` does is translation to the library's types and is not timed;
``searcher`` returns the very call that a user of the library would make for one query, arguments at hand.
"""
# ruff: noqa: D102 - methods are documented at lsr.eval.bench_worker.System

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


CSR = ("indptr", "indices", "data")


class Vectors:
    """Documents and queries of the worker's folder, each a CSR's arrays of int64, int32 and float32."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text())
        self.n_documents, self.n_queries = facts["documents"], facts["queries"]
        self.vocabulary_size = facts["vocabulary_size"]
        self.queries = self._read(folder, "queries")
        self.documents = self._read(folder, "documents")
        self.sample = self._read(folder, "sample")

    @staticmethod
    def _read(folder: Path, name: str) -> tuple[Array, Array, Array]:
        indptr, indices, data = (np.load(folder / f"{name}_{part}.npy", allow_pickle=False) for part in CSR)
        return indptr, indices, data

    def each_query(self, terms: type = np.int32) -> list[tuple[Array, Array]]:
        """Terms and weights of every query."""
        indptr, indices, data = self.queries
        return [(indices[a:b].astype(terms), data[a:b].copy()) for a, b in itertools.pairwise(indptr.tolist())]

    def query_block(self, first: int, last: int) -> tuple[Array, Array, Array]:
        """CSR arrays of the queries first … last - 1."""
        indptr, indices, data = self.queries
        a, b = indptr[first], indptr[last]
        return indptr[first : last + 1] - a, indices[a:b].copy(), data[a:b].copy()


class _Base:
    """What most adapters share; see `lsr.eval.bench_worker.System`."""

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        self.vectors = Vectors(folder)
        self.folder, self.k, self.threads = folder, k, threads
        self.index: Any = None
        self.material: Any = None  # what the build is made from

    def compile(self, options: dict[str, Any]) -> None:
        return None

    def release(self) -> None:
        self.material = None
        del self.vectors.documents

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        return None

    def rows(self, result: Any) -> list[int]:
        return [int(row) for row in result if row >= 0]


class Lsr(_Base):
    """Our own index. Build options and knobs are whatever ``BuildOptions`` and ``Index.search`` take.

    The build option ``sample`` gives the planner queries that are not among those that are asked.
    """

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        self.material, self.queries, self.sample = (
            self._csr(part) for part in (self.vectors.documents, self.vectors.queries, self.vectors.sample)
        )
        self.singles = [self.queries[[i]] for i in range(self.vectors.n_queries)]

    def _csr(self, arrays: tuple[Array, Array, Array]) -> Any:
        from scipy.sparse import csr_array

        indptr, indices, data = arrays
        return csr_array((data, indices, indptr), shape=(len(indptr) - 1, self.vectors.vocabulary_size))

    def compile(self, options: dict[str, Any]) -> None:
        self._build(self.material[:100], options).search(self.queries[:2], 1, threads=1)

    def build(self, options: dict[str, Any]) -> None:
        self.index = self._build(self.material, options)

    def _build(self, documents: Any, options: dict[str, Any]) -> Any:
        import lsr

        options = dict(options)
        given = {"sample": self.sample} if options.pop("sample", False) else {}
        if given and self.sample.shape[0] == 0:
            raise ValueError("there are no queries beyond those that are asked to sample from: ask fewer")
        return lsr.Index.build(documents, options=lsr.BuildOptions(**options), threads=self.threads, **given)

    def save(self, path: Path) -> None:
        self.index.save(path / "lsr.index")

    def open(self, path: Path, options: dict[str, Any]) -> None:
        import lsr

        self.index = lsr.Index.open(path / "lsr.index")

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        search, singles, k = self.index.search, self.singles, self.k
        return lambda i: search(singles[i], k, threads=1, **knobs)

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        queries = self.queries[first:last]
        return lambda: self.index.search(queries, self.k, threads=threads, **knobs)

    def rows(self, result: Any) -> list[int]:
        return [int(row) for row in result.rows[0, : result.counts[0]]]


class Seismic(_Base):
    """pyseismic-lsr: the Rust implementation of Seismic's authors, through its index over integer terms.

    Options: those of ``SeismicIndexRaw.build``; ``compressed`` takes ``SeismicIndexDotVByte`` instead, whose queries
    are strings. Knobs: query_cut, heap_factor, first_sorted (its ``sorted``), n_knn.
    """

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        self.material = folder / f"seismic-{os.getpid()}.bin"
        write_seismic(self.material, *self.vectors.documents)
        self.queries = self.vectors.each_query()
        self.compressed = False

    def build(self, options: dict[str, Any]) -> None:
        import seismic

        options = dict(options)
        self.compressed = options.pop("compressed", False)
        if not self.compressed:
            self.index = seismic.SeismicIndexRaw.build(str(self.material), **options)
            return
        indptr, indices, data = self.vectors.documents
        documents = seismic.SeismicDataset(dim=self.vectors.vocabulary_size)
        names = [str(row) for row in range(self.vectors.n_documents)]
        documents.add_documents_by_id(names, indices.astype(np.int64), data, indptr)
        self.index = seismic.SeismicIndexDotVByte.build_from_dataset(documents, num_threads=self.threads, **options)
        tokens = np.array([str(t) for t in range(self.vectors.vocabulary_size)], dtype=seismic.get_seismic_string())
        self.queries = [(tokens[terms], weights) for terms, weights in self.queries]

    def release(self) -> None:
        self.material.unlink()
        super().release()

    def save(self, path: Path) -> None:
        self.index.save(str(path / "seismic"))

    def open(self, path: Path, options: dict[str, Any]) -> None:
        (file,) = path.iterdir()  # some of its classes add a suffix to the name
        self.index = type(self.index).load(str(file))

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        search, queries, k = self.index.search, self.queries, self.k
        cut, factor, n_knn = knobs["query_cut"], knobs["heap_factor"], knobs.get("n_knn", 0)
        first_sorted = knobs.get("first_sorted", True)
        if self.compressed:
            return lambda i: search("q", *queries[i], k, cut, factor, n_knn, first_sorted)
        return lambda i: search(*queries[i], k, cut, factor, n_knn, first_sorted)

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        if self.compressed:
            return None
        path = self.folder / f"seismic-queries-{first}-{last}.bin"
        if not path.exists():
            write_seismic(path, *self.vectors.query_block(first, last))
        arguments = (knobs["query_cut"], knobs["heap_factor"], knobs.get("n_knn", 0), knobs.get("first_sorted", True))
        return lambda: self.index.batch_search(str(path), self.k, *arguments, num_threads=threads)

    def rows(self, result: Any) -> list[int]:
        return [int(hit[-1]) for hit in result]


def write_seismic(path: Path, indptr: Array, indices: Array, data: Array) -> None:
    """Seismic's binary format: u32 count, then of each vector u32 length, u32 terms, f32 weights."""
    n = len(indptr) - 1
    words = np.empty(1 + n + 2 * len(indices), dtype="<u4")
    words[0] = n
    lengths = np.diff(indptr)
    starts = 1 + np.arange(n) + 2 * indptr[:-1]
    words[starts] = lengths
    within = np.arange(len(indices)) - np.repeat(indptr[:-1], lengths)
    places = np.repeat(starts + 1, lengths) + within
    words[places] = indices
    words[places + np.repeat(lengths, lengths)] = data.astype("<f4").view("<u4")
    words.tofile(path)


class Sindi(_Base):
    """pyvsag's SINDI (C++). Options: SINDI's ``index_param``. Knobs: its search parameters."""

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        indptr, indices, data = self.vectors.documents
        self.material = (indptr.astype(np.uint32), indices.astype(np.uint32), data, np.arange(len(indptr) - 1))
        self.queries = [
            (np.array([0, len(terms)], dtype=np.uint32), terms, weights)
            for terms, weights in self.vectors.each_query(np.uint32)
        ]
        lengths = [np.diff(vectors[0]).max(initial=1) for vectors in (self.vectors.documents, self.vectors.queries)]
        self.longest = int(max(lengths))  # what SINDI calls the dimension

    def _empty(self, options: dict[str, Any]) -> Any:
        import pyvsag

        pyvsag.set_logger_off()
        fields = {"term_id_limit": self.vectors.vocabulary_size, "window_size": 50_000, **options}
        parameters = {"dtype": "sparse", "metric_type": "ip", "dim": self.longest, "index_param": fields}
        return pyvsag.Index("sindi", json.dumps(parameters))

    def build(self, options: dict[str, Any]) -> None:
        self.index = self._empty(options)
        self.index.build(*self.material)

    def save(self, path: Path) -> None:
        self.index.save(str(path / "sindi"))

    def open(self, path: Path, options: dict[str, Any]) -> None:
        self.index = self._empty(options)
        self.index.load(str(path / "sindi"))

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        search, queries, k, parameters = self.index.knn_search, self.queries, self.k, _sindi(knobs)
        return lambda i: search(*queries[i], k, parameters)

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        if threads > 1:
            return None
        indptr, indices, data = self.vectors.query_block(first, last)
        queries = (indptr.astype(np.uint32), indices.astype(np.uint32), data)
        parameters = _sindi(knobs)
        return lambda: self.index.knn_search(*queries, self.k, parameters)

    def rows(self, result: Any) -> list[int]:
        return [int(row) for row in result[0][0] if 0 <= row < self.vectors.n_documents]


def _sindi(knobs: dict[str, Any]) -> str:
    # term_prune_ratio stays 0: it cuts lists in the order of documents, not of weights.
    return json.dumps({"sindi": {"query_prune_ratio": 0.0, "n_candidate": 50, "term_prune_ratio": 0.0, **knobs}})


class Kannolo(_Base):
    """kannolo: HNSW over sparse vectors (Rust). Options: m, ef_construction, kind. Knobs: ef_search, …"""

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        self.queries = self.vectors.each_query()

    def build(self, options: dict[str, Any]) -> None:
        import kannolo

        indptr, indices, data = self.vectors.documents
        options = dict(options)
        kind = getattr(kannolo, options.pop("kind", "SparsePlainHNSW"))
        self.index = kind.build_from_arrays(indices, data, indptr, **options)

    def save(self, path: Path) -> None:
        self.index.save(str(path / "kannolo"))

    def open(self, path: Path, options: dict[str, Any]) -> None:
        self.index = type(self.index).load(str(path / "kannolo"))

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        search, queries, k = self.index.search, self.queries, self.k
        return lambda i: search(*queries[i], k=k, **knobs)

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        indptr, indices, data = self.vectors.query_block(first, last)
        queries = (indices, data, indptr)
        return lambda: self.index.batch_search(*queries, k=self.k, num_threads=threads, **knobs)

    def rows(self, result: Any) -> list[int]:
        return [int(row) for row in result[1] if 0 <= row < self.vectors.n_documents]


class Bmp(_Base):
    """bmp: block-max pruning (Rust). Options: bsize, compress_range. Knobs: alpha, beta.

    It takes document weights of 8 bits and query weights of up to 32, and rounds larger query weights up. Rounding to
    the nearest of 1 … 32 here loses less, but that quantization, not the search, is why alpha = beta = 1 is not exact.
    """

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        names = [str(term) for term in range(self.vectors.vocabulary_size)]
        self.names = names
        self.queries = [
            {names[t]: int(w) for t, w in zip(terms, _levels(weights, 32), strict=True)}
            for terms, weights in self.vectors.each_query()
        ]

    def build(self, options: dict[str, Any]) -> None:
        import bmp

        # The library builds into a file: what is timed holds the writing.
        self.path = str(self.folder / f"bmp-{os.getpid()}")
        indptr, indices, data = self.vectors.documents
        levels, names = _levels(data, 255).tolist(), self.names
        indexer = bmp.Indexer(self.path, **options)
        for row in range(self.vectors.n_documents):
            a, b = indptr[row], indptr[row + 1]
            vector = {names[t]: w for t, w in zip(indices[a:b].tolist(), levels[a:b], strict=True)}
            indexer.add_document(str(row), vector)
        indexer.finish()

    def save(self, path: Path) -> None:
        os.replace(self.path, path / "bmp")

    def open(self, path: Path, options: dict[str, Any]) -> None:
        import bmp

        self.index = bmp.Searcher(str(path / "bmp"))

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        search, queries, k, alpha, beta = self.index.search, self.queries, self.k, knobs["alpha"], knobs["beta"]
        return lambda i: search(queries[i], k, alpha, beta)

    def rows(self, result: Any) -> list[int]:
        return [int(name) for name in result[0]]


def _levels(weights: Array, most: int) -> Array:
    """Weights as integers from 1 to ``most``."""
    return np.maximum(1, np.round(weights * (most / max(float(weights.max(initial=0)), 1e-9)))).astype(np.int64)


class SpladeIndex(_Base):
    """splade-index, Numba backend. Its ``index`` takes a model and texts, so the arrays that it would make are made
    here, and its own Numba retrieval is called: the text-to-vector part of its ``retrieve`` is left out.
    """

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        from splade_index.numba.retrieve_utils import _retrieve_numba_functional as retrieve

        self.retrieve = retrieve
        self.queries = [([terms], [weights]) for terms, weights in self.vectors.each_query()]

    def build(self, options: dict[str, Any]) -> None:
        from scipy.sparse import csr_array

        _none_of(options)
        indptr, indices, data = self.vectors.documents
        shape = (self.vectors.n_documents, self.vectors.vocabulary_size)
        by_term = csr_array((data, indices, indptr), shape=shape).tocsc()
        self.index = {
            "data": by_term.data,
            "indices": by_term.indices.astype(np.int32),
            "indptr": by_term.indptr.astype(np.int32),
            "num_docs": shape[0],
        }

    def save(self, path: Path) -> None:
        for part in CSR:
            np.save(path / f"{part}.npy", self.index[part], allow_pickle=False)

    def open(self, path: Path, options: dict[str, Any]) -> None:
        arrays = {part: np.load(path / f"{part}.npy", allow_pickle=False) for part in CSR}
        self.index = {**arrays, "num_docs": self.index["num_docs"]}

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        _none_of(knobs)
        retrieve, queries, index, k = self.retrieve, self.queries, self.index, self.k
        return lambda i: retrieve(*queries[i], index, k=k, n_threads=1)

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        terms = [query[0][0] for query in self.queries[first:last]]
        weights = [query[1][0] for query in self.queries[first:last]]
        return lambda: self.retrieve(terms, weights, self.index, k=self.k, n_threads=threads)

    def rows(self, result: Any) -> list[int]:
        return [int(row) for row, score in zip(result[0][0], result[1][0], strict=True) if score > 0]


class Scipy(_Base):
    """scipy: one product with the documents' matrix. Options: layout, "csc" (the query's columns) or "csr" (all)."""

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        self.queries = self.vectors.each_query()

    def build(self, options: dict[str, Any]) -> None:
        from scipy.sparse import csr_array

        indptr, indices, data = self.vectors.documents
        shape = (self.vectors.n_documents, self.vectors.vocabulary_size)
        matrix = csr_array((data, indices, indptr), shape=shape)
        self.by_column = {"csc": True, "csr": False}[options["layout"]]
        _none_of({name: value for name, value in options.items() if name != "layout"})
        self.index = matrix.tocsc() if self.by_column else matrix

    def save(self, path: Path) -> None:
        for part in CSR:
            np.save(path / f"{part}.npy", getattr(self.index, part), allow_pickle=False)

    def open(self, path: Path, options: dict[str, Any]) -> None:
        arrays = [np.load(path / f"{part}.npy", allow_pickle=False) for part in reversed(CSR)]
        self.index = type(self.index)(tuple(arrays), shape=self.index.shape)

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        _none_of(knobs)
        index, queries, k = self.index, self.queries, min(self.k, self.vectors.n_documents)

        def by_column(i: int) -> Array:
            terms, weights = queries[i]
            return _best(index[:, terms] @ weights, k)

        def whole(i: int) -> Array:
            terms, weights = queries[i]
            query = np.zeros(index.shape[1], dtype=np.float32)
            query[terms] = weights
            return _best(index @ query, k)

        return by_column if self.by_column else whole


def _none_of(options: dict[str, Any]) -> None:
    """Refuse what would be ignored without a word."""
    if options:
        raise TypeError(f"no such option here: {', '.join(options)}")


def _best(scores: Array, k: int) -> Array:
    top = np.argpartition(scores, len(scores) - k)[-k:]
    top = top[np.argsort(-scores[top], kind="stable")]
    return top[scores[top] > 0]


#: name in reports → adapter, and the distribution that has to be installed.
SYSTEMS: dict[str, Any] = {
    "lsr": Lsr,
    "pyseismic-lsr": Seismic,
    "pyvsag": Sindi,
    "kannolo": Kannolo,
    "bmp": Bmp,
    "splade-index": SpladeIndex,
    "scipy": Scipy,
}
