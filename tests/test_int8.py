"""Weights on disk in 8 bits: what is read back, how large it is, and what is refused."""

import json

import numpy as np
import pytest
import torch
from conftest import TEXTS, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lsr
from lsr.checkpoint import load_backbone
from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError
from lsr.heads import EpicHead, MlmHead, MlpHead
from lsr.int8 import INT8_FILE, dequantize, pack_weights, quantize
from lsr.lookup import inference_free
from lsr.neural import NeuralEncoder

LARGEST = float(np.finfo(np.float32).max)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=st.floats(-LARGEST, LARGEST, width=32))
NOTE = {"lsr_int8_version": "1"}


def saved(encoder: Encoder, folder) -> Encoder:
    encoder.save(folder, dtype="int8")
    return lsr.load_encoder(folder, device="cpu")


@pytest.fixture
def folder(tmp_path, checkpoint):
    """A folder with the weights of a tiny model in 8 bits."""
    lsr.load_encoder(checkpoint, device="cpu").save(tmp_path / "saved", dtype="int8")
    return tmp_path / "saved"


# --- numbers -----------------------------------------------------------------------------------


@given(MATRICES)
def test_every_weight_is_off_by_half_a_step_of_its_row_and_the_codes_give_themselves_again(matrix):
    weights = torch.from_numpy(matrix)
    codes, scales = quantize(weights)
    assert (codes.dtype, codes.shape, scales.dtype, scales.shape) == (
        torch.int8,
        weights.shape,
        torch.float32,
        weights.shape[:1],
    )
    read = dequantize(codes, scales)
    exact = codes.numpy().astype(np.float64) * scales.numpy().astype(np.float64)[:, None]
    np.testing.assert_array_equal(read.numpy().astype(np.float64), exact)
    plain = np.abs(matrix.astype(np.float64)).max(1, keepdims=True) / 127
    smallest = 256 * 2.0**-149  # the step of scales so small that float32 has no exponent for them
    assert (np.abs(exact - matrix) <= 0.501 * plain + 127 * smallest).all()
    for first, second in zip((codes, scales), quantize(read), strict=True):
        assert torch.equal(first, second)


def test_a_row_s_largest_weight_is_127_and_a_row_of_zeros_stays_one():
    codes, scales = quantize(torch.tensor([[0.5, -1.27, 0.0], [0.0, 0.0, 0.0], [0.8e-3, 1.2e-3, 254e-3]]))
    assert codes.tolist() == [[50, -127, 0], [0, 0, 0], [0, 1, 127]]
    np.testing.assert_allclose(scales, [0.01, 0, 0.002], rtol=2**-16)


# --- encoders ----------------------------------------------------------------------------------


def test_the_encoder_read_back_has_near_vectors_and_a_fingerprint_of_its_own(tmp_path, checkpoint):
    encoder = lsr.load_encoder(checkpoint, device="cpu")
    first = saved(encoder, tmp_path / "first")
    second = saved(first, tmp_path / "second")
    assert first.fingerprint == lsr.load_encoder(tmp_path / "first", device="cpu").fingerprint == second.fingerprint
    assert first.fingerprint != encoder.fingerprint
    files = [tmp_path / name / "documents" / INT8_FILE for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    a, b = (e.encode_documents(TEXTS).toarray() for e in (encoder, first))
    assert 0 < np.abs(a - b).max() < 0.2
    backbone = first.documents.backbone
    assert backbone is first.queries.backbone
    assert backbone.head().weight is backbone.embeddings().weight
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    first.save(tmp_path / "whole")
    assert lsr.load_encoder(tmp_path / "whole", device="cpu").fingerprint == first.fingerprint


def test_the_file_has_codes_and_scales_of_matrices_tied_ones_once_and_the_rest_as_it_is(folder, checkpoint):
    path = folder / "documents" / INT8_FILE
    assert sorted(p.name for p in (folder / "documents").glob("*.safetensors")) == [INT8_FILE]
    with safe_open(path, "pt") as file:
        assert file.metadata() == NOTE
    packed, whole = load_file(path), load_file(checkpoint / "model.safetensors")
    matrices = {name for name, tensor in whole.items() if tensor.ndim == 2}
    assert packed.keys() == whole.keys() - matrices | {f"{m}.{part}" for m in matrices for part in ("int8", "scale")}
    assert sum(tensor.shape == whole["bert.embeddings.word_embeddings.weight"].shape for tensor in packed.values()) == 1
    assert all(torch.equal(packed[name], whole[name]) for name in whole.keys() - matrices)
    assert json.loads((folder / "documents" / "config.json").read_text())["dtype"] == "int8"


def pair_of(name: str, backbone, other, body) -> Encoder:
    def side(module, max_length: int = 16) -> NeuralEncoder:
        return NeuralEncoder(module, max_length)

    mlm = side(MlmHead(backbone))
    pairs = {
        "one model, two lengths": lambda: Encoder(mlm, side(mlm.module, 9)),
        "two heads of one backbone": lambda: Encoder(side(EpicHead(backbone)), side(MlpHead(backbone, repeats="sum"))),
        "two backbones": lambda: Encoder(mlm, side(MlmHead(other))),
        "a backbone without a head": lambda: Encoder(mlm, side(MlpHead(body, repeats="sum"))),
        "a table": lambda: lsr.inference_free(
            Encoder(mlm, mlm),
            np.linspace(0, 3, backbone.vocabulary_size, dtype=np.float32),
        ),
    }
    return pairs[name]()


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("one model, two lengths", 1),
        ("two heads of one backbone", 1),
        ("two backbones", 2),
        ("a backbone without a head", 2),
        ("a table", 1),
    ],
)
def test_every_pair_of_sides_comes_back(tmp_path, checkpoint, name, files):
    other = load_backbone(write_checkpoint(tmp_path / "other", seed=1), "cpu")
    body = load_backbone(write_checkpoint(tmp_path / "body", kind="BertModel", seed=2), "cpu", head=None)
    encoder = pair_of(name, load_backbone(checkpoint, "cpu"), other, body)
    again = saved(encoder, tmp_path / "saved")
    assert len(list((tmp_path / "saved").rglob(INT8_FILE))) == files
    assert again.identity()["queries"] == encoder.identity()["queries"]
    if name != "a table":
        assert (again.queries.backbone is again.documents.backbone) == (files == 1)
    for method in ("encode_documents", "encode_queries"):
        a, b = (getattr(e, method)(["The cat sat", "fish", "a loan"]).toarray() for e in (encoder, again))
        np.testing.assert_allclose(a, b, atol=0.03 * a.max())
    assert saved(again, tmp_path / "twice").fingerprint == again.fingerprint != encoder.fingerprint


def test_a_trainable_encoder_starts_from_a_folder_in_8_bits(folder):
    options = {"head": "mlm", "max_length": 16}
    config = {"backbone": str(folder / "documents"), "documents": options, "queries": options}
    built, loaded = lsr.build_encoder(config, device="cpu"), lsr.load_encoder(folder, device="cpu")
    assert built.documents.fingerprint == loaded.documents.fingerprint
    assert all(parameter.requires_grad for parameter in built.documents.module.parameters())


def test_the_command_line_writes_it(tmp_path, checkpoint, capsys):
    from lsr.cli import main

    command = ["export", str(checkpoint), str(tmp_path / "small"), "--form", "lsr", "--dtype", "int8"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"lsr encoder in {tmp_path / 'small'}\n"
    expected = saved(lsr.load_encoder(checkpoint, device="cpu"), tmp_path / "expected")
    assert lsr.load_encoder(tmp_path / "small", device="cpu").fingerprint == expected.fingerprint
    lsr.Bm25().fit(TEXTS).save(tmp_path / "bm25")
    assert main(["export", str(tmp_path / "bm25"), str(tmp_path / "x"), *command[3:]]) == 1
    assert "runs no transformer in torch: dtype 'int8' would change nothing" in capsys.readouterr().err


def test_the_real_model_is_small_and_ranks_as_before(tmp_path, shared):
    encoder = lsr.load_encoder(shared / "models" / "splade-tiny", device="cpu")
    small = saved(lsr.inference_free(encoder, np.ones(encoder.vocabulary_size, dtype=np.float32)), tmp_path / "small")
    assert sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file()) < 6.5e6
    pairs = zip(encoder.documents.backbone.parameters(), small.documents.backbone.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 0.01
    a, b = (e.encode_documents(TEXTS).toarray() for e in (encoder, small))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() > 0.99


# --- what is refused ---------------------------------------------------------------------------


def test_hugging_face_reads_no_codes_as_weights(folder):
    import transformers

    with pytest.raises(OSError, match=r"no file named .*model\.safetensors"):
        transformers.AutoModelForMaskedLM.from_pretrained(folder / "documents")
    (folder / "documents" / INT8_FILE).rename(folder / "documents" / "model.safetensors")
    with pytest.raises(ValueError, match="int8"):
        transformers.AutoModelForMaskedLM.from_pretrained(folder / "documents")
    with pytest.raises(FormatError, match="documents lacks .* weights"):
        lsr.load_encoder(folder)


def test_damaged_files_are_refused(folder):
    path = folder / "documents" / INT8_FILE
    content, whole = path.read_bytes(), load_file(path)
    for cut in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError, match=r"model\.int8\.safetensors is damaged .*: save the encoder again"):
            lsr.load_encoder(folder)
    name = "bert.embeddings.word_embeddings.weight"
    for broken, message in (
        ({k: v for k, v in whole.items() if k != f"{name}.scale"}, f"has no scale for each row of {name}: save"),
        (whole | {f"{name}.scale": whole[f"{name}.scale"][:-1]}, f"has no scale for each row of {name}: save"),
        (
            {k: v for k, v in whole.items() if "position_embeddings" not in k},
            r"lacks 1 weights \(such as bert.embeddings.position_embeddings",
        ),
        (
            {k: v[:, :-1].contiguous() if k == f"{name}.int8" else v for k, v in whole.items()},
            "cannot be loaded as a masked-LM checkpoint",
        ),
    ):
        save_file(broken, path, NOTE)
        with pytest.raises(FormatError, match=message):
            lsr.load_encoder(folder)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (None, "holds no weights in 8 bits that lsr wrote"),
        ({"format": "pt"}, "holds no weights in 8 bits that lsr wrote"),
        ({"lsr_int8_version": "2"}, "has format 2, this version of lsr reads 1: upgrade lsr"),
    ],
)
def test_foreign_and_newer_files_are_refused(folder, note, message):
    path = folder / "documents" / INT8_FILE
    save_file(load_file(path), path, note)
    with pytest.raises(FormatError, match=message):
        lsr.load_encoder(folder)


def test_weights_in_both_forms_are_refused(folder, checkpoint):
    (folder / "documents" / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(FormatError, match=r"has weights twice, in model\.safetensors and in model\.int8\.safetensors"):
        lsr.load_encoder(folder)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_tables_of_queries_are_halves_beside_small_weights(tmp_path, checkpoint, dtype):
    encoder = lsr.load_encoder(checkpoint, device="cpu")
    idf = np.random.default_rng(0).random(encoder.vocabulary_size, dtype=np.float32) * 8
    bm25 = lsr.Bm25(buckets=64).fit(["cat sat", "dog"])
    learned = bm25.adjusted(np.linspace(-1, 1, 64, dtype=np.float32))
    joined = lsr.join(inference_free(encoder, idf), learned, 1.5)
    joined.save(tmp_path / "small", dtype=dtype)
    loaded = lsr.load_encoder(tmp_path / "small", device="cpu")
    for name, expected in (("idf.npy", learned.queries.idf), ("learned.npy", learned.queries.learned)):
        kept = np.load(tmp_path / "small" / "second" / "queries" / name)
        assert kept.dtype == np.float16
        np.testing.assert_array_equal(kept, expected.astype(np.float16))
    halves = joined.queries.table.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(loaded.queries.table, halves, rtol=2e-3, atol=1e-5)
    assert loaded.queries.table.dtype == np.float32
    loaded.save(tmp_path / "again", dtype=dtype)
    assert lsr.load_encoder(tmp_path / "again", device="cpu").fingerprint == loaded.fingerprint


def test_table_that_does_not_fit_into_halves_is_refused(tmp_path, checkpoint):
    encoder = lsr.load_encoder(checkpoint, device="cpu")
    large = np.full(encoder.vocabulary_size, 7e4, dtype=np.float32)
    with pytest.raises(InputError, match=r"weights above 65,504"):
        inference_free(encoder, large).save(tmp_path / "saved", dtype="int8")
    assert not (tmp_path / "saved").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, checkpoint):
    encoder = lsr.load_encoder(checkpoint, device="cpu")
    with torch.no_grad():
        encoder.documents.backbone.model.bert.encoder.layer[0].attention.self.query.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"layer\.0\.attention\.self\.query\.weight has weights that are not finite"):
        encoder.save(tmp_path / "saved", dtype="int8")
    assert not (tmp_path / "saved").exists()


def test_8_bits_are_for_the_disk_alone(checkpoint, tmp_path):
    encoder = lsr.load_encoder(checkpoint, device="cpu")
    with pytest.raises(InputError, match="saved as 'int4': choose from float32, float16, bfloat16, int8"):
        encoder.save(tmp_path / "saved", dtype="int4")
    with pytest.raises(InputError, match="dtype 'int8' is unknown: choose from float32, float16, bfloat16"):
        lsr.load_encoder(checkpoint, dtype="int8")


def test_other_tensors_than_matrices_of_floats_are_left_alone(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.randn(2, 3, 4), "c": torch.tensor(2.5), "d": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    pack_weights(tmp_path)
    packed = load_file(tmp_path / INT8_FILE)
    assert packed.keys() == tensors.keys()
    assert all(torch.equal(packed[name], tensors[name]) for name in tensors)
