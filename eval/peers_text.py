"""Adapters of the benchmark from text to hits: inference-free queries and BM25 of ours, and bm25s.

As `lsr.eval.peers`, of the same interface; what is timed starts at a query's text and ends at rows and scores.
"""
# ruff: noqa: D102 - methods are documented at lsr.eval.bench_worker.System

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class _Base:
    def __init__(self, folder: Path, k: int, threads: int) -> None:
        self.folder, self.k, self.threads = folder, k, threads
        self.queries: list[str] = json.loads((folder / "queries.json").read_text())
        self.material: Any = None
        self.index: Any = None

    def compile(self, options: dict[str, Any]) -> None:
        return None

    def release(self) -> None:
        self.material = None

    def read_texts(self) -> list[str]:
        texts: list[str] = json.loads((self.folder / "texts.json").read_text())
        return texts


class _Lsr(_Base):
    side: Any

    def save(self, path: Path) -> None:
        self.index.save(path / "lsr.index")

    def open(self, path: Path, options: dict[str, Any]) -> None:
        import lsr

        self.index = lsr.Index.open(path / "lsr.index")

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        search, queries, k = self._retriever().search_many, self.queries, self.k
        return lambda i: search([queries[i]], k, threads=1, **knobs)

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        search, queries, k = self._retriever().search_many, self.queries[first:last], self.k
        return lambda: search(queries, k, threads=threads, **knobs)

    def _retriever(self) -> Any:
        """The index with its query side; titles and texts, which search_many does not read, are left out."""
        import lsr
        from lsr.index.ids import StringTable

        nothing = StringTable.of([])
        return lsr.Retriever(self.index, nothing, nothing, lambda: self.side)

    def rows(self, result: Any) -> list[int]:
        return [int(row) for row in result.rows[0, : result.counts[0]]]


class InferenceFree(_Lsr):
    """A tokenizer and an IDF table for queries; the documents' vectors were encoded beforehand."""

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        from scipy.sparse import csr_array

        from lsr.pretrained import load_side, read_encoder_file

        self.side = load_side(folder / "encoder", read_encoder_file(folder / "encoder"), "queries")
        data, indices, indptr = (np.load(folder / f"documents_{part}.npy") for part in ("data", "indices", "indptr"))
        self.material = csr_array((data, indices, indptr), shape=(len(indptr) - 1, self.side.vocabulary_size))

    def compile(self, options: dict[str, Any]) -> None:
        import lsr

        some = lsr.Index.build(self.material[:100], options=lsr.BuildOptions(**options), threads=self.threads)
        some.search(self.material[:1], 1, threads=1)

    def build(self, options: dict[str, Any]) -> None:
        import lsr

        self.index = lsr.Index.build(self.material, options=lsr.BuildOptions(**options), threads=self.threads)


class LsrBm25(_Lsr):
    """Our BM25: the build starts at the texts."""

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        self.material = self.read_texts()

    def compile(self, options: dict[str, Any]) -> None:
        self._build(self.material[:200], options)

    def build(self, options: dict[str, Any]) -> None:
        self._build(self.material, options)

    def _build(self, texts: list[str], options: dict[str, Any]) -> None:
        import lsr

        encoder = lsr.Bm25().fit(texts)
        vectors = encoder.documents.encode(texts).vectors
        self.side = encoder.queries
        self.index = lsr.Index.build(vectors, options=lsr.BuildOptions(**options), threads=self.threads)


class Bm25s(_Base):
    """bm25s. Options: backend ("numba" or "numpy", its default), stemmer (a Snowball language, or null).

    Knobs: tokenize, "function" (``bm25s.tokenize``) or "class" (``Tokenizer``, with the corpus's vocabulary).
    """

    def __init__(self, folder: Path, k: int, threads: int) -> None:
        super().__init__(folder, k, threads)
        self.material = self.read_texts()
        self.stemmer: Any = None

    def compile(self, options: dict[str, Any]) -> None:
        self._build(self.material[:200], options)
        self._searcher("function")(self.queries[:1])

    def build(self, options: dict[str, Any]) -> None:
        self._build(self.material, options)

    def _build(self, texts: list[str], options: dict[str, Any]) -> None:
        import bm25s
        import Stemmer
        from bm25s.tokenization import Tokenizer

        self.stemmer = Stemmer.Stemmer(options["stemmer"]) if options["stemmer"] else None
        self.tokenizer = Tokenizer(stemmer=self.stemmer)
        tokens = self.tokenizer.tokenize(texts, return_as="tuple", show_progress=False)
        self.index = bm25s.BM25(backend=options["backend"])
        self.index.index(tokens, show_progress=False)

    def save(self, path: Path) -> None:
        self.index.save(str(path / "bm25s"), show_progress=False)

    def open(self, path: Path, options: dict[str, Any]) -> None:
        import bm25s

        self.index = bm25s.BM25.load(
            str(path / "bm25s"), show_progress=False, override_params={"backend": options["backend"]}
        )

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        search, queries = self._searcher(knobs["tokenize"]), self.queries
        return lambda i: search([queries[i]])

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        if threads > 1:
            return None
        search, queries = self._searcher(knobs["tokenize"]), self.queries[first:last]
        return lambda: search(queries)

    def _searcher(self, tokenize: str) -> Callable[[list[str]], Any]:
        import bm25s

        retrieve, k, stemmer, tokenizer = self.index.retrieve, self.k, self.stemmer, self.tokenizer
        if tokenize == "function":
            return lambda texts: retrieve(
                bm25s.tokenize(texts, stemmer=stemmer, show_progress=False), k=k, show_progress=False
            )
        return lambda texts: retrieve(
            tokenizer.tokenize(texts, update_vocab=False, show_progress=False), k=k, show_progress=False
        )

    def rows(self, result: Any) -> list[int]:
        return [int(row) for row, score in zip(result[0][0], result[1][0], strict=True) if score > 0]


SYSTEMS: dict[str, Any] = {"lsr (inference-free)": InferenceFree, "lsr (BM25)": LsrBm25, "bm25s": Bm25s}
