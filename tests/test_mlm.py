"""The MLM side against the plain formula on the whole logits tensor."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers
from conftest import TEXTS, write_checkpoint

import lsr
from lsr.checkpoint import load_backbone
from lsr.errors import InputError, LsrWarning
from lsr.heads import MlmHead
from lsr.neural import NeuralEncoder


@pytest.fixture(scope="module")
def encoder(checkpoint) -> lsr.Encoder:
    return lsr.load_encoder(checkpoint)


def plain_vectors(folder, texts, *, pooling="max", act=torch.log1p) -> np.ndarray:
    """One text at a time, the logits of every token at once."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for text in texts:
            weights = act(torch.relu(model(**tokenizer(text, return_tensors="pt")).logits[0]))
            rows.append((weights.amax(0) if pooling == "max" else weights.sum(0)).numpy())
    return np.stack(rows)


def test_vectors_equal_the_plain_formula(checkpoint, encoder):
    expected = plain_vectors(checkpoint, TEXTS)
    for vectors in (encoder.encode_documents(TEXTS), encoder.encode_queries(TEXTS)):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors.toarray(), expected, atol=1e-5)
    assert 0 < np.count_nonzero(expected) < expected.size  # relu had something to do


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["log1p", "log1p_log1p"])
def test_every_pooling_and_activation(checkpoint, pooling, activation):
    act = torch.log1p if activation == "log1p" else lambda x: torch.log1p(torch.log1p(x))
    side = NeuralEncoder(MlmHead(load_backbone(checkpoint), pooling=pooling, activation=activation), 32)
    expected = plain_vectors(checkpoint, TEXTS, pooling=pooling, act=act)
    np.testing.assert_allclose(side.encode(TEXTS).vectors.toarray(), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 7, 40, 10_000])
def test_vectors_do_not_depend_on_the_batch(encoder, monkeypatch, tokens):
    together = encoder.encode_documents(TEXTS).toarray()
    monkeypatch.setitem(__import__("lsr.neural").neural.BATCH_TOKENS, "cpu", tokens)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS).toarray(), together, atol=1e-5)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.encode_documents([text]).toarray()[0], together[i], atol=1e-5)


def test_vectors_keep_the_order_of_the_texts(encoder):
    backwards = encoder.encode_documents(TEXTS[::-1]).toarray()
    np.testing.assert_allclose(backwards[::-1], encoder.encode_documents(TEXTS).toarray(), atol=1e-5)


def test_long_texts_are_cut_and_reported(checkpoint):
    encoder = lsr.load_encoder(checkpoint, document_max_length=8, query_max_length=5)
    long = " ".join(["cat"] * 30)
    with pytest.warns(LsrWarning, match="1 of 2 documents were longer than 8 tokens and were cut"):
        documents = encoder.encode_documents([long, "cat"])
    with pytest.warns(LsrWarning, match="1 of 1 queries were longer than 5 tokens"):
        encoder.encode_queries([long])
    six = " ".join(["cat"] * 6)  # and [CLS], [SEP]
    np.testing.assert_allclose(documents.toarray()[0], encoder.encode_documents([six]).toarray()[0], atol=1e-5)


def test_lengths_never_pass_the_model_s_positions(encoder):
    assert encoder.documents.max_length == encoder.queries.max_length == 32


def test_asking_for_more_than_the_model_s_positions_is_refused(checkpoint):
    with pytest.raises(InputError, match="a maximum length of 33 tokens is more than the model's 32"):
        lsr.load_encoder(checkpoint, document_max_length=33)


def test_an_empty_text_has_an_empty_vector_and_is_reported(encoder):
    with pytest.warns(LsrWarning, match="1 of 2 documents have no term"):
        vectors = encoder.encode_documents(["", "cat"])
    assert vectors[[0]].nnz == 0 < vectors[[1]].nnz


def test_encoding_nothing_gives_no_rows(encoder):
    assert encoder.encode_documents([]).shape == (0, encoder.vocabulary_size)


def test_titles_are_joined_in_one_place(encoder):
    document = lsr.Document("1", "sat on the mat", "The cat")
    np.testing.assert_array_equal(
        encoder.encode_documents([document]).toarray(), encoder.encode_documents(["The cat sat on the mat"]).toarray()
    )


def test_wrong_input_is_refused(encoder):
    with pytest.raises(InputError, match="a document to encode is a int"):
        encoder.encode_documents([3])
    with pytest.raises(InputError, match=r"write \[text\] for a single one"):
        encoder.encode_queries("one text")
    with pytest.raises(InputError, match="choose pooling from max, sum"):
        MlmHead(encoder.documents.backbone, pooling="mean")


def test_the_fingerprint_tells_weights_apart_and_survives_saving(tmp_path, checkpoint, encoder):
    other = lsr.load_encoder(write_checkpoint(tmp_path / "other", seed=1))
    assert other.fingerprint != encoder.fingerprint
    encoder.save(tmp_path / "saved")
    again = lsr.load_encoder(tmp_path / "saved")
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(again.encode_documents(TEXTS).toarray(), encoder.encode_documents(TEXTS).toarray())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lsr.load_encoder(tmp_path / "saved" / "documents")  # a Hugging Face folder of its own


def test_the_fingerprint_sees_settings_that_no_weight_shows(tmp_path, checkpoint, encoder):
    folder = shutil.copytree(checkpoint, tmp_path / "relu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    other = lsr.load_encoder(folder)
    assert np.abs((other.encode_documents(TEXTS) - encoder.encode_documents(TEXTS)).toarray()).max() > 0.01
    assert other.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_must_leave_room_beside_the_special_tokens(checkpoint, length):
    with pytest.raises(InputError, match="leaves no room beside the 2 special tokens"):
        lsr.load_encoder(checkpoint, query_max_length=length)


def test_positions_counted_from_behind_the_padding_id_are_not_passed(tmp_path, checkpoint):
    """RoBERTa's and MPNet's way: the longest text has positions 2 to 33 of 34."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    config = transformers.MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    transformers.MPNetForMaskedLM(config).save_pretrained(tmp_path / "mpnet")
    tokenizer.save_pretrained(tmp_path / "mpnet")
    encoder = lsr.load_encoder(tmp_path / "mpnet")
    assert encoder.documents.max_length == 32
    with pytest.warns(LsrWarning, match="longer than 32 tokens"):
        assert encoder.encode_documents([" ".join(["cat"] * 60)]).shape[0] == 1


def test_an_empty_text_needs_no_special_tokens(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "bare")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    encoder = lsr.load_encoder(folder)
    for texts in (["the cat", ""], [""]):
        with pytest.warns(LsrWarning, match="have no term"):
            assert encoder.encode_documents(texts)[[len(texts) - 1]].nnz == 0
