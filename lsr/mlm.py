"""The MLM encoder: any Hugging Face masked-LM checkpoint, its logits pooled into a sparse vector."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from lsr.encoder import Advance, Encoded, TextEncoder
from lsr.errors import FormatError, InputError
from lsr.pooling import ACTIVATIONS, POOLINGS, pool_logits
from lsr.tokenizer import ModelTokenizer

#: Tokens in a batch, padding included.
BATCH_TOKENS = {"cpu": 4_096, "cuda": 131_072}


class MlmModel:
    """A masked-LM checkpoint, split into a body that gives token states and a projection to terms.

    The last linear layer is taken out of the Hugging Face model, so that calling it gives the states
    that the layer would have seen; `lsr.pooling` then applies the layer block by block.

    Args:
        model: a ``PreTrainedModel`` for masked language modelling, in evaluation mode.
        hf_tokenizer: its ``PreTrainedTokenizerFast``.
    """

    def __init__(self, model: Any, hf_tokenizer: Any) -> None:
        self._hf_tokenizer = hf_tokenizer
        self.tokenizer = tokenizer = ModelTokenizer(hf_tokenizer.backend_tokenizer.to_str(), max_length=512)
        self.model = model
        self.projection: torch.nn.Linear = model.get_output_embeddings()
        if tokenizer.size > self.projection.out_features:
            raise FormatError(
                f"the tokenizer has {tokenizer.size:,} terms but the model's head only "
                f"{self.projection.out_features:,}: they belong to different models"
            )
        expected = self._logits()
        self._place = next(name for name, module in model.named_modules() if module is self.projection)
        model.set_submodule(self._place, torch.nn.Identity())
        with torch.inference_mode():
            unchanged = torch.allclose(self.projection(self._logits()), expected, atol=1e-3)
        if not unchanged:
            raise FormatError(
                f"{type(model).__name__} changes its logits after the last linear layer: this architecture is not "
                "supported as an MLM encoder"
            )

    @property
    def max_length(self) -> int:
        """Positions the model has, special tokens included."""
        config = self.model.config
        positions = int(getattr(config, "max_position_embeddings", None) or 512)
        # these count positions from behind the padding id
        return positions - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else positions

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        """The model's output on four arbitrary tokens."""
        ids = torch.arange(4, device=self.model.device)[None] % self.tokenizer.size
        output: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return output

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the digests of all weights (in any order) and the tokenizer's hash."""
        parameters = {id(p): p for module in (self.model, self.projection) for p in module.parameters()}
        digests = sorted(
            hashlib.sha256(p.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
            for p in parameters.values()
        )
        return hashlib.sha256(" ".join([self.tokenizer.hash, *digests]).encode()).hexdigest()

    @torch.inference_mode()
    def states(self, batch: list[NDArray[np.int32]]) -> tuple[Tensor, list[int]]:
        """Token states (tokens, hidden) of a batch, padding taken out, and where each text begins."""
        lengths = [len(ids) for ids in batch]
        mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.from_numpy(np.concatenate(batch)).long()
        mask = mask.to(self.model.device)
        hidden = self.model(input_ids=ids.to(self.model.device), attention_mask=mask.long()).logits
        return hidden[mask], [0, *np.cumsum(lengths).tolist()]

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder: configuration, weights, tokenizer."""
        self.model.set_submodule(self._place, self.projection)
        try:
            self.model.save_pretrained(folder)
        finally:
            self.model.set_submodule(self._place, torch.nn.Identity())
        self._hf_tokenizer.save_pretrained(folder)


class MlmEncoder(TextEncoder):
    """SPLADE's encoder: pooled, saturated masked-LM logits.

    Args:
        model: the checkpoint; several encoders may share one.
        max_length: tokens kept of a text, special ones included.
        pooling: "max" or "sum" over the tokens.
        activation: "log1p", or "log1p_log1p".
    """

    kind = "mlm"
    light = False

    def __init__(self, model: MlmModel, max_length: int, *, pooling: str = "max", activation: str = "log1p") -> None:
        if pooling not in POOLINGS or activation not in ACTIVATIONS:
            raise InputError(
                f"pooling={pooling!r}, activation={activation!r}: choose pooling from {', '.join(POOLINGS)} and "
                f"activation from {', '.join(ACTIVATIONS)}"
            )
        if max_length > model.max_length:
            raise InputError(f"a maximum length of {max_length} tokens is more than the model's {model.max_length}")
        self.model = model
        self.tokenizer = model.tokenizer.with_options(max_length, add_special_tokens=True)
        self.max_length = max_length
        self.pooling = pooling
        self.activation = activation
        self.vocabulary_size = model.projection.out_features

    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> Encoded:
        tokens = self.tokenizer(texts)
        rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = [_EMPTY] * len(texts)
        for batch in self._batches(tokens.ids):
            pooled = self._pool([tokens.ids[i] for i in batch])
            for i, weights in zip(batch, pooled, strict=True):
                if len(tokens.ids[i]) > self._n_special:  # a text of special tokens alone says nothing
                    terms = np.flatnonzero(weights).astype(np.int32)
                    rows[i] = (terms, weights[terms])
            if advance:
                advance(len(batch))
        return Encoded(_stack(rows, self.vocabulary_size), tokens.truncated)

    @cached_property
    def _n_special(self) -> int:
        return len(self.tokenizer([""]).ids[0])

    def _pool(self, batch: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        states, offsets = self.model.states(batch)
        head = self.model.projection
        pooled = pool_logits(
            states,
            offsets,
            head.weight,
            head.bias,
            pooling=self.pooling,
            activation=self.activation,
        )
        array: NDArray[np.float32] = pooled.cpu().numpy()
        return array

    def _batches(self, token_ids: list[NDArray[np.int32]]) -> Iterator[list[int]]:
        """Positions of texts of similar length, the longest first, within the token budget."""
        budget = BATCH_TOKENS.get(self.model.model.device.type, BATCH_TOKENS["cpu"])
        order = sorted(range(len(token_ids)), key=lambda i: (-len(token_ids[i]), i))
        batch: list[int] = []
        for i in order:
            if batch and len(token_ids[batch[0]]) * (len(batch) + 1) > budget:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def term(self, term_id: int) -> str:
        return self.tokenizer.term(term_id)

    @cached_property
    def fingerprint(self) -> str:
        parts = f"{self.kind} {self.pooling} {self.activation} {self.model.fingerprint}"
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def vocabulary_hash(self) -> str:
        return self.tokenizer.vocabulary_hash

    def config(self) -> dict[str, Any]:
        return {
            "max_length": self.max_length,
            "pooling": self.pooling,
            "activation": self.activation,
        }

    def save_files(self, folder: Path) -> None:
        self.model.save(folder)


_EMPTY = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


def _stack(rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]], vocabulary_size: int) -> csr_array:
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(terms) for terms, _ in rows], out=indptr[1:])
    terms = np.concatenate([*(terms for terms, _ in rows), _EMPTY[0]])
    weights = np.concatenate([*(weights for _, weights in rows), _EMPTY[1]])
    return csr_array((weights, terms, indptr), shape=(len(rows), vocabulary_size))
