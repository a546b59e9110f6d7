"""Configs: defaults, types, overrides, and a sentence with the key's path for what is wrong."""

import dataclasses
import math

import pytest

from lsr.errors import FormatError, InputError
from lsr.training.config import TrainConfig, TrainingOptions, load_config, name_of, parse
from lsr.training.losses import Contrastive, Kl, MarginMse
from lsr.training.regularizers import Flops, L0Flops

ENCODER = {"documents": {"head": "mlm"}, "queries": {"head": "mlm"}}
LEAST = {"backbone": "model", "data": {"collection": "data"}, "encoder": ENCODER}


def with_keys(**tables):
    return parse(LEAST | tables)


def test_only_backbone_collection_and_heads_have_no_default():
    config = parse(LEAST)
    assert config.training == TrainingOptions()
    assert config.loss == Contrastive()
    assert config.regularizer.documents is None
    assert config.validation is None
    assert config.data.parts[0].files == ("data/qrels/train.tsv",)
    assert config.encoder_table == {"backbone": "model"} | ENCODER


def test_tables_become_dataclasses():
    config = with_keys(
        loss={"name": "kl", "temperature": 2},
        regularizer={"documents": {"name": "l0_flops", "weight": 0.08, "warmup": 10, "threshold": 99}},
        data={"collection": "c", "train": "rows.jsonl", "negatives": 7},
        encoder={"documents": {"head": "mlm"}, "queries": {"head": "binary"}},
    )
    assert config.loss == Kl(temperature=2.0)
    assert isinstance(config.loss.temperature, float)
    assert config.regularizer.documents == L0Flops(0.08, warmup=10, threshold=99)
    assert config.data.parts[0].files == ("rows.jsonl",)
    assert config.encoder_table == {"backbone": "model"} | ENCODER | {"queries": {"head": "binary"}}
    assert name_of(config.loss) == "kl"


def test_further_collections_have_files_of_their_own():
    more = [{"collection": "d"}, {"collection": "e", "train": ["x.jsonl", "y.jsonl"], "weight": 0.5}]
    config = with_keys(data={"collection": "c", "train": "rows.jsonl", "more": more})
    assert [part.files for part in config.data.parts] == [
        ("rows.jsonl",), ("d/qrels/train.tsv",), ("x.jsonl", "y.jsonl")
    ]  # fmt: skip
    assert [part.weight for part in config.data.parts] == [1, 1, 0.5]
    assert str(config.data) == "rows.jsonl over c; d/qrels/train.tsv over d; x.jsonl, y.jsonl over e"
    assert parse(config.as_dict()) == config


def test_configs_are_frozen_and_come_back_from_their_dict():
    config = with_keys(
        loss={"name": "margin_mse"},
        data={"collection": "c", "negatives": 1},
        regularizer={"queries": {"name": "flops", "weight": 0.1, "target_nnz": 20}},
        validation={"split": "test"},
    )
    assert parse(config.as_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.output = "elsewhere"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"los": {}}, "the key los is unknown: did you mean loss?"),
        (
            {"loss": {"name": "kl", "temprature": 1}},
            "the key loss.temprature is unknown: did you mean loss.temperature?",
        ),
        ({"loss": {"name": "pairwise_cross_entropy", "temperature": 1}}, "the key loss.temperature is unknown"),
        ({"loss": {"temperature": 1}}, "the key loss.name is missing: choose one of contrastive"),
        ({"loss": {"name": "hinge"}}, "loss.name = 'hinge' is unknown: choose one of contrastive"),
        ({"loss": {"name": "contrastive", "temperature": -1}}, "loss.temperature must be finite and above 0"),
        ({"loss": {"name": "kl", "temperature": math.inf}}, "loss.temperature = inf: a finite number is needed"),
        ({"loss": 3}, "the key loss.name is missing"),
        ({"training": {"steps": 1.5}}, "training.steps = 1.5: an integer is needed"),
        ({"training": {"steps": True}}, "training.steps = True: an integer is needed"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate = 'fast': a finite number is needed"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate = 0.0"),
        ({"training": {"learning_rate": math.inf}}, "training.learning_rate = inf: a finite number is needed"),
        ({"training": {"learning_rate": math.nan}}, "training.learning_rate = nan: a finite number is needed"),
        ({"training": {"weight_decay": math.nan}}, "training.weight_decay = nan: a finite number is needed"),
        ({"training": {"seed": -1}}, "training.seed = -1: must be 0 or more"),
        ({"training": {"seed": 2**32}}, "training.seed = 4294967296: must be below 2^32"),
        ({"training": {"schedule": "step"}}, "training.schedule = 'step': choose one of 'linear', 'cosine'"),
        ({"training": {"precision": "float16"}}, "training.precision = 'float16': choose one of"),
        ({"training": {"batch_size": 0}}, "training.batch_size = 0: must be 1 or more"),
        ({"training": 3}, "training = 3: a table is needed"),
        ({"encoder": 3}, "encoder = 3: a table is needed"),
        ({"data": {"collection": "c", "skip_repeats": 1}}, "data.skip_repeats = 1: true or false is needed"),
        ({"data": {"collection": "c", "train": 7}}, "data.train = 7: a list is needed"),
        ({"data": {}}, "the key data.collection is missing"),
        ({"data": {"collection": "c", "more": [{"train": "x"}]}}, "the key data.more.collection is missing"),
        ({"data": {"collection": "c", "more": [{"collection": "d", "weight": 0}]}}, "data.more: weight = 0"),
        ({"data": {"collection": "c", "more": [{"collection": "d"}], "expansions": "e"}}, "data.expansions are of one"),
        ({"regularizer": {"documents": {"name": "flops"}}}, "the key regularizer.documents.weight is missing"),
        ({"regularizer": {"documents": {"name": "l2", "weight": 1}}}, "regularizer.documents.name = 'l2' is unknown"),
        (
            {"regularizer": {"documents": {"name": "flops", "weight": 1, "threshold": 1}}},
            "the key regularizer.documents.threshold is unknown",
        ),
        ({"regularizer": {"documents": {"name": "flops", "weight": -1}}}, "regularizer.documents: the weight"),
        (
            {"regularizer": {"documents": {"name": "flops", "weight": 1, "max_nnz": -3}}},
            "regularizer.documents: max_nnz must be a number above 0: got -3",
        ),
        (
            {"regularizer": {"documents": {"name": "flops", "weight": 1, "target_nnz": 50, "max_nnz": 20}}},
            "regularizer.documents: max_nnz = 20 is below target_nnz = 50",
        ),
        (
            {"regularizer": {"documents": {"name": "l0_flops", "weight": 1, "threshold": -1}}},
            "regularizer.documents: the threshold of l0_flops must be 0 terms or more: got -1",
        ),
        ({"encoder": {}}, "the config has no table encoder.documents: give one with a head"),
        ({"encoder": ENCODER | {"head": "mlm"}}, "encoder has no option 'head': choose from"),
        (
            {"encoder": ENCODER | {"queries": {"head": "mlm", "pool": "max"}}},
            "encoder.queries has no option 'pool' with head = 'mlm': choose from head, max_length, pooling",
        ),
        ({"encoder": ENCODER | {"queries": {"head": "lookup"}}}, "encoder.queries.idf is missing: give a file"),
        ({"encoder": ENCODER | {"shared": "yes"}}, "encoder.shared must be true or false: got 'yes'"),
        ({"encoder": ENCODER | {"head_init": "new"}}, "encoder.head_init is 'new': choose from checkpoint"),
        ({"validation": {"queries": 0}}, "validation.queries = 0: must be 1 or more"),
    ],
)
def test_a_wrong_key_is_named_by_its_path(tables, message):
    with pytest.raises(InputError) as caught:
        parse(LEAST | tables)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"loss": {"name": "kl"}}, "data.negatives = 0 with loss.name = 'kl'"),
        ({"data": {"collection": "d", "base": "bm25"}}, "data.base = 'bm25' with loss.name = 'contrastive'"),
        ({"data": {"collection": "d", "base_weight": 2}}, "data.base_weight = 2.0 without data.base"),
        ({"data": {"collection": "d", "base": "b", "base_weight": 0}}, "data.base_weight = 0.0: must be above 0"),
        ({"encoder": {"backbone": "b"}}, "encoder.backbone"),
        ({"loss": {"name": "contrastive", "in_batch": False}}, "data.negatives = 0 with loss.in_batch = false"),
        ({"training": {"batch_size": 1}}, "data.negatives = 0 with training.batch_size = 1"),
        ({"training": {"chunk": 4, "accumulate": 2}}, "training.chunk = 4 and training.accumulate = 2"),
        ({"training": {"chunk": 32}}, "training.chunk = 32 is not below training.batch_size = 32"),
        ({"training": {"average": "last"}}, "training.average = 'last' with training.keep = 1"),
        ({"training": {"average": "best", "keep": 3}}, "training.average = 'best' needs a [validation]"),
    ],
)
def test_contradictory_keys_are_refused(tables, message):
    with pytest.raises(InputError) as caught:
        parse(LEAST | tables)
    assert message in str(caught.value)


def test_small_batches_that_have_something_to_learn_are_taken():
    with_keys(training={"batch_size": 1, "accumulate": 2})
    with_keys(training={"batch_size": 1}, data={"collection": "c", "negatives": 1})
    with_keys(loss={"name": "contrastive", "in_batch": False}, data={"collection": "c", "negatives": 1})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "method.toml"
    path.write_text(
        '# lsr train method.toml\nbackbone = "model"\n[data]\ncollection = "data"\nnegatives = 1\n'
        '[loss]\nname = "contrastive"\n[validation]\nqueries = 10\n'
        '[encoder.queries]\nhead = "mlm"\n[encoder.documents]\nhead = "mlm"\n',
        encoding="utf-8",
    )
    return path


def test_a_file_is_read_and_names_the_output(file):
    config = load_config(file)
    assert config.output == "runs/method"
    assert config.validation.queries == 10


def test_overrides(file):
    overrides = [
        "training.steps=50",
        "loss.temperature=2",
        "backbone=../shared/models/splade-tiny",
        "output = elsewhere",
        "data.train=['a.jsonl', 'b.jsonl']",
        "encoder.documents.head=mlp",
        "encoder.shared=false",
        "training.learning_rate=1e-4",
        "validation=none",
    ]
    config = load_config(file, overrides)
    assert config.training.steps == 50
    assert config.loss == Contrastive(temperature=2.0)
    assert (config.backbone, config.output) == ("../shared/models/splade-tiny", "elsewhere")
    assert config.data.parts[0].files == ("a.jsonl", "b.jsonl")
    assert config.encoder == {"documents": {"head": "mlp"}, "queries": {"head": "mlm"}, "shared": False}
    assert config.training.learning_rate == 1e-4
    assert config.validation is None


def test_an_override_can_change_the_loss(file):
    assert load_config(file, ["loss.name=margin_mse"]).loss == MarginMse()


def test_an_override_can_add_a_regularizer(file):
    overrides = ["regularizer.queries.name=flops", "regularizer.queries.weight=0.1"]
    assert load_config(file, overrides).regularizer.queries == Flops(0.1)


@pytest.mark.parametrize("override", ["steps", "=5", "training.=5", ".steps=5"])
def test_what_is_no_override_is_refused(file, override):
    with pytest.raises(InputError, match="write key=value"):
        load_config(file, [override])


def test_an_override_below_a_value_is_refused(file):
    with pytest.raises(InputError, match="backbone is a value"):
        load_config(file, ["backbone.name=x"])


def test_a_wrong_key_of_a_file_names_the_file(file):
    with pytest.raises(InputError, match=r"method.toml: the key training.step is unknown: did you mean training.steps"):
        load_config(file, ["training.step=5"])


def test_a_file_that_is_missing_or_no_toml(tmp_path):
    with pytest.raises(InputError, match="missing"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("a = = 3")
    with pytest.raises(FormatError, match="not valid TOML"):
        load_config(tmp_path / "broken.toml")


def test_the_fingerprint_is_of_what_decides_the_weights(file):
    base = load_config(file)
    same = load_config(file, ["output=other", "training.workers=7", "training.log_every=3", "data.cache=x"])
    assert base.fingerprint() == same.fingerprint()
    for change in ("training.steps=7", "loss.temperature=3", "backbone=other", "training.seed=1", "validation=none"):
        assert load_config(file, [change]).fingerprint() != base.fingerprint()


def test_every_option_is_documented():
    """Attributes: sections name every field."""
    for cls in (TrainConfig, TrainingOptions, Contrastive, Flops):
        for field in dataclasses.fields(cls):
            assert any(f"{field.name}:" in (base.__doc__ or "") for base in cls.__mro__), (cls, field.name)
