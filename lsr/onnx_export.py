"""Sides that run a transformer, written as ONNX graphs: token ids and mask to pooled vectors."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsr.encoder import Encoder, TextEncoder
from lsr.errors import FormatError, InputError, optional_import
from lsr.neural import NeuralEncoder, evaluating
from lsr.onnx_side import OnnxEncoder

#: Weights are a few units large, and float32 sums in another order differ by 10⁻⁵ at most.
LARGEST_DIFFERENCE = 1e-3


def write_onnx(encoder: Encoder, folder: Path) -> None:
    """Write what `Encoder.save` does, with graphs in place of transformers.

    The sides keep their fingerprints: an index made with the one encoder can be searched with the other.

    Raises:
        InputError: no side runs a transformer.
        MissingDependencyError: the extra ``onnx`` is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        optional_import(module, "onnx", "exporting an encoder to ONNX")
    if not any(isinstance(side, NeuralEncoder) for side in (encoder.documents, encoder.queries)):
        raise InputError("neither side of this encoder runs a transformer: there is nothing to export to ONNX")
    documents = _as_graph(encoder.documents)
    Encoder(documents, _as_graph(encoder.queries, documents)).save_files(folder)


def _as_graph(side: TextEncoder, other: TextEncoder | None = None) -> TextEncoder:
    if not isinstance(side, NeuralEncoder):
        return side
    if isinstance(other, OnnxEncoder) and other.fingerprint == side.fingerprint:
        return other.with_length(side.max_length)
    graph = OnnxEncoder(
        to_graph(side.module),
        side.tokenizer,
        side.max_length,
        vocabulary_size=side.vocabulary_size,
        fingerprint=side.fingerprint,
        top_terms=side.top_terms,
    )
    _check(graph, side)
    return graph


def _check(graph: TextEncoder, side: NeuralEncoder) -> None:
    """Refuse a graph that gives other vectors: exporters guess where a model's code looks at its input."""
    middle = side.vocabulary_size // 2
    texts = [" ".join(side.term(middle + i) for i in range(n)) for n in (3, 7, 1)]
    off = np.abs((graph.encode(texts).vectors - side.encode(texts).vectors).toarray()).max()
    if not off < LARGEST_DIFFERENCE:
        raise FormatError(
            f"the ONNX graph of {type(side.backbone.model).__name__} is off by {off:.2g}: this architecture cannot be "
            "exported"
        )


class _Positional(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights: Tensor = self.module(input_ids, attention_mask)
        return weights


def to_graph(module: torch.nn.Module) -> bytes:
    """The serialized graph of a head, its numbers of texts and of tokens left open."""
    device = next(module.parameters()).device
    ids = torch.arange(16, device=device).view(2, 8)
    mask = (ids < 12).long()  # not the ids: equal inputs are taken for one
    texts, length = torch.export.Dim("texts"), torch.export.Dim("length")
    shapes: Any = {name: {0: texts, 1: length} for name in ("input_ids", "attention_mask")}
    with evaluating(module), torch.inference_mode(), _quiet():
        program = torch.onnx.export(
            _Positional(module),
            (ids, mask),
            input_names=["input_ids", "attention_mask"],
            output_names=["weights"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters report what they could not simplify; that is no matter of the caller's."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
