"""Sparsity in sight and under control: statistics per side, the λ-controller, and the stops.

Statistics of encoded vectors are in `SideStatistics`. While training, `SideMonitor` sums what a log line
shows on the device, without waiting for it, and `LambdaController` steers λ there too.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from lsr.errors import LsrError
from lsr.training.regularizers import Regularizer

#: A term that more than this share of the vectors has is over-used.
OVERUSED = 0.5

#: After the warm-up, vectors with more than this share of the vocabulary are a runaway.
RUNAWAY = 0.25

#: Steps that λ gets before that.
PATIENCE = 200

#: Fewer terms than this, on average, are a collapse.
COLLAPSED = 1.0


class TrainingStopped(LsrError):
    """Training cannot go on: the message names the cause, the step, and what to change."""


@dataclass(frozen=True)
class SideStatistics:
    """How sparse the vectors of one side are.

    Attributes:
        nnz, nnz_p50, nnz_p99: terms per vector: mean, median, 99th percentile.
        empty: share of vectors without any term.
        flops: Σ_j (mean weight of term j)², the regularizer's value.
        used_terms: terms that some vector has; the others of the vocabulary are dead.
        dead_terms: terms that no vector has.
        overused_terms: terms that more than half of the vectors have.
    """

    nnz: float
    nnz_p50: float
    nnz_p99: float
    empty: float
    flops: float
    used_terms: int
    dead_terms: int
    overused_terms: int

    @classmethod
    def of(cls, vectors: csr_array) -> "SideStatistics":
        """The statistics of vectors of shape (n, V), n at least 1."""
        n, size = vectors.shape
        nnz = np.diff(vectors.indptr)
        frequency = document_frequency(vectors)
        means = np.bincount(vectors.indices, weights=vectors.data, minlength=size) / n
        return cls(
            nnz=float(nnz.mean()),
            nnz_p50=float(np.percentile(nnz, 50)),
            nnz_p99=float(np.percentile(nnz, 99)),
            empty=float((nnz == 0).mean()),
            flops=float(np.square(means).sum()),
            used_terms=int((frequency > 0).sum()),
            dead_terms=int((frequency == 0).sum()),
            overused_terms=int((frequency > OVERUSED * n).sum()),
        )

    def as_dict(self, side: str) -> dict[str, float]:
        """The numbers by ``side_name``."""
        return {f"{side}_{name}": value for name, value in asdict(self).items()}


def document_frequency(vectors: csr_array) -> NDArray[np.int64]:
    """How many vectors have each term: shape (V,)."""
    return np.bincount(vectors.indices, minlength=vectors.shape[1]).astype(np.int64)


def products_per_pair(queries: csr_array, documents: csr_array) -> float:
    """Multiplications that scoring one document for one query takes on average: Σ_j P_q(j) · P_d(j)."""
    shares = [document_frequency(side) / side.shape[0] for side in (queries, documents)]
    return float(shares[0] @ shares[1])


class LambdaController:
    """Steers λ to a wanted number of terms per vector.

    With e = log(nnz / target), smoothed over some batches, ė its slope per step, and w the warm-up factor,

        λ = λ_0 · w · g(e + h·ė) · exp(I),   g(x) = 2 / (1 + exp(−x/δ)),   I ← I + i·w·(e + tanh(e / 2δ)).

    The gate g closes near the target, and at most doubles λ above it: terms that were pushed to zero come back slowly
    if at all, so that λ must vanish before the target is passed. Hence the look h steps ahead, too. The integral I
    finds the λ at which the gate stays half open; it falls faster than it grows. All of it happens on the device.

    Args:
        weight: λ_0.
        target: the wanted mean of terms.
        device: where the vectors are.
        width: δ.
        integral: i, per step.
        ahead: h, in steps.
        down: i is larger by this factor where I falls.
    """

    #: e is smoothed over as many steps; its slope is between the two.
    FAST, SLOW = 4, 12
    #: |I| stays below it: λ within a factor of a thousand.
    SPAN = math.log(1000)

    def __init__(
        self,
        weight: float,
        target: float,
        device: torch.device | str = "cpu",
        *,
        width: float = 0.15,
        integral: float = 0.04,
        ahead: float = 12.0,
        down: float = 2.0,
    ) -> None:
        self.weight, self.target = weight, target
        self.width, self.integral, self.ahead, self.down = width, integral, ahead, down
        self.fast, self.slow, self.accumulated, self.steps = (torch.zeros((), device=device) for _ in range(4))

    def update(self, nnz: Tensor, factor: float) -> None:
        """Take in a batch's mean number of terms; ``factor`` is w."""
        self.steps += 1
        error = torch.log(nnz.clamp(min=1e-3) / self.target)
        for smoothed, memory in ((self.fast, self.FAST), (self.slow, self.SLOW)):
            smoothed.add_((1 / self.steps).clamp(min=1 / memory) * (error - smoothed))
        change = torch.tanh(self.fast / (2 * self.width)) + self.fast
        self.accumulated += self.integral * factor * torch.where(change < 0, self.down * change, change)
        self.accumulated.clamp_(-self.SPAN, self.SPAN)

    def strength(self, factor: float) -> Tensor:
        """λ, a scalar on the device."""
        slope = (self.fast - self.slow) / (self.SLOW - self.FAST)
        gate = 2 * torch.sigmoid((self.fast + self.ahead * slope) / self.width)
        return self.weight * factor * gate * torch.exp(self.accumulated)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {name: float(getattr(self, name)) for name in ("fast", "slow", "accumulated", "steps")}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        for name, value in state.items():
            getattr(self, name).fill_(value)


class SideMonitor:
    """Means over the steps since the last log line, summed on the device."""

    NAMES = ("flops", "nnz", "empty", "lambda", "penalty")

    def __init__(self, device: torch.device | str) -> None:
        self.sums = torch.zeros(len(self.NAMES), device=device, dtype=torch.float64)
        self.count = 0

    def add(self, *values: Tensor | float) -> None:
        """One batch's values, in the order of `NAMES`."""
        for place, value in enumerate(values):
            self.sums[place] += value.detach() if isinstance(value, Tensor) else value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means, moved to the host; starts anew."""
        means = (self.sums / max(1, self.count)).tolist()
        self.sums.zero_()
        self.count = 0
        return dict(zip(self.NAMES, means, strict=True))


def check_health(
    step: int,
    losses: dict[str, float],
    sides: dict[str, dict[str, float]],
    limits: dict[str, float | None],
    fixed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Stop a training that cannot recover.

    Args:
        step: the step the numbers were taken at.
        losses: "ranking" and whatever else is summed up, as means since the last check.
        sides: by side, what `SideMonitor.take` gave.
        limits: by side, the most terms a vector may have on average; None where there is no limit yet.
        fixed: by side that has nothing to train, what to look at when its vectors are empty.

    Raises:
        TrainingStopped: a value is NaN or infinite, vectors collapsed to zero, or ran away.
    """
    for side, values in sides.items():
        if not math.isfinite(values["flops"]):
            raise TrainingStopped(
                f"step {step}: the {side} vectors hold NaN or infinite weights: lower training.learning_rate, or train "
                "with training.precision = 'float32'"
            )
        if not math.isfinite(values["penalty"]):
            raise TrainingStopped(
                f"step {step}: the {side} regularizer is {values['penalty']} with λ = {values['lambda']:.3g}: lower "
                f"regularizer.{side}.weight"
            )
    for name, value in losses.items():
        if not math.isfinite(value):
            raise TrainingStopped(
                f"step {step}: the {name} loss is {value} while the vectors are finite: check the teacher scores and "
                "loss.temperature, or lower training.learning_rate"
            )
    for side, values in sides.items():
        now = f"{values['nnz']:,.2f} terms on average at λ = {values['lambda']:.3g}"
        if values["nnz"] < COLLAPSED and side in fixed:
            raise TrainingStopped(
                f"step {step}: the {side} vectors have {values['nnz']:,.2f} terms on average, {values['empty']:.0%} of "
                f"them are empty, and nothing of this side is trained: {fixed[side]}"
            )
        if values["nnz"] < COLLAPSED:
            cure = f"lower regularizer.{side}.weight, lengthen its warmup, or " if values["lambda"] else ""
            raise TrainingStopped(
                f"step {step}: the {side} vectors collapsed to {now}, {values['empty']:.0%} of them are empty: {cure}"
                "lower training.learning_rate"
            )
        limit = limits.get(side)
        if limit is not None and values["nnz"] > limit:
            raise TrainingStopped(
                f"step {step}: the {side} vectors ran away to {now}, more than {limit:,.0f} after the warm-up of λ: "
                f"raise regularizer.{side}.weight, or its max_nnz (without a regularizer, give one)"
            )


def limit_of(regularizer: Regularizer | None, vocabulary_size: int, step: int, *, dense: bool = False) -> float | None:
    """The most terms a side may have on average at a step; None where there is no limit yet.

    That is ``max_nnz``, after the warm-up. Without it, and without a regularizer, it is a share of the vocabulary, and
    λ gets its warm-up as long again, and some steps more, to show effect.

    Args:
        regularizer: of the side; None for none.
        vocabulary_size: V.
        step: optimizer steps done.
        dense: the side's weights are nowhere zero while it is trained (softplus), so that only ``max_nnz`` counts.
    """
    warmup = 0 if regularizer is None else regularizer.warmup
    if regularizer is not None and regularizer.max_nnz is not None:
        return float(regularizer.max_nnz) if step > warmup else None
    return RUNAWAY * vocabulary_size if step > 2 * warmup + PATIENCE and not dense else None
