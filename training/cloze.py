"""Queries of unlabeled passages: the inverse cloze task (Lee, Chang and Toutanova, ACL 2019, arXiv 1906.00300).

A sentence that is taken out of a passage is a query, and the passage without it what answers the query.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from lsr.corpus import Corpus
from lsr.errors import InputError
from lsr.files import new_folder, packed
from lsr.records import Document

#: A sentence ends at a full stop, question or exclamation mark before a space and a capital or digit.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])")

#: Words of a sentence that can be a query.
SHORTEST, LONGEST = 5, 40


def cloze(document: Document, seed: int = 0) -> tuple[str, str] | None:
    """A sentence of a document, drawn by its id and the seed, and the text without it; None where it has too few.

    A document needs three sentences, one of them of 5 to 40 words. The title stays with the document.
    """
    sentences = [sentence.strip() for sentence in SENTENCE_END.split(document.text)]
    fit = [i for i, sentence in enumerate(sentences) if SHORTEST <= len(sentence.split()) <= LONGEST]
    if len(sentences) < 3 or not fit:
        return None
    digest = hashlib.blake2b(document.id.encode(), digest_size=8).digest()
    chosen = int(np.random.default_rng([seed, int.from_bytes(digest, "little")]).choice(fit))
    return sentences[chosen], " ".join(sentences[:chosen] + sentences[chosen + 1 :])


def write_cloze(
    corpus: Corpus,
    out: str | os.PathLike[str],
    *,
    queries: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> int:
    """Write a collection in BEIR layout: all documents, those with a query without its sentence, and qrels "train".

    Args:
        corpus: the passages.
        out: the folder to write; each query's id is its passage's.
        queries: make a query of so many passages only, the first that allow one; None for all.
        seed: of the choice of sentences.
        overwrite: replace ``out``.
        progress: show a bar on stderr.

    Returns:
        The number of queries.

    Raises:
        InputError: no document has a sentence to spare; or ``out`` is there.
    """
    for name, value, least in (("seed", seed, 0), ("queries", queries, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} must be {least} or more: got {value}")
    made = 0
    with (
        new_folder(out, overwrite=overwrite) as folder,
        _lines(folder / "corpus.jsonl.gz") as texts,
        _lines(folder / "queries.jsonl.gz") as asked,
    ):
        (folder / "qrels").mkdir()
        with (folder / "qrels" / "train.tsv").open("w", encoding="utf-8") as qrels:
            qrels.write("query-id\tcorpus-id\tscore\n")
            for document in tqdm(corpus, desc="cloze", unit=" documents", disable=None if progress else True):
                pair = cloze(document, seed) if queries is None or made < queries else None
                text = document.text
                if pair is not None:
                    if any(blank in document.id for blank in "\t\r\n"):
                        raise InputError(
                            f"{corpus.name}: the id {document.id!r} has a tab or line break: qrels hold none"
                        )
                    sentence, text = pair
                    made += 1
                    _write(asked, {"_id": document.id, "text": sentence})
                    qrels.write(f"{document.id}\t{document.id}\t1\n")
                _write(texts, {"_id": document.id, "title": document.title, "text": text})
        if not made:
            raise InputError(f"{corpus.name}: no document has three sentences, one of {SHORTEST} to {LONGEST} words")
    return made


@contextmanager
def _lines(path: Path) -> Iterator[TextIO]:
    """A .gz of lines to write."""
    with (
        path.open("wb") as raw,
        packed(raw) as inner,
        io.TextIOWrapper(inner, encoding="utf-8") as file,
    ):
        yield file


def _write(file: TextIO, fields: dict[str, str]) -> None:
    file.write(json.dumps(fields, ensure_ascii=False) + "\n")
