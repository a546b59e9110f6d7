"""Lines that may be broken, and files that are never half there."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from lsr.errors import FormatError, InputError
from lsr.files import check_target, new_folder, open_lines, replacing, sha256_of, write_synced, write_whole

OLD = '{"format_version": 1, "checksum": ""}'  # by which a folder is known as ours


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its text."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz"])
def test_lines_are_numbered_from_one_without_their_ends(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "one\ntwo\r\n\n tré \t\nlast".encode())
    assert list(open_lines(path)) == [(1, "one"), (2, "two"), (3, ""), (4, " tré \t"), (5, "last")]


def test_a_byte_order_mark_is_dropped_from_the_first_line_only(tmp_path: Path) -> None:
    path = write(tmp_path / "bom.txt", "\ufeffa\n\ufeffb\n".encode())
    assert list(open_lines(path)) == [(1, "a"), (2, "\ufeffb")]


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a\u2028b\x0cc\x85d\n".encode())
    assert list(open_lines(path)) == [(1, "a\u2028b\x0cc\x85d")]


@pytest.mark.parametrize("name", ["empty.txt", "empty.txt.gz"])
def test_an_empty_file_has_no_lines(tmp_path: Path, name: str) -> None:
    assert list(open_lines(write(tmp_path / name, b""))) == []


@pytest.mark.parametrize("name", ["bad.txt", "bad.txt.gz"])
def test_a_line_that_is_not_utf8_is_named_after_the_good_ones(tmp_path: Path, name: str) -> None:
    lines = open_lines(write(tmp_path / name, b"fine\ncaf\xe9 noir\n"))
    assert next(lines) == (1, "fine")
    with pytest.raises(FormatError, match=r"bad\.txt(\.gz)?:2: the line is not UTF-8 \(invalid continuation byte\)"):
        next(lines)


def test_a_truncated_gzip_stream_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(b"a\nb\n")[:-6])
    with pytest.raises(FormatError, match=r"cut\.gz:\d: the gzip stream is damaged"):
        list(open_lines(path))


@pytest.mark.parametrize("at", [10, -6], ids=["data", "checksum"])
def test_a_gzip_stream_with_altered_bytes_is_refused(tmp_path: Path, at: int) -> None:
    data = bytearray(gzip.compress(bytes(range(97, 123)) * 3 + b"\n"))
    data[at] ^= 0xFF
    (tmp_path / "altered.gz").write_bytes(data)
    with pytest.raises(FormatError, match=r"altered\.gz:\d: the gzip stream is damaged"):
        list(open_lines(tmp_path / "altered.gz"))


def test_plain_text_called_gz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_text("plain\n")
    with pytest.raises(FormatError, match=r"plain\.gz:1: the gzip stream is damaged \(Not a gzipped file"):
        list(open_lines(tmp_path / "plain.gz"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt is missing: check the path"):
        list(open_lines(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="is a folder, not a file"):
        list(open_lines(tmp_path))


def test_replacing_takes_the_name_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write("néw")
        file.flush()
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"file.txt": "néw"}


@pytest.mark.parametrize("old", [{}, {"file.txt": "old"}])
def test_an_exception_while_replacing_leaves_what_was_there(tmp_path: Path, old: dict[str, str]) -> None:
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file.txt") as file:  # noqa: PT012
        file.write("half")
        raise KeyboardInterrupt
    assert tree(tmp_path) == old


def test_replacing_refuses_a_missing_folder_and_a_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"the folder .*nowhere does not exist: create it"),
        replacing(tmp_path / "nowhere" / "file.txt"),
    ):
        pass
    (tmp_path / "inside").mkdir()
    with pytest.raises(InputError, match="inside is a folder: name a file"), replacing(tmp_path / "inside"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_write_synced_writes_bytes(tmp_path: Path) -> None:
    write_synced(tmp_path / "a", lambda file: file.write(b"\x00\x01"))
    assert (tmp_path / "a").read_bytes() == b"\x00\x01"


def test_a_new_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "made").exists()
    assert tree(tmp_path) == {"made/a": "1"}


def test_an_exception_in_a_new_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as folder:  # noqa: PT012
        (folder / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_text("old")
    with (
        pytest.raises(InputError, match=r"made already exists: .*\(overwrite=True, --overwrite\)"),
        new_folder(tmp_path / "made"),
    ):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"made/a": "old"}


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").write_text(OLD)
    with new_folder(tmp_path / "made", overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert tree(tmp_path / "made") == {"manifest.json": OLD}
    assert tree(tmp_path) == {"made/new": "new"}


def test_an_exception_while_overwriting_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").write_text(OLD)
    with pytest.raises(RuntimeError), new_folder(tmp_path / "made", overwrite=True) as folder:  # noqa: PT012
        (folder / "new").write_text("half")
        raise RuntimeError
    assert tree(tmp_path) == {"made/manifest.json": OLD}


def test_what_a_killed_process_left_behind_does_not_leak_into_the_new_folder(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsr.files.shutil.rmtree", lambda *_, **__: None)  # as if killed: no clean-up
        with pytest.raises(RuntimeError), new_folder(tmp_path / "made") as folder:  # noqa: PT012
            (folder / "stale").write_text("stale")
            raise RuntimeError
    assert len(tree(tmp_path)) == 1
    with new_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("1")
    assert tree(tmp_path) == {"made/a": "1"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_or_a_missing_parent_is_no_target(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file: name a folder"):
        check_target(tmp_path / "file", overwrite=overwrite)
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist"):
        check_target(tmp_path / "nowhere" / "made", overwrite=overwrite)
    assert tree(tmp_path) == {"file": "mine"}


def test_a_folder_that_lsr_did_not_write_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    check_target(tmp_path / "home", overwrite=True)  # nothing to lose in it
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    (tmp_path / "home" / "manifest.json").write_text('{"format_version": 3}')  # another program's
    with pytest.raises(InputError, match="home is no index and no encoder, and will not be deleted"):
        check_target(tmp_path / "home", overwrite=True)
    assert tree(tmp_path) == {"home/thesis.tex": "mine", "home/manifest.json": '{"format_version": 3}'}


def test_a_name_in_the_working_directory_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder("made/") as folder:
        (folder / "a").write_text("1")
    assert tree(tmp_path) == {"made/a": "1"}


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    with new_folder(tmp_path / "real") as folder:
        (folder / "manifest.json").write_text(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "real") == {"a": "new"}


def test_an_interruption_between_the_two_renames_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_folder(tmp_path / "made") as folder:
        (folder / "manifest.json").write_text(OLD)
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "made", overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert tree(tmp_path) == {"made/manifest.json": OLD}


# --- two at once -----------------------------------------------------------------------------------


def test_of_two_folders_made_at_once_the_first_finished_stays(tmp_path: Path) -> None:
    with (  # noqa: PT012 - the first one is made inside of the second
        pytest.raises(InputError, match="made already exists"),
        new_folder(tmp_path / "made") as second,
    ):
        (second / "a").write_text("second")
        with new_folder(tmp_path / "made") as first:
            assert second != first
            (first / "a").write_text("first")
    assert tree(tmp_path) == {"made/a": "first"}


def test_of_two_overwriters_the_last_finished_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made", overwrite=True) as second:
        (second / "manifest.json").write_text(OLD)
        with new_folder(tmp_path / "made", overwrite=True) as first:
            (first / "manifest.json").write_text(OLD)
            (first / "a").write_text("first")
    assert tree(tmp_path) == {"made/manifest.json": OLD}


def test_of_two_writers_of_a_file_the_last_finished_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as second:
        second.write("second, which is longer")
        with replacing(tmp_path / "a") as first:
            first.write("first")
        write_whole(tmp_path / "b", lambda file: file.write(b"b"))
        assert tree(tmp_path)["a"] == "first"
    assert tree(tmp_path) == {"a": "second, which is longer", "b": "b"}


KILLED = """
import os, sys
from lsr.files import new_folder, replacing
with new_folder(sys.argv[1]) as folder, replacing(sys.argv[2]) as file:
    (folder / "half").write_text("half")
    os._exit(9)
"""


def test_what_killed_processes_left_is_deleted_and_what_lives_is_not(tmp_path: Path) -> None:
    folder, file = tmp_path / "made", tmp_path / "text.json"
    with replacing(file) as living:
        subprocess.run([sys.executable, "-c", KILLED, folder, file], check=False)
        assert len([name for name in tree(tmp_path) if "partial" in name]) == 3
        with new_folder(folder) as inside, replacing(file):
            assert list(inside.iterdir()) == []
            assert len([name for name in tree(tmp_path) if "partial" in name]) == 2
        living.write("lives")
    assert tree(tmp_path) == {"text.json": "lives"}
