"""Document ids beside row numbers: the only place that translates between the two."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr.errors import InputError


class StringTable:
    """Strings in one UTF-8 array, memory-mapped as it is: opening reads none of them.

    Attributes:
        data: uint8, the strings end to end.
        offsets: int64 (n + 1).
    """

    def __init__(self, data: NDArray[Any], offsets: NDArray[Any]) -> None:
        self.data = data
        self.offsets = offsets

    @classmethod
    def of(cls, strings: Iterable[str]) -> "StringTable":
        """Pack strings."""
        encoded = [string.encode("utf-8") for string in strings]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes().decode("utf-8")

    def many(self, rows: NDArray[Any]) -> list[str]:
        """The strings at several rows, at once: NumPy takes longer over one number than over ten."""
        view = self.data.data
        places = zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)
        return [str(view[start:stop], "utf-8") for start, stop in places]


class Ids(StringTable):
    """The documents' ids by row."""

    @classmethod
    def check(cls, ids: Iterable[str] | None, n_documents: int) -> "Ids":
        """Pack the ids of ``n_documents`` documents; None numbers them "0", "1", ….

        Raises:
            InputError: wrong number, not strings, empty, or used twice.
        """
        if isinstance(ids, str):
            raise InputError("ids is one string: give a list with one id for each document")
        if ids is None:
            return cls.of(map(str, range(n_documents)))  # type: ignore[return-value]
        ids = list(ids)
        if len(ids) != n_documents:
            raise InputError(f"{len(ids):,} ids were given for {n_documents:,} documents: they must match one to one")
        first_row: dict[str, int] = {}
        for row, doc_id in enumerate(ids):
            if not isinstance(doc_id, str) or not doc_id:
                raise InputError(f"the id of document row {row} is {doc_id!r}: ids must be non-empty strings")
            if doc_id in first_row:
                raise InputError(
                    f"the document id {doc_id!r} is used twice, at rows {first_row[doc_id]} and {row}: "
                    "ids must be unique"
                )
            first_row[doc_id] = row
        return cls.of(ids)  # type: ignore[return-value]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {self[row]: row for row in range(len(self))}

    def has(self, doc_id: str) -> bool:
        """Whether there is such a document."""
        return doc_id in self._rows

    def row_of(self, doc_id: str) -> int:
        """The row of a document; the first call reads all ids.

        Raises:
            InputError: there is no such document.
        """
        try:
            return self._rows[doc_id]
        except KeyError as error:
            raise InputError(f"the index has no document {doc_id!r}") from error
