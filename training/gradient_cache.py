"""Gradient caching: a large batch in little memory, with the whole batch's gradient (Gao et al., arXiv 2101.06983).

A contrastive loss and a FLOPS penalty look at all vectors of a batch at once, but the encoder sees one
text at a time. So the vectors are made chunk by chunk without keeping activations, the loss gives each
vector its gradient, and a second forward pass per chunk carries these gradients into the encoder.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

#: Query and document vectors.
Vectors = tuple[Tensor, Tensor]


def cached_backward(
    forwards: list[Callable[[], Vectors]],
    objective: Callable[[Tensor, Tensor], Tensor],
    backward: Callable[[Tensor], object],
    *,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Add the gradient of ``objective`` over all chunks to the parameters.

    Args:
        forwards: one call per chunk, each giving the chunk's query and document vectors.
        objective: of the vectors of all chunks, (b, V) and (b·n, V).
        backward: carries a scalar back; called once per chunk.
        no_sync: entered for all chunks but the last: processes exchange gradients once.

    Returns:
        The objective's value, without gradient.
    """
    states = []
    vectors: list[Vectors] = []
    with torch.no_grad():
        for forward in forwards:
            states.append(_random_state())
            vectors.append(forward())
    queries, documents = (torch.cat(side).requires_grad_() for side in zip(*vectors, strict=True))
    loss = objective(queries, documents)
    gradients = torch.autograd.grad(loss, (queries, documents), allow_unused=True)
    sizes = [[len(side) for side in chunk] for chunk in vectors]
    del vectors
    parts = [_split(g, [size[i] for size in sizes]) for i, g in enumerate(gradients)]
    for i, (forward, state) in enumerate(zip(forwards, states, strict=True)):
        last = i == len(forwards) - 1
        with nullcontext() if last else no_sync(), _random(state):
            chunk = forward()
            pieces = [
                (vector * part[i]).sum()
                for vector, part in zip(chunk, parts, strict=True)
                if part is not None and vector.requires_grad
            ]
            backward(torch.stack(pieces).sum())
    return loss.detach()


def _split(gradient: Tensor | None, sizes: list[int]) -> tuple[Tensor, ...] | None:
    return None if gradient is None else torch.split(gradient, sizes)


def _random_state() -> list[Tensor]:
    """The state of the generators that dropout draws from."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


@contextmanager
def _random(state: list[Tensor]) -> Iterator[None]:
    """Inside, random numbers come again as from ``state`` on; afterwards they go on as before."""
    with torch.random.fork_rng():
        torch.set_rng_state(state[0])
        if state[1:]:
            torch.cuda.set_rng_state_all(state[1:])
        yield
