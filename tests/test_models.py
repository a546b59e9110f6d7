"""The encoder that comes with the package: found by its name, small, and what was measured."""

import pytest

import lsr
from lsr.checkpoint import BUILT_IN, find_folder
from lsr.errors import InputError
from lsr.joined import JoinedEncoder

DOCUMENTS = {
    "aspirin": "Aspirin and other drugs against pain are taken by people who have a headache.",
    "bread": "Flour, water, salt and yeast are kneaded to a dough, which rests before it is put into the oven.",
    "orbit": "A satellite falls around the planet: its speed keeps it from coming down.",
    "index": "Postings are kept in lists, one for each term, cut into blocks with a summary.",
}


@pytest.fixture(scope="module")
def encoder():
    return lsr.load_encoder("lsr-tiny", device="cpu")


def test_it_is_small_and_says_where_it_comes_from():
    folder = BUILT_IN / "lsr-tiny"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 9_000_000
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


def test_its_questions_weigh_what_was_learned(encoder):
    """The word that says which answer is asked for, above those that all of its kind have."""
    question = "What are the symptoms of Down syndrome?"
    row = encoder.encode_queries([question])
    weights = {encoder.queries.term_in(question, int(j)): float(w) for j, w in zip(row.indices, row.data, strict=True)}
    assert weights["symptoms"] == pytest.approx(9.10, abs=0.01)
    assert weights["symptom"] == pytest.approx(7.36, abs=0.01)
    assert weights["syndrome"] < 1
