"""Expanded documents: from a callable, from a file, from a masked language model."""

import json
import warnings

import pytest
import torch
from conftest import TEXTS

import lsr
from lsr.cli import main
from lsr.encoding import read_vectors
from lsr.errors import FormatError, InputError, LsrWarning
from lsr.expansion import expand, mlm_expansions, write_expansions
from lsr.files import open_lines
from lsr.methods import build_encoder

DOCUMENTS = [lsr.Document("d1", "the cat", "Cats"), lsr.Document("d2", "a river"), lsr.Document("d3", "")]


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def test_a_callable_expands():
    expanded = list(expand(DOCUMENTS, lambda documents: [f"about {document.id}" for document in documents]))
    assert expanded == [
        lsr.Document("d1", "the cat", "Cats", "about d1"),
        lsr.Document("d2", "a river", expansion="about d2"),
        lsr.Document("d3", "", expansion="about d3"),
    ]
    assert [document.content for document in expanded] == ["Cats the cat about d1", "a river about d2", "about d3"]
    assert list(expand(DOCUMENTS, lambda documents: [""] * len(documents))) == DOCUMENTS


@pytest.mark.parametrize(
    ("expander", "message"),
    [
        (lambda documents: "more", "the expander gave a text for 3 documents"),
        (lambda documents: ["more"], "the expander gave 1 expansions for 3 documents"),
        (lambda documents: ["more", None, ""], "the expander gave None for document 'd2'"),
    ],
)
def test_what_a_callable_must_give(expander, message):
    with pytest.raises(InputError, match=message):
        list(expand(DOCUMENTS, expander))


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_a_file_is_written_and_read(tmp_path, name):
    path = tmp_path / name
    assert write_expansions(path, DOCUMENTS, lambda documents: [d.id.upper() for d in documents]) == 3
    corpus = expand(DOCUMENTS, path)
    for _ in range(2):  # a corpus can be read again
        assert [document.content for document in corpus] == ["Cats the cat D1", "a river D2", "D3"]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(documents):
        raise InputError("no")

    with pytest.raises(InputError):
        write_expansions(tmp_path / "e.jsonl", DOCUMENTS, fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (
            [{"id": "d1", "expansion": "x"}],
            InputError,
            "e.jsonl has no expansion for document 'd2' of the given documents, but ends: every document needs one",
        ),
        (
            [{"id": "d2", "expansion": "x"}],
            InputError,
            "e.jsonl:1 has no expansion for document 'd1' .*goes on with 'd2'",
        ),
        (
            [{"id": f"d{i}", "expansion": "x"} for i in range(1, 5)],
            InputError,
            "e.jsonl:4 expands 'd4', after the last document of the given documents: name the corpus",
        ),
        ([{"id": "d1"}], FormatError, "e.jsonl:1: a line is"),
        ([{"id": 1, "expansion": "x"}], FormatError, "e.jsonl:1: id and expansion must be strings"),
        (["d1"], FormatError, "e.jsonl:1: a line is"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, lines, error, message):
    path = tmp_path / "e.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(error, match=message):
        list(expand(DOCUMENTS, path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="lsr expand"):
        expand(DOCUMENTS, tmp_path / "none.jsonl")


def test_the_masked_language_model_adds_its_heaviest_new_words(checkpoint):
    encoder = lsr.load_encoder(checkpoint, document_max_length=32, query_max_length=16, device="cpu")
    documents = [lsr.Document(str(i), text) for i, text in enumerate(TEXTS)]
    vectors = encoder.encode_documents(documents).toarray()
    for document, expansion, row in zip(documents, mlm_expansions(encoder, 5)(documents), vectors, strict=True):
        own = set(encoder.documents.tokenizer([document.content]).ids[0].tolist())
        ranked = sorted((-weight, term) for term, weight in enumerate(row) if weight > 0 and term not in own)
        words = [encoder.term(term) for _, term in ranked]
        assert expansion.split() == [word for word in words if word.isalnum() and len(word) > 1][:5]


def test_a_real_model_expands(shared):
    encoder = lsr.load_encoder(shared / "models" / "splade-tiny", device="cpu", document_max_length=64)
    (expansion,) = mlm_expansions(encoder, 20)([lsr.Document("1", "How do I treat a sprained ankle?")])
    words = expansion.split()
    assert 0 < len(words) <= 20
    assert "ankle" not in words
    assert {"treatment", "injury", "leg", "foot", "hurt", "pain", "sprain", "knee", "doctor"} & set(words)


def expansions_of(folder, corpus):
    """A file of expansions: every document is said to be about zebras, the last one twice."""
    path = folder / "expansions.jsonl"
    write_expansions(path, corpus, lambda documents: ["zebra" * (1 + (d.id == "d5")) for d in documents])
    return path


def test_hits_show_the_text_without_its_expansion(tmp_path, corpus_file):
    """From the command line: found by its expansion, shown and kept as it was."""
    path, index = expansions_of(tmp_path, corpus_file), tmp_path / "x.index"
    assert main(["index", str(corpus_file), "--model", "bm25", "--expansions", str(path), "--out", str(index)]) == 0
    hits = lsr.Retriever.open(index).search("zebrazebra")
    assert [(hit.id, hit.text) for hit in hits] == [("d5", TEXTS[5])]
    built = lsr.Retriever.build(expand(corpus_file, path), lsr.Bm25())
    assert sorted(hit.id for hit in built.search("zebra", 6)) == ["d0", "d1", "d2", "d3", "d4"]
    assert not lsr.Retriever.build(corpus_file, lsr.Bm25()).search("zebra")


def test_encode_expands(tmp_path, corpus_file, checkpoint):
    path, plain, expanded = expansions_of(tmp_path, corpus_file), tmp_path / "plain", tmp_path / "expanded"
    command = ["encode", str(corpus_file), "--model", "bm25", "--out"]
    assert main([*command, str(plain)]) == 0
    assert main([*command, str(expanded), "--expansions", str(path)]) == 0
    first, second = (read_vectors(folder).vectors for folder in (plain, expanded))
    assert (second.nnz, second.shape[1]) == (first.nnz + len(TEXTS), first.shape[1] + 2)


def test_evaluate_expands_one_collection(tmp_path, corpus_file, capsys):
    home = tmp_path / "collection"
    (home / "qrels").mkdir(parents=True)
    path = expansions_of(tmp_path, corpus_file)
    corpus_file.rename(home / "corpus.jsonl")
    (home / "queries.jsonl").write_text('{"_id": "d4", "text": "zebrazebra"}\n')
    (home / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nd4\td5\t1\n")
    command = ["evaluate", "--model", "bm25", "--dataset", str(home), "--exact", "--metric", "mrr@5", "-k", "5"]
    for more, expected in (([], 0.0), (["--expansions", str(path)], 1.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LsrWarning)  # the query finds nothing at first
            assert main([*command, *more, "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["results"][0]["metrics"] == {"mrr@5": expected}
    assert main([*command, "--expansions", str(path), "--dataset", str(tmp_path)]) == 1
    assert "--expansions expands the documents of one collection" in capsys.readouterr().err


def test_a_real_expmlp_retriever_from_the_command_line(tmp_path, shared, capsys):
    """Expanded, then indexed with a model whose documents are expMLP: the expansion alone can find a document."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        '{"_id": "1", "text": "How do I treat a sprained ankle?"}\n{"_id": "2", "text": "the stock market fell"}\n'
    )
    model, path, index = shared / "models" / "splade-tiny", tmp_path / "e.jsonl.gz", tmp_path / "x.index"
    table = {"documents": {"head": "mlp", "max_length": 64}, "queries": {"head": "binary"}, "backbone": str(model)}
    torch.manual_seed(0)
    build_encoder(table, device="cpu").save(tmp_path / "deepimpact")
    commands = (
        ["expand", corpus, "--model", model, "--terms", 20, "--out", path],
        ["index", corpus, "--model", tmp_path / "deepimpact", "--expansions", path, "--out", index],
    )
    for command in commands:
        assert main([str(part) for part in command]) == 0, capsys.readouterr().err
    first = json.loads(next(line for _, line in open_lines(path)))["expansion"].split()
    retriever = lsr.Retriever.open(index)
    vector = lsr.load_encoder(tmp_path / "deepimpact").encode_documents([*expand(corpus, path)][:1])
    weighed = [word for word in first if vector[[0], [retriever.queries.tokenizer.vocabulary[word]]][0] > 0]
    assert weighed
    assert [hit.text for hit in retriever.search(weighed[0], 1)] == ["How do I treat a sprained ankle?"]
