"""Sides that run in onnxruntime: a transformer on a CPU, without torch."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr.batching import batches_by_length, encode_batches, pad, sparse_rows
from lsr.encoder import Advance, Encoded, TextEncoder
from lsr.errors import FormatError, optional_import
from lsr.tokenizer import ModelTokenizer

GRAPH_FILE = "model.onnx"

#: Tokens in a batch, padding included: the graph holds a batch's logits of 4,096 terms.
BATCH_TOKENS = 2_048


class OnnxEncoder(TextEncoder):
    """A graph from token ids and mask to pooled vectors as one side of an encoder.

    Args:
        graph: the serialized graph, as `lsr.onnx_export` writes it.
        tokenizer: the side's tokenizer.
        max_length: tokens kept of a text, special ones included.
        vocabulary_size: columns of the graph's output.
        fingerprint: that of the side which the graph was made from.
        top_terms: how many terms a vector keeps, the heaviest; None for all.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        FormatError: it cannot read the graph.
    """

    kind = "onnx"
    light = False

    def __init__(
        self,
        graph: bytes,
        tokenizer: ModelTokenizer,
        max_length: int,
        *,
        vocabulary_size: int,
        fingerprint: str,
        top_terms: int | None = None,
    ) -> None:
        runtime: Any = optional_import("onnxruntime", "onnx", "running an ONNX encoder")
        self.graph = graph
        try:
            self._session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class of their own
            raise FormatError(f"onnxruntime cannot read the graph: {error}; export the encoder again") from error
        self.tokenizer = tokenizer.with_options(max_length, add_special_tokens=True)
        self._n_special = len(self.tokenizer([""]).ids[0])
        self.max_length: int = max_length
        self.vocabulary_size = vocabulary_size
        self._fingerprint = fingerprint
        self.top_terms = top_terms

    def with_length(self, max_length: int) -> "OnnxEncoder":
        """The same graph, texts cut at another length."""
        other = copy.copy(self)
        other.tokenizer = self.tokenizer.with_options(max_length, add_special_tokens=True)
        other.max_length = max_length
        return other

    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> Encoded:
        tokens = self.tokenizer(texts)
        lengths = [len(ids) for ids in tokens.ids]
        batches = batches_by_length(lengths, shortest=self._n_special + 1, tokens=BATCH_TOKENS, texts=BATCH_TOKENS)
        vectors = encode_batches(
            tokens.ids, batches, lambda ids: sparse_rows(self._pool(ids)), self.vocabulary_size, advance
        )
        return Encoded(vectors, tokens.truncated)

    def _pool(self, batch: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        ids, mask = pad(batch)
        pooled: NDArray[np.float32]
        try:
            (pooled,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        except Exception as error:  # its errors have no common class of their own
            raise FormatError(
                f"the ONNX graph does not take {ids.shape[0]} texts of {ids.shape[1]} tokens: {error}; export the "
                "encoder again"
            ) from error
        if self.top_terms is not None and self.top_terms < self.vocabulary_size:
            light = np.argpartition(pooled, -self.top_terms, axis=1)[:, : -self.top_terms]
            pooled = pooled.copy()
            np.put_along_axis(pooled, light, 0, axis=1)
        return pooled

    def term(self, term_id: int) -> str:
        return self.tokenizer.term(term_id)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def vocabulary_hash(self) -> str:
        return self.tokenizer.vocabulary_hash

    def config(self) -> dict[str, Any]:
        return {
            "max_length": self.max_length,
            "vocabulary_size": self.vocabulary_size,
            "fingerprint": self._fingerprint,
            "top_terms": self.top_terms,
        }

    def save_files(self, folder: Path, *, dtype: str = "float32") -> None:
        (folder / GRAPH_FILE).write_bytes(self.graph)
        self.tokenizer.save(folder / "tokenizer.json")

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> "OnnxEncoder":
        """Read what `save_files` wrote."""
        return cls(
            (folder / GRAPH_FILE).read_bytes(),
            ModelTokenizer.load(folder / "tokenizer.json", config["max_length"]),
            config["max_length"],
            vocabulary_size=config["vocabulary_size"],
            fingerprint=config["fingerprint"],
            top_terms=config["top_terms"],
        )
