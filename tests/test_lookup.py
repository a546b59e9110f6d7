"""Inference-free queries: a table of weights, where it comes from and how it is kept."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

import lsr
from lsr.bm25 import Bm25
from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError, LsrWarning, MismatchError
from lsr.lookup import LookupEncoder, compute_idf, inference_free, read_idf, tokenizer_of, write_idf
from lsr.records import Document
from lsr.tokenizer import ModelTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["?", "!", ".", ",", "the", "cat", "dog", "bird", "fish", "horse", "sat", "play", "##ing", "##s", "run", "é"]
VOCABULARY = {term: i for i, term in enumerate([*SPECIAL, *WORDS])}
SIZE = len(VOCABULARY)


def definition(vocabulary: dict[str, int] = VOCABULARY) -> str:
    """The tokenizer.json of a small BERT."""
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return str(tokenizer.to_str())


def tokenizer(max_length: int = 64) -> ModelTokenizer:
    return ModelTokenizer(definition(), max_length)


def side(weights: NDArray[Any] | None = None, max_length: int = 64) -> LookupEncoder:
    weights = np.arange(1, SIZE + 1) / 4 if weights is None else weights
    return LookupEncoder(tokenizer(), weights, max_length)


def encoder(weights: NDArray[Any] | None = None) -> Encoder:
    return Encoder(side(weights), side(weights))


def as_terms(lookup: LookupEncoder, text: str) -> dict[str, float]:
    vectors = lookup.encode([text]).vectors
    return {lookup.term(i): float(w) for i, w in zip(vectors.indices, vectors.data, strict=True)}


def weight(term: str) -> float:
    return (VOCABULARY[term] + 1) / 4


# --- queries -----------------------------------------------------------------------------------


def test_a_term_gets_its_weight_once_however_often_it_stands_there() -> None:
    expected = {term: weight(term) for term in ("dog", "play", "##ing", "?")}
    assert as_terms(side(), "Dog playing dog, dog?") == expected | {",": weight(",")}


def test_no_special_token_is_put_around_a_query() -> None:
    assert as_terms(side(), "cat") == {"cat": weight("cat")}


def test_special_tokens_and_unknown_words_weigh_nothing_in_a_computed_table() -> None:
    lookup = side(compute_idf(["cat", "dog [SEP] unicorn"], encoder()))
    assert set(as_terms(lookup, "[CLS] cat [MASK] unicorn [SEP]")) == {"cat"}


def test_a_table_that_weighs_unknown_words_is_followed() -> None:
    weights = np.ones(SIZE)
    weights[VOCABULARY["[UNK]"]] = 7
    assert as_terms(side(weights), "cat unicorn") == {"cat": 1, "[UNK]": 7}


def test_negative_weights_count_as_zero_and_have_no_entry() -> None:
    weights = np.ones(SIZE)
    weights[VOCABULARY["cat"]], weights[VOCABULARY["dog"]] = -2, 0
    lookup = side(weights)
    assert as_terms(lookup, "cat dog bird") == {"bird": 1.0}
    assert weights[VOCABULARY["cat"]] == -2


def test_vectors_are_float32_in_order_whatever_the_batch() -> None:
    lookup = side()
    texts = ["run fish", "cat", "playing ! dogs", "the bird sat"]
    together = lookup.encode(texts)
    assert together.vectors.shape == (4, SIZE)
    assert together.vectors.dtype == np.float32
    assert together.truncated == 0
    for row, text in enumerate(texts):
        alone = lookup.encode([text]).vectors
        assert (alone.indices == np.sort(alone.indices)).all()
        assert (together.vectors[[row]] != alone).nnz == 0
    assert lookup.encode([]).vectors.shape == (0, SIZE)


def test_progress_is_told_of_every_text() -> None:
    told: list[int] = []
    side().encode(["cat", "", "dog"], told.append)
    assert sum(told) == 3


def test_a_text_is_cut_without_counting_special_tokens() -> None:
    lookup = side(max_length=2)
    assert set(as_terms(lookup, "cat dog bird")) == {"cat", "dog"}
    assert lookup.encode(["cat dog", "cat dog bird", "cat"]).truncated == 1


def test_cut_and_empty_queries_are_warned_about() -> None:
    free = inference_free(encoder(), compute_idf(["cat", "dog"], encoder()), max_length=2)
    with pytest.warns(LsrWarning, match="1 of 2 queries were longer than 2 tokens and were cut"):
        free.encode_queries(["cat dog bird", "cat"])
    with pytest.warns(LsrWarning, match="1 of 1 queries have no term in the vocabulary"):
        free.encode_queries(["unicorn"])


def test_a_table_may_be_padded_beyond_the_tokenizer() -> None:
    lookup = side(np.ones(SIZE + 3))
    assert lookup.encode(["cat"]).vectors.shape == (1, SIZE + 3)
    assert lookup.term(SIZE + 1) == f"[{SIZE + 1}]"


@pytest.mark.parametrize("shape", [(SIZE - 1,), (1, SIZE), ()])
def test_a_table_of_another_shape_than_the_tokenizer_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MismatchError, match=rf"the weight table has shape .* but the tokenizer has {SIZE} terms"):
        side(np.ones(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_table_that_is_not_finite_is_refused(bad: float) -> None:
    weights = np.ones(SIZE)
    weights[7] = bad
    with pytest.raises(InputError, match="the weight table holds NaN or infinite weights"):
        side(weights)
    with pytest.raises(InputError, match="NaN or infinite"):
        inference_free(encoder(), weights)


def test_the_fingerprint_changes_with_the_weights_and_the_tokenizer() -> None:
    changed = np.arange(1, SIZE + 1) / 4
    changed[VOCABULARY["cat"]] += 1
    swapped = {**VOCABULARY, "cat": VOCABULARY["dog"], "dog": VOCABULARY["cat"]}
    other = LookupEncoder(ModelTokenizer(definition(swapped), 64), np.arange(1, SIZE + 1) / 4, 64)
    assert side().fingerprint == side(max_length=32).fingerprint
    assert len({side().fingerprint, side(changed).fingerprint, other.fingerprint}) == 3
    with pytest.raises(MismatchError, match="have different vocabularies: their dot products would mean nothing"):
        Encoder(side(), other)


# --- inference_free ----------------------------------------------------------------------------


def test_inference_free_keeps_the_documents_and_looks_queries_up() -> None:
    documents = encoder()
    free = inference_free(documents, np.full(SIZE, 2.0), max_length=32)
    assert free.documents is documents.documents
    assert free.queries.max_length == 32
    assert free.encode_queries(["cat dog cat"]).data.tolist() == [2, 2]
    assert free.fingerprint != documents.fingerprint


def test_a_table_of_another_size_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(MismatchError, match=rf"the IDF table has {SIZE + 1} weights, the encoder {SIZE} terms"):
        inference_free(encoder(), np.ones(SIZE + 1))


def test_bm25_has_no_tokenizer_for_a_table() -> None:
    bm25 = Bm25().fit(["cat dog"])
    with pytest.raises(InputError, match="a bm25-documents encoder has no model tokenizer: an IDF table needs one"):
        inference_free(bm25, np.ones(2))
    with pytest.raises(InputError, match="has no model tokenizer"):
        compute_idf(["cat"], bm25)


def test_an_inference_free_encoder_is_saved_and_loaded(tmp_path: Path) -> None:
    free = inference_free(encoder(), np.linspace(-1, 3, SIZE), max_length=3)
    free.save(tmp_path / "model")
    loaded = lsr.load_encoder(tmp_path / "model")
    assert loaded.fingerprint == free.fingerprint
    assert loaded.queries.max_length == 3
    texts = ["cat sat", "playing é", "fish"]
    assert (loaded.encode_queries(texts) != free.encode_queries(texts)).nnz == 0
    assert (loaded.encode_documents(texts) != free.encode_documents(texts)).nnz == 0


# --- IDF ---------------------------------------------------------------------------------------

CORPUS = ["cat cat dog", "dog playing", Document("3", "dog plays", "bird"), "the [SEP] unicorn"]


def test_idf_equals_a_plain_count() -> None:
    idf = compute_idf(iter(CORPUS), encoder())
    contained = [{"cat", "dog"}, {"dog", "play", "##ing"}, {"bird", "dog", "play", "##s"}, {"the", "[SEP]", "[UNK]"}]
    for term, i in VOCABULARY.items():
        df = sum(term in terms for terms in contained)
        expected = 0 if term in SPECIAL else math.log(1 + (4 - df + 0.5) / (df + 0.5))
        assert idf[i] == pytest.approx(expected, rel=1e-6), term
    assert idf.dtype == np.float32
    assert idf.shape == (SIZE,)


def test_idf_counts_whole_texts_beyond_the_maximum_length() -> None:
    short = Encoder(side(max_length=1), side(max_length=1))
    np.testing.assert_array_equal(compute_idf(CORPUS, short), compute_idf(CORPUS, encoder()))


def test_idf_of_more_texts_than_a_batch() -> None:
    idf = compute_idf(["cat"] * 1024 + ["dog"] * 2, encoder())
    assert idf[VOCABULARY["cat"]] == pytest.approx(math.log(1 + 2.5 / 1024.5), rel=1e-6)
    assert idf[VOCABULARY["dog"]] == pytest.approx(math.log(1 + 1024.5 / 2.5), rel=1e-6)


def test_idf_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="an IDF table needs at least one document"):
        compute_idf([], encoder())


def test_a_written_table_comes_back_exactly(tmp_path: Path) -> None:
    idf = compute_idf(CORPUS, encoder())
    write_idf(tmp_path / "idf.json", idf, encoder())
    np.testing.assert_array_equal(read_idf(tmp_path / "idf.json", encoder()), idf)
    table = json.loads((tmp_path / "idf.json").read_text(encoding="utf-8"))
    assert set(table) == set(WORDS)


def test_a_table_like_opensearch_s_is_read(tmp_path: Path) -> None:
    path = tmp_path / "idf.json"
    path.write_text('{"cat": 5.25, "##s": 1, "[CLS]": 0.5, "\\u00e9": 2.5}')
    with pytest.warns(LsrWarning, match=rf"has weights for 4 of the tokenizer's {SIZE} terms.* lsr idf"):
        idf = read_idf(str(path), encoder())
    assert idf.dtype == np.float32
    assert {t: float(idf[i]) for t, i in VOCABULARY.items() if idf[i]} == {
        "[CLS]": 0.5,
        "cat": 5.25,
        "##s": 1,
        "é": 2.5,
    }
    assert as_terms(inference_free(encoder(), idf).queries, "the cats cat") == {"cat": 5.25, "##s": 1}  # type: ignore[arg-type]


def test_counted_queries_weigh_a_term_as_often_as_it_stands(tmp_path: Path) -> None:
    idf = np.zeros(SIZE, dtype=np.float32)
    idf[[VOCABULARY["cat"], VOCABULARY["##s"]]] = 5.25, 1
    counted, binary = inference_free(encoder(), idf, counts=True), inference_free(encoder(), idf)
    assert as_terms(counted.queries, "the cats cat") == {"cat": 10.5, "##s": 1}  # type: ignore[arg-type]
    assert as_terms(counted.queries, "cat") == as_terms(binary.queries, "cat")  # type: ignore[arg-type]
    assert counted.queries.fingerprint != binary.queries.fingerprint
    counted.save(tmp_path / "counted")
    again = lsr.load_encoder(tmp_path / "counted").queries
    assert again.fingerprint == counted.queries.fingerprint
    assert as_terms(again, "cat cat cat") == {"cat": 15.75}  # type: ignore[arg-type]


def test_a_table_of_another_tokenizer_is_refused_by_example(tmp_path: Path) -> None:
    (tmp_path / "idf.json").write_text('{"cat": 1.0, "▁cat": 2.0, "katze": 3.0}', encoding="utf-8")
    with pytest.raises(MismatchError, match=r"2 of its 3 terms are unknown to it \(such as '▁cat', 'katze'\)"):
        read_idf(tmp_path / "idf.json", encoder())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cat": 1.0', "is not valid JSON"),
        ("[1.0, 2.0]", "must be one JSON object of term: weight"),
        ('{"cat": "high"}', "must be one JSON object of term: weight"),
        ('{"cat": null}', "must be one JSON object of term: weight"),
        ("{}", "must be one JSON object of term: weight, with a term at least"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "idf.json").write_text(text)
    with pytest.raises(FormatError, match=rf"idf\.json {message}"):
        read_idf(tmp_path / "idf.json", encoder())


def test_a_table_with_nan_makes_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "idf.json").write_text('{"cat": NaN}')
    with pytest.warns(LsrWarning), pytest.raises(InputError, match="NaN or infinite weights"):
        inference_free(encoder(), read_idf(tmp_path / "idf.json", encoder()))


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"idf\.json is missing: write one with lsr idf"):
        read_idf(tmp_path / "idf.json", encoder())


# --- the tokenizer under it --------------------------------------------------------------------


def test_the_tokenizer_s_own_truncation_and_padding_are_ignored() -> None:
    cut = Tokenizer.from_str(definition())
    cut.enable_truncation(3)
    cut.enable_padding(length=10)
    plain, other = tokenizer(), ModelTokenizer(cut.to_str(), 64)
    assert other.hash == plain.hash
    assert [ids.tolist() for ids in other(["the cat sat"]).ids] == [[2, 9, 10, 15, 3]]


def test_special_tokens_count_for_the_length_where_they_are_added() -> None:
    tokens = ModelTokenizer(definition(), 4)(["cat dog bird", "cat dog"])
    assert [ids.tolist() for ids in tokens.ids] == [[2, 10, 11, 3], [2, 10, 11, 3]]
    assert tokens.truncated == 1


def test_a_tokenizer_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer().save(tmp_path / "tokenizer.json")
    loaded = ModelTokenizer.load(tmp_path / "tokenizer.json", 64)
    assert loaded.hash == tokenizer().hash
    assert loaded.size == SIZE
    assert loaded.special_ids.tolist() == list(range(len(SPECIAL)))
    assert tokenizer_of(encoder()).vocabulary == VOCABULARY


@pytest.mark.parametrize(("text", "message"), [(None, "is missing"), ("{", "is not a readable tokenizer.json")])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(FormatError, match=rf"tokenizer\.json {message}"):
        ModelTokenizer.load(tmp_path / "tokenizer.json", 64)
