"""`load_encoder`: every kind of folder it reads, and every kind it must refuse."""

import json
import shutil

import numpy as np
import pytest
from conftest import TEXTS, tiny_tokenizer, write_checkpoint

import lsr
from lsr.errors import FormatError, InputError, LsrWarning, MismatchError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def same_vectors(a: lsr.Encoder, b: lsr.Encoder) -> None:
    for texts in (TEXTS[:3], TEXTS[:1]):
        np.testing.assert_allclose(a.encode_documents(texts).toarray(), b.encode_documents(texts).toarray(), atol=1e-6)
        np.testing.assert_allclose(a.encode_queries(texts).toarray(), b.encode_queries(texts).toarray(), atol=1e-6)


# --- sentence-transformers ---------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_a_sparse_encoder_folder_gives_the_library_s_vectors(tmp_path, checkpoint, pooling, activation):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    theirs = SparseEncoder(
        modules=[MLMTransformer(str(checkpoint)), SpladePooling(pooling, activation_function=activation)], device="cpu"
    )
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = lsr.load_encoder(tmp_path / "st")
    expected = theirs.encode(TEXTS).to_dense().numpy()
    np.testing.assert_allclose(ours.encode_documents(TEXTS).toarray(), expected, atol=1e-5)


def test_a_router_folder_gives_the_library_s_vectors(tmp_path, checkpoint):
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sentence_transformer.modules import Router
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SparseStaticEmbedding, SpladePooling

    documents = MLMTransformer(str(checkpoint))
    weight = torch.arange(tiny_tokenizer().get_vocab_size(), dtype=torch.float32) / 7
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(tokenizer=documents.tokenizer, weight=weight)],
        document_modules=[documents, SpladePooling("max")],
    )
    theirs = SparseEncoder(modules=[router], similarity_fn_name="dot", device="cpu")
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = lsr.load_encoder(tmp_path / "st")
    assert ours.queries.kind == "lookup"
    queries, docs = (method(TEXTS).to_dense().numpy() for method in (theirs.encode_query, theirs.encode_document))
    np.testing.assert_allclose(ours.encode_documents(TEXTS).toarray(), docs, atol=1e-5)
    np.testing.assert_allclose(ours.encode_queries(TEXTS).toarray(), queries, atol=1e-5)


def test_prompts_are_refused(tmp_path, checkpoint):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    modules = [MLMTransformer(str(checkpoint)), SpladePooling("max")]
    SparseEncoder(modules=modules, prompts={"query": "query: "}, device="cpu").save_pretrained(str(tmp_path / "st"))
    with pytest.raises(FormatError, match="puts prompts before its texts"):
        lsr.load_encoder(tmp_path / "st")


def test_a_dense_model_is_refused(tmp_path, checkpoint):
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    folder = shutil.copytree(checkpoint, tmp_path / "dense")
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(FormatError, match=r"a sentence-transformers model of Transformer \+ Pooling"):
        lsr.load_encoder(folder)


# --- OpenSearch, and mixtures of sides ---------------------------------------------------------


def test_a_checkpoint_with_an_idf_table_is_inference_free(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "doc-model")
    (folder / "idf.json").write_text(json.dumps({"cat": 2.5, "of": 1.0, "a": 0.5, "river": 4.0}))
    with pytest.warns(LsrWarning, match="has weights for 4 of the tokenizer's"):
        encoder = lsr.load_encoder(folder)
    query = encoder.encode_queries(["the cat, the cat and the river "])
    terms = {encoder.term(int(t)): w for t, w in zip(query.indices, query.data, strict=True)}
    assert terms == {"cat": 2.5, "river": 4.0}
    plain = lsr.load_encoder(checkpoint)
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS).toarray(), plain.encode_documents(TEXTS).toarray())
    encoder.save(tmp_path / "saved")
    same_vectors(lsr.load_encoder(tmp_path / "saved"), encoder)


def test_documents_and_queries_may_have_different_models(tmp_path, checkpoint):
    one, other = lsr.load_encoder(checkpoint), lsr.load_encoder(write_checkpoint(tmp_path / "other", seed=1))
    mixed = one.with_queries(other)
    np.testing.assert_array_equal(mixed.encode_documents(TEXTS).toarray(), one.encode_documents(TEXTS).toarray())
    np.testing.assert_array_equal(mixed.encode_queries(TEXTS).toarray(), other.encode_queries(TEXTS).toarray())
    assert mixed.fingerprint not in (one.fingerprint, other.fingerprint)
    mixed.save(tmp_path / "mixed")
    same_vectors(lsr.load_encoder(tmp_path / "mixed"), mixed)


def test_sides_of_different_vocabularies_are_refused(checkpoint):
    with pytest.raises(MismatchError, match="have different vocabularies"):
        lsr.load_encoder(checkpoint).with_queries(lsr.Bm25().fit(TEXTS))


def test_an_idf_table_of_another_vocabulary_is_refused(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "doc-model")
    (folder / "idf.json").write_text(json.dumps({"cat": 2.5, "Katze": 4.0}))
    with pytest.raises(MismatchError, match=r"1 of its 2 terms are unknown to it \(such as 'Katze'\)"):
        lsr.load_encoder(folder)


# --- our own folders ---------------------------------------------------------------------------


def test_a_symmetric_encoder_is_saved_once_and_keeps_its_lengths(tmp_path, checkpoint):
    encoder = lsr.load_encoder(checkpoint, document_max_length=20, query_max_length=10)
    encoder.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["documents", "lsr_encoder.json"]
    again = lsr.load_encoder(tmp_path / "saved")
    assert (again.documents.max_length, again.queries.max_length) == (20, 10)
    assert again.documents.backbone is again.queries.backbone
    assert lsr.load_encoder(tmp_path / "saved", query_max_length=7).queries.max_length == 7
    with pytest.raises(InputError, match="already exists"):
        encoder.save(tmp_path / "saved")


def test_a_damaged_or_newer_encoder_file_is_refused(tmp_path):
    lsr.Bm25().fit(TEXTS).save(tmp_path / "bm25")
    path = tmp_path / "bm25" / "lsr_encoder.json"
    fields = json.loads(path.read_text())
    for content, message in (
        ("{", "is damaged"),
        (json.dumps({**fields, "format_version": 2}), "has format 2, this version of lsr reads 1"),
        (json.dumps({**fields, "documents": {"kind": "dance", "folder": "documents"}}), "unknown kind 'dance'"),
        (json.dumps({k: v for k, v in fields.items() if k != "queries"}), "the queries side is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(FormatError, match=message):
            lsr.load_encoder(tmp_path / "bm25")
    path.write_text(json.dumps(fields))
    (tmp_path / "bm25" / "queries" / "idf.npy").unlink()
    with pytest.raises(FormatError, match="the queries side is damaged or unfinished"):
        lsr.load_encoder(tmp_path / "bm25")


# --- what is no sparse encoder -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification", "BertForTokenClassification"])
def test_checkpoints_of_other_kinds_are_refused(tmp_path, kind):
    with pytest.raises(FormatError, match=f"holds {kind}, not a masked language model"):
        lsr.load_encoder(write_checkpoint(tmp_path / kind, kind=kind))


def test_a_checkpoint_without_its_head_is_refused(tmp_path, checkpoint):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "transform" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(FormatError, match=r"has no trained masked-LM head: 4 weights are not in the checkpoint"):
        lsr.load_encoder(folder)


def test_a_tokenizer_larger_than_the_head_is_refused(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "mismatch")
    words = [f"word{i}" for i in range(200)]
    tiny_tokenizer(words).save(str(folder / "tokenizer.json"))
    with pytest.raises(FormatError, match="they belong to different models"):
        lsr.load_encoder(folder)


def test_a_checkpoint_without_its_tokenizer_is_refused(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(FormatError, match="mute has no tokenizer"):
        lsr.load_encoder(folder)


def test_truncated_weights_are_refused(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "cut")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match="cut cannot be loaded as a masked-LM checkpoint"):
        lsr.load_encoder(folder)


def test_a_device_that_is_not_there_is_refused(checkpoint):
    with pytest.raises(InputError, match="the model cannot run on the device 'abacus'"):
        lsr.load_encoder(checkpoint, device="abacus")


def test_bm25_is_no_saved_encoder():
    with pytest.raises(InputError, match=r"it is fitted to a corpus, with lsr.Bm25\(\)"):
        lsr.load_encoder("bm25")


def test_folders_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="the encoder folder .* does not exist"):
        lsr.load_encoder(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="holds no encoder"):
        lsr.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match="config.json"):
        lsr.load_encoder(tmp_path)


def test_a_hub_id_that_cannot_be_fetched_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="'nobody/nothing' is no folder here and could not be fetched"):
        lsr.load_encoder("nobody/nothing")


@pytest.mark.parametrize("name", ["document_max_length", "query_max_length"])
def test_lengths_below_one_token_are_refused(checkpoint, name):
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        lsr.load_encoder(checkpoint, **{name: 0})


# --- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_and_its_vectors_are_kept_apart(tmp_path, checkpoint, dtype):
    from lsr.encoding import encode_corpus

    full, half = (lsr.load_encoder(checkpoint, device="cpu", dtype=d) for d in ("float32", dtype))
    a, b = (encoder.encode_documents(TEXTS).toarray() for encoder in (full, half))
    assert 0 < np.abs(a - b).max() < 0.1
    encode_corpus(TEXTS, full, tmp_path / "v")
    with pytest.raises(InputError, match="holds vectors of another encoder, length or dtype"):
        encode_corpus(TEXTS, half, tmp_path / "v")
    assert half.fingerprint == full.fingerprint, "an index is searched with queries in full precision"


def test_half_precision_needs_a_transformer_and_a_device_that_has_it(tmp_path, checkpoint, monkeypatch, capsys):
    import torch

    from lsr.cli import main
    from lsr.encoder import Encoder

    encoder = lsr.load_encoder(checkpoint, device="cpu")
    table = lsr.inference_free(encoder, np.ones(encoder.vocabulary_size, dtype=np.float32)).queries
    Encoder(table, table).save(tmp_path / "tables")
    with pytest.raises(InputError, match="tables runs no transformer in torch: dtype 'float16' would change nothing"):
        lsr.load_encoder(tmp_path / "tables", dtype="float16")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a cat"}\n')
    command = ["encode", str(tmp_path / "corpus.jsonl"), "--model", "bm25", "--out", str(tmp_path / "v")]
    assert main([*command, "--dtype", "float16"]) == 1
    assert capsys.readouterr().err == "lsr: bm25 takes no lengths, revision, device or dtype: leave them out\n"
    monkeypatch.setattr(torch, "autocast", lambda *_: torch.no_grad())  # as where autocast turns itself off
    with pytest.raises(InputError, match="the device cpu does not multiply in bfloat16: take float32"):
        lsr.load_encoder(checkpoint, device="cpu", dtype="bfloat16")


def test_dtype_from_the_command_line(tmp_path, checkpoint):
    from lsr.cli import main
    from lsr.encoding import read_vectors

    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a cat sat on the mat"}\n')
    command = [
        "encode",
        tmp_path / "corpus.jsonl",
        "--model",
        checkpoint,
        "--dtype",
        "bfloat16",
        "--out",
        tmp_path / "v",
    ]
    assert main([str(part) for part in command]) == 0
    expected = lsr.load_encoder(checkpoint, dtype="bfloat16").encode_documents(["a cat sat on the mat"])
    assert read_vectors(tmp_path / "v").vectors.toarray().tolist() == expected.toarray().tolist()


def test_a_hub_id_is_fetched_at_its_revision(monkeypatch, checkpoint):
    """Without a network: what would be asked of the hub, and what becomes of its answer."""
    import huggingface_hub

    asked = []

    def fetch(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in allow_patterns), "no code, no pickle"
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    encoder = lsr.load_encoder("owner/name", revision="abc123", device="cpu")
    assert encoder.fingerprint == lsr.load_encoder(checkpoint, device="cpu").fingerprint
    assert (encoder.source, encoder.revision) == ("owner/name", "abc123")
    sides = {side: {"head": "mlm", "max_length": 16} for side in ("documents", "queries")}
    built = lsr.build_encoder({"backbone": "owner/name", "revision": "abc123", **sides}, device="cpu")
    assert built.revision == "abc123"
    assert asked == [("owner/name", "abc123")] * 2

    def refuse(*_, **__):
        raise huggingface_hub.errors.RevisionNotFoundError("no such revision", response=Response())

    class Response:
        headers, request = {}, None

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="'owner/name' is no folder here and could not be fetched .*no such revision"):
        lsr.load_encoder("owner/name", revision="wrong")
