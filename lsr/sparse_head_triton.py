# mypy: ignore-errors
"""The winning logits of the fused sparse head in one GPU kernel (Triton): no logit reaches global memory.

One program per text and tile of the vocabulary walks the text's tokens, multiplies a tile of states with
the tile of weights, and keeps the running maximum and its token in registers.

`lsr.sparse_head.winning_logits` is its twin in plain torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Terms in a tile, and texts that share a tile of weights while it is in the L2 cache.
TERMS = 128
GROUP = 8


def winning_logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, with_winners: bool
) -> tuple[Tensor, Tensor | None]:
    """As `lsr.sparse_head.winning_logits`; a NaN among a text's logits shows as infinity."""
    texts, (vocabulary, hidden) = len(offsets) - 1, weight.shape
    logits = torch.empty(texts, vocabulary, dtype=torch.float32, device=states.device)
    winners = torch.empty(texts, vocabulary, dtype=torch.int32, device=states.device) if with_winners else None
    wide = states.dtype == torch.float32
    tokens = min(64 if wide else 128, max(16, triton.next_power_of_2(-(-len(states) // max(1, texts)))))
    grid = (texts * triton.cdiv(vocabulary, TERMS),)
    with torch.cuda.device(states.device):
        _winning_logits[grid](
            states.contiguous(),
            weight.to(states.dtype).contiguous(),
            logits if bias is None else bias.float().contiguous(),
            offsets.int(),
            logits,
            logits if winners is None else winners,
            texts,
            hidden,
            vocabulary,
            HAS_BIAS=bias is not None,
            WITH_WINNERS=with_winners,
            PRECISION="tf32x3" if wide else "tf32",  # three products of tensor cores: as exact as float32's own
            TOKENS=tokens,
            TERMS=TERMS,
            DEPTH=32 if wide else 64,
            GROUP=GROUP,
            num_warps=8 if tokens >= 64 else 4,
            num_stages=3,
        )
    return logits, winners


@triton.jit
def _winning_logits(
    states,
    weight,
    bias,
    offsets,
    logits,
    winners,
    texts,
    hidden,
    vocabulary,
    HAS_BIAS: tl.constexpr,
    WITH_WINNERS: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    TERMS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    # programs that run at the same time take few texts and few tiles: both stay in the L2 cache
    program = tl.program_id(0)
    per_group = GROUP * tl.cdiv(vocabulary, TERMS)
    first_text = program // per_group * GROUP
    group = tl.minimum(GROUP, texts - first_text)
    text = first_text + program % per_group % group
    tile = program % per_group // group

    terms = tile * TERMS + tl.arange(0, TERMS)
    in_vocabulary = terms < vocabulary
    begin = tl.load(offsets + text)
    end = tl.load(offsets + text + 1)
    best = tl.full((TERMS,), float("-inf"), tl.float32)
    winner = tl.zeros((TERMS,), tl.int32) + begin
    for first in range(begin, end, TOKENS):
        rows = first + tl.arange(0, TOKENS)
        in_text = rows < end
        made = tl.zeros((TOKENS, TERMS), tl.float32)
        for depth in range(0, hidden, DEPTH):
            columns = depth + tl.arange(0, DEPTH)
            in_hidden = columns < hidden
            left = tl.load(
                states + rows[:, None].to(tl.int64) * hidden + columns[None, :],
                mask=in_text[:, None] & in_hidden[None, :],
                other=0.0,
            )
            right = tl.load(
                weight + terms[None, :].to(tl.int64) * hidden + columns[:, None],
                mask=in_vocabulary[None, :] & in_hidden[:, None],
                other=0.0,
            )
            made = tl.dot(left, right, made, input_precision=PRECISION)
        made = tl.where(made == made, made, float("inf"))  # noqa: PLR0124 – a maximum would pass NaN over
        made = tl.where(in_text[:, None], made, float("-inf"))
        if WITH_WINNERS:
            top, place = tl.max(made, 0, return_indices=True)  # the first, where several tie
            winner = tl.where(top > best, first + place, winner)
        else:
            top = tl.max(made, 0)
        best = tl.maximum(best, top)
    if HAS_BIAS:
        best += tl.load(bias + terms, mask=in_vocabulary, other=0.0)
    place = text.to(tl.int64) * vocabulary + terms
    tl.store(logits + place, best, mask=in_vocabulary)
    if WITH_WINNERS:
        tl.store(winners + place, winner, mask=in_vocabulary)
