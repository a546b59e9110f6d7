"""A model's own tokenizer: text to term ids, with a hash that says which tokenizer it is."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lsr.errors import FormatError
from lsr.words import WordCache

#: Normalizers that change each character by itself. (Where normal forms are composed, a space may matter.)
NORMALIZERS = ("BertNormalizer", "Lowercase")


class Tokens(NamedTuple):
    """Token ids per text, and how many of the texts were cut at the maximum length."""

    ids: list[NDArray[np.int32]]
    truncated: int


class ModelTokenizer:
    """A Hugging Face ``tokenizer.json`` with its own truncation, used without transformers.

    Args:
        definition: the content of ``tokenizer.json``; its truncation and padding are ignored.
        max_length: tokens kept of a text, special ones included.
        add_special_tokens: whether [CLS], [SEP] and their like are put around the text.
    """

    def __init__(self, definition: str, max_length: int, *, add_special_tokens: bool = True) -> None:
        fields = json.loads(definition)
        fields["truncation"] = fields["padding"] = None
        self.definition = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        self.max_length = max_length
        self.add_special_tokens = add_special_tokens
        self._tokenizer = Tokenizer.from_str(self.definition)
        self._words = WordCache(self._ids_of_word)
        self._by_word = not add_special_tokens and splits_at_spaces(fields)
        if not self._by_word:
            self._tokenizer.enable_truncation(max_length)

    @classmethod
    def load(cls, path: Path, max_length: int, *, add_special_tokens: bool = True) -> "ModelTokenizer":
        """Read a ``tokenizer.json``.

        Raises:
            FormatError: the file is missing or is no tokenizer.
        """
        try:
            return cls(path.read_text(encoding="utf-8"), max_length, add_special_tokens=add_special_tokens)
        except FileNotFoundError as error:
            raise FormatError(f"{path} is missing: the folder is not a complete encoder") from error
        except Exception as error:
            raise FormatError(f"{path} is not a readable tokenizer.json: {error}") from error

    def with_options(self, max_length: int, *, add_special_tokens: bool) -> "ModelTokenizer":
        """The same tokenizer with another length or handling of special tokens."""
        return ModelTokenizer(self.definition, max_length, add_special_tokens=add_special_tokens)

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``, without blanks."""
        path.write_text(compact_json(self.definition), encoding="utf-8")

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the definition: equal hashes give equal term ids for every text."""
        return hashlib.sha256(self.definition.encode()).hexdigest()

    @cached_property
    def vocabulary_hash(self) -> str:
        """SHA-256 of terms and ids: equal hashes mean that term ids stand for the same terms."""
        return hashlib.sha256(json.dumps(self.vocabulary, sort_keys=True).encode()).hexdigest()

    @cached_property
    def size(self) -> int:
        """One more than the largest term id."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Term to term id, added tokens included."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @cached_property
    def special_ids(self) -> NDArray[np.int64]:
        """Ids of [CLS], [PAD] and their like, sorted."""
        added = self._tokenizer.get_added_tokens_decoder()
        return np.array(sorted(i for i, token in added.items() if token.special), dtype=np.int64)

    def term(self, term_id: int) -> str:
        """The term of an id, or ``[id]`` where the vocabulary is padded."""
        return self._tokenizer.id_to_token(term_id) or f"[{term_id}]"

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize, cutting each text at ``max_length``."""
        lists, truncated = self.lists(texts)
        return Tokens([np.array(ids, dtype=np.int32) for ids in lists], truncated)

    def lists(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """As a call, with a list of ids per text.

        Where spaces split a text whatever is beside them, the library is asked for each word once only: it takes longer
        over one question than the search does.
        """
        lists: list[list[int]] = []
        truncated = 0
        if self._by_word:
            words, most = self._words, self.max_length
            for text in texts:
                ids = list(chain.from_iterable(map(words.__getitem__, text.split(" "))))
                if len(ids) > most:
                    truncated += 1
                    del ids[most:]
                lists.append(ids)
            return lists, truncated
        for start in range(0, len(texts), 1024):  # encodings are heavy objects: keep few at a time
            batch = self._tokenizer.encode_batch_fast(
                list(texts[start : start + 1024]), add_special_tokens=self.add_special_tokens
            )
            lists += [encoding.ids for encoding in batch]
            truncated += sum(1 for encoding in batch if encoding.overflowing)
        return lists, truncated

    def _ids_of_word(self, word: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(word, add_special_tokens=False).ids)


def compact_json(text: str) -> str:
    """The same JSON without the blanks between its parts: a third of a tokenizer that is written for people."""
    return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


def splits_at_spaces(fields: dict[str, Any]) -> bool:
    """Whether a text's tokens are those of its parts between spaces, one after the other.

    So it is in BERT's tokenizers: characters are normalized one by one, words end at spaces, and no added token
    reaches over one.
    """
    normalizer, splitter = fields["normalizer"], fields["pre_tokenizer"]
    return (
        (normalizer is None or normalizer["type"] in NORMALIZERS)
        and splitter is not None
        and splitter["type"] == "BertPreTokenizer"
        and fields["model"]["type"] == "WordPiece"
        and not any(token["normalized"] or " " in token["content"] for token in fields["added_tokens"])
    )
