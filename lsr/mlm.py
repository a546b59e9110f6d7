"""The MLM encoder: any Hugging Face masked-LM checkpoint, its logits pooled into a sparse vector."""

import hashlib
import json
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

#: Settings that decide vectors and show in no weight; other versions of transformers keep their names.
DECISIVE = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta", "local_attention")

#: Elements of pooled vectors held at a time.
POOLED_ELEMENTS = 1 << 27

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
        for name, module in self.model.named_modules():
            padding = getattr(module, "padding_idx", None)
            if name.endswith("position_embeddings") and padding is not None:
                return int(module.num_embeddings) - int(padding) - 1  # positions are counted from behind the padding id
        return int(getattr(self.model.config, "max_position_embeddings", None) or 512)

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        """The model's output on four arbitrary tokens."""
        ids = torch.arange(4, device=self.model.device)[None] % self.tokenizer.size
        output: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return output

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration, the tokenizer's hash and the digests of all weights.

        The digests are sorted: names of weights differ between versions of transformers.
        """
        parameters = {id(p): p for module in (self.model, self.projection) for p in module.parameters()}
        digests = sorted(
            hashlib.sha256(p.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
            for p in parameters.values()
        )
        config = {name: getattr(self.model.config, name, None) for name in DECISIVE}
        parts = [json.dumps(config, sort_keys=True, default=str), self.tokenizer.hash, *digests]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

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
        self._n_special = len(model.tokenizer([""]).ids[0])
        if max_length <= self._n_special:
            raise InputError(
                f"a maximum length of {max_length} tokens leaves no room beside the {self._n_special} special tokens"
            )
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
                terms = np.flatnonzero(weights).astype(np.int32)
                rows[i] = (terms, weights[terms])
            if advance:
                advance(len(batch))
        return Encoded(_stack(rows, self.vocabulary_size), tokens.truncated)

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
        most = max(1, POOLED_ELEMENTS // self.vocabulary_size)
        # a text of special tokens alone says nothing: its vector stays empty
        speaking = [i for i, ids in enumerate(token_ids) if len(ids) > self._n_special]
        batch: list[int] = []
        for i in sorted(speaking, key=lambda i: (-len(token_ids[i]), i)):
            if batch and (len(token_ids[batch[0]]) * (len(batch) + 1) > budget or len(batch) == most):
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
