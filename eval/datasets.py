"""Test collections: documents, queries and qrels of a BEIR folder or an ir-datasets id, and the groups of
them that papers report on.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsr.corpus import Corpus, find_file, load_ir_dataset, read_corpus, read_queries, unique_queries
from lsr.errors import InputError
from lsr.eval.metrics import DEFAULT_METRICS
from lsr.records import Document, Query
from lsr.run import Qrels, read_qrels


@dataclass(frozen=True)
class Collection:
    """Which test collection, and how the field measures it.

    Attributes:
        name: what it is called in tables: "beir:nq", an ir-datasets id, a folder.
        source: what `load_dataset` takes.
        metrics: those that papers report, the main one first.
        depth: length of the ranked lists that they are measured on.
        group: "beir" or "msmarco"; empty for any other.
    """

    name: str
    source: str
    metrics: tuple[str, ...] = DEFAULT_METRICS
    depth: int = 100
    group: str = ""


#: The 13 public collections of BEIR (Thakur et al., NeurIPS 2021), over which papers average nDCG@10.
BEIR = {
    "arguana": "beir/arguana",
    "climate-fever": "beir/climate-fever",
    "dbpedia-entity": "beir/dbpedia-entity/test",
    "fever": "beir/fever/test",
    "fiqa": "beir/fiqa/test",
    "hotpotqa": "beir/hotpotqa/test",
    "nfcorpus": "beir/nfcorpus/test",
    "nq": "beir/nq",
    "quora": "beir/quora/test",
    "scidocs": "beir/scidocs",
    "scifact": "beir/scifact/test",
    "trec-covid": "beir/trec-covid",
    "webis-touche2020": "beir/webis-touche2020/v2",
}
#: MS MARCO passages. The tracks' judgments are graded: 2 and 3 are relevant, 1 is not.
MSMARCO = {
    "dev": ("msmarco-passage/dev/small", ("mrr@10", "recall@1000")),
    "dl19": ("msmarco-passage/trec-dl-2019/judged", ("ndcg@10", "map@1000-l2", "recall@1000-l2")),
    "dl20": ("msmarco-passage/trec-dl-2020/judged", ("ndcg@10", "map@1000-l2", "recall@1000-l2")),
}
GROUPS: dict[str, dict[str, Collection]] = {
    "beir": {
        name: Collection(f"beir:{name}", source, ("ndcg@10", "recall@100"), 100, "beir")
        for name, source in BEIR.items()
    },
    "msmarco": {
        name: Collection(f"msmarco:{name}", source, metrics, 1000, "msmarco")
        for name, (source, metrics) in MSMARCO.items()
    },
}


def find_collections(names: Sequence[str]) -> list[Collection]:
    """The collections that names stand for, in that order, none twice.

    Args:
        names: ``beir:all``, ``msmarco:all``, a member such as ``beir:nq`` or ``msmarco:dl19``, an
            ir-datasets id, or a BEIR folder. An id that is a member of a group is measured as the group is.

    Raises:
        InputError: a group has no such member.
    """
    known = {member.source: member for members in GROUPS.values() for member in members.values()}
    found: dict[str, Collection] = {}
    for name in map(str, names):
        group, colon, member = name.partition(":")
        if colon and group in GROUPS and not Path(name).exists():
            chosen = list(GROUPS[group].values()) if member == "all" else [_member(group, member)]
        else:
            chosen = [replace(known[name], name=name) if name in known else Collection(name, name)]
        for collection in chosen:
            found.setdefault(collection.source, collection)
    return [_short(collection, found) for collection in found.values()]


def _short(collection: Collection, found: Mapping[str, Collection]) -> Collection:
    """A folder by its name alone, if no other has that name."""
    short = Path(collection.source).name
    alone = sum(Path(other).name == short for other in found) == 1
    return replace(collection, name=short) if alone and Path(collection.source).is_dir() else collection


def _member(group: str, name: str) -> Collection:
    if name not in GROUPS[group]:
        near = difflib.get_close_matches(name, GROUPS[group], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"{group} has no {name!r}{hint}: it has all, {', '.join(GROUPS[group])}")
    return GROUPS[group][name]


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
        skip_repeats: see `lsr.read_corpus`; for queries too.

    Raises:
        InputError: there is no such collection or split, a query id is used twice, or a judged query has no text.
    """
    if Path(source).is_dir():
        dataset = _load_folder(Path(source), split or "test", skip_repeats)
    else:
        dataset = _load_ir(str(source), split, skip_repeats)
    return replace(dataset, corpus=read_corpus(dataset.corpus, skip_repeats=skip_repeats))


def _load_folder(folder: Path, split: str, skip_repeats: bool) -> Dataset:
    corpus = read_corpus(folder)
    there = sorted({path.name.split(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*")})
    if split not in there:
        raise InputError(f"{folder} has no split {split!r}: it has {', '.join(there) or 'no qrels at all'} (--split)")
    qrels = read_qrels(find_file(folder / "qrels", f"{split}.tsv"))
    queries = read_queries(find_file(folder, "queries.jsonl"), skip_repeats=skip_repeats)
    return Dataset(f"{folder.name}/{split}", corpus, _judged(queries, qrels, str(folder)), qrels)


def _load_ir(name: str, split: str | None, skip_repeats: bool) -> Dataset:
    if split is not None and not name.endswith(f"/{split}"):
        name = f"{name}/{split}"
    dataset = load_ir_dataset(name)
    if not (dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()):
        import ir_datasets

        inside = [known for known in ir_datasets.registry if str(known).startswith(f"{name}/")]
        hint = f": try {' or '.join(sorted(inside)[:4])}" if inside else ""
        raise InputError(f"the ir-datasets id {name!r} has no documents, queries or qrels{hint}")
    qrels: Qrels = {}
    try:
        for qrel in dataset.qrels_iter():
            qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = int(qrel.relevance)
        queries = [Query(query.query_id, _query_text(query)) for query in dataset.queries_iter()]
    except OSError as error:
        if error.filename:
            raise  # of the disk: named by its file
        raise InputError(
            f"ir-datasets has no {name!r} on this machine and could not download it ({type(error).__name__}): "
            "check the network, or name a BEIR folder"
        ) from error
    unique = unique_queries(queries, name, skip_repeats=skip_repeats)
    return Dataset(name, read_corpus(_documents_of(name)), _judged(unique, qrels, name), qrels)


def _documents_of(name: str) -> str:
    """The ir-datasets id of a dataset's documents: collections that share them name the same."""
    import ir_datasets

    return str(ir_datasets.docs_parent_id(name))


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
    own = replace(document, expansion="")
    return words in (own.text.lower().split(), own.content.lower().split())
