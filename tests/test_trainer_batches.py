"""Steps of several passes and processes are those of one: gradient caching, accumulation, data-parallel training."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import transformers
from tiny_training import VALIDATION, losses, tiny_config, vectors, write_model

from lsr.methods import build_encoder
from lsr.training.regularizers import REGULARIZERS
from lsr.training.train import open_training_set, train
from lsr.training.trainer import SparseTrainer

LOOKUP = {"head": "lookup", "idf": "uniform", "max_length": 16}


def test_gradient_caching_trains_as_the_whole_batch_does(collection, model, tmp_path):
    def run(name, **options):
        (tmp_path / name).mkdir()
        options = {"batch_size": 8, **options}
        config = tiny_config(tmp_path / name, collection, model, training={"steps": 4, **options})
        return train(config, progress=False)

    plain, cached = run("plain"), run("cached", chunk=3)
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-4)
    np.testing.assert_allclose(vectors(cached.folder), vectors(plain.folder), atol=1e-4)


class Recorder(transformers.TrainerCallback):
    """The gradients of each optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, *, model, **_):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("changes", [*REGULARIZERS, {"name": "flops", "target_nnz": 20}, {"name": "l1", "warmup": 3}])
def test_accumulated_passes_are_one_batch(collection, model, tmp_path, changes):
    """A step of 8 queries and one of 4 passes of 2: the same losses, penalties, λ and gradients, step by step."""
    regularizer = {"weight": 0.05} | (changes if isinstance(changes, dict) else {"name": changes})
    regularizer |= {"threshold": 2} if regularizer["name"] == "l0_flops" else {}
    idf = {"queries": LOOKUP} if regularizer["name"] == "idf_flops" else {}

    def run(name, **options):
        config = tiny_config(
            tmp_path,
            collection,
            model,
            encoder=idf,
            regularizer={"queries": None if idf else regularizer, "documents": regularizer},
            training={"steps": 3, **options},
        )
        torch.manual_seed(0)
        encoder = build_encoder(config.encoder_table, device="cpu")
        data = open_training_set(config, scored=False)
        trainer = SparseTrainer(encoder, config, data, tmp_path / name, progress=False)
        recorder = Recorder()
        trainer.add_callback(recorder)
        trainer.train()
        return [line for line in trainer.state.log_history if "loss" in line], recorder.gradients

    whole, gradients = run("whole", batch_size=8)
    passes, others = run("passes", batch_size=2, accumulate=4)
    assert len(whole) == len(gradients) == 3
    for line, other in zip(whole, passes, strict=True):
        assert other == pytest.approx(line, rel=1e-4)
        assert line["documents_penalty"] > 0
    for expected, found in zip(gradients, others, strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-5)


TWO_PROCESSES = """
import json, sys
from lsr.training.config import parse
from lsr.training.train import train
train(parse(json.loads(sys.argv[1])), progress=False)
"""


RESUMED = """
import json, sys
from lsr.training.config import parse
from lsr.training.train import train
from lsr.training.trainer import SparseTrainer

whole, broken = map(parse, json.loads(sys.argv[1]))
train(whole, progress=False)
step = SparseTrainer.training_step

def stopping(self, *arguments):
    if self.state.global_step == 4:
        raise KeyboardInterrupt
    return step(self, *arguments)

SparseTrainer.training_step = stopping
try:
    train(broken, progress=False)
except KeyboardInterrupt:
    SparseTrainer.training_step = step
train(broken, progress=False)
"""


def in_two_processes(script, folder, argument):
    path = folder / "two.py"
    path.write_text(textwrap.dedent(script))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(path), json.dumps(argument)], check=True, capture_output=True)


def test_two_processes_resume_exactly(collection, tmp_path):
    """Both of them stop in the middle of a step: dropout, data, df_flops' frequencies and λ go on as they were."""
    dropping = write_model(tmp_path / "dropping", dropout=0.2)
    steered = {"name": "flops", "weight": 0.05, "warmup": 4, "target_nnz": 20}
    configs = []
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        config = tiny_config(
            tmp_path / name,
            collection,
            dropping,
            regularizer={"documents": steered, "queries": {"name": "df_flops", "weight": 0.01}},
            training={"steps": 6, "batch_size": 2, "evaluate_every": 3},
        )
        configs.append(config.as_dict())
    in_two_processes(RESUMED, tmp_path, configs)
    whole, broken = (json.loads((tmp_path / name / "run/run.json").read_text()) for name in ("whole", "broken"))
    assert broken["state"] == "finished"
    assert losses_of(broken) == losses_of(whole)
    np.testing.assert_array_equal(vectors(tmp_path / "broken/run/encoder"), vectors(tmp_path / "whole/run/encoder"))


def losses_of(manifest):
    return [(line["loss"], line["documents_lambda"]) for line in manifest["history"] if "loss" in line]


@pytest.mark.parametrize("chunk", [0, 1])
def test_two_processes_train_as_one(collection, model, tmp_path, chunk):
    """Through torchrun and DDP: the same global batches, the same regularizers, the same weights."""

    def config(name, batch_size, chunk):
        (tmp_path / name).mkdir()
        return tiny_config(
            tmp_path / name,
            collection,
            model,
            loss={"name": "margin_mse"},
            data={"train": [str(collection / "scored.jsonl")], "negatives": 2},
            validation=VALIDATION,
            training={"steps": 3, "batch_size": batch_size, "chunk": chunk, "evaluate_every": 2},
        )

    one = train(config("one", 4, 0), progress=False)
    in_two_processes(TWO_PROCESSES, tmp_path, config("two", 2, chunk).as_dict())
    history = json.loads((tmp_path / "two/run/run.json").read_text())["history"]
    for line, other in zip(one.history, history, strict=True):
        for key in ("loss", "ranking_loss", "documents_nnz", "documents_flops", "queries_penalty", "eval_ndcg@10"):
            assert (key in other) == (key in line)
            assert other.get(key, 0) == pytest.approx(line.get(key, 0), rel=1e-4), key
    np.testing.assert_allclose(vectors(tmp_path / "two/run/encoder"), vectors(one.folder), atol=1e-4)
