"""Folders of other systems, written by us and read by them: sentence-transformers, OpenSearch, ONNX."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TEXTS

import lsr
from lsr.checkpoint import load_backbone
from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError, LsrWarning
from lsr.export import export_encoder
from lsr.heads import EpicHead, MlmHead, MlpHead
from lsr.lookup import inference_free
from lsr.neural import NeuralEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.* were longer than:lsr.errors.LsrWarning")

LONG = [*TEXTS, " ".join(["cat dog bank river"] * 8)]


def mlm_encoder(checkpoint, pooling="max", activation="log1p", length=24) -> Encoder:
    side = NeuralEncoder(MlmHead(load_backbone(checkpoint, "cpu"), pooling=pooling, activation=activation), length)
    return Encoder(side, side)


def with_table(encoder: Encoder, max_length: int = 9) -> Encoder:
    weights = np.linspace(0, 3, encoder.vocabulary_size, dtype=np.float32)
    return inference_free(encoder, weights, max_length=max_length)


def ours(encoder: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return encoder.encode_documents(texts).toarray(), encoder.encode_queries(texts).toarray()


def theirs(folder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    from sentence_transformers import SparseEncoder

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    model = SparseEncoder(str(folder), device="cpu")
    return tuple(encode(texts).to_dense().numpy() for encode in (model.encode_document, model.encode_query))


# --- sentence-transformers ---------------------------------------------------------------------


@pytest.mark.parametrize("queries", ["same", "table"])
@pytest.mark.parametrize(("pooling", "activation"), [("max", "log1p"), ("sum", "log1p_log1p")])
def test_sentence_transformers_gives_our_vectors(tmp_path, checkpoint, queries, pooling, activation):
    encoder = mlm_encoder(checkpoint, pooling, activation)
    encoder = encoder if queries == "same" else with_table(encoder)
    export_encoder(encoder, tmp_path / "st", "sentence-transformers")
    for a, b in zip(ours(encoder, LONG), theirs(tmp_path / "st", LONG), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    again = lsr.load_encoder(tmp_path / "st", device="cpu")
    assert again.fingerprint == encoder.fingerprint
    assert (again.documents.max_length, again.queries.max_length) == (24, encoder.queries.max_length)


def test_half_precision_reaches_the_folder(tmp_path, checkpoint):
    encoder = mlm_encoder(checkpoint)
    export_encoder(encoder, tmp_path / "st", "sentence-transformers", dtype="float16")
    loaded = lsr.load_encoder(tmp_path / "st", device="cpu")
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(tmp_path / "st"), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = model.encode_document(TEXTS).to_dense().numpy()
    np.testing.assert_allclose(loaded.encode_documents(TEXTS).toarray(), expected, atol=1e-5)


def test_one_length_for_two_is_said(tmp_path, checkpoint):
    side = mlm_encoder(checkpoint).documents
    encoder = Encoder(side, NeuralEncoder(side.module, 9))
    with pytest.warns(LsrWarning, match="will cut queries at 24 tokens, lsr cut them at 9"):
        export_encoder(encoder, tmp_path / "st", "sentence-transformers")


def test_what_sentence_transformers_has_not_is_refused(tmp_path, checkpoint):
    backbone = load_backbone(checkpoint, "cpu")
    mlm, mlp = NeuralEncoder(MlmHead(backbone), 24), NeuralEncoder(MlpHead(backbone, repeats="sum"), 24)
    top = NeuralEncoder(MlmHead(backbone), 24, top_terms=9)
    soft = NeuralEncoder(MlmHead(backbone, activation="softplus"), 24)
    for encoder, message in (
        (Encoder(mlm, mlp), "the mlp queries of this encoder are neither"),
        (Encoder(mlp, mlp), "has no document encoder of kind mlp: only mlm"),
        (Encoder(top, top), "no pooling with activation log1p and top_terms 9"),
        (Encoder(soft, soft), "no pooling with activation softplus"),
        (lsr.Bm25().fit(TEXTS), "has no document encoder of kind bm25-documents"),
    ):
        with pytest.raises(InputError, match=message):
            export_encoder(encoder, tmp_path / "st", "sentence-transformers")
        assert not (tmp_path / "st").exists()


def test_the_real_model_both_ways(tmp_path, shared):
    """Exported by us and read by the library; saved by the library and read by us: 1e-4 in float32."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    texts = [
        "Learned sparse retrieval maps texts to weighted terms of a vocabulary.",
        "what is a cat?",
        "0-dimensional biomaterials lack inductive properties. " * 12,
    ]
    source = str(shared / "models" / "splade-tiny")
    encoder = lsr.load_encoder(source, device="cpu", document_max_length=256, query_max_length=256)
    export_encoder(encoder, tmp_path / "ours", "sentence-transformers")
    for a, b in zip(ours(encoder, texts), theirs(tmp_path / "ours", texts), strict=True):
        assert a.max() > 1
        assert np.abs(a - b).max() <= 1e-4
    table = with_table(encoder)
    export_encoder(table, tmp_path / "router", "sentence-transformers")
    for a, b in zip(ours(table, texts[:2]), theirs(tmp_path / "router", texts[:2]), strict=True):
        assert np.abs(a - b).max() <= 1e-4
    model = SparseEncoder(modules=[Transformer(source, transformer_task="fill-mask"), SpladePooling("max")])
    model.save_pretrained(str(tmp_path / "theirs"))
    expected = model.encode_document(texts).to_dense().cpu().numpy()
    read = lsr.load_encoder(tmp_path / "theirs", device="cpu")
    assert np.abs(read.encode_documents(texts).toarray() - expected).max() <= 1e-4


# --- OpenSearch --------------------------------------------------------------------------------


def test_an_opensearch_folder_comes_back(tmp_path, checkpoint):
    encoder = with_table(mlm_encoder(checkpoint))
    export_encoder(encoder, tmp_path / "os", "opensearch")
    assert json.loads((tmp_path / "os" / "idf.json").read_text())["cat"] > 0
    again = lsr.load_encoder(tmp_path / "os", device="cpu", document_max_length=24, query_max_length=9)
    assert again.fingerprint == encoder.fingerprint
    for a, b in zip(ours(encoder, TEXTS), ours(again, TEXTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_opensearch_has_not_is_refused(tmp_path, checkpoint):
    symmetric = mlm_encoder(checkpoint)
    with pytest.raises(InputError, match="hold mlm documents and looked-up queries: this encoder has mlm and mlm"):
        export_encoder(symmetric, tmp_path / "os", "opensearch")
    summed = with_table(mlm_encoder(checkpoint, "sum"))
    with pytest.raises(InputError, match="OpenSearch's documents are .*'pooling': 'max'"):
        export_encoder(summed, tmp_path / "os", "opensearch")


@pytest.mark.parametrize("form", ["opensearch", "sentence-transformers"])
def test_queries_that_count_terms_are_not_exported_as_binary_ones(tmp_path, checkpoint, form):
    encoder = lsr.load_encoder(checkpoint)
    counted = inference_free(encoder, np.ones(encoder.vocabulary_size), counts=True)
    with pytest.raises(InputError, match="queries are binary"):
        export_encoder(counted, tmp_path / "out", form)


def test_unknown_forms_are_refused(tmp_path, checkpoint):
    encoder = mlm_encoder(checkpoint)
    with pytest.raises(InputError, match="exported as 'pickle': choose from sentence-transformers, opensearch, onnx"):
        export_encoder(encoder, tmp_path / "x", "pickle")
    with pytest.raises(InputError, match="an ONNX graph is written in float32: got float16"):
        export_encoder(encoder, tmp_path / "x", "onnx", dtype="float16")
    with pytest.raises(InputError, match="onnx weights cannot be saved as 'int4'"):
        export_encoder(encoder, tmp_path / "x", "onnx", dtype="int4")
    for form in ("sentence-transformers", "opensearch"):  # nothing but lsr reads 8 bits
        with pytest.raises(InputError, match=f"{form} weights cannot be saved as 'int8': choose from float32, float16"):
            export_encoder(encoder, tmp_path / "x", form, dtype="int8")


# --- ONNX --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_pair(tmp_path_factory, checkpoint):
    """An inference-free encoder, and what was exported from it."""
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra onnx")
    pytest.importorskip("onnxscript", reason="ONNX export needs the extra onnx")
    encoder = with_table(mlm_encoder(checkpoint))
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    export_encoder(encoder, folder, "onnx")
    return encoder, folder


def test_the_graph_gives_torch_s_vectors(onnx_pair):
    encoder, folder = onnx_pair
    again = lsr.load_encoder(folder)
    assert (again.documents.kind, again.queries.kind) == ("onnx", "lookup")
    assert again.fingerprint == encoder.fingerprint  # so that an index takes queries of either
    for texts in (LONG, LONG[:1], LONG[2:5]):
        for a, b in zip(ours(encoder, texts), ours(again, texts), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.warns(LsrWarning, match="1 of 2 documents have no term"):
        assert again.encode_documents(["", "cat"])[[0]].nnz == 0
    told: list[int] = []
    again.documents.encode(LONG, told.append)
    assert sum(told) == len(LONG)


def test_an_onnx_folder_is_read_without_torch(onnx_pair):
    _, folder = onnx_pair
    code = (
        f"import sys, lsr; encoder = lsr.load_encoder({str(folder)!r}); "
        "print(encoder.encode_documents(['a cat']).nnz, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nnz, *heavy = done.stdout.split()
    assert int(nnz) > 0
    assert heavy == ["False", "False"]


def test_a_damaged_graph_is_refused(tmp_path, onnx_pair):
    _, folder = onnx_pair
    lsr.load_encoder(folder).save(tmp_path / "copy")  # and it is saved again as it was
    (tmp_path / "copy" / "documents" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(FormatError, match="onnxruntime cannot read the graph"):
        lsr.load_encoder(tmp_path / "copy")


def test_lengths_and_sharing_of_a_symmetric_graph(tmp_path, onnx_pair, monkeypatch):
    """One graph for two sides, made once and loaded once."""
    from lsr import onnx_export

    encoder, folder = onnx_pair
    side = encoder.documents
    graph = (folder / "documents" / "model.onnx").read_bytes()
    calls = []
    monkeypatch.setattr(onnx_export, "to_graph", lambda module: calls.append(module) or graph)
    export_encoder(Encoder(side, NeuralEncoder(side.module, 8)), tmp_path / "both", "onnx")
    assert len(calls) == 1
    again = lsr.load_encoder(tmp_path / "both", document_max_length=20)
    assert (again.documents.max_length, again.queries.max_length) == (20, 8)
    assert again.queries._session is again.documents._session
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["documents", "lsr_encoder.json"]


def test_other_heads_as_graphs(tmp_path, checkpoint):
    pytest.importorskip("onnxscript", reason="ONNX export needs the extra onnx")
    backbone = load_backbone(checkpoint, "cpu")
    torch.manual_seed(0)
    epic = NeuralEncoder(EpicHead(backbone).eval(), 24, top_terms=20)
    mlp = NeuralEncoder(MlpHead(backbone, repeats="sum").eval(), 24)
    encoder = Encoder(epic, mlp)
    export_encoder(encoder, tmp_path / "onnx", "onnx")
    for a, b in zip(ours(encoder, TEXTS), ours(lsr.load_encoder(tmp_path / "onnx"), TEXTS), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_there_must_be_a_transformer_to_export(tmp_path):
    with pytest.raises(InputError, match="neither side of this encoder runs a transformer"):
        export_encoder(lsr.Bm25().fit(TEXTS), tmp_path / "onnx", "onnx")


def test_a_graph_that_is_off_is_not_written(tmp_path, onnx_pair, monkeypatch):
    from lsr import onnx_export
    from lsr.onnx_side import OnnxEncoder

    encoder, folder = onnx_pair
    graph = (folder / "documents" / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx_export, "to_graph", lambda module: graph)
    pool = OnnxEncoder._pool
    monkeypatch.setattr(OnnxEncoder, "_pool", lambda self, batch: pool(self, batch) + np.float32(0.01))
    with pytest.raises(FormatError, match="the ONNX graph of BertForMaskedLM is off by 0.01"):
        export_encoder(encoder, tmp_path / "off", "onnx")
    assert not (tmp_path / "off").exists()
