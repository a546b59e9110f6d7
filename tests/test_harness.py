"""Several models on several collections: tables, means, comparisons, run files, the command."""

import json
from pathlib import Path

import pytest
from conftest import TEXTS

import lsr
from lsr.cli import main
from lsr.eval.cache import Cache
from lsr.eval.datasets import Collection, find_collections
from lsr.eval.harness import Harness, compare_models, comparison_table, table
from lsr.eval.report import markdown_table, number


def write_collection(folder: Path, queries: dict[str, str], qrels: dict[str, str], texts: list[str] = TEXTS) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in corpus))
    lines = [json.dumps({"_id": q, "text": text}) + "\n" for q, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(lines))
    rows = [f"{q}\t{d}\t1\n" for q, d in qrels.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "pets", {"q1": "cat on a mat", "q2": "dogs"}, {"q1": "d0", "q2": "d5"})


@pytest.fixture
def rivers(tmp_path: Path) -> Path:
    return write_collection(
        tmp_path / "rivers",
        {"q1": "fish in a river", "q2": "money", "q3": "sparse"},
        {"q1": "d3", "q2": "d3", "q3": "d4"},
    )


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_collections_over_the_same_documents_are_encoded_once(pets: Path, rivers: Path, tmp_path: Path) -> None:
    """By content, across collections and harnesses; and without a cache across those of one corpus."""
    calls = []

    class Counting(Cache):
        def retriever(self, corpus, *rest, **more):
            calls.append(corpus)
            return super().retriever(corpus, *rest, **more)

    cache = Counting(tmp_path / "counted")
    harness = Harness(find_collections([str(pets), str(rivers)]), cache)
    list(harness.evaluate("bm25", lsr.Bm25()))
    assert len(calls) == 2
    assert len(list((cache.folder / "indexes").glob("*/manifest.json"))) == 1


def test_the_table_has_means_and_gaps(pets: Path, rivers: Path) -> None:
    collections = [
        Collection("pets", str(pets), ("ndcg@10", "recall@100")),
        Collection("rivers", str(rivers), ("mrr@10",)),
    ]
    evaluations = list(Harness(collections).evaluate("bm25", lsr.Bm25(), exact=True))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(evaluations).splitlines()]
    assert lines[0] == [
        "collection", "ndcg@10", "recall@100", "mrr@10", "d nnz", "q nnz", "FLOPS", "ms/query", "index MB",
    ]  # fmt: skip
    assert [line[0] for line in lines[2:]] == ["pets", "rivers", "mean (2)"]
    assert lines[2][3] == lines[3][1] == lines[4][1] == lines[4][3] == "–"
    assert float(lines[4][6]) == pytest.approx((float(lines[2][6]) + float(lines[3][6])) / 2, abs=1e-3)


def test_a_group_has_its_mean_among_others(pets: Path, rivers: Path, tmp_path: Path) -> None:
    third = write_collection(tmp_path / "third", {"q1": "boat"}, {"q1": "d3"})
    metrics = ("ndcg@10",)
    collections = [
        Collection("beir:a", str(pets), metrics, 100, "beir"),
        Collection("beir:b", str(rivers), metrics, 100, "beir"),
        Collection("third", str(third), metrics),
    ]
    evaluations = list(Harness(collections).evaluate("bm25", lsr.Bm25()))
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table(evaluations).splitlines()[2:]}
    a, b, c = (float(rows[name]) for name in ("beir:a", "beir:b", "third"))
    assert float(rows["mean of beir (2)"]) == pytest.approx((a + b) / 2, abs=1e-4)
    assert float(rows["mean (3)"]) == pytest.approx((a + b + c) / 3, abs=1e-4)


def test_models_are_compared_with_the_first(pets: Path, rivers: Path) -> None:
    harness = Harness(find_collections([str(pets), str(rivers)]))
    results = {
        name: list(harness.evaluate(name, encoder))
        for name, encoder in (("flat", lsr.Bm25(k1=0)), ("bm25", lsr.Bm25()), ("same", lsr.Bm25(k1=0)))
    }
    found = compare_models(results)
    assert [(c.system, c.on) for c in found] == [
        (system, on) for system in ("bm25", "same") for on in ("pets", "rivers", "all 2")
    ]
    same = [c for c in found if c.system == "same"]
    assert all(c.difference == (0, 0, 0) and c.p_holm == 1 and c.ties == c.n_queries for c in same)
    assert "95 % interval" in comparison_table(found)
    assert compare_models({"bm25": results["bm25"]}) == []


def test_evaluate_several_models_on_several_collections(pets, rivers, checkpoint, tmp_path, capsys, cache_folder):
    arguments = (
        "evaluate",
        "--model",
        "bm25",
        "--model",
        checkpoint,
        "--dataset",
        pets,
        "--dataset",
        rivers,
        "--exact",
    )
    code, out, err = run(
        capsys, *arguments, "--json", tmp_path / "r.json", "--per-query", "--save-runs", tmp_path / "runs"
    )
    assert code == 0, err
    assert out.count("| mean (2)") == 2
    assert "| all 2 " in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert [(r["model"], r["collection"]) for r in written["results"]] == [
        (model, name) for model in ("bm25", checkpoint.name) for name in ("pets", "rivers")
    ]
    first = written["results"][0]
    assert set(first["per_query"]["ndcg@10"]) == {"q1", "q2"}
    assert first["intervals"]["ndcg@10"][0] <= first["metrics"]["ndcg@10"] <= first["intervals"]["ndcg@10"][1]
    assert len(written["comparisons"]) == 3
    assert len(list((tmp_path / "runs").glob("*.run"))) == 4
    assert len(list((cache_folder / "vectors").glob("*/encoding.json"))) == 1
    before = {p: p.stat().st_mtime_ns for p in cache_folder.rglob("*.npz")}
    code, again, _ = run(capsys, *arguments, "--json", "-")
    assert [r["metrics"] for r in json.loads(again)["results"]] == [r["metrics"] for r in written["results"]]
    assert {p: p.stat().st_mtime_ns for p in cache_folder.rglob("*.npz")} == before


def test_no_cache_keeps_nothing(pets, capsys, cache_folder, tmp_path):
    assert run(capsys, "evaluate", "--model", "bm25", "--dataset", pets, "--no-cache")[0] == 0
    assert not cache_folder.exists()
    assert run(capsys, "evaluate", "--model", "bm25", "--dataset", pets, "--cache", tmp_path / "mine")[0] == 0
    assert not cache_folder.exists()
    assert (tmp_path / "mine" / "CACHEDIR.TAG").is_file()
    code, _, err = run(capsys, "evaluate", "--model", "bm25", "--dataset", pets, "--cache", "x", "--no-cache")
    assert (code, err.count("\n")) == (1, 1)
    assert "--cache goes with neither --no-cache nor --vectors" in err


def test_compare_run_files(pets, tmp_path, capsys):
    for name, model in (("a", "bm25"), ("b", "bm25")):
        arguments = ("evaluate", "--model", model, "--dataset", pets, "--save-run", tmp_path / f"{name}.run")
        assert run(capsys, *arguments)[0] == 0
    worse = (tmp_path / "b.run").read_text().splitlines(keepends=True)
    (tmp_path / "b.run").write_text("".join(line for line in worse if not line.startswith("q2")))
    runs = (tmp_path / "a.run", tmp_path / "b.run")
    code, out, _ = run(capsys, "compare", *runs, "--dataset", pets, "--metric", "mrr@10", "--json", "-")
    assert code == 0
    (comparison,) = json.loads(out)["comparisons"]
    assert (comparison["wins"], comparison["losses"], comparison["ties"]) == (0, 1, 1)
    assert comparison["difference"]["mean"] == -0.5
    code, out, _ = run(capsys, "compare", *runs, "--dataset", pets)
    assert out.count("b.run") == 4, "the four default metrics"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "a.run", "--dataset", "d"], "compare takes two run files or more"),
        (["compare", "a.run", "a.run", "--dataset", "d"], "all different"),
        (["compare", "a.run", "b.run", "--dataset", "d", "--dataset", "e"], "a run file is of one collection"),
        (["compare", "a.run", "b.run", "--dataset", "beir:none"], "beir has no 'none'"),
        (["evaluate", "--model", "bm25", "--model", "x", "--dataset", "d", "--save-run", "r"], "--save-runs and"),
        (["evaluate", "--model", "bm25", "--dataset", "d", "--n-postings", "3"], "built with --seismic"),
        (["evaluate", "--model", "bm25", "--dataset", "msmarco:dev", "-k", "9", "--metric", "map@1000"], "lists of 9"),
        (["evaluate", "--model", "dense:x", "--dataset", "d", "--dtype", "float16"], "--dtype is of sparse encoders"),
        (["evaluate", "--model", "bm25", "--dataset", "d", "--dataset", "e", "--expansions", "x"], "of one collection"),
        (["evaluate", "--model", "bm25", "--dataset", "d", "--split", "x", "--expansions", "e"], "e is missing"),
        (["judge", "--model", "bm25", "--dataset", "d", "--scale", "0"], "the scale must be an integer of at least 1"),
    ],
)
def test_bad_options_are_one_sentence(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_numbers_and_tables() -> None:
    assert [number(v) for v in (None, 0.12345, 12.345, 1234.5, 0.0)] == ["–", "0.1235", "12.35", "1,234", "0.0000"]
    assert markdown_table(["name", "x"], [["a", "1.5"], ["bcd", "–"]]) == (
        "| name |   x |\n|------|----:|\n| a    | 1.5 |\n| bcd  |   – |"
    )
    assert markdown_table(["only"], []) == "| only |\n|------|"


@pytest.mark.parametrize(
    ("search", "plan_queries"),
    [({"exact": True}, 0), ({"candidates": 5}, 0), ({"recall": 0.9}, 100), ({}, 100), ({"exact": False}, 100)],
)
def test_an_index_has_a_plan_where_a_search_asks_for_one(pets: Path, search, plan_queries) -> None:
    harness = Harness(find_collections([str(pets)]))
    (evaluation,) = harness.evaluate("bm25", lsr.Bm25(), **search)
    (retriever,) = harness._last.values()
    assert retriever.index.manifest.options.plan_queries == plan_queries
    assert evaluation.report.metrics["ndcg@10"] == 1.0


def test_repeated_queries_are_refused_or_skipped(pets: Path, capsys) -> None:
    with (pets / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q1", "text": "money"}\n')
    command = ("evaluate", "--model", "bm25", "--dataset", pets, "--exact", "--metric", "ndcg@10", "--json", "-")
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "queries.jsonl: the query id 'q1' is used twice: ids must be unique" in err
    code, out, err = run(capsys, *command, "--skip-repeats")
    assert code == 0
    assert "queries.jsonl were left out: their ids were used before" in err
    assert json.loads(out)["results"][0]["metrics"] == {"ndcg@10": 1.0}
