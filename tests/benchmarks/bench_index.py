"""Times and recall of the index on real SPLADE vectors. Off by default: run `make bench`.

    python tests/benchmarks/bench_index.py DOCUMENTS.npz QUERIES.npz [--limit N] [--no-blocks] [--json FILE]

The npz files hold a CSR's indptr, indices and data. Printed: build time, sizes, time to open, then
per setting the median and p99 of one query on one thread (warm), and recall@10 against exact search.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

import lsr

SHARED = Path(__file__).resolve().parents[3] / "shared" / "vectors"
LISTS = [{"exact": True}, *({"candidates": n} for n in (12, 15, 20, 30, 50, 100))]
BLOCKS = [{"query_cut": cut, "heap_factor": factor} for cut, factor in ((5, 0.9), (10, 0.8), (10, 0.9), (10, 1.0))]
N_QUERIES = 500


def load(path: Path, vocabulary_size: int) -> csr_array:
    arrays = np.load(path)
    data = arrays["data"].astype(np.float32)
    shape = (len(arrays["indptr"]) - 1, vocabulary_size)
    return csr_array((data, arrays["indices"].astype(np.int32), arrays["indptr"]), shape=shape)


def timed(index: lsr.Index, queries: csr_array, **options: object) -> tuple[lsr.Hits, float, float]:
    """Hits, and the median and 99th percentile in µs of one query at a time on one thread."""
    singles = [queries[[i]] for i in range(queries.shape[0])]
    for query in singles[:20]:
        index.search(query, 10, threads=1, **options)
    micros = []
    for query in singles:
        start = time.perf_counter()
        index.search(query, 10, threads=1, **options)
        micros.append(1e6 * (time.perf_counter() - start))
    return index.search(queries, 10, threads=1, **options), float(np.median(micros)), float(np.percentile(micros, 99))


def recall(found: lsr.Hits, exact: lsr.Hits) -> float:
    shares = [
        len(set(f[f >= 0]) & set(e[e >= 0])) / max(1, (e >= 0).sum())
        for f, e in zip(found.rows, exact.rows, strict=True)
    ]
    return float(np.mean(shares))


def measure(name: str, documents: csr_array, queries: csr_array, build: lsr.BuildOptions, settings: list[dict]) -> dict:
    """Build, save, open and search one kind of index; prints as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        lsr.Index.build(documents, path=f"{folder}/x.index", options=build, progress=True)
        built = time.perf_counter() - start
        opened = []
        for _ in range(5):
            start = time.perf_counter()
            index = lsr.Index.open(f"{folder}/x.index")
            opened.append(1000 * (time.perf_counter() - start))
        sizes = {part: round(size / 1e6, 1) for part, size in index.sizes().items()}
        print(f"{name}: {index!r}\nbuild and save {built:.1f} s, open {np.median(opened):.1f} ms, MB {sizes}")
        exact = index.search(queries, 10, exact=True)
        rows = []
        for setting in settings:
            hits, median, p99 = timed(index, queries, **setting)
            rows.append({"setting": setting, "median_us": median, "p99_us": p99, "recall": recall(hits, exact)})
            shown = " ".join(f"{knob}={value}" for knob, value in setting.items())
            print(f"{shown:32s} {median:8.0f} µs  p99 {p99:8.0f} µs  recall@10 {rows[-1]['recall']:.4f}", flush=True)
    return {"name": name, "build_s": built, "open_ms": float(np.median(opened)), "mb": sizes, "settings": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="?", type=Path, default=SHARED / "wiki-112k.splade-tiny.npz")
    parser.add_argument("queries", nargs="?", type=Path, default=SHARED / "squad-dev-questions.splade-tiny.npz")
    parser.add_argument("--vocabulary-size", type=int, default=30_522)
    parser.add_argument("--limit", type=int, help="use only so many documents")
    parser.add_argument(
        "--no-blocks", action="store_true", help="leave Seismic's blocks out: they take longest to build"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for path in (options.documents, options.queries):
        if not path.is_file():
            parser.error(f"{path} does not exist: name the vectors to use")
    documents = load(options.documents, options.vocabulary_size)[: options.limit]
    queries = load(options.queries, options.vocabulary_size)[:N_QUERIES]
    blocks = lsr.BuildOptions(seismic=True)
    compiled = lsr.Index.build(documents[:100], options=blocks)
    for setting in (*LISTS[:2], *BLOCKS[:1]):
        compiled.search(queries[:2], 10, **setting)
    results = [measure("lists", documents, queries, lsr.BuildOptions(), LISTS)]
    if not options.no_blocks:
        results.append(measure("blocks", documents, queries, blocks, BLOCKS))
    if options.json:
        facts = {"documents": documents.shape[0], "python": platform.python_version(), "results": results}
        options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
