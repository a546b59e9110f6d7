"""Two encoders in one vector: scores are added up, whatever the parts are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS, WORDS, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import lsr
from lsr.bm25 import Bm25
from lsr.cli import main
from lsr.encoder import ENCODER_FILE, Encoder, LightSide
from lsr.errors import FormatError, InputError, LsrWarning, MismatchError
from lsr.export import export_encoder
from lsr.files import check_target
from lsr.joined import JoinedEncoder, JoinedSide, join
from lsr.lookup import LookupEncoder, inference_free
from lsr.retriever import Retriever
from lsr.tokenizer import ModelTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.* have no term in the vocabulary:lsr.errors.LsrWarning")

QUERIES = ["cat river", "the dog sat", "bank bank fish", "horse"]
LONG = " ".join(["cat dog river"] * 5)


def table(max_length: int = 12, seed: int = 0) -> Encoder:
    """Weights from a table on both sides: a light encoder with a model's tokenizer, which cuts texts."""
    tokenizer = ModelTokenizer(tiny_tokenizer().to_str(), max_length)
    weights = np.random.default_rng(seed).random(tokenizer.size).astype(np.float32)
    return Encoder(*(LookupEncoder(tokenizer, weights, max_length) for _ in range(2)))


def neural(checkpoint: Path, **options) -> Encoder:
    return lsr.load_encoder(checkpoint, device="cpu", document_max_length=16, query_max_length=12, **options)


def free(checkpoint: Path) -> Encoder:
    encoder = neural(checkpoint)
    weights = np.linspace(0, 3, encoder.vocabulary_size, dtype=np.float32)
    return inference_free(encoder, weights, max_length=12)


def bm25(buckets: int | None = 64) -> Encoder:
    return Bm25(buckets=buckets).fit(TEXTS)


def scores(encoder: Encoder, documents: list[str] = TEXTS, queries: list[str] = QUERIES) -> np.ndarray:
    return (encoder.encode_documents(documents) @ encoder.encode_queries(queries).T).toarray()


def equal(one: Encoder, other: Encoder) -> bool:
    pairs = [(e.encode_documents(TEXTS).toarray(), e.encode_queries(QUERIES).toarray()) for e in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True))


# --- vectors -----------------------------------------------------------------------------------

texts = st.lists(st.lists(st.sampled_from([*WORDS, "unicorn"]), max_size=10).map(" ".join), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(texts, texts, st.floats(0.01, 100), st.sampled_from([None, 7, 64]))
def test_scores_are_those_of_the_parts_added_up(documents, queries, weight, buckets):
    first, second = table(64), bm25(buckets)
    joined = join(first, second, weight)
    expected = scores(first, documents, queries) + weight * scores(second, documents, queries)
    np.testing.assert_allclose(scores(joined, documents, queries), expected, rtol=1e-5, atol=1e-6)
    for vectors in (joined.encode_documents(documents), joined.encode_queries(queries)):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == joined.vocabulary_size == first.vocabulary_size + second.vocabulary_size
        assert vectors.has_canonical_format
        assert vectors.nnz == np.count_nonzero(vectors.toarray())


@settings(deadline=None, max_examples=20)
@given(texts)
def test_columns_are_the_firsts_and_then_the_seconds(documents):
    first, second = table(64), bm25()
    vectors = join(first, second, 0.5).encode_documents(documents).toarray()
    np.testing.assert_array_equal(vectors[:, : first.vocabulary_size], first.encode_documents(documents).toarray())
    np.testing.assert_array_equal(vectors[:, first.vocabulary_size :], second.encode_documents(documents).toarray() / 2)


def test_queries_are_not_multiplied():
    assert join(table(), bm25(), 0.25).queries.fingerprint == join(table(), bm25(), 4.0).queries.fingerprint


@pytest.mark.parametrize("order", [1, -1])
def test_a_transformer_joins_with_terms_on_either_side(checkpoint, order):
    parts = [free(checkpoint), bm25()][::order]
    joined = join(*parts, 0.7)
    expected = scores(parts[0]) + 0.7 * scores(parts[1])
    np.testing.assert_allclose(scores(joined), expected, rtol=1e-5)
    assert not joined.documents.light
    told: list[int] = []
    joined.documents.encode(TEXTS, told.append)
    assert sum(told) == len(TEXTS)


def test_two_transformers_join(checkpoint):
    joined = join(neural(checkpoint), neural(checkpoint), 2.0)
    np.testing.assert_allclose(scores(joined), 3 * scores(neural(checkpoint)), rtol=1e-5)
    assert not joined.queries.light


def test_joined_encoders_join_again():
    one, two, three = table(), bm25(), bm25(None)
    for joined in (join(join(one, two, 0.5), three, 2.0), join(one, join(two, three, 4.0), 0.5)):
        np.testing.assert_allclose(scores(joined), scores(one) + 0.5 * scores(two) + 2 * scores(three), rtol=1e-5)
        size = one.vocabulary_size + two.vocabulary_size
        assert joined.term(size) == three.term(0)
        assert joined.term(size - 1) == "#63"


def test_terms_are_those_of_the_parts():
    first, second = table(), bm25(None)
    names = [join(first, second).term(i) for i in range(first.vocabulary_size + second.vocabulary_size)]
    assert names[: first.vocabulary_size] == [first.term(i) for i in range(first.vocabulary_size)]
    assert names[first.vocabulary_size :] == [second.term(i) for i in range(second.vocabulary_size)]


def test_no_texts_give_no_rows(checkpoint):
    for joined in (join(table(), bm25()), join(free(checkpoint), bm25())):
        assert joined.encode_documents([]).shape == (0, joined.vocabulary_size)


def test_a_text_that_was_cut_is_counted_once(checkpoint):
    for joined in (join(table(4), bm25()), join(table(4), table(4, seed=1))):
        assert joined.documents.max_length == joined.queries.max_length == 4
        with pytest.warns(LsrWarning, match="1 of 2 documents were longer than 4 tokens and were cut"):
            joined.encode_documents(["cat", LONG])
    with pytest.warns(LsrWarning, match="1 of 1 documents were longer than 16 tokens and were cut"):
        join(bm25(), free(checkpoint)).encode_documents([LONG * 2])


def test_a_query_without_any_term_is_said():
    with pytest.warns(LsrWarning, match="1 of 2 queries have no term"):
        join(table(), bm25(None)).encode_queries(["", "cat"])


# --- identity ----------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_parts_weight_and_order():
    same = join(table(), bm25(), 0.5)
    assert same.fingerprint == join(table(), bm25(), 0.5).fingerprint
    others = [
        join(table(seed=1), bm25(), 0.5),
        join(table(), bm25(65), 0.5),
        join(table(), bm25(), 0.6),
        join(bm25(), table(), 0.5),
    ]
    assert len({encoder.fingerprint for encoder in (same, *others)}) == 5


def test_the_vocabulary_is_that_of_the_parts():
    hashes = [encoder.documents.vocabulary_hash for encoder in (join(table(), bm25()), join(bm25(), table()))]
    assert hashes[0] != hashes[1]
    assert hashes[0] == join(table(seed=1), bm25(), 3.0).queries.vocabulary_hash


def test_an_identity_names_the_sides():
    identity = join(table(), bm25()).identity()
    assert identity["documents"] == identity["queries"] == {"kind": "joined", "max_length": 12}


def test_queries_of_another_joined_encoder(checkpoint):
    heavy, light = join(neural(checkpoint), bm25(), 0.5), join(free(checkpoint), bm25(), 3.0)
    both = heavy.with_queries(light)
    assert isinstance(both, JoinedEncoder)
    assert both.weight == 0.5
    assert both.queries.light
    np.testing.assert_allclose(scores(both), scores(free(checkpoint)) + 0.5 * scores(bm25()), rtol=1e-5)
    with pytest.raises(MismatchError, match="different vocabularies"):
        heavy.with_queries(table())
    with pytest.raises(MismatchError, match="different vocabularies"):
        heavy.with_queries(join(bm25(), free(checkpoint)))


# --- light sides -------------------------------------------------------------------------------


def test_light_sides_join_to_a_light_one(checkpoint):
    assert isinstance(join(table(), bm25()).documents, LightSide)
    joined = join(free(checkpoint), bm25())
    assert isinstance(joined.queries, LightSide)
    assert joined.queries.light
    assert not isinstance(joined.documents, LightSide)
    assert not isinstance(join(neural(checkpoint), bm25()).queries, LightSide)


@settings(deadline=None, max_examples=30)
@given(texts)
def test_rows_do_not_depend_on_the_batch(queries):
    side = join(table(8), bm25()).queries
    assert isinstance(side, JoinedSide)
    together = side.encode(queries).vectors
    for row, query in enumerate(queries):
        alone = side.encode([query]).vectors
        assert np.array_equal(together[[row]].toarray(), alone.toarray())


# --- files -------------------------------------------------------------------------------------


def test_a_saved_encoder_comes_back(tmp_path, checkpoint):
    for name, joined in {"light": join(table(), bm25(), 0.3), "free": join(free(checkpoint), bm25(None), 2)}.items():
        joined.save(tmp_path / name)
        loaded = lsr.load_encoder(tmp_path / name, device="cpu")
        assert isinstance(loaded, JoinedEncoder)
        assert loaded.fingerprint == joined.fingerprint
        assert loaded.weight == joined.weight
        assert (loaded.documents.max_length, loaded.queries.max_length) == (
            joined.documents.max_length,
            joined.queries.max_length,
        )
        assert loaded.source == str(tmp_path / name)
        assert equal(loaded, joined)


def test_parts_are_encoders_of_their_own(tmp_path, checkpoint):
    first, second = free(checkpoint), bm25()
    joined = join(first, second, 0.5)
    assert joined.parts == (first, second)
    joined.save(tmp_path / "joined")
    for part, name in ((first, "first"), (second, "second")):
        assert lsr.load_encoder(tmp_path / "joined" / name, device="cpu").fingerprint == part.fingerprint


def test_a_transformer_of_both_sides_is_saved_once(tmp_path, checkpoint):
    join(neural(checkpoint), bm25(), 0.5).save(tmp_path / "joined")
    assert len(list((tmp_path / "joined").rglob("*.safetensors"))) == 1
    loaded = lsr.load_encoder(tmp_path / "joined", device="cpu")
    assert loaded.parts[0].documents.backbone is loaded.parts[0].queries.backbone


def test_a_nested_encoder_comes_back(tmp_path):
    joined = join(table(), join(bm25(), bm25(None), 4.0), 0.5)
    joined.save(tmp_path / "joined")
    assert lsr.load_encoder(tmp_path / "joined").fingerprint == joined.fingerprint


def test_hashed_documents_need_no_folder(tmp_path):  # git and wheels keep no empty one
    joined = join(table(), bm25())
    joined.save(tmp_path / "joined")
    (tmp_path / "joined" / "second" / "documents").rmdir()
    assert lsr.load_encoder(tmp_path / "joined").fingerprint == joined.fingerprint


def test_lengths_device_and_dtype_reach_the_parts(tmp_path, checkpoint):
    join(free(checkpoint), bm25()).save(tmp_path / "joined")
    options = {"document_max_length": 7, "query_max_length": 5, "device": "cpu"}
    loaded = lsr.load_encoder(tmp_path / "joined", **options, dtype="bfloat16")
    first, second = loaded.parts
    assert (loaded.documents.max_length, loaded.queries.max_length) == (7, 5)
    assert (first.documents.max_length, first.queries.max_length) == (7, 5)
    assert first.documents.dtype == loaded.documents.dtype == "bfloat16"
    assert second.documents.max_length is None
    assert loaded.fingerprint == lsr.load_encoder(tmp_path / "joined", device="cpu").fingerprint
    assert lsr.load_encoder(tmp_path / "joined", device="cpu").documents.dtype == "float32"


def test_a_dtype_without_effect_is_refused(tmp_path):
    join(table(), bm25()).save(tmp_path / "joined")
    with pytest.raises(InputError, match="runs no transformer in torch"):
        lsr.load_encoder(tmp_path / "joined", dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_weights_are_saved_in_the_dtype(tmp_path, checkpoint, dtype):
    joined = join(free(checkpoint), bm25(), 0.5)
    joined.save(tmp_path / "joined", dtype=dtype)
    joined.parts[0].save(tmp_path / "first", dtype=dtype)
    loaded = lsr.load_encoder(tmp_path / "joined", device="cpu")
    assert loaded.fingerprint != joined.fingerprint
    assert loaded.parts[0].fingerprint == lsr.load_encoder(tmp_path / "first", device="cpu").fingerprint
    export_encoder(joined, tmp_path / "exported", "lsr", dtype=dtype)
    assert lsr.load_encoder(tmp_path / "exported", device="cpu").fingerprint == loaded.fingerprint
    with pytest.raises(InputError, match="cannot be saved as 'int3'"):
        joined.save(tmp_path / "other", dtype="int3")


def test_a_joined_folder_may_be_replaced(tmp_path):
    join(table(), bm25()).save(tmp_path / "joined")
    with pytest.raises(InputError, match="already exists"):
        join(table(), bm25(), 0.5).save(tmp_path / "joined")
    check_target(tmp_path / "joined", overwrite=True)
    join(table(), bm25(), 0.5).save(tmp_path / "joined", overwrite=True)
    assert lsr.load_encoder(tmp_path / "joined").weight == 0.5


def test_a_damaged_folder_is_refused(tmp_path):
    join(table(), bm25()).save(tmp_path / "joined")
    path = tmp_path / "joined" / ENCODER_FILE
    fields = json.loads(path.read_text())
    for weight in (None, "1", -1):
        path.write_text(json.dumps(fields | {"documents": {"kind": "joined", "weight": weight}}))
        with pytest.raises(InputError, match=f"cannot be joined with the weight {weight!r}"):
            lsr.load_encoder(tmp_path / "joined")
    path.write_text(json.dumps(fields))
    shutil.rmtree(tmp_path / "joined" / "second")
    with pytest.raises(FormatError, match=f"second/{ENCODER_FILE} is missing"):
        lsr.load_encoder(tmp_path / "joined")


# --- search ------------------------------------------------------------------------------------

CORPUS = [lsr.Document(f"d{i}", text) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("kind", ["table", "free", "neural"])
def test_an_index_ranks_by_the_sum(tmp_path, checkpoint, kind):
    first = {"table": table, "free": lambda: free(checkpoint), "neural": lambda: neural(checkpoint)}[kind]()
    joined = join(first, bm25(), 0.5)
    joined.save(tmp_path / "encoder")
    loaded = lsr.load_encoder(tmp_path / "encoder", device="cpu", document_max_length=16, query_max_length=12)
    for encoder, place in ((joined, "of-memory"), (loaded, "of-a-folder")):
        Retriever.build(CORPUS, encoder, tmp_path / place)
        retriever = Retriever.open(tmp_path / place)  # with what the index carries, or names
        hits = retriever.search_many(QUERIES, len(CORPUS), exact=True)
        expected = scores(encoder)
        for query in range(len(QUERIES)):
            found = np.zeros(len(CORPUS))
            found[hits.rows[query, : hits.counts[query]]] = hits.scores[query, : hits.counts[query]]
            np.testing.assert_allclose(found, expected[:, query], rtol=1e-5)


def test_light_queries_are_carried_by_the_index(tmp_path, checkpoint):
    joined = join(free(checkpoint), bm25(), 0.5)
    joined.save(tmp_path / "encoder")
    Retriever.build(CORPUS, lsr.load_encoder(tmp_path / "encoder", device="cpu"), tmp_path / "index")
    shutil.rmtree(tmp_path / "encoder")
    assert not list((tmp_path / "index").rglob("*.safetensors"))
    retriever = Retriever.open(tmp_path / "index")
    assert isinstance(retriever.queries, LightSide)
    hit = retriever.search(QUERIES[0], 3)[0]
    matched = retriever.explain(QUERIES[0], hit.id)
    assert sum(term.contribution for term in matched) == pytest.approx(hit.score, rel=1e-5)


def test_an_index_of_another_weight_is_refused(tmp_path):
    Retriever.build(CORPUS, join(table(), bm25(), 0.5), tmp_path / "index")
    with pytest.raises(MismatchError, match="was built with another encoder"):
        Retriever.open(tmp_path / "index", join(table(), bm25(), 0.6))


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), 1e-60, 1e60, True, "1", None])
def test_a_weight_is_a_number_above_0(weight):
    with pytest.raises(InputError, match="cannot be joined with the weight .*: give a finite number above 0"):
        join(table(), bm25(), weight)


@pytest.mark.parametrize("weight", [2, np.float32(2), np.float64(2)])
def test_a_weight_may_be_any_kind_of_number(weight):
    assert join(table(), bm25(), weight).fingerprint == join(table(), bm25(), 2.0).fingerprint


def test_two_lengths_are_refused():
    with pytest.raises(MismatchError, match=r"cut texts at 12 \(lookup\) and 5 tokens \(lookup\): load both with one"):
        join(table(), table(5))


def test_bm25_is_fitted_first():
    with pytest.raises(InputError, match="join takes two encoders: Bm25 is none"):
        join(table(), Bm25())  # type: ignore[arg-type]


def test_sides_are_saved_together(tmp_path):
    joined = join(table(), bm25())
    with pytest.raises(InputError, match="save the encoder that lsr.join returns"):
        Encoder(joined.documents, joined.queries).save(tmp_path / "joined")


@pytest.mark.parametrize("form", ["sentence-transformers", "opensearch", "onnx"])
def test_no_other_system_holds_two_encoders(tmp_path, checkpoint, form):
    with pytest.raises(InputError, match=f"{form} cannot hold two encoders in one vector: export a part alone"):
        export_encoder(join(free(checkpoint), bm25()), tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


# --- command line ------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": doc.id, "text": doc.text}) + "\n" for doc in CORPUS))
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_lsr_join_with_bm25_from_a_corpus(tmp_path, checkpoint, corpus, capsys):
    free(checkpoint).save(tmp_path / "free")
    out = tmp_path / "joined"
    assert run("join", tmp_path / "free", "bm25", "--corpus", corpus, "--weight", 0.5, "--out", out) == 0
    first = lsr.load_encoder(tmp_path / "free", device="cpu")
    expected = join(first, Bm25(buckets=131_072).fit(CORPUS), 0.5)
    assert lsr.load_encoder(out, device="cpu").fingerprint == expected.fingerprint
    assert f"{expected.vocabulary_size:,} terms" in capsys.readouterr().out
    assert run("index", corpus, "--model", out, "--out", tmp_path / "index") == 0
    assert run("search", tmp_path / "index", "cat river") == 0
    assert "d0" in capsys.readouterr().out
    again = ["join", tmp_path / "free", "bm25", "--corpus", corpus, "--buckets", 50, "--out", out, "--overwrite"]
    assert run(*again, "--document-max-length", 8) == 0
    loaded = lsr.load_encoder(out, device="cpu")
    assert (loaded.weight, loaded.documents.max_length, loaded.parts[1].vocabulary_size) == (1.0, 8, 50)


def test_lsr_join_of_two_folders_and_a_table(tmp_path, checkpoint):
    encoder, idf = neural(checkpoint), np.linspace(0, 3, neural(checkpoint).vocabulary_size, dtype=np.float32)
    encoder.save(tmp_path / "first")
    bm25().save(tmp_path / "second")
    lsr.write_idf(tmp_path / "idf.json", idf, encoder)
    arguments = ["join", tmp_path / "first", tmp_path / "second", "--idf", tmp_path / "idf.json"]
    assert run(*arguments, "--out", tmp_path / "joined", "--dtype", "float16") == 0
    loaded = lsr.load_encoder(tmp_path / "joined", device="cpu")
    assert loaded.queries.light
    np.testing.assert_allclose(loaded.queries.table, join(free(checkpoint), bm25()).queries.table, rtol=1e-3)
    assert loaded.documents.fingerprint != join(free(checkpoint), bm25()).documents.fingerprint


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bm25"], "bm25 is fitted to a corpus: name one with --corpus"),
        (["FIRST", "--corpus", "CORPUS"], "only bm25 is fitted to a corpus: leave --corpus out, or join with bm25"),
        (["FIRST", "--buckets", "5"], "leave --buckets out"),
        (["bm25", "--corpus", "CORPUS", "--buckets", "1"], "cannot hash to 1 buckets"),
        (["bm25", "--corpus", "CORPUS", "--weight", "nan"], "cannot be joined with the weight nan"),
        (["nowhere/at/all"], "the encoder folder nowhere/at/all does not exist"),
    ],
)
def test_lsr_join_refuses_in_a_sentence(tmp_path, corpus, capsys, arguments, sentence):
    table().save(tmp_path / "first")
    named = {"FIRST": tmp_path / "first", "CORPUS": corpus}
    given_arguments = [named.get(argument, argument) for argument in arguments]
    assert run("join", tmp_path / "first", *given_arguments, "--out", tmp_path / "joined") == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "joined").exists()


# --- the real model ----------------------------------------------------------------------------


def test_splade_tiny_and_bm25_on_cranfield(shared):
    documents = list(lsr.read_corpus(shared / "data" / "cranfield"))[:40]
    encoder = lsr.load_encoder(
        shared / "models" / "splade-tiny", device="cpu", document_max_length=64, query_max_length=64
    )
    first = inference_free(encoder, lsr.compute_idf(documents, encoder), max_length=64)
    second = Bm25(buckets=131_072).fit(documents)
    question = "what similarity laws must be obeyed when constructing aeroelastic models"
    with pytest.warns(LsrWarning, match="longer than 64 tokens"):
        vectors = [part.encode_documents(documents) for part in (first, second, join(first, second, 0.5))]
    queries = [part.encode_queries([question]) for part in (first, second, join(first, second, 0.5))]
    one, two, both = ((d @ q.T).toarray() for d, q in zip(vectors, queries, strict=True))
    np.testing.assert_allclose(both, one + 0.5 * two, rtol=1e-5)
    assert two.max() > 0


# --- IDF of the collection -----------------------------------------------------------------------


def test_a_hashed_bm25_takes_half_of_its_idf_from_the_collection():
    encoder = lsr.join(table(), bm25(), 2.0)
    corpus = [f"{text} river" for text in TEXTS]
    retriever = Retriever.build(corpus, encoder)
    counts = encoder.encode_documents(corpus).toarray() > 0
    own, size = np.log1p((len(corpus) - counts.sum(0) + 0.5) / (counts.sum(0) + 0.5)), table().vocabulary_size
    before, after = (side.encode(QUERIES).vectors.toarray() for side in (encoder.queries, retriever.queries))
    np.testing.assert_array_equal(after[:, :size], before[:, :size])  # the table stays
    expected = [[(w + own[j]) / 2 if w else 0 for j, w in enumerate(row)] for row in before[:1]]
    np.testing.assert_allclose(
        after[:1, size:], np.array(expected)[:, size:], rtol=1e-5
    )  # the first says no word twice
    assert retriever.queries.fingerprint != encoder.queries.fingerprint


def test_an_opened_retriever_knows_its_collection_too(tmp_path):
    encoder, corpus = lsr.join(table(), bm25()), [f"{text} river" for text in TEXTS]
    built = Retriever.build(corpus, encoder, path=tmp_path / "index")
    for retriever in (Retriever.open(tmp_path / "index"), Retriever.open(tmp_path / "index", encoder)):
        assert retriever.queries.fingerprint == built.queries.fingerprint
    assert not Retriever.build(corpus, bm25(None)).queries.adapts
