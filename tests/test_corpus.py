"""Corpora and queries of every accepted form, and what is said about broken ones."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lsr
from lsr.corpus import read_corpus, read_queries
from lsr.errors import FormatError, InputError, LsrWarning
from lsr.records import Document, Query

SHARED = Path(__file__).resolve().parents[2] / "shared"

DOCUMENTS = [Document("d1", "a cat sat", "Cats"), Document("d2", "dogs bark"), Document("7", "né à Zürich", "")]


def jsonl(*objects: Any) -> str:
    return "".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in objects)


BEIR = jsonl(
    {"_id": "d1", "title": "Cats", "text": "a cat sat", "metadata": {}},
    {"_id": "d2", "title": "", "text": "dogs bark"},
    {"_id": 7, "title": None, "text": "né à Zürich"},
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "beir" / name, BEIR)
    corpus = read_corpus(tmp_path / "beir")
    assert list(corpus) == DOCUMENTS
    assert list(corpus) == DOCUMENTS  # again
    assert corpus.name == str(tmp_path / "beir" / name)


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.json", "docs.ndjson", "docs.jsonl.gz"])
def test_a_jsonl_file_is_read_by_path_or_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\ufeff" + BEIR.replace("\n", "\r\n\n"))
    assert list(read_corpus(path)) == DOCUMENTS
    assert list(read_corpus(str(path))) == DOCUMENTS


@pytest.mark.parametrize("id_field", ["_id", "id", "doc_id", "docid"])
@pytest.mark.parametrize("text_field", ["text", "contents", "body"])
def test_common_names_of_fields_are_understood(tmp_path: Path, id_field: str, text_field: str) -> None:
    path = write(tmp_path / "docs.jsonl", jsonl({text_field: "a text", id_field: "a"}))
    assert list(read_corpus(path)) == [Document("a", "a text")]


@pytest.mark.parametrize(
    "text",
    [
        "d1\tCats\ta cat sat\nd2\t\tdogs bark\n",
        "d1\tCats\ta cat sat\r\n\nd2\tdogs bark\n",
        "id\ttitle\ttext\nd1\tCats\ta cat sat\nd2\t\tdogs bark\n",
        "DOC_ID\tText\tTitle\nd1\ta cat sat\tCats\nd2\tdogs bark\t\n",
        "_id\turl\ttext\ttitle\nd1\tx.org\ta cat sat\tCats\nd2\ty.org\tdogs bark\t\n",
    ],
)
@pytest.mark.parametrize("name", ["docs.tsv", "docs.txt", "docs.tsv.gz"])
def test_a_tsv_file_of_two_or_three_columns_or_with_a_header_is_read(tmp_path: Path, name: str, text: str) -> None:
    assert list(read_corpus(write(tmp_path / name, text))) == DOCUMENTS[:2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("d1\tcat\nd2 dogs bark\n", r"1 tab-separated fields where 3 were expected \(id, title, text\)"),
        ("d1\tcat\nd2\ta\tb\tc\n", "4 tab-separated fields where 3 were expected"),
        ("id\ttext\nd2\ta\tb\n", r"3 tab-separated fields where 2 were expected \(id, text\)"),
    ],
)
def test_a_tsv_line_of_other_width_is_named(tmp_path: Path, text: str, reason: str) -> None:
    corpus = read_corpus(write(tmp_path / "docs.tsv", text))
    with pytest.raises(FormatError, match=rf"docs\.tsv:2: {reason}"):
        list(corpus)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "d2", "text": "x"', r"not valid JSON: .* \(column 26\)"),
        ("d2 dogs bark", r"not valid JSON: Expecting value \(column 1\)"),
        ('["d2", "dogs"]', "a line must be a JSON object, not list"),
        ('{"text": "x"}', "no id as a string or integer .looked for _id, id, doc_id"),
        ('{"_id": null, "text": "x"}', "no id as a string or integer"),
        ('{"_id": 1.5, "text": "x"}', "no id as a string or integer"),
        ('{"_id": true, "text": "x"}', "no id as a string or integer"),
        ('{"_id": "d2"}', "no text as a string .looked for text, contents, body"),
        ('{"_id": "d2", "text": null}', "no text as a string"),
        ('{"_id": "d2", "text": ["x"]}', "no text as a string"),
        ('{"_id": "d2", "text": "x", "title": 5}', "the title is a int, not a string"),
    ],
)
def test_a_broken_json_line_is_named_after_the_good_ones_were_read(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "docs.jsonl", f'{{"_id": "d1", "text": "fine"}}\n\n{line}\n')
    documents = iter(read_corpus(path))
    assert next(documents) == Document("d1", "fine")
    with pytest.raises(FormatError, match=rf"docs\.jsonl:3: {reason}"):
        next(documents)


def generated() -> Iterator[Document]:
    yield from DOCUMENTS


@pytest.mark.parametrize(
    "source",
    [
        DOCUMENTS,
        tuple(DOCUMENTS),
        [json.loads(line) for line in BEIR.splitlines()],
        iter(DOCUMENTS),
        generated(),
        ({"id": d.id, "text": d.text, "title": d.title} for d in DOCUMENTS),
    ],
)
def test_any_iterable_can_be_read_twice(source: Any) -> None:
    corpus = read_corpus(source)
    assert list(corpus) == DOCUMENTS
    assert list(corpus) == DOCUMENTS
    assert read_corpus(corpus) is corpus


@pytest.mark.parametrize("source", [[("a", "one"), ("b", "two")], {"a": "one", "b": "two"}])
def test_pairs_and_mappings_are_ids_and_texts(source: Any) -> None:
    assert list(read_corpus(source)) == [Document("a", "one"), Document("b", "two")]


def test_plain_texts_get_their_position_as_id() -> None:
    assert list(read_corpus(["one", "two"])) == [Document("0", "one"), Document("1", "two")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([Document("a", "x"), Document("a", "y")], "the document id 'a' is used twice: ids must be unique"),
        ([("a", "x"), {"id": "a", "text": "y"}], "the document id 'a' is used twice"),
        ([Document("a", "x"), Document("", "y")], "document number 2 has an empty id"),
        ([Document(5, "x")], "the document id 5 is no string"),  # type: ignore[arg-type]
        ([], "the given documents holds no documents"),
        ([("a", "x"), 5], "document number 2 is a int: give lsr.Document"),
        ([("a", "x", "y")], "document number 1 is .*: a pair must be an id and a text, both strings"),
        ([{"text": "x"}], "document number 1: no id as a string or integer"),
    ],
)
def test_unacceptable_documents_are_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_corpus(source))


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(InputError, match="a corpus is a path, an ir-datasets id or an iterable, not int"):
        read_corpus(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"docs\.jsonl holds no documents"),
        ("\n\n", r"docs\.jsonl holds no documents"),
        (BEIR + BEIR, r"docs\.jsonl: the document id 'd1' is used twice"),
        (jsonl({"id": 1, "text": "x"}, {"id": "1", "text": "y"}), r"docs\.jsonl: the document id '1' is used twice"),
        (jsonl({"id": "", "text": "x"}), r"docs\.jsonl: document number 1 has an empty id"),
    ],
)
def test_unacceptable_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    corpus = read_corpus(write(tmp_path / "docs.jsonl", text))
    with pytest.raises(InputError, match=message):
        list(corpus)


@pytest.mark.parametrize("name", ["docs.csv", "docs.gz", "docs", "docs.jsonl.bz2"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    corpus = read_corpus(write(tmp_path / name, "x"))
    with pytest.raises(InputError, match=r"has no known ending: use \.jsonl or \.tsv, plain or \.gz"):
        list(corpus)


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no corpus\.jsonl or corpus\.jsonl\.gz: a BEIR folder holds"):
        read_corpus(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl' is neither a file, nor a folder, nor an ir-datasets id$"):
        read_corpus(tmp_path / "missing.jsonl")


def test_a_mistyped_ir_datasets_id_is_told_its_neighbours() -> None:
    with pytest.raises(InputError, match=r"'beir/scifct' is neither .*\(did you mean .*beir/scifact\b.*\?\)"):
        read_corpus("beir/scifct")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("queries.jsonl", jsonl({"_id": 1, "text": "what?", "metadata": {}}, {"_id": "q2", "text": "why?"})),
        ("queries.jsonl.gz", jsonl({"query_id": "1", "text": "what?"}, {"query_id": "q2", "text": "why?"})),
        ("queries.tsv", "1\twhat?\nq2\twhy?\n"),
        ("queries.tsv", "query_id\ttext\n1\twhat?\nq2\twhy?\n"),
        ("queries.tsv.gz", "qid\ttext\n1\twhat?\nq2\twhy?\n"),
    ],
)
def test_queries_are_read(tmp_path: Path, name: str, text: str) -> None:
    assert list(read_queries(write(tmp_path / name, text))) == [Query("1", "what?"), Query("q2", "why?")]


def test_a_missing_query_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"queries\.jsonl is missing: check the path"):
        list(read_queries(tmp_path / "queries.jsonl"))


@pytest.mark.parametrize(
    ("document", "content"),
    [
        (Document("a", "a cat", "Cats"), "Cats a cat"),
        (Document("a", "a cat"), "a cat"),
        (Document("a", "", "Cats"), "Cats"),
        (Document("a", "", ""), ""),
    ],
)
def test_content_joins_title_and_text(document: Document, content: str) -> None:
    assert document.content == content


SCIFACT = """
from lsr.eval.datasets import load_dataset
dataset = load_dataset("beir/scifact/test")
documents = list(dataset.corpus)
assert documents == list(dataset.corpus)
print(len(documents), len(dataset.queries), sum(map(len, dataset.qrels.values())))
print(documents[0].id, documents[0].title)
"""


def test_scifact_is_read_through_ir_datasets(tmp_path: Path) -> None:
    cache = SHARED / "ir_datasets"
    if not cache.is_dir():
        pytest.skip("no copy of the ir-datasets cache of beir/scifact beside this checkout: reading it needs one")
    home = tmp_path / "ir_datasets"
    for file in (file for file in cache.rglob("*") if file.is_file()):
        target = home / file.relative_to(cache)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)  # not the modes: the shared copy is read-only
    done = subprocess.run(
        [sys.executable, "-c", SCIFACT],
        env={**os.environ, "IR_DATASETS_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "5183 300 339",
        "4983 Microstructural development of human newborn cerebral white matter assessed in vivo by diffusion "
        "tensor magnetic resonance imaging.",
    ]


def test_the_reader_is_part_of_the_package_s_names() -> None:
    assert lsr.read_corpus is read_corpus


def test_the_first_document_of_an_id_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(jsonl({"id": "1", "text": "x"}, {"id": "2", "text": "z"}, {"id": "1", "text": "y"}))
    with pytest.warns(LsrWarning, match=r"1 documents of .*docs.jsonl were left out: their ids were used before"):
        documents = list(read_corpus(path, skip_repeats=True))
    assert [(document.id, document.text) for document in documents] == [("1", "x"), ("2", "z")]


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"_id": "d1", "text": "a \\ud83d"}\n')
    with pytest.raises(InputError, match=r"document 'd1' holds half a character"):
        list(read_corpus(path))


def test_repeated_query_ids_are_refused_or_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    with pytest.raises(
        InputError, match="queries.jsonl: the query id 'q1' is used twice: ids must be unique .*--skip-rep"
    ):
        list(read_queries(path))
    with pytest.warns(LsrWarning, match="1 queries of .*queries.jsonl were left out: their ids were used before"):
        assert list(read_queries(path, skip_repeats=True)) == [Query("q1", "a")]
