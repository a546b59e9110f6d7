"""The encoders of the project: found, small, with a card, and the weights that were measured."""

from pathlib import Path

import numpy as np
import pytest

import lsr
from lsr.checkpoint import BUILT_IN, find_folder
from lsr.errors import InputError
from lsr.joined import JoinedEncoder

#: Stands beside the package, not in it.
MINI = Path(__file__).parents[1] / "models" / "lsr-mini"

DOCUMENTS = {
    "aspirin": "Aspirin and other drugs against pain are taken by people who have a headache.",
    "bread": "Flour, water, salt and yeast are kneaded to a dough, which rests before it is put into the oven.",
    "orbit": "A satellite falls around the planet: its speed keeps it from coming down.",
    "index": "Postings are kept in lists, one for each term, cut into blocks with a summary.",
}


@pytest.fixture(scope="module")
def encoder():
    return lsr.load_encoder("lsr-tiny", device="cpu")


@pytest.mark.parametrize(("folder", "most"), [(BUILT_IN / "lsr-tiny", 9_000_000), (MINI, 25_000_000)])
def test_it_is_small_and_says_where_it_comes_from(folder, most):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= most
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("CC BY-SA 4.0", "CC BY 4.0", "SciFact", "nDCG@10"):
        assert said in card


def test_it_finds_what_is_meant_and_names_the_terms(encoder, tmp_path):
    retriever = lsr.Retriever.build(DOCUMENTS, encoder, path=tmp_path / "index")
    assert retriever.search("medicine for a sore head", k=1)[0].id == "aspirin"
    terms = retriever.explain("satellites in orbit", "orbit")
    assert "satellit" in {match.term for match in terms}  # a stem, by the question's own words
    assert not any(match.term.startswith("#") for match in terms)
    again = lsr.Retriever.open(tmp_path / "index")
    assert again.search("remedy for headaches", k=1)[0].id == "aspirin"


def test_its_queries_need_no_transformer(encoder):
    assert isinstance(encoder, JoinedEncoder)
    assert encoder.queries.light
    assert encoder.source == "lsr-tiny"


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "lsr-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert str(find_folder("lsr-tiny")) == "lsr-tiny"
    with pytest.raises(InputError, match="lsr-huge"):
        find_folder("lsr-huge")


def test_its_vectors_stay_what_they_are(encoder):
    """What was published was measured with these weights: another file is another model."""
    (row,) = encoder.encode_documents(["An index of postings, cut into blocks."]).toarray()
    heaviest = sorted(range(len(row)), key=lambda j: -row[j])[:5]
    expected = {"index": 1.31, "posting": 1.23, "blocks": 1.13, "cut": 1.06, "block": 1.0}
    assert {encoder.term(j): float(row[j]) for j in heaviest} == pytest.approx(expected, abs=0.02)


def test_the_larger_one_s_vectors_stay_what_they_are(tmp_path):
    encoder = lsr.load_encoder(MINI, device="cpu")
    (row,) = encoder.encode_documents(["An index of postings, cut into blocks."]).toarray()
    heaviest = sorted(range(len(row)), key=lambda j: -row[j])[:5]
    expected = {"index": 1.62, "cut": 1.32, "posts": 1.24, "post": 1.23, "block": 1.2}
    assert {encoder.term(j): float(row[j]) for j in heaviest} == pytest.approx(expected, abs=0.01)
    assert (np.count_nonzero(row[:30_522]), encoder.documents.max_length, encoder.queries.light) == (69, 512, True)
    retriever = lsr.Retriever.build(DOCUMENTS, encoder, path=tmp_path / "index")
    assert retriever.search("moons and spacecraft", k=1)[0].id == "orbit"


def test_its_questions_weigh_what_was_learned(encoder):
    """The word that says which answer is asked for, above those that all of its kind have."""
    question = "What are the symptoms of Down syndrome?"
    row = encoder.encode_queries([question])
    weights = {encoder.queries.term_in(question, int(j)): float(w) for j, w in zip(row.indices, row.data, strict=True)}
    assert weights["symptoms"] == pytest.approx(9.10, abs=0.01)
    assert weights["symptom"] == pytest.approx(7.36, abs=0.01)
    assert weights["syndrome"] < 1
