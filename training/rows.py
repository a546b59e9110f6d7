"""Training files: one query a row, everything by id, never a text.

    {"query_id": "q1", "positives": ["d1"], "negatives": ["d7", "d9"], "scores": {"d1": 12.3, "d7": 9.1}}

``negatives`` and ``scores`` may be missing. A file of judgments (BEIR or TREC qrels) is a training file
too: its documents of grade 1 or more are positives, and there are no negatives.
"""

import io
import json
import math
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from lsr.errors import FormatError, InputError
from lsr.files import check_file_target, json_lines, open_lines, packed
from lsr.run import read_qrels
from lsr.training.texts import TextTable, cached, file_key

FIELDS = ("query_id", "positives", "negatives", "scores")
JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
CHUNK_ROWS = 4_096


class Row(NamedTuple):
    """One query of a training file, by ids. ``scores`` may lack documents."""

    query_id: str
    positives: list[str]
    negatives: list[str]
    scores: dict[str, float]

    def to_json(self) -> str:
        """The row as a line of a training file, without the line's end."""
        fields: dict[str, Any] = {"query_id": self.query_id, "positives": self.positives}
        if self.negatives:
            fields["negatives"] = self.negatives
        if self.scores:
            fields["scores"] = {doc_id: float(f"{score:.7g}") for doc_id, score in self.scores.items()}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def is_qrels(path: str | os.PathLike[str]) -> bool:
    """Whether a training file is one of judgments, by its ending."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix not in JSON_ENDINGS


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) of a training file; JSONL is streamed, judgments are read whole (line number 0).

    Raises:
        InputError: the file is missing.
        FormatError: with file, line and reason.
    """
    if is_qrels(path):
        for query_id, grades in read_qrels(path).items():
            positives = [doc_id for doc_id, grade in grades.items() if grade >= 1]
            if positives:
                yield 0, Row(query_id, positives, [], {})
        return
    for number, fields in json_lines(path):
        reason = _what_is_wrong(fields)
        if reason:
            raise FormatError(f"{path}:{number}: {reason}")
        negatives, scores = fields.get("negatives", []), fields.get("scores", {})
        yield number, Row(fields["query_id"], fields["positives"], negatives, scores)


def _what_is_wrong(fields: Any) -> str:
    """Why a line's JSON is no row, or an empty string."""
    if not isinstance(fields, dict):
        return f"a row is a JSON object, not {type(fields).__name__}"
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        return f"unknown field {unknown[0]!r}: a row has {', '.join(FIELDS)}"
    query_id = fields.get("query_id")
    if not isinstance(query_id, str) or not query_id:
        return "no query_id as a string"
    lists = [fields.get("positives"), fields.get("negatives", [])]
    for name, ids in zip(("positives", "negatives"), lists, strict=True):
        if not (isinstance(ids, list) and all(isinstance(doc_id, str) for doc_id in ids)):
            return f"{name} of query {query_id!r} must be a list of document ids (strings)"
    if not lists[0]:
        return f"query {query_id!r} has no positive: give it one, or leave its row out"
    listed = lists[0] + lists[1]
    if len(set(listed)) != len(listed):
        twice = next(doc_id for doc_id in listed if listed.count(doc_id) > 1)
        return f"document {twice!r} is listed twice for query {query_id!r} (as positive or negative): list it once"
    return _what_is_wrong_with_scores(fields.get("scores", {}), listed, query_id)


def _what_is_wrong_with_scores(scores: Any, listed: list[str], query_id: str) -> str:
    if not isinstance(scores, dict):
        return f"scores of query {query_id!r} must be an object of document id: number"
    strangers = scores.keys() - set(listed)
    if strangers:
        stranger = min(strangers)
        return f"the score of {stranger!r} for query {query_id!r} belongs to none of its positives and negatives"
    for doc_id, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            return f"the score of {doc_id!r} for query {query_id!r} is {score!r}, not a finite number"
    return ""


@contextmanager
def new_training_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a training file (.jsonl, .jsonl.gz) for writing that takes its name once all of it is on disk.

    Raises:
        InputError: the ending says that it is no JSONL, or it cannot be written there.
    """
    path = check_training_target(path)
    partial = path.with_name(f".{path.name}.writing")
    try:
        with partial.open("wb") as raw:
            inner = packed(raw) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(inner, encoding="utf-8", write_through=True) as file:
                yield file
                file.flush()
                if inner is not raw:
                    inner.close()
                raw.flush()
                os.fsync(raw.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_training_target(path: str | os.PathLike[str]) -> Path:
    """Refuse, before any work is done, a place or name that no training file can have."""
    if is_qrels(path):
        raise InputError(f"{path} is no name of a training file: use .jsonl or .jsonl.gz")
    check_file_target(path)
    return Path(path)


class RowTable:
    """A training file's rows as numbers, memory-mapped: 24 bytes a row and 8 a candidate document.

    A row with one positive and 24 negatives takes 224 bytes. Candidates of row i are
    ``candidates[starts[i]:starts[i + 1]]``, its ``n_positives[i]`` positives first.

    Attributes:
        path: the training file.
        queries: int32 (n,), rows of the query table.
        n_positives: int32 (n,).
        lines: int64 (n,), line numbers in the file, 0 in a file of judgments.
        starts: int64 (n + 1,).
        candidates: int32 (total,), rows of the document table.
        scores: float32 (total,), NaN where the file has none.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.path = path
        names = ("queries", "n_positives", "lines", "starts", "candidates", "scores")
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
        self.queries, self.n_positives, self.lines, self.starts, self.candidates, self.scores = arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return RowTable, (self.folder, self.path)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def n_negatives(self) -> NDArray[np.int64]:
        """Negatives of every row: shape (n,)."""
        negatives: NDArray[np.int64] = np.diff(self.starts) - self.n_positives
        return negatives

    def candidates_of(self, i: int) -> NDArray[np.int32]:
        """The document rows of a row's candidates, positives first."""
        rows: NDArray[np.int32] = self.candidates[self.starts[i] : self.starts[i + 1]]
        return rows

    @classmethod
    def build(cls, folder: Path, path: Path, queries: TextTable, documents: TextTable) -> "RowTable":
        """Read a training file into an existing folder; its rows are streamed.

        Raises:
            FormatError, InputError: a broken line, an id without text, a query with two rows; with file,
                line and id.
        """
        kinds = {"queries": "i", "n_positives": "i", "lines": "q", "candidates": "i", "scores": "f"}
        columns: dict[str, array[Any]] = {name: array(kind) for name, kind in kinds.items()}
        starts = array("q", [0])
        seen = np.full(len(queries), -1, dtype=np.int64)
        for chunk in _chunks(read_rows(path)):
            rows_of_queries = _rows_of_queries(chunk, path, queries, seen)
            listed = [[*row.positives, *row.negatives] for _, row in chunk]
            found = documents.rows_of([doc_id for ids in listed for doc_id in ids])
            if (found < 0).any():
                raise InputError(_missing_document(chunk, found, path, documents))
            columns["queries"].extend(rows_of_queries)
            columns["candidates"].extend(found.tolist())
            for (number, row), ids in zip(chunk, listed, strict=True):
                columns["lines"].append(number)
                columns["n_positives"].append(len(row.positives))
                columns["scores"].extend([row.scores.get(doc_id, math.nan) for doc_id in ids])
                starts.append(starts[-1] + len(ids))
        if len(starts) == 1:
            raise InputError(f"{path} holds no row with a positive: check the file")
        for name, column in [*columns.items(), ("starts", starts)]:
            np.save(folder / f"{name}.npy", np.frombuffer(column, dtype=column.typecode))
        return cls(folder, path)


def row_table(cache: Path, path: Path, queries: TextTable, documents: TextTable) -> RowTable:
    """The rows of a training file, through the cache."""
    key = {"rows": file_key(path), "queries": queries.folder.name, "documents": documents.folder.name}
    return RowTable(cached(cache, key, lambda folder: RowTable.build(folder, path, queries, documents)), path)


def _chunks(rows: Iterator[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    chunk: list[tuple[int, Row]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _rows_of_queries(
    chunk: Sequence[tuple[int, Row]], path: Path, queries: TextTable, seen: NDArray[np.int64]
) -> list[int]:
    """Query rows of a chunk; notes in ``seen`` the line in which each was used."""
    found: list[int] = queries.rows_of([row.query_id for _, row in chunk]).tolist()
    for (number, row), place in zip(chunk, found, strict=True):
        if place < 0 or not queries.text(place).strip():
            state = "not in" if place < 0 else "without text in"
            raise InputError(
                f"{_where(path, number, row.query_id)}: the query {row.query_id!r} is {state} {queries.name}: "
                "use the queries that the training file was made with"
            )
        if seen[place] >= 0:
            raise InputError(
                f"{path}:{number}: the query {row.query_id!r} has a row already, in line {seen[place]}: "
                "join the two into one row"
            )
        seen[place] = number
    return found


def _missing_document(
    chunk: Sequence[tuple[int, Row]], found: NDArray[np.int64], path: Path, documents: TextTable
) -> str:
    missing = int(np.flatnonzero(found < 0)[0])
    ends = np.cumsum([len(row.positives) + len(row.negatives) for _, row in chunk])
    place = int(np.searchsorted(ends, missing, side="right"))
    number, row = chunk[place]
    missing -= int(ends[place - 1]) if place else 0
    what = "positive" if missing < len(row.positives) else "negative"
    doc_id = [*row.positives, *row.negatives][missing]
    where = _where(path, number, row.query_id, doc_id)
    return (
        f"{where}: the {what} {doc_id!r} of query {row.query_id!r} is not in the corpus {documents.name}: "
        "use the corpus that the training file was made with"
    )


def _where(path: Path, number: int, *ids: str) -> str:
    """``path:number`` of a row; for a file of judgments, of the first line that holds the ids."""
    if number == 0:
        number = next(n for n, line in open_lines(path) if set(ids) <= set(line.split()))
    return f"{path}:{number}"
