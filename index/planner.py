"""The planner: which way to search, and with which knobs, for a wanted recall.

Every way is tried at build time on sample queries; what it reached and what it took are kept in the
manifest. A search that names a recall gets the cheapest setting that reached it.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from tqdm import tqdm

from lsr.errors import FormatError, InputError
from lsr.index.search import EXACT_MASS, Found, Queries, Searcher

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

#: Rounds after the first one, of the settings that no other one beat by more than this in time at the same recall.
MORE_ROUNDS = 2
CLEARLY = 1.05

#: More candidates are not tried once this recall is reached.
ENOUGH = 0.995


@dataclass(frozen=True)
class Setting:
    """A way to search with its knobs, and what it reached on the sample.

    Attributes:
        regime: "exact", "lists" (query_mass, candidates_per_hit) or "blocks" (query_cut, heap_factor, and
            neighbours where there is a graph).
        knobs: by name.
        recall: share of the exact top 10 that was found, the mean over the queries.
        error: the standard error of that mean.
        microseconds: of one thread a query, the fastest of the rounds.
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
    """What every setting reached on the sample.

    Attributes:
        sample: where the queries came from: "given", "documents", or "none" for a small index.
        n_queries: how many there were.
        settings: all that were tried, exact search first.
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
    """Try all settings on sample queries.

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
    settings = [EXACT, *_settings(searcher)]
    truth = searcher.exact(queries, K, 1)  # compiles, too, before anything is timed
    if settings[-1].regime == "blocks":
        settings[-1].run(searcher, queries, K, 1)
    if sample == "given" and not truth[2].any():
        raise InputError(
            "no query of the sample shares a term with the documents, so that nothing can be learnt from it: "
            "encode the sample with the documents' encoder, or give none"
        )
    with tqdm(total=(1 + MORE_ROUNDS) * len(settings), desc="trying settings", disable=not progress or None) as bar:
        tried = list(_tried(settings, searcher, queries, truth, bar))
        for _ in range(MORE_ROUNDS):  # setting by setting, so that what disturbs the machine disturbs all
            for number, setting in enumerate(tried):
                if number == 0 or not _beaten(setting, tried):
                    _, took = _timed(setting, searcher, queries)
                    tried[number] = replace(setting, microseconds=min(took, setting.microseconds))
                bar.update()
    return Plan(sample, queries.shape[0], tuple(tried))


def _tried(
    settings: Iterable[Setting], searcher: Searcher, queries: Queries, truth: Found, bar: "tqdm[Any]"
) -> Iterator[Setting]:
    """The settings with what they reached and took once; of those that walk as much, only up to enough candidates."""
    enough: set[float] = set()  # of query_mass
    for setting in settings:
        mass = setting.knobs.get("query_mass")
        if mass in enough:
            bar.update(1 + MORE_ROUNDS)
            continue
        found, took = _timed(setting, searcher, queries)
        recalls = recalls_of(truth, found)
        recall, error = float(recalls.mean()), float(recalls.std() / np.sqrt(len(recalls)))
        yield Setting(setting.regime, setting.knobs, round(recall, 4), round(error, 4), took)
        if mass is not None and recall >= ENOUGH:
            enough.add(mass)
        bar.update()


def _beaten(setting: Setting, others: Iterable[Setting]) -> bool:
    """Whether another one reached as much in clearly less time."""
    limit = setting.microseconds / CLEARLY
    return any(other.recall >= setting.recall and other.microseconds < limit for other in others)


def _settings(searcher: Searcher) -> Iterator[Setting]:
    for mass, per_hit in product(QUERY_MASSES, CANDIDATES_PER_HIT):
        yield Setting("lists", {"query_mass": mass, "candidates_per_hit": per_hit})
    if searcher.segment.blocks is not None:
        width = searcher.segment.n_neighbours
        graph = {"neighbours": width} if width else {}
        for cut, factor in product(QUERY_CUTS, HEAP_FACTORS):
            yield Setting("blocks", {"query_cut": cut, "heap_factor": factor, **graph})


def _timed(setting: Setting, searcher: Searcher, queries: Queries) -> tuple[Found, float]:
    """Search, and the microseconds of this thread a query: those in which others had the core do not count."""
    begin = time.thread_time()
    found = setting.run(searcher, queries, K, 1)
    return found, round(1e6 * (time.thread_time() - begin) / queries.shape[0], 1)


def recalls_of(truth: Found, found: Found) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Per query, the share of the exact hits that were found, those tied with the last one included: (n,)."""
    scores, _, counts = truth
    recalls = np.ones(len(counts))
    for query, count in enumerate(counts):
        if count:
            last = scores[query, count - 1]
            recalls[query] = min(count, np.count_nonzero(found[0][query] >= last)) / count
    return recalls


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
