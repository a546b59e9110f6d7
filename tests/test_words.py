"""Tokens and stems of words that are remembered: those of the library, for every text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lsr import words
from lsr.analyzer import ENGLISH_STOPWORDS, WORD, Analyzer
from lsr.lookup import LookupEncoder
from lsr.tokenizer import ModelTokenizer, splits_at_spaces
from lsr.words import LONGEST_WORD, WordCache

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefgzéßñσςιİ中日本語한국어", *"0123456789.,;:!?-'\"()[]/\\@#$%&*+<=>^_`{|}~…–’"]
PIECES = [*SPECIAL, *LETTERS, "cat", "dog", "run", *(f"##{letter}" for letter in [*LETTERS, "ing"])]
VOCABULARY = {piece: i for i, piece in enumerate(PIECES)}
ADDED = [
    {"id": i, "content": token, "special": True, "normalized": False, "single_word": False, "lstrip": False,
     "rstrip": False} for i, token in enumerate(SPECIAL)
]  # fmt: skip
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
NOTHING = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
NORMALIZERS = {
    "uncased": {**BERT, "lowercase": True},
    "cased": {**BERT, "lowercase": False, "strip_accents": True},
    "as it is": {**BERT, **NOTHING},
    "lower case": {"type": "Lowercase"},
    "none": None,
}


def definition(**changes: Any) -> str:
    """A tokenizer.json over single characters, some words, and what BERT adds."""
    fields = {
        "version": "1.0",
        "added_tokens": ADDED,
        "normalizer": NORMALIZERS["uncased"],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 20, "vocab": VOCABULARY,
        },
    }  # fmt: skip
    return json.dumps({**fields, **changes})


def by_the_library(text_definition: str, texts: list[str], most: int) -> tuple[list[list[int]], int]:
    """The ids as Hugging Face's library gives them for whole texts."""
    tokenizer = Tokenizer.from_str(text_definition)
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encoded], sum(bool(encoding.overflowing) for encoding in encoded)


# Everything, and more often what could matter: spaces of all kinds, control and combining characters, special tokens.
PARTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from([
        " ", "  ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u1680", "\u2009", "\u2028", "\u3000",
        "\ufeff", "\u200b", "\u200d", "\x00", "\x7f", "\ufffd", "\u0301", "e\u0301", "\u0345", "\u093f", "\u202e",
        "cat", "Cat", "DOG", "running", "café", "İ", "ΣΑΣ", "ß", "ﬁ", "中文", "日本語 cat", "한국", "don't", "a-b",
        "--", "[CLS]", "[MASK]", " [SEP] ", "[sep]", "[ CLS]", "[UNK]cat", "##ing", "x" * 25, "1,000.5", "🎉", "👩‍👩‍👧",
    ]),
)  # fmt: skip
TEXTS = st.lists(st.lists(PARTS, max_size=12).map("".join), min_size=1, max_size=4)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12))
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_words_that_are_remembered_give_the_librarys_ids(normalizer: str, texts: list[str], most: int) -> None:
    text_definition = definition(normalizer=NORMALIZERS[normalizer])
    assert splits_at_spaces(json.loads(text_definition))
    ours = ModelTokenizer(text_definition, most, add_special_tokens=False)
    expected = by_the_library(text_definition, texts, most)
    for _ in range(2):  # the second time nothing is new
        assert ours.lists(texts) == expected
        called = ours(texts)
        assert ([ids.tolist() for ids in called.ids], called.truncated) == expected
        assert all(ids.dtype == np.int32 for ids in called.ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a c"}, "content": "x"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}},
        {"added_tokens": [*ADDED, {**ADDED[0], "id": len(VOCABULARY), "content": "cat dog"}]},
        {"added_tokens": [*ADDED, {**ADDED[0], "id": len(VOCABULARY), "content": "中", "normalized": True}]},
    ],
)
def test_other_tokenizers_see_the_whole_text(changes: dict[str, Any]) -> None:
    text_definition = definition(**changes)
    assert not splits_at_spaces(json.loads(text_definition))
    texts = ["a cat dog", "cat  dog a c", "", "the 中 cat e\u0301", "cat " * 9]
    ours = ModelTokenizer(text_definition, 8, add_special_tokens=False)
    assert ours.lists(texts) == by_the_library(text_definition, texts, 8)
    assert not ours._words


def test_special_tokens_are_the_librarys_work() -> None:
    ours = ModelTokenizer(definition(), 3)
    assert ours.lists(["cat dog", "cat dog run a"]) == by_the_library(definition(), ["cat dog", "cat dog run a"], 3)
    assert not ours._words


def test_real_questions_and_documents_get_the_librarys_ids(real_texts: list[str], real_tokenizer: str) -> None:
    assert splits_at_spaces(json.loads(real_tokenizer))
    ours = ModelTokenizer(real_tokenizer, 64, add_special_tokens=False)
    assert ours.lists(real_texts) == by_the_library(real_tokenizer, real_texts, 64)


@pytest.fixture
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} with real texts and a real model is absent")
    return folder


@pytest.fixture
def real_texts(shared: Path) -> list[str]:
    import gzip

    texts = []
    for name in ("cisi/queries", "cranfield/corpus", "squad-dev/corpus", "debian-packages/queries"):
        with gzip.open(shared / "data" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line, _ in zip(file, range(300), strict=False)]
    return texts


@pytest.fixture
def real_tokenizer(shared: Path) -> str:
    return (shared / "models" / "splade-tiny" / "tokenizer.json").read_text(encoding="utf-8")


@settings(deadline=None)
@given(TEXTS, st.lists(st.sampled_from([0.0, -1.0, 0.5, 2.0]), min_size=len(VOCABULARY), max_size=len(VOCABULARY)))
def test_looked_up_rows_are_the_unique_ids_that_weigh_something(texts: list[str], table: list[float]) -> None:
    weights = np.array(table, dtype=np.float32)
    rows, truncated = LookupEncoder(ModelTokenizer(definition(), 8), weights, 8).encode_rows(texts)
    lists, cut = by_the_library(definition(), texts, 8)
    assert truncated == cut
    for row, ids in enumerate(lists):
        present = [i for i in np.unique(np.array(ids, dtype=np.int64)) if weights[i] > 0]
        entries = slice(rows.indptr[row], rows.indptr[row + 1])
        assert rows.indices[entries].tolist() == present
        assert rows.data[entries].tolist() == weights[present].tolist()


@settings(deadline=None)
@given(TEXTS)
@pytest.mark.parametrize("stemmer", ["porter", "none"])
def test_stems_are_made_word_by_word(stemmer: str, texts: list[str]) -> None:
    import Stemmer

    analyzer, stem = Analyzer(stemmer), Stemmer.Stemmer("porter").stemWord
    for text in texts:
        bare = [word[:-2] if word[-2:] in ("'s", "’s") else word for word in WORD.findall(text.lower())]
        expected = [word if stemmer == "none" else stem(word) for word in bare if word not in ENGLISH_STOPWORDS]
        assert analyzer(text) == [word for word in expected if word]  # Porter leaves nothing of "s"


def test_a_cache_keeps_so_many_words_and_no_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    asked: list[str] = []

    def function(word: str) -> int:
        asked.append(word)
        return len(word)

    cache = WordCache(function)
    long = "x" * (LONGEST_WORD + 1)
    assert [cache[word] for word in ("a", "bb", "a", long, long, "ccc")] == [1, 2, 1, 41, 41, 3]
    assert asked == ["a", "bb", long, long, "ccc"]
    assert cache["dddd"] == 4
    assert dict(cache) == {"dddd": 4}  # the fourth came in place of the others
