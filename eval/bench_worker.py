"""The process in which one system is built and timed: started by `lsr.eval.bench`, spoken to in lines of JSON.

Run by its path (``python -P bench_worker.py …``), it needs numpy and the system alone, so another interpreter
than lsr's can run it. Standard output is the channel of answers: whatever a library prints goes to stderr.

    {"do": "build", "options": {…}, "folder": "…"}                       → seconds, bytes, resident growth
    {"do": "time", "knobs": {…}, "first": 0, "last": 50, "warm": 5, "rows": true}  → µs per query, and what it found
    {"do": "batch", "knobs": {…}, "first": 0, "last": 50, "threads": 1}  → µs per query of one call for all, or null
"""

import argparse
import gc
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

#: A core that another system has just kept busy is slower for some milliseconds: its caches, and its clock after much
#: arithmetic over vectors.
WARM_S = 0.01


class System(Protocol):
    """What an adapter of `lsr.eval.peers` and `lsr.eval.peers_text` offers.

    Made with (folder of the data, k, threads of the build), which reads the data and brings documents and queries
    to the library's own types: that is translation, and not timed.
    """

    def compile(self, options: dict[str, Any]) -> None:
        """Build something small, where the library compiles while it runs; not timed."""

    def build(self, options: dict[str, Any]) -> None:
        """Build the index in memory; timed."""

    def release(self) -> None:
        """Let go of the documents: the index stands."""

    def save(self, path: Path) -> None:
        """Write the index below ``path``, an empty folder."""

    def open(self, path: Path, options: dict[str, Any]) -> None:
        """Go on with the saved index instead of the built one."""

    def searcher(self, knobs: dict[str, Any]) -> Callable[[int], Any]:
        """The call that is timed: number of a query → the library's own result."""

    def batch(self, knobs: dict[str, Any], first: int, last: int, threads: int) -> Callable[[], Any] | None:
        """One call for the queries first … last - 1 on so many threads, None where the library has none."""

    def rows(self, result: Any) -> list[int]:
        """The documents of a searcher's result, best first."""


def main() -> None:
    """Answer requests until the channel closes."""
    parser = argparse.ArgumentParser()
    for name in ("adapters", "system", "data"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("k", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--core", type=int)
    arguments = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cores = allowed_cores()
    place = cores if arguments.core is None else [arguments.core, *(c for c in cores if c != arguments.core)]
    run_on(place[: arguments.threads])
    system: System = load(Path(arguments.adapters)).SYSTEMS[arguments.system](
        Path(arguments.data), arguments.k, arguments.threads
    )
    for line in sys.stdin:
        request = json.loads(line)
        match request.pop("do"):
            case "build":
                answer: Any = build(system, **request)
                run_on(place[:1])
            case "time":
                answer = measure(system, **request)
            case "batch":
                run_on(place[: request["threads"]])
                answer = measure_batch(system, **request)
                run_on(place[:1])
            case other:
                raise ValueError(f"no request {other!r}")
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def load(path: Path) -> ModuleType:
    """The module at a path, without its folder on the search path, where a ``datasets.py`` would be in the way."""
    spec = importlib.util.spec_from_file_location(f"lsr_bench_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def build(system: System, options: dict[str, Any], folder: str) -> dict[str, float]:
    """Build, save and reopen; seconds of each, bytes on disk, and by how many bytes the build grew the process."""
    path = Path(folder)
    path.mkdir(parents=True)
    system.compile(options)
    gc.collect()
    before = reset_peak()
    start = time.perf_counter()
    system.build(options)
    built = time.perf_counter()
    grown = peak() - before
    system.save(path)
    saved = time.perf_counter()
    system.open(path, options)
    opened = time.perf_counter()
    system.release()
    return {
        "build_s": built - start,
        "save_s": saved - built,
        "open_s": opened - saved,
        "peak_bytes": grown,
        "disk_bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    }


def measure(
    system: System, knobs: dict[str, Any], first: int, last: int, warm: int, rows: bool
) -> dict[str, list[Any] | None]:
    """Time single queries, after ``warm`` of them, and `WARM_S` seconds, were answered without being timed."""
    call = system.searcher(knobs)
    begin, query = time.perf_counter(), first
    while query < first + warm or time.perf_counter() - begin < WARM_S:
        call(first + (query - first) % (last - first))
        query += 1
    clock = time.perf_counter_ns
    micros, results = [], []
    for query in range(first, last):
        start = clock()
        result = call(query)
        micros.append((clock() - start) / 1000)
        results.append(result)
    return {"micros": micros, "rows": [system.rows(result) for result in results] if rows else None}


def measure_batch(system: System, knobs: dict[str, Any], first: int, last: int, threads: int) -> float | None:
    """µs per query of one call for all of them, the second of two."""
    call = system.batch(knobs, first, last, threads)
    if call is None:
        return None
    call()
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start) / (last - first)


def allowed_cores() -> list[int]:
    """Cores this process may use, empty where the platform does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def run_on(cores: list[int]) -> None:
    """Keep all threads of this process on these cores (Linux)."""
    if not cores or not Path("/proc/self/task").is_dir():
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), set(cores))
        except ProcessLookupError:  # it has ended meanwhile
            continue


def reset_peak() -> int:
    """Start a new peak of resident memory where the kernel allows it; returns the bytes resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return _status("VmRSS")


def peak() -> int:
    """Bytes resident at most, since `reset_peak`."""
    most = _status("VmHWM")
    return most or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


if __name__ == "__main__":
    main()
