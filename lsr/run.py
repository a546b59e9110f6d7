"""Runs and qrels: ranked lists per query, the judgments they are held against, and their files.

The tie rule: score descending; equal scores keep the order they came in, which for an index is the
order in which the documents were added, and for a run file its rank column.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lsr.errors import FormatError, InputError
from lsr.files import open_lines, replacing

#: query id → document id → grade. A grade of 1 or more is relevant.
Qrels: TypeAlias = dict[str, dict[str, int]]

#: A line of a run file: (-score, rank, document id), which sort as they rank.
RunRow: TypeAlias = tuple[float, int, str]


class Ranking(NamedTuple):
    """One query's documents, best first: ids, and float32 scores of the same length."""

    doc_ids: list[str]
    scores: NDArray[np.float32]


class Run(Mapping[str, Ranking]):
    """Ranked lists by query id. A query that found nothing has an empty ranking, not none."""

    def __init__(self, rankings: Mapping[str, Ranking], name: str = "lsr") -> None:
        self.name = name
        self._rankings = dict(rankings)
        for query_id, (doc_ids, scores) in self._rankings.items():
            if len(doc_ids) != len(scores):
                raise InputError(f"query {query_id!r} has {len(doc_ids)} documents but {len(scores)} scores")
            if len(set(doc_ids)) != len(doc_ids):
                raise InputError(f"query {query_id!r} ranks a document twice")
            if np.any(np.isnan(scores)) or np.any(scores[1:] > scores[:-1]):
                raise InputError(f"query {query_id!r} is not ranked: scores must descend and not be NaN")

    def __getitem__(self, query_id: str) -> Ranking:
        return self._rankings[query_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rankings)

    def __len__(self) -> int:
        return len(self._rankings)

    def without_self_matches(self) -> "Run":
        """Drop hits whose document id is the query id (ArguAna, Quora: the query is in the corpus)."""
        kept = {}
        for query_id, (doc_ids, scores) in self.items():
            keep = [rank for rank, doc_id in enumerate(doc_ids) if doc_id != query_id]
            kept[query_id] = Ranking([doc_ids[rank] for rank in keep], scores[keep])
        return Run(kept, self.name)

    def truncated(self, k: int) -> "Run":
        """The first ``k`` documents of every ranking."""
        return Run({q: Ranking(docs[:k], scores[:k]) for q, (docs, scores) in self.items()}, self.name)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a TREC run file: ``query Q0 document rank score name``, ranks from 1.

        Scores are printed with the digits that give the same float32 back. The format cannot say
        that a query found nothing: such queries have no line.

        Raises:
            InputError: an id is empty or holds white space, which the format cannot carry.
        """
        name = "_".join(self.name.split()) or "lsr"
        with replacing(path) as file:
            for query_id, (doc_ids, scores) in self.items():
                for rank, (doc_id, score) in enumerate(zip(doc_ids, scores, strict=True), start=1):
                    if f"{query_id} {doc_id}".split() != [query_id, doc_id]:
                        raise InputError(
                            f"{query_id!r} / {doc_id!r} cannot be written to a TREC run file: "
                            "ids must be non-empty and without white space"
                        )
                    file.write(f"{query_id} Q0 {doc_id} {rank} {float(score):.9g} {name}\n")


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a TREC run file; rankings are sorted by score, ties by rank.

    Raises:
        FormatError: with file, line and reason.
    """
    rows: dict[str, list[RunRow]] = {}
    seen: set[tuple[str, str]] = set()
    name = Path(path).stem
    for number, query_id, row, name in run_lines(path):  # noqa: B007 – the run has its last line's name
        doc_id = row[2]
        if (query_id, doc_id) in seen:
            raise FormatError(f"{path}:{number}: document {doc_id!r} is listed twice for query {query_id!r}")
        seen.add((query_id, doc_id))
        rows.setdefault(query_id, []).append(row)
    return Run({query_id: ranking_of(ranked) for query_id, ranked in rows.items()}, name)


def run_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, RunRow, str]]:
    """Yield (line number, query id, row, run's name) of a TREC run file, in the file's order.

    Raises:
        FormatError: with file, line and reason; or there is no line.
    """
    empty = True
    for number, line in open_lines(path):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 6:
            raise FormatError(f"{path}:{number}: a TREC run line has 6 fields, this one has {len(fields)}")
        query_id, _, doc_id, rank, score, name = fields
        try:
            row = (-float(score), int(rank), doc_id)
        except ValueError as error:
            raise FormatError(f"{path}:{number}: rank must be an integer and score a number: {error}") from error
        if math.isnan(row[0]):
            raise FormatError(f"{path}:{number}: the score of document {doc_id!r} is NaN")
        empty = False
        yield number, query_id, row, name
    if empty:
        raise FormatError(f"{path} holds no run line")


def ranking_of(rows: list[RunRow]) -> Ranking:
    """One query's rows as a ranking: by score, ties by rank."""
    rows = sorted(rows)
    return Ranking([doc_id for _, _, doc_id in rows], np.array([-score for score, _, _ in rows], dtype=np.float32))


def read_qrels(path: str | os.PathLike[str]) -> Qrels:
    """Read judgments: BEIR's ``query-id corpus-id score`` with a header, or TREC's four columns.

    Raises:
        FormatError: with file, line and reason.
    """
    qrels: Qrels = {}
    for number, line in open_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and fields[0] == "query-id"):
            continue
        if len(fields) not in (3, 4):
            raise FormatError(f"{path}:{number}: a qrels line has 3 (BEIR) or 4 (TREC) fields, not {len(fields)}")
        try:
            grade = int(fields[-1])
        except ValueError as error:
            raise FormatError(f"{path}:{number}: the grade {fields[-1]!r} is not an integer") from error
        qrels.setdefault(fields[0], {})[fields[-2]] = grade
    if not qrels:
        raise FormatError(f"{path} holds no judgments")
    return qrels
