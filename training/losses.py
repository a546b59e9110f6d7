"""Losses: what the scores of a batch should be.

A loss takes query vectors (b, V), document vectors (b·n, V) and the `Batch`, and returns a scalar.
Document j of query i is row i·n + j, its positive is row i·n. Everything is computed in float32,
under autocast too. In the formulas s_ij is the score of document j of query i, t_ij its teacher's. Where the
batch has base scores, those of a fixed part that the encoder will be joined with, s_ij is the sum of both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lsr.errors import InputError
from lsr.training.data import Batch


class Loss(Protocol):
    """(queries (b, V), documents (b·n, V), batch) → float32 scalar."""

    needs_scores: ClassVar[bool]
    needs_negatives: ClassVar[bool]

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
        """The loss, averaged over the queries."""


def all_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Scores of every query with every document of the batch: (b, b·n), float32."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries.float() @ documents.float().T


def group_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Scores of every query with its own n documents, the positive first: (b, n), float32."""
    b, size = queries.shape
    with torch.autocast(queries.device.type, enabled=False):
        return torch.bmm(documents.float().view(b, -1, size), queries.float().unsqueeze(2)).squeeze(2)


def student_scores(queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
    """`group_scores`, plus the base scores that the batch may have: (b, n), float32."""
    base = batch["base_scores"]
    own = group_scores(queries, documents)
    return own if base is None else own + base.float()


def teacher_scores(batch: Batch, loss: str) -> Tensor:
    """The batch's teacher scores (b, n), float32.

    Raises:
        InputError: it has none.
    """
    scores = batch["teacher_scores"]
    if scores is None:
        raise InputError(
            f"the loss {loss} learns from teacher scores, and the training file has none: write them with lsr distill"
        )
    return scores.float()


@dataclass(frozen=True)
class Contrastive:
    """Cross-entropy of the positive against hard and in-batch negatives (InfoNCE; SPLADE v2, arXiv 2109.10086).

    −log exp(s_i+/τ) / Σ_d exp(s_id/τ), over the query's own documents and, with ``in_batch``, those of the
    other queries, except documents that are known to be relevant to the query.

    Attributes:
        temperature: τ.
        in_batch: whether other queries' documents are negatives too.
    """

    temperature: float = 1.0
    in_batch: bool = True
    needs_scores: ClassVar[bool] = False
    needs_negatives: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
        """The loss, averaged over the queries."""
        b, n = len(queries), len(documents) // len(queries)
        own = torch.arange(b, device=queries.device) * n
        if self.in_batch:
            scores = all_scores(queries, documents).masked_fill(batch["false_negatives"], -torch.inf)
            return F.cross_entropy(scores / self.temperature, own)
        known = batch["false_negatives"].gather(1, own[:, None] + torch.arange(n, device=queries.device))
        scores = student_scores(queries, documents, batch).masked_fill(known, -torch.inf)
        return F.cross_entropy(scores / self.temperature, torch.zeros_like(own))


@dataclass(frozen=True)
class PairwiseCrossEntropy:
    """Cross-entropy of each (positive, negative) pair (DeepImpact, arXiv 2104.12016).

    mean_ij −log exp(s_i+) / (exp(s_i+) + exp(s_ij)).
    """

    needs_scores: ClassVar[bool] = False
    needs_negatives: ClassVar[bool] = True

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
        """The loss, averaged over the pairs."""
        scores = student_scores(queries, documents, batch)
        return F.softplus(scores[:, 1:] - scores[:, :1]).mean()


@dataclass(frozen=True)
class NegativeLikelihood:
    """The likelihood that is missing to the positive (EPIC, arXiv 2004.14245).

    mean_i 1 − exp(s_i+) / Σ_j exp(s_ij), over the query's own documents.
    """

    needs_scores: ClassVar[bool] = False
    needs_negatives: ClassVar[bool] = True

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
        """The loss, averaged over the queries."""
        return (1 - student_scores(queries, documents, batch).softmax(dim=1)[:, 0]).mean()


@dataclass(frozen=True)
class MarginMse:
    """Squared error of the margins between positive and negatives (Hofstätter et al., arXiv 2010.02666).

    mean_ij ((s_i+ − s_ij) − (t_i+ − t_ij))².

    Attributes:
        teacher_scale: teacher scores are multiplied by it first.
    """

    teacher_scale: float = 1.0
    needs_scores: ClassVar[bool] = True
    needs_negatives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive("teacher_scale", self.teacher_scale)

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
        """The loss, averaged over the pairs."""
        student = student_scores(queries, documents, batch)
        teacher = teacher_scores(batch, "margin_mse") * self.teacher_scale
        return F.mse_loss(student[:, :1] - student[:, 1:], teacher[:, :1] - teacher[:, 1:])


@dataclass(frozen=True)
class Kl:
    """Kullback-Leibler divergence from the teacher's distribution over a query's documents.

    mean_i KL(softmax(c·t_i/τ) ‖ softmax(s_i/τ)). With scores normalized to [0, 1] per query and averaged
    over teachers, c = 30 and τ = 1 are those of the ensemble distillation of arXiv 2411.04403.

    Attributes:
        temperature: τ.
        teacher_scale: c.
    """

    temperature: float = 1.0
    teacher_scale: float = 1.0
    needs_scores: ClassVar[bool] = True
    needs_negatives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)
        _positive("teacher_scale", self.teacher_scale)

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
        """The loss, averaged over the queries."""
        student = (student_scores(queries, documents, batch) / self.temperature).log_softmax(dim=1)
        target = teacher_scores(batch, "kl") * (self.teacher_scale / self.temperature)
        return F.kl_div(student, target.log_softmax(dim=1), reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class TermRecall:
    """Squared error of term weights against term recall (DeepCT, arXiv 1910.10687).

    A document's weight of term t should be the share of its queries that hold t, a query's the share of its
    relevant documents. One relevant pair is a sample of that share, 1 or 0, and the mean of samples is what
    minimizes a squared error: mean_i Σ_{t∈d} (d_t − 1[t∈q])² / |d| + Σ_{t∈q} (q_t − 1[t∈d])² / |q|.
    Negatives are not looked at.

    Attributes:
        special_ids: terms that do not count ([CLS], [SEP], …).
    """

    special_ids: tuple[int, ...] = ()
    needs_scores: ClassVar[bool] = False
    needs_negatives: ClassVar[bool] = False

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Tensor:
        """The loss, averaged over the pairs, the two sides added."""
        n = len(documents) // len(queries)
        size = queries.shape[1]
        in_query = self._present(batch["query_ids"], batch["query_mask"], size)
        in_document = self._present(batch["document_ids"][::n], batch["document_mask"][::n], size)
        return _recall_error(documents[::n], in_document, in_query) + _recall_error(queries, in_query, in_document)

    def _present(self, ids: Tensor, mask: Tensor, size: int) -> Tensor:
        """1 where a text holds a term: (b, size), float32."""
        present = torch.zeros(len(ids), size, device=ids.device)
        present.scatter_reduce_(1, ids, mask.float(), "amax")
        if self.special_ids:
            present[:, list(self.special_ids)] = 0
        return present


def _recall_error(weights: Tensor, here: Tensor, there: Tensor) -> Tensor:
    errors = here * (weights.float() - there).square()
    return (errors.sum(1) / here.sum(1).clamp(min=1)).mean()


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"loss.{name} must be finite and above 0: got {value}")


#: Name in a config → class.
LOSSES: dict[str, Callable[..., Loss]] = {
    "contrastive": Contrastive,
    "pairwise_cross_entropy": PairwiseCrossEntropy,
    "negative_likelihood": NegativeLikelihood,
    "margin_mse": MarginMse,
    "kl": Kl,
    "term_recall": TermRecall,
}
