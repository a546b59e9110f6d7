"""Hard negatives: window, margins, teacher, sampling; files that resume; the command."""

import gzip
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

import lsr
from lsr import cli_data
from lsr.errors import FormatError, InputError, LsrWarning
from lsr.run import Ranking, Run
from lsr.training.mine import QUERIES_AT_A_TIME, MiningOptions, MiningReport, mine, mine_to_file, stream_run
from lsr.training.rows import read_rows
from lsr.training.teachers import DenseModel


def ranking(scores: dict[str, float]) -> Ranking:
    return Ranking(list(scores), np.array(list(scores.values()), dtype=np.float32))


RUN = Run({"q": ranking({f"d{i}": 20.0 - i for i in range(1, 11)})})  # d1: 19, d2: 18, …, d10: 10
QRELS = {"q": {"d3": 1, "d4": 0}}


def negatives(options: MiningOptions, run: Run = RUN, qrels=QRELS, **more) -> list[str]:
    rows = list(mine(run, qrels, options, **more))
    return rows[0].negatives if rows else []


def test_the_window_counts_ranks_from_one_and_leaves_positives_out():
    options = MiningOptions(ranks=(2, 5), negatives=None)
    (row,) = mine(RUN, QRELS, options)
    assert row.negatives == ["d2", "d4", "d5"]  # grade 0 is no positive
    assert row.positives == ["d3"]
    assert row.scores == {"d3": 17, "d2": 18, "d4": 16, "d5": 15}


def test_margins_are_held_against_the_positive():
    everything = {"ranks": (1, 10), "negatives": None}
    assert negatives(MiningOptions(**everything, margin=0)) == [f"d{i}" for i in range(4, 11)]
    assert negatives(MiningOptions(**everything, margin=5)) == ["d8", "d9", "d10"]  # ≤ 12
    assert negatives(MiningOptions(**everything, relative_margin=0.2)) == ["d7", "d8", "d9", "d10"]  # ≤ 13.6
    below = Run({"q": ranking({"a": -1.0, "d3": -2.0, "b": -2.1, "c": -3.0})})
    assert negatives(MiningOptions(**everything, relative_margin=0.2), below) == ["c"]  # ≤ −2.4


def test_the_lowest_of_several_positives_counts():
    qrels = {"q": {"d3": 1, "d8": 2}}
    assert negatives(MiningOptions(ranks=(1, 10), negatives=None, margin=0), qrels=qrels) == ["d9", "d10"]


def test_a_positive_out_of_reach_counts_as_the_last_or_as_what_is_told():
    options = MiningOptions(ranks=(1, 10), negatives=None, margin=0)
    report = MiningReport()
    qrels = {"q": {"far": 1}}
    assert negatives(options, qrels=qrels, report=report) == ["d10"]
    assert (report.queries, report.positives_found, report.dropped) == (1, 0, {"margin": 9})

    def told(query_ids, lists):
        assert (query_ids, lists) == (["q"], [["far"]])
        return [np.array([12.5], dtype=np.float32)]

    assert report.unscored == 1
    assert "1 rows have a positive without a score" in str(report)
    assert "lsr distill" in str(report)
    report = MiningReport()
    (row,) = mine(RUN, qrels, options, positive_scores=told, report=report)
    assert report.unscored == 0
    assert row.negatives == ["d8", "d9", "d10"]
    assert row.scores == {"far": 12.5, "d8": 12, "d9": 11, "d10": 10}


def test_rankings_are_streamed():
    """However many queries there are, the rankings of a few hundred are alive at a time."""
    alive = most = 0

    def forget():
        nonlocal alive
        alive -= 1

    def rankings():
        nonlocal alive, most
        for i in range(5 * QUERIES_AT_A_TIME):
            one = ranking({f"d{j}": 20.0 - j for j in range(1, 11)})
            weakref.finalize(one.scores, forget)
            alive += 1
            most = max(most, alive)
            yield f"q{i}", one

    qrels = {f"q{i}": {"d3": 1} for i in range(5 * QUERIES_AT_A_TIME)}
    count = sum(1 for _ in mine(rankings(), qrels, MiningOptions(ranks=(1, 10))))
    assert count == 5 * QUERIES_AT_A_TIME
    assert most <= 2 * QUERIES_AT_A_TIME + 2


def test_a_teacher_drops_what_it_takes_for_a_positive():
    asked = []

    def teacher(query_ids, lists):
        asked.append((list(query_ids), lists))
        table = {"d3": 10.0, "d1": 9.6, "d2": 9.5, "d5": 9.4}
        return [np.array([table.get(doc_id, 0) for doc_id in ids], dtype=np.float32) for ids in lists]

    report = MiningReport()
    options = MiningOptions(ranks=(1, 5), negatives=None, teacher_ratio=0.95)
    assert negatives(options, teacher=teacher, report=report) == ["d2", "d4", "d5"]
    assert asked == [(["q"], [["d3", "d1", "d2", "d4", "d5"]])]
    assert report.dropped == {"teacher": 1}
    with pytest.raises(InputError, match="go together"):
        list(mine(RUN, QRELS, options))


def test_copies_of_a_positive_and_the_query_itself_are_dropped():
    texts = {"d3": "same", "d5": "same"}
    options = MiningOptions(ranks=(1, 6), negatives=None)
    assert negatives(options, text_of=lambda doc_id: texts.get(doc_id, doc_id)) == ["d1", "d2", "d4", "d6"]
    own = Run({"d2": RUN["q"]})
    options = MiningOptions(ranks=(1, 3), negatives=None, drop_self=True)
    assert negatives(options, own, {"d2": {"d3": 1}}) == ["d1"]


def test_queries_without_negatives_or_positives_are_reported():
    run = Run({"q": RUN["q"], "short": ranking({"d3": 2.0}), "nothing": ranking({}), "unjudged": RUN["q"]})
    qrels = {**QRELS, "short": {"d3": 1}, "nothing": {"d3": 1}, "unjudged": {"d3": 0}}
    report = MiningReport()
    rows = list(mine(run, qrels, MiningOptions(ranks=(1, 9), negatives=2, margin=0), report=report))
    assert [row.query_id for row in rows] == ["q"]
    assert (report.queries, report.without_negatives, report.unjudged) == (3, 2, 1)
    assert (report.documents, report.survived, report.kept) == (8, 6, 2)
    assert "2 queries without a surviving negative got no row (such as 'short', 'nothing')" in str(report)


def test_sampling_depends_on_seed_and_query_id_only():
    run = {f"q{i}": RUN["q"] for i in range(40)}
    qrels = {query_id: {"d3": 1} for query_id in run}
    options = MiningOptions(ranks=(1, 10), negatives=3)
    rows = {row.query_id: row for row in mine(run, qrels, options)}
    for row in rows.values():
        assert len(row.negatives) == 3
        assert row.negatives == sorted(row.negatives, key=lambda d: int(d[1:]))
        assert row.scores.keys() == {*row.negatives, "d3"}
    backwards = dict(reversed(run.items()))
    assert {row.query_id: row for row in mine(backwards, qrels, options)} == rows
    assert {d for row in rows.values() for d in row.negatives} == {f"d{i}" for i in range(1, 11)} - {"d3"}
    other = [row.negatives for row in mine(run, qrels, MiningOptions(ranks=(1, 10), negatives=3, seed=1))]
    assert other != [row.negatives for row in rows.values()]


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(-5, 20), max_size=12),
    positives=st.sets(st.integers(0, 15), min_size=1, max_size=3),
    first=st.integers(1, 6),
    width=st.integers(0, 8),
    margin=st.none() | st.integers(0, 6),
    ratio=st.none() | st.sampled_from([0.0, 0.25, 0.5]),
)
def test_mining_equals_its_plain_twin(scores, positives, first, width, margin, ratio):
    ranked = sorted(scores, reverse=True)
    run = Run({"q": ranking({str(i): float(score) for i, score in enumerate(ranked)})})
    qrels = {"q": {str(i): 1 for i in sorted(positives)}}
    options = MiningOptions(ranks=(first, first + width), negatives=None, margin=margin, relative_margin=ratio)
    lowest = min((ranked[p] if p < len(ranked) else ranked[-1] for p in positives), default=0) if ranked else 0
    expected = [
        str(place)
        for place, score in enumerate(ranked)
        if first <= place + 1 <= first + width
        and place not in positives
        and (margin is None or score <= lowest - margin)
        and (ratio is None or score <= lowest - ratio * abs(lowest))
    ]
    assert negatives(options, run, qrels) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranks": (0, 5)}, "rank window 0-5"),
        ({"ranks": (6, 5)}, "rank window 6-5"),
        ({"negatives": 0}, "negatives must be at least 1"),
        ({"margin": -1}, "margin must be a number from 0"),
        ({"relative_margin": 1.5}, "relative_margin must be a number from 0 to 1"),
        ({"teacher_ratio": float("nan")}, "teacher_ratio must be"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        MiningOptions(**fields)


# --- run files -----------------------------------------------------------------------------------


def test_a_run_file_is_streamed_as_it_is_read(tmp_path):
    run = Run({"b": ranking({"x": 2.0, "y": 2.0, "z": 1.5}), "a": ranking({"y": 1.0})})
    run.write(tmp_path / "run.txt")
    streamed = dict(stream_run(tmp_path / "run.txt"))
    whole = lsr.read_run(tmp_path / "run.txt")
    assert list(streamed) == ["b", "a"]
    for query_id in run:
        assert streamed[query_id].doc_ids == whole[query_id].doc_ids == run[query_id].doc_ids
        assert streamed[query_id].scores.tolist() == run[query_id].scores.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 2.0\n", "run:1: a TREC run line has 6 fields"),
        ("q Q0 d 1 x n\n", "run:1: rank must be an integer and score a number"),
        ("q Q0 d 1 nan n\n", "run:1: the score of document 'd' is NaN"),
        ("q Q0 d 1 2 n\np Q0 d 1 2 n\nq Q0 e 2 1 n\n", "run:3: the lines of query 'q' are not together"),
        ("q Q0 d 1 2 n\nq Q0 d 2 1 n\n", "a document is listed twice for query 'q'"),
        ("\n", "holds no run line"),
    ],
)
def test_a_broken_run_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "run").write_text(text)
    with pytest.raises(FormatError, match=message):
        list(stream_run(tmp_path / "run"))


# --- resuming ------------------------------------------------------------------------------------

MANY = {f"q{i}": RUN["q"] for i in range(700)}
MANY_QRELS = {query_id: {"d3": 1} for query_id in MANY}


def search(done: int):
    return iter(list(MANY.items())[done:])


@pytest.mark.parametrize("name", ["mined.jsonl", "mined.jsonl.gz"])
def test_interrupted_mining_goes_on_where_it_stopped(tmp_path, name):
    options = MiningOptions(ranks=(1, 10), negatives=2)
    report = mine_to_file(tmp_path / "whole.jsonl", search, MANY_QRELS, options)
    out = tmp_path / name

    def interrupted(done: int):
        for i, pair in enumerate(search(done)):
            if i == 600:
                raise KeyboardInterrupt
            yield pair

    with pytest.raises(KeyboardInterrupt):
        mine_to_file(out, interrupted, MANY_QRELS, options)
    assert not out.exists()
    with pytest.raises(InputError, match="start of another mining"):
        mine_to_file(out, search, MANY_QRELS, MiningOptions(ranks=(1, 10), negatives=3))
    asked = []

    def rest(done: int):
        asked.append(done)
        return search(done)

    with (tmp_path / f".{name}.unfinished").open("a") as file:
        file.write('{"query_id": "half')  # what was being written when it stopped
    assert mine_to_file(out, rest, MANY_QRELS, options) == report
    assert asked == [512]
    text = out.read_bytes()
    assert (gzip.decompress(text) if name.endswith(".gz") else text) == (tmp_path / "whole.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {name, "whole.jsonl"}
    assert report.queries == 700


def test_two_minings_to_one_file_do_not_mix(tmp_path):
    options, out = MiningOptions(ranks=(1, 9), negatives=2), tmp_path / "mined.jsonl"

    def search(done: int):
        with pytest.raises(InputError, match="another process is mining to .*mined.jsonl: wait for it"):
            mine_to_file(out, lambda done: [], MANY_QRELS, options)
        return list(MANY.items())[done:]

    report = mine_to_file(out, search, MANY_QRELS, options)
    assert report.queries == len(list(read_rows(out))) == 700
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


# --- the command ---------------------------------------------------------------------------------


def run_command(*arguments: str) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    cli_data.add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args(arguments)
    options.command(options)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "qrels").mkdir(parents=True)
    words = ["cat", "dog", "fish", "river", "bank", "loan", "boat", "tree"]
    documents = {f"d{i}": " ".join(words[j % 8] for j in range(i, i + 4)) for i in range(8)} | {
        "copy": "cat dog fish river"
    }
    queries = {f"q{i}": f"{words[i]} {words[(i + 1) % 8]}" for i in range(8)}
    for name, records in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": i, "text": text}) + "\n" for i, text in records.items())
        )
    lines = [f"q{i}\td{i}\t1\n" for i in range(8)]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def test_lsr_mine_searches_and_keeps_scores(home, tmp_path, capsys):
    out = tmp_path / "mined.jsonl"
    run_command("mine", str(home), "--model", "bm25", "--ranks", "1-9", "--negatives", "0", "--out", str(out))
    rows = [row for _, row in read_rows(out)]
    assert [row.query_id for row in rows] == [f"q{i}" for i in range(8)]
    retriever = lsr.Retriever.build(home, lsr.Bm25())
    queries = [lsr.Query(f"q{i}", json.loads(line)["text"]) for i, line in enumerate((home / "queries.jsonl").open())]
    found = retriever.run(queries, 9, exact=True)
    for row in rows:
        expected = dict(zip(*found[row.query_id], strict=True))
        dropped = {"copy"} if row.query_id == "q0" else set()  # the text of d0
        assert set(row.negatives) == expected.keys() - set(row.positives) - dropped
        assert row.scores == pytest.approx({d: float(expected[d]) for d in row.scores}, abs=1e-5)
        assert row.scores.keys() == {*row.positives, *row.negatives}
    assert "1 by a positive's text" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"home", "mined.jsonl"}


def test_lsr_mine_scores_positives_out_of_reach(home, tmp_path):
    for name, ranks in (("deep", "1-9"), ("flat", "1-1")):
        run_command("mine", str(home), "--model", "bm25", "--ranks", ranks, "--out", str(tmp_path / f"{name}.jsonl"))
    deep, flat = ({row.query_id: row for _, row in read_rows(tmp_path / f"{name}.jsonl")} for name in ("deep", "flat"))
    assert flat
    for query_id, row in flat.items():
        assert row.scores[row.positives[0]] == pytest.approx(deep[query_id].scores[row.positives[0]], abs=1e-5)


def test_lsr_mine_takes_a_run_an_index_and_a_teacher(home, tmp_path):
    retriever = lsr.Retriever.build(home, lsr.Bm25(), tmp_path / "index")
    queries = [lsr.Query(f"q{i}", json.loads(line)["text"]) for i, line in enumerate((home / "queries.jsonl").open())]
    retriever.run(queries, 9, exact=True).write(tmp_path / "run.txt")
    common = ["mine", str(home), "--ranks", "1-9", "--negatives", "0"]
    run_command(*common, "--run", str(tmp_path / "run.txt"), "--out", str(tmp_path / "a.jsonl"))
    run_command(*common, "--index", str(tmp_path / "index"), "--out", str(tmp_path / "b.jsonl"))
    a, b = ([row for _, row in read_rows(tmp_path / f"{name}.jsonl")] for name in "ab")
    assert [row[:3] for row in a] == [row[:3] for row in b]
    filtered = ["--teacher", "bm25", "--teacher-ratio", ".8"]
    run_command(*common, "--index", str(tmp_path / "index"), *filtered, "--out", str(tmp_path / "c.jsonl"))
    for _, row in read_rows(tmp_path / "c.jsonl"):
        expected = next(other for other in b if other.query_id == row.query_id)
        limit = 0.8 * expected.scores[row.positives[0]]
        assert row.negatives == [d for d in expected.negatives if expected.scores[d] <= limit]


def test_lsr_mine_by_a_dense_model_ranks_by_its_dot_products(home, checkpoint, tmp_path):
    out = tmp_path / "dense.jsonl"
    common = ["mine", str(home), "--dense", f"dense-mean-cosine:{checkpoint}", "--device", "cpu"]
    run_command(*common, "--ranks", "1-9", "--negatives", "0", "--out", str(out))
    model = DenseModel(checkpoint, pooling="mean", normalize=True, device="cpu")
    texts = {name: [json.loads(line) for line in (home / f"{name}.jsonl").open()] for name in ("corpus", "queries")}
    documents, queries = (model.encode([record["text"] for record in texts[name]]) for name in ("corpus", "queries"))
    rows = [row for _, row in read_rows(out)]
    assert [row.query_id for row in rows] == [record["_id"] for record in texts["queries"]]
    for row, query in zip(rows, queries, strict=True):
        expected = dict(zip([record["_id"] for record in texts["corpus"]], documents @ query, strict=True))
        assert row.scores == pytest.approx({d: float(expected[d]) for d in row.scores}, abs=2e-3)  # kept in halves
        ranked = sorted(row.negatives, key=lambda d: -row.scores[d])
        assert row.negatives == ranked
    run_command(*common, "--ranks", "1-1", "--out", str(tmp_path / "flat.jsonl"))
    for _, row in read_rows(tmp_path / "flat.jsonl"):
        assert set(row.positives) <= row.scores.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name who searches"),
        (["--model", "bm25", "--ranks", "5"], "--ranks '5' is no rank window"),
        (["--model", "bm25", "--teacher-ratio", ".9"], "--teacher-ratio needs --teacher"),
        (["--run", "x", "--model", "bm25"], "--run says already who ranks: leave --model out"),
        (["--dense", "dense:x", "--index", "y"], "--dense says already who ranks: leave --index out"),
        (["--run", "x", "--dense", "dense:x"], "--run says already who ranks: leave --dense out"),
        (["--dense", "bm25"], "bm25 is no dense model"),
        (["--run", "x", "--idf", "y", "--dtype", "float16"], "--idf, --dtype without --model says nothing"),
        (["--vectors", "x"], "--vectors needs --model"),
        (["--model", "bm25", "--split", "none"], "none.tsv is missing"),
    ],
)
def test_lsr_mine_refuses_what_does_not_go_together(home, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run_command("mine", str(home), "--out", str(tmp_path / "x.jsonl"), *arguments)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real collections (../shared) are not on this machine")
def test_real_negatives_are_no_positives(tmp_path):
    home = SHARED / "data" / "cranfield"
    out = tmp_path / "mined.jsonl.gz"
    with pytest.warns(LsrWarning, match="2 of 1,400 documents have no term"):
        run_command("mine", str(home), "--split", "test", "--model", "bm25", "--ranks", "1-50", "--out", str(out))
    qrels = lsr.read_qrels(home / "qrels" / "test.tsv")
    rows = [row for _, row in read_rows(out)]
    assert len(rows) > 180
    for row in rows:
        assert set(row.positives) == {doc_id for doc_id, grade in qrels[row.query_id].items() if grade >= 1}
        assert not set(row.positives) & set(row.negatives)
        assert 1 <= len(row.negatives) <= 24
