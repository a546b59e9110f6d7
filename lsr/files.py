"""Reading lines that may be broken, and writing files that are never half there."""

import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lsr.errors import FormatError, InputError

#: Files by which a folder is known as one that lsr wrote, and may replace when told to overwrite.
OURS = ("manifest.json", "lsr_encoder.json")


def open_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 text file, plain or .gz.

    Raises:
        InputError: the file does not exist or is a folder.
        FormatError: a line is not UTF-8, or the gzip stream is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder, not a file' if path.is_dir() else 'missing'}: check the path")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: check its permissions")
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}:{number}: the line is not UTF-8 ({error.reason})") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FormatError(f"{path}:{number + 1}: the gzip stream is damaged ({error})") from error


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of a JSONL file, plain or .gz, empty lines left out.

    Raises:
        InputError: as `open_lines`.
        FormatError: as `open_lines`, or a line is not JSON.
    """
    for number, line in open_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise FormatError(f"{path}:{number}: not valid JSON: {error.msg} (column {error.colno})") from error
        yield number, value


def check_parent(path: Path) -> None:
    """Refuse a place whose parent folder is missing or cannot be written to."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"the folder {parent} does not exist: create it, or write elsewhere")
    if not os.access(parent, os.W_OK):
        raise InputError(f"the folder {parent} cannot be written to: choose another place")


def check_file_target(path: str | os.PathLike[str]) -> None:
    """Refuse, before any work is done, a file that could not be written at the end.

    Raises:
        InputError: it is a folder, or its parent is missing or cannot be written to.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    check_parent(path)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a text file for writing that takes its name only when all of it is on disk.

    Of two processes that write one file, each writes its own, and the one that ends last stays.
    """
    path = Path(path)
    check_file_target(path)
    with _own(path, Path.touch) as partial:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a binary file that takes its name only when all of it is on disk; as `replacing`."""
    path = Path(path)
    check_file_target(path)
    with _own(path, Path.touch) as partial:
        write_synced(partial, write)
        partial.replace(path)


def write_synced(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a new binary file, and return when it is on disk."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def packed(raw: BinaryIO) -> gzip.GzipFile:
    """A .gz into an open file that says neither when it was written nor its name: equal bytes give equal files."""
    return gzip.GzipFile("", "wb", fileobj=raw, mtime=0)


@contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends well, and vanishes otherwise.

    Of two processes that make one folder, each fills its own. The first one that ends stays, and the other is refused
    at its end; with ``overwrite`` the last one stays. Blocks are not nested: the inner one would wait for the outer
    one's lock.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is False, or its parent is missing.
    """
    path = Path(os.path.realpath(path))  # a link to a folder stays a link
    check_target(path, overwrite=overwrite)
    with _own(path, Path.mkdir) as partial:
        yield partial
        for inside in partial.rglob("*"):
            _sync(inside)
        _sync(partial)
        with locked(path.parent):
            check_target(path, overwrite=overwrite)  # another process may have been faster
            _take_place(partial, path)
        _sync(path.parent)


def _take_place(partial: Path, path: Path) -> None:
    """Rename a folder, over another one if there is one."""
    if not path.exists():
        partial.rename(path)
        return
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:  # an interruption too: the old folder comes back
        old.rename(path)
        raise
    shutil.rmtree(old)


@contextmanager
def _own(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A hidden file or folder beside ``path`` that this call alone writes to, deleted at the end if it is still there.

    It is locked while it is in use, so that those of processes which were killed are known, and deleted here.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    for other in [place for place in path.absolute().parent.iterdir() if name.fullmatch(place.name)]:
        with suppress(OSError), locked(other, wait=False) as free:
            if free:
                _delete(other)
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        make(partial)
        with ExitStack() as held:
            with suppress(FileNotFoundError):
                held.enter_context(locked(partial))
            if not partial.exists():  # it was taken for one of a killed process before it was locked
                continue
            try:
                yield partial
            finally:
                _delete(partial)
            return


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool | None]:
    """Hold the lock of a file or folder, which ends with the process too.

    Yields:
        Whether it is held: False where another process holds it, None where the file system knows no locks.
    """
    import fcntl  # not on Windows, where indexes can be searched but not built

    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held: bool | None = True
        except BlockingIOError:
            held = False
        except OSError:
            held = None
        yield held
    finally:
        os.close(handle)


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse, before any work is done, a folder that could not be written at the end.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is False or lsr did not write it, it is a file, or
            its parent is missing.
    """
    path = Path(path)
    check_parent(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: name a folder")
    if path.exists() and not overwrite:
        raise InputError(f"{path} already exists: choose another path, or overwrite it (overwrite=True, --overwrite)")
    if path.exists() and any(path.iterdir()) and not any(_is_ours(path / name) for name in OURS):
        raise InputError(f"{path} is no index and no encoder, and will not be deleted: choose another path")


def _is_ours(path: Path) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return b'"format_version"' in content and (b'"checksum"' in content or b'"identity"' in content)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
