"""Every file in configs/ loads, says how to run it, and trains, saves, loads, indexes and evaluates."""

import gzip
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny_training import write_collection, write_model

import lsr
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
