"""`load_encoder`: find out what a folder or hub id holds, and refuse what is not a sparse encoder."""

import json
import os
from pathlib import Path
from typing import Any

from lsr.bm25 import Bm25Documents, Bm25Queries
from lsr.checkpoint import Lengths, check_precision, find_folder, has_mlm_head, load_backbone, mlm_pair
from lsr.encoder import DTYPES, ENCODER_FILE, FORMAT_VERSION, Encoder, TextEncoder
from lsr.errors import FormatError, InputError, LsrError, optional_import
from lsr.joined import PARTS, JoinedSide, join, joined_side, neural_sides
from lsr.lookup import IDF_FILE, LookupEncoder, inference_free, read_idf
from lsr.onnx_side import OnnxEncoder
from lsr.st_folders import load_sentence_transformers


def load_encoder(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    document_max_length: int | None = None,
    query_max_length: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> Encoder:
    """Load an encoder from a folder or a Hugging Face hub id.

    Understood: what `Encoder.save` wrote; a sentence-transformers SparseEncoder (symmetric, or a
    router with a static query embedding); a masked-LM checkpoint with an ``idf.json`` beside it
    (OpenSearch's inference-free models); any masked-LM checkpoint, as SPLADE-max.

    Args:
        source: a folder, ``lsr-tiny``, which comes with the package, a hub id such as ``naver/splade-v3``, or
            ``package:NAME/FOLDER`` inside an installed Python package.
        revision: the hub revision (branch, tag or commit).
        document_max_length: tokens kept of a document (default 512, or what the model was saved with).
        query_max_length: tokens kept of a query (default 256, likewise).
        device: "cpu", "cuda", …; by default CUDA where there is one.
        dtype: "float32", or "bfloat16" or "float16": what a transformer multiplies in. Weights stay float32.

    Raises:
        InputError: the source cannot be found; ``dtype`` is unknown to the device, or without effect.
        FormatError: it holds no trained sparse encoder.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown: choose from {', '.join(DTYPES)}")
    folder = find_folder(source, revision)
    lengths = Lengths(document_max_length, query_max_length)
    if (folder / ENCODER_FILE).is_file():
        sides = _load_own(folder, lengths, device, dtype)
    elif (folder / "modules.json").is_file():
        sides = load_sentence_transformers(folder, lengths, device, dtype)
    elif (folder / "config.json").is_file():
        sides = _load_checkpoint(folder, lengths, device, dtype)
    else:
        raise FormatError(
            f"{folder} holds no encoder: it has none of {ENCODER_FILE}, modules.json (sentence-transformers) and "
            "config.json (Hugging Face)"
        )
    if dtype != "float32":
        neural = neural_sides(sides)
        if not neural:
            raise InputError(
                f"{folder} runs no transformer in torch: dtype {dtype!r} would change nothing, leave it out"
            )
        check_precision(dtype, getattr(neural[0].backbone, "device", "cpu"))
    sides.source = str(folder.resolve()) if Path(source).is_dir() else str(source)
    sides.revision = revision
    return sides


# --- our own folders ---------------------------------------------------------------------------


def read_encoder_file(folder: Path) -> dict[str, Any]:
    """The content of ``lsr_encoder.json``, its version checked.

    Raises:
        FormatError: damaged, or of a newer format.
    """
    path = folder / ENCODER_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder holds no saved encoder") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise FormatError(f"{path} is damaged: save the encoder again") from error
    if version != FORMAT_VERSION:
        raise FormatError(f"{path} has format {version}, this version of lsr reads {FORMAT_VERSION}: upgrade lsr")
    return dict(fields)


def _load_own(folder: Path, lengths: Lengths, device: str | None, dtype: str) -> Encoder:
    fields = read_encoder_file(folder)
    if _is_joined(fields, "documents"):
        first, second = (_load_own(folder / part, lengths, device, dtype) for part in PARTS)
        return join(first, second, fields["documents"].get("weight"))
    documents = load_side(folder, fields, "documents", lengths, device, dtype)
    queries = load_side(folder, fields, "queries", lengths, device, dtype, shared=documents)
    return Encoder(documents, queries)


def load_side(
    folder: Path,
    fields: dict[str, Any],
    name: str,
    lengths: Lengths | None = None,
    device: str | None = None,
    dtype: str = "float32",
    *,
    shared: TextEncoder | None = None,
) -> TextEncoder:
    """Load the side ``name`` ("documents" or "queries") of a saved encoder.

    Raises:
        FormatError: the side is absent, of an unknown kind, or its files are damaged.
    """
    if _is_joined(fields, name):
        places = [folder / part for part in PARTS]
        first, second = (load_side(p, read_encoder_file(p), name, lengths, device, dtype) for p in places)
        return joined_side(first, second, fields[name].get("weight"))
    try:
        config = dict(fields[name])
        kind, place = config["kind"], folder / config["folder"]
        if "max_length" in config:
            config["max_length"] = (lengths or Lengths(None, None)).of(name, config["max_length"])
        if isinstance(shared, OnnxEncoder) and place == folder / fields["documents"]["folder"]:
            return shared.with_length(config["max_length"])
        if kind in TORCHLESS_SIDES:
            side: TextEncoder = TORCHLESS_SIDES[kind].load(place, config)
            return side
        if kind in NEURAL_KINDS:
            return _load_neural(folder, fields, name, config, device, dtype, shared)
    except (KeyError, TypeError, OSError, ValueError) as error:
        if isinstance(error, LsrError):
            raise
        raise FormatError(f"{folder}: the {name} side is damaged or unfinished ({error}): save it again") from error
    raise FormatError(f"{folder} has a {name} side of the unknown kind {kind!r}: upgrade lsr")


def _is_joined(fields: dict[str, Any], name: str) -> bool:
    side = fields.get(name)
    return isinstance(side, dict) and side.get("kind") == JoinedSide.kind


TORCHLESS_SIDES: dict[str, Any] = {
    "bm25-documents": Bm25Documents,
    "bm25-queries": Bm25Queries,
    "lookup": LookupEncoder,
    "onnx": OnnxEncoder,
}

#: Kinds whose sides run a transformer with torch.
NEURAL_KINDS = ("mlm", "clsmlm", "epic", "mlp")


def _load_neural(
    folder: Path,
    fields: dict[str, Any],
    name: str,
    config: dict[str, Any],
    device: str | None,
    dtype: str,
    shared: TextEncoder | None,
) -> TextEncoder:
    optional_import("torch", "encode", "running a transformer encoder")
    from lsr.neural import NeuralEncoder

    place = backbone_place(config)
    if isinstance(shared, NeuralEncoder) and place == backbone_place(fields["documents"]):
        backbone = shared.backbone
    else:
        headed = config["kind"] != "mlp" or has_mlm_head(folder / place)
        backbone = load_backbone(folder / place, device, head="checkpoint" if headed else None)
    return NeuralEncoder.load(folder / config["folder"], config, backbone, dtype)


def backbone_place(config: dict[str, Any]) -> str:
    """The folder of a side's transformer: its own, unless it shares that of the documents."""
    return str(config.get("backbone", config["folder"]))


# --- Hugging Face and OpenSearch folders -------------------------------------------------------


def _load_checkpoint(folder: Path, lengths: Lengths, device: str | None, dtype: str) -> Encoder:
    encoder = mlm_pair(load_backbone(folder, device), lengths, dtype=dtype)
    if (folder / IDF_FILE).is_file():
        return inference_free(encoder, read_idf(folder / IDF_FILE, encoder), max_length=lengths.of("queries"))
    return encoder
