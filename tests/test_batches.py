"""The order of examples, and batches cut by length: cheapest cuts, the same vectors."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import tiny_config

from lsr.backbone import Backbone
from lsr.methods import build_encoder
from lsr.training.batches import ExampleSampler, PlannedCollator, cut_by_length
from lsr.training.data import Collator, Source, TrainingSet
from lsr.training.trainer import Pair

ALIKE = {side: {"head": "mlm", "max_length": 16} for side in ("queries", "documents")}


@given(st.lists(st.integers(0, 64), min_size=1, max_size=12), st.integers(0, 300))
def test_cuts_are_the_cheapest(lengths, call_tokens):
    lengths = sorted(lengths)
    parts = cut_by_length(lengths, call_tokens)
    assert [row for start, end, _ in parts for row in range(start, end)] == list(range(len(lengths)))
    assert all(longest >= max(lengths[start:end]) for start, end, longest in parts)
    assert parts[-1][2] == max(1, lengths[-1])

    def cost(cuts):
        ends = [*cuts, len(lengths)]
        starts = [0, *cuts]
        rounded = [min(lengths[-1], -(-max(1, lengths[end - 1]) // 8) * 8) for end in ends]
        return sum((e - s) * r + call_tokens for s, e, r in zip(starts, ends, rounded, strict=True))

    places = range(1, len(lengths))
    cheapest = min(cost(cuts) for n in range(len(lengths)) for cuts in itertools.combinations(places, n))
    assert cost([start for start, _, _ in parts[1:]]) == cheapest


def test_the_sampler_goes_through_every_example_in_each_epoch():
    keys = list(ExampleSampler(range(10), 25, seed=3))
    assert len(keys) == len(ExampleSampler(range(10), 25, seed=3)) == 25
    for epoch in (0, 1):
        assert sorted(i for e, i in keys if e == epoch) == list(range(10))
    assert keys == list(ExampleSampler(range(10), 25, seed=3)) != list(ExampleSampler(range(10), 25, seed=4))
    assert keys[:10] != [(0, i) for _, i in keys[10:20]], "epochs have orders of their own"


@pytest.mark.parametrize("chunk", [0, 2, 3])
def test_cut_batches_give_the_vectors_of_the_whole(collection, model, tmp_path, chunk):
    config = tiny_config(tmp_path, collection, model)
    encoder = build_encoder(config.encoder_table, device="cpu")
    training_set = TrainingSet([Source(collection / "scored.jsonl", collection)], 2)
    collate = Collator(encoder.queries.tokenizer, encoder.documents.tokenizer, training_set)
    examples = [training_set[0, i] for i in range(8)]
    batch = PlannedCollator(collate, chunk, call_tokens=1)(examples)
    assert sum(len(c["parts"]) for c in batch["chunks"]) > 1
    pair = Pair(encoder).eval()
    with torch.no_grad():
        queries, documents = (
            torch.cat(side) for side in zip(*(pair(batch, chunk) for chunk in batch["chunks"]), strict=True)
        )
        torch.testing.assert_close(queries, pair.queries(batch["query_ids"], batch["query_mask"]))
        torch.testing.assert_close(documents, pair.documents(batch["document_ids"], batch["document_mask"]))


@pytest.mark.parametrize("chunk", [0, 3])
def test_sides_that_are_alike_go_through_the_encoder_in_one_call(collection, model, tmp_path, monkeypatch, chunk):
    config = tiny_config(tmp_path, collection, model, encoder=ALIKE)
    encoder = build_encoder(config.encoder_table, device="cpu")
    training_set = TrainingSet([Source(collection / "scored.jsonl", collection)], 2)
    collate = Collator(encoder.queries.tokenizer, encoder.documents.tokenizer, training_set)
    batch = PlannedCollator(collate, chunk, call_tokens=1)([training_set[0, i] for i in range(8)])
    pair = Pair(encoder).eval()
    calls = []
    pair.documents.register_forward_hook(lambda *_: calls.append(1))
    results = []
    for packs in (False, True):
        monkeypatch.setattr(Backbone, "packs", packs)
        calls.clear()
        with torch.no_grad():
            results.append([torch.cat(side) for side in zip(*(pair(batch, c) for c in batch["chunks"]), strict=True)])
    assert len(calls) == len(batch["chunks"])
    for apart, together in zip(*results, strict=True):
        torch.testing.assert_close(together, apart)


def test_sides_with_other_heads_are_not_alike(collection, model, tmp_path):
    for side in ({"head": "mlp"}, {"head": "mlm", "pooling": "sum"}, {"head": "lookup", "idf": "uniform"}):
        table = {**ALIKE, "queries": {**side, "max_length": 16}}
        config = tiny_config(tmp_path, collection, model, encoder=table)
        assert not Pair(build_encoder(config.encoder_table, device="cpu")).alike
