"""Small files in the formats that ir-datasets downloads, laid out as its cache lays them out.

ir-datasets reads them with its own parsers, so every collection that `lsr.eval.datasets` lists by name goes
through the code that reads the real one. The texts are made up.
"""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

# The fields that each collection's lines have under "metadata", beside _id, title and text.
DOCUMENT_METADATA = {
    "dbpedia-entity": {"url": "<dbpedia:Cat>"},
    "hotpotqa": {"url": "https://en.wikipedia.org/wiki?curid=12"},
    "nfcorpus": {"url": "http://www.ncbi.nlm.nih.gov/pubmed/2"},
    "scidocs": {"authors": ["1741101"], "year": 2010, "cited_by": ["35d2"], "references": []},
    "trec-covid": {"url": "https://doi.org/10.1", "pubmed_id": "11472636"},
    "webis-touche2020": {"stance": "PRO", "url": "https://www.debate.org/1"},
}
QUERY_METADATA = {
    "nfcorpus": {"url": "http://nutritionfacts.org/cats"},
    "scidocs": {"authors": ["2"], "year": 2016, "cited_by": [], "references": ["0f3b"]},
    "trec-covid": {"query": "cats", "narrative": "Looking for cats."},
    "webis-touche2020": {"description": "On cats", "narrative": "Relevant are cats."},
}
#: query → document → grade. BM25 finds a, in whose title alone "cats" stands, and c behind it or not at all.
QRELS = {"1": {"a": 1, "b": 0}, "2": {"c": 1}}
DOCUMENTS = {"a": ("All about cats", "They purr."), "b": ("Dogs", "They bark."), "c": ("", "A fish swims in water.")}
QUERIES = {"1": "cats", "2": "swims in the sea", "3": "an unjudged query"}
#: Collections whose lines have titles: the others' texts hold all.
UNTITLED = ("fiqa", "quora")

PASSAGES = {"0": "the cat sat on the mat", "1": "a cat and a dog", "2": "stock markets fell"}
MSMARCO_QUERIES = {"10": "cat", "20": "markets"}
MSMARCO_QRELS = {
    "dev/small": {"10": {"1": 1}, "20": {"2": 1}},
    "trec-dl-2019": {"10": {"0": 1, "1": 3}, "20": {"2": 2}},
    "trec-dl-2020": {"10": {"0": 2, "1": 0}, "20": {"2": 1}},
}


def write_beir(home: Path, name: str, source: str) -> None:
    """The .zip of one BEIR collection; ``source`` is its ir-datasets id."""
    documents = {i: ("", f"{t} {x}".strip()) if name in UNTITLED else (t, x) for i, (t, x) in DOCUMENTS.items()}
    queries, qrels = QUERIES, QRELS
    if name in ("arguana", "quora"):  # the queries stand in the corpus under their own ids
        documents = documents | {q: ("", text) for q, text in QUERIES.items()}
    parts = source.split("/")
    split = parts[2] if len(parts) > 2 and parts[2] != "v2" else "test"
    place = home / "beir" / name / ("v2" if parts[-1] == "v2" else "")
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "source.zip", "w") as archive:
        lines = [
            {"_id": i, "title": title, "text": text, "metadata": DOCUMENT_METADATA.get(name, {})}
            for i, (title, text) in documents.items()
        ]
        archive.writestr(f"{name}/corpus.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        lines = [{"_id": i, "text": text, "metadata": QUERY_METADATA.get(name, {})} for i, text in queries.items()]
        archive.writestr(f"{name}/queries.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        rows = [f"{q}\t{d}\t{grade}\n" for q, grades in qrels.items() for d, grade in grades.items()]
        archive.writestr(f"{name}/qrels/{split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(rows))


def write_msmarco(home: Path) -> None:
    """MS MARCO passages with the dev queries, and the two tracks' topics and judgments."""
    place = home / "msmarco-passage"
    place.mkdir(parents=True)
    queries = "".join(f"{q}\t{text}\n" for q, text in MSMARCO_QUERIES.items())
    trec = {
        name: "".join(f"{q} 0 {d} {grade}\n" for q, grades in qrels.items() for d, grade in grades.items())
        for name, qrels in MSMARCO_QRELS.items()
    }
    members = {
        "collection.tsv": "".join(f"{d}\t{text}\n" for d, text in PASSAGES.items()),
        "queries.dev.small.tsv": queries,
        "qrels.dev.small.tsv": trec["dev/small"].replace(" ", "\t"),
    }
    with tarfile.open(place / "collectionandqueries.tar.gz", "w:gz") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    topics = queries + "30\tnever judged\n"
    for year in ("2019", "2020"):
        (place / f"trec-dl-{year}").mkdir()
        (place / f"trec-dl-{year}" / "qrels").write_text(trec[f"trec-dl-{year}"])
    (place / "trec-dl-2019" / "queries.tsv").write_text(topics)
    (place / "trec-dl-2020" / "queries.tsv.gz").write_bytes(gzip.compress(topics.encode()))
