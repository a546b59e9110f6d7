"""The planner: which way to search, and with which knobs, for a wanted recall.

Settings of every way are tried at build time on sample queries, those that others beat on a part of them no
further; what the rest reached and what it took are kept in the manifest. A search that names a recall gets the
cheapest setting that reached it.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.errors import FormatError, InputError
from lsr.index.search import EXACT_MASS, Found, Queries, Searcher
from lsr.vectors import SparseRows

#: Hits for which settings are tried. The candidates of a setting grow with the hits wanted.
K = 10

#: Below this many documents exact search takes some 30 µs, and next to nothing is gained by trying.
SMALL = 10_000

#: Terms of a document, drawn at random, that make a sample query where none are given. Heaviest ones would make queries
#: whose best documents stand out, as those of users' queries do not.
QUERY_TERMS = 16

QUERY_MASSES = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
CANDIDATES_PER_HIT = (1.2, 1.5, 2, 3, 5)
QUERY_CUTS = (4, 6, 10)
HEAP_FACTORS = (0.9, 1.1, 1.35)

#: Queries on which all settings are tried; then on as many again, twice as many, and so on, those that are left.
FIRST = 25

#: A setting is left out when another one reached more in a time that is shorter by this.
CLEARLY = 1.05


@dataclass(frozen=True)
class Setting:
    """A way to search with its knobs, and what it reached on the sample.

    Attributes:
        regime: "exact", "lists" (query_mass, candidates_per_hit) or "blocks" (query_cut, heap_factor, and
            neighbours where there is a graph).
        knobs: by name.
        recall: share of the exact top 10 that was found, the mean over the queries.
        error: the standard error of that mean.
        microseconds: of one thread a query.
    """

    regime: str
    knobs: dict[str, float]
    recall: float = 1.0
    error: float = 0.0
    microseconds: float = 0.0

    def run(self, searcher: Searcher, queries: Queries, k: int, threads: int | None) -> Found:
        """Search this way for k hits."""
        knobs = self.knobs
        if walk := self.walk(k):
            return searcher.lists(queries, k, *walk, threads)
        neighbours = int(knobs.get("neighbours", 0))
        return searcher.seismic(queries, k, knobs["query_cut"], knobs["heap_factor"], threads, neighbours)

    def walk(self, k: int) -> tuple[int, float] | None:
        """The candidates for k hits, 0 in exact search, and the query's mass; None where no lists are walked."""
        if self.regime == "exact":
            return 0, EXACT_MASS
        if self.regime == "lists":
            return max(k, round(self.knobs["candidates_per_hit"] * k)), self.knobs["query_mass"]
        return None

    def __str__(self) -> str:
        knobs = ", ".join(f"{name}={value:g}" for name, value in self.knobs.items())
        reached = f"recall {self.recall:.4f} ± {self.error:.4f} in {self.microseconds:,.0f} µs"
        return f"{self.regime}{f' ({knobs})' if knobs else ''}: {reached}"


EXACT = Setting("exact", {})


@dataclass(frozen=True)
class Plan:
    """What the settings that were tried to the end reached on the sample.

    Attributes:
        sample: where the queries came from: "given", "documents", or "none" for a small index.
        n_queries: how many there were.
        settings: exact search, then those that were tried on all queries.
    """

    sample: str = "none"
    n_queries: int = 0
    settings: tuple[Setting, ...] = field(default=(EXACT,))

    def choose(self, recall: float) -> Setting:
        """The cheapest setting that reached the recall, by at least its standard error; else exact search.

        Exact search too for a recall of 1: having missed nothing on a sample does not promise it.
        """
        good = [s for s in self.settings[1:] if recall < 1 and s.recall - s.error >= recall]
        return min([self.settings[0], *good], key=lambda setting: setting.microseconds)

    def explain(self, recall: float) -> str:
        """Why `choose` takes what it takes, for people to read."""
        chosen = self.choose(recall)
        if self.n_queries == 0:
            return (
                f"exact: nothing was tried, since below {SMALL:,} documents exact search is fast enough and with "
                "plan_queries=0 no plan is wanted; give sample queries to the build to have one"
            )
        source = "given" if self.sample == "given" else "made from the index's own documents"
        lines = [f"recall {recall:g} wanted; tried on {self.n_queries} queries {source}, {K} hits, one thread:"]
        for setting in sorted(self.settings, key=lambda setting: setting.microseconds):
            mark = "→" if setting is chosen else " "
            short = "" if setting.recall - setting.error >= recall else "  (too low)"
            lines.append(f"{mark} {setting}{short}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        settings = [asdict(setting) for setting in self.settings]
        return {"sample": self.sample, "n_queries": self.n_queries, "settings": settings}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Plan":
        """Read from a manifest.

        Raises:
            FormatError: it is no plan of this version.
        """
        try:
            settings = tuple(Setting(**setting) for setting in fields["settings"])
            return cls(fields["sample"], fields["n_queries"], settings)
        except (KeyError, TypeError) as error:
            raise FormatError(
                f"the index's plan is damaged or of an unknown version ({error}): build it again"
            ) from error


def fit_plan(
    searcher: Searcher, queries: Queries | None, n_queries: int, *, seed: int = 0, progress: bool = False
) -> Plan:
    """Try settings on sample queries, first all of them on a few, then those that are left on more.

    Args:
        searcher: of the index.
        queries: the sample; None to make ``n_queries`` from documents, unless there are few.
        n_queries: 0 for no plan.
        seed: of the choice of documents.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no query of the given sample has a hit.
    """
    if queries is None and (n_queries == 0 or searcher.segment.n_documents < SMALL):
        return Plan()
    sample = "documents" if queries is None else "given"
    if queries is None:
        queries = queries_of_documents(searcher, n_queries, seed)
    trials = [_Trial(setting) for setting in (EXACT, *_settings(searcher))]
    truth = searcher.exact(queries, K, 1)  # compiles, too, before anything is timed
    if trials[-1].setting.regime == "blocks":
        trials[-1].setting.run(searcher, queries, K, 1)
    if sample == "given" and not truth[2].any():
        raise InputError(
            "no query of the sample shares a term with the documents, so that nothing can be learnt from it: "
            "encode the sample with the documents' encoder, or give none"
        )
    rows = queries if isinstance(queries, SparseRows) else SparseRows.of(queries)
    begin, n = 0, queries.shape[0]
    with tqdm(total=n, desc="trying settings", disable=not progress or None) as bar:
        while begin < n:
            end = min(max(FIRST, 2 * begin), n)
            part, wanted = rows.part(begin, end), (truth[0][begin:end], truth[1][begin:end], truth[2][begin:end])
            for trial in trials:  # part by part, so that what disturbs the machine disturbs all
                trial.ask(searcher, part, wanted)
            trials = [trials[0], *(trial for trial in trials[1:] if not _beaten(trial, trials))]
            bar.update(end - begin)
            begin = end
    return Plan(sample, n, tuple(trial.result() for trial in trials))


class _Trial:
    """A setting while it is tried, part by part of the sample."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.recalls: list[float] = []
        self.recall = 0.0
        self.seconds = 0.0

    def ask(self, searcher: Searcher, queries: Queries, truth: Found) -> None:
        """Search, in the time of this thread: that in which others had the core does not count."""
        begin = time.thread_time()
        found = self.setting.run(searcher, queries, K, 1)
        self.seconds += time.thread_time() - begin
        self.recalls += recalls_of(truth, found).tolist()
        self.recall = float(np.mean(self.recalls))

    def result(self) -> Setting:
        """The setting with what it reached and took."""
        n = len(self.recalls)
        error, took = float(np.std(self.recalls) / np.sqrt(n)), 1e6 * self.seconds / n
        return replace(self.setting, recall=round(self.recall, 4), error=round(error, 4), microseconds=round(took, 1))


def _beaten(trial: _Trial, others: Iterable[_Trial]) -> bool:
    """Whether another one reached more, or exact search as much, in clearly less time."""
    limit = trial.seconds / CLEARLY
    return any(
        other.seconds < limit and (other.recall > trial.recall or other.setting.regime == "exact") for other in others
    )


def _settings(searcher: Searcher) -> Iterator[Setting]:
    for mass, per_hit in product(QUERY_MASSES, CANDIDATES_PER_HIT):
        yield Setting("lists", {"query_mass": mass, "candidates_per_hit": per_hit})
    if searcher.segment.blocks is not None:
        width = searcher.segment.n_neighbours
        graph = {"neighbours": width} if width else {}
        for cut, factor in product(QUERY_CUTS, HEAP_FACTORS):
            yield Setting("blocks", {"query_cut": cut, "heap_factor": factor, **graph})


def recalls_of(truth: Found, found: Found) -> NDArray[np.float64]:
    """Per query, the share of the exact hits that were found, those tied with the last one included: (n,)."""
    scores, _, counts = truth
    last = np.take_along_axis(scores, np.maximum(counts - 1, 0)[:, None], axis=1)
    enough = np.minimum(counts, np.count_nonzero(found[0] >= last, axis=1))
    return np.where(counts > 0, enough / np.maximum(counts, 1), 1.0)


def queries_of_documents(searcher: Searcher, n_queries: int, seed: int) -> csr_array:
    """Queries made of random terms of random documents."""
    segment = searcher.segment
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(segment.n_documents, min(n_queries, segment.n_documents), replace=False))
    terms, weights, indptr = [], [], [0]
    for row in rows.tolist():
        document_terms, document_weights = segment.document(row)
        drawn = np.sort(rng.permutation(len(document_terms))[:QUERY_TERMS])
        terms.append(document_terms[drawn])
        weights.append(document_weights[drawn])
        indptr.append(indptr[-1] + len(drawn))
    shape = (len(rows), segment.vocabulary_size)
    return csr_array((np.concatenate(weights), np.concatenate(terms), np.array(indptr)), shape=shape)
