"""Expanded documents: from a callable, from a file, from a masked language model."""

import json

import pytest
from conftest import TEXTS

import lsr
from lsr.errors import FormatError, InputError
from lsr.expansion import expand, mlm_expansions, write_expansions

DOCUMENTS = [lsr.Document("d1", "the cat", "Cats"), lsr.Document("d2", "a river"), lsr.Document("d3", "")]


def test_a_callable_expands():
    expanded = list(expand(DOCUMENTS, lambda document: f"about {document.id}"))
    assert expanded == [
        lsr.Document("d1", "the cat about d1", "Cats"),
        lsr.Document("d2", "a river about d2"),
        lsr.Document("d3", " about d3"),
    ]
    assert [document.id for document in expand(DOCUMENTS, lambda _: "")] == ["d1", "d2", "d3"]


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_a_file_is_written_and_read(tmp_path, name):
    path = tmp_path / name
    assert write_expansions(path, DOCUMENTS, lambda documents: [d.id.upper() for d in documents]) == 3
    corpus = expand(DOCUMENTS, path)
    for _ in range(2):  # a corpus can be read again
        assert [document.text for document in corpus] == ["the cat D1", "a river D2", " D3"]
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
        ([{"id": "d1", "expansion": "x"}], InputError, "the file ends where the given documents has 'd2'"),
        ([{"id": "d2", "expansion": "x"}], InputError, "e.jsonl:1: the file has 'd2' where .* has 'd1'"),
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
