"""Training data: sources of rows and texts, examples drawn from them, batches of tensors.

Which positive and which negatives an example has depends on (seed, epoch, position) only: not on
workers, ranks or what was drawn before. Texts, tokens and rows are memory-mapped (`lsr.training.texts`,
`lsr.training.rows`), so that a worker process holds none of them.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr.corpus import CorpusSource, read_corpus
from lsr.errors import InputError, LsrWarning
from lsr.records import Query
from lsr.tokenizer import ModelTokenizer
from lsr.training.rows import RowTable, row_table
from lsr.training.score_files import read_scores
from lsr.training.texts import TextTable, TokenTable, document_table, query_table, token_table


@dataclass(frozen=True)
class Source:
    """A training file, and the collection whose ids it uses.

    Attributes:
        path: JSONL of rows (plain or .gz), or a file of judgments.
        collection: a BEIR folder with corpus and queries; for judgments, by default the folder they are in.
        corpus: what `lsr.read_corpus` takes, instead of the collection's.
        queries: a file of queries, or queries, instead of the collection's.
        weight: how often each row is drawn in an epoch; .5 draws one half of them, the other half in the next. A query
            table is learned from all, with this weight of each.
        skip_repeats: keep the first document or query of an id that is used twice.
    """

    path: str | os.PathLike[str]
    collection: str | os.PathLike[str] | None = None
    corpus: "CorpusSource | None" = None
    queries: str | os.PathLike[str] | Iterable[Query] | None = None
    weight: float = 1.0
    skip_repeats: bool = False

    def open(self, cache: Path) -> "Tables":
        """Read the source, through the cache.

        Raises:
            InputError, FormatError: something is missing or broken; with file, line and id.
        """
        path = Path(self.path)
        home = self.collection
        if home is None and path.parent.name == "qrels":
            home = path.parent.parent
        if home is None and (self.corpus is None or self.queries is None):
            raise InputError(f"{path} is a file of ids: name the collection (or corpus and queries) that has the texts")
        if not (isinstance(self.weight, int | float) and 0 < self.weight < float("inf")):
            raise InputError(f"{path}: a source's weight must be a positive number, not {self.weight!r}")
        corpus = read_corpus(home if self.corpus is None else self.corpus, skip_repeats=self.skip_repeats)  # type: ignore[arg-type]
        documents = document_table(cache, corpus)
        asked = home if self.queries is None else self.queries
        queries = query_table(cache, asked, skip_repeats=self.skip_repeats)  # type: ignore[arg-type]
        return Tables(queries, documents, row_table(cache, path, queries, documents))


@dataclass(frozen=True)
class Tables:
    """What a source is made of."""

    queries: TextTable
    documents: TextTable
    rows: RowTable


@dataclass(frozen=True)
class Example:
    """A query with one positive and n − 1 negatives.

    Attributes:
        query_id, query: the query.
        doc_ids, documents: ids and texts of the n documents, the positive first.
        scores: the teacher's scores of the n documents, if the training files have any.
        base: what is added to the student's scores of the n documents, if anything.
        positives: ids of all known positives.
        source: which of the set's sources it is from.
        corpus: a number that sources of the same corpus share.
        query_row: row of the query in its source's query table.
        doc_rows: int64 (n,), rows of the documents in the source's document table.
        positive_rows: int64, those of all known positives.
    """

    query_id: str
    query: str
    doc_ids: list[str]
    documents: list[str]
    scores: list[float] | None
    base: list[float] | None
    positives: frozenset[str]
    source: int
    corpus: int
    query_row: int
    doc_rows: NDArray[np.int64]
    positive_rows: NDArray[np.int64]


class Batch(TypedDict):
    """b queries with n documents each; document j of query i is row i · n + j, the positive first (j = 0).

    Attributes:
        query_ids, query_mask: int64 (b, lq).
        document_ids, document_mask: int64 (b · n, ld).
        teacher_scores: float32 (b, n), or None.
        base_scores: float32 (b, n), or None: scores of a fixed part that are added to the student's.
        false_negatives: bool (b, b · n), True where a document of the batch is a known positive of the
            query in a place other than its own positive's: in-batch negatives must skip it.
    """

    query_ids: Tensor
    query_mask: Tensor
    document_ids: Tensor
    document_mask: Tensor
    teacher_scores: Tensor | None
    base_scores: Tensor | None
    false_negatives: Tensor


#: Scores of the documents of b examples on the fly: float32 (b, n).
Scorer: TypeAlias = Callable[[Sequence[Example]], NDArray[np.float32]]


class TrainingSet(torch.utils.data.Dataset[Example]):
    """A map-style dataset of examples drawn from several sources.

    ``training_set[epoch, i]`` draws example i of an epoch; ``training_set[i]`` uses the epoch last given
    to `set_epoch`. A query without enough negatives gets random documents of its corpus instead, or,
    where teacher scores are used, some of its own twice.

    Args:
        sources: where rows and texts come from; weights say how often.
        negatives: hard negatives per example, so that n = 1 + negatives.
        seed: of all choices.
        scores: True where teacher scores are needed, False where they are ignored; by default they are
            used if the files have them.
        base: the name of a teacher whose score files (`lsr.training.score_files`) give each example's base scores:
            those of a fixed part that the student's are added to, such as BM25 (arXiv 2004.13969).
        base_weight: base scores are multiplied by it.
        cache: folder where texts, tokens and rows are kept for later calls; by default a temporary one.

    Raises:
        InputError, FormatError: a positive that is not in the corpus, a query without text, two rows of one
            query, a missing teacher score; with file, line and id.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        negatives: int,
        seed: int = 0,
        *,
        scores: bool | None = None,
        base: str | None = None,
        base_weight: float = 1.0,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if not sources:
            raise InputError("a training set needs a source at least")
        if isinstance(negatives, bool) or not isinstance(negatives, int) or negatives < 0:
            raise InputError(f"negatives must be an integer of at least 0: got {negatives!r}")
        self._temporary = tempfile.TemporaryDirectory(prefix="lsr-training-") if cache is None else None
        self.cache = Path(self._temporary.name if self._temporary else cache)  # type: ignore[arg-type]
        self.sources = tuple(sources)
        self.negatives = negatives
        self.seed = seed
        self.epoch = 0
        self.tables = [source.open(self.cache) for source in sources]
        folders = [tables.documents.folder for tables in self.tables]
        self._corpora = [folders.index(folder) for folder in folders]
        self.scored = _check_scores(self.tables, scores)
        self.base_weight = base_weight
        self._bases = None if base is None else [read_scores(tables, base) for tables in self.tables]
        self._check_negatives()
        drawn = [max(1, round(s.weight * len(t.rows))) for s, t in zip(self.sources, self.tables, strict=True)]
        self._ends = np.cumsum(drawn)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_temporary": None}  # a worker must not delete the folder

    def __len__(self) -> int:
        return int(self._ends[-1])

    def set_epoch(self, epoch: int) -> None:
        """The epoch that plain positions are drawn from."""
        self.epoch = epoch

    def source_of(self, i: int) -> int:
        """Which source position i is drawn from."""
        return int(np.searchsorted(self._ends, i, side="right"))

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        epoch, i = key if isinstance(key, tuple) else (self.epoch, key)
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        source = self.source_of(i)
        tables = self.tables[source]
        before = int(self._ends[source - 1]) if source else 0
        turn = epoch * (int(self._ends[source]) - before) + i - before
        row = int(self._orders[source][turn % len(tables.rows)])
        chosen = self._choose(tables, row, np.random.default_rng([self.seed, epoch, i]))
        candidates = tables.rows.candidates_of(row)
        known = chosen < len(candidates)  # the others are random documents
        doc_rows = np.where(known, candidates[np.where(known, chosen, 0)], chosen - len(candidates)).astype(np.int64)
        positive_rows = candidates[: tables.rows.n_positives[row]].astype(np.int64)
        query_row = int(tables.rows.queries[row])
        places = tables.rows.starts[row] + chosen
        scores = tables.rows.scores[places].tolist() if self.scored else None
        base = None if self._bases is None else (self.base_weight * self._bases[source][places]).tolist()
        return Example(
            query_id=tables.queries.id(query_row),
            query=tables.queries.text(query_row),
            doc_ids=[tables.documents.id(d) for d in doc_rows],
            documents=[tables.documents.text(d) for d in doc_rows],
            scores=scores,
            base=base,
            positives=frozenset(tables.documents.id(d) for d in positive_rows),
            source=source,
            corpus=self._corpora[source],
            query_row=query_row,
            doc_rows=doc_rows,
            positive_rows=positive_rows,
        )

    def _choose(self, tables: Tables, row: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Places in the row's candidates, (1 + negatives,), the positive first.

        A document of the corpus that is no candidate gets the place candidates + its row.
        """
        n_positives = int(tables.rows.n_positives[row])
        n_candidates = len(tables.rows.candidates_of(row))
        positive = rng.integers(n_positives, size=1)
        order = n_positives + rng.permutation(n_candidates - n_positives)
        missing = self.negatives - len(order)
        if missing <= 0:
            return np.concatenate([positive, order[: self.negatives]])
        if self._scored_only:
            return np.concatenate([positive, np.resize(order, self.negatives)])
        own = set(tables.rows.candidates_of(row).tolist())
        filling: list[int] = []
        while len(filling) < missing:
            document = int(rng.integers(len(tables.documents)))
            if document not in own:
                own.add(document)
                filling.append(n_candidates + document)
        return np.concatenate([positive, order, filling]).astype(np.int64)

    @property
    def _scored_only(self) -> bool:
        """Whether an example may only have documents of its row: others have no score."""
        return self.scored or self._bases is not None

    @cached_property
    def _orders(self) -> list[NDArray[np.int32]]:
        """A fixed order of each source's rows, 4 bytes a row: epochs draw consecutive parts of it."""
        return [
            np.random.default_rng([self.seed, source]).permutation(len(tables.rows)).astype(np.int32)
            for source, tables in enumerate(self.tables)
        ]

    def _check_negatives(self) -> None:
        """Say which rows have too few negatives, and refuse those that cannot be filled."""
        for tables in self.tables:
            lacking = tables.rows.n_negatives < self.negatives
            if not lacking.any():
                continue
            n_candidates = int(np.diff(tables.rows.starts).max())
            if self._scored_only and (tables.rows.n_negatives == 0).any():
                row = int(np.flatnonzero(tables.rows.n_negatives == 0)[0])
                raise InputError(
                    f"{_line(tables, row)} has no negative, and a random one would have no teacher score: mine "
                    "negatives and score them, or leave the row out"
                )
            if not self._scored_only and len(tables.documents) < n_candidates + self.negatives:
                raise InputError(
                    f"{tables.rows.path}: {self.negatives} negatives a query are more than the "
                    f"{len(tables.documents):,} documents of {tables.documents.name} allow: ask for fewer"
                )
            filler = "some of them are repeated" if self._scored_only else "random documents fill the gap"
            warnings.warn(
                f"{int(lacking.sum()):,} of {len(lacking):,} queries of {tables.rows.path} have fewer than "
                f"{self.negatives} negatives: {filler}",
                LsrWarning,
                stacklevel=3,
            )


def _check_scores(tables: list[Tables], wanted: bool | None) -> bool:
    """Whether teacher scores are used; refuses files that lack some."""
    if wanted is False or (not wanted and all(np.isnan(source.rows.scores).all() for source in tables)):
        return False
    for source in tables:
        require_scores(source, "" if wanted else ", or ignore the scores (scores=False)")
    return True


def require_scores(tables: Tables, otherwise: str = "") -> None:
    """Refuse a training file that lacks a score of some document, with its line.

    Raises:
        InputError: as said.
    """
    missing = np.isnan(tables.rows.scores)
    if missing.any():
        place = int(np.flatnonzero(missing)[0])
        row = int(np.searchsorted(tables.rows.starts, place, side="right")) - 1
        doc_id = tables.documents.id(int(tables.rows.candidates[place]))
        raise InputError(
            f"{_line(tables, row)} has no teacher score for document {doc_id!r}: score the file with lsr distill"
            + otherwise
        )


def _line(tables: Tables, row: int) -> str:
    """A row, for messages."""
    number = int(tables.rows.lines[row])
    place = f"{tables.rows.path}:{number}" if number else str(tables.rows.path)
    return f"{place}: the query {tables.queries.id(int(tables.rows.queries[row]))!r}"


class Collator:
    """Examples to a `Batch`, padded to the longest text of the batch.

    Args:
        query_tokenizer: of the query side, with its maximum length.
        document_tokenizer: of the document side.
        training_set: where the examples come from. With it, all its texts are tokenized now (once: the
            tokens stay in its cache) and batches are gathered from memory-mapped tokens; without, the
            texts of each batch are tokenized when it is made.
        scorer: gives teacher scores on the fly, instead of those of the training files.
        progress: show a bar on stderr while tokenizing.
    """

    def __init__(
        self,
        query_tokenizer: ModelTokenizer,
        document_tokenizer: ModelTokenizer,
        training_set: TrainingSet | None = None,
        *,
        scorer: Scorer | None = None,
        progress: bool = False,
    ) -> None:
        self.query_tokenizer = query_tokenizer
        self.document_tokenizer = document_tokenizer
        self.scorer = scorer
        self._tokens: list[tuple[TokenTable, TokenTable]] | None = None
        if training_set is not None:
            self._tokens = [
                (
                    token_table(training_set.cache, tables.queries, query_tokenizer, progress=progress),
                    token_table(training_set.cache, tables.documents, document_tokenizer, progress=progress),
                )
                for tables in training_set.tables
            ]

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """The batch of b examples of n documents each."""
        if self._tokens is None:
            queries = list(self.query_tokenizer([example.query for example in examples]).ids)
            documents = list(self.document_tokenizer([d for example in examples for d in example.documents]).ids)
        else:
            queries = [self._tokens[e.source][0][e.query_row] for e in examples]
            documents = [self._tokens[e.source][1][d] for e in examples for d in e.doc_rows]
        query_ids, query_mask = pad(queries)
        document_ids, document_mask = pad(documents)
        return Batch(
            query_ids=query_ids,
            query_mask=query_mask,
            document_ids=document_ids,
            document_mask=document_mask,
            teacher_scores=self._scores(examples),
            base_scores=_stack([example.base for example in examples]),
            false_negatives=torch.from_numpy(self._false_negatives(examples)),
        )

    def _scores(self, examples: Sequence[Example]) -> Tensor | None:
        if self.scorer is not None:
            return torch.from_numpy(np.asarray(self.scorer(examples), dtype=np.float32))
        return _stack([example.scores for example in examples])

    def _false_negatives(self, examples: Sequence[Example]) -> NDArray[np.bool_]:
        n = len(examples[0].doc_rows)
        rows = np.concatenate([example.doc_rows for example in examples])
        corpora = np.repeat([example.corpus for example in examples], n)
        mask = np.zeros((len(examples), len(rows)), dtype=bool)
        for i, example in enumerate(examples):
            mask[i] = np.isin(rows, example.positive_rows) & (corpora == example.corpus)
            mask[i, i * n] = False
        return mask


def _stack(scores: Sequence[list[float] | None]) -> Tensor | None:
    """float32 (b, n); None where there are none."""
    return None if scores[0] is None else torch.tensor(scores, dtype=torch.float32)


def pad(token_ids: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
    """Token ids padded with 0 to the longest, at least one long, and their mask: int64 (n, length) both."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(max(1, int(lengths.max())))[None] < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(token_ids)
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
