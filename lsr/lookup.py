"""Inference-free queries: a tokenizer and a weight per vocabulary entry (IDF), no transformer.

q_t = 1[t in query] · relu(w_t), binary in the term's count (Geng et al., arXiv 2411.04403), or, with ``counts``,
count_t · relu(w_t) as in BM25, which long queries gain from. No
[CLS] or [SEP] is put around the query, and `compute_idf` gives special terms no weight. The table is
read and written as ``idf.json``, as OpenSearch's models carry it.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lsr.bm25 import robertson_idf
from lsr.encoder import Advance, EncodedRows, Encoder, LightSide, add_to_table, load_table, save_table
from lsr.errors import FormatError, InputError, LsrWarning, MismatchError
from lsr.files import replacing
from lsr.records import Document
from lsr.tokenizer import ModelTokenizer
from lsr.vectors import SparseRows

IDF_FILE = "idf.json"

#: A table with weights for a smaller share of the vocabulary is warned about.
COVERAGE = 0.5


class LookupEncoder(LightSide):
    """Texts to the table weights of the terms they hold.

    Args:
        tokenizer: the document encoder's tokenizer.
        weights: float32 of shape (vocabulary_size,); negative ones count as zero.
        max_length: tokens kept of a text.
        counts: whether a term that stands in the text n times weighs n times as much.
    """

    kind = "lookup"

    def __init__(
        self, tokenizer: ModelTokenizer, weights: NDArray[Any], max_length: int, *, counts: bool = False
    ) -> None:
        if weights.ndim != 1 or len(weights) < tokenizer.size:
            raise MismatchError(
                f"the weight table has shape {weights.shape} but the tokenizer has {tokenizer.size:,} terms: "
                "they belong to different models"
            )
        if not np.isfinite(weights.astype(np.float32)).all():
            raise InputError("the weight table holds NaN or infinite weights: compute it again")
        self._weights: NDArray[np.float32] = np.maximum(weights, 0).astype(np.float32)
        self._without = frozenset(np.flatnonzero(self._weights == 0).tolist())
        self.tokenizer = tokenizer.with_options(max_length, add_special_tokens=False)
        self.vocabulary_size = len(weights)
        self.max_length: int = max_length
        self.counts = counts

    @property
    def weights(self) -> NDArray[np.float32]:
        """The table, non-negative, of shape (vocabulary_size,)."""
        return self._weights

    @property
    def table(self) -> NDArray[np.float32]:
        return self.weights

    def adjusted(self, changes: NDArray[Any]) -> "LookupEncoder":
        weights = add_to_table(self.weights, changes)
        return LookupEncoder(self.tokenizer, weights, self.max_length, counts=self.counts)

    def _weightless(self) -> frozenset[int]:
        """Terms without a weight."""
        return self._without

    def encode_rows(self, texts: Sequence[str], advance: Advance | None = None) -> EncodedRows:
        lists, truncated = self.tokenizer.lists(texts)
        weights, weightless = self.weights, self._weightless()
        terms: list[int] = []
        counts: list[int] = []
        indptr = [0]
        for ids in lists:
            terms += (own := sorted(set(ids) - weightless))
            if self.counts:
                counted = Counter(ids)
                counts += [counted[term] for term in own]
            indptr.append(len(terms))
        indices = np.array(terms, dtype=np.int64)
        found = weights[indices] * np.array(counts, dtype=np.float32) if self.counts else weights[indices]
        rows = SparseRows(np.array(indptr), indices, found, self.vocabulary_size)
        if advance:
            advance(len(texts))
        return EncodedRows(rows, truncated)

    def term(self, term_id: int) -> str:
        return self.tokenizer.term(term_id)

    @cached_property
    def fingerprint(self) -> str:
        return table_fingerprint(self.tokenizer, self.weights, counts=self.counts)

    @property
    def vocabulary_hash(self) -> str:
        return self.tokenizer.vocabulary_hash

    def config(self) -> dict[str, Any]:
        return {"max_length": self.max_length, **({"counts": True} if self.counts else {})}

    def save_files(self, folder: Path, *, dtype: str = "float32") -> None:
        self.tokenizer.save(folder / "tokenizer.json")
        save_table(folder / "weights.npy", self.weights, dtype)

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> "LookupEncoder":
        """Read what `save_files` wrote."""
        tokenizer = ModelTokenizer.load(folder / "tokenizer.json", config["max_length"])
        weights = load_table(folder / "weights.npy")
        return cls(tokenizer, weights, config["max_length"], counts=config.get("counts", False))


def table_fingerprint(tokenizer: ModelTokenizer, weights: NDArray[np.float32], *, counts: bool = False) -> str:
    """The fingerprint of a look-up side."""
    parts = f"{LookupEncoder.kind} {tokenizer.hash} {hashlib.sha256(weights.tobytes()).hexdigest()}"
    parts += " counts" if counts else ""
    return hashlib.sha256(parts.encode()).hexdigest()


def inference_free(encoder: Encoder, idf: NDArray[Any], *, max_length: int = 256, counts: bool = False) -> Encoder:
    """``encoder``'s documents with queries that are looked up in ``idf``.

    Args:
        encoder: an encoder whose documents go through a model tokenizer.
        idf: float32 of shape (vocabulary_size,), from `compute_idf` or `read_idf`.
        max_length: tokens kept of a query.
        counts: as in `LookupEncoder`.

    Raises:
        MismatchError: the table has another size than the vocabulary.
        InputError: the encoder has no model tokenizer (BM25).
    """
    if len(idf) != encoder.vocabulary_size:
        raise MismatchError(f"the IDF table has {len(idf):,} weights, the encoder {encoder.vocabulary_size:,} terms")
    return Encoder(encoder.documents, LookupEncoder(tokenizer_of(encoder), idf, max_length, counts=counts))


def tokenizer_of(encoder: Encoder) -> ModelTokenizer:
    """The encoder's tokenizer.

    Raises:
        InputError: it has none.
    """
    tokenizer = getattr(encoder.documents, "tokenizer", None)
    if not isinstance(tokenizer, ModelTokenizer):
        raise InputError(f"a {encoder.documents.kind} encoder has no model tokenizer: an IDF table needs one")
    return tokenizer


def compute_idf(texts: Iterable[str | Document], encoder: Encoder, *, progress: bool = False) -> NDArray[np.float32]:
    """IDF of every vocabulary entry over a corpus, whole texts counted: shape (vocabulary_size,).

    A term that never occurs gets the largest weight; special tokens get zero.
    """
    tokenizer = tokenizer_of(encoder).with_options(2**31 - 1, add_special_tokens=False)
    frequency = np.zeros(encoder.vocabulary_size, dtype=np.int64)
    n_documents = 0
    batch: list[str] = []

    def count() -> None:
        for ids in tokenizer(batch).ids:
            frequency[np.unique(ids)] += 1
        batch.clear()

    for text in tqdm(texts, desc="counting terms", unit=" docs", disable=not progress or None):
        batch.append(text.content if isinstance(text, Document) else text)
        n_documents += 1
        if len(batch) == 1024:
            count()
    count()
    if n_documents == 0:
        raise InputError("an IDF table needs at least one document")
    idf = robertson_idf(frequency, n_documents)
    idf[tokenizer.special_ids] = 0
    return idf


def write_idf(path: Path | str, idf: NDArray[Any], encoder: Encoder) -> None:
    """Write ``{term: weight}`` JSON, entries of weight zero left out."""
    vocabulary = tokenizer_of(encoder).vocabulary
    with replacing(path) as file:
        json.dump(
            {t: float(idf[i]) for t, i in sorted(vocabulary.items()) if idf[i] > 0},
            file,
            ensure_ascii=False,
        )


def read_idf(path: Path | str, encoder: Encoder) -> NDArray[np.float32]:
    """Read ``idf.json`` into an array of shape (vocabulary_size,); terms it lacks get zero.

    A table without most of the vocabulary's terms is an `LsrWarning`: queries lose the terms that it lacks.

    Raises:
        FormatError: the file is no JSON object of numbers.
        MismatchError: it has terms that the encoder's tokenizer has not.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: write one with lsr idf") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not (isinstance(table, dict) and table and all(isinstance(weight, int | float) for weight in table.values())):
        raise FormatError(f"{path} must be one JSON object of term: weight, with a term at least")
    vocabulary = tokenizer_of(encoder).vocabulary
    unknown = [term for term in table if term not in vocabulary]
    if unknown:
        raise MismatchError(
            f"{path} does not match the tokenizer: {len(unknown):,} of its {len(table):,} terms are unknown to it "
            f"(such as {', '.join(map(repr, unknown[:3]))}): use the table of this encoder's vocabulary"
        )
    if len(table) < COVERAGE * len(vocabulary):
        warnings.warn(
            f"{path} has weights for {len(table):,} of the tokenizer's {len(vocabulary):,} terms, and queries lose the "
            "others: write a whole table with lsr idf, unless that is wanted",
            LsrWarning,
            stacklevel=2,
        )
    idf = np.zeros(encoder.vocabulary_size, dtype=np.float32)
    idf[[vocabulary[term] for term in table]] = list(table.values())
    return idf
