"""Texts in one row give what texts with padding give, on the CPU as on a GPU."""

import pytest
import torch
import transformers

from lsr.packing import ATTENTION, packable, run_packed

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
MODELS = {
    "bert": (transformers.BertForMaskedLM, transformers.BertConfig(**SMALL)),
    "roberta": (transformers.RobertaForMaskedLM, transformers.RobertaConfig(**SMALL)),
    "electra": (transformers.ElectraForMaskedLM, transformers.ElectraConfig(**SMALL, embedding_size=16)),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def make(name, device, *, seed=0):
    torch.manual_seed(seed)
    kind, config = MODELS[name]
    return kind(config).to(device).eval()


def batch(device, lengths=(20, 3, 7, 1, 11)):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 300, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return (ids * mask + 1 - mask).to(device), mask.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_packed_texts_have_the_states_and_gradients_of_padded_ones(name, device):
    model = make(name, device)
    ids, mask = batch(device)
    assert packable(model)

    def run(**inputs):
        return (model(**inputs).logits,)

    results = []
    for states in (run(input_ids=ids, attention_mask=mask)[0], run_packed(model, run, ids, mask)[0]):
        kept = states[mask.bool()]
        model.zero_grad()
        kept.square().sum().backward()
        results.append((kept.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    assert results[0][1].keys() == results[1][1].keys()
    for key, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], gradient, atol=1e-3, rtol=1e-3)


def test_where_there_is_no_token_the_states_are_zero():
    model = make("bert", "cpu")
    ids, mask = batch("cpu")
    (states,) = run_packed(model, lambda **inputs: (model(**inputs).logits,), ids, mask)
    assert states.shape == (5, 20, 300)
    assert (states[mask == 0] == 0).all()


def test_a_model_that_was_packed_still_takes_padded_texts():
    model = make("bert", "cpu")
    ids, mask = batch("cpu")
    before = model(input_ids=ids, attention_mask=mask).logits
    run_packed(model, lambda **inputs: (model(**inputs).logits,), ids, mask)
    assert model.config._attn_implementation == ATTENTION
    after = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(before[mask.bool()], after[mask.bool()])


def test_models_with_another_attention_are_not_packed():
    config = transformers.ModernBertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    assert not packable(transformers.ModernBertForMaskedLM(config))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_of_texts_of_any_length_is_that_of_padded_ones(dtype):
    model = make("bert", "cuda")
    ids, mask = batch("cuda", (60, 1, 33, 2))

    def run(**inputs):
        with torch.autocast("cuda", dtype):
            return (model(**inputs).logits.float(),)

    padded, packed = run(input_ids=ids, attention_mask=mask)[0], run_packed(model, run, ids, mask)[0]
    torch.testing.assert_close(padded[mask.bool()], packed[mask.bool()], atol=2e-2, rtol=2e-2)
