"""BEIR and MS MARCO by name: every listed collection, read by ir-datasets, through one command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from collections_by_name import write_beir, write_msmarco

from lsr.errors import InputError
from lsr.eval.datasets import BEIR, GROUPS, MSMARCO, find_collections, load_dataset


def lsr_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``lsr`` in its own process: ir-datasets reads IR_DATASETS_HOME when it is imported."""
    environment = {
        **os.environ,
        "IR_DATASETS_HOME": str(home / "ir"),
        "LSR_CACHE": str(home / "cache"),
        "IR_DATASETS_DL_TRIES": "1",
    }
    command = [sys.executable, "-m", "lsr.cli", *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What ``--dataset beir:all --dataset msmarco:all`` gives on the small files, by collection."""
    home = tmp_path_factory.mktemp("home")
    for name, source in BEIR.items():
        write_beir(home / "ir", name, source)
    write_msmarco(home / "ir")
    arguments = ("evaluate", "--model", "bm25", "--dataset", "beir:all", "--dataset", "msmarco:all", "--exact")
    done = lsr_command(home, *arguments, "--json", str(home / "results.json"))
    assert done.returncode == 0, done.stderr
    for row in ("mean of beir (13)", "mean of msmarco (3)", "mean (16)"):
        assert row in done.stdout
    assert len(list((home / "cache" / "indexes").glob("*/manifest.json"))) < 14, "equal documents are indexed once"
    return {result["collection"]: result for result in json.loads((home / "results.json").read_text())["results"]}


def test_the_groups_are_those_of_the_papers() -> None:
    assert len(GROUPS["beir"]) == 13
    assert "beir:cqadupstack" not in GROUPS["beir"]
    assert list(MSMARCO) == ["dev", "dl19", "dl20"]
    import ir_datasets

    for members in GROUPS.values():
        for collection in members.values():
            assert ir_datasets.load(collection.source).has_qrels()


@pytest.mark.parametrize("name", list(BEIR))
def test_a_beir_collection_is_read_and_measured_as_the_field_does(results: dict[str, dict], name: str) -> None:
    result = results[f"beir:{name}"]
    # Query 1 finds document a, query 2 document c, both first: by the title too, and with itself left out.
    assert result["metrics"] == {"ndcg@10": 1.0, "recall@100": 1.0}
    own = name in ("arguana", "quora")
    assert result["self_matches"].startswith("dropped" if own else "none")
    assert (result["n_queries"], result["n_documents"], result["k"]) == (2, 6 if own else 3, 100)


def test_msmarco_is_measured_as_the_field_does(results: dict[str, dict]) -> None:
    dev, dl19, dl20 = (results[f"msmarco:{name}"] for name in ("dev", "dl19", "dl20"))
    assert dev["metrics"] == {"mrr@10": 1.0, "recall@1000": 1.0}  # "a cat and a dog" is the shorter passage
    assert set(dl19["metrics"]) == {"ndcg@10", "map@1000-l2", "recall@1000-l2"}
    assert dl19["metrics"]["map@1000-l2"] == 1.0  # the passage of grade 1 counts as not relevant
    assert dl19["metrics"]["ndcg@10"] == 1.0
    assert dl20["metrics"]["map@1000-l2"] == pytest.approx((1 / 2 + 0) / 2)  # grade 2 at rank 2; no grade 2
    assert {result["n_documents"] for result in (dev, dl19, dl20)} == {3}
    assert [result["n_queries"] for result in (dev, dl19, dl20)] == [2, 2, 2]


def test_names_ids_and_folders_stand_for_collections(tmp_path: Path) -> None:
    assert [c.name for c in find_collections(["beir:nq", "msmarco:dl19", "beir:nq"])] == ["beir:nq", "msmarco:dl19"]
    (by_id,) = find_collections(["msmarco-passage/dev/small"])
    assert (by_id.name, by_id.metrics, by_id.depth) == ("msmarco-passage/dev/small", ("mrr@10", "recall@1000"), 1000)
    (other,) = find_collections(["vaswani"])
    assert (other.group, other.depth) == ("", 100)
    for place in ("x/pets", "y/pets", "y/cars"):
        (tmp_path / place).mkdir(parents=True)
    found = find_collections([str(tmp_path / "x/pets"), str(tmp_path / "y/cars")])
    assert [c.name for c in found] == ["pets", "cars"]
    alike = [str(tmp_path / "x/pets"), str(tmp_path / "y/pets")]
    assert [c.name for c in find_collections(alike)] == alike


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beir:nqq", r"beir has no 'nqq' \(did you mean nq\?\): it has all, arguana, "),
        ("msmarco:x", "msmarco has no 'x': it has all, dev, dl19, dl20"),
    ],
)
def test_an_unknown_member_is_refused_with_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_collections([name])


def test_what_cannot_be_downloaded_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets
    import requests

    def offline(*_: object) -> None:
        raise requests.exceptions.ConnectionError("HTTPSConnectionPool(host='far.away')")

    monkeypatch.setattr(type(ir_datasets.load("beir/nfcorpus/test").qrels_handler()), "qrels_iter", offline)
    with pytest.raises(
        InputError, match=r"has no 'beir/nfcorpus/test' on this machine .*\(ConnectionError\): check the"
    ):
        load_dataset("beir/nfcorpus/test")


def test_scifact_by_name_is_scifact_by_folder(shared: Path, tmp_path: Path) -> None:
    """The real collection, through ir-datasets' cache, the group's name, and BM25's known figure."""
    shutil.copytree(shared / "ir_datasets", tmp_path / "ir", copy_function=shutil.copyfile)
    for folder in [tmp_path / "ir", *(tmp_path / "ir").rglob("*/")]:
        folder.chmod(0o755)
    folder = str(shared / "data" / "scifact")
    done = lsr_command(
        tmp_path, "evaluate", "--model", "bm25", "--dataset", "beir:scifact", "--dataset", folder, "--exact",
        "--metric", "ndcg@10", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_name, by_folder = json.loads(done.stdout)["results"]
    assert 0.66 < by_name["metrics"]["ndcg@10"] < 0.69
    assert by_name["metrics"] == by_folder["metrics"]
    low, high = by_name["intervals"]["ndcg@10"]
    assert low < by_name["metrics"]["ndcg@10"] < high
    assert high - low < 0.15
    assert len(list((tmp_path / "cache" / "indexes").glob("*/manifest.json"))) == 1, "equal documents are indexed once"
