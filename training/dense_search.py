"""Exact search by a dense model, to mine negatives that share no words with a query: all documents by brute force."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lsr.errors import InputError
from lsr.run import Ranking
from lsr.training import mine
from lsr.training.stores import DenseStore
from lsr.training.teachers import Teacher, VectorTeacher
from lsr.training.texts import TextTable

#: Queries that are multiplied with all documents at a time. As many as the miner writes at once, so that a mining that
#: goes on multiplies the same matrices: those of other shapes give scores that differ in their last bits.
QUERIES_AT_A_TIME = mine.QUERIES_AT_A_TIME


def dense_rankings(
    teacher: VectorTeacher,
    queries: NDArray[np.int64],
    documents: TextTable,
    query_ids: Sequence[str],
    k: int,
    *,
    done: int = 0,
    device: str | None = None,
) -> Iterator[tuple[str, Ranking]]:
    """The k documents of the largest dot products, query by query.

    Args:
        teacher: a dense teacher (`lsr.training.teachers.load_teacher`), see `require_dense`.
        queries: int64 (n,), rows in the teacher's table of queries.
        documents: its table of documents, for their ids.
        query_ids: n names of the queries.
        k: documents each; of equal scores those of the smaller rows come first.
        done: so many of the queries are left out.
        device: where to multiply; by default CUDA where there is one.
    """
    stores = require_dense(teacher)
    teacher.prepare(queries[done:], np.arange(len(documents)), progress=True)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    matrix = torch.from_numpy(stores[1].matrix()).to(place)
    for start in range(done, len(queries), QUERIES_AT_A_TIME):
        part = queries[start : start + QUERIES_AT_A_TIME]
        best = torch.topk(torch.from_numpy(stores[0].matrix(part)).to(place) @ matrix.T, min(k, len(documents)))
        names = query_ids[start : start + len(part)]
        for query_id, rows, scores in zip(names, best.indices.cpu().numpy(), best.values.cpu().numpy(), strict=True):
            order = np.lexsort((rows, -scores))
            yield query_id, Ranking([documents.id(int(row)) for row in rows[order]], scores[order])


def require_dense(teacher: Teacher) -> tuple[DenseStore, DenseStore]:
    """The vectors of a dense teacher's queries and documents.

    Raises:
        InputError: the teacher is no dense one.
    """
    if isinstance(teacher, VectorTeacher):
        stores = teacher.queries, teacher.documents
        if isinstance(stores[0], DenseStore) and isinstance(stores[1], DenseStore):
            return stores[0], stores[1]
    raise InputError(f"{teacher.name} is no dense model: write dense:FOLDER, or another kind of dense, or use --model")
