"""Indexes on disk: the same results after reopening, and every kind of damage refused."""

import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

import lsr
from lsr.errors import FormatError, InputError
from lsr.index.storage import MANIFEST, _checksum

DATA = Path(__file__).parent / "data"
BLOCKS = lsr.BuildOptions(seismic=True)
METHODS = [{"exact": True}, {"candidates": 20}, {"query_cut": 10}]


def documents() -> csr_array:
    rng = np.random.default_rng(0)
    dense = rng.random((60, 30)).astype(np.float32) * (rng.random((60, 30)) < 0.2)
    return csr_array(dense)


IDS = [f"doc-{i}-é" for i in range(60)]


@pytest.fixture
def saved(tmp_path) -> Path:
    lsr.Index.build(documents(), IDS, tmp_path / "x.index", options=BLOCKS)
    return tmp_path / "x.index"


@pytest.mark.parametrize("method", METHODS)
def test_a_reopened_index_finds_the_same(saved, method):
    memory = lsr.Index.build(documents(), IDS, options=BLOCKS)
    reopened = lsr.Index.open(saved)
    queries = documents()[:10]
    a, b = (index.search(queries, 5, **method) for index in (memory, reopened))
    assert a.ids.tolist() == b.ids.tolist()
    np.testing.assert_array_equal(a.scores, b.scores)


def test_another_process_finds_the_same(saved):
    code = f"import lsr; print(lsr.Index.open({str(saved)!r}).search({{3: 1.0, 7: 2.0}}, 5)[0])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(lsr.Index.open(saved).search({3: 1.0, 7: 2.0}, 5)[0])


def test_opened_arrays_are_memory_mapped_and_read_only(saved):
    segment = lsr.Index.open(saved)._segment
    for family in segment.families().values():
        for array in family:
            assert not array.flags.writeable
            owner = array
            while isinstance(owner, np.ndarray):
                owner = owner.base
            assert array.size == 0 or isinstance(owner, mmap.mmap)


def test_every_file_is_in_the_manifest(saved):
    manifest = json.loads((saved / MANIFEST).read_text())
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], MANIFEST, "checked.json"}


def test_an_existing_index_is_not_overwritten_unasked(saved):
    with pytest.raises(InputError, match="already exists"):
        lsr.Index.build(documents()[:5], path=saved)
    assert len(lsr.Index.open(saved)) == 60
    lsr.Index.build(documents()[:5], path=saved, overwrite=True)
    assert len(lsr.Index.open(saved)) == 5
    assert sorted(path.name for path in saved.parent.iterdir()) == ["x.index"]


def test_a_build_that_fails_leaves_the_old_index(saved):
    broken = documents()
    broken.data[4] = np.nan
    with pytest.raises(InputError, match="NaN"):
        lsr.Index.build(broken, path=saved, overwrite=True)
    assert len(lsr.Index.open(saved)) == 60


def test_a_missing_index_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no index at"):
        lsr.Index.open(tmp_path / "nothing")
    with pytest.raises(InputError, match=f"is not an index: it has no {MANIFEST}"):
        lsr.Index.open(tmp_path)


def every_file(saved: Path) -> list[str]:
    return sorted(json.loads((saved / MANIFEST).read_text())["files"])


def test_every_truncated_file_is_refused(saved):
    for name in every_file(saved):
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[:-1])
        with pytest.raises(FormatError, match="was truncated or altered"):
            lsr.Index.open(saved)
        (saved / name).write_bytes(content)
    assert len(lsr.Index.open(saved)) == 60


def test_every_altered_file_is_refused(saved):
    for name in every_file(saved):
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(FormatError, match="was altered: its checksum does not match"):
            lsr.Index.open(saved)
        (saved / name).write_bytes(content)
    assert len(lsr.Index.open(saved)) == 60


def test_an_alteration_that_kept_the_time_is_found_by_verify(saved):
    path = saved / "segment-00000" / "lists.dense_codes.npy"
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(FormatError, match="was altered"):
        lsr.Index.open(saved, verify=True)


def test_every_missing_file_is_refused(saved):
    for name in every_file(saved):
        content = (saved / name).read_bytes()
        (saved / name).unlink()
        with pytest.raises(FormatError, match="is missing"):
            lsr.Index.open(saved)
        (saved / name).write_bytes(content)


def test_a_copied_index_opens_and_is_checked_once(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy.index", copy_function=shutil.copy)
    assert len(lsr.Index.open(tmp_path / "copy.index")) == 60
    seen = json.loads((tmp_path / "copy.index" / "checked.json").read_text())
    name = "segment-00000/lists.window_rows.npy"
    assert seen[name][1] == (tmp_path / "copy.index" / name).stat().st_mtime_ns


def edit_manifest(saved: Path, checksum: bool = True, **changes) -> None:
    path = saved / MANIFEST
    fields = {**json.loads(path.read_text()), **changes}
    if checksum:
        fields["checksum"] = _checksum(fields)
    path.write_text(json.dumps(fields))


def test_an_index_of_a_newer_format_is_refused(saved):
    edit_manifest(saved, format_version=3)
    with pytest.raises(FormatError, match="has index format 3, this version of lsr .* reads 2: upgrade lsr"):
        lsr.Index.open(saved)


def test_an_altered_manifest_is_refused(saved):
    edit_manifest(saved, checksum=False, vocabulary_size=10)
    with pytest.raises(FormatError, match="manifest.json was altered"):
        lsr.Index.open(saved)


def test_a_damaged_manifest_is_refused(saved):
    (saved / MANIFEST).write_text("{")
    with pytest.raises(FormatError, match="is damaged"):
        lsr.Index.open(saved)


@pytest.mark.parametrize("changes", [{"format_version": "1"}, {"colour": "red"}, {"options": {"n_posting": 3}}])
def test_a_manifest_with_strange_fields_is_refused(saved, changes):
    edit_manifest(saved, **changes)
    with pytest.raises(FormatError, match=r"is damaged|unknown"):
        lsr.Index.open(saved)


def test_a_manifest_that_does_not_fit_the_arrays_is_refused(saved):
    edit_manifest(saved, n_documents=59)
    with pytest.raises(FormatError, match="do not fit together"):
        lsr.Index.open(saved)


def test_an_index_that_cannot_be_written_to_opens(saved):
    (saved / "checked.json").unlink()
    (saved / "checked.json").mkdir()  # the note of the check cannot be written
    assert len(lsr.Index.open(saved)) == 60
    assert [path.name for path in saved.iterdir() if path.name.startswith(".")] == []


def test_an_index_of_empty_documents_can_be_saved(tmp_path):
    empty = csr_array((3, 5), dtype=np.float32)
    lsr.Index.build(empty, ["a", "b", "c"], tmp_path / "empty.index", options=BLOCKS)
    index = lsr.Index.open(tmp_path / "empty.index")
    for method in METHODS:
        assert index.search({0: 1.0}, 2, **method)[0] == []


def test_an_index_of_format_1_says_what_to_do():
    """An index written once by the first version, kept as it is."""
    with pytest.raises(FormatError, match="has index format 1, this version of lsr .* reads 2: build it again"):
        lsr.Index.open(DATA / "format-1.index")


def test_the_index_of_format_2_still_opens():
    """An index written once by the version that brought the format, kept as it is."""
    index = lsr.Index.open(DATA / "format-2.index")
    assert len(index) == 4
    for method in METHODS:
        assert index.search({0: 1.0, 2: 2.0}, 3, **method)[0] == [("c", 8.5), ("a", 1.0), ("b", 0.5)]
