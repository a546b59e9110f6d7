"""BM25 as the framework's untrained corner: two lookup sides whose dot product is the BM25 score.

    d_t = tf / (tf + k1 · (1 − b + b · length / average length))        (document side)
    q_t = tf_query · ln(1 + (N − df + 0.5) / (df + 0.5))                (query side)

The factor (k1 + 1) is left out as in Lucene since version 8: it changes no ranking.

The vocabulary is that of the corpus, or one of buckets into which stems are hashed: then an encoder fitted to one
corpus has a place for every word of another.
"""

import hashlib
import json
import math
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lsr.analyzer import Analyzer
from lsr.encoder import Advance, EncodedRows, Encoder, LightSide, add_to_table, load_table, save_table
from lsr.errors import FormatError, InputError
from lsr.records import Document
from lsr.vectors import SparseRows
from lsr.words import WordCache

TERMS_FILE = "terms.txt"

#: Most buckets of a hashed vocabulary.
MOST_BUCKETS = 2**24

#: In a collection that a hashed BM25 was not fitted to, the share of IDF that is the collection's own.
OWN_IDF = 0.5


def robertson_idf(document_frequency: NDArray[Any], n_documents: int) -> NDArray[np.float32]:
    """ln(1 + (N − df + 0.5) / (df + 0.5)), positive for every df (Robertson and Zaragoza, 2009)."""
    df = document_frequency.astype(np.float64)
    return np.log1p((n_documents - df + 0.5) / (df + 0.5)).astype(np.float32)


@dataclass(frozen=True)
class Bm25:
    """BM25's parameters; `fit` learns the vocabulary and its statistics from a corpus.

    Attributes:
        k1: saturation of term frequency.
        b: strength of length normalization, 0 to 1.
        analyzer: text to stems.
        buckets: None for a column for each stem of the corpus. A number for so many columns, into which stems are
            hashed: for an encoder that will serve other corpora too. A word that no document had then has the largest
            IDF; words that share a bucket are one. A `Retriever` takes half of the IDF from its own collection.
    """

    k1: float = 0.9
    b: float = 0.4
    analyzer: Analyzer = field(default_factory=Analyzer)
    buckets: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.k1 < math.inf and 0 <= self.b <= 1):
            raise InputError(f"BM25 needs a finite k1 >= 0 and 0 <= b <= 1: got k1={self.k1}, b={self.b}")
        whole = isinstance(self.buckets, int) and not isinstance(self.buckets, bool)
        if self.buckets is not None and not (whole and 2 <= self.buckets <= MOST_BUCKETS):
            raise InputError(
                f"BM25 cannot hash to {self.buckets!r} buckets: give a whole number, 2 to {MOST_BUCKETS:,}"
            )

    def fit(self, texts: Iterable[str | Document], *, progress: bool = False) -> Encoder:
        """Count terms in one pass over a corpus and return the encoder for it.

        Raises:
            InputError: the corpus has no term at all.
        """
        if isinstance(texts, str):
            raise InputError(
                "fit takes a list of texts, not one text: for a file or folder, fit(lsr.read_corpus(path))"
            )
        frequency: Counter[Any] = Counter()  # of stems, or of their buckets
        hashed = None if self.buckets is None else HashedVocabulary(self.buckets, self.analyzer.stemmer)
        n_documents = total_length = 0
        for text in tqdm(texts, desc="counting terms", unit=" docs", disable=not progress or None):
            stems = self.analyzer(text.content if isinstance(text, Document) else text)
            frequency.update(set(hashed.ids_of(stems) if hashed else stems))
            total_length += len(stems)
            n_documents += 1
        if not frequency:
            raise InputError(f"BM25 found no term in the {n_documents:,} documents: is the text empty?")
        columns: Sequence[Any] = range(len(hashed)) if hashed else sorted(frequency)
        df = np.array([frequency[column] for column in columns])
        vocabulary = hashed or Vocabulary(tuple(columns))
        documents = Bm25Documents(vocabulary, self, total_length / n_documents)
        return Encoder(documents, Bm25Queries(vocabulary, self, robertson_idf(df, n_documents)), source="bm25")


@dataclass(frozen=True)
class Vocabulary:
    """The sorted terms of a corpus; a term's id is its position."""

    terms: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Term to id."""
        return {term: i for i, term in enumerate(self.terms)}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the terms."""
        return hashlib.sha256("\n".join(self.terms).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.terms)

    def term(self, term_id: int) -> str:
        """The stem of an id."""
        return self.terms[term_id]

    def ids_of(self, stems: Iterable[str]) -> list[int]:
        """The ids of stems in order, unknown ones left out."""
        ids = self.ids
        return [ids[stem] for stem in stems if stem in ids]

    def save(self, folder: Path) -> None:
        """Write ``terms.txt``."""
        (folder / TERMS_FILE).write_text("\n".join(self.terms), encoding="utf-8")


@dataclass(frozen=True)
class HashedVocabulary:
    """So many buckets; a stem's id is the CRC-32 of its UTF-8 bytes modulo their number.

    Attributes:
        buckets: their number.
        stemmer: whose stems they hold.
    """

    buckets: int
    stemmer: str

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all there is to know."""
        return hashlib.sha256(f"crc32 {self.buckets} {self.stemmer}".encode()).hexdigest()

    def __len__(self) -> int:
        return self.buckets

    def term(self, term_id: int) -> str:
        """The number of the bucket: its stems are not kept."""
        return f"#{term_id}"

    @cached_property
    def _ids(self) -> WordCache[int]:
        return WordCache(lambda stem: zlib.crc32(stem.encode()) % self.buckets)

    def ids_of(self, stems: Iterable[str]) -> list[int]:
        """The ids of stems in order."""
        return list(map(self._ids.__getitem__, stems))

    def save(self, folder: Path) -> None:
        """Nothing: the configuration says all."""


AnyVocabulary: TypeAlias = Vocabulary | HashedVocabulary


class _Bm25Side(LightSide):
    """What the two sides share: the analyzer and counts of terms per text."""

    def __init__(self, vocabulary: AnyVocabulary, parameters: Bm25) -> None:
        self.vocabulary = vocabulary
        self.parameters = parameters
        self.vocabulary_size = len(vocabulary)
        self.max_length = None

    def term(self, term_id: int) -> str:
        return self.vocabulary.term(term_id)

    def term_in(self, text: str, term_id: int) -> str:
        stems = dict.fromkeys(self.parameters.analyzer(text))
        return "/".join(stem for stem in stems if term_id in self.vocabulary.ids_of([stem])) or self.term(term_id)

    @cached_property
    def fingerprint(self) -> str:
        parts = [
            self.kind,
            self.vocabulary.hash,
            json.dumps(self.config(), sort_keys=True),
            self._statistics(),
        ]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def vocabulary_hash(self) -> str:
        return self.vocabulary.hash

    def config(self) -> dict[str, Any]:
        analyzer = self.parameters.analyzer
        stopwords = sorted(analyzer.stopwords)
        buckets = self.parameters.buckets
        return {
            "k1": self.parameters.k1,
            "b": self.parameters.b,
            "stemmer": analyzer.stemmer,
            "stopwords": stopwords,
            **({} if buckets is None else {"buckets": buckets}),
        }

    def save_files(self, folder: Path, *, dtype: str = "float32") -> None:
        self.vocabulary.save(folder)

    @abstractmethod
    def _statistics(self) -> str:
        """The learned numbers, as text for the fingerprint."""

    def _count(self, texts: Sequence[str], advance: Advance | None) -> tuple[SparseRows, list[int]]:
        """Term counts of shape (n, vocabulary), and each text's length with unknown terms."""
        ids_of, analyzer = self.vocabulary.ids_of, self.parameters.analyzer
        terms: list[int] = []
        counts: list[int] = []
        indptr, lengths = [0], []
        for text in texts:
            stems = analyzer(text)
            counted: dict[int, int] = {}
            for term in ids_of(stems):
                counted[term] = counted.get(term, 0) + 1
            terms += (ordered := sorted(counted))
            counts += [counted[term] for term in ordered]
            indptr.append(len(terms))
            lengths.append(len(stems))
            if advance:
                advance(1)
        arrays = np.array(indptr), np.array(terms, dtype=np.int64), np.array(counts, dtype=np.float32)
        return SparseRows(*arrays, self.vocabulary_size), lengths


class Bm25Documents(_Bm25Side):
    """Saturated, length-normalized term frequencies."""

    kind = "bm25-documents"

    def __init__(self, vocabulary: AnyVocabulary, parameters: Bm25, average_length: float) -> None:
        super().__init__(vocabulary, parameters)
        self.average_length = average_length

    def encode_rows(self, texts: Sequence[str], advance: Advance | None = None) -> EncodedRows:
        counts, lengths = self._count(texts, advance)
        k1, b = self.parameters.k1, self.parameters.b
        norm = (k1 * (1 - b + b * np.array(lengths) / self.average_length)).astype(np.float32)
        counts.data /= counts.data + np.repeat(norm, np.diff(counts.indptr))
        return EncodedRows(counts, 0)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "average_length": self.average_length}

    def _statistics(self) -> str:
        return str(self.average_length)

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> "Bm25Documents":
        """Read what `save_files` wrote."""
        return cls(*_load(folder, config), config["average_length"])


class Bm25Queries(_Bm25Side):
    """Term counts times IDF.

    Args:
        vocabulary, parameters: of the documents.
        idf: float32 of shape (vocabulary_size,).
        learned: float32 of the same shape, added to the IDF, that of any collection; None for nothing.
    """

    kind = "bm25-queries"

    def __init__(
        self,
        vocabulary: AnyVocabulary,
        parameters: Bm25,
        idf: NDArray[np.float32],
        learned: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(vocabulary, parameters)
        for table in (idf, learned):
            if table is not None and table.shape != (self.vocabulary_size,):
                raise FormatError(f"the IDF table has {table.shape} weights for {self.vocabulary_size:,} terms")
        self.idf = idf
        self.learned = learned
        self._table = idf if learned is None else add_to_table(idf, learned)

    @property
    def table(self) -> NDArray[np.float32]:
        return self._table

    def adjusted(self, changes: NDArray[Any]) -> "Bm25Queries":
        if not self.adapts:
            return Bm25Queries(self.vocabulary, self.parameters, add_to_table(self.idf, changes))
        learned = changes if self.learned is None else self.learned + changes
        return Bm25Queries(self.vocabulary, self.parameters, self.idf, learned.astype(np.float32))

    def encode_rows(self, texts: Sequence[str], advance: Advance | None = None) -> EncodedRows:
        counts, _ = self._count(texts, advance)
        counts.data *= self.table[counts.indices]
        return EncodedRows(counts, 0)

    @property
    def adapts(self) -> bool:  # type: ignore[override]
        return isinstance(self.vocabulary, HashedVocabulary)

    def in_collection(self, frequency: NDArray[np.int64], n_documents: int) -> "Bm25Queries":
        own = robertson_idf(frequency, n_documents)
        return Bm25Queries(self.vocabulary, self.parameters, (1 - OWN_IDF) * self.idf + OWN_IDF * own, self.learned)

    def config(self) -> dict[str, Any]:
        return {**super().config(), **({} if self.learned is None else {"learned": True})}

    def save_files(self, folder: Path, *, dtype: str = "float32") -> None:
        super().save_files(folder)
        save_table(folder / "idf.npy", self.idf, dtype)
        if self.learned is not None:
            save_table(folder / "learned.npy", self.learned, dtype)

    def _statistics(self) -> str:
        learned = b"" if self.learned is None else self.learned.tobytes()
        return hashlib.sha256(self.idf.tobytes() + learned).hexdigest()

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> "Bm25Queries":
        """Read what `save_files` wrote."""
        idf = load_table(folder / "idf.npy")
        learned = load_table(folder / "learned.npy") if config.get("learned") else None
        return cls(*_load(folder, config), idf, learned)


def _load(folder: Path, config: dict[str, Any]) -> tuple[AnyVocabulary, Bm25]:
    analyzer = Analyzer(config["stemmer"], frozenset(config["stopwords"]))
    parameters = Bm25(config["k1"], config["b"], analyzer, config.get("buckets"))
    if parameters.buckets is not None:
        return HashedVocabulary(parameters.buckets, analyzer.stemmer), parameters
    return Vocabulary(tuple((folder / TERMS_FILE).read_text(encoding="utf-8").split("\n"))), parameters
