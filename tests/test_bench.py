"""The benchmark: recall, workers that fail, adapters, reports, recombined documents. No test asserts a time."""

import argparse
import json
import struct

import numpy as np
import pytest
from conftest import TEXTS, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

import lsr
from lsr import cli_bench
from lsr.errors import FormatError, InputError
from lsr.eval import bench, bench_report, mixture, peers, peers_text
from lsr.eval.bench_text import run_text_benchmark, text_markdown
from lsr.eval.datasets import load_dataset
from lsr.eval.sweeps import SWEEPS, TEXT_SWEEPS


def vectors(n: int, seed: int, vocabulary: int = 60, density: float = 0.2) -> csr_array:
    made = random_array(
        (n, vocabulary), density=density, format="csr", dtype=np.float32, rng=np.random.default_rng(seed)
    )
    made.data[:] = np.round(made.data + 0.1, 1)  # few values, so that there are ties
    made.sort_indices()
    return csr_array(made)


# Recall


def plain_recall(documents, queries, k, rows) -> float:
    shares = []
    for query, found in zip(queries.toarray().astype(np.float64), rows, strict=True):
        scores = documents.toarray().astype(np.float64) @ query
        best = sorted(scores[scores > 0], reverse=True)[:k]
        if best:
            right = {row for row in found[:k] if scores[row] > 0 and scores[row] >= best[-1] * (1 - 1e-6)}
            shares.append(min(len(right), len(best)) / len(best))
    return float(np.mean(shares)) if shares else 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.data())
def test_recall_is_the_share_of_right_hits(seed, k, data):
    documents, queries = vectors(12, seed, 10), vectors(4, seed + 1, 10, 0.1)
    rows = [data.draw(st.lists(st.integers(0, 11), max_size=9)) for _ in range(4)]
    truth = bench.Truth(documents, queries, k)
    assert truth.recall(rows) == pytest.approx(plain_recall(documents, queries, k, rows))


def test_a_tie_of_the_last_hit_is_right_and_a_repeated_row_counts_once():
    documents = csr_array(np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32))
    truth = bench.Truth(documents, csr_array(np.array([[2, 0]], dtype=np.float32)), 2)
    assert truth.recall([[0, 1]]) == truth.recall([[2, 1]]) == 1
    assert truth.recall([[0, 0]]) == truth.recall([[0, 3]]) == 0.5
    assert truth.recall([[]]) == 0


# Workers

ADAPTERS = """
import os, sys
class Fine:
    def __init__(self, folder, k, threads): self.k = k
    def compile(self, options): print("a library that prints")
    def build(self, options):
        if options.get("dies"): os._exit(3)
        if options.get("raises"): raise ValueError("no such option")
    def release(self): pass
    def save(self, path): (path / "index").write_bytes(b"12345")
    def open(self, path, options): pass
    def searcher(self, knobs):
        if knobs.get("dies"): os.abort()
        return lambda i: [i, i + 1]
    def batch(self, knobs, first, last, threads): return None
    def rows(self, result): return result
SYSTEMS = {"fine": Fine}
"""


def test_a_worker_that_dies_costs_only_its_own_figures(tmp_path):
    (tmp_path / "adapters.py").write_text(ADAPTERS)
    entries = [
        {"build": {"dies": 1}, "search": [{}]},
        {"build": {"raises": 1}, "search": [{}]},
        {"build": {}, "search": [{}, {"dies": 1}]},
        {"build": {"n": 4}, "search": [{}, {"cut": 1}]},
    ]
    said: list[str] = []
    found = bench.measure(
        {"fine": entries}, tmp_path, 5,
        k=2, block=2, threads=1, core=None, python=bench.sys.executable, adapters=tmp_path / "adapters.py",
        say=said.append,
    )  # fmt: skip
    assert [fail["build"] for fail in found["failed"]] == [{"dies": 1}, {"raises": 1}, {}]
    assert "ended with code 3" in found["failed"][0]["error"]
    assert "ValueError: no such option" in found["failed"][1]["error"]
    (entry,) = found["entries"]
    assert entry["build"] == {"n": 4}
    assert entry["disk_bytes"] == 5
    for setting in entry["settings"]:
        assert sorted(setting["rows"]) == [[i, i + 1] for i in range(5)]
        assert setting["median_us"] > 0
        assert setting["batch_us"] is None
    assert any("ended with code 3" in line for line in said)


def test_a_worker_that_is_too_slow_is_ended(tmp_path):
    (tmp_path / "adapters.py").write_text(
        ADAPTERS.replace("(self, folder, k, threads): self.k = k", "(self, *_): import time; time.sleep(60)")
    )
    options = {"adapters": tmp_path / "adapters.py", "python": bench.sys.executable, "threads": 1, "core": None}
    worker = bench.Worker("fine", tmp_path, 2, **options)
    try:
        with pytest.raises(bench.WorkerError, match=r"took more than 0\.5|took more than 0 s"):
            worker.ask("build", 0.5, options={}, folder=str(tmp_path / "x"))
    finally:
        worker.close()


def test_an_interpreter_that_does_not_run_is_named():
    with pytest.raises(InputError, match="does not run as a Python interpreter"):
        bench.installed(["scipy"], "/nowhere/python")
    assert bench.installed(["scipy", "no-such-distribution"])["scipy"]
    assert bench.installed(["no-such-distribution"]) == {"no-such-distribution": None}


# Systems


def test_every_system_has_an_adapter_and_settings():
    assert SWEEPS.keys() == peers.SYSTEMS.keys()
    assert TEXT_SWEEPS.keys() == peers_text.SYSTEMS.keys()
    assert json.loads(json.dumps(SWEEPS)) == SWEEPS


#: The most careful setting of each, and the recall that it has to reach on few documents.
CAREFUL = {
    "lsr": ({}, {"exact": True}, 1.0),
    "scipy": ({"layout": "csr"}, {}, 1.0),
    "splade-index": ({}, {}, 1.0),
    "pyvsag": ({"doc_prune_ratio": 0.0, "use_reorder": True, "use_quantization": True}, {"n_candidate": 200}, 1.0),
    "kannolo": ({"m": 16, "ef_construction": 100}, {"ef_search": 300}, 0.95),
    "pyseismic-lsr": (
        {"n_postings": 3000, "centroid_fraction": 0.2, "summary_energy": 1.0, "max_fraction": 6.0},
        {"query_cut": 60, "heap_factor": 0.5},
        0.95,
    ),
    "bmp": ({"bsize": 8, "compress_range": True}, {"alpha": 1.0, "beta": 1.0}, 0.9),
}


def test_every_installed_system_finds_what_exact_search_finds():
    there = bench.installed([name for name in CAREFUL if name != "lsr"])
    run = {
        name: [{"build": build, "search": [knobs]}]
        for name, (build, knobs, _) in CAREFUL.items()
        if name == "lsr" or there[name]
    }
    results = bench.run_benchmark(vectors(300, 1), vectors(12, 2), run, block=6, k=5, batch_threads=2)
    assert results["failed"] == []
    for entry in results["entries"]:
        (setting,) = entry["settings"]
        assert setting["recall"] >= CAREFUL[entry["system"]][2], entry["system"]
        assert entry["disk_bytes"] > 0
        assert setting["batch_us"] is None or setting["batch_us"] > 0
    ours = next(entry for entry in results["entries"] if entry["system"] == "lsr")
    assert ours["settings"][0]["queries_per_s"].keys() == {"1", "2"}
    assert {"lsr", "scipy"} <= {entry["system"] for entry in results["entries"]}


def test_an_option_that_would_be_ignored_fails_its_entry_alone():
    wanted = [{"layout": "csx"}, {"layout": "csr", "more": 1}, {"layout": "csr"}]
    run = {"scipy": [{"build": build, "search": [{}]} for build in wanted]}
    results = bench.run_benchmark(vectors(50, 1), vectors(4, 2), run, k=5)
    assert [failed["build"] for failed in results["failed"]] == wanted[:2]
    assert "no such option here: more" in results["failed"][1]["error"]
    assert [entry["build"] for entry in results["entries"]] == wanted[2:]


def test_seismic_s_file_is_what_its_format_says(tmp_path):
    documents = vectors(20, 3, density=0.1)
    peers.write_seismic(tmp_path / "x.bin", documents.indptr.astype(np.int64), documents.indices, documents.data)
    plain = struct.pack("<I", 20)
    for a, b in zip(documents.indptr[:-1], documents.indptr[1:], strict=True):
        plain += struct.pack("<I", b - a) + documents.indices[a:b].astype("<u4").tobytes()
        plain += documents.data[a:b].astype("<f4").tobytes()
    assert (tmp_path / "x.bin").read_bytes() == plain


def test_nothing_to_measure_is_refused():
    with pytest.raises(InputError, match="nothing to measure"):
        bench.run_benchmark(vectors(5, 1), vectors(3, 1), {}, k=6)


# Reports


def results_of(*measured: tuple[str, dict, float, float]) -> dict:
    entries = [
        {
            **{"system": system, "build": {}, "build_s": 2.0, "save_s": 0.1, "open_s": 0.1, "peak_bytes": 4_000_000},
            "disk_bytes": 6_000_000,
            "settings": [{"knobs": knobs, "median_us": us, "p99_us": 2 * us, "batch_us": None, "recall": recall}],
        }
        for system, knobs, us, recall in measured
    ]
    collection = {"name": "c", "documents": 9, "document_terms": 3.0, "queries": 2, "query_terms": 2.0, "vocabulary": 5}
    machine = {"cpu": "a cpu", "python": "3"}
    return {"collection": collection, "k": 10, "build_threads": 1, "machine": machine, "entries": entries, "failed": []}


def test_the_table_takes_the_fastest_setting_that_reaches_a_recall():
    results = results_of(
        ("lsr", {"candidates": 10}, 10, 0.93), ("lsr", {"candidates": 50}, 30, 1.0), ("lsr", {"exact": True}, 60, 1.0),
        ("pyvsag", {"a": 1}, 20, 0.91), ("pyvsag", {"a": 2}, 40, 1.0), ("scipy", {}, 100, 1.0),
    )  # fmt: skip
    assert bench_report.best(results, 0.9).micros == 10
    assert bench_report.best(results, 0.95).micros == 30
    assert bench_report.best(results, 1.0, ["lsr"]).micros == 60, "exact is asked of us by name"
    assert bench_report.best(results, 1.0, ["pyvsag"]).micros == 40
    assert bench_report.best(results, 0.99, ["bmp"]) is None
    table = bench_report.markdown(results)
    assert "Ours against the best peer, pyvsag: 0.50 × its latency." in table
    assert "Ours against the best peer, pyvsag: 1.50 × its latency." in table
    cells = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert cells == {len(bench_report.COLUMNS) + 1}


def test_the_frontier_has_what_no_other_beats():
    assert bench_report.frontier([(0.9, 5), (0.95, 4), (1.0, 9), (0.8, 1), (0.85, 2), (0.7, 3)]) == [
        (0.8, 1), (0.85, 2), (0.95, 4), (1.0, 9),
    ]  # fmt: skip


def test_the_curves_of_one_system_are_those_of_its_knobs(tmp_path):
    knobs = [{"exact": True}, *({"query_mass": mass, "candidates": n} for mass in (0.7, 0.8) for n in (12, 20))]
    measured = [("lsr", named, 10.0 + i, 0.9 + i / 100) for i, named in enumerate(knobs)]
    results = results_of(*measured)
    lines = bench_report.curves(bench_report.points(results))
    assert {label: len(line) for label, line in lines.items()} == {
        "exact=True": 1, "query_mass=0.7, by candidates": 2, "query_mass=0.8, by candidates": 2,
    }  # fmt: skip
    assert lines["query_mass=0.8, by candidates"] == [(0.9 + 3 / 100, 13.0), (0.9 + 4 / 100, 14.0)]
    table = bench_report.markdown(results).splitlines()
    assert [line.split(" | ")[1] for line in table if line.startswith("| (defaults)")] == [
        "exact=True", *(f"query_mass={mass} candidates={n}" for mass in (0.7, 0.8) for n in (12, 20)),
    ]  # fmt: skip
    pytest.importorskip("matplotlib")
    bench_report.plot(results, tmp_path / "knobs.png")
    assert (tmp_path / "knobs.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_kept_as_json_and_drawn(tmp_path):
    results = results_of(("lsr", {"exact": True}, 10, 1.0), ("scipy", {}, 20, 1.0))
    bench_report.write_results(tmp_path / "r.json", results)
    assert bench_report.read_results(tmp_path / "r.json") == results
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(FormatError, match="holds no results"):
        bench_report.read_results(tmp_path / "x.json")
    pytest.importorskip("matplotlib")
    bench_report.plot(results, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


# Recombined documents


def test_recombined_documents_come_from_two_real_ones():
    real = vectors(50, 5, vocabulary=40)
    made = mixture.recombine(real, 130, seed=3)
    assert made.shape == (130, 40)
    assert (made[:50] != real).nnz == 0
    assert made.has_sorted_indices
    lsr.vectors.check_vectors(made)
    again = mixture.recombine(real, 130, seed=3)
    assert (made != again).nnz == 0
    assert (made != mixture.recombine(real, 130, seed=4)).nnz > 0
    dense = real.toarray()
    for row in made[50:].toarray():
        from_a = (dense == row) & (row > 0)
        explained = [(a | b).sum() for a in from_a for b in from_a]
        assert max(explained) == (row > 0).sum(), "each weight is that of one of two documents"


def test_recombining_keeps_the_lengths_of_lists_and_the_weights():
    real = vectors(400, 6, vocabulary=30, density=0.3)
    made = mixture.recombine(real, 400 * 21, seed=0)[400:]
    expected = 20 * np.bincount(real.indices, minlength=30)
    found = np.bincount(made.indices, minlength=30)
    assert np.abs(found / expected - 1).max() < 0.06
    assert made.data.mean() == pytest.approx(real.data.mean(), rel=0.01)


def test_the_check_finds_no_difference_between_equals_and_one_between_others():
    real, queries = vectors(300, 7), vectors(10, 8)
    same = mixture.check(real, real, queries)
    assert same["score_ks"] == 0
    assert same["list_length_ratio"] == [1, 1, 1]
    assert set(same["top_score_ratio"].values()) == {1.0}
    other = mixture.check(csr_array(real * 2), real, queries)
    assert other["score_ks"] > 0.2
    assert other["top_score_ratio"]["10"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("n", "options", "reason"),
    [(4, {}, "cannot be recombined"), (20, {"share": 1.0}, "share"), (20, {"reach": 0}, "reach")],
)
def test_what_cannot_be_recombined_is_refused(n, options, reason):
    with pytest.raises(InputError, match=reason):
        mixture.recombine(vectors(5, 1), n, **options)


# Text to hits


@pytest.mark.filterwarnings("ignore::lsr.errors.LsrWarning")
def test_text_to_hits_is_measured_with_its_quality(tmp_path):
    pytest.importorskip("ranx")
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{i}", "text": f"{text} {['cat', 'dog', 'fish'][i % 3]}"} for i, text in enumerate(TEXTS * 40)
    ]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    judged = "\n".join(f"q{i % 6}\td{i}\t1" for i in range(240))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")
    dataset = load_dataset(folder)
    encoder = lsr.load_encoder(write_checkpoint(tmp_path / "model"))
    encoded = encoder.encode_documents(list(dataset.corpus))
    run = {"lsr (inference-free)": TEXT_SWEEPS["lsr (inference-free)"], "lsr (BM25)": TEXT_SWEEPS["lsr (BM25)"]}
    if bench.installed(["bm25s"])["bm25s"]:
        ways = [{"tokenize": "function"}, {"tokenize": "class"}]
        run["bm25s"] = [{"build": {"backend": "numpy", "stemmer": "english"}, "search": ways}]
    results = run_text_benchmark(dataset, encoder, encoded, run, k=5)
    assert results["failed"] == []
    by_system = {entry["system"]: entry for entry in results["entries"]}
    assert by_system["lsr (BM25)"]["settings"][0]["ndcg@10"] > 0.4
    assert all(0 < s["ndcg@10"] <= 1 for entry in results["entries"] for s in entry["settings"])
    assert "lsr (inference-free)" in text_markdown(results)
    with pytest.raises(InputError, match="encode this corpus with this model"):
        run_text_benchmark(dataset, encoder, encoded[:10], run)


# The command


def save(path, made: csr_array, **more) -> str:
    np.savez(
        path, indptr=made.indptr, indices=made.indices.astype(np.uint16), data=made.data.astype(np.float16), **more
    )
    return str(path)


def command(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    cli_bench.add_commands(parser.add_subparsers())
    options = parser.parse_args(arguments)
    options.command(options)


def test_the_command_writes_json_table_and_curve(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    docs, asked = save(tmp_path / "d.npz", vectors(200, 1)), save(tmp_path / "q.npz", vectors(8, 2))
    sweep = {"lsr": [{"build": {"seismic": True}, "search": [{"exact": True}, {"candidates": 20}]}]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    arguments = ["--systems", "lsr,scipy", "--sweep", str(tmp_path / "sweep.json"), "--plot", str(tmp_path / "c.png")]
    arguments += ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md"), "--documents", "150"]
    command("bench", "--vectors", docs, "--queries", asked, *arguments)
    out = capsys.readouterr().out
    results = bench_report.read_results(tmp_path / "r.json")
    assert out == (tmp_path / "r.md").read_text() == bench_report.markdown(results)
    assert results["collection"]["documents"] == 150
    ours = next(entry for entry in results["entries"] if entry["system"] == "lsr")
    assert ours["build"] == {"seismic": True}
    assert ours["settings"][0]["recall"] == 1
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_the_sample_holds_no_query_that_is_asked(tmp_path, monkeypatch):
    def caught(documents, queries, sweeps, *, sample, **how):
        assert (queries != asked[:3]).nnz == (sample != asked[3:]).nnz == 0
        assert documents.shape[1] == queries.shape[1] == sample.shape[1]
        raise InputError("caught")

    monkeypatch.setattr(bench, "run_benchmark", caught)
    save(tmp_path / "d.npz", vectors(20, 1))
    save(tmp_path / "q.npz", vectors(8, 2))
    asked = cli_bench.same_width(*(cli_bench.load_vectors(str(tmp_path / f)) for f in ("q.npz", "d.npz")))[0]
    with pytest.raises(InputError, match="caught"):
        command("bench", "--vectors", f"{tmp_path}/d.npz", "--queries", f"{tmp_path}/q.npz", "--questions", "3")


def test_what_is_not_installed_is_said_and_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "installed", lambda names, python: dict.fromkeys(names) | {"scipy": "1"})
    docs, asked = save(tmp_path / "d.npz", vectors(100, 1)), save(tmp_path / "q.npz", vectors(4, 2))
    command("bench", "--vectors", docs, "--queries", asked)
    said = capsys.readouterr()
    assert "left out: pyseismic-lsr, pyvsag, kannolo, bmp, splade-index (pip install" in said.err
    assert "Not measured, because not installed: pyseismic-lsr" in said.out
    assert "| **lsr** |" in said.out


def test_the_mixture_command_writes_vectors_that_bench_reads(tmp_path, capsys):
    real = vectors(60, 1)
    docs, asked = save(tmp_path / "d.npz", real), save(tmp_path / "q.npz", vectors(8, 2))
    target = str(tmp_path / "m.npz")
    command(
        "mixture", docs, "--documents", "100", "--out", target, "--queries", asked, "--json", str(tmp_path / "c.json")
    )
    made = cli_bench.load_vectors(target)
    assert made.shape[0] == 100
    assert (made[:60] != cli_bench.load_vectors(docs)).nnz == 0
    assert json.loads((tmp_path / "c.json").read_text())["score_ks"] < 0.2
    assert "100 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give --vectors with --queries"),
        (["--vectors", "d.npz"], "goes with --queries"),
        (["--vectors", "none.npz", "--queries", "d.npz"], r"none\.npz does not exist"),
        (["--vectors", "text.npz", "--queries", "d.npz"], "is not an .npz"),
        (["--vectors", "d.npz", "--queries", "d.npz", "--systems", "seismic"], "there is no seismic: choose from"),
        (["--vectors", "d.npz", "--queries", "d.npz", "--sweep", "none.json"], "does not exist"),
        (["--vectors", "d.npz", "--queries", "d.npz", "--sweep", "bad.json"], "must map systems to lists"),
        (["--collection", "here"], "--model MODEL"),
        (["--text", "here", "--model", "bm25"], "not bm25"),
        (["--text", "here", "--model", "m", "--plot", "x.png"], "draws no curve"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    save("d.npz", vectors(20, 1))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "bad.json").write_text('{"lsr": [{"build": {}}]}')
    with pytest.raises((InputError, FormatError), match=reason):
        command("bench", *arguments)


def test_vectors_keep_their_shape(tmp_path):
    made = vectors(9, 1)
    assert cli_bench.load_vectors(save(tmp_path / "a.npz", made, shape=np.array((9, 99)))).shape == (9, 99)
    wide = cli_bench.same_width(made, vectors(3, 2, vocabulary=80))
    assert [part.shape for part in wide] == [(9, 80), (3, 80)]
