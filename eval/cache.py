"""What evaluation keeps between calls: vectors, indexes and encoded queries, each under a hash of its content.

    DIR/vectors/KEY/     documents' vectors in shards, resumed when interrupted (`lsr.encoding`); KEY.npy if dense
    DIR/indexes/KEY/     a `Retriever`
    DIR/queries/KEY.npz  queries' vectors
    DIR/*/KEY.json       what it is, for people, and the notes that were given when it was made

KEY is a hash of all that decides the content: the encoder's fingerprint, where it cuts texts, what it multiplies in,
every document's id and texts, and the options of the index. So nothing goes stale, and an entry may be
deleted at any time. One that is unfinished or damaged is made again. Entries take their names when they are
whole. Of two processes that make one, the index that is finished first stays; vectors are the same from both.
"""

import hashlib
import json
import os
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, load_npz, save_npz

from lsr.bm25 import Bm25
from lsr.corpus import Corpus
from lsr.encoder import Encoder, encode_queries
from lsr.encoding import EncodedCorpus, encode_corpus, vectors_key
from lsr.errors import FormatError, InputError, LsrWarning, MismatchError, optional_import
from lsr.files import replacing, write_whole
from lsr.index.options import BuildOptions
from lsr.records import Document, Query
from lsr.retriever import Retriever
from lsr.vectors import SparseVectors

#: Marks the folder as one that may be deleted (https://bford.info/cachedir).
TAG_FILE = "CACHEDIR.TAG"
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# vectors and indexes kept by lsr evaluate\n"
#: Raised when an entry's content would be another for the same key.
CACHE_VERSION = 1


def default_cache() -> Path:
    """``$LSR_CACHE``, or the folder for caches of the platform."""
    chosen = os.environ.get("LSR_CACHE")
    if chosen:
        return Path(chosen)
    platformdirs = optional_import("platformdirs", "eval", "finding the platform's cache folder")
    return Path(platformdirs.user_cache_dir("lsr", appauthor=False))


class Cache:
    """A folder of vectors and indexes.

    Args:
        folder: where; made if it is not there.

    Raises:
        InputError: the folder holds something else.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.is_file():
            raise InputError(f"{folder} is a file: name a folder for the cache")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / TAG_FILE).is_file():
            raise InputError(
                f"{folder} holds something else than a cache of lsr: name an empty or new folder (--cache)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / TAG_FILE).write_text(TAG, encoding="utf-8")  # first: another process may be here, too
        for kind in ("vectors", "indexes", "queries"):
            (self.folder / kind).mkdir(exist_ok=True)
        self._contents: dict[Corpus, str] = {}

    def retriever(
        self,
        corpus: Corpus,
        encoder: Encoder | Bm25,
        options: BuildOptions | None = None,
        *,
        threads: int | None = None,
        progress: bool = False,
    ) -> Retriever:
        """The retriever over a corpus, from the cache if it is there, made otherwise.

        Args:
            corpus: the documents.
            encoder: the encoder, or BM25's parameters, whose statistics follow from the documents.
            options: of the index.
            threads: of the build, which they do not change.
            progress: show progress bars on stderr.
        """
        options = options or BuildOptions()
        content = self._content_of(corpus)
        fitted = encoder if isinstance(encoder, Encoder) else None
        choices = [options]
        if options.plan_queries == 0:  # an index with a plan does as well
            choices.append(replace(options, plan_queries=BuildOptions().plan_queries))
        keys = [_key(documents=_identity_of(encoder), corpus=content, options=asdict(choice)) for choice in choices]
        places = [self.folder / "indexes" / key for key in keys]
        for kept in places:
            if (retriever := _opened(kept, fitted)) is not None:
                return retriever
        place = places[0]
        vectors = self._vectors(corpus, fitted) if fitted else None
        named = self._by_content(corpus)
        try:
            with _noting(place, corpus.name, "bm25" if fitted is None else fitted.source):
                return Retriever.build(
                    named, encoder, place, options=options, vectors=vectors, threads=threads, progress=progress
                )
        except InputError:
            if (retriever := _opened(place, fitted)) is None:
                raise
            return retriever  # another process was faster: what it made stays

    def documents(
        self,
        corpus: Corpus,
        encoder: Encoder,
        *,
        keep: Callable[[list[Document]], object] | None = None,
        progress: bool = False,
    ) -> EncodedCorpus:
        """The documents' vectors; see `lsr.encoding.encode_corpus`."""
        folder = self._vectors(corpus, encoder)
        return encode_corpus(self._by_content(corpus), encoder, folder, keep=keep, progress=progress)

    def dense(self, corpus: Corpus, identity: str, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """A dense model's vectors of a corpus, float32 (n, dimension); ``make`` makes them if they are not there."""
        place = self.folder / "vectors" / f"{_key(dense=identity, corpus=self._content_of(corpus))}.npy"
        if place.is_file():
            try:
                kept: NDArray[np.float32] = np.load(place, mmap_mode="r", allow_pickle=False)
                return kept
            except (OSError, EOFError, ValueError) as error:
                _say_damaged(place, error)
        made = make()
        _describe(place, corpus.name, "dense", [])
        write_whole(place, lambda file: np.save(file, made, allow_pickle=False))
        return made

    def queries(self, queries: Sequence[Query], retriever: Retriever, *, progress: bool = False) -> SparseVectors:
        """The queries' vectors as the retriever's index expects them, of shape (n, vocabulary).

        Those of a light encoder are not kept: reading them takes as long as making them.
        """
        side, fingerprint = retriever.queries, retriever.index.encoder_fingerprint
        if side.light:
            return encode_queries(side, queries, fingerprint, progress=progress)
        content = _hash_texts((query.id, query.text) for query in queries)
        place = self.folder / "queries" / f"{_key(queries=vectors_key(side), texts=content)}.npz"
        if place.is_file():
            vectors = _read_npz(place, (len(queries), side.vocabulary_size))
            if vectors is not None:
                _repeat_notes(place)
                return SparseVectors(vectors, encoder=fingerprint)
        with _noting(place, f"{len(queries)} queries", None):
            made = encode_queries(side, queries, fingerprint, progress=progress)
        write_whole(place, lambda file: save_npz(file, csr_array(made), compressed=False))
        return made

    def _vectors(self, corpus: Corpus, encoder: Encoder) -> Path | None:
        """The folder of a corpus' vectors; none for an encoder that makes them as fast as they are read."""
        if encoder.documents.light:
            return None
        key = _key(documents=vectors_key(encoder.documents), corpus=self._content_of(corpus))
        place = self.folder / "vectors" / key
        _describe(place, corpus.name, encoder.source, [])
        return place

    def _by_content(self, corpus: Corpus) -> Corpus:
        """The corpus under a name of its content: a folder of vectors holds on to the name."""
        return replace(corpus, name=f"documents {self._content_of(corpus)[:16]}")

    def _content_of(self, corpus: Corpus) -> str:
        """A hash of all documents; a `Corpus` is read once for it in this object's life."""
        if corpus not in self._contents:
            self._contents[corpus] = _hash_texts(
                (d.id, d.title, d.text, d.expansion) if d.expansion else (d.id, d.title, d.text) for d in corpus
            )
        return self._contents[corpus]


def _opened(place: Path, encoder: Encoder | None) -> Retriever | None:
    """The retriever of an entry, with the notes from when it was made; None if it is damaged or not there."""
    if not place.is_dir():
        return None
    try:
        retriever = Retriever.open(place, encoder)
    except (FormatError, InputError, MismatchError) as error:
        _say_damaged(place, error)
        shutil.rmtree(place, ignore_errors=True)
        return None
    _repeat_notes(place)
    return retriever


def _identity_of(encoder: Encoder | Bm25) -> Any:
    if isinstance(encoder, Encoder):
        _, *documents = vectors_key(encoder.documents)
        return [encoder.fingerprint, *documents, encoder.queries.max_length]
    analyzer = encoder.analyzer
    hashed = [] if encoder.buckets is None else [encoder.buckets]
    return ["bm25", encoder.k1, encoder.b, analyzer.stemmer, sorted(analyzer.stopwords), *hashed]


def _key(**parts: Any) -> str:
    text = json.dumps({"version": CACHE_VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hash_texts(rows: Iterable[tuple[str, ...]]) -> str:
    """SHA-256 of rows of texts; lengths keep ("ab", "c") and ("a", "bc") apart."""
    digest = hashlib.sha256()
    for row in rows:
        parts = [text.encode() for text in row]
        digest.update(b" ".join(b"%d" % len(part) for part in parts) + b"\n")
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


def _read_npz(place: Path, shape: tuple[int, int]) -> csr_array | None:
    try:
        vectors = load_npz(place)
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        _say_damaged(place, error)
        return None
    if vectors.format == "csr" and vectors.shape == shape:
        return vectors
    _say_damaged(place, f"it has the shape {vectors.shape} instead of {shape}")
    return None


# --- the file beside an entry ---------------------------------------------------------------------------


def _beside(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _describe(place: Path, what: str, encoder: str | None, notes: list[str]) -> None:
    with replacing(_beside(place)) as file:
        json.dump({"of": what, "encoder": encoder, "notes": notes}, file, indent=1, ensure_ascii=False)


@contextmanager
def _noting(place: Path, what: str, encoder: str | None) -> Iterator[None]:
    """Keep the warnings of the block with the entry that it makes, and give them after it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    _describe(place, what, encoder, [str(w.message) for w in caught if issubclass(w.category, LsrWarning)])
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _repeat_notes(place: Path) -> None:
    """Texts that were cut are cut in an entry from the cache too."""
    try:
        notes = json.loads(_beside(place).read_text(encoding="utf-8"))["notes"]
    except (OSError, ValueError, KeyError, TypeError):
        warnings.warn(
            "what was said when an entry of the cache was made is lost: texts may have been cut",
            LsrWarning,
            stacklevel=3,
        )
        return
    for note in notes:
        warnings.warn(str(note), LsrWarning, stacklevel=3)


def _say_damaged(place: Path, error: object) -> None:
    warnings.warn(f"an entry of the cache is damaged and is made again ({error})", LsrWarning, stacklevel=3)
