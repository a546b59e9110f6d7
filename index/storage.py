"""An index as a directory: a checked manifest and memory-mapped arrays (docs/file-format.md).

The layout on disk is the layout in use. The manifest holds a checksum of every file; a file whose
size and time are those seen at the last full check is not read again: opening takes milliseconds, and a
file that was written to since then is refused. ``verify=True`` reads everything.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lsr
from lsr.errors import FormatError, InputError
from lsr.files import sha256_of
from lsr.index.ids import Ids, StringTable
from lsr.index.options import BuildOptions
from lsr.index.segment import (
    Array,
    Blocks,
    Forward,
    Lists,
    Neighbours,
    Segment,
    Summaries,
    check_segment,
    frozen,
)

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CHECKED = "checked.json"
FAMILIES: dict[str, Any] = {
    "forward": Forward, "lists": Lists, "blocks": Blocks, "summaries": Summaries, "neighbours": Neighbours,
}  # fmt: skip


@dataclass
class Manifest:
    """What an index says of itself.

    Attributes:
        n_documents, vocabulary_size: of the vectors.
        options: what the index was built with.
        plan: what the planner's settings reached (`Plan.to_dict`).
        encoder: who made the vectors (`Encoder.identity`), None when unknown.
        segments: names of the segment folders.
        lsr_version: the version that wrote the index.
        files: size and SHA-256 of every file by its path in the directory.
    """

    n_documents: int
    vocabulary_size: int
    options: BuildOptions
    plan: dict[str, Any]
    encoder: dict[str, Any] | None = None
    segments: list[str] = field(default_factory=lambda: ["segment-00000"])
    lsr_version: str = lsr.__version__
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def write_index(folder: Path, manifest: Manifest, segment: Segment, ids: Ids) -> None:
    """Write everything but the manifest into an existing folder."""
    place = folder / manifest.segments[0]
    place.mkdir()
    for name, family in segment.families().items():
        for part, array in family._asdict().items():
            save_array(place / f"{name}.{part}.npy", array)
    save_strings(place, "ids", ids)


def save_array(path: Path, array: Array) -> None:
    """Write one ``.npy`` file."""
    np.save(path, array, allow_pickle=False)


def save_strings(folder: Path, name: str, strings: StringTable) -> None:
    """Write a table of strings as two arrays."""
    save_array(folder / f"{name}.data.npy", strings.data)
    save_array(folder / f"{name}.offsets.npy", strings.offsets)


def finish(folder: Path, manifest: Manifest) -> None:
    """Write the manifest over everything that is in the folder: from here on it is an index."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest.files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in paths
    }
    fields = {
        "format_version": FORMAT_VERSION,
        **vars(manifest),
        "options": manifest.options.to_dict(),
    }
    fields["checksum"] = _checksum(fields)
    (folder / MANIFEST).write_text(json.dumps(fields, indent=1), encoding="utf-8")
    _remember(folder, manifest)


def _checksum(fields: dict[str, Any]) -> str:
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def open_index(folder: Path, *, verify: bool = False) -> tuple[Manifest, Segment, Ids]:
    """Open without reading the arrays.

    Args:
        folder: the index directory.
        verify: read every file and hold it against its checksum, even if it looks untouched.

    Raises:
        InputError: there is no index there.
        FormatError: it is damaged, altered, or of a newer format.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest, verify=verify)
    place = folder / manifest.segments[0]
    families: dict[str, Any] = {}
    seismic, graph = manifest.options.seismic, manifest.options.neighbours > 0
    kept = {"forward": True, "lists": True, "blocks": seismic, "summaries": seismic, "neighbours": graph}
    for name, family in FAMILIES.items():
        if not kept[name]:
            families[name] = None
        else:
            families[name] = family(*(open_array(place / f"{name}.{part}.npy") for part in family._fields))
    segment = Segment(manifest.n_documents, manifest.vocabulary_size, **families)
    check_segment(segment)
    ids = Ids(open_array(place / "ids.data.npy"), open_array(place / "ids.offsets.npy"))
    if len(ids) != segment.n_documents:
        raise FormatError(f"{folder} has {len(ids):,} ids for {segment.n_documents:,} documents: build it again")
    return manifest, segment, ids


def read_manifest(folder: Path) -> Manifest:
    """The manifest, its version and checksum checked.

    Raises:
        InputError: no such folder, or no index in it.
        FormatError: damaged, altered, or of a newer format.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"there is no index at {folder}: build one with lsr index CORPUS --model MODEL --out {folder}")
    if not path.is_file():
        raise InputError(f"{folder} is not an index: it has no {MANIFEST}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is damaged: build the index again") from error
    if not isinstance(version, int):
        raise FormatError(f"{path} is damaged: build the index again")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{folder} has index format {version}, this version of lsr ({lsr.__version__}) reads {FORMAT_VERSION}: "
            f"{'upgrade lsr' if version > FORMAT_VERSION else 'build it again'}"
        )
    if fields.pop("checksum", None) != _checksum(fields):
        raise FormatError(f"{path} was altered: its checksum does not match; build the index again")
    del fields["format_version"]
    try:
        return Manifest(**{**fields, "options": BuildOptions.from_dict(fields["options"])})
    except (KeyError, TypeError) as error:
        raise FormatError(f"{path} lacks a field, or has one of an unknown version ({error}): upgrade lsr") from error


def check_files(folder: Path, manifest: Manifest, *, verify: bool = False) -> None:
    """Hold every file against the manifest: its size always, its checksum where it may have changed.

    Raises:
        FormatError: naming the file that is missing, truncated or altered.
    """
    seen = {} if verify else _remembered(folder)
    changed = False
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise FormatError(f"{path} is missing: the index is incomplete; build it again")
        stat = path.stat()
        if stat.st_size != entry["bytes"]:
            raise FormatError(
                f"{path} has {stat.st_size:,} bytes instead of {entry['bytes']:,}: it was truncated or altered; "
                "build the index again"
            )
        if seen.get(name) != [stat.st_size, stat.st_mtime_ns]:
            changed = True
            if sha256_of(path) != entry["sha256"]:
                raise FormatError(f"{path} was altered: its checksum does not match; build the index again")
    if changed:
        _remember(folder, manifest)


def _remember(folder: Path, manifest: Manifest) -> None:
    """Note the files' sizes and times after a full check, where the folder can be written."""
    stats = {name: (folder / name).stat() for name in manifest.files}
    seen = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    partial = folder / f".{CHECKED}.{os.getpid()}"
    try:
        partial.write_text(json.dumps(seen), encoding="utf-8")
        partial.replace(folder / CHECKED)
    except OSError:  # a read-only folder is checked in full each time
        if partial.exists():
            partial.unlink()


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        seen = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}


def open_array(path: Path) -> Array:
    """Memory-map one array read-only.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the index is incomplete; build it again") from error
    except ValueError as error:
        if path.stat().st_size and _is_empty(path):  # an empty file cannot be mapped
            return frozen(np.load(path, allow_pickle=False))
        raise FormatError(f"{path} is not a readable array ({error}): build the index again") from error
    return frozen(array)


def _is_empty(path: Path) -> bool:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        shape, _, _ = (
            np.lib.format.read_array_header_1_0(file)
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0(file)
        )
    return 0 in shape
