"""The build: lists against their plain twin, and the build in bounded memory against the one in memory."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, vstack
from strategies import ANY, sparse_matrices

import lsr
from lsr.errors import InputError
from lsr.index import blocks, build, build_kernels, external_blocks, invert, prune, segment
from lsr.index.build import build_segment, ranges_for
from lsr.index.options import BuildOptions
from lsr.index.segment import DENSE_LIST, WINDOWED_LIST, Lists, n_windows
from lsr.index.sizes import bytes_of, describe, predict_sizes
from lsr.vectors import SparseVectors, check_vectors

settings.register_profile("build", max_examples=40, deadline=None)
settings.load_profile("build")

DENSE_SHARES = st.sampled_from([0.01, 0.4, 2.0])
ROOT = Path(__file__).parent.parent


def arrays_of(folder: Path) -> dict[str, bytes]:
    """The files of a segment; the manifest's plan holds times, which differ."""
    return {path.name: path.read_bytes() for path in (folder / "segment-00000").iterdir()}


def decoded(lists: Lists, n_documents: int) -> dict[int, list[tuple[int, int]]]:
    """Term → (row, code) of each posting, whatever the kind of list."""
    found = {}
    begin = 0
    for listed, term in enumerate(lists.terms.tolist()):
        place, length = int(lists.place[listed]), int(lists.length[listed])
        if lists.kind[listed] == DENSE_LIST:
            codes = lists.dense_codes[place : place + n_documents]
            postings = [(row, int(codes[row])) for row in np.flatnonzero(codes).tolist()]
        elif lists.kind[listed] == WINDOWED_LIST:
            postings = []
            for window in range(n_windows(n_documents)):
                for p in range(lists.window_ptr[place + window], lists.window_ptr[place + window + 1]):
                    postings.append((2**16 * window + int(lists.window_rows[p]), int(lists.window_codes[p])))
            begin += length
        else:
            part = slice(place, place + length)
            postings = list(zip(lists.short_rows[part].tolist(), lists.short_codes[part].tolist(), strict=True))
        assert len(postings) == length
        found[term] = postings
    return found


def twin(documents: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    found = {}
    for term in np.flatnonzero(documents.any(axis=0)).tolist():
        step = float(oracle._step(documents[:, term].max()))
        rows = np.flatnonzero(documents[:, term]).tolist()
        codes = [next(c for c in range(256) if step * c >= float(documents[row, term])) for row in rows]
        found[term] = list(zip(rows, codes, strict=True))
    return found


@given(sparse_matrices(max_rows=30), DENSE_SHARES, st.integers(1, 4))
def test_lists_equal_their_twin(documents, dense_share, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "ranges_for", lambda workers, *rest: workers)
        lists = build_segment(check_vectors(documents), BuildOptions(dense_share=dense_share), threads=threads).lists
    assert decoded(lists, documents.shape[0]) == twin(oracle.dense(documents))


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="windows have 65,536 documents: too many for Python")
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_windows_begin_where_they_should_wherever_the_ranges_of_rows_do(threads):
    rng = np.random.default_rng(0)
    n = 2 * 2**16 + 77
    shares = np.array([1.0, 0.2, 0.01, 0.0004, 0.0001])
    documents = csr_array((rng.random((n, 5)) < shares) * rng.exponential(size=(n, 5)).astype(np.float32))
    found = build_segment(check_vectors(documents), BuildOptions(), threads=threads).lists
    assert sorted(set(found.kind.tolist())) == [0, 1, 2]
    assert {term: [row for row, _ in postings] for term, postings in decoded(found, n).items()} == {
        term: np.flatnonzero(column).tolist() for term, column in enumerate(documents.toarray().T)
    }


@given(st.lists(st.one_of(ANY, st.floats(2**-30, 2.0**18, width=32), st.floats(width=16, min_value=2**-24))))
def test_weights_are_kept_in_16_bits_where_none_changes(weights):
    weights = np.array(weights, dtype=np.float32)
    weights = weights[np.isfinite(weights)]
    with np.errstate(over="ignore"):
        rounded = weights.astype(np.float16)
    halves = np.zeros(len(weights), dtype=np.uint16)
    assert build_kernels.exact_halves(weights, halves) == np.array_equal(rounded.astype(np.float32), weights)
    kept = build.stored_weights(weights, "auto")
    assert kept.tolist() == weights.tolist()
    assert not np.shares_memory(kept, weights)


def chunks_of(vectors: csr_array, cuts: list[int]) -> list[csr_array]:
    bounds = [0, *sorted(cut for cut in set(cuts) if 0 < cut < vectors.shape[0]), vectors.shape[0]]
    return [vectors[first:last] for first, last in pairwise(bounds)]


@given(
    sparse_matrices(max_rows=30),
    st.lists(st.integers(1, 30)),
    st.sampled_from([None, 1, 50, 10_000]),
    st.integers(1, 3),
    DENSE_SHARES,
)
@settings(max_examples=25)
def test_an_index_built_in_parts_is_the_same_byte_for_byte(tmp_path_factory, documents, cuts, more, threads, share):
    folder = tmp_path_factory.mktemp("parts")
    options = BuildOptions(dense_share=share)
    lsr.Index.build(documents, path=folder / "whole.index", options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsr.index.external.ranges_for", lambda workers, *rest: workers)
        patch.setattr("lsr.index.external.IDS", 3)
        memory = more and least_memory(documents, folder, options) + more
        lsr.Index.build(
            iter(chunks_of(documents, cuts)), path=folder / "parts.index", options=options, threads=threads,
            max_memory=memory,
        )  # fmt: skip
    assert arrays_of(folder / "parts.index") == arrays_of(folder / "whole.index")
    lsr.Index.open(folder / "parts.index", verify=True)


BLOCKS = st.builds(
    BuildOptions,
    seismic=st.just(True),
    weights=st.sampled_from(["auto", "float32"]),
    n_postings=st.sampled_from([None, 1, 2, 4]),
    posting_share=st.sampled_from([0.3, 1.0]),
    max_fraction=st.sampled_from([0.5, 6.0]),
    centroid_fraction=st.sampled_from([0.1, 0.5, 1.0]),
    max_blocks=st.sampled_from([1, 3, 1_000]),
    min_list_size=st.sampled_from([1, 2, 4]),
    min_block_size=st.integers(1, 3),
    summary_energy=st.sampled_from([0.2, 0.9, 1.0]),
    neighbours=st.integers(0, 3),
    seed=st.integers(0, 3),
)


@given(
    sparse_matrices(max_rows=30, max_terms=20),
    st.lists(st.integers(1, 30)),
    st.sampled_from([None, 1, 500, 100_000]),
    st.integers(1, 3),
    BLOCKS,
    st.sampled_from([8, 16, 10**6]),
)
@settings(max_examples=25)
def test_blocks_built_in_parts_are_the_same_byte_for_byte(
    tmp_path_factory, documents, cuts, more, threads, options, batch
):
    """However little memory, however many threads; few postings a task and few documents a batch."""
    folder = tmp_path_factory.mktemp("parts")
    lsr.Index.build(documents, path=folder / "whole.index", options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsr.index.blocks.TASK_POSTINGS", 7)
        patch.setattr("lsr.index.blocks.BATCH", batch)
        patch.setattr("lsr.index.external_blocks.HISTOGRAM", 0)
        memory = more and least_memory(documents, folder, options, threads) + more
        lsr.Index.build(
            iter(chunks_of(documents, cuts)), path=folder / "parts.index", options=options, threads=threads,
            max_memory=memory,
        )  # fmt: skip
    assert arrays_of(folder / "parts.index") == arrays_of(folder / "whole.index")
    lsr.Index.open(folder / "parts.index", verify=True)


def test_the_lists_of_a_small_memory_are_many_parts():
    """So that the test above is not one of a single part."""
    documents = check_vectors(csr_array(np.tril(np.ones((40, 20), dtype=np.float32))))
    options = BuildOptions(seismic=True)
    forward = segment.Forward(documents.indptr.astype(np.int64), documents.indices, documents.data)
    counted = invert.count(forward, 20, 1, invert.one_by_one)
    kept = prune.choose(forward, 20, counted, options, invert.one_by_one)
    with pytest.raises(InputError, match="for the blocks of 40 documents of 20 different terms: give at least") as no:
        external_blocks.rooms_for_blocks(1, kept, forward, 20, options, 2)
    least = int(str(no.value).rsplit(" ", 1)[1].replace(",", ""))
    rooms = external_blocks.rooms_for_blocks(least, kept, forward, 20, options, 2)
    heads = blocks.joined(blocks.heads_of(forward, options.centroid_terms))
    work = forward, 20, counted, kept, heads, options
    parts = [list(blocks.cluster(*work, room, invert.one_by_one)) for room in (None, 1_000, 1)]
    assert [len(some) for some in parts] == [1, 20, 20]
    assert rooms.threads == 1
    assert rooms.cluster >= prune.KEPT_POSTING * 40
    assert all(a.tolist() == b.tolist() for a, b in zip(blocks.joined(parts[0]), blocks.joined(parts[2]), strict=True))


def least_memory(documents: csr_array, folder: Path, options: BuildOptions, threads: int | None = None) -> int:
    """What the refusals of too little memory say: that of the lists, and then that of the blocks."""
    least = 1
    for _ in range(1 + options.seismic):
        try:
            lsr.Index.build(documents, path=folder / "none.index", options=options, max_memory=least, threads=threads)
        except InputError as error:
            assert not (folder / "none.index").exists()
            least = int(re.fullmatch(r".*give at least ([\d,]+)", str(error))[1].replace(",", ""))
        else:
            shutil.rmtree(folder / "none.index")
    assert least > 1
    return least


def test_few_bytes_mean_many_parts():
    counts = np.array([[5, 100, 3, 40, 40, 1]])
    layout = invert.lay_out(counts[0], 300, 0.9)
    sizes = invert.list_bytes(layout, 300)
    assert sizes.tolist() == [3 * count + 16 for count in counts[0]]
    assert invert.parts_of(sizes, None) == [slice(0, 6)]
    assert invert.parts_of(sizes, 1) == [slice(i, i + 1) for i in range(6)]
    assert invert.parts_of(sizes, int(sizes[1])) == [slice(0, 1), slice(1, 2), slice(2, 6)]


def test_weights_that_need_32_bits_in_a_later_chunk_make_the_whole_file_32_bits(tmp_path):
    halves = csr_array(np.full((3, 2), 0.5, dtype=np.float32))
    thirds = csr_array(np.full((2, 2), 1 / 3, dtype=np.float32))
    lsr.Index.build([halves, thirds, halves], path=tmp_path / "parts.index")
    lsr.Index.build(vstack([halves, thirds, halves], format="csr"), path=tmp_path / "whole.index")
    assert arrays_of(tmp_path / "parts.index") == arrays_of(tmp_path / "whole.index")
    assert lsr.Index.open(tmp_path / "parts.index")._segment.forward.weights.dtype == np.float32


@pytest.mark.parametrize("memory", [None, "1MB"])
def test_bad_vectors_in_a_later_chunk_are_named_by_their_row_and_nothing_is_written(tmp_path, memory):
    good, bad = csr_array(np.eye(3, dtype=np.float32)), csr_array(np.eye(3, dtype=np.float32))
    bad.data[1] = np.nan
    for chunks, message in (
        ([good, bad], "document row 4 has a NaN"),
        ([good, csr_array(np.eye(2, dtype=np.float32))], "2 columns but the vocabulary has 3"),
        ([good, "text"], "must be a scipy.sparse.csr_array"),
        ([], "no documents to index"),
    ):
        with pytest.raises(InputError, match=message):
            lsr.Index.build(chunks, path=tmp_path / "x.index", max_memory=memory)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b"], "2 ids were given for 3"),
        (["a", "b", "a"], "'a' is used twice"),
        (["a", "", "c"], "row 1 is ''"),
        (iter(["a", "b", "b"]), "'b' is used twice"),
        ("abc", "ids is one string"),
    ],
)
def test_bad_ids_are_refused_in_parts_too(tmp_path, ids, message):
    with pytest.raises(InputError, match=message):
        lsr.Index.build([csr_array(np.eye(3, dtype=np.float32))], ids, tmp_path / "x.index")
    assert list(tmp_path.iterdir()) == []


def test_what_made_the_chunks_is_kept(tmp_path):
    chunks = [SparseVectors(np.eye(3, dtype=np.float32), encoder="one")] * 2
    index = lsr.Index.build(chunks, list("abcdef"), tmp_path / "x.index")
    assert index.encoder_fingerprint == "one"
    assert index.search({1: 2.0}, 2)[0] == [("b", 2.0), ("e", 2.0)]


def test_parts_need_a_path():
    documents = csr_array(np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match="need a path"):
        lsr.Index.build([documents])
    with pytest.raises(InputError, match="need a path"):
        lsr.Index.build(documents, max_memory="1GB")


@pytest.mark.parametrize(
    ("size", "expected"),
    [(5, 5), ("7", 7), ("4GB", 4 * 10**9), ("1.5 mb", 1_500_000), ("2k", 2_000), ("3TB", 3 * 10**12), ("9B", 9)],
)
def test_sizes_are_bytes_or_text(size, expected):
    assert bytes_of(size) == expected


@pytest.mark.parametrize("size", [0, -1, "GB", "4 gib", "", "1e9", True, None, float("nan"), "-3GB", [1]])
def test_other_sizes_are_refused(size):
    with pytest.raises(InputError, match="max_memory must be"):
        bytes_of(size)


@given(sparse_matrices(max_rows=30), DENSE_SHARES)
def test_predicted_sizes_are_those_that_come(documents, share):
    index = lsr.Index.build(documents, options=BuildOptions(dense_share=share))
    lengths = np.count_nonzero(oracle.dense(documents), axis=0)
    ids = sum(len(str(row)) for row in range(documents.shape[0]))
    weight_bytes = index._segment.forward.weights.dtype.itemsize
    predicted = predict_sizes(lengths[lengths > 0], *documents.shape, weight_bytes, share, ids)
    sizes = index.sizes()
    assert predicted["forward"] == sizes["forward"]
    assert predicted["ids"] == sizes["ids"]
    assert sum(predicted.values()) == sum(sizes.values())
    assert describe({"a": 1_000_000, "b": 500_000}) == "a 1.0 MB  b 0.5 MB  together 1.5 MB"


MEASURE = """
import sys, threading, time, tracemalloc
import numpy as np
from scipy.sparse import csr_array
import lsr

def chunk(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(50, 100, 1_000)
    rows = np.repeat(np.arange(1_000), counts)
    terms = (20_000 * rng.random(counts.sum()) ** 4).astype(np.int32)
    weights = rng.exponential(size=len(rows)).astype(np.float32) + 0.01
    vectors = csr_array((weights, (rows, terms)), shape=(1_000, 20_000))
    vectors.sum_duplicates()
    return vectors

memory, path, options = int(sys.argv[1]), sys.argv[2], lsr.BuildOptions(seismic=sys.argv[3] == "seismic")
lsr.Index.build([chunk(0)], path=path, max_memory=memory, options=options).search({1: 1.0}, 1)  # compiles
tracemalloc.start()
chunk(1)
given = tracemalloc.get_traced_memory()[1]
tracemalloc.reset_peak()
before = tracemalloc.get_traced_memory()[0]
index = lsr.Index.build(
    map(chunk, range(50)), path=path, max_memory=memory, options=options, overwrite=True, threads=2
)
print(tracemalloc.get_traced_memory()[1] - before - given, sum(index.sizes().values()))
"""


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="50,000 documents are too many for plain Python")
@pytest.mark.parametrize(("kind", "memory"), [("lists", 7_000_000), ("seismic", 25_000_000)])
def test_the_memory_that_is_allowed_is_kept(tmp_path, kind, memory):
    command = [sys.executable, "-c", MEASURE, str(memory), str(tmp_path / "x.index"), kind]
    peak, size = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    print(peak, size)
    assert peak <= memory < size / 2


TEXTS = [("1", "a posting is a document and a weight"), ("2", "a block is a part of a list"), ("3", "weights, again")]


@pytest.mark.parametrize("options", [BuildOptions(), BuildOptions(seismic=True, neighbours=1)])
def test_a_retriever_built_in_parts_is_the_same(tmp_path, monkeypatch, options):
    monkeypatch.setattr("lsr.encoding.SHARD_DOCUMENTS", 2)
    documents = [lsr.Document(doc_id, text, f"title {doc_id}") for doc_id, text in TEXTS]
    whole = lsr.Retriever.build(documents, lsr.Bm25(), tmp_path / "whole.index", options=options)
    parts = lsr.Retriever.build(documents, lsr.Bm25(), tmp_path / "parts.index", options=options, max_memory="2MB")
    assert arrays_of(tmp_path / "parts.index") == arrays_of(tmp_path / "whole.index")
    for name in ("titles", "texts"):
        for part in ("data", "offsets"):
            file = f"documents/{name}.{part}.npy"
            assert (tmp_path / "parts.index" / file).read_bytes() == (tmp_path / "whole.index" / file).read_bytes()
    assert parts.search("weight", 3) == whole.search("weight", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.index", "whole.index"]
    with pytest.raises(InputError, match="max_memory needs a path"):
        lsr.Retriever.build(documents, lsr.Bm25(), max_memory="1MB")


def test_a_retriever_built_in_parts_warns_of_empty_documents(tmp_path):
    documents = [*(lsr.Document(*pair) for pair in TEXTS), lsr.Document("4", "…")]
    with pytest.warns(lsr.errors.LsrWarning, match="1 of 4 documents have no term"):
        lsr.Retriever.build(documents, lsr.Bm25(), tmp_path / "x.index", max_memory="1MB")


def test_the_command_says_what_it_will_take_and_what_it_took(tmp_path, capsys):
    from lsr.cli import main

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": doc_id, "text": text}) + "\n" for doc_id, text in TEXTS))
    main(["index", str(corpus), "--model", "bm25", "--out", str(tmp_path / "x.index"), "--max-memory", "1MB"])
    printed = capsys.readouterr()
    assert "predicted: forward 0.0 MB" in printed.err
    assert "together 0.0 MB" in printed.out
    assert len(lsr.Index.open(tmp_path / "x.index")) == 3


def test_a_range_of_rows_is_worth_its_counters():
    assert [ranges_for(4, n, 1_000) for n in (0, 2_001, 4_002, 10**6)] == [1, 1, 2, 4]
    assert segment.WINDOW == 65_536  # the kernels have it in figures
