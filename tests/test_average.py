"""The mean of encoders' weights."""

import numpy as np
import pytest
import torch
from tiny_training import write_model

import lsr
from lsr.cli import main
from lsr.errors import InputError, MismatchError
from lsr.heads import module_of
from lsr.training.average import average


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("soup")
    return [write_model(home / str(seed), seed=seed) for seed in range(3)]


def load(folder):
    return lsr.load_encoder(folder, device="cpu")


def test_weights_are_the_mean_tied_ones_too(folders):
    states = [dict(module_of(load(folder).documents).named_parameters()) for folder in folders]
    encoder = load(folders[0])
    before = encoder.fingerprint
    averaged = average([encoder, *map(load, folders[1:])])
    assert averaged.fingerprint != before
    for name, actual in module_of(averaged.documents).named_parameters():
        expected = sum(state[name] for state in states) / 3
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_encoders_of_other_kinds_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="two encoders"):
        average([load(folders[0])])
    encoder = load(folders[0])
    lsr.write_idf(tmp_path / "idf.json", np.ones(encoder.vocabulary_size, dtype=np.float32), encoder)
    free = lsr.inference_free(load(folders[1]), lsr.read_idf(tmp_path / "idf.json", encoder))
    with pytest.raises(MismatchError, match="encoder 2 is of another kind"):
        average([encoder, free])
    bm25 = lsr.Bm25().fit(["cat sat"])
    with pytest.raises(InputError, match="cannot be trained"):
        average([bm25, bm25])


def test_one_encoder_is_refused_before_anything_is_loaded(tmp_path, capsys):
    assert main(["average", str(tmp_path / "nowhere"), "--out", str(tmp_path / "mean")]) == 1
    assert "two encoders" in capsys.readouterr().err


def test_command(folders, tmp_path, capsys):
    out = tmp_path / "mean"
    assert main(["average", *map(str, folders[:2]), "--out", str(out)]) == 0
    assert "mean of 2 encoders" in capsys.readouterr().out
    assert load(out).fingerprint == average([load(folders[0]), load(folders[1])]).fingerprint
