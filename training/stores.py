"""Vectors of a table's texts on disk, in half precision: a text is encoded when it is first needed, once.

One process writes to a store at a time; any number may read what is there.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.encoder import TextEncoder
from lsr.errors import InputError
from lsr.training.texts import TextTable, cached

#: Texts encoded between two writes to disk.
SHARD = 512


class DenseStore:
    """Half-precision vectors (n, dimension) of a table's texts on disk, encoded when they are first needed.

    Args:
        cache: folder that holds the store under a name made of ``identity`` and the table.
        identity: equal for encoders that give equal vectors.
        encode: texts to float32 vectors (b, dimension).
    """

    def __init__(
        self,
        cache: Path,
        identity: str,
        texts: TextTable,
        dimension: int,
        encode: Callable[[list[str]], NDArray[np.float32]],
    ) -> None:
        self.identity = identity
        self._texts = texts
        self._encode = encode
        shape = (len(texts), dimension)

        def create(folder: Path) -> None:
            np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float16, shape=shape)
            np.lib.format.open_memmap(folder / "done.npy", mode="w+", dtype=np.bool_, shape=shape[:1])

        folder = cached(cache, {"dense": identity, "texts": texts.folder.name, "dimension": dimension}, create)
        self._vectors = np.load(folder / "vectors.npy", mmap_mode="r+", allow_pickle=False)
        self._done = np.load(folder / "done.npy", mmap_mode="r+", allow_pickle=False)

    def encode(self, rows: NDArray[Any], label: str | None) -> None:
        """Encode those of the rows that were not, shard by shard; with a label, under a progress bar."""
        for shard in _shards(rows[~self._done[rows]], label):
            vectors = self._encode([self._texts.text(int(row)) for row in shard])
            with np.errstate(over="ignore"):  # said below
                half = vectors.astype(np.float16)
            if not np.isfinite(half).all():
                raise InputError(
                    f"the dense teacher's vectors of {self._texts.name} do not fit into half precision: normalize them"
                )
            self._vectors[shard] = half
            self._vectors.flush()
            self._done[shard] = True
            self._done.flush()

    def vector(self, row: int) -> NDArray[np.float32]:
        """The vector of a row, float32 (dimension,)."""
        vector: NDArray[np.float32] = self._vectors[row].astype(np.float32)
        return vector

    def matrix(self, rows: NDArray[Any] | slice = slice(None)) -> NDArray[np.float32]:
        """The vectors of rows, all by default: float32 (rows, dimension)."""
        vectors: NDArray[np.float32] = self._vectors[rows].astype(np.float32)
        return vectors

    def dot(self, rows: NDArray[Any], query: Any) -> NDArray[np.float32]:
        """Dot products of rows with a vector as `vector` gives it, float32 (len(rows),)."""
        scores: NDArray[np.float32] = self.matrix(rows) @ query
        return scores


class SparseStore:
    """Half-precision sparse vectors of a table's texts on disk, encoded when they are first needed.

    New vectors are appended to two flat files, terms and weights; a row's place is noted once its vector
    is there, and what an interrupted call appended without noting is cut off by the next one.

    Args:
        cache: folder that holds the store.
        side: of an encoder.
        texts: the table whose texts are encoded.
    """

    def __init__(self, cache: Path, side: TextEncoder, texts: TextTable) -> None:
        self.identity = f"{side.fingerprint} {side.max_length}"
        self._side = side
        self._texts = texts
        key = {"sparse": self.identity, "texts": texts.folder.name}
        self._folder = cached(cache, key, lambda folder: _create_sparse(folder, len(texts)))
        self._starts = np.load(self._folder / "starts.npy", mmap_mode="r+", allow_pickle=False)
        self._counts = np.load(self._folder / "counts.npy", mmap_mode="r+", allow_pickle=False)
        self._types = {
            "terms": np.dtype(np.uint16 if side.vocabulary_size <= 1 << 16 else np.int32),
            "weights": np.dtype(np.float16),
        }
        self._scratch = np.zeros(side.vocabulary_size, dtype=np.float32)
        self._map()

    def _map(self) -> None:
        """Map the files up to the last vector that was noted."""
        there = self._counts >= 0
        self._end = int((self._starts[there] + self._counts[there]).max(initial=0))
        empty = {name: np.empty(0, dtype) for name, dtype in self._types.items()}
        arrays = {
            name: np.memmap(self._folder / f"{name}.bin", dtype, "r", shape=(self._end,)) if self._end else empty[name]
            for name, dtype in self._types.items()
        }
        self._terms, self._weights = arrays["terms"], arrays["weights"]

    def encode(self, rows: NDArray[Any], label: str | None) -> None:
        """Encode those of the rows that were not, shard by shard; with a label, under a progress bar."""
        missing = rows[self._counts[rows] < 0]
        for shard in _shards(missing, label):
            vectors: csr_array = self._side.encode([self._texts.text(int(row)) for row in shard]).vectors
            for name, values in (("terms", vectors.indices), ("weights", vectors.data)):
                dtype = self._types[name]
                with (self._folder / f"{name}.bin").open("r+b") as file:
                    file.truncate(self._end * dtype.itemsize)
                    file.seek(0, os.SEEK_END)
                    file.write(values.astype(dtype).tobytes())
                    file.flush()
                    os.fsync(file.fileno())
            self._starts[shard] = self._end + vectors.indptr[:-1]
            self._starts.flush()
            self._counts[shard] = np.diff(vectors.indptr)
            self._counts.flush()
            self._end += int(vectors.nnz)
        if len(missing):
            self._map()

    def vector(self, row: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Terms and float32 weights of a row."""
        part = slice(self._starts[row], self._starts[row] + self._counts[row])
        return self._terms[part], self._weights[part].astype(np.float32)

    def matrix(self) -> csr_array:
        """The vectors of all texts, float32 (n, vocabulary_size), in memory; all of them have to be encoded."""
        vectors = [self.vector(row) for row in range(len(self._texts))]
        terms, weights = (np.concatenate(part) for part in zip(*vectors, strict=True))
        indptr = np.concatenate([[0], np.cumsum(self._counts)])
        return csr_array((weights, terms.astype(np.int32), indptr), shape=(len(vectors), self._side.vocabulary_size))

    def dot(self, rows: NDArray[Any], query: Any) -> NDArray[np.float32]:
        """Dot products of rows with a vector as `vector` gives it, float32 (len(rows),)."""
        terms, weights = query
        self._scratch[terms] = weights
        scores = np.array([self._scratch[t] @ w for t, w in map(self.vector, rows)], dtype=np.float32)
        self._scratch[terms] = 0
        return scores


def _create_sparse(folder: Path, n: int) -> None:
    np.lib.format.open_memmap(folder / "starts.npy", mode="w+", dtype=np.int64, shape=(n,))
    np.lib.format.open_memmap(folder / "counts.npy", mode="w+", dtype=np.int32, shape=(n,))[:] = -1
    for name in ("terms.bin", "weights.bin"):
        (folder / name).touch()


def _shards(rows: NDArray[Any], label: str | None) -> Iterator[NDArray[Any]]:
    with tqdm(total=len(rows), desc=label, unit=" texts", disable=None if label else True) as bar:
        for start in range(0, len(rows), SHARD):
            shard = rows[start : start + SHARD]
            yield shard
            bar.update(len(shard))
