"""Dense models by brute force, and ensembles of rankings."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from lsr.cli import main
from lsr.corpus import Corpus
from lsr.errors import InputError
from lsr.eval.cache import Cache
from lsr.eval.datasets import Dataset
from lsr.eval.ensemble import dense_model, evaluate_dense, fuse, search_dense
from lsr.records import Document, Query
from lsr.run import Ranking, Run


def run_of(**rankings: dict[str, float]) -> Run:
    return Run({q: Ranking(list(r), np.array(list(r.values()), dtype=np.float32)) for q, r in rankings.items()})


def test_scores_are_normalized_and_added_by_hand() -> None:
    bm25 = run_of(q={"a": 30.0, "b": 20.0, "c": 10.0})
    dense = run_of(q={"c": 0.9, "a": 0.7, "d": 0.4})
    found = fuse([bm25, dense])["q"]
    assert found.doc_ids == ["a", "c", "b", "d"]
    np.testing.assert_allclose(found.scores, [1 + 0.3 / 0.5, 1, 0.5, 0], atol=1e-4)
    raw = fuse([bm25, dense], normalize=False)["q"]
    assert raw.doc_ids == ["a", "b", "c", "d"]
    np.testing.assert_allclose(raw.scores, [30.7, 20, 10.9, 0.4], rtol=1e-6)


def test_depth_cuts_each_list_and_missing_lists_count_nothing() -> None:
    long = run_of(q={f"d{i}": 10.0 - i for i in range(6)}, only={"x": 1.0})
    assert fuse([long], depth=2)["q"].doc_ids == ["d0", "d1"]
    both = fuse([long, run_of(q={"d5": 2.0, "d4": 1.0})], depth=3)
    assert set(both["q"].doc_ids) == {"d0", "d1", "d2", "d4", "d5"}
    assert both["only"].doc_ids == ["x"]
    assert fuse([run_of(q={})])["q"].doc_ids == []


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=20, unique=True))
def test_one_member_keeps_its_order(scores: list[float]) -> None:
    ranked = dict(zip((f"d{i}" for i in range(len(scores))), sorted(scores, reverse=True), strict=True))
    assert fuse([run_of(q=ranked)], normalize=False)["q"].doc_ids == list(ranked)
    normalized = fuse([run_of(q=ranked)])["q"]
    assert float(normalized.scores[0]) <= 1
    assert float(normalized.scores[-1]) == 0


def test_brute_force_is_the_sorted_product() -> None:
    rng = np.random.default_rng(0)
    documents, queries = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    ids = [f"d{i}" for i in range(30)]
    for ranking, query in zip(search_dense(documents, ids, queries, 5), queries, strict=True):
        twin = sorted(range(30), key=lambda i: -float(documents[i] @ query))[:5]
        assert ranking.doc_ids == [ids[i] for i in twin]
    ties = search_dense(np.ones((3, 2), dtype=np.float32), ["z", "m", "a"], np.ones((1, 2), dtype=np.float32), 2)
    assert ties[0].doc_ids == ["z", "m"]


DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture
def pets() -> Dataset:
    queries = [Query("q1", TEXTS[0]), Query("q2", TEXTS[3])]
    return Dataset("pets", Corpus("pets", lambda: iter(DOCUMENTS)), queries, {"q1": {"d0": 1}, "q2": {"d3": 1}})


def test_a_dense_model_finds_the_text_itself(pets: Dataset, checkpoint: Path, tmp_path: Path) -> None:
    model = dense_model(f"dense-mean-cosine:{checkpoint}", "cpu")
    report, run, _ = evaluate_dense(model, pets, k=3, metrics=["mrr@3"])
    assert report.metrics["mrr@3"] == 1.0
    assert (report.mode, report.document_nnz, report.flops) == ("dense", 16, 16)
    assert run["q1"].scores[0] == pytest.approx(1.0, abs=1e-5)
    cache, made = Cache(tmp_path / "cache"), []
    for _ in range(2):
        vectors = cache.dense(pets.corpus, model.identity, lambda: made.append(1) or model.encode(TEXTS))
    assert made == [1]
    again, _, _ = evaluate_dense(model, pets, k=3, metrics=["mrr@3"], documents=vectors)
    assert again.metrics == report.metrics
    with pytest.raises(InputError, match="but pets has 6 documents"):
        evaluate_dense(model, pets, k=3, metrics=["mrr@3"], documents=vectors[:2])


def test_ensembles_are_models_of_the_command(tmp_path: Path, checkpoint: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("LSR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pets"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": d.id, "text": d.text} for d in DOCUMENTS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "cat on a mat"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\n")
    dense = f"dense-mean:{checkpoint}"
    models = ["bm25", dense, f"bm25 + {dense}", f"raw: bm25 + {dense}"]
    arguments = [part for model in models for part in ("--model", model)]
    assert main(["evaluate", *arguments, "--dataset", str(folder), "--exact", "--json", "-", "--per-query"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["model"] for r in results[::2]] == ["bm25", f"bm25 + dense-mean:{checkpoint.name}"]
    assert [r["mode"] for r in results] == ["exact", "dense", "ensemble", "ensemble"]
    assert results[2]["flops"] == pytest.approx(results[0]["flops"] + results[1]["flops"])
    assert results[2]["metrics"]["mrr@10"] == 1.0
    assert main(["evaluate", "--model", "bm25 + bm25", "--dataset", str(folder), "--vectors", "v"]) == 1
    assert "leave them out with an ensemble" in capsys.readouterr().err


def test_evaluating_bm25_loads_no_torch() -> None:
    code = "import sys, lsr.eval.harness, lsr.eval.reproduce; print('torch' in sys.modules, 'ranx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
