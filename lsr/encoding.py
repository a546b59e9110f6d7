"""Encoding a corpus to a folder of shards, so that long work can be stopped and resumed.

A shard holds the vectors of consecutive documents with the hash of their content. On the next call
a shard whose documents and encoder are unchanged is kept, any other is encoded again.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from tqdm import tqdm

from lsr.corpus import Corpus, CorpusSource, read_corpus
from lsr.encoder import Encoded, Encoder, TextEncoder, warn_about
from lsr.errors import FormatError, InputError
from lsr.files import check_parent, replacing, write_whole
from lsr.records import Document
from lsr.vectors import SparseVectors

ENCODING_FILE = "encoding.json"
SHARD_DOCUMENTS = 512


@dataclass(frozen=True)
class EncodedCorpus:
    """Vectors of shape (n, vocabulary), the n document ids, and how many documents were cut."""

    vectors: SparseVectors
    ids: list[str]
    truncated: int


def encode_corpus(
    corpus: CorpusSource,
    encoder: Encoder,
    folder: str | os.PathLike[str] | None = None,
    *,
    keep: Callable[[list[Document]], object] | None = None,
    progress: bool = False,
) -> EncodedCorpus:
    """Encode all documents of a corpus, through a folder of shards if one is given.

    Args:
        corpus: anything `lsr.read_corpus` takes.
        encoder: its document side is used.
        folder: where the shards are kept; made if it is not there. An interrupted call leaves its
            finished shards for the next one.
        keep: called with the documents of each shard in order, for a caller who wants their texts.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the folder holds another encoder's vectors, or something else.
    """
    parts: list[csr_array] = []
    ids: list[str] = []
    truncated = 0
    for shard, encoded in encode_shards(corpus, encoder, folder, progress=progress):
        parts.append(encoded.vectors)
        ids += [document.id for document in shard]
        if keep:
            keep(shard)
        truncated += encoded.truncated
    vectors = vstack(parts, format="csr")
    warn_about(Encoded(vectors, truncated), encoder.documents, "document")
    return EncodedCorpus(SparseVectors(vectors, encoder=encoder.fingerprint), ids, truncated)


def encode_shards(
    corpus: CorpusSource,
    encoder: Encoder,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
) -> Iterator[tuple[list[Document], Encoded]]:
    """Encode as `encode_corpus`, but yield shard after shard (documents, their vectors), for a corpus whose
    vectors do not fit into memory. Nothing is said of texts that were cut or are empty.
    """
    documents = read_corpus(corpus)
    store = None if folder is None else _ShardFolder(Path(folder), encoder, documents.name)
    shards = n_documents = truncated = 0
    with tqdm(desc="encoding documents", unit=" docs", disable=not progress or None) as bar:
        for number, shard in enumerate(_shards(documents)):
            encoded = store.read(number, shard) if store else None
            if encoded is None:
                encoded = encoder.documents.encode([document.content for document in shard], bar.update)
                if store:
                    store.write(number, shard, encoded)
            else:
                bar.update(len(shard))
            shards += 1
            n_documents += len(shard)
            truncated += encoded.truncated
            yield shard, encoded
    if store:
        store.finish(shards, n_documents, truncated)


def read_vectors(folder: str | os.PathLike[str]) -> EncodedCorpus:
    """Read the vectors that `encode_corpus` (or ``lsr encode``) left in a folder.

    Raises:
        InputError: the folder holds no finished encoding.
        FormatError: a shard is damaged.
    """
    fields = _read_encoding_file(Path(folder))
    if not fields.get("finished"):
        raise InputError(f"{folder} holds an unfinished encoding: run the same lsr encode again to resume it")
    parts = [_read_shard(Path(folder) / _shard_name(i)) for i in range(fields["shards"])]
    size = fields["vocabulary_size"]
    vectors = vstack([_to_csr(part, size) for part in parts], format="csr")
    ids = [str(doc_id) for part in parts for doc_id in part["ids"]]
    return EncodedCorpus(SparseVectors(vectors, encoder=fields["fingerprint"]), ids, fields["truncated"])


def vectors_key(side: TextEncoder) -> list[Any]:
    """What a side's vectors depend on, beside the texts: half precision rounds them."""
    dtype = getattr(side, "dtype", "float32")
    return [side.fingerprint, side.max_length, *([] if dtype == "float32" else [dtype])]


class _ShardFolder:
    """The folder of one encoding. ``key`` says what the vectors depend on beside the documents."""

    def __init__(self, folder: Path, encoder: Encoder, corpus_name: str) -> None:
        self.folder = folder
        side = encoder.documents
        self.fields: dict[str, Any] = {
            "key": " ".join(map(str, vectors_key(side))),
            "fingerprint": encoder.fingerprint,
            "vocabulary_size": encoder.vocabulary_size,
            "source": encoder.source,
            "corpus": os.path.abspath(corpus_name) if os.path.exists(corpus_name) else corpus_name,
        }
        if folder.is_file() or (folder.is_dir() and _holds_something_else(folder)):
            raise InputError(f"{folder} is not a folder of encoded vectors: name an empty or new folder")
        if (folder / ENCODING_FILE).is_file():
            there = _read_encoding_file(folder)
            if there.get("key") != self.fields["key"]:
                raise InputError(
                    f"{folder} holds vectors of another encoder, length or dtype: name another folder or delete it"
                )
            if there.get("corpus") != self.fields["corpus"]:
                raise InputError(
                    f"{folder} holds the vectors of {there.get('corpus')}: name another folder, or delete it"
                )
        check_parent(folder)
        folder.mkdir(exist_ok=True)
        self._write_fields({"finished": False})

    def _write_fields(self, more: dict[str, Any]) -> None:
        with replacing(self.folder / ENCODING_FILE) as file:
            json.dump({**self.fields, **more}, file, indent=1)

    def read(self, number: int, documents: list[Document]) -> Encoded | None:
        """The shard's vectors if it is there, whole, and of these documents."""
        path = self.folder / _shard_name(number)
        if not path.is_file():
            return None
        try:
            arrays = _read_shard(path)
        except FormatError:
            return None  # damaged: encoded again
        if str(arrays["content"]) != _content_hash(documents):
            return None
        return Encoded(_to_csr(arrays, self.fields["vocabulary_size"]), int(arrays["truncated"]))

    def write(self, number: int, documents: list[Document], encoded: Encoded) -> None:
        path = self.folder / _shard_name(number)
        content = _content_hash(documents)
        vectors = encoded.vectors
        arrays = {
            "indptr": vectors.indptr.astype(np.int64),
            "indices": vectors.indices,
            "data": vectors.data,
            "ids": np.array([document.id for document in documents], dtype=np.str_),
            "content": np.array(content),
            "truncated": np.array(encoded.truncated),
        }
        self.folder.mkdir(exist_ok=True)  # another process that was done with it may have deleted it
        write_whole(path, lambda file: np.savez(file, **arrays))

    def finish(self, shards: int, n_documents: int, truncated: int) -> None:
        """Say that the shards are a whole, and drop those of an earlier, longer corpus."""
        for path in self.folder.glob("shard-*.npz"):
            if path.name not in {_shard_name(i) for i in range(shards)}:
                path.unlink(missing_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._write_fields({"finished": True, "shards": shards, "n_documents": n_documents, "truncated": truncated})


def _holds_something_else(folder: Path) -> bool:
    """Whether there are files but no encoding; another process may be about to write its first."""
    partial = f".{ENCODING_FILE}."
    others = [path for path in folder.iterdir() if not path.name.startswith(partial)]
    return bool(others) and not (folder / ENCODING_FILE).is_file()


def _shards(corpus: Corpus) -> Iterator[list[Document]]:
    documents = iter(corpus)
    while shard := list(islice(documents, SHARD_DOCUMENTS)):
        yield shard


def _content_hash(documents: list[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.id}\0{document.content}\0".encode())
    return digest.hexdigest()


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.npz"


def _read_shard(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is damaged ({error}): delete it and run lsr encode again") from error


def _to_csr(arrays: dict[str, NDArray[Any]], vocabulary_size: int) -> csr_array:
    indptr = arrays["indptr"]
    return csr_array((arrays["data"], arrays["indices"], indptr), shape=(len(indptr) - 1, vocabulary_size))


def _read_encoding_file(folder: Path) -> dict[str, Any]:
    path = folder / ENCODING_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no encoded vectors: make them with lsr encode") from error
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path} is damaged: delete the folder and encode again") from error
