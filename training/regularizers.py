"""Regularizers: what keeps vectors sparse, as functions of the mean weight of each term over the batch.

With m_j the mean of |x_ij| over all vectors i of a side, x ≥ 0:

| name | penalty | from |
|---|---|---|
| flops | Σ_j m_j² | Paria et al., arXiv 2004.05665 |
| l1 | Σ_j m_j | |
| l0_flops | Σ_j m_j², vectors with few terms counted as zero | arXiv 2504.14839 |
| idf_flops | Σ_j (m_j of idf·x)² / idf_j² | arXiv 2411.04403 |
| df_flops | Σ_j (w_j m_j)², w_j by document frequency | arXiv 2505.15070 |

The mean goes over the batches of all processes: see `global_mean`. A step of several passes is made by gradient
caching (`lsr.training.gradient_cache`), so that a penalty sees all vectors of a step.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, distributed

from lsr.errors import InputError


def warm_up(step: int, steps: int) -> float:
    """λ_t / λ = min(1, t/T)²: quadratic, 1 from the T-th step on, and at once where T is 0."""
    return 1.0 if steps <= 0 else min(1.0, step / steps) ** 2


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes, without gradient; ``values`` itself where there is one process."""
    values = values.detach()
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def n_processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def global_mean(local_sum: Tensor, total: Tensor, n_vectors: Tensor | float) -> Tensor:
    """The mean over the vectors of all processes, with a gradient that is right once processes are averaged.

    Its value is total / n. Its gradient with respect to this process's sum is (processes / n): data-parallel
    training averages the gradients of the processes, and the average of these is the gradient of the mean over
    the global batch. No gradient has to travel between processes for it.

    Args:
        local_sum: this process's sum, shape (V,).
        total: `sum_over_processes` of it.
        n_vectors: vectors in the global batch.
    """
    mean = total / n_vectors
    if not local_sum.requires_grad:
        return mean
    share = local_sum * (n_processes() / n_vectors)
    return mean.detach() + (share - share.detach())


@dataclass(frozen=True)
class Regularizer:
    """Options that all regularizers have.

    Attributes:
        weight: λ, after the warm-up. With ``target_nnz`` only where λ starts.
        warmup: T, steps until λ has its full weight.
        target_nnz: the mean number of terms wanted; λ is then steered (`lsr.training.sparsity`).
        max_nnz: stop when, after the warm-up, vectors have more terms than this.
    """

    weight: float
    warmup: int = 0
    target_nnz: float | None = None
    max_nnz: float | None = None
    needs_idf: ClassVar[bool] = False
    needs_frequency: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise InputError(f"the weight of a regularizer must be a number from 0 on: got {self.weight}")
        if self.target_nnz is not None and not (0 < self.target_nnz < math.inf and self.weight > 0):
            raise InputError(
                f"target_nnz = {self.target_nnz} with weight = {self.weight}: both must be above 0, "
                "as λ starts at the weight"
            )
        if self.max_nnz is not None and not 0 < self.max_nnz < math.inf:
            raise InputError(f"max_nnz must be a number above 0: got {self.max_nnz}")
        if self.max_nnz is not None and self.target_nnz is not None and self.max_nnz < self.target_nnz:
            raise InputError(
                f"max_nnz = {self.max_nnz:g} is below target_nnz = {self.target_nnz:g}: training would stop at its "
                "target, raise max_nnz"
            )
        if self.warmup < 0:
            raise InputError(f"the warmup of a regularizer must be 0 steps or more: got {self.warmup}")

    def rows(self, vectors: Tensor, idf: Tensor | None = None) -> Tensor:
        """The vectors that are averaged, (n, V)."""
        return vectors

    def factors(self, idf: Tensor | None = None, frequency: Tensor | None = None) -> Tensor | None:
        """Factors of the means, (V,); None for 1."""
        return None

    def penalty(self, mean: Tensor, factors: Tensor | None) -> Tensor:
        """The penalty, a scalar, from the mean of each term."""
        return (mean if factors is None else mean * factors).square().sum()


@dataclass(frozen=True)
class Flops(Regularizer):
    """Σ_j m_j²: in expectation what a dot product of two such vectors costs (arXiv 2004.05665)."""


@dataclass(frozen=True)
class L1(Regularizer):
    """Σ_j m_j = mean_i Σ_j x_ij."""

    def penalty(self, mean: Tensor, factors: Tensor | None) -> Tensor:
        """Linear in the mean."""
        return mean.sum()


@dataclass(frozen=True)
class L0Flops(Regularizer):
    """FLOPS in which vectors of at most ``threshold`` terms count as zero (arXiv 2504.14839).

    Short texts are left alone. The mean is still taken over all vectors, so that the penalty fades as fewer of
    them are above the threshold.

    Attributes:
        threshold: number of terms from which on, exclusively, a vector is penalized.
    """

    threshold: int = 150

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold < 0:
            raise InputError(f"the threshold of l0_flops must be 0 terms or more: got {self.threshold}")

    def rows(self, vectors: Tensor, idf: Tensor | None = None) -> Tensor:
        """Vectors with few terms are zeroed."""
        return vectors * ((vectors > 0).sum(1, keepdim=True) > self.threshold)


@dataclass(frozen=True)
class IdfFlops(Regularizer):
    """IDF-aware FLOPS (arXiv 2411.04403): the penalty acts on d, while the score uses u = idf·d.

    Σ_j (mean_i u_ij)² / idf_j² = Σ_j (mean_i d_ij)²: a term of low IDF pays more for what it adds to a score. This
    is the left form. The right one is `Flops` of the encoder's vectors d, cheaper and equal; what is not IDF-aware
    is the sum of (mean_i u_ij)². A term without IDF, which no query holds, pays as one of IDF 1.
    """

    needs_idf: ClassVar[bool] = True

    def rows(self, vectors: Tensor, idf: Tensor | None = None) -> Tensor:
        """The vectors u = idf·d."""
        return vectors * _where_known(idf)

    def factors(self, idf: Tensor | None = None, frequency: Tensor | None = None) -> Tensor | None:
        """1 / idf."""
        return 1 / _where_known(idf)


def _where_known(idf: Tensor | None) -> Tensor:
    assert idf is not None
    return torch.where(idf > 0, idf, 1.0)


@dataclass(frozen=True)
class DfFlops(Regularizer):
    """DF-FLOPS (arXiv 2505.15070): Σ_j (w_j m_j)² with w = 1 / (1 + (x^(log_α 2) − 1)^β).

    x is the share of documents with term j. w is about 0 for rare terms, ½ at a share of α, and 1 for a term that
    all vectors have.

    Attributes:
        alpha: α, the share at which terms begin to be penalized.
        beta: β, how sharply.
    """

    alpha: float = 0.1
    beta: float = 10.0
    needs_frequency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.alpha < 1 and 0 < self.beta < math.inf):
            raise InputError(f"df_flops has alpha = {self.alpha} and beta = {self.beta}: 0 < alpha < 1 and beta > 0")

    def factors(self, idf: Tensor | None = None, frequency: Tensor | None = None) -> Tensor | None:
        """The factors w, from the shares ``frequency`` (V,)."""
        assert frequency is not None
        power = frequency.clamp(min=1e-9) ** math.log(2, self.alpha)
        return 1 / (1 + (power - 1).clamp(min=0) ** self.beta)


#: Name in a config → class.
REGULARIZERS: dict[str, type[Regularizer]] = {
    "flops": Flops,
    "l1": L1,
    "l0_flops": L0Flops,
    "idf_flops": IdfFlops,
    "df_flops": DfFlops,
}
