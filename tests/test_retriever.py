"""`Retriever`: text in, hits out, in memory and from disk, with every kind of encoder."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import TEXTS, write_checkpoint

import lsr
from lsr.errors import FormatError, InputError, LsrWarning, MismatchError

DOCUMENTS = [lsr.Document(f"d{i}", text, f"title {i}") for i, text in enumerate(TEXTS)]


def encoders(checkpoint) -> dict[str, lsr.Encoder | lsr.Bm25]:
    splade = lsr.load_encoder(checkpoint)
    return {
        "bm25": lsr.Bm25(),
        "splade": splade,
        "inference-free": lsr.inference_free(splade, lsr.compute_idf(TEXTS, splade)),
    }


@pytest.mark.parametrize("kind", ["bm25", "splade", "inference-free"])
def test_saved_and_reopened_it_finds_the_same(tmp_path, checkpoint, kind):
    encoder = encoders(checkpoint)[kind]
    memory = lsr.Retriever.build(DOCUMENTS, encoder)
    saved = lsr.Retriever.build(DOCUMENTS, encoder, tmp_path / "x.index")
    reopened = lsr.Retriever.open(tmp_path / "x.index")
    hits = memory.search("fish in the river", 3)
    assert hits
    assert hits == saved.search("fish in the river", 3) == reopened.search("fish in the river", 3)
    assert hits[0].text == TEXTS[int(hits[0].id[1:])]
    assert hits[0].title == f"title {hits[0].id[1:]}"
    assert [path.name for path in tmp_path.iterdir()] == ["x.index"]  # no vectors left beside it


def test_bm25_finds_the_obvious():
    retriever = lsr.Retriever.build(DOCUMENTS, lsr.Bm25())
    assert [hit.id for hit in retriever.search("dogs that run", 2)] == ["d5"]
    with pytest.warns(LsrWarning, match="1 of 1 queries have no term"):
        assert retriever.search("xylophone", 2) == []


@pytest.fixture
def bm25() -> lsr.Retriever:
    return lsr.Retriever.build(DOCUMENTS, lsr.Bm25())


def test_explain_names_the_terms_of_the_score(bm25):
    hit = bm25.search("the bank of the river", 1)[0]
    matches = bm25.explain("the bank of the river", hit.id)
    assert {match.term for match in matches} <= {"bank", "river"}
    assert sum(match.contribution for match in matches) == pytest.approx(hit.score, rel=1e-6)


def test_a_light_query_side_needs_no_transformer(tmp_path, checkpoint):
    lsr.Retriever.build(DOCUMENTS, encoders(checkpoint)["inference-free"], tmp_path / "x.index")
    code = (
        "import sys, lsr\n"
        f"hits = lsr.Retriever.open({str(tmp_path / 'x.index')!r}).search('fish in the river')\n"
        "assert hits and not {'torch', 'transformers', 'ranx'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_the_index_names_the_model_it_needs(tmp_path, checkpoint):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    lsr.Retriever.build(DOCUMENTS, lsr.load_encoder(model), tmp_path / "x.index")
    model.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"was built with the encoder .*model, which cannot be loaded now"):
        lsr.Retriever.open(tmp_path / "x.index").search("river")
    moved = lsr.Retriever.open(tmp_path / "x.index", lsr.load_encoder(tmp_path / "moved"))
    assert moved.search("river", 1)
    write_checkpoint(model, seed=5)
    with pytest.raises(MismatchError, match="has changed since"):
        lsr.Retriever.open(tmp_path / "x.index").search("river")


def test_another_encoder_is_refused(tmp_path, checkpoint):
    lsr.Retriever.build(DOCUMENTS, lsr.Bm25(), tmp_path / "x.index")
    with pytest.raises(MismatchError, match="was built with another encoder"):
        lsr.Retriever.open(tmp_path / "x.index", lsr.load_encoder(checkpoint))
    with pytest.raises(MismatchError, match="was built with another encoder"):
        lsr.Retriever.open(tmp_path / "x.index", lsr.Bm25().fit(TEXTS[:3]))
    reopened = lsr.Retriever.open(tmp_path / "x.index")
    with pytest.raises(MismatchError, match="encode the queries with the index's encoder"):
        reopened.index.search(lsr.load_encoder(checkpoint).encode_queries(["cat"]), 1)


def test_an_interrupted_build_resumes(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("lsr.encoding.SHARD_DOCUMENTS", 2)
    encoder = lsr.load_encoder(checkpoint)
    encoded: list[int] = []
    plain = encoder.documents.encode

    def counting(texts, advance=None):
        encoded.append(len(texts))
        if sum(encoded) == 4:
            raise KeyboardInterrupt
        return plain(texts, advance)

    monkeypatch.setattr(encoder.documents, "encode", counting)
    with pytest.raises(KeyboardInterrupt):
        lsr.Retriever.build(DOCUMENTS, encoder, tmp_path / "x.index")
    assert [path.name for path in tmp_path.iterdir()] == [".x.index.vectors"]
    encoded.clear()
    monkeypatch.setattr(encoder.documents, "encode", lambda texts, advance=None: encoded.append(1) or plain(texts))
    lsr.Retriever.build(DOCUMENTS, encoder, tmp_path / "x.index")
    assert len(encoded) == 2  # the first of three shards was kept
    assert [path.name for path in tmp_path.iterdir()] == ["x.index"]


def test_the_query_must_say_something(bm25):
    for query in ("", "  \n"):
        with pytest.raises(InputError, match="the query is empty"):
            bm25.search(query)
    with pytest.raises(InputError, match="use search_many"):
        bm25.search(["a", "b"])
    with pytest.warns(LsrWarning, match="1 of 1 queries have no term"):
        assert bm25.search("the of and", 3) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "neither a file, nor a folder"),
        ("empty.jsonl", "", "holds no documents"),
        ("broken.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "2", ', "broken.jsonl:2: not valid JSON"),
        ("twice.jsonl", '{"_id": "1", "text": "a"}\n' * 2, "document id '1' is used twice"),
    ],
)
def test_a_bad_corpus_leaves_nothing_behind(tmp_path, name, content, message):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    with pytest.raises((InputError, FormatError), match=message):
        lsr.Retriever.build(path, lsr.Bm25(), tmp_path / "x.index")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_every_damaged_file_of_a_retriever_is_refused(tmp_path):
    lsr.Retriever.build(DOCUMENTS, lsr.Bm25(), tmp_path / "x.index")
    for name in ("documents/texts.data.npy", "documents/titles.offsets.npy", "encoder/queries/idf.npy"):
        content = (tmp_path / "x.index" / name).read_bytes()
        for damaged in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            (tmp_path / "x.index" / name).write_bytes(damaged)
            with pytest.raises(FormatError, match="truncated or altered|was altered"):
                lsr.Retriever.open(tmp_path / "x.index")
        (tmp_path / "x.index" / name).write_bytes(content)
    assert lsr.Retriever.open(tmp_path / "x.index").search("river", 1)


@pytest.mark.parametrize("encoder", ["bm25", lsr.Bm25, None])
def test_what_is_no_encoder_is_refused(encoder):
    with pytest.raises(InputError, match=r"give lsr.Bm25\(\) or what lsr.load_encoder returns"):
        lsr.Retriever.build(DOCUMENTS, encoder)


def test_texts_belong_to_their_ids_whatever_the_corpus_does():
    """A corpus that comes in another order at every pass."""
    passes = []

    def read():
        passes.append(1)
        return iter(DOCUMENTS if len(passes) % 2 else DOCUMENTS[::-1])

    retriever = lsr.Retriever.build(lsr.Corpus("restless", read), lsr.Bm25())
    for document in DOCUMENTS:
        assert retriever.text_of(document.id) == (document.title, document.text)


def test_vectors_inside_the_index_are_refused(tmp_path):
    with pytest.raises(InputError, match="is inside the index"):
        lsr.Retriever.build(DOCUMENTS, lsr.Bm25(), tmp_path / "x.index", vectors=tmp_path / "x.index" / "vectors")


def test_an_index_without_texts_is_not_a_retriever(tmp_path):
    encoder = lsr.Bm25().fit(TEXTS)
    lsr.Index.build(encoder.encode_documents(TEXTS), path=tmp_path / "x.index")
    with pytest.raises(InputError, match="an index of vectors without texts"):
        lsr.Retriever.open(tmp_path / "x.index")


def test_the_manifest_covers_texts_and_encoder(tmp_path):
    lsr.Retriever.build(DOCUMENTS, lsr.Bm25(), tmp_path / "x.index")
    files = json.loads((tmp_path / "x.index" / "manifest.json").read_text())["files"]
    assert {"documents/texts.data.npy", "encoder/queries/idf.npy", "encoder/lsr_encoder.json"} <= set(files)


@pytest.mark.parametrize("kind", ["bm25", "splade", "inference-free"])
def test_text_finds_what_its_vectors_find(checkpoint, kind):
    """The short way of a light side's rows to the index ends where the way through CSR vectors does."""
    retriever = lsr.Retriever.build(DOCUMENTS, encoders(checkpoint)[kind])
    questions = ["fish in the river", "the cat, the cat and the bank", lsr.Query("q", "a dog that runs")]
    by_text = retriever.search_many(questions, 5)
    by_vectors = retriever.index.search(retriever.encode_queries(questions), 5)
    for name in ("rows", "scores", "counts"):
        np.testing.assert_array_equal(getattr(by_text, name), getattr(by_vectors, name))
    for question in questions[:2]:
        assert [(hit.id, hit.score) for hit in retriever.search(question, 5)] == retriever.search_many([question], 5)[0]
    with pytest.raises(InputError, match="queries are given as a list of texts: write"):
        retriever.search_many("fish")
    with pytest.raises(InputError, match="a query to encode is a int: give strings"):
        retriever.search_many(["fish", 5])


@pytest.mark.parametrize("max_memory", [None, "1MB"])
def test_the_planner_tries_its_settings_on_the_questions_that_are_given(tmp_path, checkpoint, max_memory):
    encoder = encoders(checkpoint)["inference-free"]
    questions = ["fish in the river", lsr.Query("q", "a dog that runs"), "the bank"]
    place = tmp_path / "x.index"
    retriever = lsr.Retriever.build(DOCUMENTS, encoder, place, sample=iter(questions), max_memory=max_memory)
    plan = lsr.Retriever.open(place).index.plan
    assert (plan.sample, plan.n_queries) == ("given", 3)
    assert len(plan.settings) > 1
    assert "tried on 3 queries given" in retriever.index.explain_plan(0.9)
    hits = retriever.search_many(questions, 3, exact=True)
    assert hits.counts.min() > 0
    assert lsr.Retriever.build(DOCUMENTS, lsr.Bm25(), sample=["fish", "dog"]).index.plan.n_queries == 2


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([], "the sample has no question: give some like those to come, or no sample"),
        ("fish", "queries are given as a list of texts: write"),
        (["fish", 5], "a query to encode is a int: give strings"),
    ],
)
def test_a_sample_is_checked_before_anything_is_written(tmp_path, sample, message):
    with pytest.raises(InputError, match=message):
        lsr.Retriever.build(DOCUMENTS, lsr.Bm25(), tmp_path / "x.index", sample=sample)
    assert not list(tmp_path.iterdir())
