"""From token states to one sparse vector per text, without a batch × length × vocabulary tensor.

max pooling:  w_j = act(max_i relu(logit_ij))      (SPLADE v2, arXiv 2109.10086)
sum pooling:  w_j = Σ_i act(relu(logit_ij))        (SPLADE v1, arXiv 2107.05720)

with act = log1p, or log1p twice (ℓ0-inspired sparsification, arXiv 2504.14839). Every activation
here grows with its input and maps 0 to 0, so that it can be taken after the maximum.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "log1p": torch.log1p,
    "log1p_log1p": lambda x: torch.log1p(torch.log1p(x)),
}
POOLINGS = ("max", "sum")

#: Logits held at a time, in elements: 16 MiB of float32, so that a block stays near the cache.
BLOCK_ELEMENTS = 1 << 22


@torch.inference_mode()
def pool_logits(
    states: Tensor,
    offsets: list[int],
    weight: Tensor,
    bias: Tensor | None,
    *,
    pooling: str,
    activation: str,
) -> Tensor:
    """Pool ``states @ weight.T + bias`` over the tokens of each text, one vocabulary block at a time.

    Args:
        states: (tokens, hidden), the texts' tokens one after the other, no padding.
        offsets: len(texts) + 1 positions in ``states`` where the texts begin and end.
        weight: (vocabulary, hidden).
        bias: (vocabulary,) or None.
        pooling: "max" or "sum".
        activation: a name in `ACTIVATIONS`.

    Returns:
        (texts, vocabulary), float32, non-negative.
    """
    act = ACTIVATIONS[activation]
    vocabulary_size = weight.shape[0]
    pooled = torch.empty(len(offsets) - 1, vocabulary_size, dtype=torch.float32, device=states.device)
    block = max(256, BLOCK_ELEMENTS // max(1, states.shape[0]))
    for start in range(0, vocabulary_size, block):
        stop = min(start + block, vocabulary_size)
        logits = torch.nn.functional.linear(states, weight[start:stop], None if bias is None else bias[start:stop])
        if pooling == "sum":
            logits = act(logits.float().relu_())
        for text, (begin, end) in enumerate(pairwise(offsets)):
            tokens = logits[begin:end]
            pooled[text, start:stop] = tokens.amax(0) if pooling == "max" else tokens.sum(0)
    return act(pooled.relu_()) if pooling == "max" else pooled
