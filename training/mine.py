"""Hard negatives: documents that a search ranks high for a query and that are not its positives.

The miner knows no index. It takes ranked lists, from run files or from whoever searches, one query at a
time, and gives rows of a training file. What may be a positive that nobody judged is kept out by a rank
window, by margins to the positive's score, and by a teacher (positive-aware mining: TopK-MarginPos and
TopK-PercPos of NV-Retriever, arXiv 2407.15831).
"""

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lsr.errors import FormatError, InputError
from lsr.files import locked, replacing
from lsr.run import Qrels, Ranking, RunRow, ranking_of, run_lines
from lsr.training.rows import Row, check_training_target, new_training_file

#: Scores by ids: query ids, and a list of document ids for each → float32 arrays as long as the lists.
PairScorer: TypeAlias = Callable[[Sequence[str], Sequence[Sequence[str]]], list[NDArray[np.float32]]]

QUERIES_AT_A_TIME = 256
EXAMPLES_KEPT = 5


@dataclass(frozen=True)
class MiningOptions:
    """Which of a query's ranked documents may be negatives.

    Where a query has several positives, margins and ratio are held against the lowest of their scores,
    so that they hold for every pair. A positive that the ranking does not reach, and that has no score
    from elsewhere, counts as scored like the ranking's last document: no better is known of it.

    Attributes:
        ranks: first and last rank, from 1, positives counted.
        negatives: how many are sampled of those that are left; None for all.
        margin: a negative's score is at most the positive's − margin.
        relative_margin: a negative's score is at most (1 − relative_margin) · the positive's.
        teacher_ratio: a negative's teacher score is at most teacher_ratio · the positive's.
        drop_self: drop documents whose id is the query's (ArguAna, Quora: the query is in the corpus).
        seed: of the sampling.
    """

    ranks: tuple[int, int] = (10, 200)
    negatives: int | None = 24
    margin: float | None = None
    relative_margin: float | None = None
    teacher_ratio: float | None = None
    drop_self: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise InputError(f"the rank window {first}-{last} must begin at 1 or later, and not end before it begins")
        if self.negatives is not None and self.negatives < 1:
            raise InputError(f"negatives must be at least 1: got {self.negatives}")
        for name, low, high in (
            ("margin", 0, math.inf),
            ("relative_margin", 0, 1),
            ("teacher_ratio", 0, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} must be a number from {low} to {high}: got {value}")


@dataclass
class MiningReport:
    """What became of queries and documents.

    Attributes:
        queries: queries with a positive and a ranking.
        unjudged: ranked queries without a positive: they get no row.
        without_negatives: queries of which no document survived: they get no row. ``examples`` names some.
        positives_found: queries with a positive in their ranking.
        unscored: rows with a positive that the rankings do not reach and that nobody else scored.
        documents: those within the rank window, positives aside.
        dropped: how many of these each filter dropped, by its name.
        survived: those that were left; ``kept`` those that were sampled.
    """

    queries: int = 0
    unjudged: int = 0
    without_negatives: int = 0
    positives_found: int = 0
    unscored: int = 0
    documents: int = 0
    survived: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        share = 100 * (self.queries - self.without_negatives) / max(1, self.queries)
        dropped = ", ".join(f"{n:,} by {name}" for name, n in sorted(self.dropped.items())) or "none by filters"
        lines = [
            f"{self.queries:,} queries: {share:.1f} % have negatives, {self.kept / max(1, self.queries):.1f} on "
            f"average; {100 * self.positives_found / max(1, self.queries):.1f} % have a positive in their ranking",
            f"{self.documents:,} documents in the rank window, {self.survived:,} survived; dropped: {dropped}",
        ]
        if self.without_negatives:
            some = ", ".join(map(repr, self.examples))
            lines.append(f"{self.without_negatives:,} queries without a surviving negative got no row (such as {some})")
        if self.unscored:
            lines.append(
                f"{self.unscored:,} rows have a positive without a score, as the rankings do not reach it: for a loss "
                "of teacher scores, score the file with lsr distill"
            )
        if self.unjudged:
            lines.append(f"{self.unjudged:,} ranked queries have no positive and got no row")
        return "\n".join(lines)


def mine(
    rankings: Mapping[str, Ranking] | Iterable[tuple[str, Ranking]],
    qrels: Qrels,
    options: MiningOptions = MiningOptions(),
    *,
    positive_scores: PairScorer | None = None,
    teacher: PairScorer | None = None,
    text_of: Callable[[str], str] | None = None,
    report: MiningReport | None = None,
) -> Iterator[Row]:
    """Yield a row for every query with a positive and a surviving negative, in the order of the rankings.

    Positives come first to last as in ``qrels``; negatives by rank. The scores of the ranking are kept
    for every document that has one. A few hundred queries are held at a time, and what is sampled for a
    query depends on the seed and its id only.

    Args:
        rankings: a `Run`, or (query id, ranking) pairs, which may be a generator.
        qrels: documents of grade 1 or more are positives, others are not.
        options: rank window, filters and sampling.
        positive_scores: scores of positives that the ranking does not reach, on the ranking's scale.
        teacher: needed for ``teacher_ratio``.
        text_of: with it, documents are dropped whose text is that of a positive.
        report: filled with counts.

    Raises:
        InputError: ``teacher_ratio`` without a teacher.
    """
    if (options.teacher_ratio is None) != (teacher is None):
        raise InputError("teacher_ratio and teacher go together: give both or none")
    report = MiningReport() if report is None else report
    pairs = iter(rankings.items() if isinstance(rankings, Mapping) else rankings)
    while chunk := list(itertools.islice(pairs, QUERIES_AT_A_TIME)):
        pools = [p for p in (_Pool.of(query_id, ranking, qrels, report) for query_id, ranking in chunk) if p]
        if positive_scores:
            _score_positives(pools, positive_scores)
        for pool in pools:
            _filter_by_search(pool, options, text_of, report)
        if teacher:
            _filter_by_teacher(pools, options, teacher, report)
        for pool in pools:
            row = _sample(pool, options, report)
            if row:
                yield row


def mine_to_file(
    out: str | os.PathLike[str],
    search: Callable[[int], Iterable[tuple[str, Ranking]]],
    qrels: Qrels,
    options: MiningOptions,
    *,
    key: str = "",
    **more: Any,
) -> MiningReport:
    """Mine into a training file, so that an interrupted call goes on where it stopped.

    Args:
        out: the .jsonl or .jsonl.gz to write.
        search: gives the rankings from a position on; it is called with how many were mined already.
        qrels: as in `mine`.
        options: as in `mine`.
        key: what the rankings depend on; work that was left undone under another key is refused.
        more: ``positive_scores``, ``teacher`` and ``text_of`` of `mine`.

    Raises:
        InputError: ``out`` is no name of a training file; unfinished work beside it is of other options, or of another
            process that is at it.
    """
    out = check_training_target(out)
    rows, note = (out.with_name(f".{out.name}.{ending}") for ending in ("unfinished", "unfinished.json"))
    rows.touch()
    with locked(rows, wait=False) as held:
        if held is False:
            raise InputError(f"another process is mining to {out}: wait for it, or write to another file")
        return _mine_to_file(out, rows, note, search, qrels, options, key, more)


def _mine_to_file(
    out: Path,
    rows: Path,
    note: Path,
    search: Callable[[int], Iterable[tuple[str, Ranking]]],
    qrels: Qrels,
    options: MiningOptions,
    key: str,
    more: Mapping[str, Any],
) -> MiningReport:
    """The same with the lock of ``rows``; ``note`` says how far they go."""
    state: dict[str, Any] = {"key": f"{key} {options}", "done": 0, "bytes": 0, "report": {}}
    if note.is_file():
        there = json.loads(note.read_text(encoding="utf-8"))
        if there["key"] != state["key"]:
            raise InputError(
                f"{note} is the start of another mining (other options or search): delete it and {rows.name}"
            )
        state = there
    report = MiningReport(**state["report"])
    pairs = iter(search(state["done"]))
    with rows.open("r+b" if state["bytes"] else "wb") as file:
        file.truncate(state["bytes"])
        file.seek(0, os.SEEK_END)
        while chunk := list(itertools.islice(pairs, QUERIES_AT_A_TIME)):
            for row in mine(chunk, qrels, options, report=report, **more):
                file.write(f"{row.to_json()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
            state |= {"done": state["done"] + len(chunk), "bytes": file.tell(), "report": asdict(report)}
            with replacing(note) as notes:
                json.dump(state, notes)
    with new_training_file(out) as finished, rows.open(encoding="utf-8") as lines:
        shutil.copyfileobj(lines, finished)
    rows.unlink()
    note.unlink(missing_ok=True)
    return report


@dataclass
class _Pool:
    """One query's documents on their way through the filters."""

    query_id: str
    positives: list[str]
    ranking: Ranking
    positive_scores: dict[str, float]
    places: NDArray[np.int64]  # positions in the ranking that are still in

    @classmethod
    def of(cls, query_id: str, ranking: Ranking, qrels: Qrels, report: MiningReport) -> "_Pool | None":
        positives = [doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade >= 1]
        if not positives:
            report.unjudged += 1
            return None
        known = set(positives)
        places = [place for place, doc_id in enumerate(ranking.doc_ids) if doc_id not in known]
        found = {ranking.doc_ids[i]: float(ranking.scores[i]) for i in set(range(len(ranking.doc_ids))) - set(places)}
        report.queries += 1
        report.positives_found += bool(found)
        return cls(query_id, positives, ranking, found, np.array(places, dtype=np.int64))

    @property
    def doc_ids(self) -> list[str]:
        """The documents that are still in."""
        return [self.ranking.doc_ids[place] for place in self.places]

    def keep(self, mask: NDArray[np.bool_], name: str, report: MiningReport) -> None:
        """Drop what ``mask`` is False for, in the name of a filter."""
        n_dropped = int((~mask).sum())
        if n_dropped:
            report.dropped[name] = report.dropped.get(name, 0) + n_dropped
        self.places = self.places[mask]


def _score_positives(pools: Sequence[_Pool], scorer: PairScorer) -> None:
    missing = [[doc_id for doc_id in pool.positives if doc_id not in pool.positive_scores] for pool in pools]
    lacking = [(pool, ids) for pool, ids in zip(pools, missing, strict=True) if ids]
    if lacking:
        scores = scorer([pool.query_id for pool, _ in lacking], [ids for _, ids in lacking])
        for (pool, ids), values in zip(lacking, scores, strict=True):
            pool.positive_scores.update(zip(ids, map(float, values), strict=True))


def _filter_by_search(
    pool: _Pool, options: MiningOptions, text_of: Callable[[str], str] | None, report: MiningReport
) -> None:
    first, last = options.ranks
    pool.places = pool.places[(pool.places >= first - 1) & (pool.places < last)]
    report.documents += len(pool.places)
    if options.drop_self:
        pool.keep(np.array([doc_id != pool.query_id for doc_id in pool.doc_ids], dtype=bool), "self match", report)
    if text_of and len(pool.places):
        texts = {text_of(doc_id) for doc_id in pool.positives}
        pool.keep(np.array([text_of(doc_id) not in texts for doc_id in pool.doc_ids]), "a positive's text", report)
    if not len(pool.ranking.scores):
        return
    unknown = float(pool.ranking.scores[-1])
    lowest = min(pool.positive_scores.get(doc_id, unknown) for doc_id in pool.positives)
    if options.margin is not None:
        pool.keep(pool.ranking.scores[pool.places] <= lowest - options.margin, "margin", report)
    if options.relative_margin is not None:
        limit = lowest - options.relative_margin * abs(lowest)  # a score may be negative
        pool.keep(pool.ranking.scores[pool.places] <= limit, "relative margin", report)


def _filter_by_teacher(
    pools: Sequence[_Pool], options: MiningOptions, teacher: PairScorer, report: MiningReport
) -> None:
    asked = [pool for pool in pools if len(pool.places)]
    if not asked:
        return
    scores = teacher([pool.query_id for pool in asked], [[*pool.positives, *pool.doc_ids] for pool in asked])
    ratio = options.teacher_ratio or 0.0
    for pool, values in zip(asked, scores, strict=True):
        lowest = float(np.min(values[: len(pool.positives)]))
        limit = lowest + (ratio - 1) * abs(lowest)  # ratio · lowest for a positive score
        pool.keep(np.asarray(values[len(pool.positives) :]) <= limit, "teacher", report)


def _sample(pool: _Pool, options: MiningOptions, report: MiningReport) -> Row | None:
    report.survived += len(pool.places)
    if not len(pool.places):
        report.without_negatives += 1
        if len(report.examples) < EXAMPLES_KEPT:
            report.examples.append(pool.query_id)
        return None
    if options.negatives is not None and options.negatives < len(pool.places):
        digest = hashlib.blake2b(pool.query_id.encode(), digest_size=8).digest()
        rng = np.random.default_rng([options.seed, int.from_bytes(digest, "little")])
        pool.places = np.sort(rng.choice(pool.places, options.negatives, replace=False))
    report.kept += len(pool.places)
    scores = {doc_id: pool.positive_scores[doc_id] for doc_id in pool.positives if doc_id in pool.positive_scores}
    report.unscored += len(scores) < len(pool.positives)
    scores |= {pool.ranking.doc_ids[place]: float(pool.ranking.scores[place]) for place in pool.places}
    return Row(pool.query_id, pool.positives, pool.doc_ids, scores)


def stream_run(path: str | os.PathLike[str]) -> Iterator[tuple[str, Ranking]]:
    """Yield (query id, ranking) of a TREC run file, one query in memory at a time.

    `lsr.run.read_run` reads files of any order; this one wants a query's lines together.

    Raises:
        FormatError: with file, line and reason; a query's lines are not together.
    """
    done: set[str] = set()
    ranked: list[RunRow] = []
    current = ""
    for number, query_id, row, _ in run_lines(path):
        if query_id != current:
            if ranked:
                yield current, _ranking(ranked, current, path)
            if query_id in done:
                raise FormatError(f"{path}:{number}: the lines of query {query_id!r} are not together: sort the file")
            done.add(query_id)
            current, ranked = query_id, []
        ranked.append(row)
    yield current, _ranking(ranked, current, path)


def _ranking(ranked: list[RunRow], query_id: str, path: str | os.PathLike[str]) -> Ranking:
    if len({doc_id for _, _, doc_id in ranked}) != len(ranked):
        raise FormatError(f"{path}: a document is listed twice for query {query_id!r}")
    return ranking_of(ranked)
