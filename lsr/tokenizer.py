"""A model's own tokenizer: text to term ids, with a hash that says which tokenizer it is."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lsr.errors import FormatError


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
        """Write ``tokenizer.json``."""
        path.write_text(self.definition, encoding="utf-8")

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
        ids: list[NDArray[np.int32]] = []
        truncated = 0
        for start in range(0, len(texts), 1024):  # encodings are heavy objects: keep few at a time
            batch = self._tokenizer.encode_batch_fast(
                list(texts[start : start + 1024]), add_special_tokens=self.add_special_tokens
            )
            ids += [np.array(encoding.ids, dtype=np.int32) for encoding in batch]
            truncated += sum(1 for encoding in batch if encoding.overflowing)
        return Tokens(ids, truncated)
