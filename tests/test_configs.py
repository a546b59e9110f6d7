"""Every file in configs/ loads, says how to run it, and trains, saves, loads, indexes and evaluates."""

import gzip
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny_training import write_collection, write_model

import lsr
from lsr.cli import build_parser
from lsr.corpus import read_queries
from lsr.errors import InputError
from lsr.training.config import load_config, parse
from lsr.training.data import Source
from lsr.training.score_files import rows_hash, scores_folder
from lsr.training.train import train

ROOT = Path(__file__).parent.parent
#: Those of trainings; reproductions have files of their own there.
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.toml") if p.read_text().startswith("# lsr train"))
METHODS = {
    "deepct", "unicoil", "unicoil-tilde", "deepimpact", "tildev2", "tilde", "sparta", "epic", "splade-v1", "splade-max",
    "distilsplade-max", "distilsplade-sep", "distilsplade-qmlp", "distilsplade-dmlp", "distilsplade-dbinary",
    "splade-doc", "inference-free-idf-flops", "inference-free-l0", "li-lsr",
}  # fmt: skip


def test_every_method_of_the_framework_has_a_config():
    assert {path.stem for path in CONFIGS} >= METHODS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command_and_its_result(path):
    head = [line for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()]
    assert head[0] == f"# lsr train configs/{path.name}"
    assert all(line.startswith("# ") for line in head)
    (result,) = [i for i, line in enumerate(head) if line.startswith("# result: ")]
    said = " ".join(line.removeprefix("#").strip() for line in head[result:])
    assert re.search(r"nDCG@10 0\.\d+", said)
    assert re.search(r"MRR@10 0\.\d+", said)
    assert "not run" not in said


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_holds_only_what_differs_from_the_defaults(path):
    fields = tomllib.loads(path.read_text(encoding="utf-8"))
    whole = load_config(path)
    assert whole.output == f"runs/{path.stem}"

    def keys(table, place=()):
        for key, value in table.items():
            yield from keys(value, (*place, key)) if isinstance(value, dict) else [(*place, key)]

    for *tables, key in keys(fields):
        without = tomllib.loads(path.read_text(encoding="utf-8"))
        inner = without
        for name in tables:
            inner = inner[name]
        del inner[key]
        try:
            same = parse({"output": whole.output, **without}) == whole
        except InputError:
            same = False
        assert not same, f"{'.'.join([*tables, key])} is the default"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("configs") / "c")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("configs-model") / "m")


@pytest.fixture(scope="module")
def idf(tmp_path_factory, model, collection):
    path = tmp_path_factory.mktemp("idf") / "idf.json"
    encoder = lsr.load_encoder(model, device="cpu", document_max_length=32, query_max_length=16)
    lsr.write_idf(path, lsr.compute_idf(list(lsr.read_corpus(collection)), encoder), encoder)
    return path


@pytest.fixture(scope="module")
def expansions(tmp_path_factory):
    path = tmp_path_factory.mktemp("expansions") / "expansions.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"id": f"d{i}", "expansion": "sparse vectors"}) + "\n" for i in range(24))
    return path


def overrides(path, output, collection, model, idf, expansions):
    """What makes a config small enough for a test: its data, lengths and steps, never its method."""
    text = path.read_text(encoding="utf-8")
    given = [
        f"output={output}",
        f"backbone={model}",
        f"data.collection={collection}",
        "encoder.documents.max_length=32",
        "encoder.queries.max_length=16",
        "training.steps=3",
        "training.batch_size=8",
        "training.evaluate_every=0",
        "training.warmup=0",
        "training.workers=0",
        "training.device=cpu",
        "training.log_every=1",
        "validation.documents=0",
        f"validation.collection={collection}",
    ]
    for key, value in (("data.train", collection / "scored.jsonl"), ("data.expansions", expansions)):
        if re.search(rf"^{key.split('.')[1]} = ", text, re.MULTILINE):
            given.append(f"{key}={value}")
    if "idf = " in text:
        given.append(f"encoder.queries.idf={idf}")
    if "negatives = " in text:
        given.append("data.negatives=3")
    given += [f"{table}.warmup=2" for table in re.findall(r"^\[(regularizer\.\w+)\]", text, re.MULTILINE)]
    if "base = " in text:
        write_base_scores(collection, output.parent, load_config(path).data.base)
    if "[[data.more]]" in text:
        given.append(
            f'data.more=[{{collection = "{collection}", train = "{collection / "scored.jsonl"}", weight = 0.5}}]'
        )
    if "chunk = " in text:
        given.append("training.chunk=4")
    return given


def write_base_scores(collection, scratch, name):
    """What lsr distill leaves of a teacher beside its file."""
    tables = Source(collection / "scored.jsonl", collection).open(scratch / "tables")
    folder = scores_folder(tables.rows.path)
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", np.linspace(0, 9, len(tables.rows.candidates), dtype=np.float32))
    (folder / f"{name}.json").write_text(json.dumps({"teacher": name, "rows": rows_hash(tables)}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_and_its_encoder_is_saved_loaded_indexed_and_evaluated(
    path, tmp_path, collection, model, idf, expansions
):
    config = load_config(path, overrides(path, tmp_path / "run", collection, model, idf, expansions))
    run = train(config, progress=False)
    assert len([line for line in run.history if "loss" in line]) == 3
    encoder = lsr.load_encoder(run.folder, device="cpu")
    documents = list(lsr.read_corpus(collection))
    retriever = lsr.Retriever.build(documents, encoder)
    queries = list(read_queries(collection / "queries.jsonl"))
    found = retriever.run(queries, k=5)
    assert any(len(found[query.id].doc_ids) for query in queries)
    assert 0 <= run.metrics["ndcg@10"] <= 1


#: Stands in for lsr: notes what it is called with, and makes what it would.
STAND_IN = """#!/usr/bin/env python3
import json, pathlib, sys
with open("calls.jsonl", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
name = next((a[7:] for a in sys.argv if a.startswith("output=")), f"runs/{pathlib.Path(sys.argv[2]).stem}")
made = f"{name}/encoder" if sys.argv[1] == "train" else sys.argv[sys.argv.index("--out") + 1] if "--out" in sys.argv \
    else sys.argv[3]
pathlib.Path(made).mkdir(parents=True)
"""


def test_the_commands_that_make_lsr_mini_are_those_of_the_cli(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    stand_in = tmp_path / ".venv" / "bin" / "lsr"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def calls():
        subprocess.run(["bash", tmp_path / "configs" / "lsr-mini.sh", "training.batch_size=2"], check=True)
        return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]

    made = calls()
    for arguments in made:
        build_parser().parse_args(arguments)  # leaves with 2 for an option that there is not
    trainings = [arguments for arguments in made if arguments[0] == "train"]
    for _, path, *overrides in trainings:
        assert load_config(tmp_path / path, overrides).training.batch_size == 2
    assert [load_config(tmp_path / path, rest).output for _, path, *rest in trainings] == [
        "runs/lsr-mini", "runs/lsr-mini-beside", "runs/lsr-mini-longer", "runs/lsr-mini-longer-beside",
    ]  # fmt: skip
    assert made[-1][:3] == ["export", "runs/mini-tuned", "runs/mini-int8"]
    assert calls() == made  # called again, it has nothing left to do
