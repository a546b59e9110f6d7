"""The commands as people type them: output, JSON, exit codes, one-sentence errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import TEXTS

import lsr
from lsr.cli import build_parser, main


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


@pytest.fixture
def dataset(tmp_path, corpus):
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    corpus.rename(folder / "corpus.jsonl")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "fish in a river"}\n{"_id": "q2", "text": "zebra"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td3\t1\nq2\td0\t1\n")
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_index_then_search(tmp_path, corpus, capsys):
    code, out, _ = run(capsys, "index", corpus, "--model", "bm25", "--out", tmp_path / "x.index")
    assert code == 0
    assert "6 documents" in out
    code, out, _ = run(capsys, "search", tmp_path / "x.index", "a loan of money", "-k", 1, "--explain")
    assert code == 0
    assert "d2" in out
    assert "loan" in out
    code, out, _ = run(capsys, "search", tmp_path / "x.index", "a loan of money", "-k", 1, "--json", "-", "--explain")
    found = json.loads(out)
    assert [hit["id"] for hit in found["hits"]] == ["d2"]
    assert sum(term["contribution"] for term in found["hits"][0]["terms"]) == pytest.approx(found["hits"][0]["score"])


def test_index_refuses_to_overwrite(tmp_path, corpus, capsys):
    arguments = ("index", corpus, "--model", "bm25", "--out", tmp_path / "x.index")
    assert run(capsys, *arguments)[0] == 0
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "already exists" in err
    assert run(capsys, *arguments, "--overwrite")[0] == 0


def test_evaluate_prints_metrics_and_writes_json_and_run(tmp_path, dataset, capsys):
    target, run_file = tmp_path / "result.json", tmp_path / "x.run"
    code, out, err = run(
        capsys, "evaluate", "--model", "bm25", "--dataset", dataset, "--exact", "-k", 3, "--json", target,
        "--save-run", run_file, "--metric", "ndcg@3", "--metric", "recall@3",
    )  # fmt: skip
    assert code == 0
    assert "1 queries found nothing and count as zero" in out
    assert "1 of 2 queries have no term" in err
    result = json.loads(target.read_text())["results"][0]
    assert result["metrics"] == {"ndcg@3": 0.5, "recall@3": 0.5}
    assert (result["n_queries"], result["n_without_hits"], result["mode"]) == (2, 1, "exact")
    code, out, _ = run(
        capsys, "evaluate", "--run", run_file, "--dataset", dataset, "--metric", "ndcg@10", "--json", "-"
    )
    assert json.loads(out)["results"][0]["metrics"] == {"ndcg@10": 0.5}


def test_encode_then_index_uses_the_vectors(tmp_path, corpus, capsys):
    vectors = tmp_path / "vectors"
    assert run(capsys, "encode", corpus, "--model", "bm25", "--out", vectors)[0] == 0
    stamp = (vectors / "shard-00000.npz").stat().st_mtime_ns
    arguments = ("index", corpus, "--model", "bm25", "--vectors", vectors, "--out", tmp_path / "x.index")
    assert run(capsys, *arguments)[0] == 0
    assert (vectors / "shard-00000.npz").stat().st_mtime_ns == stamp


def test_idf_of_several_corpora_is_that_of_all_their_documents(tmp_path, checkpoint, capsys):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text('{"_id": "a", "text": "cat sat"}\n{"_id": "b", "text": "dog"}\n')
    second.write_text('{"_id": "a", "text": "cat ran"}\n')  # an id of its own
    assert run(capsys, "idf", first, second, "--model", checkpoint, "--out", tmp_path / "idf.json")[0] == 0
    encoder = lsr.load_encoder(checkpoint, device="cpu")
    expected = lsr.compute_idf(lsr.read_corpus(["cat sat", "dog", "cat ran"]), encoder)
    np.testing.assert_array_equal(lsr.read_idf(tmp_path / "idf.json", encoder), expected)


def test_idf_makes_queries_inference_free(tmp_path, corpus, checkpoint, capsys):
    assert run(capsys, "idf", corpus, "--model", checkpoint, "--out", tmp_path / "idf.json")[0] == 0
    arguments = ("index", corpus, "--model", checkpoint, "--idf", tmp_path / "idf.json", "--out", tmp_path / "x.index")
    assert run(capsys, *arguments)[0] == 0
    assert lsr.Retriever.open(tmp_path / "x.index").queries.kind == "lookup"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere.index", "a question"], "there is no index at nowhere.index"),
        (["index", "nowhere.jsonl", "--model", "bm25", "--out", "x.index"], "neither a file, nor a folder"),
        (["evaluate", "--dataset", "nowhere"], "give either --model MODEL or --run FILE"),
        (["evaluate", "--model", "bm25", "--dataset", "d", "--exact", "--query-cut", "3"], "--exact has no knobs"),
        (["index", "c.jsonl", "--model", "bm25", "--out", "no/where/x.index"], "does not exist: create it"),
        (
            ["index", "c.jsonl", "--model", "./nowhere", "--out", "x.index"],
            "the encoder folder ./nowhere does not exist",
        ),
        (
            ["index", "c.jsonl", "--model", "bm25", "--n-postings", "3", "--out", "x"],
            "tune the blocks of an index built with --seismic",
        ),
        (["evaluate", "--model", "bm25", "--dataset", "a", "--dataset", "b", "--save-run", "x"], "one --dataset at a"),
        (["index", "c.jsonl", "--model", "bm25", "--idf", "idf.json", "--out", "x.index"], "not with bm25"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.jsonl").write_text('{"_id": "1", "text": "a cat"}')
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert message in err
    assert err.startswith("lsr: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "no/where.json"], "does not exist: create it"),
        (["--save-run", "."], "is a folder: name a file"),
        (["--metric", "fun@10"], "unknown metric 'fun@10'"),
        (["-k", "5", "--metric", "recall@100"], "recall@100 cannot be measured on lists of 5 documents"),
        (["--candidates", "0"], "candidates must be an integer of at least 1"),
        (["--query-cut", "3"], "search the blocks of an index built with --seismic: add that"),
        (["--threads", "0"], "threads must be an integer of at least 1"),
        (["--device", "cuda"], "bm25 takes no lengths, revision, device or dtype"),
    ],
)
def test_bad_options_are_refused_before_the_work(dataset, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("lsr.retriever.encode_corpus", lambda *_, **__: pytest.fail("the work was begun"))
    code, _, err = run(capsys, "evaluate", "--model", "bm25", "--dataset", dataset, *arguments)
    assert code == 1
    assert message in err


def test_blocks_with_a_graph_are_built_and_searched(tmp_path, corpus, capsys):
    target = tmp_path / "x.index"
    assert run(capsys, "index", corpus, "--model", "bm25", "--seismic", "--graph", 1, "--out", target)[0] == 0
    for knobs in (["--query-cut", "2"], ["--query-cut", "0.9", "--neighbours", "1"], ["--neighbours", "0"]):
        code, out, _ = run(capsys, "search", target, "cat", *knobs, "--json", "-")
        assert code == 0
        assert json.loads(out)["hits"] if isinstance(json.loads(out), dict) else json.loads(out)
    code, _, err = run(capsys, "index", corpus, "--model", "bm25", "--graph", 1, "--out", tmp_path / "y.index")
    assert (code, err) == (
        1,
        "lsr: --graph tune the blocks of an index built with --seismic: add that, or leave them out\n",
    )


def test_the_planner_takes_a_sample_of_questions(tmp_path, corpus, capsys):
    (tmp_path / "sample.jsonl").write_text('{"_id": "1", "text": "cat"}\n')
    given = ["--model", "bm25", "--sample", tmp_path / "sample.jsonl"]
    assert run(capsys, "index", corpus, *given, "--out", tmp_path / "x.index")[0] == 0
    (tmp_path / "sample.jsonl").write_text("")
    code, _, err = run(capsys, "index", corpus, *given, "--out", tmp_path / "y.index")
    assert code == 1
    assert "sample" in err


def test_default_metrics_fit_the_depth(dataset, capsys):
    _, out, _ = run(capsys, "evaluate", "--model", "bm25", "--dataset", dataset, "-k", 10, "--json", "-")
    assert set(json.loads(out)["results"][0]["metrics"]) == {"ndcg@10", "mrr@10", "recall@10", "map@10"}


def test_an_error_of_the_system_is_one_sentence(tmp_path, corpus, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/disk/x")

    monkeypatch.setattr("lsr.retriever.encode_corpus", full)
    code, _, err = run(capsys, "index", corpus, "--model", "bm25", "--out", tmp_path / "x.index")
    assert (code, err) == (1, "lsr: /disk/x: No space left on device\n")


@pytest.mark.parametrize(
    ("command", "model", "kept"), [("index", "mlm", True), ("index", "bm25", False), ("encode", "bm25", True)]
)
def test_an_interruption_says_what_is_kept(tmp_path, corpus, checkpoint, capsys, monkeypatch, command, model, kept):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lsr.retriever.encode_corpus", interrupted)
    monkeypatch.setattr("lsr.encoding.encode_corpus", interrupted)
    model = checkpoint if model == "mlm" else model
    code, _, err = run(capsys, command, corpus, "--model", model, "--out", tmp_path / "x.index")
    assert code == 130
    assert ("the same command goes on from there" in err) is kept


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_is_refused(tmp_path, corpus, capsys, question):
    run(capsys, "index", corpus, "--model", "bm25", "--out", tmp_path / "x.index")
    code, _, err = run(capsys, "search", tmp_path / "x.index", question)
    assert (code, err) == (1, "lsr: the query is empty: type at least one word\n")


def test_unknown_options_are_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["search", "x.index", "q", "--exat"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --exat" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["encode", "index", "search", "evaluate", "idf", "demo"])
def test_every_command_has_help_with_an_example_that_parses(command, capsys):
    import shlex

    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    example = capsys.readouterr().out.split("example:\n")[1].strip()
    assert example.startswith(f"lsr {command}")
    assert build_parser().parse_args(shlex.split(example)[1:])


def test_the_installed_script_runs():
    printed = subprocess.run([sys.executable, "-m", "lsr.cli", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout == f"lsr {lsr.__version__}\n"
