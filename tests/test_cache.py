"""The cache of evaluation: hits, keys, damage, interruption, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TEXTS

import lsr
from lsr.corpus import Corpus, read_corpus
from lsr.errors import InputError, LsrWarning
from lsr.eval.cache import TAG_FILE, Cache, default_cache
from lsr.records import Document, Query

DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]
QUERIES = [Query("q1", "the cat"), Query("q2", "river water")]


def corpus_of(documents: list[Document], name: str = "c") -> Corpus:
    return Corpus(name, lambda: iter(documents))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> lsr.Encoder:
    return lsr.load_encoder(checkpoint)


def entries(cache: Cache, kind: str) -> list[str]:
    return sorted(p.name for p in (cache.folder / kind).iterdir() if p.suffix != ".json" and not p.name.startswith("."))


def test_what_was_made_once_is_opened(cache: Cache, encoder: lsr.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cache.retriever(corpus_of(DOCUMENTS), encoder)
    vectors = cache.queries(QUERIES, made)
    monkeypatch.setattr(type(encoder.documents), "encode", lambda *_: pytest.fail("encoded again"))
    opened = Cache(cache.folder).retriever(corpus_of(DOCUMENTS, "the same under another name"), encoder)
    again = Cache(cache.folder).queries(QUERIES, opened)
    np.testing.assert_array_equal(vectors.toarray(), again.toarray())
    assert again.encoder == vectors.encoder == encoder.fingerprint
    a, b = (r.index.search(vectors, 3, exact=True) for r in (made, opened))
    np.testing.assert_array_equal(a.rows, b.rows)
    assert (len(entries(cache, "indexes")), len(entries(cache, "vectors")), len(entries(cache, "queries"))) == (1, 1, 1)


def test_every_part_of_the_key_counts(cache: Cache, checkpoint: Path, encoder: lsr.Encoder) -> None:
    """Another encoder, length, document, title, order or build option is another entry."""
    shorter = lsr.load_encoder(checkpoint, document_max_length=6)
    titled = [Document(DOCUMENTS[0].id, DOCUMENTS[0].text, "a title"), *DOCUMENTS[1:]]
    split = [Document("a", "bc"), Document("d", "e")]
    other_split = [Document("ab", "c"), Document("d", "e")]
    with pytest.warns(LsrWarning, match="longer than 6 tokens"):
        cache.retriever(corpus_of(DOCUMENTS), shorter)
    for documents, options in (
        (DOCUMENTS, lsr.BuildOptions()),
        (DOCUMENTS, lsr.BuildOptions(seed=7)),
        (DOCUMENTS[::-1], lsr.BuildOptions()),
        (DOCUMENTS[1:], lsr.BuildOptions()),
        (titled, lsr.BuildOptions()),
    ):
        cache.retriever(corpus_of(documents), encoder, options)
    assert len(entries(cache, "indexes")) == 6
    assert len(entries(cache, "vectors")) == 5, "another option of the index needs no other vectors"
    for documents in (split, other_split):
        cache.retriever(corpus_of(documents), lsr.Bm25())
    cache.retriever(corpus_of(split), lsr.Bm25(k1=1.2))
    assert len(entries(cache, "indexes")) == 9


def test_bm25_is_opened_without_counting_again(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cache.retriever(corpus_of(DOCUMENTS), lsr.Bm25())
    monkeypatch.setattr(lsr.Bm25, "fit", lambda *_, **__: pytest.fail("fitted again"))
    opened = cache.retriever(corpus_of(DOCUMENTS), lsr.Bm25())
    assert opened.index.encoder_fingerprint == made.index.encoder_fingerprint
    assert cache.queries(QUERIES, opened).nnz == made.encode_queries(QUERIES).nnz > 0
    assert entries(cache, "queries") == [], "light queries are not kept"


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage"])
def test_a_damaged_entry_is_made_again(cache: Cache, encoder: lsr.Encoder, damage: str) -> None:
    expected = cache.retriever(corpus_of(DOCUMENTS), encoder).index.search({7: 1.0, 24: 1.0}, 3, exact=True)
    (place,) = [p for p in (cache.folder / "indexes").iterdir() if p.is_dir()]
    victim = max(place.rglob("*.npy"), key=lambda p: p.stat().st_size)
    content = victim.read_bytes()
    victim.unlink()
    if damage != "gone":
        victim.write_bytes(content[: len(content) // 2] if damage == "cut" else b"x" * len(content))
    with pytest.warns(LsrWarning, match="an entry of the cache is damaged and is made again"):
        again = Cache(cache.folder).retriever(corpus_of(DOCUMENTS), encoder)
    found = again.index.search({7: 1.0, 24: 1.0}, 3, exact=True)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_damaged_query_vectors_are_made_again(cache: Cache, encoder: lsr.Encoder) -> None:
    retriever = cache.retriever(corpus_of(DOCUMENTS), encoder)
    expected = cache.queries(QUERIES, retriever).toarray()
    (place,) = (cache.folder / "queries").glob("*.npz")
    for content in (b"", place.read_bytes()[:-40], b"nothing of the kind"):
        place.write_bytes(content)
        with pytest.warns(LsrWarning, match="is damaged"):
            np.testing.assert_array_equal(cache.queries(QUERIES, retriever).toarray(), expected)
        np.testing.assert_array_equal(cache.queries(QUERIES, retriever).toarray(), expected)


def test_an_interrupted_entry_is_made_again_from_the_vectors_that_are_there(
    cache: Cache, encoder: lsr.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsr.encoding.SHARD_DOCUMENTS", 2)
    build = lsr.Index.build

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lsr.Index, "build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.retriever(corpus_of(DOCUMENTS), encoder)
    assert not list((cache.folder / "indexes").glob("*.json")), "what is unfinished is not called finished"
    monkeypatch.setattr(type(encoder.documents), "encode", lambda *_: pytest.fail("encoded again"))
    assert lsr.Index.build == build
    assert len(cache.retriever(corpus_of(DOCUMENTS), encoder).index) == len(DOCUMENTS)


def test_notes_are_given_again(cache: Cache, checkpoint: Path) -> None:
    """A text that was cut is cut in the cache too."""
    shorter = lsr.load_encoder(checkpoint, document_max_length=6, query_max_length=3)
    for _ in range(2):
        with pytest.warns(LsrWarning, match="documents were longer than 6 tokens and were cut"):
            retriever = cache.retriever(corpus_of(DOCUMENTS), shorter)
        with pytest.warns(LsrWarning, match="queries were longer than 3 tokens and were cut"):
            cache.queries(QUERIES, retriever)
    (about,) = (cache.folder / "indexes").glob("*.json")
    assert json.loads(about.read_text())["of"] == "c"


def test_a_corpus_is_read_once_for_its_hash(cache: Cache) -> None:
    passes = []

    def read():
        passes.append(1)
        return iter(DOCUMENTS)

    corpus = Corpus("c", read)
    cache.retriever(corpus, lsr.Bm25())
    made = len(passes)
    cache.retriever(corpus, lsr.Bm25())
    assert len(passes) == made, "found without another pass"
    Cache(cache.folder).retriever(corpus, lsr.Bm25())
    assert len(passes) == made + 1


def test_two_corpora_of_one_name_are_two(cache: Cache) -> None:
    first, second = read_corpus(DOCUMENTS[:3]), read_corpus(DOCUMENTS[3:])
    assert first.name == second.name
    assert [len(cache.retriever(c, lsr.Bm25()).index) for c in (first, second)] == [3, len(DOCUMENTS) - 3]
    assert cache.retriever(first, lsr.Bm25()).index.has_document("d0")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than a cache of lsr"):
        Cache(tmp_path)
    with pytest.raises(InputError, match="is a file: name a folder"):
        Cache(tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert (
        (Cache(tmp_path / "new").folder / TAG_FILE)
        .read_text()
        .startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )


def test_the_default_is_the_platform_s_or_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LSR_CACHE", str(tmp_path / "here"))
    assert default_cache() == tmp_path / "here"
    monkeypatch.delenv("LSR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache().name == "lsr"


MAKER = """
import sys
from pathlib import Path
from typing import Any
import lsr
from lsr.corpus import Corpus
from lsr.eval.cache import Cache
from lsr.records import Document

read = lambda: (Document(f"d{i}", f"cat number {i} and {i % 7}") for i in range(20_000))
print("ready", flush=True)
sys.stdin.readline()
retriever = Cache(sys.argv[1]).retriever(Corpus("c", read), lsr.Bm25())
print([hit.id for hit in retriever.search("cat 19999", 3, exact=True)])
"""


def test_two_processes_make_one_entry(tmp_path: Path) -> None:
    """Both get a whole index, and one stays."""
    command = [sys.executable, "-c", MAKER, str(tmp_path / "cache")]
    makers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    answers = []
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    for maker in makers:
        out, err = maker.communicate()
        assert maker.returncode == 0, err
        answers.append(out)
    assert answers[0] == answers[1] != ""
    assert "d19999" in answers[0]
    assert len(entries(Cache(tmp_path / "cache"), "indexes")) == 1
    assert not [p for p in (tmp_path / "cache").rglob(".*")]


def test_an_entry_that_another_process_finished_meanwhile_is_used(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = lsr.Bm25.fit

    def slower(self: lsr.Bm25, *arguments: Any, **options: Any) -> lsr.Encoder:
        monkeypatch.setattr(lsr.Bm25, "fit", fit)
        first.append(Cache(cache.folder).retriever(corpus_of(DOCUMENTS), lsr.Bm25()))
        return fit(self, *arguments, **options)

    first: list[lsr.Retriever] = []
    monkeypatch.setattr(lsr.Bm25, "fit", slower)
    second = cache.retriever(corpus_of(DOCUMENTS), lsr.Bm25())
    assert len(first) == 1
    assert [hit.id for hit in second.search("cat", 1)] == [hit.id for hit in first[0].search("cat", 1)] == ["d0"]
    assert len(entries(cache, "indexes")) == 1


def test_lost_notes_are_said_to_be_lost(cache: Cache) -> None:
    cache.retriever(corpus_of(DOCUMENTS), lsr.Bm25())
    (about,) = (cache.folder / "indexes").glob("*.json")
    about.unlink()
    with pytest.warns(LsrWarning, match="what was said when an entry of the cache was made is lost"):
        cache.retriever(corpus_of(DOCUMENTS), lsr.Bm25())


def test_half_precision_is_another_entry(cache: Cache, checkpoint: Path, encoder: lsr.Encoder) -> None:
    half = lsr.load_encoder(checkpoint, dtype="bfloat16")
    for one in (encoder, half):
        cache.queries(QUERIES, cache.retriever(corpus_of(DOCUMENTS), one))
    assert [len(entries(cache, kind)) for kind in ("indexes", "vectors", "queries")] == [2, 2, 2]


def test_expansions_are_another_entry(cache: Cache) -> None:
    for expansion in ("", "more", "other"):
        cache.retriever(corpus_of([replace(d, expansion=expansion) for d in DOCUMENTS]), lsr.Bm25())
    assert len(entries(cache, "indexes")) == 3


def test_an_index_with_a_plan_serves_where_none_is_needed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    unplanned = lsr.BuildOptions(plan_queries=0)
    cache.retriever(corpus_of(DOCUMENTS[:3]), lsr.Bm25(), unplanned)
    cache.retriever(corpus_of(DOCUMENTS[:3]), lsr.Bm25())
    assert len(entries(cache, "indexes")) == 2, "an index without a plan does not serve where one is wanted"
    made = cache.retriever(corpus_of(DOCUMENTS), lsr.Bm25())
    monkeypatch.setattr(lsr.Bm25, "fit", lambda *_, **__: pytest.fail("made again"))
    opened = cache.retriever(corpus_of(DOCUMENTS), lsr.Bm25(), unplanned)
    assert opened.index.manifest.options == made.index.manifest.options == lsr.BuildOptions()
