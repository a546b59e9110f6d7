"""Runs and qrels: in memory, and as files that come back exactly."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsr.errors import FormatError, InputError
from lsr.run import Ranking, Run, read_qrels, read_run


def ranking(*pairs: tuple[str, float]) -> Ranking:
    return Ranking([doc_id for doc_id, _ in pairs], np.array([score for _, score in pairs], dtype=np.float32))


def contents(run: Run) -> dict[str, tuple[list[str], list[float]]]:
    return {query_id: (doc_ids, scores.tolist()) for query_id, (doc_ids, scores) in run.items()}


# What a run file can carry: no white space, and no byte order mark, which opens a file.
IDS = st.text(min_size=1, max_size=6).filter(lambda text: text.split() == [text] and "\ufeff" not in text)
SCORES = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, 1.0, 1.5])


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Rankings of at least one document, many of them tied."""
    rankings = {}
    for query_id in draw(st.lists(IDS, min_size=1, max_size=3, unique=True)):
        doc_ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
        scores = draw(st.lists(SCORES, min_size=len(doc_ids), max_size=len(doc_ids)))
        rankings[query_id] = Ranking(doc_ids, np.sort(np.array(scores, dtype=np.float32))[::-1])
    return Run(rankings, "a-name")


@given(run=runs())
def test_a_run_comes_back_from_its_file_exactly(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / "run.trec"
    run.write(path)
    back = read_run(path)
    assert contents(back) == contents(run)
    assert list(back) == list(run)
    assert back.name == run.name
    assert all(scores.dtype == np.float32 for _, scores in back.values())


def test_the_file_has_six_columns_and_ranks_from_one(tmp_path: Path) -> None:
    run = Run({"q1": ranking(("d9", 2.5), ("d1", 0.1)), "q2": ranking(("d1", 1))}, "my  run")
    run.write(tmp_path / "run.trec")
    assert (tmp_path / "run.trec").read_text() == (
        "q1 Q0 d9 1 2.5 my_run\nq1 Q0 d1 2 0.100000001 my_run\nq2 Q0 d1 1 1 my_run\n"
    )


def test_ties_keep_the_order_of_the_rank_column_not_of_the_ids(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 3 1.0 x\nq Q0 z 1 1.0 x\nq Q0 m 2 1.0 x\nq Q0 best 4 2.0 x\n")
    assert read_run(path)["q"].doc_ids == ["best", "z", "m", "a"]


def test_a_query_that_found_nothing_has_no_line(tmp_path: Path) -> None:
    Run({"q1": ranking(("d", 1)), "q2": ranking()}).write(tmp_path / "run.trec")
    assert list(read_run(tmp_path / "run.trec")) == ["q1"]


def test_a_gz_run_file_with_blank_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress(b"\nq Q0 d 1 1.5 x\r\n\n"))
    assert contents(read_run(path)) == {"q": (["d"], [1.5])}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q Q0 d2 2 1.0", "a TREC run line has 6 fields, this one has 5"),
        ("q Q0 a title 2 1.0 x", "a TREC run line has 6 fields, this one has 7"),
        ("q Q0 d2 second 1.0 x", "rank must be an integer and score a number: .*'second'"),
        ("q Q0 d2 2 high x", "rank must be an integer and score a number: .*'high'"),
        ("q Q0 d2 2 nan x", "the score of document 'd2' is NaN"),
        ("q Q0 d1 2 0.5 x", "document 'd1' is listed twice for query 'q'"),
    ],
)
def test_a_bad_run_line_is_named_with_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 d1 1 2.0 x\n{line}\n")
    with pytest.raises(FormatError, match=rf"run\.trec:2: {reason}"):
        read_run(path)


def test_a_run_file_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("\n")
    with pytest.raises(FormatError, match=r"run\.trec holds no run line"):
        read_run(tmp_path / "run.trec")


@pytest.mark.parametrize("doc_id", ["two words", "", " lead", "trail ", "tab\tbed", "line\nend", "no\u00a0break"])
def test_an_id_that_the_format_cannot_carry_leaves_no_file(tmp_path: Path, doc_id: str) -> None:
    run = Run({"q": ranking(("fine", 2), (doc_id, 1))})
    with pytest.raises(InputError, match=r"'q' / .* cannot be written .*: ids must be non-empty and without white"):
        run.write(tmp_path / "run.trec")
    assert list(tmp_path.iterdir()) == []


def test_a_query_id_that_the_format_cannot_carry_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("old")
    with pytest.raises(InputError, match="'q 1' / 'd'"):
        Run({"q 1": ranking(("d", 1))}).write(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("run.trec", "old")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Ranking(["a", "b"], np.array([1], dtype=np.float32)), "query 'q' has 2 documents but 1 scores"),
        (ranking(("a", 1), ("b", 2)), "query 'q' is not ranked: scores must descend"),
        (ranking(("a", 1), ("b", float("nan"))), "query 'q' is not ranked: .* not be NaN"),
        (ranking(("a", 2), ("a", 1)), "query 'q' ranks a document twice"),
    ],
)
def test_what_is_no_ranking_is_refused(bad: Ranking, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Run({"q": bad})


def test_a_run_is_a_mapping_of_its_own() -> None:
    rankings = {"q": ranking(("a", 1))}
    run = Run(rankings)
    rankings.clear()
    assert len(run) == 1
    assert "q" in run
    assert "z" not in run


def test_self_matches_are_dropped_with_their_scores() -> None:
    run = Run({"1": ranking(("1", 9), ("2", 8)), "2": ranking(("1", 7), ("3", 6)), "3": ranking(("3", 5))}, "n")
    without = run.without_self_matches()
    assert contents(without) == {"1": (["2"], [8]), "2": (["1", "3"], [7, 6]), "3": ([], [])}
    assert without.name == "n"
    assert run["1"].doc_ids == ["1", "2"]


def test_truncated_keeps_the_first_k() -> None:
    run = Run({"a": ranking(("1", 3), ("2", 2), ("3", 1)), "b": ranking(("1", 1)), "c": ranking()}, "n")
    assert contents(run.truncated(2)) == {"a": (["1", "2"], [3, 2]), "b": (["1"], [1]), "c": ([], [])}
    assert run.truncated(2).name == "n"


BEIR = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t1\n"
TREC = "q1 0 d1 2\nq1 0 d2 0\n\nq2 0 d1 1\n"


@pytest.mark.parametrize("text", [BEIR, TREC, BEIR.replace("\n", "\r\n"), "\ufeff" + BEIR])
@pytest.mark.parametrize("name", ["qrels.tsv", "qrels.tsv.gz"])
def test_both_forms_of_qrels_are_read(tmp_path: Path, name: str, text: str) -> None:
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_qrels(tmp_path / name) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q1\td1\trelevant", "the grade 'relevant' is not an integer"),
        ("q1\td1\t0.5", "the grade '0.5' is not an integer"),
        ("q1\td1", r"a qrels line has 3 \(BEIR\) or 4 \(TREC\) fields, not 2"),
        ("q1 0 d1 1 5", r"a qrels line has 3 \(BEIR\) or 4 \(TREC\) fields, not 5"),
        ("query-id\tcorpus-id\tscore", "the grade 'score' is not an integer"),
    ],
)
def test_a_bad_judgment_is_named_with_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(FormatError, match=rf"test\.tsv:2: {reason}"):
        read_qrels(tmp_path / "test.tsv")


@pytest.mark.parametrize("text", ["", "query-id\tcorpus-id\tscore\n"])
def test_qrels_without_judgments_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "test.tsv").write_text(text)
    with pytest.raises(FormatError, match=r"test\.tsv holds no judgments"):
        read_qrels(tmp_path / "test.tsv")


def test_tab_separated_qrels_keep_spaces_in_ids(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\td 1\t2\n")
    assert read_qrels(tmp_path / "test.tsv") == {"q 1": {"d 1": 2}}
