"""Measuring our index and its peers on the same vectors: each in a process of its own, all in one run.

Every index of every system is built by a worker (`lsr.eval.bench_worker`), saved and opened again; then blocks of
queries go round all of them, one setting after the other (A, B, C, A, B, C, …), so that whatever disturbs the machine
disturbs all. A worker keeps to one core, and warms up before each block. A worker that dies costs its own figures only.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

import lsr
from lsr.errors import InputError, LsrError

Array = NDArray[Any]
#: {"build": options, "search": [knobs, …]}, a list of them by system.
Sweeps = Mapping[str, Sequence[Mapping[str, Any]]]

ADAPTERS = Path(__file__).with_name("peers.py")
#: Systems that come with lsr itself.
OURS = ("lsr", "lsr (inference-free)", "lsr (BM25)")
#: A hit counts if its exact score is within this share of the k-th best.
TIE = 1e-6
BUILD_LIMIT_S, ANSWER_LIMIT_S = 4 * 3600.0, 600.0


class WorkerError(LsrError):
    """A system failed while it was built or searched; the benchmark goes on without it."""


class Worker:
    """One process that holds one index of one system, and answers requests (see `lsr.eval.bench_worker`)."""

    def __init__(
        self, system: str, data: Path, k: int, *, adapters: Path, python: str, threads: int, core: int | None
    ) -> None:
        self.system = system
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        pools = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON")
        environment = {**os.environ, **{f"{pool}_NUM_THREADS": str(threads) for pool in pools}}
        command = [python, "-P", str(Path(__file__).with_name("bench_worker.py")), "--adapters", str(adapters)]
        command += ["--system", system, "--data", str(data), "--k", str(k), "--threads", str(threads)]
        command += [] if core is None else ["--core", str(core)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)  # type: ignore[call-overload]

    def ask(self, do: str, limit: float = ANSWER_LIMIT_S, **fields: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            WorkerError: the process ended or took longer than ``limit`` seconds.
        """
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if answer:
            return json.loads(answer)
        code = self.process.wait()
        self.log.seek(0)
        said = [line.strip() for line in self.log.read()[-4000:].splitlines() if line.strip()]
        reason = f"took more than {limit:.0f} s" if late else said[-1] if said else "it said nothing"
        raise WorkerError(f"{self.system} ended with code {code} at {do!r}: {reason}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            try:
                stream.close()
            except BrokenPipeError:  # what was not read any more
                continue


def installed(names: Sequence[str], python: str = sys.executable) -> dict[str, str | None]:
    """Version of each distribution in an interpreter, None for one that is not there.

    Raises:
        InputError: the interpreter does not run.
    """
    code = (
        "import importlib.metadata as m, json, sys\n"
        "def version(name):\n    try: return m.version(name)\n    except m.PackageNotFoundError: return None\n"
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    try:
        done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"{python} does not run as a Python interpreter ({error}): name another --peer-python"
        ) from error
    versions: dict[str, str | None] = json.loads(done.stdout)
    return versions


def run_benchmark(
    documents: csr_array,
    queries: csr_array,
    sweeps: Sweeps,
    *,
    name: str = "vectors",
    sample: csr_array | None = None,
    k: int = 10,
    block: int = 50,
    threads: int = 1,
    batch_threads: int = 1,
    core: int | None = None,
    python: str = sys.executable,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Build and time every entry of ``sweeps`` on the same vectors.

    Args:
        documents: float32 CSR of shape (n, vocabulary).
        queries: float32 CSR of shape (m, vocabulary).
        sweeps: entries by system; the systems are those of `lsr.eval.peers`.
        name: of the collection, for the report.
        sample: more queries, none of ``queries``, for builds of ours with the option ``sample``.
        k: hits per query, and the depth of recall.
        block: queries that a setting answers before the next one's turn.
        threads: threads and cores of a build; searches have one of each.
        batch_threads: if above 1, all queries are also searched in one call on so many threads, and on one.
        core: number of the core that searches run on; by default the first that is allowed.
        python: interpreter for the peers.
        say: told what happens, a line at a time.

    Returns:
        What `lsr.eval.bench_report` takes and JSON holds. Recall is the share of right hits among those that
        exact search has; a hit is right if its exact score is at least the k-th best, less `TIE` of it.

    Raises:
        InputError: there is nothing to measure.
    """
    if not 1 <= k <= documents.shape[0] or queries.shape[0] == 0:
        raise InputError(
            f"{queries.shape[0]:,} queries for {k} of {documents.shape[0]:,} documents: nothing to measure"
        )
    truth = Truth(documents, queries, k)
    with tempfile.TemporaryDirectory(prefix="lsr-bench-") as folder:
        write_vectors(Path(folder), documents, queries, queries[:0] if sample is None else sample)
        measured = measure(
            sweeps, Path(folder), queries.shape[0],
            k=k, block=block, threads=threads, batch_threads=batch_threads, core=core, python=python,
            adapters=ADAPTERS, say=say,
        )  # fmt: skip
    for entry in measured["entries"]:
        for setting in entry["settings"]:
            setting["recall"] = truth.recall(setting.pop("rows"))
    collection = {
        "name": name,
        "documents": documents.shape[0],
        "document_terms": documents.nnz / documents.shape[0],
        "queries": queries.shape[0],
        "query_terms": queries.nnz / queries.shape[0],
        "vocabulary": documents.shape[1],
    }
    return {"collection": collection, "k": k, "build_threads": threads, "machine": machine(), **measured}


def measure(
    sweeps: Sweeps,
    data: Path,
    n_queries: int,
    *,
    k: int,
    block: int,
    threads: int,
    core: int | None,
    python: str,
    adapters: Path,
    say: Callable[[str], object],
    batch_threads: int = 1,
) -> dict[str, Any]:
    """Build all entries one after the other, then time them in turns; ``data`` holds what the adapters read."""
    entries: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    workers: list[Worker] = []
    with ExitStack() as stack:
        for system, sweep in sweeps.items():
            for number, wanted in enumerate(sweep):
                say(f"building {system} {shown(wanted['build'])}")
                interpreter = sys.executable if system in OURS else python
                worker = Worker(system, data, k, adapters=adapters, python=interpreter, threads=threads, core=core)
                stack.callback(worker.close)
                try:
                    place = str(data / f"{len(workers)}-{len(failed)}-{number}")
                    built = worker.ask("build", BUILD_LIMIT_S, options=wanted["build"], folder=place)
                except WorkerError as error:
                    failed.append({"system": system, "build": wanted["build"], "error": str(error)})
                    say(str(error))
                    continue
                settings = [{"knobs": knobs, "micros": [], "batch": [], "rows": []} for knobs in wanted["search"]]
                entries.append({"system": system, "build": wanted["build"], **built, "settings": settings})
                workers.append(worker)
        take_turns(entries, workers, failed, n_queries, block, say)
        if batch_threads > 1:
            measure_throughput(entries, workers, n_queries, batch_threads)
        entries = [entry for entry in entries if "error" not in entry]
    for entry in entries:
        for setting in entry["settings"]:
            micros, batch = np.array(setting.pop("micros")), setting.pop("batch")
            setting["median_us"], setting["p99_us"] = float(np.median(micros)), float(np.percentile(micros, 99))
            setting["batch_us"] = float(np.median(batch)) if batch else None
    return {"entries": entries, "failed": failed}


def take_turns(
    entries: list[dict[str, Any]],
    workers: list[Worker],
    failed: list[dict[str, Any]],
    n_queries: int,
    block: int,
    say: Callable[[str], object],
) -> None:
    """Send every block of queries round all settings; each block starts with another one."""
    by_entry = [[(e, w, setting) for setting in e["settings"]] for e, w in zip(entries, workers, strict=True)]
    turns = [turn for row in zip_longest(*by_entry) for turn in row if turn is not None]
    blocks = [(first, min(first + block, n_queries)) for first in range(0, n_queries, block)]
    say(f"timing {len(turns)} settings of {len(entries)} indexes on {n_queries:,} queries")
    for number, (first, last) in enumerate(blocks):
        start = number * len(turns) // len(blocks)
        for entry, worker, setting in turns[start:] + turns[:start]:
            if "error" in entry:
                continue
            try:
                span = {"knobs": setting["knobs"], "first": first, "last": last}
                answer = worker.ask("time", warm=min(10, last - first), rows=True, **span)
                batch = worker.ask("batch", threads=1, **span)
            except WorkerError as error:
                entry["error"] = str(error)
                failed.append({"system": entry["system"], "build": entry["build"], "error": str(error)})
                say(str(error))
                continue
            setting["micros"] += answer["micros"]
            setting["rows"] += answer["rows"]
            setting["batch"] += [] if batch is None else [batch]


def measure_throughput(
    entries: list[dict[str, Any]], workers: list[Worker], n_queries: int, threads: int, repeats: int = 3
) -> None:
    """Queries per second of one call of ours for all queries, on one thread and on several: medians, in turns."""
    for entry, worker in zip(entries, workers, strict=True):
        for setting in entry["settings"] if entry["system"] in OURS and "error" not in entry else ():
            span = {"knobs": setting["knobs"], "first": 0, "last": n_queries}
            micros = [[worker.ask("batch", threads=n, **span) for n in (1, threads)] for _ in range(repeats)]
            one, several = 1e6 / np.median(np.array(micros), axis=0)
            setting["queries_per_s"] = {"1": float(one), str(threads): float(several)}


def write_vectors(folder: Path, documents: csr_array, queries: csr_array, sample: csr_array) -> None:
    """Write the folder that the adapters read."""
    for name, vectors in (("documents", documents), ("queries", queries), ("sample", sample)):
        dtypes = {"indptr": np.int64, "indices": np.int32, "data": np.float32}
        for part, dtype in dtypes.items():
            np.save(folder / f"{name}_{part}.npy", getattr(vectors, part).astype(dtype, copy=False), allow_pickle=False)
    facts = {"documents": documents.shape[0], "queries": queries.shape[0], "vocabulary_size": documents.shape[1]}
    (folder / "facts.json").write_text(json.dumps(facts))


class Truth:
    """Exact scores in double precision, computed without the index: what recall is measured against."""

    def __init__(self, documents: csr_array, queries: csr_array, k: int) -> None:
        self.documents, self.queries, self.k = documents, queries, k
        by_term = documents.tocsc()
        self.least = np.zeros(queries.shape[0])  # the k-th best score, or 0 where fewer documents match
        self.wanted = np.zeros(queries.shape[0], dtype=np.int64)
        for query, (a, b) in enumerate(zip(queries.indptr[:-1], queries.indptr[1:], strict=True)):
            scores = by_term[:, queries.indices[a:b]] @ queries.data[a:b].astype(np.float64)
            best = np.partition(scores, len(scores) - k)[-k:]
            self.least[query] = best.min() * (1 - TIE)
            self.wanted[query] = np.count_nonzero(best > 0)

    def recall(self, rows: Sequence[Sequence[int]]) -> float:
        """Mean share of the hits of exact search that ``rows`` has, or ties of them; queries without hits left out."""
        found = [(query, row) for query, hits in enumerate(rows) for row in dict.fromkeys(hits[: self.k])]
        pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
        scores = np.concatenate([self._scores(part) for part in np.array_split(pairs, 1 + len(pairs) // 20_000)])
        right = pairs[(scores >= self.least[pairs[:, 0]]) & (scores > 0), 0]
        counts = np.bincount(right, minlength=len(self.wanted))
        judged = self.wanted > 0
        return float(np.mean(np.minimum(counts, self.wanted)[judged] / self.wanted[judged])) if judged.any() else 1.0

    def _scores(self, pairs: Array) -> Array:
        products = self.queries[pairs[:, 0]].astype(np.float64).multiply(self.documents[pairs[:, 1]])
        return np.asarray(products.sum(axis=1)).ravel()


def machine() -> dict[str, Any]:
    """What a reader has to know to judge a time."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        cpu = ""
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lsr": lsr.__version__,
    }


def shown(options: Mapping[str, Any]) -> str:
    """Options for people: ``a=1 b=2``."""
    return " ".join(f"{name}={value}" for name, value in options.items()) or "(defaults)"
