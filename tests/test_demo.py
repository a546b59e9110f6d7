"""The demo's corpus and its known-item search, on the Python that runs the tests."""

import pytest

import lsr
from lsr.cli import main
from lsr.demo import known_items, run_demo
from lsr.python_docs import python_docs


@pytest.fixture(scope="module")
def documents() -> list[lsr.Document]:
    return list(python_docs())


def test_the_standard_library_gives_thousands_of_documents(documents):
    by_id = {document.id: document for document in documents}
    assert len(documents) > 5_000
    assert {"str.split", "math.cos", "json.dumps", "csv", "os.makedirs"} <= set(by_id)
    assert "cosine" in by_id["math.cos"].text
    assert all(document.text.strip() for document in documents)


def test_known_items_hide_the_summary_line(documents):
    items = known_items(documents, n=50, seed=1)
    corpus = {document.id: document for document in items.corpus}
    assert len(corpus) == len(documents)
    assert len(items.queries) == 50
    whole = {document.id: document.text for document in documents}
    for query in items.queries:
        (doc_id,) = items.qrels[query.id]
        assert whole[doc_id] == f"{query.text}\n\n{corpus[doc_id].text}"
    assert [q.id for q in known_items(documents, n=50, seed=1).queries] == [q.id for q in items.queries]


def test_the_demo_shows_hits_terms_metrics_and_sizes(monkeypatch, documents):
    monkeypatch.setattr("lsr.demo.python_docs", lambda: lsr.Corpus("documents", lambda: iter(documents)))
    lines: list[str] = []
    run_demo(lsr.Bm25(), "bm25", lines.append, progress=False)
    text = "\n".join(lines)
    assert "1. csv  [" in text
    assert "tempfile.TemporaryDirectory" in text
    assert "ndcg@10" in text
    assert "Index in memory: forward" in text


def test_the_demo_runs_a_benchmark(tmp_path, capsys):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a red fox"}\n{"_id": "2", "text": "a blue whale"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "whale"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("q\t2\t1\n")
    assert main(["demo", "--dataset", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "? whale" in out
    assert "ndcg@10      1.0000" in out
