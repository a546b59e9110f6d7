"""The trainer: first losses, exact resume, teachers on the fly, validation, checkpoints, what is shown."""

import itertools
import json

import numpy as np
import pytest
import torch
from tiny_training import VALIDATION, losses, tiny_config, write_model

import lsr
from lsr.corpus import find_file, read_queries
from lsr.errors import InputError
from lsr.methods import build_encoder
from lsr.training import trainer as trainer_module
from lsr.training.checkpoints import checkpoints
from lsr.training.distillation import EnsembleScorer
from lsr.training.teachers import load_teacher
from lsr.training.train import open_training_set, plan, train
from lsr.training.trainer import Pair, log_line
from lsr.training.validation import Validation


@pytest.fixture(scope="module")
def dropping_model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("dropping") / "m", dropout=0.2)


def weights(folder):
    encoder = lsr.load_encoder(folder, device="cpu")
    return {name: p for name, p in Pair(encoder).named_parameters()}


# --- a training --------------------------------------------------------------------------------


def test_the_first_losses_are_pinned(collection, model, tmp_path):
    """A toy training from fixed weights: whatever changes these numbers changes trainings."""
    run = train(tiny_config(tmp_path, collection, model, training={"steps": 4}), progress=False)
    assert losses(run) == pytest.approx(PINNED, rel=1e-3)


PINNED = [1.41853, 1.3663, 1.48574, 1.69552]


def test_a_training_learns_and_is_saved(collection, model, tmp_path):
    config = tiny_config(
        tmp_path, collection, model, validation=VALIDATION, training={"steps": 60, "learning_rate": 5e-3}
    )
    before = Validation.of(config)(build_encoder(config.encoder_table, device="cpu"))
    run = train(config, progress=False)
    assert np.mean(losses(run)[-5:]) < 0.5 * np.mean(losses(run)[:5])
    assert run.metrics["ndcg@10"] > before["ndcg@10"]
    loaded = lsr.load_encoder(run.folder, device="cpu")
    assert Validation.of(config)(loaded) == pytest.approx(run.metrics), "the saved encoder is the one that was measured"
    for side, length in (("documents", 32), ("queries", 16)):
        assert getattr(loaded, side).max_length == length


@pytest.fixture(scope="module")
def medquad(shared, tmp_path_factory):
    """The first 300 documents of MedQuAD, and the queries that they answer."""
    whole = shared / "data" / "medquad"
    documents = list(itertools.islice(lsr.read_corpus(whole), 300))
    ids = {document.id for document in documents}
    qrels = {q: docs for q, docs in lsr.read_qrels(whole / "qrels" / "train.tsv").items() if set(docs) <= ids}
    folder = tmp_path_factory.mktemp("medquad")
    (folder / "qrels").mkdir()
    with (folder / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({"_id": d.id, "title": d.title, "text": d.text}) + "\n" for d in documents)
    with (folder / "queries.jsonl").open("w") as file:
        for query in read_queries(find_file(whole, "queries.jsonl")):
            file.write(json.dumps({"_id": query.id, "text": query.text}) + "\n")
    rows = "".join(f"{q}\t{d}\t{grade}\n" for q, docs in qrels.items() for d, grade in docs.items())
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def test_lambda_is_steered_on_real_data(shared, medquad, tmp_path):
    """splade-tiny on MedQuAD, to about half of its terms: within 10 %, and it finds its training queries better."""
    flops = {"name": "flops", "weight": 0.05, "warmup": 40}
    config = tiny_config(
        tmp_path,
        medquad,
        shared / "models" / "splade-tiny",
        regularizer={"queries": flops | {"target_nnz": 12}, "documents": flops | {"target_nnz": 30}},
        validation={"split": "train", "queries": 40, "documents": 100},
        training={"steps": 200, "batch_size": 8, "learning_rate": 1e-4},
    )
    before = Validation.of(config)(build_encoder(config.encoder_table, device="cpu"))
    run = train(config, progress=False)
    for side, target in (("queries", 12), ("documents", 30)):
        last = [line[f"{side}_nnz"] for line in run.history if "loss" in line][-50:]
        assert np.mean(last) == pytest.approx(target, rel=0.1), side
        assert before[f"{side}_nnz"] > 1.3 * target
    assert run.metrics["ndcg@10"] > before["ndcg@10"] > 0.5
    assert Validation.of(config)(lsr.load_encoder(run.folder, device="cpu")) == pytest.approx(run.metrics)


def test_each_log_line_shows_loss_flops_terms_and_lambda(collection, model, tmp_path, capsys):
    run = train(tiny_config(tmp_path, collection, model, training={"steps": 2}), progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert len(lines) == 2
    assert lines[1] == log_line(2, 2, run.history[1])
    for word in ("loss", "ranking", "queries", "documents", "terms", "FLOPS", "λ"):
        assert word in lines[1]
    shown = run.history[1]
    assert shown["documents_nnz"] > 0
    assert shown["documents_lambda"] == pytest.approx(0.01 / 4), "λ of step 1 of 2"
    assert shown["loss"] == pytest.approx(
        shown["ranking_loss"]
        + sum(shown[f"{side}_lambda"] * shown[f"{side}_penalty"] for side in ("queries", "documents")),
        rel=1e-4,
    )


# --- exact resume ------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupt(monkeypatch):
    """Let the next trainings stop in the middle of a step."""
    step = trainer_module.SparseTrainer.training_step

    def at(last):
        def stopping(self, *arguments, **named):
            if self.state.global_step == last:
                raise Interrupted
            return step(self, *arguments, **named)

        monkeypatch.setattr(trainer_module.SparseTrainer, "training_step", stopping)

    return at


STEERED = {"name": "flops", "weight": 0.05, "warmup": 4, "target_nnz": 20}


@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"accumulate": 2, "workers": 1}])
def test_an_interrupted_run_equals_an_uninterrupted_one(
    collection, dropping_model, tmp_path, interrupt, monkeypatch, options
):
    """Losses and weights are equal to the last bit: data, dropout, optimizer, both schedules, λ-controller."""
    changes = {
        "validation": VALIDATION,
        "regularizer": {"documents": STEERED, "queries": {"name": "df_flops", "weight": 0.01}},
        "training": {"steps": 8, "evaluate_every": 3} | options,
    }

    def config(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return tiny_config(tmp_path / name, collection, dropping_model, **changes)

    whole = train(config("a"), progress=False)
    interrupt(5)
    with pytest.raises(Interrupted):
        train(config("b"), progress=False)
    monkeypatch.undo()
    assert list(checkpoints(tmp_path / "b/run/checkpoints")) == [3]
    resumed = train(config("b"), progress=False)
    assert losses(resumed) == losses(whole)
    assert resumed.metrics == whole.metrics
    expected = weights(whole.folder)
    for name, parameter in weights(resumed.folder).items():
        assert torch.equal(parameter, expected[name]), name


def test_a_run_without_a_checkpoint_starts_again(collection, model, tmp_path, interrupt, monkeypatch):
    config = tiny_config(tmp_path, collection, model)
    interrupt(2)
    with pytest.raises(Interrupted):
        train(config, progress=False)
    monkeypatch.undo()
    assert len(losses(train(config, progress=False))) == 8


def test_an_unfinished_checkpoint_is_not_resumed_from(tmp_path):
    for step, complete in ((3, True), (6, True), (9, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "trainer_state.json").write_text("{}")
    assert list(checkpoints(tmp_path)) == [3, 6]


def test_a_folder_that_is_in_use_is_refused(collection, model, tmp_path):
    config = tiny_config(tmp_path, collection, model, training={"steps": 4})
    train(config, progress=False)
    with pytest.raises(InputError, match="holds a finished run of this config"):
        train(config, progress=False)
    with pytest.raises(InputError, match=r"another config \(training.steps: 4 → 5\)"):
        train(tiny_config(tmp_path, collection, model, training={"steps": 5}), progress=False)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no training"):
        train(tiny_config(tmp_path, collection, model, output=str(foreign)), progress=False)


class Counting(EnsembleScorer):
    """Notes how many batches were scored."""

    batches = 0

    def __call__(self, examples):
        self.batches += 1
        return super().__call__(examples)


def test_teachers_on_the_fly(collection, model, tmp_path, interrupt, monkeypatch):
    """A student of two real teachers; a run that was interrupted goes on with the same teachers, and no others."""

    def config(name):
        (tmp_path / name).mkdir(exist_ok=True)
        data = {"train": [str(collection / "scored.jsonl")], "negatives": 2, "cache": str(tmp_path / "cache")}
        changes = {"loss": {"name": "kl"}, "data": data, "training": {"steps": 6, "evaluate_every": 2}}
        return tiny_config(tmp_path / name, collection, model, validation=VALIDATION, **changes)

    data = open_training_set(config("a"), scored=False)
    (tables,) = data.tables
    teachers = [
        load_teacher(name, spec, tables.queries, tables.documents, tmp_path / "vectors", device="cpu")
        for name, spec in {"bm25": "bm25", "own": str(model)}.items()
    ]

    def scorer(*weights):
        return Counting(data, [teachers], weights or None)

    assert scorer(2, 1).identity == scorer(2.0, 1.0).identity != scorer().identity
    asked = scorer(2, 1)
    asked.prepare()
    whole = train(config("a"), scorer=asked, progress=False)
    assert asked.batches == 6
    assert losses(whole) != losses(train(config("other"), scorer=scorer(1, 9), progress=False))

    interrupt(5)
    with pytest.raises(Interrupted):
        train(config("b"), scorer=scorer(2, 1), progress=False)
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds a run with other teachers on the fly: train with the same scorer"):
        train(config("b"), scorer=scorer(1, 2), progress=False)
    with pytest.raises(InputError, match="holds a run with other teachers on the fly"):
        train(config("b"), progress=False)
    assert losses(train(config("b"), scorer=scorer(2, 1), progress=False)) == losses(whole)


# --- validation and checkpoints ----------------------------------------------------------------


def scripted(scores):
    """A validation that gives these nDCGs, and notes the weights it saw."""
    seen = []

    def validate(encoder):
        seen.append({name: p.detach().clone() for name, p in Pair(encoder).named_parameters()})
        return {"ndcg@10": scores[len(seen) - 1]}

    return validate, seen


def test_the_best_checkpoint_is_kept_and_saved(collection, model, tmp_path):
    config = tiny_config(tmp_path, collection, model, training={"evaluate_every": 2})
    validate, seen = scripted([0.1, 0.9, 0.5, 0.2])
    run = train(config, validate=validate, progress=False)
    assert list(checkpoints(tmp_path / "run/checkpoints")) == [4, 8]
    assert run.metrics == {"ndcg@10": 0.9}
    for name, parameter in weights(run.folder).items():
        assert torch.equal(parameter, seen[1][name])


@pytest.mark.parametrize(("average", "which"), [("last", [2, 3]), ("best", [1, 2])])
def test_checkpoints_are_averaged(collection, model, tmp_path, average, which):
    options = {"evaluate_every": 2, "keep": 2, "average": average}
    config = tiny_config(tmp_path, collection, model, training=options, validation=VALIDATION)
    validate, seen = scripted([0.1, 0.9, 0.5, 0.2, 0.7])
    run = train(config, validate=validate, progress=False)
    for name, parameter in weights(run.folder).items():
        expected = sum(seen[i][name].double() for i in which) / 2
        torch.testing.assert_close(parameter, expected.float())
    assert run.metrics == {"ndcg@10": 0.7}, "measured anew"


def test_tensorboard_shows_what_the_log_shows(collection, model, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tmp_path, collection, model, validation=VALIDATION, training={"steps": 3})
    run = train(config, progress=False)
    (file,) = (tmp_path / "run/checkpoints/runs").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    shown = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    for name in ("ranking_loss", "documents_nnz", "documents_lambda", "queries_flops"):
        assert shown[f"train/{name}"] == pytest.approx([line[name] for line in run.history if name in line])
    assert shown["eval/ndcg@10"] == pytest.approx([run.metrics["ndcg@10"]])


def test_a_validation_shows_the_sparsity_of_both_sides(collection, model, tmp_path, capsys):
    config = tiny_config(tmp_path, collection, model, validation=VALIDATION, training={"steps": 2})
    run = train(config, progress=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "validation" in line]
    for side in ("queries", "documents"):
        seen = {name: run.metrics[f"{side}_{name}"] for name in ("nnz", "nnz_p50", "nnz_p99", "flops", "empty")}
        counts = {name: run.metrics[f"{side}_{name}"] for name in ("dead_terms", "overused_terms")}
        assert (
            f"| {side} {seen['nnz']:.1f} terms (p50 {seen['nnz_p50']:.0f}, p99 {seen['nnz_p99']:.0f}), "
            f"FLOPS {seen['flops']:.4g}, {seen['empty']:.1%} empty, {counts['dead_terms']:.0f} dead and "
            f"{counts['overused_terms']:.0f} over-used terms"
        ) in line
    card = (run.folder / "README.md").read_text()
    for words in ("FLOPS of the queries", "terms that no document has", "terms per query (median)"):
        assert f"| {words}" in card


def test_the_card_says_where_the_encoder_is_from(collection, model, tmp_path):
    config = tiny_config(tmp_path, collection, model, validation=VALIDATION, training={"steps": 2})
    run = train(config, progress=False)
    card = (run.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: lsr\n")
    for part in (str(collection), "contrastive", "flops on documents (λ 0.01)", "nDCG@10", "torch", "commit: "):
        assert part in card
    configuration = json.loads(card.split("```json\n")[1].split("```")[0])
    assert configuration == config.as_dict()
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["metrics"] == pytest.approx(run.metrics)


def test_the_plan_says_what_will_be_done(collection, model, tmp_path):
    text = plan(tiny_config(tmp_path, collection, model, training={"chunk": 2}))
    for part in (str(model), "contrastive", "flops", "8 steps of 4 queries", "2 at a time", "validation  none"):
        assert part in text
