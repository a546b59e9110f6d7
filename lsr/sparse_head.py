"""The fused sparse head: token states to one weight per vocabulary term, without the logits tensor.

A masked-LM head turns (texts, length, hidden) states into (texts, length, vocabulary) logits, and
SPLADE keeps one number per text and term of them. At 128 texts of 256 tokens and 30,522 terms those
logits, their activations and gradients take tens of gigabytes. Here they never exist:

* padding is taken out first: what follows sees (tokens, hidden), and where each text begins;
* the vocabulary is walked block by block: a block's logits are made, pooled, and forgotten;
* max pooling keeps the winning logit and its token. The activation is applied to the winners alone, and the
  backward pass visits only (text, term) pairs that have a gradient, which after ReLU are few: with the sparse
  matrix G of those pairs, G[token, term] = ∂loss/∂logit, it is ∂states = G·W and ∂W = Gᵀ·states;
* sum pooling makes each block's logits again in the backward pass.

max pooling:  w_j = max_i act(logit_ij)             (SPLADE v2, arXiv 2109.10086)
sum pooling:  w_j = Σ_i act(logit_ij)               (SPLADE v1, arXiv 2107.05720)
importance:   w_j = max_i importance_i · act(logit_ij)   (EPIC, arXiv 2004.14245)

On a GPU, `lsr.sparse_head_triton` finds the winners in one kernel; everything here is its plain twin.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad, softplus

from lsr.errors import InputError

#: act(logit), non-negative and growing: so that it can be taken after a maximum.
ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "log1p": lambda x: torch.log1p(torch.relu(x)),
    "log1p_log1p": lambda x: torch.log1p(torch.log1p(torch.relu(x))),  # arXiv 2504.14839
    "softplus": softplus,
}
POOLINGS: Final = ("max", "sum")

#: Logits held at a time, in elements: 16 MiB of float32, so that a block stays near a CPU's cache.
BLOCK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}

#: Terms in a block of an exported graph.
EXPORTED_BLOCK = 4096

#: (text, term) pairs looked at in one step of the backward pass.
PAIRS = 1 << 22

#: Share of the (text, term) pairs with a gradient above which a GPU multiplies dense blocks.
CROWDED = 0.05

#: Elements of rows that are added at a time on a GPU.
ADDED = 1 << 27

warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are implicitly)")


def fused_sparse_head(
    states: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    pooling: str = "max",
    activation: str = "log1p",
    importance: Tensor | None = None,
) -> Tensor:
    """Pool ``act(states @ weight.T + bias)`` over the tokens of each text.

    Under autocast, products are taken in its dtype; sums, pooling and the gradients of ``weight`` and
    ``bias`` are float32 always (float64 where the states are). Where several tokens of a text tie, the gradient
    goes to the first.

    Args:
        states: (texts, length, hidden), of a floating dtype.
        mask: (texts, length), non-zero where there is a token. Padding never wins and adds nothing.
        weight: (vocabulary, hidden).
        bias: (vocabulary,) or None.
        pooling: "max" or "sum".
        activation: a name in `ACTIVATIONS`.
        importance: (texts, length), non-negative, a factor per token; with max pooling only.

    Returns:
        (texts, vocabulary), float32, non-negative; differentiable once. A text without tokens gets zeros.

    Raises:
        InputError: an unknown pooling or activation, or importance with sum pooling.
    """
    check_pooling(pooling, activation)
    if importance is not None and pooling != "max":
        raise InputError("an importance per token goes with max pooling only")
    if torch.compiler.is_exporting():
        return _exported(states, mask, weight, bias, pooling, ACTIVATIONS[activation], importance)
    kept = mask.bool()
    offsets = pad(kept.sum(1).cumsum(0), (1, 0))
    tokens = states.flatten(0, 1).index_select(0, kept.flatten().nonzero()[:, 0])
    act = ACTIVATIONS[activation]
    if tokens.shape[0] == 0:
        return (states.sum() + weight.sum()) * 0 + states.new_zeros(len(kept), weight.shape[0], dtype=_sums(states))
    factors = None if importance is None else importance[kept].to(_sums(states))
    if pooling == "sum":
        pooled: Tensor = _Summed.apply(tokens, weight, bias, offsets, act)  # type: ignore[no-untyped-call]
        return pooled
    rank = None if factors is None else _ranked_by(act, factors.detach())
    if rank is None and not (torch.is_grad_enabled() and _any_requires_grad(tokens, weight, bias)):
        with torch.autocast(tokens.device.type, enabled=False):
            return act(winning_logits(tokens.to(_factors(tokens)), weight, bias, offsets, with_winners=False)[0])
    logits, winners = _Winning.apply(tokens, weight, bias, offsets, rank)  # type: ignore[no-untyped-call]
    weights = act(logits)
    return weights if factors is None else weights * factors[winners.long()]


def _exported(
    states: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pooling: str,
    act: Callable[[Tensor], Tensor],
    importance: Tensor | None,
) -> Tensor:
    """The same for an exported graph, which has no Python: padded, the blocks of the vocabulary written out."""
    here = (mask != 0)[:, :, None]
    pooled = []
    for start in range(0, weight.shape[0], EXPORTED_BLOCK):
        block = slice(start, start + EXPORTED_BLOCK)
        logits = linear(states, weight[block], None if bias is None else bias[block])
        if pooling == "max" and importance is None:
            pooled.append(act(logits.masked_fill(~here, -torch.inf).amax(1)))
            continue
        weights = act(logits) * here if importance is None else act(logits) * (importance * mask)[:, :, None]
        pooled.append(weights.amax(1) if pooling == "max" else weights.sum(1))
    return torch.cat(pooled, 1)


def check_pooling(pooling: str, activation: str) -> None:
    """Refuse names that are none.

    Raises:
        InputError: ``pooling`` or ``activation`` is unknown.
    """
    if pooling not in POOLINGS or activation not in ACTIVATIONS:
        raise InputError(
            f"pooling={pooling!r}, activation={activation!r}: choose pooling from {', '.join(POOLINGS)} and "
            f"activation from {', '.join(ACTIVATIONS)}"
        )


def winning_logits(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    *,
    with_winners: bool = True,
    rank: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The largest logit of each text and term, and the row of ``states`` that it comes from.

    Args:
        states: (tokens, hidden), the texts' tokens one after the other.
        weight: (vocabulary, hidden), cast to the dtype of the states.
        bias: (vocabulary,) or None.
        offsets: int64 (texts + 1,): where in ``states`` the texts begin and end.
        with_winners: whether the rows are wanted.
        rank: what is compared, given a block (tokens, block) of logits; the logits themselves by default.

    Returns:
        logits (texts, vocabulary), float32, −inf for a text without tokens; rows, int32, of the same shape.
    """
    triton = _triton(states) if rank is None else None
    if triton is not None:
        found: tuple[Tensor, Tensor | None] = triton.winning_logits(states, weight, bias, offsets, with_winners)
        return found
    bounds = list(enumerate(pairwise(offsets.tolist())))
    shape = (len(bounds), weight.shape[0])
    logits = torch.full(shape, -torch.inf, dtype=_sums(states), device=states.device)
    winners = torch.zeros(shape, dtype=torch.int32, device=states.device) if with_winners else None
    for block, made in _blocks(states, weight, bias):
        compared = made if rank is None else rank(made)
        for text, (begin, end) in bounds:
            if begin == end:
                continue
            if winners is None:
                torch.amax(made[begin:end], 0, out=logits[text, block])
                continue
            best, first = compared[begin:end].max(0)
            winners[text, block] = first + begin
            logits[text, block] = best if rank is None else made[begin:end].gather(0, first[None])[0]
    return logits, winners


def _blocks(states: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """The logits (tokens, block) of every block of the vocabulary, products summed in `_sums`."""
    size = max(256, BLOCK_ELEMENTS.get(states.device.type, BLOCK_ELEMENTS["cuda"]) // states.shape[0])
    wide = _sums(states)
    narrow = states.dtype
    on_gpu = states.is_cuda and narrow in (
        torch.float16,
        torch.bfloat16,
    )  # there half-precision products have wide sums
    states = states if on_gpu else states.to(wide)
    for start in range(0, weight.shape[0], size):
        block = slice(start, start + size)
        part = weight[block].to(narrow).T
        made = torch.mm(states, part, out_dtype=wide) if on_gpu else torch.mm(states, part.to(wide))
        yield block, made if bias is None else made.add_(bias[block].to(wide))


def _ranked_by(act: Callable[[Tensor], Tensor], factors: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: act(logits) * factors[:, None]


class _Winning(torch.autograd.Function):
    """`winning_logits`, whose gradient flows to the winners alone."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        offsets: Tensor,
        rank: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.states_dtype, ctx.bias_dtype = states.dtype, None if bias is None else bias.dtype
        states = states.to(_factors(states))
        with torch.autocast(states.device.type, enabled=False):
            logits, winners = winning_logits(states, weight, bias, offsets, rank=rank)
        assert winners is not None
        ctx.save_for_backward(states, weight, winners)
        ctx.mark_non_differentiable(winners)
        return logits, winners

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        states, weight, winners = ctx.saved_tensors
        with torch.autocast(states.device.type, enabled=False):
            gradients = _gradients_for(grad)
            of_states, of_weight = gradients(grad, winners, states, weight, ctx.needs_input_grad[:2])
            of_bias = grad.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        if of_states is not None:
            of_states = of_states.to(ctx.states_dtype)
        return of_states, None if of_weight is None else of_weight.to(weight.dtype), of_bias, None, None


def _gradients_for(grad: Tensor) -> Callable[..., tuple[Tensor | None, Tensor | None]]:
    """The form of the backward pass that suits the device, and how many terms survived."""
    if not grad.is_cuda:
        return _sparse_gradients
    crowded = int(torch.count_nonzero(grad)) > CROWDED * grad.numel()
    return _dense_gradients if crowded else _added_gradients


def _zeros(
    grad: Tensor, states: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of states and weight to add to, those that are wanted, in the dtype of ``grad``."""
    of_states, of_weight = (
        torch.zeros_like(of, dtype=grad.dtype) if want else None
        for of, want in zip((states, weight), wanted, strict=True)
    )
    return of_states, of_weight


def _sparse_gradients(
    grad: Tensor, winners: Tensor, states: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """G·weight and Gᵀ·states, where G (tokens, vocabulary) holds ``grad`` at each winner's place.

    G is made from as many texts at a time as have `PAIRS` pairs at most, and each text's tokens are its own.
    """
    wide = grad.dtype
    of_states, of_weight = _zeros(grad, states, weight, wanted)
    weight, states = weight.to(wide), states.to(wide)
    step = max(1, PAIRS // grad.shape[1])
    for rows, won in zip(torch.split(grad, step), torch.split(winners, step), strict=True):
        terms, texts = rows.T.nonzero(as_tuple=True)  # sorted by term
        values, tokens = rows[texts, terms], won[texts, terms]
        if of_weight is not None:
            by_term = _csr(terms, tokens, values, (len(weight), len(states)))
            torch.addmm(of_weight, by_term, states, out=of_weight)
        if of_states is not None:
            order = tokens.argsort(stable=True)
            by_token = _csr(tokens[order], terms[order], values[order], (len(states), len(weight)))
            torch.addmm(of_states, by_token, weight, out=of_states)
    return of_states, of_weight


def _added_gradients(
    grad: Tensor, winners: Tensor, states: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """As `_sparse_gradients`, by adding row to row: a GPU takes no time for it, and needs no sorting."""
    of_states, of_weight = _zeros(grad, states, weight, wanted)
    texts, terms = grad.nonzero(as_tuple=True)
    values, tokens = grad[texts, terms][:, None], winners[texts, terms]
    step = max(1, ADDED // states.shape[1])
    for value, token, term in zip(*(torch.split(part, step) for part in (values, tokens, terms)), strict=True):
        if of_states is not None:
            of_states.index_add_(0, token, value * weight[term].to(grad.dtype))
        if of_weight is not None:
            of_weight.index_add_(0, term, value * states[token].to(grad.dtype))
    return of_states, of_weight


def _dense_gradients(
    grad: Tensor, winners: Tensor, states: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """As `_sparse_gradients`, with G written out for a block of the vocabulary at a time.

    For weights that were not trained yet, where most terms of most texts survive ReLU.
    """
    of_states, of_weight = _zeros(grad, states, weight, wanted)
    size = max(256, BLOCK_ELEMENTS["cuda"] // len(states))
    for start in range(0, len(weight), size):
        block = slice(start, start + size)
        values = grad[:, block]
        # tokens belong to one text each, so that no two winners of a term share a place; the last row takes the zeros
        spread = states.new_zeros(len(states) + 1, values.shape[1])
        places = torch.where(values != 0, winners[:, block], len(states)).long()
        spread = spread.scatter_(0, places, values.to(states.dtype))[:-1]
        if of_states is not None:
            of_states += (spread @ weight[block].to(states.dtype)).to(grad.dtype)
        if of_weight is not None:
            of_weight[block] = (spread.T @ states).to(grad.dtype)
    return of_states, of_weight


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix from entries sorted by row."""
    pointers = pad(torch.bincount(rows, minlength=shape[0]).cumsum(0), (1, 0))
    return torch.sparse_csr_tensor(pointers.int(), columns.int(), values, shape, check_invariants=False)


class _Summed(torch.autograd.Function):
    """Σ_i act(logit_ij), each block's logits made again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        offsets: Tensor,
        act: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.states_dtype, ctx.act = states.dtype, act
        states = states.to(_factors(states))
        text_of = torch.repeat_interleave(offsets.diff())
        ctx.save_for_backward(states, weight, bias, text_of)
        pooled = torch.zeros(len(offsets) - 1, len(weight), dtype=_sums(states), device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            for block, logits in _blocks(states, weight, bias):
                pooled[:, block].index_add_(0, text_of, act(logits))
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        states, weight, bias, text_of = ctx.saved_tensors
        of_states = torch.zeros_like(states, dtype=grad.dtype)
        of_weight = torch.zeros_like(weight, dtype=grad.dtype)
        of_bias = None if bias is None else torch.zeros_like(bias)
        with torch.autocast(states.device.type, enabled=False):
            for block, logits in _blocks(states, weight, bias):
                with torch.enable_grad():
                    weights = ctx.act(logits.requires_grad_())
                (of_logits,) = torch.autograd.grad(weights, logits, grad[:, block][text_of])
                of_states.addmm_(of_logits, weight[block].to(grad.dtype))
                of_weight[block] = of_logits.T @ states.to(grad.dtype)
                if of_bias is not None:
                    of_bias[block] = of_logits.sum(0)
        return of_states.to(ctx.states_dtype), of_weight.to(weight.dtype), of_bias, None, None


def _sums(states: Tensor) -> torch.dtype:
    """What is summed and returned in: float32, or float64 where the states are."""
    return torch.float64 if states.dtype == torch.float64 else torch.float32


def _factors(states: Tensor) -> torch.dtype:
    """What is multiplied: autocast's dtype where it is on, as in a linear layer."""
    device = states.device.type
    if torch.is_autocast_enabled(device) and states.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return states.dtype


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _triton(states: Tensor) -> ModuleType | None:
    """The Triton kernel's module, where it can take these states."""
    if not states.is_cuda or states.dtype == torch.float64:
        return None
    return _triton_module()


@cache
def _triton_module() -> ModuleType | None:
    try:
        return import_module("lsr.sparse_head_triton")
    except ImportError:  # a torch without triton
        return None
