"""What a training refuses, sees before it begins, and stops at."""

import pytest
import torch
from tiny_training import tiny_config, write_model

from lsr.errors import InputError, LsrWarning
from lsr.training.sparsity import TrainingStopped
from lsr.training.train import check, train


def test_a_positive_that_is_not_in_the_corpus_is_refused(collection, model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query_id": "q0", "positives": ["d999"]}\n')
    with pytest.raises(InputError, match="'d999' of query 'q0' is not in the corpus"):
        train(tiny_config(tmp_path, collection, model, data={"train": [str(rows)]}), progress=False)


def test_missing_teacher_scores_are_refused(collection, model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query_id": "q0", "positives": ["d0"], "negatives": ["d1"], "scores": {"d0": 1.0}}\n')
    data = {"train": [str(rows)], "negatives": 1}
    with pytest.raises(InputError, match="no teacher score for document 'd1'"):
        train(tiny_config(tmp_path, collection, model, data=data, loss={"name": "kl"}), progress=False)


def test_a_backbone_without_a_masked_lm_head_is_refused(collection, tmp_path):
    body = write_model(tmp_path / "body", kind="BertModel")
    with pytest.raises(InputError, match="no masked-LM head"):
        train(tiny_config(tmp_path, collection, body), progress=False)


LOOKUP = {"head": "lookup", "idf": "uniform", "max_length": 16}


def test_a_regularizer_of_fixed_weights_is_refused(collection, model, tmp_path):
    encoder = {"queries": LOOKUP}
    with pytest.raises(InputError, match=r"regularizer.queries: the weights of this side are fixed"):
        train(tiny_config(tmp_path, collection, model, encoder=encoder), progress=False)


def test_idf_flops_needs_an_idf_table(collection, model, tmp_path):
    regularizer = {"documents": {"name": "idf_flops", "weight": 0.1}}
    with pytest.raises(InputError, match="needs queries with an IDF table"):
        train(tiny_config(tmp_path, collection, model, regularizer=regularizer), progress=False)


def test_a_warm_up_longer_than_the_training_is_said(collection, model, tmp_path):
    flops = {"name": "flops", "weight": 0.01, "warmup": 9}
    config = tiny_config(tmp_path, collection, model, regularizer={"queries": flops}, training={"warmup": 20})
    with pytest.warns(LsrWarning) as said:
        check(config)
    assert [str(warning.message).split(":")[0] for warning in said] == [
        "regularizer.queries.warmup = 9 is more than training.steps = 8",
        "training.warmup = 20 is more than training.steps = 8",
    ]


@pytest.mark.parametrize(
    ("encoder", "backbone", "message"),
    [
        (
            {"queries": {"head": "lookup", "idf": "no/idf.json"}},
            None,
            r"queries.idf: no/idf.json is missing: write one",
        ),
        ({}, "no/such/folder", "no/such/folder does not exist"),
        ({}, "package:no_such/model", "package:no_such/model does not exist"),
        ({}, "body", "has no masked-LM head"),
    ],
)
def test_a_dry_run_sees_what_is_missing(collection, model, tmp_path, encoder, backbone, message):
    if backbone == "body":
        backbone = str(write_model(tmp_path / "body", kind="BertModel"))
    changes = {"backbone": backbone} if backbone else {}
    with pytest.raises(InputError, match=message):
        check(tiny_config(tmp_path, collection, model, encoder=encoder, **changes))


def test_a_hub_id_is_not_fetched_by_a_dry_run(collection, model, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    check(tiny_config(tmp_path, collection, model, backbone="owner/name"))


def test_cuda_is_refused_where_there_is_none(collection, model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        train(tiny_config(tmp_path, collection, model, training={"device": "cuda"}), progress=False)


def test_a_training_that_explodes_is_stopped(collection, model, tmp_path):
    config = tiny_config(tmp_path, collection, model, training={"learning_rate": 1e30, "warmup": 0, "steps": 20})
    with pytest.raises(TrainingStopped, match=r"step \d+: .* lower"):
        train(config, progress=False)


def test_a_collapse_is_stopped(collection, model, tmp_path):
    flops = {"name": "flops", "weight": 1e4}
    config = tiny_config(
        tmp_path,
        collection,
        model,
        regularizer={"queries": flops, "documents": flops},
        training={"learning_rate": 3e-2, "warmup": 0, "steps": 200, "log_every": 5},
    )
    with pytest.raises(TrainingStopped, match=r"collapsed to .* regularizer"):
        train(config, progress=False)


def test_an_idf_table_without_the_texts_terms_is_named(collection, model, tmp_path):
    (tmp_path / "idf.json").write_text('{"[MASK]": 1.0}')
    encoder = {"queries": {"head": "lookup", "idf": str(tmp_path / "idf.json"), "max_length": 16}}
    config = tiny_config(tmp_path, collection, model, encoder=encoder, regularizer={"queries": None})
    with pytest.warns(LsrWarning), pytest.raises(TrainingStopped, match=r"IDF table \(encoder.queries.idf\)") as caught:
        train(config, progress=False)
    assert "learning_rate" not in str(caught.value)


def test_a_runaway_is_stopped(collection, model, tmp_path):
    config = tiny_config(
        tmp_path, collection, model, regularizer={"documents": {"name": "flops", "weight": 1e-9, "max_nnz": 2}}
    )
    with pytest.raises(TrainingStopped, match=r"documents vectors ran away"):
        train(config, progress=False)
