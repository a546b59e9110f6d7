"""Two encoders in one vector: the columns of the first, then those of the second.

A document's second part is multiplied by the weight w, a query's by nothing, so that the dot product is

    score = score_first + w · score_second

An MLM encoder joined with BM25 is CLEAR's sum of a lexical and a learned score (Gao et al., arXiv 2004.13969), within
one sparse vector and one index.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr.encoder import (
    ENCODER_FILE,
    FORMAT_VERSION,
    Advance,
    Encoded,
    EncodedRows,
    Encoder,
    LightSide,
    NeuralSide,
    TextEncoder,
    table_side,
)
from lsr.errors import InputError, MismatchError
from lsr.vectors import LARGEST, MAX_VOCABULARY, SparseRows

#: The folders of the parts, each of an encoder of its own.
PARTS = ("first", "second")

SMALLEST = float(np.finfo(np.float32).tiny)


def join(first: Encoder, second: Encoder, weight: float = 1.0) -> "JoinedEncoder":
    """Two encoders as one, whose score is ``first``'s plus ``weight`` times ``second``'s.

    Args:
        first: any encoder, a joined one too.
        second: likewise, such as ``lsr.Bm25(buckets=131072).fit(corpus)``.
        weight: of the second's score, above 0.

    Raises:
        InputError: the weight is no finite number above 0.
        MismatchError: the parts cut texts at two lengths.
    """
    return JoinedEncoder(first, second, weight)


class JoinedEncoder(Encoder):
    """What `join` returns.

    Attributes:
        parts: the two encoders.
        weight: of the second's score.
    """

    def __init__(self, first: Encoder, second: Encoder, weight: float = 1.0) -> None:
        for part in (first, second):
            if not isinstance(part, Encoder):
                raise InputError(f"join takes two encoders: {type(part).__name__} is none (BM25 is fitted first)")
        super().__init__(
            joined_side(first.documents, second.documents, weight), joined_side(first.queries, second.queries, 1.0)
        )
        self.parts = (first, second)
        self.weight = float(weight)

    def with_queries(self, other: Encoder) -> Encoder:
        """The same documents with another joined encoder's queries."""
        if not isinstance(other, JoinedEncoder):
            return super().with_queries(other)  # which refuses it
        first, second = (mine.with_queries(its) for mine, its in zip(self.parts, other.parts, strict=True))
        return JoinedEncoder(first, second, self.weight)

    def adjusted(self, changes: NDArray[Any]) -> Encoder:
        """As `Encoder.adjusted`: each part's queries have their own columns' changes."""
        size = self.parts[0].vocabulary_size
        first, second = self.parts[0].adjusted(changes[:size]), self.parts[1].adjusted(changes[size:])
        return JoinedEncoder(first, second, self.weight)

    def save_files(self, folder: Path, *, queries_only: bool = False, dtype: str = "float32") -> None:
        """As `Encoder.save_files`: a folder for each part, which `lsr.load_encoder` reads alone, too."""
        for name, part in zip(PARTS, self.parts, strict=True):
            (folder / name).mkdir()
            part.save_files(folder / name, queries_only=queries_only, dtype=dtype)
        sides = {"documents": self.documents, "queries": self.queries}
        if queries_only:
            del sides["documents"]
        fields = {name: {"kind": side.kind, **side.config()} for name, side in sides.items()}
        whole = {"format_version": FORMAT_VERSION, "identity": self.identity(), **fields}
        (folder / ENCODER_FILE).write_text(json.dumps(whole, indent=2), encoding="utf-8")


class JoinedSide(TextEncoder):
    """Two sides as one, see `joined_side`."""

    kind = "joined"
    light = False

    def __init__(self, first: TextEncoder, second: TextEncoder, weight: float) -> None:
        self.parts = (first, second)
        self.weight = float(weight)
        self.vocabulary_size = first.vocabulary_size + second.vocabulary_size
        self.max_length = next((part.max_length for part in self.parts if part.max_length is not None), None)

    @property
    def dtype(self) -> str:
        """What the parts' transformers multiply in."""
        dtypes = {getattr(part, "dtype", "float32") for part in self.parts if not part.light}
        return "+".join(sorted(dtypes)) or "float32"

    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> Encoded:
        first, second = self.parts
        of_first = first.encode(texts, advance if second.light else None)  # progress is that of the slower part
        of_second = second.encode(texts, None if second.light else advance)
        rows = side_by_side(SparseRows.of(of_first.vectors), SparseRows.of(of_second.vectors), self.weight)
        return Encoded(rows.to_csr(), max(of_first.truncated, of_second.truncated))

    def term(self, term_id: int) -> str:
        part, own = self._part_of(term_id)
        return part.term(own)

    def term_in(self, text: str, term_id: int) -> str:
        part, own = self._part_of(term_id)
        return part.term_in(text, own)

    def _part_of(self, term_id: int) -> tuple[TextEncoder, int]:
        """The part that a column belongs to, and its number there."""
        first, second = self.parts
        size = first.vocabulary_size
        return (first, term_id) if term_id < size else (second, term_id - size)

    @property
    def adapts(self) -> bool:  # type: ignore[override]
        return any(part.adapts for part in self.parts)

    def in_collection(self, frequency: NDArray[np.int64], n_documents: int) -> "JoinedSide":
        first, second = self.parts
        size = first.vocabulary_size
        own = first.in_collection(frequency[:size], n_documents), second.in_collection(frequency[size:], n_documents)
        return joined_side(*own, self.weight)

    @property
    def fingerprint(self) -> str:
        return self._hash(repr(self.weight), *(part.fingerprint for part in self.parts))

    @property
    def vocabulary_hash(self) -> str:
        return self._hash(*(f"{part.vocabulary_size} {part.vocabulary_hash}" for part in self.parts))

    def _hash(self, *texts: str) -> str:
        return hashlib.sha256(" ".join([self.kind, *texts]).encode()).hexdigest()

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def save_files(self, folder: Path, *, dtype: str = "float32") -> None:
        raise InputError("a joined side has no files of its own: save the encoder that lsr.join returns")


class LightJoinedSide(LightSide, JoinedSide):
    """The same of two light sides."""

    @property
    def table(self) -> NDArray[np.float32]:
        first, second = map(table_side, self.parts)
        return np.concatenate((first.table, np.float32(self.weight) * second.table))

    def adjusted(self, changes: NDArray[Any]) -> LightSide:
        first, second = map(table_side, self.parts)
        size = first.vocabulary_size
        own = first.adjusted(changes[:size]), second.adjusted(changes[size:] / self.weight)
        return table_side(joined_side(*own, self.weight))

    def encode_rows(self, texts: Sequence[str], advance: Advance | None = None) -> EncodedRows:
        first, second = self.parts
        assert isinstance(first, LightSide)
        assert isinstance(second, LightSide)
        of_first, of_second = first.encode_rows(texts), second.encode_rows(texts, advance)
        rows = side_by_side(of_first.vectors, of_second.vectors, self.weight)
        return EncodedRows(rows, max(of_first.truncated, of_second.truncated))


def joined_side(first: TextEncoder, second: TextEncoder, weight: float) -> JoinedSide:
    """Two sides as one: ``first``'s columns, then ``second``'s times ``weight``; light if both are.

    A text that a part cuts is counted as cut once, in so far as that is known: the larger of two counts.

    Raises:
        InputError: the weight is no finite number above 0, or there are too many columns.
        MismatchError: the parts cut texts at two lengths.
    """
    check_weight(weight)
    lengths = {side.max_length for side in (first, second)} - {None}
    if len(lengths) > 1:
        raise MismatchError(
            f"the encoders to join cut texts at {first.max_length} ({first.kind}) and {second.max_length} tokens "
            f"({second.kind}): load both with one document_max_length and one query_max_length"
        )
    if first.vocabulary_size + second.vocabulary_size > MAX_VOCABULARY:
        raise InputError("the encoders to join have more than 2^31 - 1 terms together: take fewer buckets")
    kind = LightJoinedSide if isinstance(first, LightSide) and isinstance(second, LightSide) else JoinedSide
    return kind(first, second, weight)


def check_weight(weight: Any) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        InputError: it is none.
    """
    number = isinstance(weight, int | float | np.floating) and not isinstance(weight, bool)
    if not (number and SMALLEST <= weight <= LARGEST):
        raise InputError(f"encoders cannot be joined with the weight {weight!r}: give a finite number above 0")


def side_by_side(first: SparseRows, second: SparseRows, weight: float) -> SparseRows:
    """Rows of (n, a) and (n, b) as rows of (n, a + b), the second's multiplied by ``weight``."""
    indptr, size = first.indptr + second.indptr, first.vocabulary_size + second.vocabulary_size
    indices = second.indices + first.vocabulary_size
    weights = second.data if weight == 1 else second.data * np.float32(weight)
    if len(indptr) == 2:
        both = np.concatenate((first.indices, indices)), np.concatenate((first.data, weights))
        return SparseRows(indptr, *both, size)
    rows = SparseRows.empty(len(indptr) - 1, int(indptr[-1]), size)
    rows.indptr[:] = indptr
    # an entry comes behind those of the other part's rows above, one of the second behind the first's of its row too
    of_first = np.arange(len(first.indices)) + np.repeat(second.indptr[:-1], np.diff(first.indptr))
    of_second = np.arange(len(indices)) + np.repeat(first.indptr[1:], np.diff(second.indptr))
    rows.indices[of_first], rows.data[of_first] = first.indices, first.data
    rows.indices[of_second], rows.data[of_second] = indices, weights
    return rows


def neural_sides(encoder: Encoder) -> list[NeuralSide]:
    """The sides that run a transformer in torch; of a joined encoder, its parts'."""
    if isinstance(encoder, JoinedEncoder):
        return [side for part in encoder.parts for side in neural_sides(part)]
    return [side for side in (encoder.documents, encoder.queries) if isinstance(side, NeuralSide)]
