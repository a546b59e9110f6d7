"""The planner: settings tried on a sample, and the cheapest that reaches a recall."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

import lsr
from lsr.errors import FormatError, InputError
from lsr.index import planner
from lsr.index.planner import EXACT, Plan, Setting, recalls_of
from lsr.index.search import Searcher

RNG = np.random.default_rng(3)
DOCUMENTS = csr_array((RNG.exponential(size=(400, 60)) * (RNG.random((400, 60)) < 0.2)).astype(np.float32))
QUERIES = csr_array((RNG.exponential(size=(30, 60)) * (RNG.random((30, 60)) < 0.2)).astype(np.float32))

FAST = Setting("lists", {"query_mass": 0.5, "candidates_per_hit": 2}, recall=0.91, error=0.01, microseconds=10)
GOOD = Setting("lists", {"query_mass": 0.8, "candidates_per_hit": 5}, recall=0.97, error=0.01, microseconds=20)
SLOW = Setting("lists", {"query_mass": 0.9, "candidates_per_hit": 20}, recall=1.0, error=0.0, microseconds=90)
PLAN = Plan("given", 30, (Setting("exact", {}, microseconds=50), FAST, GOOD, SLOW))


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(planner, "SMALL", 10)


@pytest.mark.parametrize(
    ("recall", "chosen"),
    [(0.5, "fast"), (0.9, "fast"), (0.91, "good"), (0.96, "good"), (0.97, "exact"), (1.0, "exact")],
)
def test_the_cheapest_setting_that_reached_the_recall_is_taken(recall, chosen):
    assert PLAN.choose(recall) == {"fast": FAST, "good": GOOD, "exact": PLAN.settings[0]}[chosen]


def test_the_explanation_names_what_was_tried_and_marks_what_is_taken():
    lines = PLAN.explain(0.95).splitlines()
    assert lines[0] == "recall 0.95 wanted; tried on 30 queries given, 10 hits, one thread:"
    assert lines[2].startswith("→ lists (query_mass=0.8, candidates_per_hit=5): recall 0.9700 ± 0.0100 in 20 µs")
    assert lines[1].endswith("(too low)")
    assert len(lines) == 5


def test_every_setting_is_tried_and_its_recall_is_what_search_reaches(small_is_large, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "FIRST", 7)
    monkeypatch.setattr(planner, "CLEARLY", 1e9)  # nothing is that much faster
    options = lsr.BuildOptions(seismic=True)
    lsr.Index.build(DOCUMENTS, path=tmp_path / "x.index", options=options, sample=QUERIES)
    index = lsr.Index.open(tmp_path / "x.index")
    assert index.plan.sample == "given"
    assert index.plan.n_queries == 30
    regimes = [setting.regime for setting in index.plan.settings]
    assert regimes == ["exact"] + 30 * ["lists"] + 9 * ["blocks"]
    exact = index._searcher.exact(QUERIES, 10, 1)
    for setting in index.plan.settings:
        found = setting.run(index._searcher, QUERIES, 10, 1)
        assert setting.recall == pytest.approx(recalls_of(exact, found).mean(), abs=1e-4)
        assert setting.microseconds > 0
    assert max(setting.recall for setting in index.plan.settings[1:]) > min(
        setting.recall for setting in index.plan.settings[1:]
    )


def test_settings_that_others_beat_on_a_part_are_not_tried_further(small_is_large, monkeypatch):
    """Made up: a setting reaches its mass, and takes its candidates."""
    monkeypatch.setattr(planner, "FIRST", 7)
    asked: dict[str, int] = {}

    def ask(trial, searcher, queries, truth):
        knobs, n = trial.setting.knobs, queries.shape[0]
        asked[str(knobs)] = asked.get(str(knobs), 0) + n
        trial.recall = knobs.get("query_mass", 1.0)
        trial.recalls += n * [trial.recall]
        trial.seconds += n * knobs.get("candidates_per_hit", 2.5)

    monkeypatch.setattr(planner._Trial, "ask", ask)
    plan = lsr.Index.build(DOCUMENTS, sample=QUERIES).plan
    by_mass = [{"query_mass": mass, "candidates_per_hit": 1.2} for mass in planner.QUERY_MASSES]
    as_much = [{"query_mass": 0.9, "candidates_per_hit": per_hit} for per_hit in (1.5, 2)]  # no reason yet to leave it
    assert [
        setting.knobs for setting in plan.settings[1:]
    ] == by_mass + as_much  # 3 and 5 take longer than exact search
    assert plan.choose(0.9).knobs == by_mass[-1]
    assert plan.choose(0.95) == plan.settings[0]
    assert sorted(asked.values()) == 22 * [7] + 9 * [30]


def test_a_named_recall_searches_as_the_plan_says(small_is_large):
    built = lsr.Index.build(DOCUMENTS, sample=QUERIES)
    index = lsr.Index(replace(built.manifest, plan=PLAN.to_dict()), built._segment, built._ids)
    by_recall = index.search(QUERIES, 10, recall=0.9)
    by_knobs = index.search(QUERIES, 10, query_mass=0.5, candidates=20)
    np.testing.assert_array_equal(by_recall.rows, by_knobs.rows)
    np.testing.assert_array_equal(
        index.search(QUERIES, 10, recall=1.0).rows, index.search(QUERIES, 10, exact=True).rows
    )
    assert "→ lists (query_mass=0.5" in index.explain_plan(0.9)


def test_sample_queries_are_made_of_terms_of_documents(small_is_large, monkeypatch):
    monkeypatch.setattr(planner, "QUERY_TERMS", 3)
    index = lsr.Index.build(DOCUMENTS, options=lsr.BuildOptions(plan_queries=25))
    assert (index.plan.sample, index.plan.n_queries) == ("documents", 25)
    queries = planner.queries_of_documents(Searcher(index._segment), 25, seed=0)
    assert queries.shape == (25, 60)
    dense = DOCUMENTS.toarray()
    for query in queries.toarray():
        (terms,) = (np.flatnonzero(query),)
        assert len(terms) == 3
        assert any(all(row[terms] == query[terms]) for row in dense)
    again = planner.queries_of_documents(Searcher(index._segment), 25, seed=0)
    assert (again != queries).nnz == 0


def test_a_sample_of_another_vocabulary_is_refused():
    others = csr_array(([1.0], ([0], [59])), shape=(1, 60), dtype=np.float32)
    some = DOCUMENTS.tolil()
    some[:, 59] = 0
    with pytest.raises(InputError, match="no query of the sample shares a term with the documents"):
        lsr.Index.build(csr_array(some), sample=others)


def test_a_small_index_and_an_index_without_a_plan_search_exactly():
    for options in (lsr.BuildOptions(), lsr.BuildOptions(plan_queries=0)):
        index = lsr.Index.build(DOCUMENTS, options=options)
        assert index.plan.choose(0.5) == EXACT
        assert "exact: nothing was tried" in index.explain_plan()


def test_the_clock_of_the_planner_is_that_of_its_thread(small_is_large, monkeypatch):
    """What another process takes of the core counts for no setting."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(planner.time, "thread_time", lambda: next(ticks) * 1e-3)
    index = lsr.Index.build(DOCUMENTS, sample=QUERIES)
    assert {setting.microseconds for setting in index.plan.settings} == {round(2e3 / 30, 1)}  # two parts


def test_recall_counts_documents_tied_with_the_last():
    truth = (np.array([[3.0, 2.0, 2.0]]), np.array([[0, 1, 2]]), np.array([3]))
    found = (np.array([[3.0, 2.0, 1.0]]), np.array([[0, 7, 8]]), np.array([3]))
    assert recalls_of(truth, found).tolist() == [pytest.approx(2 / 3)]
    none = (np.array([[-np.inf]]), np.array([[-1]]), np.array([0]))
    assert recalls_of(none, none).tolist() == [1.0]


@pytest.mark.parametrize("recall", [0, 1.1, "0.9", True])
def test_a_recall_out_of_range_is_refused(recall):
    index = lsr.Index.build(DOCUMENTS)
    with pytest.raises(InputError, match="recall must be a number above 0 and at most 1"):
        index.search(QUERIES, 5, recall=recall)
    with pytest.raises(InputError, match="recall must be"):
        index.explain_plan(recall)


def test_recall_goes_without_knobs():
    index = lsr.Index.build(DOCUMENTS)
    for knobs in ({"candidates": 20}, {"query_mass": 0.5}, {"query_cut": 3}):
        with pytest.raises(InputError, match="recall chooses the knobs itself"):
            index.search(QUERIES, 5, recall=0.9, **knobs)


def test_a_plan_survives_a_manifest_and_a_strange_one_is_refused():
    assert Plan.from_dict(PLAN.to_dict()) == PLAN
    with pytest.raises(FormatError, match="of an unknown version"):
        Plan.from_dict({"sample": "given"})


def test_batches_stream_and_warmup_compiles():
    index = lsr.Index.build(DOCUMENTS, options=lsr.BuildOptions(seismic=True))
    index.warmup()
    batches = (QUERIES[[i, i + 1]] for i in range(0, 30, 2))
    streamed = [hits for batch in index.search_batches(batches, 5, threads=1) for hits in batch.rows.tolist()]
    assert streamed == index.search(QUERIES, 5).rows.tolist()
