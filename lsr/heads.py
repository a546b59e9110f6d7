"""Sparse heads as torch modules: token ids in, one weight per vocabulary term out (Nguyen et al., arXiv 2303.13416).

Every head is called as ``head(input_ids, attention_mask)`` with int64 (texts, length) tensors and gives
float32 (texts, vocabulary), non-negative and differentiable. Heads of two sides may hold the same
`lsr.backbone.Backbone`: then its parameters are the same tensors.

Special tokens ([CLS], [SEP], [UNK], …) get no weight where weights stand on a text's own tokens
(MLP, BINARY, LOOKUP). MLM heads weigh the whole vocabulary.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from lsr.backbone import Backbone
from lsr.encoder import TextEncoder
from lsr.errors import InputError
from lsr.lookup import LookupEncoder
from lsr.sparse_head import ACTIVATIONS, check_pooling, fused_sparse_head
from lsr.tokenizer import ModelTokenizer

MLP_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": torch.relu,
    "identity": lambda x: x,
    "softplus": softplus,
}
NORMS: Final[dict[str, Callable[[Tensor], Tensor]]] = {"none": lambda x: x, "log1p": torch.log1p}
REPEATS: Final = {"sum": "sum", "max": "amax"}

#: BINARY's first scale, as in the unified framework.
BINARY_SCALE = 0.3

#: First bias of a learned weight per token or term: near it all weights are alive, and about as large.
FIRST_BIAS = 1.0


class SparseHead(torch.nn.Module):
    """A head over a backbone.

    Attributes:
        kind: the name under which a side with this head is saved.
        backbone: the transformer that it reads.
    """

    kind: ClassVar[str]

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def vocabulary_size(self) -> int:
        """Columns of the weights."""
        return self.backbone.vocabulary_size

    def config(self) -> dict[str, Any]:
        """The arguments that make this head again over its backbone."""
        return {}

    def own_state(self) -> dict[str, Tensor]:
        """The head's own parameters by name, without the backbone's."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("backbone.")}


class MlmHead(SparseHead):
    """SPLADE: w_j = max_i act(logit_ij), or the sum over i.

    Args:
        backbone: one with a masked-LM head.
        pooling: "max" or "sum".
        activation: "log1p" = log(1 + relu(x)), "log1p_log1p" (twice the logarithm), or "softplus".
    """

    kind = "mlm"

    def __init__(self, backbone: Backbone, *, pooling: str = "max", activation: str = "log1p") -> None:
        super().__init__(backbone)
        check_pooling(pooling, activation)
        backbone.head()
        self.pooling = pooling
        self.activation = activation

    def config(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "activation": self.activation}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.backbone.states(input_ids, attention_mask)
        head = self.backbone.head()
        return fused_sparse_head(
            states, attention_mask, head.weight, head.bias, pooling=self.pooling, activation=self.activation
        )


class ClsMlmHead(SparseHead):
    """TILDE's documents: w_j = act(logit_j of the first token, [CLS])."""

    kind = "clsmlm"

    def __init__(self, backbone: Backbone, *, activation: str = "log1p") -> None:
        super().__init__(backbone)
        check_pooling("max", activation)
        backbone.head()
        self.activation = activation

    def config(self) -> dict[str, Any]:
        return {"activation": self.activation}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.backbone.states(input_ids, attention_mask)
        head = self.backbone.head()
        return ACTIVATIONS[self.activation](linear(states[:, 0], head.weight, head.bias).float())


class EpicHead(SparseHead):
    """EPIC's documents (arXiv 2004.14245): w_j = quality · max_i importance_i · act(logit_ij).

    importance_i = log(1 + softplus(u·h_i + b)), quality = sigmoid(v·h_[CLS] + c), act = softplus
    unless another is given.
    """

    kind = "epic"

    def __init__(self, backbone: Backbone, *, activation: str = "softplus") -> None:
        super().__init__(backbone)
        check_pooling("max", activation)
        backbone.head()
        self.activation = activation
        self.importance = torch.nn.Linear(backbone.hidden_size, 1)
        self.quality = torch.nn.Linear(backbone.hidden_size, 1)

    def config(self) -> dict[str, Any]:
        return {"activation": self.activation}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, hidden = self.backbone.states_and_hidden(input_ids, attention_mask)
        head = self.backbone.head()
        importance = torch.log1p(softplus(self.importance(hidden).squeeze(-1).float()))
        pooled = fused_sparse_head(
            states, attention_mask, head.weight, head.bias, activation=self.activation, importance=importance
        )
        return pooled * torch.sigmoid(self.quality(hidden[:, 0]).float())


class MlpHead(SparseHead):
    """A weight per input token, put on the token's own term: norm(act(w·h_i + b)).

    Args:
        backbone: with or without a masked-LM head.
        repeats: what becomes of a term's several tokens: "sum" (queries) or "max" (documents).
        activation: "relu" (uniCOIL), "identity" (DeepCT), or "softplus" (EPIC's queries). Identity is
            negative at times while training, so that its gradient never dies; outside of training, at 0 it ends.
        norm: "none" or "log1p".
        weigh: the linear layer of another head, to share it.
    """

    kind = "mlp"

    def __init__(
        self,
        backbone: Backbone,
        *,
        repeats: str,
        activation: str = "relu",
        norm: str = "none",
        weigh: torch.nn.Linear | None = None,
    ) -> None:
        super().__init__(backbone)
        for name, value, choices in (
            ("activation", activation, MLP_ACTIVATIONS),
            ("norm", norm, NORMS),
            ("repeats", repeats, REPEATS),
        ):
            if value not in choices:
                raise InputError(f"an mlp head has no {name} {value!r}: choose from {', '.join(choices)}")
        if activation == "identity" and norm != "none":
            raise InputError("an mlp head with activation identity takes norm none: log1p is undefined below -1")
        self.repeats = repeats
        self.activation = activation
        self.norm = norm
        self.weigh = weigh or _weigh(backbone.hidden_size)
        self.register_buffer("speaks", _speaks(backbone.tokenizer, self.vocabulary_size), persistent=False)

    def config(self) -> dict[str, Any]:
        return {"repeats": self.repeats, "activation": self.activation, "norm": self.norm}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone.hidden(input_ids, attention_mask)
        raw = self.weigh(hidden).squeeze(-1).float()
        weights = NORMS[self.norm](MLP_ACTIVATIONS[self.activation](raw))
        if not self.training:
            weights = weights.relu()
        weights = weights * attention_mask * self.get_buffer("speaks")[input_ids]
        empty = torch.zeros(input_ids.shape[0], self.vocabulary_size, dtype=weights.dtype, device=weights.device)
        return empty.scatter_reduce(1, input_ids, weights, REPEATS[self.repeats], include_self=False)


class TableHead(torch.nn.Module):
    """A weight per vocabulary term, whatever the text: w_t = 1[t in text] · table_t.

    A transformer is not needed to encode: the table is computed once and kept.

    Attributes:
        repeats: what becomes of a term's several tokens: "amax" (one counts) or "sum" (all do).
    """

    repeats = "amax"

    def __init__(self, tokenizer: ModelTokenizer, vocabulary_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.register_buffer("speaks", _speaks(tokenizer, vocabulary_size), persistent=False)

    def table(self) -> Tensor:
        """float32 (vocabulary,), non-negative, zero for special tokens."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        table = self.table()
        present = torch.zeros(input_ids.shape[0], self.vocabulary_size, dtype=table.dtype, device=table.device)
        present = present.scatter_reduce(1, input_ids, attention_mask.to(table.dtype), self.repeats)
        return present * table


class BinaryHead(TableHead):
    """BINARY: one learned scale for every term of the text."""

    def __init__(self, tokenizer: ModelTokenizer, vocabulary_size: int) -> None:
        super().__init__(tokenizer, vocabulary_size)
        self.scale = torch.nn.Parameter(torch.tensor(BINARY_SCALE))

    def table(self) -> Tensor:
        return self.get_buffer("speaks") * self.scale.relu()


class LearnedLookupHead(TableHead):
    """Li-LSR (arXiv 2505.01452): table_t = log(1 + relu(w·E_t + b)), with E the word embeddings.

    Args:
        tokenizer: the backbone's tokenizer.
        embeddings: (vocabulary, hidden); a backbone's own, or a copy.
    """

    def __init__(self, tokenizer: ModelTokenizer, embeddings: torch.nn.Embedding) -> None:
        super().__init__(tokenizer, embeddings.num_embeddings)
        self.embeddings = embeddings
        self.weigh = _weigh(embeddings.embedding_dim)

    def table(self) -> Tensor:
        with torch.autocast(self.weigh.weight.device.type, enabled=False):
            weights = self.weigh(self.embeddings.weight.float()).squeeze(-1)
        return torch.log1p(weights.relu()) * self.get_buffer("speaks")


class FixedTableHead(TableHead):
    """A given table, such as IDF: nothing of it is trained, special tokens keep what the table says.

    Args:
        side: the look-up side whose table it is.
    """

    def __init__(self, side: LookupEncoder) -> None:
        super().__init__(side.tokenizer, side.vocabulary_size)
        self.register_buffer("weights", torch.from_numpy(side.weights.copy()))
        self.repeats = "sum" if side.counts else "amax"

    def table(self) -> Tensor:
        return self.get_buffer("weights")


def module_of(side: TextEncoder) -> torch.nn.Module:
    """The torch module of a side, to be called with (input_ids, attention_mask); that of an IDF table is frozen.

    Raises:
        InputError: the side is computed without torch (BM25, ONNX).
    """
    module = getattr(side, "module", None)
    if isinstance(module, torch.nn.Module):
        return module
    if isinstance(side, LookupEncoder):
        return FixedTableHead(side)
    raise InputError(f"a side of kind {side.kind} cannot be trained: it has no torch module")


def _weigh(hidden_size: int) -> torch.nn.Linear:
    layer = torch.nn.Linear(hidden_size, 1)
    torch.nn.init.constant_(layer.bias, FIRST_BIAS)
    return layer


def _speaks(tokenizer: ModelTokenizer, vocabulary_size: int) -> Tensor:
    """float32 (vocabulary,): 0 for special tokens, 1 for all others."""
    speaks = torch.ones(vocabulary_size)
    speaks[torch.from_numpy(tokenizer.special_ids)] = 0
    return speaks
