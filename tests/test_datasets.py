"""Test collections: folders, splits, ids of ir-datasets, and queries that are documents."""

import gzip
import json
from pathlib import Path

import pytest

from lsr.errors import FormatError, InputError
from lsr.eval.datasets import load_dataset, queries_are_documents
from lsr.records import Document, Query


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def qrels(*lines: str) -> str:
    return "query-id\tcorpus-id\tscore\n" + "".join(f"{line}\n" for line in lines)


@pytest.fixture(params=["", ".gz"], ids=["plain", "gz"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A collection of three queries, of which two are judged in test and one in dev."""
    folder, end = tmp_path / "pets", request.param
    write(folder / f"corpus.jsonl{end}", '{"_id": "d1", "title": "A", "text": "cat"}\n{"_id": "d2", "text": "dog"}\n')
    texts = {"q3": "bird?", "q1": "cat?", "q2": "dog?"}
    write(folder / f"queries.jsonl{end}", "".join(json.dumps({"_id": q, "text": t}) + "\n" for q, t in texts.items()))
    write(folder / "qrels" / f"test.tsv{end}", qrels("q1\td1\t2", "q1\td2\t0", "q3\td2\t1"))
    write(folder / "qrels" / f"dev.tsv{end}", qrels("q2\td2\t1"))
    return folder


def test_the_test_split_is_loaded_with_its_judged_queries_in_file_order(folder: Path) -> None:
    dataset = load_dataset(folder)
    assert dataset.name == "pets/test"
    assert list(dataset.corpus) == [Document("d1", "cat", "A"), Document("d2", "dog")]
    assert dataset.queries == [Query("q3", "bird?"), Query("q1", "cat?")]
    assert dataset.qrels == {"q1": {"d1": 2, "d2": 0}, "q3": {"d2": 1}}


def test_another_split_is_loaded_when_asked_for(folder: Path) -> None:
    dataset = load_dataset(str(folder), "dev")
    assert dataset.name == "pets/dev"
    assert dataset.queries == [Query("q2", "dog?")]


def test_a_split_of_any_name_is_loaded(folder: Path) -> None:
    write(folder / "qrels" / "my-split.tsv", qrels("q2\td2\t1"))
    assert load_dataset(folder, "my-split").queries == [Query("q2", "dog?")]


def test_a_missing_split_is_refused_with_those_that_are_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"pets has no split 'train': it has dev, test \(--split\)"):
        load_dataset(folder, "train")


def test_a_collection_without_qrels_is_refused(folder: Path) -> None:
    for path in (folder / "qrels").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="pets has no split 'test': it has no qrels at all"):
        load_dataset(folder)


def test_a_collection_without_queries_is_refused(folder: Path) -> None:
    next(folder.glob("queries*")).unlink()
    with pytest.raises(InputError, match=r"pets has no queries\.jsonl or queries\.jsonl\.gz"):
        load_dataset(folder)


def test_a_collection_without_a_corpus_is_refused(folder: Path) -> None:
    next(folder.glob("corpus*")).unlink()
    with pytest.raises(InputError, match=r"pets has no corpus\.jsonl or corpus\.jsonl\.gz"):
        load_dataset(folder)


def test_judged_queries_without_text_are_counted_and_one_is_named(folder: Path) -> None:
    write(folder / "qrels" / "train.tsv", qrels("q2\td2\t1", "q9\td1\t1", "q8\td1\t1"))
    with pytest.raises(InputError, match=r"pets: 2 judged queries have no text \(such as 'q8'\)"):
        load_dataset(folder, "train")


def test_broken_qrels_are_named_with_file_and_line(folder: Path) -> None:
    write(folder / "qrels" / "train.tsv", qrels("q2\td2\thigh"))
    with pytest.raises(FormatError, match=r"train\.tsv:2: the grade 'high' is not an integer"):
        load_dataset(folder, "train")


def test_an_unknown_name_is_refused_with_its_neighbours() -> None:
    with pytest.raises(InputError, match=r"'beir/scifct' is neither a file, .*did you mean .*beir/scifact\b"):
        load_dataset("beir/scifct")


def test_an_ir_datasets_id_without_qrels_names_its_splits() -> None:
    with pytest.raises(InputError, match="'beir/scifact' has no documents, queries or qrels: try beir/scifact/test or"):
        load_dataset("beir/scifact")


def test_a_split_of_an_ir_datasets_id_is_part_of_its_name() -> None:
    with pytest.raises(InputError, match=r"'beir/scifact/dev' is neither .*beir/scifact/test"):
        load_dataset("beir/scifact", "dev")


# --- queries that are documents ----------------------------------------------------------------


def by_id(*documents: Document) -> dict[str, Document]:
    return {document.id: document for document in documents}


ARGUMENTS = [Query("a1", "Cats are better"), Query("a2", "Dogs are better")]


def test_queries_that_stand_in_the_corpus_are_found() -> None:
    documents = by_id(Document("a1", "Cats  are better\n"), Document("a2", "dogs are better"))
    assert queries_are_documents(ARGUMENTS, documents)


def test_a_title_may_be_part_of_the_query_or_not() -> None:
    assert queries_are_documents(ARGUMENTS, by_id(Document("a1", "are better", "Cats")))
    assert queries_are_documents(ARGUMENTS, by_id(Document("a2", "Dogs are better", "On pets")))


def test_equal_ids_with_other_texts_prove_nothing() -> None:
    documents = by_id(Document("a1", "the boundary layer"), Document("a2", "of a flat plate"))
    assert not queries_are_documents(ARGUMENTS, documents)


def test_queries_that_share_no_id_are_no_documents() -> None:
    assert not queries_are_documents(ARGUMENTS, {})
    assert not queries_are_documents(ARGUMENTS, by_id(Document("d1", "Cats are better")))
    assert not queries_are_documents([], {})


def test_half_of_the_shared_ids_decide() -> None:
    queries = [*ARGUMENTS, Query("a3", "Birds"), Query("a4", "not in the corpus")]
    same, other = Document("a1", "cats are better"), Document("a2", "something else")
    assert queries_are_documents(queries, by_id(same, other))
    assert not queries_are_documents(queries, by_id(same, other, Document("a3", "something else")))
