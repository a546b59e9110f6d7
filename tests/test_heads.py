"""Every sparse head against its formula, token by token; sides that hold them, saved and loaded."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import TEXTS, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

import lsr
from lsr import neural
from lsr.backbone import GROUP_TOKENS, Backbone, length_groups
from lsr.batching import encode_batches, sparse_rows
from lsr.checkpoint import load_backbone
from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError
from lsr.heads import (
    BinaryHead,
    ClsMlmHead,
    EpicHead,
    LearnedLookupHead,
    MlmHead,
    MlpHead,
    SparseHead,
    TableHead,
    module_of,
)
from lsr.lookup import LookupEncoder
from lsr.neural import NeuralEncoder, TableEncoder

REPEATED = [*TEXTS, "cat cat dog, cat"]


@pytest.fixture(scope="module")
def backbone(checkpoint) -> Backbone:
    return load_backbone(checkpoint, "cpu")


def side_of(head: SparseHead) -> NeuralEncoder:
    return NeuralEncoder(head.eval(), 32)


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def per_text(checkpoint: Path, text: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Ids, last hidden states and logits of one text, from transformers."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        hidden = model.bert(**inputs).last_hidden_state[0]
    return inputs["input_ids"][0].tolist(), hidden.numpy(), logits.numpy()


def as_row(terms: dict[int, float], size: int) -> np.ndarray:
    row = np.zeros(size)
    row[list(terms)] = list(terms.values())
    return row


# --- formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_mlm_with_softplus(checkpoint, backbone, pooling):
    """Longest and shortest text in one batch: padding adds no softplus(0) = 0.69."""
    side = NeuralEncoder(MlmHead(backbone, pooling=pooling, activation="softplus"), 32, top_terms=10_000)
    vectors = side.encode(REPEATED).vectors.toarray()
    for text, row in zip(REPEATED, vectors, strict=True):
        _, _, logits = per_text(checkpoint, text)
        weights = np.logaddexp(logits, 0)
        expected = weights.max(0) if pooling == "max" else weights.sum(0)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["log1p", "log1p_log1p", "softplus"])
def test_clsmlm_reads_the_first_position(checkpoint, backbone, activation):
    vectors = side_of(ClsMlmHead(backbone, activation=activation)).encode(TEXTS).vectors.toarray()
    acts = {
        "log1p": lambda x: np.log1p(np.maximum(x, 0)),
        "log1p_log1p": lambda x: np.log1p(np.log1p(np.maximum(x, 0))),
        "softplus": lambda x: np.logaddexp(x, 0),
    }
    for text, row in zip(TEXTS, vectors, strict=True):
        _, _, logits = per_text(checkpoint, text)
        np.testing.assert_allclose(row, acts[activation](logits[0]), atol=1e-5)


@pytest.mark.parametrize("activation", ["softplus", "log1p"])
def test_epic_is_quality_times_the_largest_important_logit(checkpoint, backbone, activation):
    torch.manual_seed(0)
    head = EpicHead(backbone, activation=activation)
    vectors = side_of(head).encode(REPEATED).vectors.toarray()
    act = (lambda x: np.logaddexp(x, 0)) if activation == "softplus" else (lambda x: np.log1p(np.maximum(x, 0)))
    u, b = head.importance.weight.detach().numpy()[0], float(head.importance.bias.detach())
    v, c = head.quality.weight.detach().numpy()[0], float(head.quality.bias.detach())
    for text, row in zip(REPEATED, vectors, strict=True):
        _, hidden, logits = per_text(checkpoint, text)
        importance = np.log1p(np.logaddexp(hidden @ u + b, 0))
        quality = 1 / (1 + np.exp(-(hidden[0] @ v + c)))
        np.testing.assert_allclose(row, quality * (importance[:, None] * act(logits)).max(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repeats", ["sum", "max"])
@pytest.mark.parametrize(("activation", "norm"), [("relu", "none"), ("relu", "log1p"), ("softplus", "log1p"),
                                                  ("identity", "none")])  # fmt: skip
def test_mlp_weighs_the_text_s_own_terms(checkpoint, backbone, repeats, activation, norm):
    head = MlpHead(backbone, repeats=repeats, activation=activation, norm=norm)
    with torch.no_grad():
        torch.manual_seed(0)
        head.weigh.weight.normal_(0, 1)  # some weights are below zero
    vectors = side_of(head).encode(REPEATED).vectors.toarray()
    w, b = head.weigh.weight.detach().numpy()[0], float(head.weigh.bias.detach())
    special = set(backbone.tokenizer.special_ids.tolist())
    seen_negative = False
    for text, row in zip(REPEATED, vectors, strict=True):
        ids, hidden, _ = per_text(checkpoint, text)
        expected: dict[int, float] = {}
        for i, h in zip(ids, hidden, strict=True):
            raw = float(h @ w + b)
            seen_negative |= raw < 0 and i not in special
            weight = softplus(raw) if activation == "softplus" else max(raw, 0)
            weight = math.log1p(weight) if norm == "log1p" else weight
            if i not in special:
                expected[i] = expected.get(i, 0) + weight if repeats == "sum" else max(expected.get(i, 0), weight)
        np.testing.assert_allclose(row, as_row(expected, len(row)), rtol=1e-4, atol=1e-5)
    assert seen_negative


def test_identity_keeps_negative_weights_while_training(backbone):
    head = MlpHead(backbone, repeats="max", activation="identity")
    with torch.no_grad():
        head.weigh.bias.fill_(-50)
    ids = torch.tensor([[2, 24, 3]])
    assert head.train()(ids, torch.ones_like(ids))[0, 24] < -10
    assert not head.eval()(ids, torch.ones_like(ids)).any()


def test_binary_gives_one_scale_to_every_term_of_a_text(backbone):
    module = BinaryHead(backbone.tokenizer, backbone.vocabulary_size)
    side = TableEncoder(module, backbone.tokenizer, 32)
    (row,) = side.encode(["cat cat dog [SEP] unicorn"]).vectors.toarray()
    terms = {side.term(i): row[i] for i in np.flatnonzero(row)}
    assert terms == {"cat": pytest.approx(0.3), "dog": pytest.approx(0.3)}
    with torch.no_grad():
        module.scale.fill_(2)
    assert side.encode(["dog"]).vectors.data.tolist() == [2]
    with torch.no_grad():
        module.scale.fill_(-1)
    assert side.encode(["dog"]).vectors.nnz == 0


def test_a_learned_table_comes_from_the_word_embeddings(backbone):
    module = LearnedLookupHead(backbone.tokenizer, backbone.embeddings())
    table = module.table().detach().numpy()
    E = backbone.embeddings().weight.detach().numpy()
    w, b = module.weigh.weight.detach().numpy()[0], float(module.weigh.bias.detach())
    expected = np.log1p(np.maximum(E @ w + b, 0))
    expected[backbone.tokenizer.special_ids] = 0
    np.testing.assert_allclose(table, expected, rtol=1e-5)
    assert np.count_nonzero(table) > 0
    side = TableEncoder(module, backbone.tokenizer, 32)
    (row,) = side.encode(["the cat and the river"]).vectors.toarray()
    assert {side.term(i) for i in np.flatnonzero(row)} <= {"the", "cat", "and", "river"}
    np.testing.assert_allclose(row[row > 0], table[np.flatnonzero(row)], rtol=1e-6)


# --- modules, as a trainer calls them ----------------------------------------------------------


def all_sides(backbone: Backbone) -> list[NeuralEncoder | TableEncoder]:
    heads = [
        MlmHead(backbone),
        MlmHead(backbone, pooling="sum", activation="softplus"),
        ClsMlmHead(backbone),
        EpicHead(backbone),
        MlpHead(backbone, repeats="sum"),
        MlpHead(backbone, repeats="max", activation="softplus", norm="log1p"),
    ]
    tables: list[TableHead] = [
        BinaryHead(backbone.tokenizer, backbone.vocabulary_size),
        LearnedLookupHead(backbone.tokenizer, backbone.embeddings()),
    ]
    sides: list[NeuralEncoder | TableEncoder] = [NeuralEncoder(head, 32, top_terms=10_000) for head in heads]
    return sides + [TableEncoder(module, backbone.tokenizer, 32) for module in tables]


def batch_of(side: NeuralEncoder | TableEncoder, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = side.tokenizer(texts).ids
    padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, some in enumerate(ids):
        padded[row, : len(some)] = torch.from_numpy(some).long()
        mask[row, : len(some)] = 1
    return padded, mask


@pytest.mark.parametrize("which", range(8))
def test_a_module_gives_a_trainer_what_the_side_encodes(backbone, which):
    side = all_sides(backbone)[which]
    module = module_of(side)
    module.train()
    encoded = side.encode(REPEATED).vectors.toarray()
    assert module.training  # encoding has put the mode back
    module.eval()
    weights = module(*batch_of(side, REPEATED))
    assert weights.dtype == torch.float32
    assert weights.shape == (len(REPEATED), side.vocabulary_size)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.detach().numpy(), encoded, atol=1e-5)
    module.zero_grad()
    weights.square().sum().backward()
    unused = [name for name, p in module.named_parameters() if p.grad is None]
    assert not [name for name in unused if "cls" not in name and "projection" not in name], (
        unused
    )  # an MLP over it leaves the MLM head alone


@pytest.mark.parametrize("counts", [False, True])
def test_the_module_of_a_fixed_table_is_frozen(backbone, counts):
    weights = np.arange(backbone.vocabulary_size, dtype=np.float32)
    side = LookupEncoder(backbone.tokenizer, weights, 32, counts=counts)
    module = module_of(side)
    assert not list(module.parameters())
    ids = side.tokenizer(["cat cat river"]).ids[0]
    row = module(torch.from_numpy(ids).long()[None], torch.ones(1, len(ids), dtype=torch.long))
    np.testing.assert_array_equal(row.numpy(), side.encode(["cat cat river"]).vectors.toarray())


def test_a_side_without_torch_has_no_module():
    with pytest.raises(InputError, match="a side of kind bm25-documents cannot be trained"):
        module_of(lsr.Bm25().fit(TEXTS).documents)


def test_the_states_for_epic_are_the_body_s(backbone):
    ids = torch.tensor([[2, 24, 25, 3]])
    states, hidden = backbone.states_and_hidden(ids, torch.ones_like(ids))
    torch.testing.assert_close(hidden, backbone.hidden(ids, torch.ones_like(ids)))
    torch.testing.assert_close(states, backbone.states(ids, torch.ones_like(ids)))


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40), least=st.integers(1, 2_000))
def test_groups_by_length_hold_every_text_once_and_spare_padding(lengths, least):
    groups = length_groups(lengths, least)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert sum(len(group) * lengths[group[0]] for group in groups) <= len(lengths) * max(lengths)
    for group, following in itertools.pairwise(groups):
        assert all(lengths[group[0]] >= lengths[i] for i in group)
        assert lengths[following[0]] <= 0.75 * lengths[group[0]]
        assert len(group) * lengths[group[0]] >= least


@pytest.mark.parametrize("which", range(6))
def test_groups_change_neither_weights_nor_gradients(backbone, monkeypatch, which):
    """One text at a time, two groups, all at once; one batch has a text of padding alone."""
    side = all_sides(backbone)[which]
    ids, mask = batch_of(side, [*REPEATED, "cat", ""])
    mask[-1] = 0
    module = side.module.eval()
    found = []
    for least in (1, 40, 100_000):
        monkeypatch.setitem(GROUP_TOKENS, "cpu", least)
        module.zero_grad()
        weights = module(ids, mask)
        weights.square().sum().backward()
        assert torch.isfinite(weights).all()
        found.append([weights.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_bfloat16_encoding_is_near_float32(checkpoint):
    exact = lsr.load_encoder(checkpoint, device="cpu")
    half = lsr.load_encoder(checkpoint, device="cpu", dtype="bfloat16")
    assert half.fingerprint == exact.fingerprint
    a, b = (encoder.encode_documents(TEXTS).toarray() for encoder in (exact, half))
    assert np.abs(a - b).max() > 0
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)
    with pytest.raises(InputError, match="dtype 'int8' is unknown: choose from float32"):
        lsr.load_encoder(checkpoint, dtype="int8")


# --- sides -------------------------------------------------------------------------------------


def test_a_softplus_vector_keeps_its_heaviest_terms(backbone):
    head = MlmHead(backbone, activation="softplus")
    assert NeuralEncoder(head, 32).top_terms == 1_000
    every, few = (NeuralEncoder(head, 32, top_terms=k).encode(TEXTS).vectors.toarray() for k in (10_000, 5))
    assert (np.count_nonzero(every, axis=1) == every.shape[1]).all()
    for row, kept in zip(every, few, strict=True):
        assert sorted(kept[kept > 0]) == sorted(row)[-5:]
        np.testing.assert_array_equal(kept[kept > 0], row[kept > 0])


@pytest.mark.parametrize("which", range(8))
def test_every_side_is_saved_and_loaded(tmp_path, backbone, which):
    side = all_sides(backbone)[which]
    encoder = Encoder(side, side)
    encoder.save(tmp_path / "saved")
    again = lsr.load_encoder(tmp_path / "saved", device="cpu")
    assert again.fingerprint == encoder.fingerprint
    assert again.documents.kind == side.kind
    assert (again.encode_documents(REPEATED) != encoder.encode_documents(REPEATED)).nnz == 0
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["documents", "lsr_encoder.json"]
    again.save(tmp_path / "again")
    assert lsr.load_encoder(tmp_path / "again", device="cpu").fingerprint == encoder.fingerprint


def test_a_learned_table_is_saved_as_a_plain_one(tmp_path, backbone):
    side = TableEncoder(LearnedLookupHead(backbone.tokenizer, backbone.embeddings()), backbone.tokenizer, 32)
    Encoder(side_of(MlmHead(backbone)), side).save(tmp_path / "saved")
    queries = lsr.load_encoder(tmp_path / "saved", device="cpu").queries
    assert type(queries) is LookupEncoder
    assert queries.light


def test_fingerprints_tell_sides_apart_and_follow_training(backbone):
    sides = all_sides(backbone)
    prints = [side.fingerprint for side in sides]
    assert len(set(prints)) == len(prints)
    assert [side.fingerprint for side in sides] == prints
    mlp, binary = sides[4], sides[6]
    before = Encoder(mlp, binary).fingerprint
    with torch.no_grad():
        mlp.module.weigh.bias.add_(1)
        binary.module.scale.add_(1)
    assert mlp.fingerprint != prints[4]
    assert binary.fingerprint != prints[6]
    assert Encoder(mlp, binary).fingerprint != before


def test_a_side_may_share_the_other_s_backbone_on_disk_and_in_memory(tmp_path, backbone):
    encoder = Encoder(side_of(MlmHead(backbone)), side_of(MlpHead(backbone, repeats="sum")))
    encoder.save(tmp_path / "saved")
    assert [p.name for p in (tmp_path / "saved" / "queries").iterdir()] == ["head.safetensors"]
    again = lsr.load_encoder(tmp_path / "saved", device="cpu")
    assert again.queries.backbone is again.documents.backbone
    assert again.fingerprint == encoder.fingerprint
    other = Encoder(side_of(MlpHead(backbone, repeats="max")), side_of(MlmHead(backbone)))
    other.save(tmp_path / "other")
    assert not (tmp_path / "other" / "queries").exists()
    assert lsr.load_encoder(tmp_path / "other", device="cpu").fingerprint == other.fingerprint


def test_half_precision_on_disk_halves_the_folder_and_keeps_tied_weights_tied(tmp_path, checkpoint):
    encoder = lsr.load_encoder(checkpoint, device="cpu")
    sizes = {}
    for dtype in ("float32", "float16"):
        encoder.save(tmp_path / dtype, dtype=dtype)
        sizes[dtype] = (tmp_path / dtype / "documents" / "model.safetensors").stat().st_size
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert json.loads((tmp_path / "float16" / "documents" / "config.json").read_text())["dtype"] == "float16"
    half = lsr.load_encoder(tmp_path / "float16", device="cpu")
    backbone = half.documents.backbone
    assert backbone.head().weight is backbone.embeddings().weight
    assert backbone.head().weight.dtype == torch.float32
    a, b = (e.encode_documents(TEXTS).toarray() for e in (encoder, half))
    np.testing.assert_allclose(a, b, atol=0.05)
    assert half.fingerprint != encoder.fingerprint
    with pytest.raises(InputError, match="weights cannot be saved as 'int4'"):
        encoder.save(tmp_path / "int4", dtype="int4")


def test_damaged_head_files_are_refused(tmp_path, backbone):
    from safetensors.torch import save_file

    side = side_of(MlpHead(backbone, repeats="sum"))
    Encoder(side, side).save(tmp_path / "saved")
    path = tmp_path / "saved" / "documents" / "head.safetensors"
    save_file({"other": torch.ones(1)}, path)
    with pytest.raises(FormatError, match=r"holds \['other'\], not \['weigh.bias', 'weigh.weight'\]"):
        lsr.load_encoder(tmp_path / "saved")
    path.unlink()
    with pytest.raises(FormatError, match="the documents side is damaged or unfinished"):
        lsr.load_encoder(tmp_path / "saved")


def test_heads_that_need_an_mlm_head_say_so(tmp_path):
    folder = write_checkpoint(tmp_path / "body", kind="BertModel")
    body = load_backbone(folder, "cpu", head=None)
    side = side_of(MlpHead(body, repeats="sum"))  # needs none
    encoder = Encoder(side, side)
    encoder.save(tmp_path / "saved")
    assert lsr.load_encoder(tmp_path / "saved", device="cpu").fingerprint == encoder.fingerprint
    for head in (MlmHead, ClsMlmHead, EpicHead):
        with pytest.raises(InputError, match="BertModel has no masked-LM head, and this encoder needs one"):
            head(body)


def test_wrong_options_are_refused(backbone):
    for options, message in (
        ({"repeats": "mean"}, "an mlp head has no repeats 'mean': choose from sum, max"),
        ({"repeats": "sum", "activation": "tanh"}, "an mlp head has no activation 'tanh'"),
        ({"repeats": "sum", "norm": "l2"}, "an mlp head has no norm 'l2': choose from none, log1p"),
        ({"repeats": "sum", "activation": "identity", "norm": "log1p"}, "with activation identity takes norm none"),
    ):
        with pytest.raises(InputError, match=message):
            MlpHead(backbone, **options)
    with pytest.raises(InputError, match="choose pooling from max, sum"):
        ClsMlmHead(backbone, activation="tanh")
    with pytest.raises(InputError, match="top_terms must be at least 1"):
        NeuralEncoder(MlmHead(backbone), 32, top_terms=0)


def test_vectors_gathered_on_a_gpu_are_those_gathered_on_a_cpu(backbone):
    generator = np.random.default_rng(0)
    token_ids = [np.arange(n, dtype=np.int32) for n in (3, 1, 0, 5, 2)]
    rows = {len(ids): torch.from_numpy(generator.random(41, dtype=np.float32)) for ids in token_ids}
    rows[1][:] = 0
    rows[5][rows[5] < 0.5] = 0
    batches = [[3, 0], [4, 1]]  # text 2 is in none

    def pool(ids):
        return torch.stack([rows[len(text)] for text in ids])

    on_cpu = encode_batches(token_ids, batches, lambda ids: sparse_rows(pool(ids).numpy()), 41, None)
    on_gpu = neural._encode_on_gpu(token_ids, batches, pool, 41, None)
    assert (on_gpu.indptr == on_cpu.indptr).all()
    assert (on_gpu.indices == on_cpu.indices).all()
    assert (on_gpu.data == on_cpu.data).all()
    assert neural._encode_on_gpu(token_ids, [], pool, 41, None).nnz == 0
