"""`export_encoder`: an encoder as other systems read it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lsr.encoder import DTYPES, Encoder, NeuralSide
from lsr.errors import InputError
from lsr.files import new_folder
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
    """Write an encoder in a form of someone else's; `lsr.load_encoder` reads it again.

    Args:
        encoder: what to write.
        path: the folder.
        form: "sentence-transformers", a SparseEncoder's folder (symmetric, or a router with static queries);
            "opensearch", an inference-free checkpoint with its idf.json; "onnx", graphs for onnxruntime.
        overwrite: whether an encoder there may be replaced.
        dtype: of a transformer's weights on disk; "float32" only with onnx.

    Raises:
        InputError: the form is unknown, or cannot hold this encoder.
    """
    if form not in FORMS:
        raise InputError(f"an encoder cannot be exported as {form!r}: choose from {', '.join(FORMS)}")
    if dtype not in DTYPES:
        raise InputError(f"weights cannot be saved as {dtype!r}: choose from {', '.join(DTYPES)}")
    with new_folder(path, overwrite=overwrite) as folder:
        FORMS[form](encoder, folder, dtype)


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
}
