"""Texts one after the other in a single row, so that a transformer spends nothing on padding.

Everything in a BERT works on one token at a time, but attention. So all tokens of a batch go through the model as one
row, each with its position in its own text. Inside attention alone, texts are told apart: by flash attention, which is
told where they begin, or laid out with padding where it does not take them.

Real collections have texts of very different lengths: a batch of 128 Debian descriptions, cut at 256 tokens, is two
thirds padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

#: The name of this attention among those of transformers.
ATTENTION = "lsr_packed"

#: What flash attention takes.
HALVES = (torch.float16, torch.bfloat16)

#: Architectures (``model_type``) whose layers see other tokens in plain attention only, and take positions.
PACKABLE = frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"})


class Layout(NamedTuple):
    """Where the tokens of a packed row come from.

    Attributes:
        kept: bool (texts, length), True where there is a token.
        places: int64 (tokens,), of each token in the flattened (texts, length).
        offsets: int64 (texts + 1,), where the texts begin and end in the row.
    """

    kept: Tensor
    places: Tensor
    offsets: Tensor


def packable(model: Any) -> bool:
    """Whether `run_packed` takes this transformer; before transformers 5, BERTs take no attention of others."""
    config = model.config
    takes = getattr(model, "_supports_attention_backend", False)
    return config.model_type in PACKABLE and bool(takes) and not getattr(config, "is_decoder", False)


def run_packed(
    model: Any, run: Callable[..., tuple[Tensor, ...]], input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, ...]:
    """``run`` on all tokens as one row, its states (1, tokens, hidden) put back as (texts, length, hidden).

    Args:
        model: `packable`.
        run: calls ``model``, or a part of it, with the keywords that it is given.
        input_ids: (texts, length).
        attention_mask: (texts, length), non-zero where there is a token.

    Returns:
        What ``run`` returns, zeros where there is no token.
    """
    kept = attention_mask != 0
    places = kept.flatten().nonzero()[:, 0]
    layout = Layout(kept, places, torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)))
    if model.config._attn_implementation != ATTENTION:
        _register()
        model.set_attn_implementation(ATTENTION)
    ids = input_ids.flatten()[places][None]
    positions = places[None] % kept.shape[1] + _first_position(model)
    made = run(
        input_ids=ids, attention_mask=None, position_ids=positions, token_type_ids=torch.zeros_like(ids), layout=layout
    )
    return tuple(_spread(states[0], layout) for states in made)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of packed texts, each within itself; as ``sdpa`` where nothing is packed.

    Args:
        module: the layer.
        query: (1, heads, tokens, dimension).
        key: as ``query``.
        value: as ``query``.
        attention_mask: None where texts are packed.
        layout: of the packed texts.
        dropout: probability of leaving a weight out.
        scaling: of the products; 1 / √dimension by default.
        **options: for ``sdpa``.

    Returns:
        (1, tokens, heads, dimension), and None for the weights.
    """
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        made: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return made
    tokens = [part[0].transpose(0, 1) for part in (query, key, value)]  # (tokens, heads, dimension)
    if query.is_cuda and query.dtype in HALVES and query.shape[3] % 8 == 0:
        return _ragged(tokens, layout, dropout, scaling)[None], None
    q, k, v = (_spread(part, layout).transpose(1, 2) for part in tokens)
    mask = layout.kept[:, None, None, :]
    seen = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return seen.transpose(1, 2).flatten(0, 1)[layout.places][None], None


def _ragged(tokens: list[Tensor], layout: Layout, dropout: float, scaling: float | None) -> Tensor:
    """Flash attention over texts of any length, (tokens, heads, dimension).

    The operation behind ``scaled_dot_product_attention`` of nested tensors, which take milliseconds of Python a call,
    and behind ``torch.nn.attention.varlen``, which knows no dropout.
    """
    offsets, longest = layout.offsets.int(), layout.kept.shape[1]
    seen: Tensor = torch.ops.aten._flash_attention_forward(
        *tokens, offsets, offsets, longest, longest, dropout, False, False, scale=scaling
    )[0]
    return seen


def _spread(tokens: Tensor, layout: Layout) -> Tensor:
    """(tokens, …) as (texts, length, …), zeros where there is no token."""
    texts, length = layout.kept.shape
    flat = tokens.new_zeros(texts * length, *tokens.shape[1:]).index_copy(0, layout.places, tokens)
    return flat.view(texts, length, *tokens.shape[1:])


def _first_position(model: Any) -> int:
    """The number of a text's first position: the RoBERTa family counts from behind the padding id."""
    table = model.base_model.embeddings.position_embeddings
    return 0 if table.padding_idx is None else int(table.padding_idx) + 1


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
