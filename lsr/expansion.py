"""Documents expanded before they are encoded: expMLP's half of the work (docT5query, TILDE; arXiv 2303.13416).

An expansion is text that is put behind a document's own: predicted queries, or terms that a masked
language model would add. It comes from any callable, or from a JSONL file of ``{"id": …, "expansion": …}``
in the order of the corpus, such as `write_expansions` makes. Encoders see it, readers of hits do not.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from tqdm import tqdm

from lsr.corpus import Corpus, CorpusSource, read_corpus
from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError
from lsr.files import open_lines, packed, write_whole
from lsr.lookup import tokenizer_of
from lsr.records import Document

#: What gives the expansions of some documents, one each: `mlm_expansions`, or a doc2query model.
Expander: TypeAlias = Callable[[Sequence[Document]], Sequence[str]]
#: A file of expansions, or what makes them.
Expansions: TypeAlias = "str | os.PathLike[str] | Expander"

BATCH = 256


def expand(corpus: CorpusSource, expansions: Expansions, *, skip_repeats: bool = False) -> Corpus:
    """The documents of a corpus with their expansions; both are streamed.

    Args:
        corpus: what `lsr.read_corpus` takes.
        expansions: a file such as `write_expansions` makes, or a callable, which is asked for some documents at a time
            in every pass over the corpus.
        skip_repeats: as in `lsr.read_corpus`.

    Raises:
        InputError: the file is missing; or, while reading, a document has no expansion, or the file is not of this
            corpus, in its order.
    """
    plain = read_corpus(corpus, skip_repeats=skip_repeats)
    if not isinstance(expansions, str | os.PathLike):
        write = expansions
        return Corpus(f"{plain.name}, expanded", lambda: (replace(d, expansion=e) for d, e in _expanded(plain, write)))
    path = expansions_file(expansions)
    return Corpus(f"{plain.name} with {path}", lambda: _merged(plain, path))


def expansions_file(path: str | os.PathLike[str]) -> Path:
    """The file, if it is there.

    Raises:
        InputError: it is not.
    """
    if not Path(path).is_file():
        raise InputError(f"the file of expansions {path} is missing: write it with lsr expand")
    return Path(path)


def mlm_expansions(encoder: Encoder, terms: int = 50) -> Expander:
    """Expansions by a masked language model, as TILDE's: the heaviest terms that a document does not hold itself.

    Args:
        encoder: its document side weighs the whole vocabulary (SPLADE); whole words are taken, no word pieces.
        terms: at most as many per document.
    """
    tokenizer = tokenizer_of(encoder)
    words = np.array([term.isalnum() and len(term) > 1 for term in map(encoder.term, range(encoder.vocabulary_size))])
    words[tokenizer.special_ids] = False

    def write(documents: Sequence[Document]) -> list[str]:
        texts = [document.content for document in documents]
        vectors = encoder.documents.encode(texts).vectors
        expansions = []
        for row, own in enumerate(tokenizer(texts).ids):
            found = slice(vectors.indptr[row], vectors.indptr[row + 1])
            ids, weights = vectors.indices[found], vectors.data[found]
            new = words[ids] & ~np.isin(ids, own)
            heaviest = ids[new][np.argsort(-weights[new], kind="stable")][:terms]
            expansions.append(" ".join(encoder.term(int(term_id)) for term_id in heaviest))
        return expansions

    return write


def write_expansions(
    path: str | os.PathLike[str],
    corpus: CorpusSource,
    write: Expander,
    *,
    progress: bool = False,
) -> int:
    """Write the expansions of a corpus to a ``.jsonl`` or ``.jsonl.gz`` file; how many there are.

    Args:
        path: where to.
        corpus: what `lsr.read_corpus` takes.
        write: gives the expansions of some documents, such as `mlm_expansions`.
        progress: show a bar on stderr.

    Raises:
        InputError: the file cannot be written, or the corpus not be read.
    """
    path = Path(path)
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        documents = tqdm(read_corpus(corpus), desc="expanding", unit=" docs", disable=not progress or None)
        for document, expansion in _expanded(documents, write):
            count += 1
            fields = {"id": document.id, "expansion": expansion}
            yield (json.dumps(fields, ensure_ascii=False) + "\n").encode()

    if path.suffix == ".gz":
        write_whole(path, lambda raw: _write_gz(raw, lines()))
    else:
        write_whole(path, lambda raw: raw.writelines(lines()))
    return count


def _write_gz(raw: BinaryIO, lines: Iterable[bytes]) -> None:
    with packed(raw) as file:
        file.writelines(lines)


def _expanded(documents: Iterable[Document], write: Expander) -> Iterator[tuple[Document, str]]:
    """Documents with what a callable writes for them."""
    left = iter(documents)
    while batch := list(islice(left, BATCH)):
        expansions = write(batch)
        if isinstance(expansions, str) or len(expansions) != len(batch):
            what = "a text" if isinstance(expansions, str) else f"{len(expansions)} expansions"
            raise InputError(
                f"the expander gave {what} for {len(batch)} documents: it takes a list, and gives one each"
            )
        for document, expansion in zip(batch, expansions, strict=True):
            if not isinstance(expansion, str):
                raise InputError(
                    f"the expander gave {expansion!r} for document {document.id!r}: give a text, maybe empty"
                )
            yield document, expansion


def _merged(corpus: Corpus, path: Path) -> Iterator[Document]:
    """Corpus and file, read side by side."""
    expansions = _read(path)
    for document in corpus:
        where, doc_id, expansion = next(expansions, (str(path), None, ""))
        if doc_id != document.id:
            found = "ends" if doc_id is None else f"goes on with {doc_id!r}"
            raise InputError(
                f"{where} has no expansion for document {document.id!r} of {corpus.name}, but {found}: every document "
                "needs one, maybe empty, in the corpus's order: write them again with lsr expand"
            )
        yield replace(document, expansion=expansion)
    where, doc_id, _ = next(expansions, ("", None, ""))
    if doc_id is not None:
        raise InputError(
            f"{where} expands {doc_id!r}, after the last document of {corpus.name}: name the corpus it was made for"
        )


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in open_lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            doc_id, expansion = fields["id"], fields["expansion"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise FormatError(f'{path}:{number}: a line is {{"id": …, "expansion": …}} ({error})') from error
        if not isinstance(doc_id, str) or not isinstance(expansion, str):
            raise FormatError(f"{path}:{number}: id and expansion must be strings")
        yield f"{path}:{number}", doc_id, expansion
