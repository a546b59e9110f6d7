"""Encoders: a document side and a query side over one vocabulary (the unified framework).

A method of learned sparse retrieval is a choice of two `TextEncoder`s (Nguyen, MacAvaney and Yates,
ECIR 2023, arXiv 2303.13416): MLM on both sides is SPLADE, a table of IDF weights on the query side
is inference-free, term statistics on both are BM25.
"""

import hashlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.errors import InputError, LsrWarning, MismatchError
from lsr.files import new_folder
from lsr.records import Document, Query
from lsr.vectors import SparseRows, SparseVectors

ENCODER_FILE = "lsr_encoder.json"
FORMAT_VERSION = 1
DTYPES = ("float32", "float16", "bfloat16")
STORED_DTYPES = (*DTYPES, "int8")

#: Of its weight in a query table, what a term keeps at least when the table is adjusted: it stays in the vectors.
KEPT_SHARE = 0.01

#: Told how many texts were finished: a progress bar's ``update``.
Advance: TypeAlias = Callable[[int], object]


class Encoded(NamedTuple):
    """Vectors of shape (n, vocabulary), and how many of the n texts were cut to fit."""

    vectors: csr_array
    truncated: int


class EncodedRows(NamedTuple):
    """The same of a light side: rows that scipy had no part in."""

    vectors: SparseRows
    truncated: int


class TextEncoder(ABC):
    """One side of an encoder: texts in, sparse vectors out, up to rounding the same whatever the batch.

    Attributes:
        kind: the name under which the side is saved.
        light: whether queries need no transformer, so that an index can carry the side itself.
        vocabulary_size: columns of the vectors.
        max_length: tokens kept of a text, None for all.
        adapts: whether queries have other weights in another collection, see `in_collection`.
    """

    kind: ClassVar[str]
    light: ClassVar[bool]
    vocabulary_size: int
    max_length: int | None
    adapts: bool = False

    @abstractmethod
    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> Encoded:
        """Encode texts to float32 vectors of shape (len(texts), vocabulary_size).

        ``advance`` is called with the number of texts finished since it was last called.
        """

    @abstractmethod
    def term(self, term_id: int) -> str:
        """The term of a column, for people to read."""

    def term_in(self, text: str, term_id: int) -> str:
        """The same of a column in which ``text`` has a weight: hashed stems are known by their text alone."""
        return self.term(term_id)

    def in_collection(self, frequency: NDArray[np.int64], n_documents: int) -> "TextEncoder":
        """The query side for a collection, told how many documents have each column: shape (vocabulary_size,)."""
        return self

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for two sides that give equal vectors, lengths of cutting aside."""

    @property
    @abstractmethod
    def vocabulary_hash(self) -> str:
        """Equal for two sides whose columns mean the same terms."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What ``lsr_encoder.json`` keeps of the side, beside its files."""

    @abstractmethod
    def save_files(self, folder: Path, *, dtype: str = "float32") -> None:
        """Write the side's files into an existing folder."""


class LightSide(TextEncoder):
    """A side that needs no transformer. Its queries are rows of plain arrays, scipy's constructor would cost more."""

    light = True

    @abstractmethod
    def encode_rows(self, texts: Sequence[str], advance: Advance | None = None) -> EncodedRows:
        """As `encode`, which wraps it."""

    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> Encoded:  # noqa: D102
        rows, truncated = self.encode_rows(texts, advance)
        return Encoded(rows.to_csr(), truncated)

    @property
    def table(self) -> NDArray[np.float32]:
        """What a term weighs that stands in a text once: float32 of shape (vocabulary_size,).

        Raises:
            InputError: that depends on the text.
        """
        raise InputError(f"{self.kind} has no table of weights: only look-up and BM25 queries can be tuned")

    def adjusted(self, changes: NDArray[Any]) -> "LightSide":
        """The side with ``changes``, of shape (vocabulary_size,), added to its `table`."""
        raise InputError(f"{self.kind} has no table of weights: only look-up and BM25 queries can be tuned")


class NeuralSide(TextEncoder):
    """A side that runs a transformer, its backbone; two sides may share one, and it is then saved once.

    Attributes:
        backbone: compared by identity only.
    """

    backbone: object

    @abstractmethod
    def save_files(self, folder: Path, *, with_backbone: bool = True, dtype: str = "float32") -> None:
        """Write the side's files, the backbone's in ``dtype``; ``folder`` may be absent without a backbone."""

    @abstractmethod
    def save_tokenizer(self, folder: Path) -> None:
        """Write the backbone's tokenizer alone, as Hugging Face's libraries read it."""


class Encoder:
    """Documents and queries to sparse vectors over one vocabulary.

    Args:
        documents: the document side.
        queries: the query side; both sides must have the same vocabulary.
        source: where the encoder was loaded from, for an index to find it again.
        revision: the hub revision of the source.
    """

    def __init__(
        self,
        documents: TextEncoder,
        queries: TextEncoder,
        *,
        source: str | None = None,
        revision: str | None = None,
    ) -> None:
        if documents.vocabulary_size != queries.vocabulary_size or documents.vocabulary_hash != queries.vocabulary_hash:
            raise MismatchError(
                f"the document encoder ({documents.kind}, {documents.vocabulary_size:,} terms) and the query encoder "
                f"({queries.kind}, {queries.vocabulary_size:,} terms) have different vocabularies: their dot "
                "products would mean nothing"
            )
        self.documents = documents
        self.queries = queries
        self.source = source
        self.revision = revision

    @property
    def vocabulary_size(self) -> int:
        """Columns of the vectors."""
        return self.documents.vocabulary_size

    @property
    def fingerprint(self) -> str:
        """Identifies the pair of sides: vectors and indexes carry it."""
        return hashlib.sha256(f"{self.documents.fingerprint} {self.queries.fingerprint}".encode()).hexdigest()

    def encode_documents(self, texts: Iterable[str | Document], *, progress: bool = False) -> SparseVectors:
        """Encode documents.

        Args:
            texts: strings, or documents, whose title and text are joined.
            progress: show a progress bar on stderr.

        Returns:
            float32 vectors of shape (n, vocabulary_size). Texts cut at the maximum length and texts
            that got no term are reported by a warning.
        """
        if isinstance(texts, str):
            raise InputError("encode_documents takes a list of texts: write encode_documents([text])")
        contents = [_content(text, "document") for text in texts]
        encoded = encode_with_bar(self.documents, contents, progress)
        warn_about(encoded, self.documents, "document")
        return SparseVectors(encoded.vectors, encoder=self.fingerprint)

    def encode_queries(self, texts: Iterable[str | Query], *, progress: bool = False) -> SparseVectors:
        """Encode queries; as `encode_documents`."""
        return encode_queries(self.queries, texts, self.fingerprint, progress=progress)

    def term(self, term_id: int) -> str:
        """The term of a column."""
        return self.documents.term(term_id)

    def with_queries(self, other: "Encoder") -> "Encoder":
        """The same documents with another encoder's queries."""
        return Encoder(self.documents, other.queries)

    def adjusted(self, changes: NDArray[Any]) -> "Encoder":
        """The same documents, with ``changes`` of shape (vocabulary_size,) added to the table of the queries.

        A term keeps a hundredth of its weight at least.

        Raises:
            InputError: the queries are no table.
        """
        return Encoder(self.documents, table_side(self.queries).adjusted(changes))

    def identity(self) -> dict[str, Any]:
        """What an index's manifest keeps: who made its vectors, and how to find it again."""
        return {
            "fingerprint": self.fingerprint,
            "vocabulary_hash": self.documents.vocabulary_hash,
            "source": self.source,
            "revision": self.revision,
            "documents": {"kind": self.documents.kind, "max_length": self.documents.max_length},
            "queries": {"kind": self.queries.kind, "max_length": self.queries.max_length},
        }

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, dtype: str = "float32") -> None:
        """Write a folder that `lsr.load_encoder` reads; an MLM encoder's is a Hugging Face folder too.

        Args:
            path: the folder.
            overwrite: whether an encoder there may be replaced.
            dtype: of a transformer's weights on disk. "float16" halves them and rounds: the encoder that is
                read from it has another fingerprint. "int8" makes them a quarter, and lsr alone reads the folder.
                Tables of queries are float16 with both.

        Raises:
            InputError: the folder exists and ``overwrite`` is False, ``dtype`` is unknown, or weights that are not
                finite would be saved as int8.
        """
        if dtype not in STORED_DTYPES:
            raise InputError(f"weights cannot be saved as {dtype!r}: choose from {', '.join(STORED_DTYPES)}")
        with new_folder(path, overwrite=overwrite) as folder:
            self.save_files(folder, dtype=dtype)

    def save_files(self, folder: Path, *, queries_only: bool = False, dtype: str = "float32") -> None:
        """Write into an existing folder, the document side left out where only queries will come."""
        fields: dict[str, Any] = {"format_version": FORMAT_VERSION, "identity": self.identity()}
        if not queries_only:
            fields["documents"] = _save_side(folder, "documents", self.documents, dtype)
        if not queries_only and shares_files(self.documents, self.queries):
            fields["queries"] = {"kind": self.queries.kind, "folder": "documents", **self.queries.config()}
        else:
            shared = None if queries_only else self.documents
            fields["queries"] = _save_side(folder, "queries", self.queries, dtype, shared)
        (folder / ENCODER_FILE).write_text(json.dumps(fields, indent=2), encoding="utf-8")


def save_table(path: Path, table: NDArray[np.float32], dtype: str) -> None:
    """Write a table of weights as .npy: float16 where a transformer's weights are ``dtype`` "float16" or "int8".

    Raises:
        InputError: a weight is too large for that.
    """
    kept: NDArray[Any] = table
    if dtype in ("float16", "int8"):
        with np.errstate(over="ignore"):  # said below
            kept = table.astype(np.float16)
        if not np.isfinite(kept).all():
            raise InputError(f"a table of queries has weights above 65,504, more than {dtype} files hold: use float32")
    np.save(path, kept, allow_pickle=False)


def load_table(path: Path) -> NDArray[np.float32]:
    """Read what `save_table` wrote, as float32."""
    table: NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32)
    return table


def table_side(side: TextEncoder) -> LightSide:
    """The side, if it is light.

    Raises:
        InputError: it runs a transformer.
    """
    if not isinstance(side, LightSide):
        raise InputError(f"{side.kind} queries run a transformer and have no table of weights: train them (lsr train)")
    return side


def add_to_table(table: NDArray[np.float32], changes: NDArray[Any]) -> NDArray[np.float32]:
    """A table with changes added to it; each term keeps `KEPT_SHARE` of its weight at least."""
    changed: NDArray[np.float32] = np.maximum(table + changes, np.float32(KEPT_SHARE) * table).astype(np.float32)
    return changed


def _save_side(
    folder: Path, name: str, side: TextEncoder, dtype: str, documents: TextEncoder | None = None
) -> dict[str, Any]:
    """Write one side; what ``lsr_encoder.json`` says of it."""
    fields = {"kind": side.kind, "folder": name, **side.config()}
    if not isinstance(side, NeuralSide):
        (folder / name).mkdir()
        side.save_files(folder / name, dtype=dtype)
        return fields
    if isinstance(documents, NeuralSide) and documents.backbone is side.backbone:
        side.save_files(folder / name, with_backbone=False)
        return fields | {"backbone": "documents"}
    (folder / name).mkdir()
    side.save_files(folder / name, dtype=dtype)
    return fields


def encode_queries(
    side: TextEncoder, texts: Iterable[str | Query], fingerprint: str | None, *, progress: bool = False
) -> SparseVectors:
    """Encode queries with one side, noting the encoder's fingerprint on the vectors."""
    vectors = query_rows(side, texts, progress=progress)
    if isinstance(vectors, SparseRows):
        return SparseVectors((vectors.data, vectors.indices, vectors.indptr), shape=vectors.shape, encoder=fingerprint)
    return SparseVectors(vectors, encoder=fingerprint)


def query_rows(side: TextEncoder, texts: Iterable[str | Query], *, progress: bool = False) -> SparseRows | csr_array:
    """Encode queries with one side, on the shortest way to `lsr.index.Index.search`."""
    if isinstance(texts, str):
        raise InputError("queries are given as a list of texts: write [text] for a single one")
    contents = [_content(text, "query") for text in texts]
    if isinstance(side, LightSide) and not progress:
        encoded: Encoded | EncodedRows = side.encode_rows(contents)
    else:
        encoded = encode_with_bar(side, contents, progress)
    warn_about(encoded, side, "query")
    return encoded.vectors


def encode_with_bar(side: TextEncoder, contents: list[str], progress: bool) -> Encoded:
    """Encode, with a progress bar on stderr if wanted."""
    with tqdm(total=len(contents), desc="encoding", unit=" texts", disable=not progress or None) as bar:
        return side.encode(contents, bar.update)


def shares_files(documents: TextEncoder, queries: TextEncoder) -> bool:
    """Whether the two sides are one model, cut at two lengths perhaps."""
    return documents.kind == queries.kind and documents.fingerprint == queries.fingerprint


def warn_about(encoded: Encoded | EncodedRows, side: TextEncoder, what: str) -> None:
    """Say how many texts were cut, and how many got no term at all."""
    indptr = encoded.vectors.indptr
    total = len(indptr) - 1
    plural = "documents" if what == "document" else "queries"
    if encoded.truncated:
        warnings.warn(
            f"{encoded.truncated:,} of {total:,} {plural} were longer than {side.max_length} tokens and were cut",
            LsrWarning,
            stacklevel=3,
        )
    empty = int(indptr[1] == 0) if total == 1 else np.count_nonzero(indptr[1:] == indptr[:-1])
    if empty:
        warnings.warn(
            f"{empty:,} of {total:,} {plural} have no term in the vocabulary (empty text?): they will match nothing",
            LsrWarning,
            stacklevel=3,
        )


def _content(text: Any, what: str) -> str:
    if isinstance(text, str):
        return text
    if isinstance(text, Document):
        return text.content
    if isinstance(text, Query):
        return text.text
    raise InputError(f"a {what} to encode is a {type(text).__name__}: give strings")
