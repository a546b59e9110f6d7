"""What training minimizes: a loss of the scores plus λ times a regularizer of each side's vectors.

It is called once an optimizer step, with the vectors of the whole step: frequencies and λ's controller go on there.
"""

import torch
from torch import Tensor

from lsr.training.data import Batch
from lsr.training.losses import Loss
from lsr.training.regularizers import (
    Regularizer,
    global_mean,
    n_processes,
    sum_over_processes,
    warm_up,
)
from lsr.training.sparsity import LambdaController, SideMonitor

#: Batches over which document frequencies are averaged, about, for df_flops.
FREQUENCY_MEMORY = 100


class SideObjective:
    """The regularizer of one side, its λ and its statistics.

    Args:
        regularizer: None for a side that is only watched.
        vocabulary_size: V.
        device: where the vectors are.
        idf: float32 (V,), for regularizers that need it.
    """

    def __init__(
        self,
        regularizer: Regularizer | None,
        vocabulary_size: int,
        device: torch.device | str = "cpu",
        idf: Tensor | None = None,
    ) -> None:
        self.regularizer = regularizer
        self.idf = None if idf is None else idf.to(device)
        self.monitor = SideMonitor(device)
        self.controller: LambdaController | None = None
        self.frequency: Tensor | None = None
        if regularizer is not None and regularizer.target_nnz is not None:
            self.controller = LambdaController(regularizer.weight, regularizer.target_nnz, device)
        if regularizer is not None and regularizer.needs_frequency:
            self.frequency = torch.zeros(vocabulary_size, device=device)

    def __call__(self, vectors: Tensor, step: int) -> Tensor:
        """λ_t times the penalty of the vectors (n, V), over the global batch; a scalar, 0 without a regularizer.

        Args:
            vectors: all of this process's, in an optimizer step.
            step: t, optimizer steps done before.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            return self._term(vectors.float(), step)

    def _term(self, vectors: Tensor, step: int) -> Tensor:
        rows = vectors if self.regularizer is None else self.regularizer.rows(vectors, self.idf)
        local = rows.sum(0)
        size = vectors.shape[1]
        total, statistics, present = self._totals(vectors, local, same=rows is vectors)
        n_vectors = float(len(vectors) * n_processes())
        nnz, empty, squares = statistics[0] / n_vectors, statistics[1] / n_vectors, statistics[2]
        if self.regularizer is None:
            self.monitor.add(squares, nnz, empty, 0.0, 0.0)
            return vectors.new_zeros(())
        factor = warm_up(step, self.regularizer.warmup)
        if self.frequency is not None:
            share = 1.0 if step == 0 else 1 / FREQUENCY_MEMORY
            self.frequency += share * (present / n_vectors - self.frequency)
        if self.controller is not None:
            self.controller.update(nnz, factor)
        strength = self.regularizer.weight * factor if self.controller is None else self.controller.strength(factor)
        mean = global_mean(local, total[:size], n_vectors)
        penalty = self.regularizer.penalty(mean, self.regularizer.factors(self.idf, self.frequency))
        self.monitor.add(squares, nnz, empty, strength, penalty)
        return strength * penalty

    def _totals(self, vectors: Tensor, local: Tensor, *, same: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over all processes, in one exchange: of the rows (V,), of (nnz, empty, flops), of occurrences (V,)."""
        n_vectors = len(vectors) * n_processes()
        nnz = (vectors.detach() > 0).sum(1)
        parts = [local.detach(), torch.stack([nnz.sum(), (nnz == 0).sum()]).float()]
        if not same:
            parts.append(vectors.detach().sum(0))
        if self.frequency is not None:
            parts.append((vectors.detach() > 0).sum(0).float())
        sums = sum_over_processes(torch.cat(parts))
        size = vectors.shape[1]
        plain = sums[:size] if same else sums[size + 2 : 2 * size + 2]
        flops = (plain / n_vectors).square().sum()
        return sums[:size], torch.cat([sums[size : size + 2], flops[None]]), sums[-size:]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        state: dict[str, Tensor] = {}
        if self.controller is not None:
            state |= {f"controller.{name}": torch.tensor(v) for name, v in self.controller.state().items()}
        if self.frequency is not None:
            state["frequency"] = self.frequency.cpu()
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        if self.controller is not None:
            names = self.controller.state()
            self.controller.load_state({name: float(state[f"controller.{name}"]) for name in names})
        if self.frequency is not None:
            self.frequency.copy_(state["frequency"])


class Objective:
    """Loss plus regularizers, and what a log line shows of both.

    Args:
        loss: of the scores.
        queries, documents: the two sides.
    """

    def __init__(
        self, loss: Loss, queries: SideObjective, documents: SideObjective, device: torch.device | str
    ) -> None:
        self.loss = loss
        self.sides = {"queries": queries, "documents": documents}
        self._ranking = torch.zeros((), device=device)
        self._count = 0

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch, step: int) -> Tensor:
        """The scalar to minimize for vectors (b, V) and (b·n, V), in the optimizer step after ``step`` others."""
        ranking = self.loss(queries, documents, batch)
        self._ranking += ranking.detach()
        self._count += 1
        return ranking + self.sides["queries"](queries, step) + self.sides["documents"](documents, step)

    def take(self) -> tuple[float, dict[str, dict[str, float]]]:
        """The mean ranking loss and the sides' means since the last call, over all processes; waits for the device."""
        ranking = sum_over_processes(self._ranking) / (n_processes() * max(1, self._count))
        self._ranking = torch.zeros_like(self._ranking)
        self._count = 0
        return float(ranking), {name: side.monitor.take() for name, side in self.sides.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by ``side.name``."""
        return {f"{side}.{name}": v for side, part in self.sides.items() for name, v in part.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        for side, part in self.sides.items():
            part.load_state({n.removeprefix(f"{side}."): v for n, v in state.items() if n.startswith(f"{side}.")})
