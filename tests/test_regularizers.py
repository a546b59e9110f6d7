"""Regularizers against their formulas; λ's warm-up; the global mean over processes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from lsr.errors import InputError
from lsr.training.objective import SideObjective
from lsr.training.regularizers import (
    L1,
    REGULARIZERS,
    DfFlops,
    Flops,
    IdfFlops,
    L0Flops,
    global_mean,
    sum_over_processes,
    warm_up,
)

V = 12
OPTIONS = {"l0_flops": {"threshold": 5}, "df_flops": {"alpha": 0.4, "beta": 3.0}}


def sparse(n, seed=0, size=V):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator).relu()


def idf(size=V):
    weights = torch.linspace(0.1, 6, size)
    weights[3] = 0
    return weights


def side(name, weight=1.0, **options):
    return SideObjective(REGULARIZERS[name](weight, **OPTIONS.get(name, {}), **options), V, idf=idf())


def penalty(regularizer, vectors, frequency=None):
    """The penalty of one batch in one process, as the formula has it."""
    rows = regularizer.rows(vectors, idf())
    return regularizer.penalty(rows.mean(0), regularizer.factors(idf(), frequency))


def test_flops():
    x = sparse(7)
    expected = sum(float(np.mean(x[:, j].numpy())) ** 2 for j in range(V))
    assert float(penalty(Flops(1.0), x)) == pytest.approx(expected, rel=1e-5)


def test_l1():
    x = sparse(7)
    expected = np.mean([float(np.abs(row.numpy()).sum()) for row in x])
    assert float(penalty(L1(1.0), x)) == pytest.approx(expected, rel=1e-5)


def test_l0_flops_leaves_short_vectors_alone():
    x = sparse(7).requires_grad_()
    long = (x > 0).sum(1) > 5
    assert 0 < long.sum() < 7
    expected = (x.detach()[long].sum(0) / 7).square().sum()
    value = penalty(L0Flops(1.0, threshold=5), x)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert not x.grad[~long].any()
    assert x.grad[long].any()


def test_the_published_threshold_is_the_default():
    assert L0Flops(1.0).threshold == 150


@given(st.integers(0, 10_000), st.integers(1, 9))
def test_both_forms_of_idf_aware_flops_are_equal(seed, n):
    """Σ (mean u)²/idf², with u = idf·d, is Σ (mean d)²: in values and in gradients."""
    d = sparse(n, seed).requires_grad_()
    scored = penalty(IdfFlops(1.0), d)
    weights = penalty(Flops(1.0), d)
    torch.testing.assert_close(scored, weights, rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(form, d)[0] for form in (scored, weights)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_idf_aware_flops_is_not_flops_of_the_scores():
    """Without IDF in the penalty, what a rare term adds to a score costs as much as what a common one adds."""
    u = torch.zeros(1, V)
    u[0, [1, V - 1]] = 2.0  # the same share of a score, by a common and by a rare term
    u.requires_grad_()
    d = u / torch.where(idf() > 0, idf(), 1.0)
    aware = torch.autograd.grad(penalty(IdfFlops(1.0), d), u)[0][0]
    unaware = torch.autograd.grad(penalty(Flops(1.0), u), u)[0][0]
    assert aware[1] > 10 * aware[V - 1]
    assert unaware[1] == unaware[V - 1]


def test_df_flops_weighs_terms_by_frequency():
    shares = torch.tensor([0.0, 0.01, 0.1, 0.3, 1.0])
    weights = DfFlops(1.0).factors(frequency=shares)
    expected = [1 / (1 + max(0.0, max(s, 1e-9) ** math.log(2, 0.1) - 1) ** 10) for s in shares.tolist()]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert weights[2] == pytest.approx(0.5)
    assert weights[4] == 1
    x = sparse(6)
    frequency = (x > 0).float().mean(0)
    w = DfFlops(1.0, alpha=0.4, beta=3.0).factors(frequency=frequency)
    value = penalty(DfFlops(1.0, alpha=0.4, beta=3.0), x, frequency)
    assert float(value) == pytest.approx(float((w * x.mean(0)).square().sum()), rel=1e-5)


def test_df_flops_in_training_averages_frequencies():
    part = side("df_flops")
    first, second = sparse(8), sparse(8, 1)
    part(first, 0)
    torch.testing.assert_close(part.frequency, (first > 0).float().mean(0))
    part(second, 1)
    expected = 0.99 * (first > 0).float().mean(0) + 0.01 * (second > 0).float().mean(0)
    torch.testing.assert_close(part.frequency, expected)


@pytest.mark.parametrize(("step", "factor"), [(0, 0), (25, 0.0625), (50, 0.25), (100, 1), (1000, 1)])
def test_warm_up_is_quadratic(step, factor):
    assert warm_up(step, 100) == factor
    assert warm_up(step, 0) == 1


def test_the_objective_is_lambda_times_the_penalty():
    x = sparse(6)
    part = side("flops", 0.3, warmup=10)
    assert float(part(x, 5)) == pytest.approx(0.3 * 0.25 * float(penalty(Flops(1.0), x)), rel=1e-5)
    part(x, 5)
    shown = part.monitor.take()
    assert shown["flops"] == pytest.approx(float(x.mean(0).square().sum()), rel=1e-5)
    assert shown["nnz"] == pytest.approx(float((x > 0).sum(1).float().mean()), rel=1e-5)
    assert shown["lambda"] == pytest.approx(0.075)


def test_a_side_without_regularizer_is_watched():
    part = SideObjective(None, V)
    assert part(sparse(5), 0) == 0
    assert part.monitor.take()["nnz"] > 0


@pytest.mark.parametrize("name", REGULARIZERS)
def test_float32_under_autocast(name):
    x = sparse(6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = side(name)(x, 0)
    assert inside.dtype == torch.float32
    assert inside == side(name)(x.float(), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flops(-1), "from 0 on"),
        (lambda: Flops(math.nan), "from 0 on"),
        (lambda: Flops(1, warmup=-1), "0 steps or more"),
        (lambda: Flops(0, target_nnz=10), "both must be above 0"),
        (lambda: DfFlops(1, alpha=1), "alpha"),
        (lambda: Flops(1, target_nnz=math.nan), "both must be above 0"),
        (lambda: Flops(1, max_nnz=-1), "max_nnz must be a number above 0"),
        (lambda: Flops(1, max_nnz=math.inf), "max_nnz must be a number above 0"),
        (lambda: Flops(1, target_nnz=10, max_nnz=9), "is below target_nnz = 10"),
        (lambda: L0Flops(1, threshold=-1), "0 terms or more"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# --- processes ---------------------------------------------------------------------------------


def train_in_processes(rank, world, folder):
    """One process of data-parallel training: its share of the batch, gradients averaged by DDP."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        for name in REGULARIZERS:
            model = torch.nn.parallel.DistributedDataParallel(encoder())
            part = side(name)
            value = part(model(batch().chunk(world)[rank]).relu(), 0)
            value.backward()
            gradients = [p.grad for p in model.parameters()]
            torch.save((value.detach(), gradients, part.monitor.take()), f"{folder}/{name}-{rank}.pt")
    finally:
        distributed.destroy_process_group()


def encoder():
    torch.manual_seed(0)
    return torch.nn.Linear(5, V)


def batch():
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.start_processes(train_in_processes, args=(2, str(folder)), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize("name", REGULARIZERS)
def test_two_processes_give_the_gradient_of_one(name, two_processes):
    """Penalty, gradient and statistics are those of the global batch, whatever the number of processes."""
    model = encoder()
    part = side(name)
    whole = part(model(batch()).relu(), 0)
    whole.backward()
    shown = part.monitor.take()
    for rank in (0, 1):
        value, gradients, seen = torch.load(two_processes / f"{name}-{rank}.pt")
        torch.testing.assert_close(value, whole.detach())
        assert seen == pytest.approx(shown, rel=1e-5)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


def test_without_processes_nothing_is_exchanged():
    x = sparse(3).requires_grad_()
    local = x.sum(0)
    total = sum_over_processes(local)
    assert not total.requires_grad
    mean = global_mean(local, total, 3.0)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(torch.autograd.grad(mean.sum(), x)[0], torch.full((3, V), 1 / 3))
