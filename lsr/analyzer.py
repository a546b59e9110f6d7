"""Words of a text for BM25: split, lower-cased, stopped and stemmed as Lucene does for English."""

import re
from dataclasses import dataclass
from functools import cached_property

from lsr.errors import InputError
from lsr.words import WordCache

# Runs of letters and digits; one inner apostrophe keeps "don't" together.
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")

# Lucene's EnglishAnalyzer stop words.
ENGLISH_STOPWORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "if",
        "in",
        "into",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    ]
)


@dataclass(frozen=True)
class Analyzer:
    """Text to a list of stems.

    Attributes:
        stemmer: a Snowball algorithm ("porter", "english", "german", …), or "none".
        stopwords: words dropped before stemming.
    """

    stemmer: str = "porter"
    stopwords: frozenset[str] = ENGLISH_STOPWORDS

    def __post_init__(self) -> None:
        import Stemmer

        if self.stemmer != "none" and self.stemmer not in Stemmer.algorithms():
            known = ", ".join(["none", *sorted(Stemmer.algorithms())])
            raise InputError(f"there is no stemmer {self.stemmer!r}: choose one of {known}")

    @cached_property
    def _stems(self) -> WordCache[str]:
        """Word to stem, a stop word to nothing."""
        import Stemmer

        stem = str if self.stemmer == "none" else Stemmer.Stemmer(self.stemmer).stemWord

        def stem_of(word: str) -> str:
            bare = word[:-2] if word.endswith(("'s", "’s")) else word
            return "" if bare in self.stopwords else str(stem(bare))

        return WordCache(stem_of)

    def __call__(self, text: str) -> list[str]:
        """The stems of a text in order, stop words left out."""
        return list(filter(None, map(self._stems.__getitem__, WORD.findall(text.lower()))))
