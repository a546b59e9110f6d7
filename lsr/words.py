"""What a slow function makes of a word, kept: texts repeat their words (Zipf), and queries those of others."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Words kept, and the length up to which one is: some 20 MB at most, whatever the texts are.
MOST_WORDS = 2**16
LONGEST_WORD = 40


class WordCache(dict[str, T], Generic[T]):
    """``cache[word]`` is ``function(word)``; at `MOST_WORDS` all are forgotten.

    A dict, so that ``map(cache.__getitem__, words)`` runs without Python's interpreter. Safe from several threads: two
    may both call the function for a word.
    """

    def __init__(self, function: Callable[[str], T]) -> None:
        self._function = function

    def __missing__(self, word: str) -> T:
        made = self._function(word)
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = made
        return made
