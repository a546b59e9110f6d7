"""Paired tests and intervals against SciPy, ranx and plain twins."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsr.errors import InputError
from lsr.eval.significance import bootstrap, compare, fisher_randomization, holm, paired_t_test, with_holm

DIFFERENCES = st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.125, 0.5, 1.0]), min_size=1, max_size=9)


def exact_p(differences: list[float]) -> float:
    """The randomization test by all 2^n signs."""
    observed = abs(sum(differences))
    tosses = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return float(np.mean([toss >= observed for toss in tosses]))


@settings(deadline=None, max_examples=40)
@given(DIFFERENCES)
def test_randomization_nears_the_exact_test(differences):
    p = fisher_randomization([np.array(differences)], resamples=4_000)
    assert p == pytest.approx(exact_p(differences), abs=0.04)


def test_randomization_and_t_test_agree_with_scipy_and_ranx():
    from ranx.statistical_tests import fisher_randomization_test
    from scipy.stats import permutation_test, ttest_rel

    rng = np.random.default_rng(3)
    a = rng.random(60)
    b = np.clip(a + rng.normal(0.03, 0.1, 60), 0, 1)
    ours = fisher_randomization([b - a])
    by_scipy = permutation_test(
        (b, a), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", vectorized=True, rng=1
    )
    assert ours == pytest.approx(by_scipy.pvalue, abs=0.01)
    assert ours == pytest.approx(fisher_randomization_test(a, b, n_permutations=10_000)[0], abs=0.01)
    assert paired_t_test(b - a) == pytest.approx(ttest_rel(a, b).pvalue)


def test_the_interval_agrees_with_scipy():
    from scipy.stats import bootstrap as scipy_bootstrap

    values = np.random.default_rng(5).beta(2, 3, 200)
    ours = bootstrap([values])
    theirs = scipy_bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(11)
    covered = 0
    for seed in range(200):
        low, high = bootstrap([rng.normal(0.3, 0.2, 80)], resamples=500, seed=seed)[1:]
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_chance_is_called_significant_as_often_as_it_says():
    rng = np.random.default_rng(13)
    p_values = [fisher_randomization([rng.normal(0, 1, 40)], resamples=400, seed=i) for i in range(300)]
    assert 0.02 <= np.mean([p < 0.05 for p in p_values]) <= 0.09


def test_equal_systems_do_not_differ():
    nothing = np.zeros(50)
    assert fisher_randomization([nothing]) == 1.0
    assert paired_t_test(nothing) == 1.0
    assert bootstrap([nothing]) == (0.0, 0.0, 0.0)


def test_p_is_never_zero_and_the_seed_decides():
    clear = np.full(100, 0.5)
    assert fisher_randomization([clear], resamples=999) == 1 / 1000
    noisy = [np.random.default_rng(0).normal(0.05, 1, 100)]
    assert fisher_randomization(noisy, seed=1) == fisher_randomization(noisy, seed=1)
    assert bootstrap(noisy, seed=1) == bootstrap(noisy, seed=1) != bootstrap(noisy, seed=2)


def test_collections_count_alike_whatever_their_size():
    small, large = np.full(5, 0.4), np.zeros(5_000)
    assert bootstrap([small, large]).mean == pytest.approx(0.2)
    assert bootstrap([np.concatenate([small, large])]).mean < 0.001


def test_resampling_does_not_depend_on_the_size_of_blocks(monkeypatch):
    values = [np.random.default_rng(2).random(30)]
    whole = bootstrap(values, resamples=500), fisher_randomization(values, resamples=500)
    monkeypatch.setattr("lsr.eval.significance.BLOCK", 30)
    assert bootstrap(values, resamples=500) == pytest.approx(whole[0])
    assert fisher_randomization(values, resamples=500) == pytest.approx(whole[1], abs=0.05)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lowers_nothing_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_a_comparison_counts_and_corrects():
    a = {"x": {"q1": 0.0, "q2": 0.5, "q3": 1.0}}
    b = {"x": {"q3": 1.0, "q2": 0.0, "q1": 1.0}}
    comparison = compare(a, b, "ndcg@10", ("old", "new"))
    assert (comparison.wins, comparison.losses, comparison.ties, comparison.n_queries) == (1, 1, 1, 3)
    assert comparison.means == pytest.approx((0.5, 2 / 3))
    assert comparison.difference.mean == pytest.approx(1 / 6)
    assert comparison.p_student is not None
    assert comparison.to_dict()["difference"]["mean"] == comparison.difference.mean
    twice = with_holm([comparison, comparison])
    assert all(c.p_holm == min(1.0, 2 * comparison.p_fisher) for c in twice)
    several = compare({**a, "y": a["x"]}, {**b, "y": b["x"]}, "ndcg@10")
    assert several.p_student is None


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"y": {"q1": 1.0}}, "different collections"),
        ({"x": {"q2": 1.0}}, "different queries of x"),
        ({}, "different collections"),
    ],
)
def test_systems_measured_on_other_queries_are_refused(system, message):
    with pytest.raises(InputError, match=message):
        compare({"x": {"q1": 0.5}}, system, "mrr")
