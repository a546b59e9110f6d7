"""A query table that is learned for documents that stay: its loss, what is learned, what is kept."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_tokenizer
from scipy.sparse import csr_array

import lsr
from lsr import cli_train
from lsr.bm25 import Bm25
from lsr.cli import main
from lsr.encoder import Encoder
from lsr.errors import InputError
from lsr.joined import join
from lsr.lookup import LookupEncoder
from lsr.tokenizer import ModelTokenizer
from lsr.training.data import Source
from lsr.training.query_table import Comparisons, TuningOptions, _loss, fit, tune_queries

TOPICS = ["cat", "dog", "river", "bank", "fish", "house"]
ASPECTS = ["sat", "ran"]
SEEN = [f"{topic} sat ran" for topic in TOPICS]  # what IDF is of: it gives the deciding words next to nothing
DOCUMENTS = {f"{t}-{own}": f"{t} {own}" + f" {t} {t}" * (own == "ran") for t in TOPICS for own in ASPECTS}


def table() -> Encoder:
    tokenizer = ModelTokenizer(tiny_tokenizer().to_str(), 16)
    weights = np.full(tokenizer.size, 0.1, dtype=np.float32)
    return Encoder(*(LookupEncoder(tokenizer, weights, 16, counts=side == 1) for side in range(2)))


def bm25(buckets: int | None = None) -> Encoder:
    return Bm25(buckets=buckets).fit(SEEN)


@pytest.fixture
def home(tmp_path):
    """Two documents a topic, one for each aspect; the wrong one names the topic more often, as answers do."""
    queries = {f"q-{topic}-{own}": f"{topic} {own}" for topic in TOPICS for own in ASPECTS}
    folder = tmp_path / "topics"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", DOCUMENTS), ("queries", queries)):
        rows = [json.dumps({"_id": i, "title": "", "text": text}) + "\n" for i, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    judged = [f"{query}\t{query.removeprefix('q-')}\t1\n" for query in queries]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


def tune(encoder: Encoder, home: Path, **options):
    return tune_queries(
        encoder, [Source(home / "qrels" / "train.tsv")], TuningOptions(**options), cache=home.parent / "cache"
    )


# --- the loss ----------------------------------------------------------------------------------


def comparisons(seed: int, terms: int = 5, weight: float = 1.0) -> Comparisons:
    rng = np.random.default_rng(seed)
    features = rng.random((9, terms)) * (rng.random((9, terms)) < 0.7)
    targets = np.array([1, 0, 0, 0.5, 0.5, 0, 1, 0, 0], dtype=np.float32)
    table = rng.random(terms).astype(np.float32) + 0.5
    return Comparisons(csr_array(features.astype(np.float32)), targets, np.array([0, 3, 6]), table, weight)


def plain_loss(found: list[Comparisons], shrinkage: float, x: np.ndarray) -> float:
    terms = len(found[0].table)
    total = shrinkage / 2 * sum(b**2 for b in x[:terms])
    for own, scale in zip(found, np.exp(x[terms:]), strict=True):
        scores = scale * own.features.toarray().astype(float) @ (own.table + x[:terms])
        for group in (slice(0, 3), slice(3, 6), slice(6, 9)):
            softmax = np.exp(scores[group]) / np.exp(scores[group]).sum()
            total -= own.weight * np.sum(own.targets[group] * np.log(softmax))
    return float(total)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_its_formula_and_the_gradient_its_slope(seed):
    found = [comparisons(seed), comparisons(seed + 100, weight=0.3)]
    x = np.random.default_rng(seed).normal(size=7) / 3
    value, gradient = _loss(found, 0.7)(x)
    assert value == pytest.approx(plain_loss(found, 0.7, x), rel=1e-5)
    steps = 1e-5 * np.eye(7)
    slope = [(plain_loss(found, 0.7, x + step) - plain_loss(found, 0.7, x - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


def test_the_more_shrinkage_the_less_changes_and_never_beyond_the_least_share():
    found = [comparisons(1)]
    sizes = []
    for shrinkage in (0.01, 1, 100, 1e6):
        changes, before, after = fit(found, shrinkage, 200)
        assert after <= before
        assert (found[0].table + changes > 0).all()
        sizes.append(np.abs(changes).sum())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-4


# --- what is learned ---------------------------------------------------------------------------


def right(encoder: Encoder) -> list[bool]:
    """Whether each question finds its document first, the other document of its topic behind it."""
    questions = [name.replace("-", " ") for name in DOCUMENTS]
    documents = encoder.documents.encode(list(DOCUMENTS.values())).vectors
    frequency = np.bincount(documents.indices, minlength=encoder.vocabulary_size)
    side = encoder.queries.in_collection(frequency, len(DOCUMENTS))  # as a retriever would have it
    scores = documents @ side.encode(questions).vectors.T
    return list(scores.toarray().argmax(axis=0) == np.arange(len(questions)))


@pytest.mark.parametrize("make", [bm25, lambda: bm25(512), lambda: join(table(), bm25(512), 0.5)])
def test_it_learns_which_word_decides(make, home):
    encoder = make()
    assert not all(right(encoder))
    tuned = tune(encoder, home, shrinkage=0.1)
    assert tuned.queries == 12
    assert tuned.after < tuned.before
    assert all(right(tuned.encoder))
    assert (tuned.changes[columns(encoder, "sat")] > 0).any()
    assert tuned.encoder.documents.fingerprint == encoder.documents.fingerprint
    assert tuned.encoder.fingerprint != encoder.fingerprint


def columns(encoder: Encoder, text: str) -> list[int]:
    return encoder.encode_queries([text]).indices.tolist()


def test_terms_of_no_query_keep_their_weight_and_two_runs_agree(home):
    encoder = join(table(), bm25(512), 0.5)
    tuned, again = tune(encoder, home), tune(encoder, home)
    assert np.array_equal(tuned.changes, again.changes)
    assert tuned.encoder.fingerprint == again.encoder.fingerprint
    unseen = np.setdiff1d(np.arange(encoder.vocabulary_size), columns(encoder, " ".join(TOPICS + ASPECTS)))
    assert not tuned.changes[unseen].any()
    before, after = encoder.queries.table, tuned.encoder.queries.table  # type: ignore[attr-defined]
    assert np.array_equal(before[unseen], after[unseen])
    some, others = (tune(encoder, home, queries=4, seed=seed) for seed in (0, 1))
    assert some.queries == 4
    assert not np.array_equal(some.changes, others.changes)


def test_a_training_file_brings_its_own_candidates(home):
    rows = [{"query_id": f"q-{t}-sat", "positives": [f"{t}-sat"], "negatives": [f"{t}-ran"]} for t in TOPICS]
    mined = home.parent / "mined.jsonl"
    mined.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = tune_queries(bm25(), [Source(mined, home)], cache=home.parent / "cache")
    assert tuned.queries == 6
    sat, ran = (tuned.changes[columns(bm25(), word)].item() for word in ASPECTS)
    assert sat > 0 == ran


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [table, bm25, lambda: bm25(512), lambda: join(table(), bm25(512), 2.0)])
def test_an_adjusted_encoder_is_saved_and_keeps_what_was_learned(make, tmp_path):
    encoder = make()
    changes = np.linspace(-10, 2, encoder.vocabulary_size)
    adjusted = encoder.adjusted(changes)
    expected = np.maximum(encoder.queries.table + changes, 0.01 * encoder.queries.table)
    np.testing.assert_allclose(adjusted.queries.table, expected, rtol=1e-5)
    np.testing.assert_allclose(encoder.queries.adjusted(changes).table, expected, rtol=1e-5)
    adjusted.save(tmp_path / "adjusted")
    loaded = lsr.load_encoder(tmp_path / "adjusted")
    assert loaded.fingerprint == adjusted.fingerprint
    assert np.array_equal(loaded.encode_queries(SEEN).toarray(), adjusted.encode_queries(SEEN).toarray())
    assert loaded.encode_queries(SEEN).nnz == encoder.encode_queries(SEEN).nnz
    twice = adjusted.adjusted(-changes / 2).queries.table
    assert (twice >= 0.01 * encoder.queries.table - 1e-6).all()


def test_a_hashed_bm25_has_what_was_learned_beside_the_idf_of_any_collection():
    encoder = bm25(512)
    frequency = np.full(512, 3)
    own = encoder.queries.in_collection(frequency, 10)
    changes = np.linspace(0, 1, 512)
    there = encoder.adjusted(changes).queries.in_collection(frequency, 10)
    np.testing.assert_allclose(there.table, own.table + changes, rtol=1e-6)  # type: ignore[attr-defined]


# --- what is refused, and the command ----------------------------------------------------------


def test_what_cannot_be_tuned_is_refused(checkpoint, home):
    with pytest.raises(InputError, match="mlm queries run a transformer and have no table"):
        tune(lsr.load_encoder(checkpoint, document_max_length=16, query_max_length=12, device="cpu"), home)
    with pytest.raises(InputError, match="bm25-documents has no table"):
        _ = bm25().documents.table  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="bm25-documents has no table"):
        bm25().documents.adjusted(np.zeros(3))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="from a source at least"):
        tune_queries(bm25(), [], cache=home.parent / "cache")
    for options in ({"shrinkage": 0.0}, {"shrinkage": float("nan")}, {"candidates": 0}, {"queries": 0}, {"steps": 0}):
        with pytest.raises(InputError, match="above 0|1 or more"):
            TuningOptions(**options)


def test_a_weight_is_that_of_every_source_of_its_collection():
    options = argparse.Namespace(
        sources=["data/pets", "data/pets=mined.jsonl", "data/cars"], weight=["pets=2"], skip_repeats=False
    )
    assert [source.weight for source in cli_train._sources(options)] == [2.0, 2.0, 1.0]


def test_the_command(home, tmp_path, capsys):
    join(table(), bm25(512), 0.5).save(tmp_path / "joined")
    words = ["tune-queries", str(tmp_path / "joined"), str(home), "--out", str(tmp_path / "tuned")]
    assert main([*words, "--weight", "topic=1"]) == 1
    assert "--weight names 'topic', which is none" in capsys.readouterr().err
    assert main([*words, "--weight", "topics"]) == 1
    assert "write NAME=NUMBER" in capsys.readouterr().err
    assert main([*words, "--weight", "topics=2", "--shrinkage", ".1", "--document-max-length", "8"]) == 0
    assert "12 queries: loss" in capsys.readouterr().out
    tuned = lsr.load_encoder(tmp_path / "tuned")
    assert all(right(tuned))
    assert tuned.documents.max_length == 16
    assert not (tmp_path / ".tuned.cache").exists()
    assert main(words) == 1
    assert "already exists" in capsys.readouterr().err
