"""Training files, texts in memory-mapped tables, examples and batches."""

import gzip
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lsr.corpus import read_corpus  # noqa: E402
from lsr.errors import FormatError, InputError, LsrWarning  # noqa: E402
from lsr.records import Query  # noqa: E402
from lsr.tokenizer import ModelTokenizer  # noqa: E402
from lsr.training.data import Collator, Source, TrainingSet, pad  # noqa: E402
from lsr.training.rows import Row, new_training_file, read_rows  # noqa: E402
from lsr.training.score_files import rows_hash, scores_folder  # noqa: E402
from lsr.training.texts import TextTable, TokenTable, cached, document_table, token_table  # noqa: E402

DOCUMENTS = {
    f"d{i}": text for i, text in enumerate(["the cat", "a dog", "sparse vectors", "", "river fish", "bank loan"])
}
QUERIES = {"q1": "cat", "q2": "dog and cat", "q3": "fish"}
ROWS = [
    {"query_id": "q1", "positives": ["d0"], "negatives": ["d1", "d2", "d3"],
     "scores": {"d0": 9, "d1": 5, "d2": 1, "d3": 0}},
    {"query_id": "q2", "positives": ["d1", "d0"], "negatives": ["d5", "d2", "d4"],
     "scores": {"d1": 8, "d0": 7.5, "d5": 1, "d2": 0, "d4": -2}},
    {"query_id": "q3", "positives": ["d4"], "negatives": ["d0", "d5"], "scores": {"d4": 3, "d0": 2, "d5": 1}},
]  # fmt: skip


def lines(path: Path, records: list) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def collection(folder: Path, documents: dict = DOCUMENTS, queries: dict = QUERIES) -> Path:
    folder.mkdir(exist_ok=True)
    lines(folder / "corpus.jsonl", [{"_id": i, "title": "", "text": text} for i, text in documents.items()])
    lines(folder / "queries.jsonl", [{"_id": i, "text": text} for i, text in queries.items()])
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td0\t1\nq1\td2\t0\nq2\td1\t2\nq2\td0\t1\n"
    )
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return collection(tmp_path / "home")


def training_set(home: Path, rows: list = ROWS, **options) -> TrainingSet:
    path = lines(home / "train.jsonl", rows)
    return TrainingSet([Source(path, home)], **{"negatives": 2, **options})


def tokenizer(max_length: int = 16, special: bool = True) -> ModelTokenizer:
    return ModelTokenizer(tiny_tokenizer().to_str(), max_length, add_special_tokens=special)


# --- texts ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    records=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")), min_size=1
    )
)
def test_a_text_table_gives_back_what_was_put_in(tmp_path_factory, records):
    table = TextTable.build(tmp_path_factory.mktemp("table"), "x", records.items())
    ids = list(records)
    assert [table.id(row) for row in range(len(table))] == ids
    assert list(table) == list(records.values())
    assert table.rows_of(ids[::-1]).tolist() == list(range(len(ids)))[::-1]
    assert table.rows_of(["\0 no such id"]).tolist() == [-1]
    copy = pickle.loads(pickle.dumps(table))  # noqa: S301
    assert list(copy) == list(table)
    assert len(pickle.dumps(table)) < 1000  # the files are named, not copied


def test_repeated_query_ids_are_refused_or_skipped(home):
    """As those of documents; a cached table of skipped ones does not let them pass later."""
    with (home / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q1", "text": "another"}\n')
    source = Source(home / "qrels" / "train.tsv", home, skip_repeats=True)
    with pytest.warns(LsrWarning, match="1 queries of .*queries.jsonl were left out: their ids were used before"):
        tables = source.open(home / "cache")
    assert list(tables.queries) == list(QUERIES.values())
    with pytest.raises(InputError, match="the query id 'q1' is used twice: .*data.skip_repeats=true keep"):
        replace(source, skip_repeats=False).open(home / "cache")


def test_an_id_that_is_used_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="the id 'b' is used twice"):
        TextTable.build(tmp_path, "x", [("a", "1"), ("b", "2"), ("b", "3")])


@pytest.mark.parametrize("special", [True, False])
def test_a_token_table_holds_what_the_tokenizer_gives(tmp_path, special):
    texts = document_table(tmp_path, read_corpus(DOCUMENTS))
    own = tokenizer(max_length=3, special=special)
    table = token_table(tmp_path, texts, own)
    expected = own(list(DOCUMENTS.values())).ids
    assert [table[row].tolist() for row in range(len(table))] == [ids.tolist() for ids in expected]
    assert table[0].dtype == np.uint16
    assert pickle.loads(pickle.dumps(table))[0].tolist() == table[0].tolist()  # noqa: S301


def test_wide_vocabularies_take_four_bytes_a_token(tmp_path):
    texts = document_table(tmp_path, read_corpus(["cat dog"]))
    own = tokenizer()
    own.size = 70_000
    assert TokenTable.build(tmp_path, texts, own)[0].dtype == np.int32


def test_the_cache_builds_once_and_again_when_the_file_changed(tmp_path, home):
    first = document_table(tmp_path / "cache", read_corpus(home))
    assert document_table(tmp_path / "cache", read_corpus(home)).folder == first.folder
    lines(home / "corpus.jsonl", [{"_id": "new", "text": "text"}])
    assert [*document_table(tmp_path / "cache", read_corpus(home))] == ["text"]


def test_a_cache_that_could_not_be_built_leaves_nothing(tmp_path):
    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise InputError("broken")

    with pytest.raises(InputError):
        cached(tmp_path / "cache", {"a": 1}, build)
    assert not list((tmp_path / "cache").iterdir())


# --- training files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_rows_are_written_and_read(tmp_path, name):
    rows = [Row("q1", ["d1"], ["d2"], {"d1": 1.25}), Row("ü", ["d1", "d3"], [], {})]
    with new_training_file(tmp_path / name) as file:
        for row in rows:
            file.write(row.to_json() + "\n")
    assert [row for _, row in read_rows(tmp_path / name)] == rows
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_unfinished_training_file_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_training_file(tmp_path / "x.jsonl.gz"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_training_file_is_named_jsonl(tmp_path):
    with (
        pytest.raises(InputError, match=r"x\.tsv is no name of a training file: use \.jsonl"),
        new_training_file(tmp_path / "x.tsv"),
    ):
        pass


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "a row is a JSON object, not list"),
        ({"query_id": "q1", "positives": ["d0"], "text": "x"}, "unknown field 'text'"),
        ({"positives": ["d0"]}, "no query_id"),
        ({"query_id": "q1"}, "positives of query 'q1' must be a list"),
        ({"query_id": "q1", "positives": [1]}, "positives of query 'q1' must be a list"),
        ({"query_id": "q1", "positives": []}, "query 'q1' has no positive"),
        ({"query_id": "q1", "positives": ["d0"], "negatives": ["d0"]}, "document 'd0' is listed twice for query"),
        ({"query_id": "q1", "positives": ["d0"], "scores": {"d9": 1}}, "the score of 'd9' for query 'q1' belongs"),
        ({"query_id": "q1", "positives": ["d0"], "scores": {"d0": float("nan")}}, "not a finite number"),
        ({"query_id": "q1", "positives": ["d0"], "scores": {"d0": "1"}}, "not a finite number"),
        ({"query_id": "q9", "positives": ["d0"]}, "the query 'q9' is not in .*queries.jsonl"),
        ({"query_id": "q1", "positives": ["d0", "d9"]}, "the positive 'd9' of query 'q1' is not in the corpus"),
        ({"query_id": "q1", "positives": ["d0"], "negatives": ["d8"]}, "the negative 'd8' of query 'q1' is not in"),
        ({"query_id": "q3", "positives": ["d0"]}, "the query 'q3' has a row already, in line 1"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named_with_its_line(home, row, message):
    with pytest.raises((InputError, FormatError), match=f"train.jsonl:2: .*{message}"):
        training_set(home, [ROWS[2], row], negatives=0)


def test_json_that_is_broken_is_named_with_its_line(home):
    (home / "train.jsonl").write_text('{"query_id": "q1", "positives": ["d0"]}\n{"query_id": \n')
    with pytest.raises(FormatError, match=r"train.jsonl:2: not valid JSON"):
        TrainingSet([Source(home / "train.jsonl", home)], 0)


def test_a_query_without_text_is_refused(home):
    collection(home, queries={**QUERIES, "q1": " "})
    with pytest.raises(InputError, match=r"train.jsonl:1: the query 'q1' is without text in"):
        training_set(home)


def test_a_positive_of_judgments_that_is_not_in_the_corpus_is_named_with_its_line(home):
    (home / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td99\t1\n")
    with pytest.raises(InputError, match=r"train.tsv:3: the positive 'd99' of query 'q2' is not in the corpus"):
        TrainingSet([Source(home / "qrels" / "train.tsv")], 0)


def test_a_file_of_ids_needs_its_collection(tmp_path):
    with pytest.raises(InputError, match="name the collection"):
        TrainingSet([Source(lines(tmp_path / "x.jsonl", ROWS))], 1)


# --- examples ------------------------------------------------------------------------------------


def test_an_example_is_a_row_with_texts(home):
    examples = training_set(home)
    assert len(examples) == 3
    by_query = {example.query_id: example for example in (examples[i] for i in range(3))}
    for fields in ROWS:
        example = by_query[fields["query_id"]]
        assert example.query == QUERIES[example.query_id]
        assert example.doc_ids[0] in fields["positives"]
        assert len(example.doc_ids) == 3
        assert set(example.doc_ids[1:]) <= set(fields["negatives"])
        assert len(set(example.doc_ids)) == 3
        assert example.documents == [DOCUMENTS[doc_id] for doc_id in example.doc_ids]
        assert example.scores == [fields["scores"][doc_id] for doc_id in example.doc_ids]
        assert example.positives == set(fields["positives"])
    with pytest.raises(IndexError):
        examples[3]


def test_choices_depend_on_seed_epoch_and_position_only(home):
    def draw(examples, epoch):
        return [examples[epoch, i].doc_ids for i in (2, 0, 1)]

    one, two = training_set(home), training_set(home)
    assert draw(one, 5) == draw(two, 5) == draw(one, 5)
    two.set_epoch(5)
    assert [two[i].doc_ids for i in (2, 0, 1)] == draw(one, 5)
    assert len({str(draw(one, epoch)) for epoch in range(20)}) > 5
    assert any(draw(one, e) != draw(training_set(home, seed=1), e) for e in range(5))
    many = [one[epoch, i] for epoch in range(50) for i in range(3)]
    assert {example.doc_ids[0] for example in many if example.query_id == "q2"} == {"d0", "d1"}
    assert {d for example in many if example.query_id == "q1" for d in example.doc_ids[1:]} == {"d1", "d2", "d3"}


def test_workers_draw_what_one_process_draws(home):
    examples = training_set(home, cache=home / "cache")
    collator = Collator(tokenizer(special=False), tokenizer(), examples)

    def batches(workers: int, context: str | None) -> list:
        loader = torch.utils.data.DataLoader(
            examples, batch_size=2, collate_fn=collator, num_workers=workers, multiprocessing_context=context
        )
        return [batch["document_ids"].tolist() for batch in loader]

    assert batches(0, None) == batches(2, "fork")
    copy = pickle.loads(pickle.dumps((examples, collator)))  # noqa: S301  (what spawn does)
    assert copy[1]([copy[0][0]])["document_ids"].tolist() == collator([examples[0]])["document_ids"].tolist()


def test_weights_say_how_often_rows_are_drawn(home, tmp_path):
    other = collection(tmp_path / "other")
    path = lines(home / "train.jsonl", ROWS)
    sources = [Source(path, home, weight=2), Source(lines(other / "x.jsonl", ROWS), other, weight=1 / 3)]
    examples = TrainingSet(sources, 1)
    assert len(examples) == 7
    assert [examples.source_of(i) for i in range(7)] == [0] * 6 + [1]
    first = [examples[0, i].query_id for i in range(6)]
    assert sorted(first) == ["q1", "q1", "q2", "q2", "q3", "q3"]
    assert sorted(examples[epoch, 6].query_id for epoch in range(3)) == ["q1", "q2", "q3"]  # a third each epoch
    with pytest.raises(InputError, match="weight must be a positive number"):
        TrainingSet([Source(path, home, weight=0)], 1)


def test_judgments_are_a_training_file(home):
    with pytest.warns(LsrWarning, match="2 of 2 queries .* have fewer than 3 negatives: random documents"):
        examples = TrainingSet([Source(home / "qrels" / "train.tsv")], 3)
    seen = {example.query_id: example for example in (examples[i] for i in range(2))}
    assert seen["q1"].positives == {"d0"}
    assert seen["q2"].positives == {"d0", "d1"}
    for epoch in range(20):
        example = examples[epoch, 0]
        assert len(set(example.doc_ids)) == 4
        assert not example.positives & set(example.doc_ids[1:])
        assert example.scores is None
        assert example.documents == [DOCUMENTS[doc_id] for doc_id in example.doc_ids]


def test_more_negatives_than_the_corpus_has_are_refused(home):
    with pytest.raises(InputError, match="are more than the 6 documents"):
        TrainingSet([Source(home / "qrels" / "train.tsv")], 5)


def test_scored_rows_repeat_their_negatives(home):
    with pytest.warns(LsrWarning, match="1 of 3 queries .* some of them are repeated"):
        examples = training_set(home, negatives=3)
    example = next(example for example in map(examples.__getitem__, range(3)) if example.query_id == "q3")
    assert set(example.doc_ids[1:]) == {"d0", "d5"}
    assert len(example.doc_ids) == len(example.scores) == 4


def test_missing_teacher_scores_are_refused(home):
    rows = [ROWS[0], {**ROWS[1], "scores": {"d1": 8, "d5": 1, "d2": 0, "d4": -2}}]
    for scores in (None, True):
        with pytest.raises(InputError, match=r"train.jsonl:2: the query 'q2' has no teacher score for document 'd0'"):
            training_set(home, rows, scores=scores)
    assert training_set(home, rows, scores=False)[0].scores is None
    bare = [{"query_id": "q1", "positives": ["d0"], "negatives": ["d1", "d2"]}]
    assert training_set(home, bare)[0].scores is None
    with pytest.raises(InputError, match="no teacher score"):
        training_set(home, bare, scores=True)


def test_a_scored_row_without_negatives_is_refused(home):
    rows = [ROWS[0], {"query_id": "q2", "positives": ["d1"], "scores": {"d1": 1}}]
    with pytest.raises(InputError, match=r"train.jsonl:2: the query 'q2' has no negative"):
        training_set(home, rows)


def test_queries_and_corpus_may_be_given(home):
    path = lines(home / "train.jsonl", ROWS[:1])
    queries = [Query(*pair) for pair in QUERIES.items()]
    source = Source(path, corpus=list(map(tuple, DOCUMENTS.items())), queries=queries)
    assert TrainingSet([source], 1)[0].query == "cat"


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_holds_the_examples_in_order(home):
    examples = training_set(home, cache=home / "cache")
    drawn = [examples[i] for i in range(3)]
    queries, documents = tokenizer(4, special=False), tokenizer(5)
    plain, fast = Collator(queries, documents)(drawn), Collator(queries, documents, examples)(drawn)
    assert plain.keys() == fast.keys()
    for name, value in plain.items():
        assert value is fast[name] is None or torch.equal(value, fast[name]), name
    assert fast["document_ids"].shape[0] == 9
    assert fast["teacher_scores"].tolist() == [example.scores for example in drawn]
    for i, example in enumerate(drawn):
        for j, text in enumerate(example.documents):
            row = fast["document_ids"][3 * i + j][fast["document_mask"][3 * i + j].bool()]
            assert row.tolist() == documents([text]).ids[0].tolist()
        row = fast["query_ids"][i][fast["query_mask"][i].bool()]
        assert row.tolist() == queries([example.query]).ids[0].tolist()
    for name in ("query_ids", "query_mask", "document_ids", "document_mask"):
        assert fast[name].dtype == torch.int64


def test_known_positives_in_the_batch_are_marked(home):
    examples = training_set(home)
    drawn = [next(e for e in map(examples.__getitem__, range(3)) if e.query_id == q) for q in QUERIES]
    mask = Collator(tokenizer(), tokenizer())(drawn)["false_negatives"].numpy()
    ids = [doc_id for example in drawn for doc_id in example.doc_ids]
    for i, example in enumerate(drawn):
        expected = [doc_id in example.positives and column != 3 * i for column, doc_id in enumerate(ids)]
        assert mask[i].tolist() == expected
    assert mask.any()


def test_equal_ids_of_two_collections_are_two_documents(home, tmp_path):
    other = collection(tmp_path / "other")
    mined = lines(home / "train.jsonl", ROWS[:1])
    copy = lines(other / "train.jsonl", ROWS[:1])
    again = lines(home / "again.jsonl", [{**ROWS[0], "query_id": "q2"}])
    apart = TrainingSet([Source(mined, home), Source(copy, other)], 1)
    same = TrainingSet([Source(mined, home), Source(again, home)], 1)
    collator = Collator(tokenizer(), tokenizer())
    assert not collator([apart[0], apart[1]])["false_negatives"].any()
    assert collator([same[0], same[1]])["false_negatives"].tolist() == [
        [False, False, True, False],
        [True, False, False, False],
    ]


def test_padding_is_at_least_one_long():
    ids, mask = pad([np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32)])
    assert ids.tolist() == mask.tolist() == [[0], [0]]


def test_scores_may_come_on_the_fly(home):
    drawn = [training_set(home)[0]]
    collator = Collator(tokenizer(), tokenizer(), scorer=lambda examples: np.full((len(examples), 3), 7.0))
    assert collator(drawn)["teacher_scores"].tolist() == [[7, 7, 7]]


# --- base scores ---------------------------------------------------------------------------------


def scored_by(home, name: str, value=lambda place: place + 0.5) -> np.ndarray:
    """A finished score file beside the training file: a number for each candidate."""
    tables = training_set(home).tables[0]
    folder = scores_folder(tables.rows.path)
    folder.mkdir(exist_ok=True)
    scores = np.array([value(place) for place in range(len(tables.rows.candidates))], dtype=np.float32)
    np.save(folder / f"{name}.npy", scores)
    (folder / f"{name}.json").write_text(json.dumps({"teacher": name, "rows": rows_hash(tables)}))
    return scores


def test_base_scores_are_those_of_the_chosen_documents(home):
    scores = scored_by(home, "bm25")
    examples = training_set(home, base="bm25", base_weight=2.0)
    rows, documents = examples.tables[0].rows, examples.tables[0].documents
    drawn = [examples[i] for i in range(3)]
    for example in drawn:
        row = next(i for i in range(3) if examples.tables[0].queries.id(int(rows.queries[i])) == example.query_id)
        of_row = dict(
            zip(map(documents.id, rows.candidates_of(row).tolist()), scores[rows.starts[row] :], strict=False)
        )
        assert example.base == [2 * of_row[doc_id] for doc_id in example.doc_ids]
    batch = Collator(tokenizer(), tokenizer(), examples)(drawn)
    assert batch["base_scores"].dtype == torch.float32
    assert batch["base_scores"].tolist() == [example.base for example in drawn]
    assert training_set(home)[0].base is None


def test_base_scores_need_a_finished_file_of_these_rows(home):
    with pytest.raises(InputError, match=r"bm25.npy is missing: give lsr distill a teacher .* \(scores there: none\)"):
        training_set(home, base="bm25")
    scored_by(home, "other")
    with pytest.raises(InputError, match=r"\(scores there: other\)"):
        training_set(home, base="bm25")
    scored_by(home, "bm25", lambda place: np.nan if place == 3 else 1.0)
    with pytest.raises(InputError, match="is unfinished"):
        training_set(home, base="bm25")
    scored_by(home, "bm25")
    with pytest.raises(InputError, match="holds scores of other rows"):
        training_set(home, ROWS[:2], base="bm25")
    note = scores_folder(home / "train.jsonl") / "bm25.json"
    note.write_text("{")
    with pytest.raises(FormatError, match=r"bm25.json is damaged"):
        training_set(home, base="bm25")


def test_with_base_scores_a_row_is_not_filled_with_strangers(home):
    scored_by(home, "bm25")
    with pytest.warns(LsrWarning, match="some of them are repeated"):
        examples = training_set(home, negatives=3, scores=False, base="bm25")
    assert {*examples[0].doc_ids} <= {doc_id for row in ROWS for doc_id in (*row["positives"], *row["negatives"])}


def test_training_data_needs_neither_numba_nor_a_stemmer():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['numba', 'Stemmer', 'sentence_transformers']))\n"
        "import lsr.training.data, lsr.training.teachers, lsr.training.distillation, lsr.training.mine"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real collections (../shared) are not on this machine")
def test_real_judgments_and_texts():
    with pytest.warns(LsrWarning, match="random documents"):
        examples = TrainingSet([Source(SHARED / "data" / "cranfield" / "qrels" / "test.tsv")], 2)
    assert len(examples) == 225
    example = examples[7]
    assert len(example.documents[0]) > 50
    assert example.query.endswith(".")
