"""Is a difference between two systems more than chance? Paired tests, intervals, Holm's correction.

All work on the values that a metric has for each query, system A and system B on the same queries.
Queries of several collections are *strata*: signs and samples are drawn within each, and the statistic
is the mean over collections of the mean over queries, so that a collection with many queries does not
drown the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lsr.errors import InputError

RESAMPLES = 10_000
CONFIDENCE = 0.95
#: Most numbers drawn at once.
BLOCK = 4_000_000

Values: TypeAlias = NDArray[np.float64]
#: collection → query id → value.
PerQuery: TypeAlias = Mapping[str, Mapping[str, float]]


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """System against baseline, by one metric.

    Attributes:
        baseline, system: names.
        on: the collection, or how many.
        metric: the metric.
        n_queries: queries of all collections.
        means: mean of the baseline and of the system.
        difference: system − baseline, with its bootstrap interval.
        p_fisher: two-sided p-value of Fisher's randomization test.
        p_student: two-sided p-value of the paired t-test; None for several collections.
        p_holm: ``p_fisher`` after `holm` over the comparisons it was made with.
        wins, losses, ties: queries on which the system is better, worse, equal.
    """

    baseline: str
    system: str
    on: str
    metric: str
    n_queries: int
    means: tuple[float, float]
    difference: Interval
    p_fisher: float
    p_student: float | None
    p_holm: float
    wins: int
    losses: int
    ties: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "difference": self.difference._asdict()}


def compare(
    baseline: PerQuery,
    system: PerQuery,
    metric: str,
    names: tuple[str, str] = ("baseline", "system"),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two systems query by query.

    Args:
        baseline: the metric's value for each query of each collection.
        system: the same for the other system, on the same queries.
        metric: its name, for the record.
        names: what the two are called.
        resamples: of the randomization test and of the bootstrap.
        seed: of both.

    Raises:
        InputError: the two were not measured on the same queries.
    """
    pairs = _pairs(baseline, system, names)
    strata = [b - a for a, b in pairs]
    pooled = np.concatenate(strata)
    p = fisher_randomization(strata, resamples=resamples, seed=seed)
    return Comparison(
        *names,
        on=next(iter(baseline)) if len(baseline) == 1 else f"all {len(baseline)}",
        metric=metric,
        n_queries=len(pooled),
        means=(_macro([a for a, _ in pairs]), _macro([b for _, b in pairs])),
        difference=bootstrap(strata, resamples=resamples, seed=seed),
        p_fisher=p,
        p_student=paired_t_test(strata[0]) if len(strata) == 1 else None,
        p_holm=p,
        wins=int((pooled > 0).sum()),
        losses=int((pooled < 0).sum()),
        ties=int((pooled == 0).sum()),
    )


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons as one family: ``p_holm`` corrected for their number."""
    adjusted = holm([comparison.p_fisher for comparison in comparisons])
    return [replace(comparison, p_holm=p) for comparison, p in zip(comparisons, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's step-down correction, in the order given (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def fisher_randomization(strata: Sequence[Values], *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of the paired randomization test (Smucker, Allan and Carterette, CIKM 2007).

    Under the null hypothesis the sign of each query's difference is a coin toss. The observed signs
    count as one of the tosses, so that p is never 0.

    Args:
        strata: the differences of each collection, float64 (n_queries,).
        resamples: coin tosses for every query.
        seed: of the tosses.
    """
    observed = abs(_macro(strata))

    def toss(rng: np.random.Generator, differences: Values, times: int) -> Values:
        signs = rng.integers(0, 2, (times, len(differences)), dtype=np.int8)
        return np.asarray((2.0 * signs - 1.0) @ differences / len(differences))

    tossed = np.abs(_resample(strata, toss, resamples, seed))
    # Sums in another order may differ in the last bits from the observed one, which they should equal.
    return float((1 + np.count_nonzero(tossed >= observed * (1 - 1e-12))) / (1 + resamples))


def bootstrap(
    strata: Sequence[Values], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean, with the percentile interval of resampled queries (Efron, 1979).

    Args:
        strata: the values of each collection, float64 (n_queries,).
        confidence: mass of the interval.
        resamples: samples of as many queries, drawn with replacement within each collection.
        seed: of the samples.
    """

    def draw(rng: np.random.Generator, values: Values, times: int) -> Values:
        return np.asarray(values[rng.integers(0, len(values), (times, len(values)))].mean(axis=1))

    means = _resample(strata, draw, resamples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(_macro(strata), float(low), float(high))


def paired_t_test(differences: Values) -> float:
    """Two-sided p-value of the paired t-test; 1 where all differences are 0."""
    from scipy.stats import ttest_1samp

    if len(differences) < 2 or not differences.any():
        return 1.0
    return float(ttest_1samp(differences, 0.0).pvalue)


def _macro(strata: Sequence[Values]) -> float:
    return float(np.mean([values.mean() for values in strata]))


def _resample(
    strata: Sequence[Values],
    statistic: Callable[[np.random.Generator, Values, int], Values],
    resamples: int,
    seed: int,
) -> Values:
    """The mean over strata of a resampled statistic: float64 (resamples,)."""
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for values in strata:
        step = max(1, BLOCK // len(values))
        for start in range(0, resamples, step):
            stop = min(start + step, resamples)
            total[start:stop] += statistic(rng, values, stop - start)
    return total / len(strata)


def _pairs(baseline: PerQuery, system: PerQuery, names: tuple[str, str]) -> list[tuple[Values, Values]]:
    if baseline.keys() != system.keys() or not baseline:
        raise InputError(f"{names[0]} and {names[1]} were measured on different collections: evaluate both on the same")
    pairs = []
    for collection in baseline:
        a, b = baseline[collection], system[collection]
        if a.keys() != b.keys() or not a:
            raise InputError(f"{names[0]} and {names[1]} were measured on different queries of {collection}")
        pairs.append((np.array(list(a.values())), np.array([b[query] for query in a])))
    return pairs
