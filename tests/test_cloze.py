"""Queries of passages: which sentence is taken, what is left, what is written."""

import gzip
import json

import pytest

import lsr
from lsr.cli import main
from lsr.errors import InputError
from lsr.records import Document
from lsr.training.cloze import cloze, write_cloze

TEXT = "Rivers carry water to the sea. Dr. Smith said so in 1901! Is it true that banks hold fish? Short one."
SENTENCES = [
    "Rivers carry water to the sea.",
    "Smith said so in 1901!",
    "Is it true that banks hold fish?",
    "Short one.",
]


def test_sentence_is_taken_out_of_the_text():
    seen = set()
    for i in range(40):
        sentence, rest = cloze(Document(f"d{i}", TEXT), seed=3)
        assert 5 <= len(sentence.split()) <= 40
        assert sentence not in rest
        assert sorted(f"{sentence} {rest}".split()) == sorted(TEXT.split())
        assert cloze(Document(f"d{i}", TEXT), seed=3) == (sentence, rest)
        seen.add(sentence)
    assert seen == {SENTENCES[0], SENTENCES[1], SENTENCES[2]}  # "Dr." ends a sentence here, as it does for most


@pytest.mark.parametrize(
    "text", ["", "One sentence of six words here.", "Too few of them here. Only two of them here.", "A b. C d. E f."]
)
def test_document_without_a_sentence_to_spare(text):
    assert cloze(Document("d", text)) is None


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_collection_is_one_that_can_be_mined(tmp_path):
    documents = [Document("a", TEXT, title="River"), Document("b", "no sentence"), Document("c", TEXT)]
    assert write_cloze(lsr.read_corpus(documents_as_dicts(documents)), tmp_path / "out") == 2
    asked, texts = lines(tmp_path / "out" / "queries.jsonl.gz"), lines(tmp_path / "out" / "corpus.jsonl.gz")
    assert [query["_id"] for query in asked] == ["a", "c"]
    assert [(text["_id"], text["title"]) for text in texts] == [("a", "River"), ("b", ""), ("c", "")]
    assert asked[0]["text"] not in texts[0]["text"]
    assert texts[1]["text"] == "no sentence"
    assert lsr.read_qrels(tmp_path / "out" / "qrels" / "train.tsv") == {"a": {"a": 1}, "c": {"c": 1}}
    given = json.loads(json.dumps(documents_as_dicts(documents)))
    for document in given:
        document["text"] += " Rivers carry water and fish. Banks said so."
    write_cloze(lsr.read_corpus(given), tmp_path / "more")
    out = tmp_path / "rows.jsonl"
    assert main(["mine", str(tmp_path / "more"), "--model", "bm25", "--ranks", "1-3", "--out", str(out)]) == 0
    assert {json.loads(line)["query_id"] for line in out.open()} == {"a", "c"}


def documents_as_dicts(documents):
    return [{"_id": d.id, "title": d.title, "text": d.text} for d in documents]


def test_first_n_queries(tmp_path, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": TEXT}) + "\n" for i in range(5)))
    assert main(["cloze", str(corpus), "--queries", "2", "--out", str(tmp_path / "out")]) == 0
    assert "2 queries" in capsys.readouterr().out
    assert len(lines(tmp_path / "out" / "queries.jsonl.gz")) == 2
    texts = [text["text"] for text in lines(tmp_path / "out" / "corpus.jsonl.gz")]
    assert texts[2:] == [TEXT] * 3
    assert TEXT not in texts[:2]


def test_corpus_without_sentences_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="no document has three sentences"):
        write_cloze(lsr.read_corpus([("a", "cat")]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("changes", "said"), [({"seed": -1}, "seed must be 0"), ({"queries": 0}, "queries must be 1")])
def test_bad_options_are_refused(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        write_cloze(lsr.read_corpus([("a", TEXT)]), tmp_path / "out", **changes)


def test_id_that_qrels_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="has a tab"):
        write_cloze(lsr.read_corpus([("a\tb", TEXT)]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_equal_texts_give_equal_files(tmp_path):
    for name in ("one", "two"):
        write_cloze(lsr.read_corpus([("a", TEXT)]), tmp_path / name)
    one, two = ((tmp_path / name / "corpus.jsonl.gz").read_bytes() for name in ("one", "two"))
    assert one == two
