"""Test collections: documents, queries and qrels of a BEIR folder or an ir-datasets id."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsr.corpus import Corpus, find_file, load_ir_dataset, read_corpus, read_queries
from lsr.errors import InputError
from lsr.records import Document, Query
from lsr.run import Qrels, read_qrels


@dataclass(frozen=True)
class Dataset:
    """A test collection.

    Attributes:
        name: what it was asked for as, with its split.
        corpus: the documents.
        queries: the judged queries of the split, in file order.
        qrels: the split's judgments.
    """

    name: str
    corpus: Corpus
    queries: list[Query]
    qrels: Qrels


def load_dataset(source: str | os.PathLike[str], split: str | None = None, *, skip_repeats: bool = False) -> Dataset:
    """Load queries and qrels; documents stream when they are read.

    Args:
        source: a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; plain or .gz), or an
            ir-datasets id such as ``beir/scifact/test``.
        split: which qrels; by default "test", for an ir-datasets id what the id says.
        skip_repeats: see `lsr.read_corpus`.

    Raises:
        InputError: there is no such collection or split, or a judged query has no text.
    """
    dataset = _load_folder(Path(source), split or "test") if Path(source).is_dir() else _load_ir(str(source), split)
    return replace(dataset, corpus=read_corpus(dataset.corpus, skip_repeats=skip_repeats))


def _load_folder(folder: Path, split: str) -> Dataset:
    corpus = read_corpus(folder)
    there = sorted({path.name.split(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*")})
    if split not in there:
        raise InputError(f"{folder} has no split {split!r}: it has {', '.join(there) or 'no qrels at all'} (--split)")
    qrels = read_qrels(find_file(folder / "qrels", f"{split}.tsv"))
    queries = read_queries(find_file(folder, "queries.jsonl"))
    return Dataset(f"{folder.name}/{split}", corpus, _judged(queries, qrels, str(folder)), qrels)


def _load_ir(name: str, split: str | None) -> Dataset:
    if split is not None and not name.endswith(f"/{split}"):
        name = f"{name}/{split}"
    dataset = load_ir_dataset(name)
    if not (dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()):
        import ir_datasets

        inside = [known for known in ir_datasets.registry if str(known).startswith(f"{name}/")]
        hint = f": try {' or '.join(sorted(inside)[:4])}" if inside else ""
        raise InputError(f"the ir-datasets id {name!r} has no documents, queries or qrels{hint}")
    qrels: Qrels = {}
    for qrel in dataset.qrels_iter():
        qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = int(qrel.relevance)
    queries = (Query(query.query_id, _query_text(query)) for query in dataset.queries_iter())
    return Dataset(name, read_corpus(name), _judged(queries, qrels, name), qrels)


def _query_text(query: Any) -> str:
    return str(query.text if hasattr(query, "text") else query.default_text())


def _judged(queries: Iterator[Query], qrels: Qrels, name: str) -> list[Query]:
    kept = [query for query in queries if query.id in qrels]
    missing = set(qrels) - {query.id for query in kept}
    if missing:
        raise InputError(f"{name}: {len(missing):,} judged queries have no text (such as {sorted(missing)[0]!r})")
    return kept


def queries_are_documents(queries: Sequence[Query], documents: dict[str, Document]) -> bool:
    """Whether the collection's queries stand in its corpus under their own ids (ArguAna, Quora).

    Then the query finds itself first, and such hits have to be dropped. Equal ids alone prove
    nothing: in Cranfield, query 1 and document 1 have nothing to do with each other. So the texts of
    equal ids are compared.

    Args:
        queries: the queries.
        documents: the documents whose id is some query's id.
    """
    shared = [query for query in queries if query.id in documents]
    same = [query for query in shared if _same_text(query.text, documents[query.id])]
    return len(shared) > 0 and 2 * len(same) >= len(shared)


def _same_text(text: str, document: Document) -> bool:
    words = text.lower().split()
    return words in (document.text.lower().split(), document.content.lower().split())
