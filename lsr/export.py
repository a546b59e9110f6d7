"""`export_encoder`: an encoder as other systems read it, or in another dtype."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lsr.encoder import DTYPES, STORED_DTYPES, Encoder, NeuralSide
from lsr.errors import InputError
from lsr.files import new_folder
from lsr.joined import PARTS, JoinedEncoder, neural_sides
from lsr.lookup import IDF_FILE, LookupEncoder, write_idf
from lsr.st_folders import write_sentence_transformers


def export_encoder(
    encoder: Encoder,
    path: str | os.PathLike[str],
    form: str,
    *,
    overwrite: bool = False,
    dtype: str = "float32",
) -> None:
    """Write an encoder in a form of someone else's or our own; `lsr.load_encoder` reads it again.

    Args:
        encoder: what to write.
        path: the folder.
        form: "sentence-transformers", a SparseEncoder's folder (symmetric, or a router with static queries);
            "opensearch", an inference-free checkpoint with its idf.json; "onnx", graphs for onnxruntime; "lsr", what
            `Encoder.save` writes.
        overwrite: whether an encoder there may be replaced.
        dtype: of a transformer's weights on disk; "float32" only with onnx, "int8" only with lsr.

    Raises:
        InputError: the form is unknown, or cannot hold this encoder or dtype.
    """
    if form not in FORMS:
        raise InputError(f"an encoder cannot be exported as {form!r}: choose from {', '.join(FORMS)}")
    dtypes = STORED_DTYPES if form == "lsr" else DTYPES
    if dtype not in dtypes:
        raise InputError(f"{form} weights cannot be saved as {dtype!r}: choose from {', '.join(dtypes)}")
    if form != "lsr" and isinstance(encoder, JoinedEncoder):
        raise InputError(
            f"{form} cannot hold two encoders in one vector: export a part alone, the folder {PARTS[0]} or {PARTS[1]} "
            "inside the joined encoder's"
        )
    with new_folder(path, overwrite=overwrite) as folder:
        FORMS[form](encoder, folder, dtype)


def _write_own(encoder: Encoder, folder: Path, dtype: str) -> None:
    if dtype != "float32" and not neural_sides(encoder):
        raise InputError(
            f"this encoder runs no transformer in torch: dtype {dtype!r} would change nothing, leave it out"
        )
    encoder.save_files(folder, dtype=dtype)


def _write_opensearch(encoder: Encoder, folder: Path, dtype: str) -> None:
    documents, queries = encoder.documents, encoder.queries
    plain = {"pooling": "max", "activation": "log1p"}
    if not isinstance(documents, NeuralSide) or not isinstance(queries, LookupEncoder) or documents.kind != "mlm":
        raise InputError(
            f"OpenSearch's folders hold mlm documents and looked-up queries: this encoder has {documents.kind} and "
            f"{queries.kind}"
        )
    if documents.config() != {"max_length": documents.max_length, **plain}:
        raise InputError(f"OpenSearch's documents are {plain}: these are {documents.config()}")
    if queries.counts:
        raise InputError("OpenSearch's queries are binary: those of this encoder count terms (counts)")
    documents.save_files(folder, dtype=dtype)
    write_idf(folder / IDF_FILE, queries.weights, encoder)


def _write_onnx(encoder: Encoder, folder: Path, dtype: str) -> None:
    if dtype != "float32":
        raise InputError(f"an ONNX graph is written in float32: got {dtype}")
    from lsr.onnx_export import write_onnx

    write_onnx(encoder, folder)


FORMS: Final[dict[str, Callable[[Encoder, Path, str], None]]] = {
    "sentence-transformers": write_sentence_transformers,
    "opensearch": _write_opensearch,
    "onnx": _write_onnx,
    "lsr": _write_own,
}
