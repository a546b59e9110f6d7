"""A masked-LM head for a body without one: what is masked, what is imitated, that it resumes, and the command."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from tiny_training import write_collection, write_model

import lsr
from lsr.checkpoint import has_mlm_head, load_backbone
from lsr.cli import main
from lsr.errors import InputError, MismatchError
from lsr.lookup import LookupEncoder
from lsr.sparse_head import fused_sparse_head
from lsr.training import pretrain as module
from lsr.training.pretrain import MaskedModel, PretrainOptions, Windows, lower_bias, pretrain
from lsr.training.texts import document_table, token_table


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """A tiny transformer without a masked-LM head."""
    return write_model(tmp_path_factory.mktemp("body"), kind="BertModel")


def windows_of(collection, cache, backbone, length):
    tokenizer = backbone.tokenizer.with_options(module.DOCUMENT_TOKENS, add_special_tokens=False)
    table = token_table(cache, document_table(cache, lsr.read_corpus(collection)), tokenizer)
    return table, Windows([table, table], backbone.tokenizer([""]).ids[0], length)


def test_window_is_a_part_of_the_text_between_the_special_tokens(body, collection, tmp_path):
    backbone = load_backbone(body, "cpu", head="embeddings")
    table, windows = windows_of(collection, tmp_path, backbone, 8)
    assert len(windows) == 2 * len(table)
    first, last = backbone.tokenizer([""]).ids[0]
    torch.manual_seed(0)
    for i in range(len(windows)):
        tokens, window = table[i % len(table)].tolist(), windows[i].tolist()
        inside = window[1:-1]
        assert (window[0], window[-1]) == (first, last)
        assert len(inside) == min(6, len(tokens))
        assert any(tokens[j : j + len(inside)] == inside for j in range(len(tokens)))
    batch = windows.collate([windows[0], windows[1]])
    assert (batch["attention_mask"].sum(1).tolist()) == [len(windows[0]), len(windows[1])]


def test_masking_spares_special_tokens_and_padding_and_keeps_to_its_share(checkpoint):
    model = MaskedModel(load_backbone(checkpoint, "cpu"), PretrainOptions(mask=0.4), None)
    special = model.backbone.tokenizer.special_ids.tolist()
    torch.manual_seed(1)
    ids = torch.randint(len(special), model.backbone.tokenizer.size, (200, 30))
    ids[:, 0], ids[:, 20] = special[2], special[3]
    attention = torch.ones_like(ids)
    attention[:, 21:] = 0
    masked, chosen = model._mask(ids, attention)
    assert not chosen[:, [0, 20]].any()
    assert not chosen[:, 21:].any()
    assert torch.equal(masked[~chosen], ids[~chosen])
    share = chosen[:, 1:20].float().mean().item()
    assert 0.36 < share < 0.44
    of_chosen = masked[chosen]
    assert 0.75 < (of_chosen == model.mask_id).float().mean().item() < 0.85
    kept = (of_chosen == ids[chosen]).float().mean().item()
    assert 0.07 < kept < 0.2  # a tenth, and random terms that happen to be the same


def test_loss_is_cross_entropy_of_the_masked_plus_distance_to_the_imitated_vectors(checkpoint, monkeypatch):
    backbone, encoder = load_backbone(checkpoint, "cpu"), lsr.load_encoder(checkpoint, device="cpu")
    model = MaskedModel(backbone, PretrainOptions(imitation=0.5), encoder)
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])
    attention = (ids != 0).long()
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[0, 2] = chosen[1, 1] = True
    masked = torch.where(chosen, model.mask_id, ids)
    monkeypatch.setattr(model, "_mask", lambda *_: (masked, chosen))
    head = backbone.head()
    with torch.no_grad():
        actual = model(ids, attention)["loss"].item()
        logits = backbone.states(masked, attention) @ head.weight.T + head.bias
        entropy = torch.nn.functional.cross_entropy(logits[chosen], ids[chosen])
        best = logits.masked_fill(attention[..., None] == 0, -torch.inf).amax(1)
        wanted = encoder.documents.module(ids, attention)
        off = (torch.log1p(torch.nn.functional.softplus(best)) - wanted).square().sum(1) / wanted.square().sum(1)
    assert actual == pytest.approx(entropy.item() + 0.5 * off.mean().item(), rel=1e-5)
    assert not any(name.startswith("_imitated") for name, _ in model.named_parameters())


def test_new_head_starts_with_few_weights(body, collection, tmp_path):
    backbone = load_backbone(body, "cpu", head="embeddings")
    _, windows = windows_of(collection, tmp_path, backbone, 16)
    lower_bias(backbone, windows)
    batch, head = windows.collate([windows[i] for i in range(len(windows))]), backbone.head()
    with torch.no_grad():
        made = fused_sparse_head(backbone.states(**batch), batch["attention_mask"], head.weight, head.bias)
    assert 0 < (made > 0).float().sum(1).mean().item() < 0.2 * made.shape[1]


def options(**changes) -> PretrainOptions:
    return PretrainOptions(**{"steps": 12, "batch_size": 8, "max_length": 16, "learning_rate": 5e-3, **changes})


def run(body, collection, out, cache, **changes):
    return pretrain(body, [lsr.read_corpus(collection)], options(**changes), out, cache=cache, device="cpu")


def test_body_becomes_a_checkpoint_that_encodes(body, collection, tmp_path):
    assert not has_mlm_head(body)
    first, last = (
        run(body, collection, tmp_path / name, tmp_path / "cache", steps=steps)["loss"]
        for name, steps in (("once", 1), ("out", 40))
    )
    assert last < first
    assert has_mlm_head(tmp_path / "out")
    assert load_backbone(tmp_path / "out", "cpu").head().out_features == tiny_tokenizer().get_vocab_size()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="exists"):
        run(body, collection, tmp_path / "out", tmp_path / "cache")


def test_interrupted_pretraining_goes_on_and_ends_as_one_that_was_not(body, collection, tmp_path, monkeypatch):
    run(body, collection, tmp_path / "whole", tmp_path / "cache")

    class Interrupted(Exception):
        pass

    real = module._Trainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise Interrupted
        return real(self, *args, **kwargs)

    monkeypatch.setattr(module._Trainer, "training_step", stops)
    with pytest.raises(Interrupted):
        run(body, collection, tmp_path / "parts", tmp_path / "cache")
    assert not (tmp_path / "parts").exists()
    steps = []
    monkeypatch.setattr(module._Trainer, "training_step", lambda self, *a, **k: steps.append(1) or real(self, *a, **k))
    run(body, collection, tmp_path / "parts", tmp_path / "cache")
    assert len(steps) == 6  # from the checkpoint at step 6
    whole, parts = (load_backbone(tmp_path / name, "cpu").state_dict() for name in ("whole", "parts"))
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected)


def test_checkpoints_of_other_options_and_unfinished_ones_are_not_gone_on_from(tmp_path):
    work = tmp_path / ".out.pretrain"
    assert module._last_checkpoint(work, {"steps": 1}) is None
    for step in (9, 10, 11):
        (work / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (work / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert module._last_checkpoint(work, {"steps": 1}) == work / "checkpoint-10"
    assert module._last_checkpoint(work, {"steps": 2}) is None
    assert not list(work.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"mask": 1.0}, "mask"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"imitation": -1.0}, "imitation"),
    ],
)
def test_bad_options_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        PretrainOptions(**changes)


def test_imitated_encoder_must_have_the_body_s_vocabulary_and_a_transformer(checkpoint, tmp_path):
    backbone = load_backbone(checkpoint, "cpu")
    with pytest.raises(InputError, match="runs no transformer"):
        MaskedModel(
            backbone,
            PretrainOptions(),
            lsr.Encoder(
                *[LookupEncoder(backbone.tokenizer, np.ones(backbone.vocabulary_size, dtype=np.float32), 8)] * 2
            ),
        )
    other = write_model(tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    path.write_text(tiny_tokenizer().to_str().replace('"cat"', '"bat"'))
    with pytest.raises(MismatchError, match="another vocabulary"):
        MaskedModel(backbone, PretrainOptions(), lsr.load_encoder(other, device="cpu"))


def test_command(body, tmp_path, capsys):
    collection = write_collection(tmp_path / "data")
    arguments = ["pretrain", str(body), str(collection), str(collection), "--steps", "4", "--batch-size", "4"]
    arguments += [
        "--max-length",
        "16",
        "--device",
        "cpu",
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    assert "loss" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
