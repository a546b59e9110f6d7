"""What a search returns."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr.errors import InputError
from lsr.index.ids import Ids
from lsr.run import Ranking, Run


class Hits:
    """The best documents of n queries, best first; of equal scores, the document added first.

    A query may find fewer than k documents, since only documents that share a term with it are hits:
    the rest of its row is padding, ids None, rows -1 and scores -inf. ``hits[i]`` is query i's list
    of (id, score) without padding.

    Attributes:
        rows: int64 (n, k), positions of documents in the index.
        scores: float32 (n, k).
        counts: int64 (n,), hits found.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        scores: NDArray[np.float32],
        counts: NDArray[np.int64],
        ids: Ids,
    ):
        self.rows = rows
        self.scores = scores
        self.counts = counts
        self._ids = ids

    @property
    def ids(self) -> NDArray[Any]:
        """Document ids, an object array of str (n, k), None in the padding."""
        named = np.full(self.rows.shape, None, dtype=object)
        for query, count in enumerate(self.counts):
            named[query, :count] = self._ids.many(self.rows[query, :count])
        return named

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, query: int) -> list[tuple[str, float]]:
        count = self.counts[query]
        return list(
            zip(
                self._ids.many(self.rows[query, :count]),
                self.scores[query, :count].tolist(),
                strict=True,
            )
        )

    def __repr__(self) -> str:
        return f"Hits({len(self)} queries, k={self.rows.shape[1]}, {int(self.counts.sum()):,} found)"

    def to_run(self, query_ids: list[str], name: str = "lsr") -> Run:
        """The hits as a run, with an empty ranking for a query that found nothing.

        Raises:
            InputError: there are not as many ids as queries, or one is used twice.
        """
        if len(query_ids) != len(self) or len(set(query_ids)) != len(query_ids):
            raise InputError(f"{len(self):,} queries need as many different ids: got {len(set(query_ids)):,}")
        rankings = {}
        for query, (query_id, count) in enumerate(zip(query_ids, self.counts, strict=True)):
            rankings[query_id] = Ranking(self._ids.many(self.rows[query, :count]), self.scores[query, :count])
        return Run(rankings, name)
