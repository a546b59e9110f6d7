"""From examples to what the model takes: the order of the examples, and how a batch is cut to save padding."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, TypedDict

import torch
from torch import Tensor

from lsr.training.data import Batch, Example

#: What another call of the encoder costs, in padded tokens.
CALL_TOKENS = {"cpu": 256, "cuda": 32_768}


class ExampleSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Keys (epoch, i) of a `TrainingSet`, one shuffled pass after the other.

    The sequence depends on the seed alone, and the batches of all processes are cut from it one after the other:
    the global batch of a step is the same for any number of processes.

    Args:
        dataset: the training set, or its like.
        length: examples in the whole training.
        seed: of the order.
    """

    def __init__(self, dataset: Sized, length: int, seed: int) -> None:
        self.size = len(dataset)
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.length, self.size):
            epoch = start // self.size
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + epoch))
            for i in order[: self.length - start].tolist():
                yield epoch, i


class Chunk(TypedDict):
    """Rows of a batch that go through the encoder together.

    Attributes:
        queries: first query, end, and length of the longest.
        order: int64, the chunk's document rows from short to long.
        inverse: int64, where each of its documents went.
        parts: (first, end, length) in ``order``, one call of the encoder each.
    """

    queries: tuple[int, int, int]
    order: Tensor
    inverse: Tensor
    parts: list[tuple[int, int, int]]


class PlannedCollator:
    """A collator whose batches say how they are cut: ``batch["chunks"]``, a list of `Chunk`.

    Args:
        collate: makes a `Batch` of examples.
        chunk: queries per chunk, 0 for all.
        call_tokens: see `CALL_TOKENS`.
    """

    def __init__(self, collate: Callable[[Sequence[Example]], Batch], chunk: int, call_tokens: int) -> None:
        self.collate, self.chunk, self.call_tokens = collate, chunk, call_tokens

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The batch with its chunks."""
        batch = self.collate(examples)
        b = len(batch["query_ids"])
        n = len(batch["document_ids"]) // b
        query_lengths = batch["query_mask"].sum(1).tolist()
        document_lengths = batch["document_mask"].sum(1)
        size = self.chunk or b
        chunks = []
        for start in range(0, b, size):
            end = min(start + size, b)
            lengths = document_lengths[start * n : end * n]
            order = torch.argsort(lengths, stable=True)
            parts = cut_by_length(lengths[order].tolist(), self.call_tokens)
            queries = (start, end, max(1, *query_lengths[start:end]))
            chunks.append(Chunk(queries=queries, order=order + start * n, inverse=torch.argsort(order), parts=parts))
        return {**batch, "chunks": chunks}


def cut_by_length(lengths: Sequence[int], call_tokens: int) -> list[tuple[int, int, int]]:
    """Cut ascending lengths into parts (first, end, longest) of the least padded tokens, each part costing some more.

    Lengths are rounded up to multiples of 8. The cost of a part is its texts × its longest length + ``call_tokens``.
    """
    longest = lengths[-1]
    rounded = [min(longest, -(-max(1, length) // 8) * 8) for length in lengths]
    ends = [i + 1 for i in range(len(rounded)) if i + 1 == len(rounded) or rounded[i + 1] != rounded[i]]
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the texts up to an end, and the end before it
    for j, end in enumerate(ends):
        costs = [
            (best[i][0] + (end - (ends[i - 1] if i else 0)) * rounded[end - 1] + call_tokens, i) for i in range(j + 1)
        ]
        best.append(min(costs))
    parts = []
    j = len(ends)
    while j:
        i = best[j][1]
        parts.append((ends[i - 1] if i else 0, ends[j - 1], max(1, rounded[ends[j - 1] - 1])))
        j = i
    return parts[::-1]
