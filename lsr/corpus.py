"""Readers of corpora and queries: BEIR folders, JSONL, TSV, ir-datasets ids, any iterable.

All stream: a corpus is read as it is consumed, and can be read again. A broken line is reported
with its file, line and reason.
"""

import difflib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from lsr.errors import FormatError, InputError, LsrWarning, optional_import
from lsr.files import json_lines, open_lines
from lsr.records import Document, Query

#: A path, an ir-datasets id, or an iterable of documents (or dicts, (id, text) pairs, plain texts).
CorpusSource: TypeAlias = "str | os.PathLike[str] | Iterable[Any]"

ID_FIELDS = ("_id", "id", "doc_id", "docid", "query_id", "qid")
TEXT_FIELDS = ("text", "contents", "body")


@dataclass(frozen=True)
class Corpus:
    """Documents that can be iterated more than once.

    Attributes:
        name: what the source was called, for messages and reports.
        read: starts a new pass over the documents.
        skip_repeats: whether a document whose id was used before is left out; without, it is refused.
    """

    name: str
    read: Callable[[], Iterator[Document]]
    skip_repeats: bool = False

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents, refusing a repeated or empty id and an empty corpus."""
        seen: set[str] = set()
        repeats = 0
        for document in self.read():
            if not isinstance(document.id, str):
                raise InputError(f"{self.name}: the document id {document.id!r} is no string: ids are str")
            if not document.id:
                raise InputError(f"{self.name}: document number {len(seen) + 1} has an empty id")
            try:
                f"{document.id}{document.title}{document.text}{document.expansion}".encode()
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                raise InputError(
                    f"{self.name}: document {document.id!r} holds half a character ({half!r}): mend the text"
                ) from error
            if document.id in seen and not self.skip_repeats:
                raise InputError(
                    f"{self.name}: the document id {document.id!r} is used twice: ids must be unique "
                    "(skip_repeats=True, --skip-repeats, data.skip_repeats=true keep the first document of an id)"
                )
            if document.id in seen:
                repeats += 1
                continue
            seen.add(document.id)
            yield document
        if repeats:
            message = f"{repeats:,} documents of {self.name} were left out: their ids were used before"
            warnings.warn(message, LsrWarning, stacklevel=2)
        if not seen:
            raise InputError(f"{self.name} holds no documents")


def read_corpus(source: CorpusSource, *, skip_repeats: bool = False) -> Corpus:
    """Find out what ``source`` is and return its documents.

    Accepted: a BEIR folder (``corpus.jsonl`` or ``corpus.jsonl.gz`` in it); a ``.jsonl`` file with
    ``_id`` (or ``id``), ``text``, optional ``title``; a ``.tsv`` file of ``id text`` or ``id title
    text``; both plain or ``.gz``; an ir-datasets id such as ``beir/scifact``; an iterable of
    `Document`, dicts, (id, text) pairs or plain texts, which then get their position as id.

    Args:
        source: one of these.
        skip_repeats: keep the first document of an id and leave out the others, instead of refusing.

    Raises:
        InputError: the source is missing or of no known kind. Reading raises FormatError for a
            broken line.
    """
    if skip_repeats:
        return replace(read_corpus(source), skip_repeats=True)
    if isinstance(source, Corpus):
        return source
    if not isinstance(source, str | os.PathLike):
        return _corpus_of_iterable(source)
    path = Path(source)
    if path.is_dir():
        path = find_file(path, "corpus.jsonl")
    if path.is_file():
        return Corpus(str(path), lambda: (Document(*record) for record in _read_records(path)))
    dataset = load_ir_dataset(str(source))
    return Corpus(str(source), lambda: (_ir_document(doc) for doc in dataset.docs_iter()))


def read_queries(path: str | os.PathLike[str], *, skip_repeats: bool = False) -> Iterator[Query]:
    """Yield the queries of a JSONL or TSV file, plain or .gz.

    Args:
        path: the file.
        skip_repeats: as in `unique_queries`.

    Raises:
        FormatError: with file, line and reason.
        InputError: an id is used twice.
    """
    queries = (Query(query_id, text) for query_id, text, _ in _read_records(Path(path)))
    return unique_queries(queries, str(path), skip_repeats=skip_repeats)


def unique_queries(queries: Iterable[Query], name: str, *, skip_repeats: bool = False) -> Iterator[Query]:
    """Yield queries, refusing a repeated id.

    Args:
        queries: the queries.
        name: what messages call them.
        skip_repeats: keep the first query of an id and leave out the others, instead of refusing.

    Raises:
        InputError: an id is used twice.
    """
    seen: set[str] = set()
    repeats = 0
    for query in queries:
        if query.id not in seen:
            seen.add(query.id)
            yield query
        elif skip_repeats:
            repeats += 1
        else:
            raise InputError(
                f"{name}: the query id {query.id!r} is used twice: ids must be unique "
                "(skip_repeats=True, --skip-repeats, data.skip_repeats=true keep the first query of an id)"
            )
    if repeats:
        message = f"{repeats:,} queries of {name} were left out: their ids were used before"
        warnings.warn(message, LsrWarning, stacklevel=2)


def together(corpora: Sequence[Corpus]) -> Corpus:
    """Several corpora as one, for statistics over all: the i-th one's ids get ``i/`` before them."""
    if len(corpora) == 1:
        return corpora[0]

    def read() -> Iterator[Document]:
        for i, corpus in enumerate(corpora):
            yield from (replace(document, id=f"{i}/{document.id}") for document in corpus)

    return Corpus(", ".join(corpus.name for corpus in corpora), read)


def find_file(folder: Path, name: str) -> Path:
    """``folder/name`` or ``folder/name.gz``, whichever exists.

    Raises:
        InputError: neither does.
    """
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise InputError(f"{folder} has no {name} or {name}.gz: a BEIR folder holds corpus, queries and qrels")


def load_ir_dataset(name: str) -> Any:
    """The ir-datasets dataset called ``name``.

    Raises:
        InputError: there is none of that name (nor a file).
    """
    ir_datasets = optional_import("ir_datasets", "eval", f"{name!r} is no file or folder here; reading it by name")
    try:
        return ir_datasets.load(name)
    except KeyError as error:
        near = difflib.get_close_matches(name, list(ir_datasets.registry), n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise InputError(f"{name!r} is neither a file, nor a folder, nor an ir-datasets id{hint}") from error


def _ir_document(doc: Any) -> Document:
    text = doc.text if hasattr(doc, "text") else doc.default_text()
    title = getattr(doc, "title", "") if hasattr(doc, "text") else ""
    return Document(doc.doc_id, text or "", title or "")


def _corpus_of_iterable(source: Iterable[Any]) -> Corpus:
    if isinstance(source, Mapping):
        source = list(source.items())
    if isinstance(source, Iterator):
        source = list(source)  # a generator can be read once, a corpus again
    if not isinstance(source, Iterable):
        raise InputError(f"a corpus is a path, an ir-datasets id or an iterable, not {type(source).__name__}")
    documents = source
    return Corpus("the given documents", lambda: (_as_document(i, item) for i, item in enumerate(documents)))


def _as_document(position: int, item: Any) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(str(position), item)
    if isinstance(item, Mapping):
        record, reason = _parse_fields(item)
        if record is not None:
            return Document(*record)
        raise InputError(f"document number {position + 1}: {reason}")
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return Document(*item)
    if isinstance(item, tuple):
        raise InputError(f"document number {position + 1} is {item!r}: a pair must be an id and a text, both strings")
    raise InputError(
        f"document number {position + 1} is a {type(item).__name__}: give lsr.Document, "
        "a dict with id and text, an (id, text) pair or a text"
    )


def _read_records(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (id, text, title) from a JSONL or TSV file."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind in (".jsonl", ".json", ".ndjson"):
        return _read_jsonl(path)
    if kind in (".tsv", ".txt"):
        return _read_tsv(path)
    raise InputError(f"{path} has no known ending: use .jsonl or .tsv, plain or .gz")


def _read_jsonl(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, fields in json_lines(path):
        record, reason = _parse_fields(fields)
        if record is None:
            raise FormatError(f"{path}:{number}: {reason}")
        yield record


def _parse_fields(fields: Any) -> tuple[tuple[str, str, str] | None, str]:
    """(id, text, title) of one JSON object, or None and the reason why not."""
    if not isinstance(fields, Mapping):
        return None, f"a line must be a JSON object, not {type(fields).__name__}"
    doc_id = next((fields[name] for name in ID_FIELDS if name in fields), None)
    text = next((fields[name] for name in TEXT_FIELDS if name in fields), None)
    title = fields.get("title")
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        doc_id = str(doc_id)
    if not isinstance(doc_id, str):
        return None, f"no id as a string or integer (looked for {', '.join(ID_FIELDS)})"
    if not isinstance(text, str):
        return None, f"no text as a string (looked for {', '.join(TEXT_FIELDS)})"
    if title is not None and not isinstance(title, str):
        return None, f"the title is a {type(title).__name__}, not a string"
    return (doc_id, text, title or ""), ""


def _read_tsv(path: Path) -> Iterator[tuple[str, str, str]]:
    columns: list[str] | None = None
    for number, line in open_lines(path):
        fields = line.split("\t")
        if number == 1 and fields[0].lower() in ID_FIELDS and "text" in map(str.lower, fields):
            columns = ["id", *map(str.lower, fields[1:])]
            continue
        if not line.strip():
            continue
        names = columns or (["id", "text"] if len(fields) == 2 else ["id", "title", "text"])
        if len(fields) != len(names):
            raise FormatError(
                f"{path}:{number}: {len(fields)} tab-separated fields where {len(names)} were expected "
                f"({', '.join(names)})"
            )
        row = dict(zip(names, fields, strict=True))
        yield row["id"], row["text"], row.get("title", "")
