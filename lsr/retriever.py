"""`Retriever`: an encoder, an index and the texts, in one directory. Text in, hits out."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from lsr.bm25 import Bm25
from lsr.corpus import CorpusSource, read_corpus
from lsr.encoder import ENCODER_FILE, Encoded, Encoder, TextEncoder, encode_queries, query_rows, warn_about
from lsr.encoding import encode_corpus, encode_shards
from lsr.errors import InputError, LsrError, MismatchError
from lsr.files import check_target, new_folder
from lsr.index.external import write_parts
from lsr.index.hits import Hits
from lsr.index.ids import StringTable
from lsr.index.index import Index
from lsr.index.options import BuildOptions, check_threads
from lsr.index.sizes import bytes_of
from lsr.index.storage import Manifest, finish, open_array, read_manifest, save_strings
from lsr.index.writers import StringsWriter
from lsr.pretrained import load_encoder, load_side, read_encoder_file
from lsr.records import Document, Query
from lsr.run import Run
from lsr.vectors import SparseVectors

ENCODER_FOLDER = "encoder"
DOCUMENTS_FOLDER = "documents"


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found."""

    id: str
    score: float
    text: str
    title: str = ""


class MatchedTerm(NamedTuple):
    """A term that a query and a document share, and its part of the score."""

    term: str
    query_weight: float
    document_weight: float
    contribution: float


class Retriever:
    """Searches text with text. Make one with `Retriever.build` or `Retriever.open`."""

    def __init__(
        self,
        index: Index,
        titles: StringTable,
        texts: StringTable,
        load_queries: Callable[[], TextEncoder],
    ) -> None:
        self.index = index
        self._titles = titles
        self._texts = texts
        self._load_queries = load_queries

    @classmethod
    def build(
        cls,
        corpus: CorpusSource,
        encoder: Encoder | Bm25,
        path: str | os.PathLike[str] | None = None,
        *,
        options: BuildOptions | None = None,
        vectors: str | os.PathLike[str] | None = None,
        sample: Iterable[str | Query] | None = None,
        threads: int | None = None,
        max_memory: int | str | None = None,
        progress: bool = False,
        overwrite: bool = False,
    ) -> "Retriever":
        """Encode and index a corpus.

        Args:
            corpus: a BEIR folder, a JSONL or TSV file, an ir-datasets id, or an iterable of
                documents (see `lsr.read_corpus`).
            encoder: an encoder, or ``lsr.Bm25()``, which is first fitted to the corpus.
            path: directory to save to; by default everything stays in memory.
            options: of the index.
            vectors: folder where the encoded vectors are kept for later calls. With ``path`` they
                are by default kept beside it until the index is complete, so that an interrupted
                build resumes.
            sample: questions like those to come, on which the planner tries its settings; by default queries are
                made from documents.
            threads: threads of the index build.
            max_memory: as in `Index.build`: with it, vectors and texts go to ``path`` shard by shard; what
                stays in memory is the encoder, a shard, and the ids.
            progress: show progress bars on stderr.
            overwrite: replace an index at ``path``.

        Raises:
            InputError: the corpus or the path is not acceptable; no index is written.
        """
        if not isinstance(encoder, Encoder | Bm25):
            raise InputError(f"the encoder is {encoder!r}: give lsr.Bm25() or what lsr.load_encoder returns")
        check_threads(threads)
        if max_memory is not None:
            bytes_of(max_memory)
            if path is None:
                raise InputError("max_memory needs a path: the index is written there part by part")
        if path is not None:
            check_target(path, overwrite=overwrite)
            if vectors is not None and Path(vectors).resolve().is_relative_to(Path(path).resolve()):
                raise InputError(f"the vectors folder {vectors} is inside the index {path}: choose another place")
        documents = read_corpus(corpus)
        if isinstance(encoder, Bm25):
            encoder = encoder.fit(documents, progress=progress)
        questions = None if sample is None else _sample_of(encoder, sample)
        temporary = None
        if path is not None and vectors is None and not encoder.documents.light:
            temporary = vectors = Path(path).with_name(f".{Path(path).name}.vectors")
        if max_memory is not None and path is not None:
            with new_folder(path, overwrite=overwrite) as folder:
                shards = encode_shards(documents, encoder, vectors, progress=progress)
                manifest = _write_parts(
                    folder, shards, encoder, options=options, sample=questions, threads=threads, max_memory=max_memory,
                    progress=progress,
                )  # fmt: skip
                _save_encoder(folder, encoder)
                finish(folder, manifest)
            if temporary is not None:
                shutil.rmtree(temporary)
            return cls.open(path, encoder)
        titles: list[str] = []
        texts: list[str] = []

        def keep(shard: list[Document]) -> None:
            titles.extend(document.title for document in shard)
            texts.extend(document.text for document in shard)

        encoded = encode_corpus(documents, encoder, vectors, keep=keep, progress=progress)
        index = Index.build(
            encoded.vectors, encoded.ids, options=options, encoder=encoder, sample=questions, threads=threads,
            progress=progress,
        )  # fmt: skip
        queries = encoder.queries
        retriever = cls(index, StringTable.of(titles), StringTable.of(texts), lambda: queries)
        if path is not None:
            retriever._save(path, encoder, overwrite=overwrite)
            retriever = cls.open(path, encoder)
        if temporary is not None:
            shutil.rmtree(temporary)
        return retriever

    def _save(self, path: str | os.PathLike[str], encoder: Encoder, *, overwrite: bool) -> None:
        with new_folder(path, overwrite=overwrite) as folder:
            self.index.write_into(folder)
            (folder / DOCUMENTS_FOLDER).mkdir()
            save_strings(folder / DOCUMENTS_FOLDER, "titles", self._titles)
            save_strings(folder / DOCUMENTS_FOLDER, "texts", self._texts)
            _save_encoder(folder, encoder)
            finish(folder, self.index.manifest)

    @classmethod
    def open(cls, path: str | os.PathLike[str], encoder: Encoder | None = None) -> "Retriever":
        """Open a saved retriever; the query encoder is loaded at the first search.

        Args:
            path: the directory.
            encoder: the encoder that the index was built with; by default what the directory
                carries, or the model it names.

        Raises:
            InputError: there is no index, or it was saved without texts (use `Index.open`).
            MismatchError: ``encoder`` is another than the index's.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not (folder / DOCUMENTS_FOLDER).is_dir():
            raise InputError(f"{folder} is an index of vectors without texts: open it with lsr.Index.open")
        if encoder is not None and manifest.encoder and encoder.fingerprint != manifest.encoder["fingerprint"]:
            raise MismatchError(
                f"{folder} was built with another encoder ({manifest.encoder['source'] or 'source unknown'}, "
                f"{manifest.encoder['fingerprint'][:12]}) than the one given ({encoder.source or 'source unknown'}, "
                f"{encoder.fingerprint[:12]}): search with the same, or build the index again"
            )
        index = Index.open(folder)  # checks every file of the folder
        titles, texts = (_open_strings(folder / DOCUMENTS_FOLDER, name) for name in ("titles", "texts"))
        load = (lambda: encoder.queries) if encoder else (lambda: _load_queries(folder, manifest.encoder or {}))
        return cls(index, titles, texts, load)

    @cached_property
    def queries(self) -> TextEncoder:
        """The query side of the encoder, with what it takes from the collection (`TextEncoder.in_collection`)."""
        side = self._load_queries()
        return side.in_collection(self.index.document_frequencies(), len(self.index)) if side.adapts else side

    def encode_queries(self, texts: Iterable[str | Query]) -> SparseVectors:
        """Encode queries as this index expects them: shape (n, vocabulary)."""
        return encode_queries(self.queries, texts, self.index.encoder_fingerprint)

    def search(self, query: str, k: int = 10, **options: Any) -> list[Hit]:
        """The k best documents for one question.

        Args:
            query: the question.
            k: hits wanted; documents that share no term with the question are none.
            options: of `Index.search`: exact, candidates, query_cut, heap_factor, threads.

        Raises:
            InputError: the query is empty or an option is not acceptable.
        """
        if not isinstance(query, str):
            raise InputError(f"search takes one text, not {type(query).__name__}: use search_many for several")
        if not query.strip():
            raise InputError("the query is empty: type at least one word")
        return self._texts_of(self.search_many([query], k, **options), 0)

    def search_many(self, queries: Sequence[str | Query], k: int = 10, **options: Any) -> Hits:
        """The k best documents for every question, as arrays."""
        return self.index.search(query_rows(self.queries, queries), k, **options)

    def run(self, queries: Sequence[Query], k: int = 100, name: str = "lsr", **options: Any) -> Run:
        """The ranked lists for queries with ids, for evaluation."""
        return self.search_many(queries, k, **options).to_run([query.id for query in queries], name)

    def explain(self, query: str, doc_id: str) -> list[MatchedTerm]:
        """The terms that a question and a document share, the largest part of the score first."""
        matches = self.index.explain(self.encode_queries([query]), doc_id)
        return [
            MatchedTerm(self.queries.term_in(query, m.term_id), m.query_weight, m.document_weight, m.contribution)
            for m in matches
        ]

    def text_of(self, doc_id: str) -> tuple[str, str]:
        """A document's title and text."""
        row = self.index.row_of(doc_id)
        return self._titles[row], self._texts[row]

    def _texts_of(self, hits: Hits, query: int) -> list[Hit]:
        rows = hits.rows[query, : hits.counts[query]]
        found = zip(hits[query], self._texts.many(rows), self._titles.many(rows), strict=True)
        return [Hit(doc_id, score, text, title) for (doc_id, score), text, title in found]


def _sample_of(encoder: Encoder, sample: Iterable[str | Query]) -> SparseVectors:
    """The planner's questions as vectors, before the long work begins."""
    questions = sample if isinstance(sample, str) else list(sample)  # one text is refused by `encode_queries`
    if not questions:
        raise InputError("the sample has no question: give some like those to come, or no sample")
    return encoder.encode_queries(questions)


def _save_encoder(folder: Path, encoder: Encoder) -> None:
    (folder / ENCODER_FOLDER).mkdir()
    if encoder.queries.light or encoder.source is None:
        encoder.save_files(folder / ENCODER_FOLDER, queries_only=True)


def _write_parts(
    folder: Path, shards: Iterator[tuple[list[Document], Encoded]], encoder: Encoder, **options: Any
) -> Manifest:
    """Write titles, texts and the index as the shards come; ``options`` are those of `write_parts`."""
    place = folder / DOCUMENTS_FOLDER
    place.mkdir()
    ids: list[str] = []
    lengths: list[int] = []
    truncated = 0
    with StringsWriter(place, "titles") as titles, StringsWriter(place, "texts") as texts:

        def chunks() -> Iterator[csr_array]:
            nonlocal truncated
            for documents, encoded in shards:
                titles.append(document.title for document in documents)
                texts.append(document.text for document in documents)
                ids.extend(document.id for document in documents)
                lengths.extend(np.diff(encoded.vectors.indptr).tolist())
                truncated += encoded.truncated
                yield encoded.vectors

        manifest = write_parts(folder, chunks(), ids, encoder=encoder, **options)
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    nothing = csr_array((len(lengths), encoder.vocabulary_size), dtype=np.float32)
    nothing.indptr = ptr  # all that the warnings look at
    warn_about(Encoded(nothing, truncated), encoder.documents, "document")
    return manifest


def _open_strings(folder: Path, name: str) -> StringTable:
    return StringTable(open_array(folder / f"{name}.data.npy"), open_array(folder / f"{name}.offsets.npy"))


def _load_queries(folder: Path, identity: dict[str, Any]) -> TextEncoder:
    """The query side that an index directory carries, or the model it names."""
    place = folder / ENCODER_FOLDER
    if (place / ENCODER_FILE).is_file():
        return load_side(place, read_encoder_file(place), "queries")
    source = str(identity["source"])
    try:
        encoder = load_encoder(
            source,
            revision=identity["revision"],
            document_max_length=identity["documents"]["max_length"],
            query_max_length=identity["queries"]["max_length"],
        )
    except LsrError as error:
        raise InputError(
            f"{folder} was built with the encoder {source}, which cannot be loaded now ({error}); "
            "name where it is now with --model, or Retriever.open(path, encoder)"
        ) from error
    if encoder.fingerprint != identity["fingerprint"]:
        raise MismatchError(
            f"the encoder at {source} has changed since {folder} was built: build the index again, or name the "
            "encoder it was built with"
        )
    return encoder.queries
