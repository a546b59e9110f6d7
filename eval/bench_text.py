"""From a question's text to its hits: inference-free queries and BM25 of ours beside bm25s, on one corpus."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from lsr.encoder import Encoder
from lsr.errors import InputError
from lsr.eval.bench import OURS, Sweeps, machine, measure, shown, write_vectors
from lsr.eval.datasets import Dataset, queries_are_documents
from lsr.eval.metrics import evaluate_run
from lsr.lookup import compute_idf, inference_free
from lsr.run import Ranking, Run

ADAPTERS = Path(__file__).with_name("peers_text.py")
METRIC = "ndcg@10"


def run_text_benchmark(
    dataset: Dataset,
    encoder: Encoder,
    vectors: csr_array,
    sweeps: Sweeps,
    *,
    k: int = 10,
    n_queries: int | None = None,
    block: int = 50,
    threads: int = 1,
    core: int | None = None,
    python: str = sys.executable,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Time every entry of ``sweeps`` from text to hits, and measure how good the hits are.

    Args:
        dataset: the collection; its judged queries are asked.
        encoder: its document side made ``vectors``; its tokenizer and the corpus's IDF make the queries.
        vectors: float32 CSR, a row per document of the corpus.
        sweeps: entries by system, of `lsr.eval.peers_text`.
        k: hits per query.
        n_queries: ask only so many.
        block: queries that a setting answers before the next one's turn.
        threads: threads and cores of a build; searches have one of each.
        core: number of the core that searches run on; by default the first that is allowed.
        python: interpreter for bm25s.
        say: told what happens, a line at a time.

    Raises:
        InputError: the vectors are not of this corpus.
    """
    documents = list(dataset.corpus)
    if len(documents) != vectors.shape[0] or vectors.shape[1] != encoder.vocabulary_size:
        raise InputError(
            f"the vectors have shape {vectors.shape}, but {dataset.name} has {len(documents):,} documents and the "
            f"model {encoder.vocabulary_size:,} terms: encode this corpus with this model (lsr encode)"
        )
    queries = dataset.queries[:n_queries]
    say(f"counting the terms of {len(documents):,} documents")
    free = inference_free(encoder, compute_idf(documents, encoder))
    with tempfile.TemporaryDirectory(prefix="lsr-bench-") as name:
        folder = Path(name)
        (folder / "queries.json").write_text(json.dumps([query.text for query in queries]))
        (folder / "texts.json").write_text(json.dumps([document.content for document in documents]))
        (folder / "encoder").mkdir()
        free.save_files(folder / "encoder", queries_only=True)
        write_vectors(folder, vectors, vectors[:0], vectors[:0])
        measured = measure(
            sweeps, folder, len(queries),
            k=k, block=block, threads=threads, core=core, python=python, adapters=ADAPTERS, say=say,
        )  # fmt: skip
    ids = [document.id for document in documents]
    shared = {document.id: document for document in documents if document.id in dataset.qrels}
    drop = queries_are_documents(queries, shared)
    asked = {query.id: dataset.qrels[query.id] for query in queries}
    for entry in measured["entries"]:
        for setting in entry["settings"]:
            rows = setting.pop("rows")
            run = Run({q.id: _ranking([ids[row] for row in found]) for q, found in zip(queries, rows, strict=True)})
            run = run.without_self_matches() if drop else run
            setting[METRIC] = evaluate_run(run, asked, (METRIC,)).mean[METRIC]
    collection = {
        "name": dataset.name,
        "documents": len(documents),
        "document_terms": vectors.nnz / vectors.shape[0],
        "queries": len(queries),
        "query_words": float(np.mean([len(query.text.split()) for query in queries])),
        "self_matches": "dropped" if drop else "none",
    }
    return {"collection": collection, "k": k, "build_threads": threads, "machine": machine(), **measured}


def _ranking(doc_ids: list[str]) -> Ranking:
    """A ranking in this order: libraries' scores are not compared."""
    return Ranking(doc_ids, np.arange(len(doc_ids), 0, -1, dtype=np.float32))


def text_markdown(results: dict[str, Any]) -> str:
    """The report: every setting, and ours against the fastest of bm25s."""
    collection = results["collection"]
    rows = [
        (entry["system"], entry, setting)
        for entry in results["entries"]
        for setting in sorted(entry["settings"], key=lambda setting: setting["median_us"])
    ]
    peers = [setting["median_us"] for system, _, setting in rows if system not in OURS]
    fastest = min(peers, default=None)
    lines = [
        f"### {collection['name']}: text to hits over {collection['documents']:,} documents",
        "",
        f"{collection['queries']:,} queries of {collection['query_words']:.1f} words, {results['k']} hits, one thread, "
        f"warm; {results['machine']['cpu']}. Ratios are to the fastest setting of bm25s.",
        "",
        "| system | build | search | median µs | ratio | p99 µs | batch µs | nDCG@10 | build s | disk MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for system, entry, setting in rows:
        ratio = "" if fastest is None else f"{setting['median_us'] / fastest:.2f} ×"
        batch = "" if setting["batch_us"] is None else f"{setting['batch_us']:.0f}"
        cells = [system, shown(entry["build"]), shown(setting["knobs"]), f"{setting['median_us']:.0f}", ratio]
        cells += [f"{setting['p99_us']:.0f}", batch, f"{setting[METRIC]:.3f}"]
        cells += [f"{entry['build_s']:.2f}", f"{entry['disk_bytes'] / 1e6:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"Failed: {fail['system']} {shown(fail['build'])}: {fail['error']}" for fail in results["failed"])]
    return "\n".join(lines).rstrip() + "\n"
