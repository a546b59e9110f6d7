"""BM25 against its formula, written out by hand."""

import json
import math
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import lsr
from lsr.analyzer import ENGLISH_STOPWORDS, Analyzer
from lsr.bm25 import Bm25, robertson_idf
from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError, LsrWarning, MismatchError
from lsr.records import Document, Query

TEXTS = [
    "cat cat dog",
    "dog bird",
    "fish",
    "bird bird bird bird cat fish fish dog horse",
    "horse fish bird",
]
QUERIES = ["cat", "dog bird", "fish fish cat", "horse unicorn", "cat dog bird fish horse"]


def bm25(query: str, document: str, texts: list[str], k1: float, b: float) -> float:
    """Robertson's score of one document, words split at spaces, repeated query words counted."""
    words = document.split()
    average = sum(len(text.split()) for text in texts) / len(texts)
    score = 0.0
    for word in query.split():
        df = sum(word in text.split() for text in texts)
        tf = Counter(words)[word]
        if tf:
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(words) / average))
    return score


def equal(one: Encoder, other: Encoder) -> bool:
    pairs = [(one.encode_documents(TEXTS), other.encode_documents(TEXTS))]
    pairs.append((one.encode_queries(QUERIES), other.encode_queries(QUERIES)))
    return all(a.shape == b.shape and (a != b).nnz == 0 for a, b in pairs)


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (0.0, 0.5), (2.0, 0.0), (2.0, 1.0)])
def test_dot_products_are_bm25_scores(k1: float, b: float) -> None:
    encoder = Bm25(k1=k1, b=b).fit(TEXTS)
    scores = (encoder.encode_documents(TEXTS) @ encoder.encode_queries(QUERIES).T).toarray()
    expected = [[bm25(query, text, TEXTS, k1, b) for query in QUERIES] for text in TEXTS]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert np.count_nonzero(scores) == 17


def test_documents_that_were_not_fitted_are_scored_too() -> None:
    encoder = Bm25().fit(TEXTS)
    new = "dog unicorn dog unicorn unicorn"  # unknown words count for its length
    scores = (encoder.encode_documents([new]) @ encoder.encode_queries(["dog"]).T).toarray()
    assert scores[0, 0] == pytest.approx(bm25("dog", new, TEXTS, 0.9, 0.4), rel=1e-6)


def test_vectors_are_float32_of_one_width_and_name_their_encoder() -> None:
    encoder = Bm25().fit(TEXTS)
    for vectors in (encoder.encode_documents(TEXTS), encoder.encode_queries(QUERIES)):
        assert vectors.shape == (5, 5)
        assert vectors.dtype == np.float32
        assert vectors.has_canonical_format
        assert vectors.encoder == encoder.fingerprint
    assert [encoder.term(i) for i in range(5)] == ["bird", "cat", "dog", "fish", "hors"]


def test_progress_is_told_of_every_text() -> None:
    encoder = Bm25().fit(TEXTS)
    for side in (encoder.documents, encoder.queries):
        told: list[int] = []
        side.encode(TEXTS, told.append)
        assert sum(told) == len(TEXTS)


def test_repeated_query_words_count_repeatedly() -> None:
    once, twice = Bm25().fit(TEXTS).encode_queries(["fish", "fish fish"]).toarray()
    np.testing.assert_array_equal(twice, 2 * once)


def test_idf_is_positive_even_for_a_word_of_every_document() -> None:
    idf = robertson_idf(np.array([1, 2, 4]), 4)
    np.testing.assert_allclose(idf, [math.log(1 + 3.5 / 1.5), math.log(1 + 2.5 / 2.5), math.log(1 + 0.5 / 4.5)])
    assert idf.dtype == np.float32


def test_documents_are_fitted_by_title_and_text_from_any_iterable() -> None:
    documents = [Document("1", "dog bird", "cat"), Document("2", "fish")]
    encoder = Bm25().fit(iter(documents))
    assert encoder.fingerprint == Bm25().fit(["cat dog bird", "fish"]).fingerprint
    assert (encoder.encode_documents(documents) != encoder.encode_documents(["cat dog bird", "fish"])).nnz == 0
    assert encoder.encode_queries([Query("1", "cat")]).nnz == 1


def test_a_query_of_unknown_words_is_empty_with_a_warning() -> None:
    encoder = Bm25().fit(TEXTS)
    with pytest.warns(LsrWarning, match=r"2 of 3 queries have no term in the vocabulary \(empty text\?\)"):
        vectors = encoder.encode_queries(["unicorn", "cat", ""])
    assert np.diff(vectors.indptr).tolist() == [0, 1, 0]


def test_an_empty_document_is_empty_with_a_warning() -> None:
    encoder = Bm25().fit([*TEXTS, ""])
    with pytest.warns(LsrWarning, match="1 of 2 documents have no term in the vocabulary"):
        assert np.diff(encoder.encode_documents(["", "cat"]).indptr).tolist() == [0, 1]


@pytest.mark.parametrize("texts", [[], [""], ["the of and", "?!"]])
def test_a_corpus_without_terms_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match=f"BM25 found no term in the {len(texts)} documents: is the text empty"):
        Bm25().fit(texts)


def test_one_text_instead_of_a_list_is_refused() -> None:
    with pytest.raises(InputError, match="fit takes a list of texts, not one text"):
        Bm25().fit("corpus.jsonl")
    encoder = Bm25().fit(TEXTS)
    with pytest.raises(InputError, match=r"write encode_documents\(\[text\]\)"):
        encoder.encode_documents("cat")
    with pytest.raises(InputError, match=r"queries are given as a list of texts: write \[text\] for a single one"):
        encoder.encode_queries("cat")
    with pytest.raises(InputError, match="a query to encode is a int: give strings"):
        encoder.encode_queries([5])  # type: ignore[list-item]


@pytest.mark.parametrize(("k1", "b"), [(-0.1, 0.4), (0.9, -0.1), (0.9, 1.1), (float("nan"), 0.4), (0.9, float("nan"))])
def test_impossible_parameters_are_refused(k1: float, b: float) -> None:
    with pytest.raises(InputError, match=rf"BM25 needs a finite k1 >= 0 and 0 <= b <= 1: got k1={k1}, b={b}"):
        Bm25(k1=k1, b=b)


# --- hashed stems ------------------------------------------------------------------------------


def scores(encoder: Encoder, documents: list[str], queries: list[str]) -> list[list[float]]:
    return (encoder.encode_documents(documents) @ encoder.encode_queries(queries).T).toarray().tolist()


def test_hashed_scores_are_bm25_scores_where_no_two_stems_meet() -> None:
    plain, hashed = Bm25().fit(TEXTS), Bm25(buckets=131_072).fit(TEXTS)
    buckets = {zlib.crc32(stem.encode()) % 131_072 for stem in ("bird", "cat", "dog", "fish", "hors")}
    assert len(buckets) == 5
    assert hashed.vocabulary_size == 131_072
    assert set(hashed.encode_documents(TEXTS).indices.tolist()) == buckets
    assert scores(hashed, TEXTS, QUERIES[:3]) == scores(plain, TEXTS, QUERIES[:3])
    new = ["dog unicorn dog", "cat"]
    assert scores(hashed, new, QUERIES[:3]) == scores(plain, new, QUERIES[:3])


words = st.sampled_from(["cat", "dogs", "bird", "fish", "horse", "the", "Zürich", "東京", "don't", "b2b"])
texts = st.lists(st.lists(words, max_size=8).map(" ".join), min_size=1, max_size=6)


@pytest.mark.filterwarnings("ignore:.* have no term in the vocabulary:lsr.errors.LsrWarning")
@settings(deadline=None)
@given(texts, texts, st.sampled_from([2, 3, 7, 100]))
def test_hashed_scores_are_those_of_buckets_written_as_words(corpus: list[str], queries: list[str], size: int) -> None:
    def as_buckets(text: str) -> str:
        return " ".join(f"x{zlib.crc32(stem.encode()) % size}" for stem in Analyzer()(text))

    assume(any(as_buckets(text) for text in corpus))
    rewritten = [as_buckets(text) for text in corpus]
    expected = [[bm25(as_buckets(query), text, rewritten, 0.9, 0.4) for query in queries] for text in rewritten]
    hashed = Bm25(buckets=size).fit(corpus)
    np.testing.assert_allclose(scores(hashed, corpus, queries), expected, rtol=1e-5)


def test_a_word_of_no_document_has_a_bucket_and_the_largest_idf() -> None:
    encoder = Bm25(buckets=131_072).fit(TEXTS)
    unknown, known = encoder.encode_queries(["unicorn", "cat"]).data.tolist()
    assert unknown == pytest.approx(math.log(1 + 5.5 / 0.5))
    assert unknown > known
    assert encoder.encode_documents(["unicorn"]).nnz == 1
    assert scores(encoder, ["unicorn"], ["unicorns"])[0][0] > 0


def test_a_bucket_counts_once_for_a_document() -> None:
    encoder = Bm25(buckets=2).fit(["cat dog bird fish horse", "cat"])  # of five words, two share a bucket
    bucket = zlib.crc32(b"cat") % 2
    np.testing.assert_allclose(encoder.queries.idf[bucket], math.log(1 + 0.5 / 2.5), rtol=1e-6)  # type: ignore[attr-defined]


def test_terms_of_a_hashed_vocabulary_are_numbers() -> None:
    encoder = Bm25(buckets=100).fit(TEXTS)
    assert [encoder.term(i) for i in (0, 7, 99)] == ["#0", "#7", "#99"]


def test_hashed_encoders_of_two_corpora_share_their_vocabulary() -> None:
    one, other = Bm25(buckets=100).fit(TEXTS), Bm25(buckets=100).fit(["unicorn"])
    assert one.documents.vocabulary_hash == other.documents.vocabulary_hash
    assert one.fingerprint != other.fingerprint
    assert one.with_queries(other).queries is other.queries
    for apart in (Bm25(buckets=101), Bm25(buckets=100, analyzer=Analyzer(stemmer="none")), Bm25()):
        with pytest.raises(MismatchError, match="different vocabularies"):
            one.with_queries(apart.fit(TEXTS))


def test_a_saved_hashed_encoder_comes_back_equal(tmp_path: Path) -> None:
    encoder = Bm25(k1=1.3, b=0.7, buckets=50).fit(TEXTS)
    encoder.save(tmp_path / "bm25")
    files = sorted(path.name for path in (tmp_path / "bm25").rglob("*") if path.is_file())
    assert files == ["idf.npy", "lsr_encoder.json"]
    (tmp_path / "bm25" / "documents").rmdir()  # git and wheels keep no empty folder
    loaded = lsr.load_encoder(tmp_path / "bm25")
    assert loaded.fingerprint == encoder.fingerprint
    assert equal(loaded, encoder)


def test_a_plain_encoder_is_saved_as_ever(tmp_path: Path) -> None:
    Bm25().fit(TEXTS).save(tmp_path / "bm25")
    fields = json.loads((tmp_path / "bm25" / "lsr_encoder.json").read_text())
    assert fields["documents"].keys() == {"kind", "folder", "k1", "b", "stemmer", "stopwords", "average_length"}
    assert fields["identity"]["fingerprint"] == "f13a358adf89dbb2de810c9399280ff49d1c704d6f4b273549797929b72fafdb"
    assert (tmp_path / "bm25" / "queries" / "terms.txt").read_text() == "bird\ncat\ndog\nfish\nhors"


@pytest.mark.parametrize("buckets", [1, 0, -5, 2**24 + 1, 2.0, "100", True])
def test_impossible_buckets_are_refused(buckets: object) -> None:
    with pytest.raises(InputError, match=r"BM25 cannot hash to .* buckets: give a whole number, 2 to 16,777,216"):
        Bm25(buckets=buckets)  # type: ignore[arg-type]


def test_a_table_of_another_number_of_buckets_is_refused(tmp_path: Path) -> None:
    Bm25(buckets=50).fit(TEXTS).save(tmp_path / "bm25")
    np.save(tmp_path / "bm25" / "queries" / "idf.npy", np.ones(49, dtype=np.float32))
    with pytest.raises(FormatError, match=r"the IDF table has \(49,\) weights for 50 terms"):
        lsr.load_encoder(tmp_path / "bm25")


def test_a_hashed_corpus_without_terms_is_refused() -> None:
    with pytest.raises(InputError, match="BM25 found no term in the 1 documents"):
        Bm25(buckets=50).fit(["the of"])


# --- analyzer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("The Cat and the DOGS", ["cat", "dog"]),
        ("running runs ran", ["run", "run", "ran"]),
        ("the dog's bone, the dogs’ bones", ["dog", "bone", "dog", "bone"]),
        ("It's that cat’s", ["cat"]),
        ("don't", ["don't"]),
        ("state-of-the-art: snake_case, 3.5 B2B", ["state", "art", "snake", "case", "3", "5", "b2b"]),
        ("Zürich, naïve 東京", ["zürich", "naïv", "東京"]),
        ("", []),
        (" -- ?! ", []),
    ],
)
def test_words_are_split_stopped_and_stemmed(text: str, stems: list[str]) -> None:
    analyzer = Analyzer()
    assert analyzer(text) == stems
    assert analyzer(text) == stems  # from its cache


def test_every_stop_word_is_dropped_and_can_be_kept() -> None:
    text = " ".join(sorted(ENGLISH_STOPWORDS))
    assert Analyzer()(text) == []
    assert len(Analyzer(stopwords=frozenset())(text)) == len(ENGLISH_STOPWORDS) == 33


def test_stemming_can_be_left_out_or_be_of_another_language() -> None:
    assert Analyzer(stemmer="none")("the running horses") == ["running", "horses"]
    assert Analyzer(stemmer="german", stopwords=frozenset({"die"}))("die Häuser") == ["haus"]


def test_an_unknown_stemmer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"there is no stemmer 'klingon': choose one of none, .*english.*porter"):
        Analyzer(stemmer="klingon")


def test_queries_and_documents_meet_at_their_stems() -> None:
    encoder = Bm25().fit(["The dog's horses are running"])
    vectors = encoder.encode_queries(["horse", "dogs", "run"])
    assert np.diff(vectors.indptr).tolist() == [1, 1, 1]


# --- identity and files ------------------------------------------------------------------------


def test_a_saved_encoder_comes_back_equal(tmp_path: Path) -> None:
    analyzer = Analyzer(stemmer="english", stopwords=frozenset({"fish"}))
    encoder = Bm25(k1=1.3, b=0.7, analyzer=analyzer).fit([*TEXTS, "Zürich's naïve 東京"])
    encoder.save(tmp_path / "bm25")
    loaded = lsr.load_encoder(tmp_path / "bm25")
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.vocabulary_size == encoder.vocabulary_size
    assert [loaded.term(i) for i in range(7)] == [encoder.term(i) for i in range(7)]
    queries = ["cat zürich", "東京"]
    assert (loaded.encode_queries(queries) != encoder.encode_queries(queries)).nnz == 0
    documents = ["cat fish", "naïve bird"]
    assert (loaded.encode_documents(documents) != encoder.encode_documents(documents)).nnz == 0


def test_default_parameters_come_back_equal(tmp_path: Path) -> None:
    encoder = Bm25().fit(TEXTS)
    encoder.save(tmp_path / "bm25")
    assert equal(lsr.load_encoder(tmp_path / "bm25"), encoder)


def test_saving_does_not_overwrite_unless_told(tmp_path: Path) -> None:
    Bm25().fit(TEXTS).save(tmp_path / "bm25")
    other = Bm25().fit(TEXTS[:2])
    with pytest.raises(InputError, match="already exists"):
        other.save(tmp_path / "bm25")
    other.save(tmp_path / "bm25", overwrite=True)
    assert lsr.load_encoder(tmp_path / "bm25").fingerprint == other.fingerprint


def test_an_idf_table_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    Bm25().fit(TEXTS).save(tmp_path / "bm25")
    np.save(tmp_path / "bm25" / "queries" / "idf.npy", np.ones(3, dtype=np.float32))
    with pytest.raises(FormatError, match=r"the IDF table has \(3,\) weights for 5 terms"):
        lsr.load_encoder(tmp_path / "bm25")


def test_fitting_again_gives_the_same_fingerprint() -> None:
    assert Bm25().fit(TEXTS).fingerprint == Bm25().fit(TEXTS).fingerprint


@pytest.mark.parametrize(
    ("model", "texts"),
    [
        (Bm25(), [text.replace("fish", "fowl") for text in TEXTS]),  # another word of the same statistics
        (Bm25(), [text if text != "fish" else "cat" for text in TEXTS]),  # other frequencies
        (Bm25(), [TEXTS[0] + " cat", *TEXTS[1:]]),  # another length
        (Bm25(k1=1.0), TEXTS),
        (Bm25(b=0.5), TEXTS),
        (Bm25(analyzer=Analyzer(stemmer="english")), TEXTS),
        (Bm25(analyzer=Analyzer(stopwords=frozenset())), TEXTS),
        (Bm25(buckets=5), TEXTS),
    ],
)
def test_the_fingerprint_changes_with_the_corpus_and_the_parameters(model: Bm25, texts: list[str]) -> None:
    assert model.fit(texts).fingerprint != Bm25().fit(TEXTS).fingerprint
