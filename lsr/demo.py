"""`lsr demo`: index the documentation of the user's own Python, ask it questions, measure it."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lsr.bm25 import Bm25
from lsr.corpus import Corpus
from lsr.encoder import Encoder
from lsr.python_docs import python_docs
from lsr.records import Document, Query
from lsr.retriever import Retriever

QUESTIONS = (
    "read a csv file with a header row",
    "run a shell command and capture its output",
    "temporary directory that is removed afterwards",
    "find the longest matching block of two sequences",
)

#: Known-item search: summary lines as queries, for documents with at least this many words besides.
MIN_BODY_WORDS = 15
N_KNOWN_ITEMS = 500


@dataclass(frozen=True)
class KnownItems:
    """A collection made from one corpus: the summary line, taken out of the text, must find the rest."""

    corpus: Corpus
    queries: list[Query]
    qrels: dict[str, dict[str, int]]


def known_items(documents: list[Document], n: int = N_KNOWN_ITEMS, seed: int = 0) -> KnownItems:
    """Take the first paragraph out of ``n`` documents and make it the query for what is left."""
    splits = {document.id: document.text.split("\n\n", 1) for document in documents}
    candidates = [
        doc_id for doc_id, parts in splits.items() if len(parts) == 2 and len(parts[1].split()) >= MIN_BODY_WORDS
    ]
    chosen = set(random.Random(seed).sample(sorted(candidates), min(n, len(candidates))))
    without = [Document(d.id, splits[d.id][1], d.title) if d.id in chosen else d for d in documents]
    return KnownItems(
        Corpus("documents without their summary lines", lambda: iter(without)),
        [Query(f"q-{d.id}", splits[d.id][0]) for d in documents if d.id in chosen],
        {f"q-{doc_id}": {doc_id: 1} for doc_id in chosen},
    )


def run_demo(encoder: Encoder | Bm25, name: str, say: Callable[[str], Any], *, progress: bool = True) -> None:
    """Index, search with explanations, evaluate known-item search, and print sizes and times.

    Args:
        encoder: what to encode with.
        name: what to call it.
        say: prints one line.
        progress: show progress bars on stderr.
    """
    start = time.perf_counter()
    corpus = python_docs()
    documents = list(corpus)
    read = time.perf_counter() - start
    say(f"{len(documents):,} documents: {corpus.name}, read in {read:.1f} s")
    items = known_items(documents)
    start = time.perf_counter()
    retriever = Retriever.build(items.corpus, encoder, progress=progress)
    built = time.perf_counter() - start
    say(f"Encoded with {name} and indexed in {built:.1f} s: {retriever.index!r}")
    for question in QUESTIONS:
        say("")
        show_hits(retriever, question, say)
    say("")
    say(f"Known-item search: {len(items.queries)} summary lines, taken out of their documents, as queries")
    _evaluate(retriever, items, name, say, (True, False))
    if not isinstance(encoder, Bm25):
        _evaluate(Retriever.build(items.corpus, Bm25()), items, "bm25", say, (True,))
    sizes = ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in retriever.index.sizes().items())
    say(f"Index in memory: {sizes}")


def show_hits(retriever: Retriever, question: str, say: Callable[[str], Any], k: int = 3, **options: Any) -> None:
    """Print the best hits with the terms that matched."""
    say(f"? {question}")
    for rank, hit in enumerate(retriever.search(question, k, **options), start=1):
        text = " ".join(hit.text.split())
        say(f"  {rank}. {hit.id}  [{hit.score:.2f}]  {text[:80]}{'…' if len(text) > 80 else ''}")
        terms = retriever.explain(question, hit.id)[:6]
        say("     " + " · ".join(f"{match.term} {match.contribution:.2f}" for match in terms))


def _evaluate(
    retriever: Retriever, items: KnownItems, name: str, say: Callable[[str], Any], modes: tuple[bool, ...]
) -> None:
    from lsr.eval.datasets import Dataset
    from lsr.eval.evaluate import evaluate_retriever

    dataset = Dataset("known items", items.corpus, items.queries, items.qrels)
    for exact in modes:
        report, _, _ = evaluate_retriever(retriever, dataset, exact=exact)
        shown = "  ".join(f"{metric} {value:.3f}" for metric, value in report.metrics.items())
        say(f"  {name:8s} {report.mode:8s} {shown}  {report.latency_ms:.2f} ms a query")
