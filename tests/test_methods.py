"""`build_encoder`: every combination of heads from a config's table, and every table it must refuse."""

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, write_checkpoint

import lsr
from lsr.errors import FormatError, InputError, MismatchError
from lsr.heads import module_of
from lsr.methods import HEAD_OPTIONS, build_encoder

pytestmark = pytest.mark.filterwarnings("ignore::lsr.errors.LsrWarning")  # fresh heads may leave a text without terms


def table(backbone: Path, documents: Any = "mlm", queries: Any = "mlm", **options: Any) -> dict[str, Any]:
    """An encoder table; a head alone stands for its table."""
    sides = {}
    for name, side in (("documents", documents), ("queries", queries)):
        given = {"head": side} if isinstance(side, str) else side
        uniform = {"idf": "uniform"} if given.get("head") == "lookup" else {}
        sides[name] = {"max_length": 32, **uniform, **given}
    return {"backbone": str(backbone), **sides, **options}


def loss_of(encoder: lsr.Encoder) -> torch.Tensor:
    """Scores of each query with its document, both sides run as a trainer runs them."""
    vectors = []
    for side in (encoder.queries, encoder.documents):
        module = module_of(side).train()
        ids = side.tokenizer(TEXTS).ids  # type: ignore[attr-defined]
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(i).long() for i in ids], batch_first=True)
        lengths = torch.tensor([len(i) for i in ids])
        vectors.append(module(padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()))
    scores = vectors[0] @ vectors[1].T
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(TEXTS)))


@pytest.mark.parametrize(("documents", "queries"), [*itertools.product(HEAD_OPTIONS, HEAD_OPTIONS)])
def test_any_two_heads_make_an_encoder_that_learns(checkpoint, documents, queries):
    torch.manual_seed(0)
    encoder = build_encoder(table(checkpoint, documents, queries), device="cpu")
    modules = torch.nn.ModuleList([module_of(encoder.documents), module_of(encoder.queries)])
    parameters = list(modules.parameters())
    if not parameters:
        assert {documents, queries} == {"lookup"}
        return
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    before, losses = encoder.fingerprint, []
    for _ in range(4):
        optimizer.zero_grad()
        loss = loss_of(encoder)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] != losses[0]
    assert encoder.fingerprint != before


@pytest.mark.parametrize(("documents", "queries"), [("mlm", "mlm"), ("mlm", "mlp"), ("epic", "mlp"), ("mlp", "mlp"),
                                                    ("mlm", "learned-lookup"), ("mlp", "binary"),
                                                    ("clsmlm", "lookup")])  # fmt: skip
@pytest.mark.parametrize("shared", [True, False])
def test_a_built_encoder_is_saved_and_loaded(tmp_path, checkpoint, documents, queries, shared):
    encoder = build_encoder(table(checkpoint, documents, queries, shared=shared), device="cpu")
    encoder.save(tmp_path / "saved")
    again = lsr.load_encoder(tmp_path / "saved", device="cpu")
    assert again.fingerprint == encoder.fingerprint
    assert (again.encode_documents(TEXTS) != encoder.encode_documents(TEXTS)).nnz == 0
    assert (again.encode_queries(TEXTS) != encoder.encode_queries(TEXTS)).nnz == 0
    assert (again.documents.max_length, again.queries.max_length) == (32, 32)


def test_sides_share_their_parameters_unless_told_otherwise(checkpoint):
    for heads in (("mlm", "mlm"), ("mlm", "mlp"), ("mlp", "mlp"), ("mlm", "learned-lookup")):
        shared = build_encoder(table(checkpoint, *heads), device="cpu")
        separate = build_encoder(table(checkpoint, *heads, shared=False), device="cpu")
        for encoder, together in ((shared, True), (separate, False)):
            a, b = (set(map(id, module_of(side).parameters())) for side in (encoder.documents, encoder.queries))
            assert bool(a & b) is together, heads
    both = build_encoder(table(checkpoint, "mlp", "mlp"), device="cpu")
    assert module_of(both.documents).weigh is module_of(both.queries).weigh
    assert (module_of(both.documents).repeats, module_of(both.queries).repeats) == ("max", "sum")
    scale = build_encoder(table(checkpoint, "binary", "binary"), device="cpu")
    assert module_of(scale.documents) is module_of(scale.queries)


def test_a_backbone_without_a_head_trains_no_head_it_does_not_use(checkpoint):
    encoder = build_encoder(table(checkpoint, "mlp", "binary"), device="cpu")
    loss_of(encoder).backward()
    named = dict(module_of(encoder.documents).named_parameters())
    assert not [name for name, parameter in named.items() if parameter.grad is None]


def test_the_defaults(checkpoint, tmp_path):
    folder = write_checkpoint(tmp_path / "long")
    config = {"backbone": str(folder), "documents": {"head": "mlm"}, "queries": {"head": "mlm"}}
    with pytest.raises(InputError, match="a maximum length of 256 tokens is more than the model's 32"):
        build_encoder(config)
    encoder = build_encoder(table(checkpoint, {"head": "mlm"}), device="cpu")
    assert encoder.documents.config() == {"max_length": 32, "pooling": "max", "activation": "log1p"}
    assert encoder.documents.fingerprint == lsr.load_encoder(checkpoint).documents.fingerprint


def test_the_options_reach_the_heads(checkpoint):
    documents = {"head": "mlm", "pooling": "sum", "activation": "log1p_log1p", "top_terms": 7, "max_length": 20}
    queries = {"head": "mlp", "activation": "softplus", "norm": "log1p", "max_length": 9}
    encoder = build_encoder(table(checkpoint, documents, queries), device="cpu")
    assert encoder.documents.config() == {k: v for k, v in documents.items() if k != "head"}
    assert encoder.queries.config() == {"repeats": "sum", **{k: v for k, v in queries.items() if k != "head"}}
    assert max(np.diff(encoder.encode_documents(TEXTS).indptr)) == 7


def test_an_idf_table_is_read_from_its_file(checkpoint, tmp_path):
    (tmp_path / "idf.json").write_text(json.dumps({"cat": 2.5, "river": 4.0}))
    queries = {"head": "lookup", "idf": str(tmp_path / "idf.json")}
    encoder = build_encoder(table(checkpoint, queries=queries), device="cpu")
    assert sorted(encoder.encode_queries(["the cat, the river"]).data) == [2.5, 4.0]
    uniform = build_encoder(table(checkpoint, queries="lookup"), device="cpu").encode_queries(["the cat unicorn"])
    assert uniform.data.tolist() == [1, 1]  # not for [UNK]
    (tmp_path / "idf.json").write_text(json.dumps({"Katze": 2.5}))
    with pytest.raises(MismatchError, match="does not match the tokenizer"):
        build_encoder(table(checkpoint, queries=queries), device="cpu")


def test_the_table_is_what_a_toml_file_holds(checkpoint):
    config = tomllib.loads(
        f"""
        [encoder]
        backbone = "{checkpoint}"
        [encoder.documents]
        head = "mlm"
        max_length = 32
        [encoder.queries]
        head = "lookup"
        idf = "uniform"
        max_length = 16
        """
    )
    assert build_encoder(config["encoder"], device="cpu").queries.max_length == 16


# --- bodies without a masked-LM head -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["BertModel", "DistilBertModel", "RobertaModel"])
def test_a_head_is_started_from_the_word_embeddings(tmp_path, kind):
    import transformers
    from conftest import tiny_tokenizer

    folder = write_checkpoint(tmp_path / "body", kind="BertModel")
    if kind != "BertModel":
        size = tiny_tokenizer().get_vocab_size()
        sizes = {"vocab_size": size, "max_position_embeddings": 40, "pad_token_id": 0}
        if kind == "DistilBertModel":
            config = transformers.DistilBertConfig(dim=16, hidden_dim=32, n_layers=1, n_heads=2, **sizes)
        else:
            config = transformers.RobertaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                                num_attention_heads=2, **sizes)  # fmt: skip
        getattr(transformers, kind)(config).save_pretrained(folder)
    config = table(folder, head_init="embeddings")
    encoder = build_encoder(config, device="cpu")
    backbone = encoder.documents.backbone
    assert backbone.head().weight is backbone.embeddings().weight
    assert not backbone.head().bias.any()
    ids = torch.tensor([[2, 24, 25, 3]])
    with torch.inference_mode():
        hidden = backbone.hidden(ids, torch.ones_like(ids))
        gelu = torch.nn.functional.gelu(hidden)
        expected = torch.nn.functional.layer_norm(gelu, gelu.shape[-1:], eps=1e-12)
        torch.testing.assert_close(backbone.states(ids, torch.ones_like(ids)), expected, atol=1e-3, rtol=1e-3)
    encoder.save(tmp_path / "saved")
    assert lsr.load_encoder(tmp_path / "saved", device="cpu").fingerprint == encoder.fingerprint
    assert build_encoder(config, device="cpu").fingerprint == encoder.fingerprint  # nothing random is left


def test_a_missing_head_is_named_and_a_trained_one_is_kept(tmp_path, checkpoint):
    body = write_checkpoint(tmp_path / "body", kind="BertModel")
    with pytest.raises(InputError, match=r"body has no masked-LM head, and head = 'mlm/mlm' needs one: give"):
        build_encoder(table(body))
    with pytest.raises(InputError, match=r"has a trained masked-LM head: leave head_init = \"embeddings\" out"):
        build_encoder(table(checkpoint, head_init="embeddings"))
    assert build_encoder(table(body, "mlp", "binary"), device="cpu").documents.kind == "mlp"


def test_a_body_that_lacks_weights_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    body = write_checkpoint(tmp_path / "body", kind="BertModel")
    weights = load_file(body / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(kept, body / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match="lacks 16 weights .* it is incomplete"):
        build_encoder(table(body, "mlp", "binary"))


def test_a_backbone_inside_an_installed_package(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "some_model_package" / "model")
    (tmp_path / "some_model_package" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = build_encoder(table(Path("package:some_model_package/model")), device="cpu")
    assert encoder.source == "package:some_model_package/model"
    for missing in ("package:some_model_package/other", "package:no_such_package/model", "package:a.b/model"):
        with pytest.raises(InputError, match=f"{missing} does not exist: it names a folder inside"):
            build_encoder(table(Path(missing)))


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "max"}, "encoder has no option 'pooling': choose from backbone, revision"),
        ({"backbone": None}, "encoder.backbone is missing: give a text"),
        ({"backbone": 7}, "encoder.backbone must be a text: got 7"),
        ({"shared": "yes"}, "encoder.shared must be true or false: got 'yes'"),
        ({"head_init": "random"}, "encoder.head_init is 'random': choose from checkpoint, embeddings"),
        ({"documents": None}, "the config has no table encoder.documents"),
        ({"documents": {"head": "dense"}}, "encoder.documents.head is 'dense': choose from mlm, clsmlm"),
        ({"documents": {"pooling": "max"}}, "encoder.documents.head is missing"),
        ({"documents": {"head": "mlp", "pooling": "max"}}, "has no option 'pooling' with head = 'mlp': choose from"),
        ({"documents": {"head": "mlm", "max_length": "8"}}, "max_length must be a whole number of tokens: got '8'"),
        ({"documents": {"head": "mlm", "max_length": 2}}, "leaves no room beside the 2 special tokens"),
        ({"documents": {"head": "mlm", "max_length": 99}}, "more than the model's 32"),
        ({"documents": {"head": "mlm", "max_length": 9, "activation": "tanh"}}, "choose pooling from max, sum"),
        ({"queries": {"head": "lookup"}}, r"encoder.queries.idf is missing: give a file that lsr idf wrote"),
        ({"queries": {"head": "lookup", "idf": "no.json", "max_length": 9}}, "no.json is missing: write one"),
    ],
)
def test_wrong_tables_are_refused_in_a_sentence(checkpoint, change, message):
    with pytest.raises(InputError, match=message):
        build_encoder({**table(checkpoint), **change})


# --- real models -------------------------------------------------------------------------------


def test_an_untrained_splade_from_the_real_model(shared):
    encoder = build_encoder(table(shared / "models" / "splade-tiny", queries="lookup"), device="cpu")
    documents = encoder.encode_documents(["A cat is a small domesticated carnivorous mammal."])
    terms = {encoder.term(int(i)) for i in documents.indices}
    assert {"cat", "mammal", "animal"} <= terms  # its own words, and expansion
    assert documents.nnz < 300
