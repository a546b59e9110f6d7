"""Sparsity statistics, the λ-controller on a toy, and the stops."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from lsr.training.objective import SideObjective
from lsr.training.regularizers import Flops
from lsr.training.sparsity import (
    LambdaController,
    SideMonitor,
    SideStatistics,
    TrainingStopped,
    check_health,
    limit_of,
    products_per_pair,
)

WEIGHTS = np.array([[1.0, 0, 2, 0, 0], [3.0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [4.0, 2, 0, 0, 0]], dtype=np.float32)


def test_statistics_of_vectors():
    seen = SideStatistics.of(csr_array(WEIGHTS))
    nnz = (WEIGHTS > 0).sum(1)
    frequency = (WEIGHTS > 0).sum(0)
    assert seen.nnz == nnz.mean()
    assert seen.nnz_p50 == np.percentile(nnz, 50)
    assert seen.nnz_p99 == np.percentile(nnz, 99)
    assert seen.empty == 0.25
    assert seen.flops == pytest.approx((WEIGHTS.mean(0) ** 2).sum())
    assert (seen.used_terms, seen.dead_terms) == ((frequency > 0).sum(), (frequency == 0).sum())
    assert seen.overused_terms == 1, "term 0 is in three of four"


def test_products_per_pair():
    queries = np.array([[1, 1, 0, 0, 0], [0, 1, 0, 0, 1]], dtype=np.float32)
    pairs = [(q, d) for q in queries for d in WEIGHTS]
    expected = np.mean([((q > 0) & (d > 0)).sum() for q, d in pairs])
    assert products_per_pair(csr_array(queries), csr_array(WEIGHTS)) == pytest.approx(expected)


def test_the_monitor_gives_means_and_starts_anew():
    monitor = SideMonitor("cpu")
    for value in (1.0, 3.0):
        monitor.add(torch.tensor(value), torch.tensor(10.0), torch.tensor(0.0), value, torch.tensor(value * 2))
    assert monitor.take() == {"flops": 2, "nnz": 10, "empty": 0, "lambda": 2, "penalty": 4}
    assert monitor.take()["flops"] == 0


class Toy(torch.nn.Module):
    """A one-layer encoder of noisy points, which tells points apart by their terms; it begins with many of them."""

    def __init__(self, terms=400, hidden=32, points=512):
        super().__init__()
        self.points = torch.randn(points, hidden)
        self.weight = torch.nn.Parameter(torch.randn(hidden, terms) / hidden**0.5)
        self.bias = torch.nn.Parameter(torch.ones(terms))

    def forward(self, rows):
        noisy = self.points[rows] + 0.3 * torch.randn(len(rows), self.points.shape[1])
        return torch.log1p(torch.relu(noisy @ self.weight + self.bias))


def steer(regularizer, steps=350, resume_at=None):
    """The number of terms, step by step."""
    torch.manual_seed(0)
    toy = Toy()
    optimizer = torch.optim.AdamW(toy.parameters(), lr=0.02)
    part = SideObjective(regularizer, 400)
    seen = []
    for step in range(steps):
        if step == resume_at:
            state = part.state()
            part = SideObjective(regularizer, 400)
            part.load_state(state)
        rows = torch.randint(512, (32,))
        queries, documents = toy(rows), toy(rows)
        loss = torch.nn.functional.cross_entropy(queries @ documents.T, torch.arange(32)) + part(documents, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float((documents > 0).sum(1).float().mean()))
    return seen


@pytest.mark.parametrize("target", [15, 40])
@pytest.mark.parametrize("weight", [0.01, 1.0])
def test_the_controller_reaches_the_wanted_number_of_terms(target, weight):
    """From a λ that is too small and one that is too large, within 10 %."""
    seen = steer(Flops(weight, warmup=50, target_nnz=target))
    assert seen[0] > 300
    assert np.mean(seen[-100:]) == pytest.approx(target, rel=0.1)


@pytest.mark.parametrize("weight", [0.01, 1.0])
def test_the_same_lambda_unsteered_leads_elsewhere(weight):
    seen = steer(Flops(weight, warmup=50))
    assert not any(np.mean(seen[-100:]) == pytest.approx(target, rel=0.2) for target in (15, 40))


def test_a_resumed_controller_goes_on():
    regularizer = Flops(1.0, warmup=20, target_nnz=60)
    assert steer(regularizer, 60) == steer(regularizer, 60, resume_at=30)


def test_lambda_follows_its_formula():
    controller = LambdaController(0.5, 100.0, width=0.2, integral=0.1, ahead=3, down=4)
    fast = slow = accumulated = 0.0
    for step, nnz in enumerate((200.0, 150.0, 90.0, 80.0, 85.0, 120.0), start=1):
        controller.update(torch.tensor(nnz), 0.5)
        error = math.log(nnz / 100)
        fast += max(1 / step, 1 / 4) * (error - fast)
        slow += max(1 / step, 1 / 12) * (error - slow)
        change = math.tanh(fast / 0.4) + fast
        accumulated += 0.1 * 0.5 * (4 * change if change < 0 else change)
        gate = 2 / (1 + math.exp(-(fast + 3 * (fast - slow) / 8) / 0.2))
        assert float(controller.strength(0.5)) == pytest.approx(0.25 * gate * math.exp(accumulated), rel=1e-5)


def values(**changes):
    return {"flops": 1.0, "nnz": 50.0, "empty": 0.0, "lambda": 0.01, "penalty": 1.0} | changes


@pytest.mark.parametrize(
    ("losses", "documents", "limit", "message"),
    [
        ({"ranking": math.nan}, {}, None, "step 7: the ranking loss is nan.*teacher scores"),
        ({"ranking": math.inf}, {}, None, "ranking loss is inf"),
        ({"ranking": math.nan}, {"flops": math.nan}, None, "documents vectors hold NaN.*learning_rate"),
        ({"ranking": 1.0}, {"penalty": math.inf}, None, "documents regularizer is inf.*weight"),
        (
            {"ranking": 1.0},
            {"nnz": 0.2, "empty": 0.9},
            None,
            "collapsed to 0.20 .*90%.*documents.weight",
        ),
        ({"ranking": 1.0}, {"nnz": 0.2, "lambda": 0.0}, None, "empty: lower training.learning_rate"),
        ({"ranking": 1.0}, {"nnz": 9000.0}, 5000.0, "ran away to 9,000.00 terms.*more than 5,000.*raise"),
    ],
)
def test_a_stop_names_its_cause(losses, documents, limit, message):
    sides = {"queries": values(), "documents": values(**documents)}
    with pytest.raises(TrainingStopped, match=message):
        check_health(7, losses, sides, {"documents": limit})


def test_empty_vectors_of_a_fixed_side_are_not_laid_on_the_learning_rate():
    sides = {"queries": values(nnz=0.2, empty=0.9) | {"lambda": 0.0}, "documents": values()}
    with pytest.raises(TrainingStopped, match=r"queries vectors have 0.20 terms .*90%.* nothing .* trained: the table"):
        check_health(7, {"ranking": 1.0}, sides, {}, {"queries": "the table"})


def test_a_healthy_training_goes_on():
    check_health(7, {"ranking": 1.0}, {"queries": values(), "documents": values(nnz=9000.0)}, {"documents": None})


def test_the_limit_holds_after_the_warm_up():
    regularizer = Flops(0.1, warmup=100)
    assert limit_of(regularizer, 1000, 400) is None
    assert limit_of(regularizer, 1000, 401) == 250
    assert limit_of(Flops(0.1, warmup=100, max_nnz=40), 1000, 100) is None
    assert limit_of(Flops(0.1, warmup=100, max_nnz=40), 1000, 101) == 40
    assert limit_of(Flops(0.0, max_nnz=40), 1000, 1) == 40, "a limit without a penalty"


def test_a_side_without_a_regularizer_has_a_limit_too():
    assert limit_of(None, 1000, 200) is None
    assert limit_of(None, 1000, 201) == 250
    assert limit_of(None, 1000, 201, dense=True) is None
    assert limit_of(Flops(0.1, max_nnz=40), 1000, 201, dense=True) == 40
