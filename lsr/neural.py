"""Sides with a torch module: any sparse head as a `TextEncoder`, fast at inference and open to a trainer."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from lsr.backbone import Backbone, digest
from lsr.batching import EMPTY_ROW, batches_by_length, encode_batches, pad, sparse_rows, stack_rows
from lsr.encoder import DTYPES, Advance, Encoded, NeuralSide
from lsr.errors import FormatError, InputError
from lsr.heads import ClsMlmHead, EpicHead, MlmHead, MlpHead, SparseHead, TableHead
from lsr.lookup import LookupEncoder, table_fingerprint
from lsr.tokenizer import ModelTokenizer

#: Heads over a backbone, by the kind under which they are saved.
HEADS: dict[str, type[SparseHead]] = {head.kind: head for head in (MlmHead, ClsMlmHead, EpicHead, MlpHead)}
HEAD_FILE = "head.safetensors"

#: Tokens in a batch, padding included.
BATCH_TOKENS = {"cpu": 4_096, "cuda": 131_072}

#: Elements of pooled vectors held at a time.
POOLED_ELEMENTS = 1 << 27

#: softplus is nowhere zero: without a limit every document would hold the whole vocabulary (EPIC keeps 1,000).
SOFTPLUS_TERMS = 1_000


class NeuralEncoder(NeuralSide):
    """A head over a transformer as one side of an encoder.

    Args:
        module: the head; it is what a trainer trains.
        max_length: tokens kept of a text, special ones included.
        top_terms: how many terms a vector keeps when texts are encoded, the heaviest; None for all. Training
            sees them all. By default 1,000 with softplus over the vocabulary, otherwise all.
        dtype: "float32", or "bfloat16" or "float16" to multiply in half precision under autocast.

    Raises:
        InputError: a length that the model does not have or that leaves no room for text.
    """

    light = False

    def __init__(
        self, module: SparseHead, max_length: int, *, top_terms: int | None = None, dtype: str = "float32"
    ) -> None:
        self.module = module
        self.kind = module.kind  # type: ignore[misc]
        self.backbone: Backbone = module.backbone
        check_length(self.backbone, max_length)
        if top_terms is not None and top_terms < 1:
            raise InputError(f"top_terms must be at least 1: got {top_terms}")
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown: choose from {', '.join(DTYPES)}")
        self.tokenizer = self.backbone.tokenizer.with_options(max_length, add_special_tokens=True)
        self.max_length: int = max_length
        dense = not isinstance(module, MlpHead) and module.config()["activation"] == "softplus"
        self.top_terms = SOFTPLUS_TERMS if dense and top_terms is None else top_terms
        self.dtype = dtype
        self.vocabulary_size = module.vocabulary_size
        self._fingerprint: tuple[Any, str] | None = None

    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> Encoded:
        tokens = self.tokenizer(texts)
        batches = batches_by_length(
            [len(ids) for ids in tokens.ids],
            shortest=self.backbone.n_special + 1,  # special tokens alone say nothing: such a vector stays empty
            tokens=BATCH_TOKENS.get(self.backbone.device.type, BATCH_TOKENS["cpu"]),
            texts=max(1, POOLED_ELEMENTS // self.vocabulary_size),
        )
        with evaluating(self.module):
            if self.backbone.device.type == "cuda":
                vectors = _encode_on_gpu(tokens.ids, batches, self._pool, self.vocabulary_size, advance)
            else:
                vectors = encode_batches(
                    tokens.ids, batches, lambda ids: sparse_rows(self._pool(ids).numpy()), self.vocabulary_size, advance
                )
        return Encoded(vectors, tokens.truncated)

    @torch.inference_mode()
    def _pool(self, batch: list[NDArray[np.int32]]) -> Tensor:
        """Vectors (texts, vocabulary) of a batch of token ids."""
        device = self.backbone.device
        ids, mask = (torch.from_numpy(array).to(device) for array in pad(batch))
        half = torch.autocast(device.type, getattr(torch, self.dtype)) if self.dtype != "float32" else nullcontext()
        with half:
            pooled: Tensor = self.module(ids, mask)
        if self.top_terms is not None and self.top_terms < self.vocabulary_size:
            heaviest = pooled.topk(self.top_terms, dim=1)
            pooled = torch.zeros_like(pooled).scatter_(1, heaviest.indices, heaviest.values)
        return pooled

    def term(self, term_id: int) -> str:
        return self.tokenizer.term(term_id)

    @property
    def fingerprint(self) -> str:
        # training changes weights in place, and torch counts the changes
        state = [(id(p), p._version) for p in self.module.parameters()]
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, hashlib.sha256(self._identity().encode()).hexdigest())
        return self._fingerprint[1]

    def _identity(self) -> str:
        if type(self.module) is MlmHead and self.top_terms is None:
            return f"mlm {self.module.pooling} {self.module.activation} {self.backbone.fingerprint}"
        settings = json.dumps({**self.module.config(), "top_terms": self.top_terms}, sort_keys=True)
        own = [f"{name} {digest(tensor)}" for name, tensor in sorted(self.module.own_state().items())]
        return " ".join([self.kind, settings, self.backbone.fingerprint, *own])

    @property
    def vocabulary_hash(self) -> str:
        return self.tokenizer.vocabulary_hash

    def config(self) -> dict[str, Any]:
        top = {} if self.top_terms is None else {"top_terms": self.top_terms}
        return {"max_length": self.max_length, **self.module.config(), **top}

    def save_files(self, folder: Path, *, with_backbone: bool = True, dtype: str = "float32") -> None:
        if with_backbone:
            self.backbone.save(folder, dtype)
        own = self.module.own_state()
        if own:
            from safetensors.torch import save_file

            folder.mkdir(exist_ok=True)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}, folder / HEAD_FILE)

    def save_tokenizer(self, folder: Path) -> None:
        self.backbone.save_tokenizer(folder)

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any], backbone: Backbone, dtype: str = "float32") -> "NeuralEncoder":
        """Read what `save_files` wrote, over a backbone that is loaded already."""
        options = {
            k: v for k, v in config.items() if k not in ("kind", "folder", "backbone", "max_length", "top_terms")
        }
        module = HEADS[config["kind"]](backbone, **options)
        own = module.own_state()
        if own:
            from safetensors.torch import load_file

            saved = load_file(folder / HEAD_FILE)
            if saved.keys() != own.keys():
                raise FormatError(
                    f"{folder / HEAD_FILE} holds {sorted(saved)}, not {sorted(own)}: save the encoder again"
                )
            module.load_state_dict(saved, strict=False)
        module.eval().to(backbone.device)
        return cls(module, config["max_length"], top_terms=config.get("top_terms"), dtype=dtype)


class TableEncoder(LookupEncoder):
    """A learned table as one side: trained as a module, saved and loaded as a plain `LookupEncoder`.

    Args:
        module: BINARY, or a learned look-up.
        tokenizer: the backbone's tokenizer.
        max_length: tokens kept of a text.
    """

    def __init__(self, module: TableHead, tokenizer: ModelTokenizer, max_length: int) -> None:
        self.module = module
        super().__init__(tokenizer, self.weights, max_length)

    @property
    def weights(self) -> NDArray[np.float32]:
        with torch.inference_mode():
            return cast("NDArray[np.float32]", self.module.table().float().cpu().numpy())

    def _weightless(self) -> frozenset[int]:  # the table changes in training: nothing is kept
        return frozenset(np.flatnonzero(self.weights == 0).tolist())

    @property
    def fingerprint(self) -> str:  # likewise
        return table_fingerprint(self.tokenizer, self.weights)


def check_length(backbone: Backbone, max_length: int) -> None:
    """Refuse a length that the model's positions do not reach, or that special tokens fill.

    Raises:
        InputError: it is such a length.
    """
    if max_length > backbone.max_length:
        raise InputError(f"a maximum length of {max_length} tokens is more than the model's {backbone.max_length}")
    if max_length <= backbone.n_special:
        raise InputError(
            f"a maximum length of {max_length} tokens leaves no room beside the {backbone.n_special} special tokens"
        )


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside, and as it was behind."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@dataclass
class _Entries:
    """What is not zero in the vectors of a batch, row by row, where they were made."""

    counts: Tensor
    terms: Tensor
    weights: Tensor

    @classmethod
    def of(cls, pooled: Tensor) -> "_Entries":
        flat = pooled.flatten()
        places = flat.nonzero()[:, 0]
        return cls((pooled != 0).sum(1), (places % pooled.shape[1]).int(), flat[places])


def _encode_on_gpu(
    token_ids: Sequence[NDArray[np.int32]],
    batches: Iterable[Sequence[int]],
    pool: Callable[[list[NDArray[np.int32]]], Tensor],
    vocabulary_size: int,
    advance: Advance | None,
) -> csr_array:
    """As `lsr.batching.encode_batches`; only entries that are not zero are copied, once, in the texts' order."""
    parts: list[_Entries] = []
    order: list[int] = []
    for batch in batches:
        parts.append(_Entries.of(pool([token_ids[i] for i in batch])))
        order += batch
        if advance:
            advance(len(batch))
    if not parts:
        return stack_rows([EMPTY_ROW] * len(token_ids), vocabulary_size)
    made, weights, terms = (torch.cat([getattr(p, name) for p in parts]) for name in ("counts", "weights", "terms"))
    counts = made.new_zeros(len(token_ids))
    counts[torch.tensor(order, device=made.device)] = made
    begins = counts.new_zeros(len(token_ids))  # in the order of the batches
    begins[torch.tensor(order, device=made.device)] = made.cumsum(0) - made
    ends = counts.cumsum(0)
    source = torch.repeat_interleave(begins - (ends - counts), counts) + torch.arange(len(terms), device=made.device)
    indptr = torch.nn.functional.pad(ends, (1, 0)).cpu().numpy()
    vectors = (weights[source].cpu().numpy(), terms[source].cpu().numpy(), indptr)
    return csr_array(vectors, shape=(len(token_ids), vocabulary_size))
