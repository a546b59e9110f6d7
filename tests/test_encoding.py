"""Encoding through a folder of shards: what is kept, what is encoded again, what is refused."""

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsr.bm25 import Bm25
from lsr.corpus import Corpus
from lsr.encoder import Advance, Encoded, Encoder, TextEncoder
from lsr.encoding import ENCODING_FILE, EncodedCorpus, encode_corpus, read_vectors
from lsr.errors import FormatError, InputError, LsrWarning
from lsr.records import Document
from lsr.vectors import from_dicts

SHARD = 3


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsr.encoding.SHARD_DOCUMENTS", SHARD)


class Letters(TextEncoder):
    """Counts of the letters a to z; notes what it was given, and is interrupted by "STOP"."""

    kind = "letters"
    light = True
    vocabulary_hash = "a-z"

    def __init__(self, name: str = "letters", max_length: int | None = 100) -> None:
        self.name = name
        self.vocabulary_size = 26
        self.max_length = max_length
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> Encoded:
        if "STOP" in texts:
            raise KeyboardInterrupt
        self.seen += texts
        cut = [text[: self.max_length].lower() for text in texts]
        rows = [{ord(c) - 97: float(text.count(c)) for c in text if c.isalpha()} for text in cut]
        return Encoded(from_dicts(rows, 26), sum(len(a) < len(b) for a, b in zip(cut, texts, strict=True)))

    @property
    def fingerprint(self) -> str:
        return self.name

    def term(self, term_id: int) -> str:
        return chr(97 + term_id)

    def config(self) -> dict[str, Any]:
        return {}

    def save_files(self, folder: Path) -> None:
        raise NotImplementedError


def letters(name: str = "letters", max_length: int | None = 100) -> tuple[Encoder, list[str]]:
    """An encoder, and the list of the texts that it will have encoded."""
    documents = Letters(name, max_length)
    return Encoder(documents, Letters()), documents.seen


def corpus(*texts: str) -> list[Document]:
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


TEXTS = ("abba", "banana", "cab", "dad", "egg", "fig", "gag", "hash")  # three shards
DOCUMENTS = corpus(*TEXTS)


def same(one: EncodedCorpus, other: EncodedCorpus) -> bool:
    return (
        one.ids == other.ids
        and one.truncated == other.truncated
        and one.vectors.encoder == other.vectors.encoder
        and one.vectors.shape == other.vectors.shape
        and np.array_equal(one.vectors.toarray(), other.vectors.toarray())
        and one.vectors.dtype == other.vectors.dtype
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished encoding of DOCUMENTS."""
    encode_corpus(DOCUMENTS, letters()[0], tmp_path / "vectors")
    return tmp_path / "vectors"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_without_a_folder_vectors_ids_and_cuts_are_returned() -> None:
    encoder, seen = letters(max_length=4)
    with pytest.warns(LsrWarning, match="1 of 8 documents were longer than 4 tokens and were cut"):
        encoded = encode_corpus(DOCUMENTS, encoder)
    assert encoded.ids == [f"d{i}" for i in range(8)]
    assert encoded.truncated == 1
    assert encoded.vectors.shape == (8, 26)
    assert encoded.vectors.dtype == np.float32
    assert encoded.vectors.encoder == encoder.fingerprint
    assert encoded.vectors[[1]].toarray()[0, :3].tolist() == [2, 1, 0]  # "bana"
    assert seen == list(TEXTS)


def test_titles_are_encoded_with_the_texts() -> None:
    encoder, seen = letters()
    encode_corpus([Document("1", "text", "title")], encoder)
    assert seen == ["title text"]


def test_documents_without_terms_are_warned_about_once() -> None:
    with pytest.warns(LsrWarning) as caught:
        encode_corpus(corpus("a", "", "b", "", "c"), letters()[0])
    assert [str(warning.message)[:46] for warning in caught] == ["2 of 5 documents have no term in the vocabular"]


def test_a_folder_gives_what_memory_gives(tmp_path: Path) -> None:
    in_memory = encode_corpus(DOCUMENTS, letters()[0])
    assert same(encode_corpus(DOCUMENTS, letters()[0], tmp_path / "v"), in_memory)
    assert same(read_vectors(tmp_path / "v"), in_memory)
    assert names(tmp_path / "v") == [ENCODING_FILE, "shard-00000.npz", "shard-00001.npz", "shard-00002.npz"]


def test_a_second_call_encodes_nothing(folder: Path) -> None:
    encoder, seen = letters()
    again = encode_corpus(DOCUMENTS, encoder, folder)
    assert seen == []
    assert same(again, encode_corpus(DOCUMENTS, letters()[0]))


def test_cuts_are_remembered_with_the_shards(tmp_path: Path) -> None:
    for expected in ([*TEXTS], []):
        encoder, seen = letters(max_length=4)
        with pytest.warns(LsrWarning, match="1 of 8 documents were longer than 4 tokens"):
            encoded = encode_corpus(DOCUMENTS, encoder, tmp_path / "v")
        assert encoded.truncated == 1
        assert seen == expected
    assert read_vectors(tmp_path / "v").truncated == 1


@pytest.mark.parametrize(
    "changed",
    [Document("d4", "eggs"), Document("d4", "egg", "a"), Document("new", "egg")],
    ids=["text", "title", "id"],
)
def test_a_changed_document_has_its_shard_alone_encoded_again(folder: Path, changed: Document) -> None:
    documents = [*DOCUMENTS[:4], changed, *DOCUMENTS[5:]]
    encoder, seen = letters()
    encoded = encode_corpus(documents, encoder, folder)
    assert seen == ["dad", changed.content, "fig"]
    assert same(encoded, encode_corpus(documents, letters()[0]))
    assert same(read_vectors(folder), encoded)


def test_documents_in_another_order_are_encoded_again(folder: Path) -> None:
    encoder, seen = letters()
    encode_corpus([DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]], encoder, folder)
    assert seen == ["banana", "abba", "cab"]


def test_appended_documents_fill_the_last_shard_and_go_on(folder: Path) -> None:
    encoder, seen = letters()
    encoded = encode_corpus([*DOCUMENTS, Document("d8", "ice"), Document("d9", "jig")], encoder, folder)
    assert seen == ["gag", "hash", "ice", "jig"]
    assert same(read_vectors(folder), encoded)
    assert encoded.vectors.shape == (10, 26)


def test_a_shorter_corpus_drops_the_shards_beyond_it(folder: Path) -> None:
    encoder, seen = letters()
    encode_corpus(DOCUMENTS[:3], encoder, folder)
    assert seen == []
    assert names(folder) == [ENCODING_FILE, "shard-00000.npz"]
    assert same(read_vectors(folder), encode_corpus(DOCUMENTS[:3], letters()[0]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"\x93NUMPY") + 140] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_text("not an archive")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, overwrite, Path.unlink])
def test_a_damaged_shard_is_refused_by_readers_and_encoded_again(folder: Path, damage: Any) -> None:
    damage(folder / "shard-00001.npz")
    with pytest.raises(FormatError, match=r"shard-00001\.npz is damaged .*: delete it and run lsr encode again"):
        read_vectors(folder)
    encoder, seen = letters()
    encode_corpus(DOCUMENTS, encoder, folder)
    assert seen == ["dad", "egg", "fig"]
    assert same(read_vectors(folder), encode_corpus(DOCUMENTS, letters()[0]))


def test_an_interrupted_call_leaves_finished_shards_for_the_next(tmp_path: Path) -> None:
    encoder, seen = letters()
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(corpus(*TEXTS[:4], "STOP", *TEXTS[5:]), encoder, tmp_path / "v")
    assert seen == list(TEXTS[:3])
    assert names(tmp_path / "v") == [ENCODING_FILE, "shard-00000.npz"]
    with pytest.raises(InputError, match="holds an unfinished encoding: run the same lsr encode again to resume it"):
        read_vectors(tmp_path / "v")
    encoder, seen = letters()
    encoded = encode_corpus(DOCUMENTS, encoder, tmp_path / "v")
    assert seen == list(TEXTS[3:])
    assert same(read_vectors(tmp_path / "v"), encoded)


def test_a_corpus_that_breaks_while_it_is_read_leaves_finished_shards(tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        yield from DOCUMENTS[:4]
        raise FormatError("docs.jsonl:5: broken")

    with pytest.raises(FormatError, match=r"docs\.jsonl:5"):
        encode_corpus(Corpus("docs", broken), letters()[0], tmp_path / "v")
    assert names(tmp_path / "v") == [ENCODING_FILE, "shard-00000.npz"]


def test_an_encoding_that_was_finished_is_unfinished_while_it_is_made_again(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(corpus("STOP"), letters()[0], folder)
    with pytest.raises(InputError, match="unfinished"):
        read_vectors(folder)


@pytest.mark.parametrize("other", [letters("other"), letters(max_length=50)], ids=["encoder", "length"])
def test_a_folder_of_another_encoder_or_length_is_refused_and_kept(
    folder: Path, other: tuple[Encoder, list[str]]
) -> None:
    before = read_vectors(folder)
    encoder, seen = other
    with pytest.raises(InputError, match="holds vectors of another encoder, length or dtype: name another folder"):
        encode_corpus(DOCUMENTS, encoder, folder)
    assert seen == []
    assert same(read_vectors(folder), before)


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a folder of encoded vectors: name an empty or new folder"):
        encode_corpus(DOCUMENTS, letters()[0], tmp_path)
    assert names(tmp_path) == ["thesis.txt"]


def test_a_file_and_a_folder_in_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is not a folder of encoded vectors"):
        encode_corpus(DOCUMENTS, letters()[0], tmp_path / "file")
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist"):
        encode_corpus(DOCUMENTS, letters()[0], tmp_path / "nowhere" / "v")
    assert names(tmp_path) == ["file"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    encode_corpus(DOCUMENTS, letters()[0], tmp_path)
    assert read_vectors(tmp_path).ids == [f"d{i}" for i in range(8)]


def test_a_folder_without_vectors_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no encoded vectors: make them with lsr encode"):
        read_vectors(tmp_path)


def test_a_damaged_description_is_refused(folder: Path) -> None:
    (folder / ENCODING_FILE).write_text("{")
    with pytest.raises(FormatError, match=r"encoding\.json is damaged: delete the folder and encode again"):
        read_vectors(folder)


def test_the_description_says_what_was_encoded(folder: Path) -> None:
    fields = json.loads((folder / ENCODING_FILE).read_text())
    assert (fields["finished"], fields["shards"], fields["n_documents"]) == (True, 3, 8)
    assert fields["vocabulary_size"] == 26
    assert fields["corpus"] == "the given documents"


def test_shards_are_read_without_pickle(folder: Path) -> None:
    arrays = dict(np.load(folder / "shard-00000.npz"))
    np.savez(folder / "shard-00000.npz", **{**arrays, "ids": np.array([{}, {}, {}], dtype=object)})
    with pytest.raises(FormatError, match=r"shard-00000\.npz is damaged .*allow_pickle"):
        read_vectors(folder)


def test_the_vectors_of_another_corpus_are_not_overwritten(tmp_path: Path) -> None:
    encoder = Bm25().fit(["a cat", "a dog"])
    for name in ("one", "other"):
        (tmp_path / f"{name}.jsonl").write_text('{"_id": "1", "text": "a cat"}\n')
    encode_corpus(tmp_path / "one.jsonl", encoder, tmp_path / "vectors")
    with pytest.raises(InputError, match=r"holds the vectors of .*one.jsonl: name another folder"):
        encode_corpus(tmp_path / "other.jsonl", encoder, tmp_path / "vectors")
    assert read_vectors(tmp_path / "vectors").ids == ["1"]


def test_two_encodings_into_one_folder_leave_a_whole_one(tmp_path: Path) -> None:
    """Each reads what the other finished, and writes what is missing: the vectors are the same from both."""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: encode_corpus(DOCUMENTS, letters()[0], tmp_path / "v"), range(12)))
    assert all(same(one, read_vectors(tmp_path / "v")) for one in made)
    assert names(tmp_path / "v") == [ENCODING_FILE, *(f"shard-0000{i}.npz" for i in range(3))]


def test_an_encoding_goes_on_where_another_process_deleted_its_folder(tmp_path: Path) -> None:
    def deleting() -> Iterator[Document]:
        yield from DOCUMENTS[:SHARD]
        shutil.rmtree(tmp_path / "v")
        yield from DOCUMENTS[SHARD:]

    encoded = encode_corpus(Corpus("docs", deleting), letters()[0], tmp_path / "v")
    assert encoded.ids == [document.id for document in DOCUMENTS]
