"""Exact search by a dense model, to mine negatives that share no words with a query: all documents by brute force."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lsr.errors import InputError
from lsr.run import Ranking
from lsr.training.stores import DenseStore
from lsr.training.teachers import VectorTeacher
from lsr.training.texts import TextTable

#: Queries that are multiplied with all documents at a time.
QUERIES_AT_A_TIME = 512


def dense_rankings(
    teacher: VectorTeacher, queries: TextTable, documents: TextTable, query_ids: Sequence[str], k: int, done: int = 0
) -> Iterator[tuple[str, Ranking]]:
    """The k documents of the largest dot products, query by query in the order of ``query_ids``.

    Args:
        teacher: a dense teacher (`lsr.training.teachers.load_teacher`) over both tables.
        queries: texts by row.
        documents: texts by row.
        query_ids: whose rankings are wanted.
        k: documents each.
        done: so many of the queries are left out.

    Raises:
        InputError: the teacher is no dense one, or a query is not in its table.
    """
    if not (isinstance(teacher.queries, DenseStore) and isinstance(teacher.documents, DenseStore)):
        raise InputError(f"{teacher.name} is no dense model: mine with --model, or name a KIND of dense")
    rows = queries.rows_of(query_ids)
    if (rows < 0).any():
        raise InputError(f"the query {query_ids[int(np.argmin(rows))]!r} of the qrels is not in {queries.name}")
    teacher.prepare(rows[done:], np.arange(len(documents)), progress=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.from_numpy(teacher.documents.matrix()).to(device)
    for start in range(done, len(rows), QUERIES_AT_A_TIME):
        part = rows[start : start + QUERIES_AT_A_TIME]
        asked = torch.from_numpy(teacher.queries.matrix(part)).to(device)
        best = torch.topk(asked @ matrix.T, min(k, len(documents)))
        for query_id, found, scores in zip(
            query_ids[start : start + len(part)], best.indices.cpu().numpy(), best.values.cpu().numpy(), strict=True
        ):
            yield query_id, Ranking([documents.id(int(row)) for row in found], scores)
