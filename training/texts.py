"""Texts and their tokens in memory-mapped files: gigabytes of them cost a training process no memory.

A `TextTable` holds the texts of a corpus (or of its queries) by row, and finds rows by id. A
`TokenTable` holds the token ids of the same rows for one tokenizer, so that no text is tokenized
twice. Both live in a cache folder under a name made of all they depend on.
"""

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lsr.corpus import Corpus, find_file, read_queries, unique_queries
from lsr.errors import InputError
from lsr.records import Query
from lsr.tokenizer import ModelTokenizer

FORMAT_VERSION = 1
CHUNK = 4_096


class TextTable:
    """Texts by row, and rows by id.

    Beside the texts and ids themselves it takes 32 bytes a text, all of it memory-mapped: two offsets,
    and a 64-bit hash of the id with its row, sorted by hash. Objects are made only of what is asked for.

    Args:
        folder: what `TextTable.build` filled.
        name: what messages call it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._texts = np.memmap(folder / "texts.bin", dtype=np.uint8, mode="r")
        self._ids = np.memmap(folder / "ids.bin", dtype=np.uint8, mode="r")
        self._text_starts = np.load(folder / "text_starts.npy", mmap_mode="r", allow_pickle=False)
        self._id_starts = np.load(folder / "id_starts.npy", mmap_mode="r", allow_pickle=False)
        self._hashes = np.load(folder / "hashes.npy", mmap_mode="r", allow_pickle=False)
        self._rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return TextTable, (self.folder, self.name)  # another process maps the same files

    def __len__(self) -> int:
        return len(self._id_starts) - 1

    def text(self, row: int) -> str:
        """The text of a row."""
        return self._texts[self._text_starts[row] : self._text_starts[row + 1]].tobytes().decode()

    def id(self, row: int) -> str:
        """The id of a row."""
        return self._ids[self._id_starts[row] : self._id_starts[row + 1]].tobytes().decode()

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of ids, -1 for an id that is not there: shape (len(ids),)."""
        wanted = np.array([_hash(name) for name in ids], dtype=np.uint64)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        return np.where(self._hashes[places] == wanted, self._rows[places], -1).astype(np.int64)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of ids and texts in row order: equal for equal rows, wherever the files are."""
        digest = hashlib.sha256()
        for part in (self._id_starts, self._text_starts, self._ids, self._texts):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """The texts in row order."""
        return (self.text(row) for row in range(len(self)))

    @classmethod
    def build(cls, folder: Path, name: str, records: Iterable[tuple[str, str]]) -> "TextTable":
        """Fill an existing folder from (id, text) pairs, read once and held one at a time.

        Raises:
            InputError: an id is used twice, or there is no record.
        """
        starts = {"texts": array("q", [0]), "ids": array("q", [0])}
        hashes = array("Q")
        with (folder / "texts.bin").open("wb") as texts, (folder / "ids.bin").open("wb") as ids:
            for text_id, text in records:
                hashes.append(_hash(text_id))
                for file, value, ends in ((texts, text, starts["texts"]), (ids, text_id, starts["ids"])):
                    ends.append(ends[-1] + file.write(value.encode()))
            if not hashes:
                raise InputError(f"{name} holds nothing: check the path")
            texts.write(b"\0")  # an empty file cannot be mapped
        unsorted = np.frombuffer(hashes, dtype=np.uint64)
        order = np.argsort(unsorted, kind="stable")
        np.save(folder / "text_starts.npy", np.frombuffer(starts["texts"], dtype=np.int64))
        np.save(folder / "id_starts.npy", np.frombuffer(starts["ids"], dtype=np.int64))
        np.save(folder / "hashes.npy", unsorted[order])
        np.save(folder / "rows.npy", order)
        table = cls(folder, name)
        twice = np.flatnonzero(table._hashes[1:] == table._hashes[:-1])
        if len(twice):
            raise InputError(f"{name}: the id {table.id(int(order[twice[0]]))!r} is used twice: ids must be unique")
        return table


class TokenTable:
    """Token ids by row: one flat memory-mapped file of 2 bytes a token (4 above 65,536 terms), 8 bytes a row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._starts = np.load(folder / "starts.npy", mmap_mode="r", allow_pickle=False)
        dtype = np.dtype(json.loads((folder / "dtype.json").read_text(encoding="utf-8")))
        self._tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenTable, (self.folder,)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        """The token ids of a row: uint16 or int32, special tokens included where the tokenizer adds them."""
        return self._tokens[self._starts[row] : self._starts[row + 1]]

    @classmethod
    def build(
        cls, folder: Path, texts: TextTable, tokenizer: ModelTokenizer, *, progress: bool = False
    ) -> "TokenTable":
        """Tokenize all texts of a table into an existing folder."""
        dtype = np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.int32)
        starts = array("q", [0])
        with (
            (folder / "tokens.bin").open("wb") as file,
            tqdm(total=len(texts), desc="tokenizing", unit=" texts", disable=not progress or None) as bar,
        ):
            for first in range(0, len(texts), CHUNK):
                rows = range(first, min(first + CHUNK, len(texts)))
                for ids in tokenizer([texts.text(row) for row in rows]).ids:
                    file.write(ids.astype(dtype).tobytes())
                    starts.append(starts[-1] + len(ids))
                bar.update(len(rows))
            file.write(b"\0" * dtype.itemsize)  # an empty file cannot be mapped
        np.save(folder / "starts.npy", np.frombuffer(starts, dtype=np.int64))
        (folder / "dtype.json").write_text(json.dumps(dtype.name), encoding="utf-8")
        return cls(folder)


def document_table(cache: Path, corpus: Corpus) -> TextTable:
    """The documents of a corpus, title and text joined, through the cache."""
    key = {"documents": corpus_key(corpus), "skip_repeats": corpus.skip_repeats}
    records = ((document.id, document.content) for document in corpus)
    return TextTable(cached(cache, key, lambda folder: TextTable.build(folder, corpus.name, records)), corpus.name)


def query_table(
    cache: Path, queries: str | os.PathLike[str] | Iterable[Query], *, skip_repeats: bool = False
) -> TextTable:
    """The queries of a file (or given ones), through the cache; ``skip_repeats`` as in `lsr.corpus.unique_queries`."""
    key: dict[str, Any] = {"skip_repeats": skip_repeats}
    if isinstance(queries, str | os.PathLike):
        path = find_file(Path(queries), "queries.jsonl") if Path(queries).is_dir() else Path(queries)
        name, found = str(path), read_queries(path, skip_repeats=skip_repeats)
        key["queries"] = file_key(path)
    else:
        given = list(queries)
        name, found = "the given queries", unique_queries(given, "the given queries", skip_repeats=skip_repeats)
        key["queries"] = hashlib.sha256(json.dumps([(query.id, query.text) for query in given]).encode()).hexdigest()
    records = ((query.id, query.text) for query in found)
    return TextTable(cached(cache, key, lambda folder: TextTable.build(folder, name, records)), name)


def token_table(cache: Path, texts: TextTable, tokenizer: ModelTokenizer, *, progress: bool = False) -> TokenTable:
    """The tokens of a table's texts, through the cache: tokenized once per tokenizer and maximum length."""
    key = {
        "texts": texts.folder.name,
        "tokenizer": tokenizer.hash,
        "max_length": tokenizer.max_length,
        "special": tokenizer.add_special_tokens,
    }
    return TokenTable(cached(cache, key, lambda folder: TokenTable.build(folder, texts, tokenizer, progress=progress)))


def cached(cache: Path, key: Mapping[str, Any], build: Callable[[Path], object]) -> Path:
    """The folder of ``cache`` that is named by ``key``; built if it is not there.

    Several processes may ask for the same folder at once: each builds its own, the first one stays.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **key}, sort_keys=True)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix=".partial-"))
    try:
        build(partial)
        (partial / "key.json").write_text(text, encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def corpus_key(corpus: Corpus) -> Any:
    """What a corpus's texts depend on: its file, its name where it has one elsewhere, or else its texts."""
    if os.path.exists(corpus.name):
        return file_key(Path(corpus.name))
    digest = hashlib.sha256(corpus.name.encode())
    for document in corpus.read():
        digest.update(f"{document.id}\0{document.content}\0".encode())
    return digest.hexdigest()


def file_key(path: Path) -> list[Any]:
    """Place, size and time of a file: equal while it is untouched."""
    if not path.is_file():
        raise InputError(f"{path} is {'a folder, not a file' if path.is_dir() else 'missing'}: check the path")
    status = path.stat()
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
