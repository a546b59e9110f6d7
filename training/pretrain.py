"""`pretrain`: a head for the vocabulary, for a body that has none, by masked language modelling.

A sparse encoder reads its weights off a masked-LM head, and many good bodies (all-MiniLM-L6-v2, e5, gte) come without
one. The head begins as the word embeddings; masked tokens (BERT, arXiv 1810.04805) and, if a trained sparse encoder is
given, its vectors teach it. What comes out is a checkpoint for ``backbone`` of a config.
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm

from lsr.backbone import Backbone
from lsr.batching import pad
from lsr.checkpoint import find_folder, has_mlm_head, load_backbone
from lsr.corpus import Corpus
from lsr.encoder import Encoder
from lsr.errors import InputError, MismatchError
from lsr.files import check_target, new_folder, replacing
from lsr.heads import SparseHead, module_of
from lsr.sparse_head import fused_sparse_head
from lsr.training.checkpoints import WEIGHTS_FILE, checkpoints, load_weights
from lsr.training.texts import TokenTable, document_table, token_table

OPTIONS_FILE = "pretrain.json"

#: Of the masked tokens: those that become [MASK]; half of the rest become random terms, the others stay.
AS_MASK = 0.8

#: Share of the vocabulary that has a weight in a new head's vectors.
STARTING_SHARE = 0.01

#: Tokens kept of a document; `PretrainOptions.max_length` of them are read at a time.
DOCUMENT_TOKENS = 2_048


@dataclass(frozen=True)
class PretrainOptions:
    """How a head is made.

    Attributes:
        steps: optimizer steps; the learning rate rises for a tenth of them and falls linearly to 0.
        batch_size: documents a step.
        max_length: tokens read of a document, special ones included; of longer ones a random part.
        learning_rate: the highest.
        mask: share of the tokens that are masked.
        imitation: weight of the imitated encoder's vectors beside the masked tokens.
        seed: of everything random.
    """

    steps: int = 5_000
    batch_size: int = 256
    max_length: int = 128
    learning_rate: float = 5e-4
    mask: float = 0.15
    imitation: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("max_length", 8), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be {least} or more: got {getattr(self, name)}")
        if not 0 < self.mask < 1:
            raise InputError(f"mask is a share of the tokens, above 0 and below 1: got {self.mask}")
        if not (0 < self.learning_rate < math.inf and 0 <= self.imitation < math.inf):
            raise InputError(
                f"learning_rate = {self.learning_rate} and imitation = {self.imitation} must be finite, and the first "
                "above 0"
            )


def pretrain(
    source: str | os.PathLike[str],
    corpora: Sequence[Corpus],
    options: PretrainOptions,
    out: str | os.PathLike[str],
    *,
    imitated: Encoder | None = None,
    cache: Path,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, float]:
    """Train a checkpoint's masked-LM head, and its body with it; write a ...ForMaskedLM folder.

    An interrupted call goes on from its last checkpoint, which is kept beside ``out`` until that is written.

    Args:
        source: the body: a folder, hub id or ``package:NAME/FOLDER``; a head that it has is trained further.
        corpora: texts, all of them read once per pass.
        options: how.
        out: the folder to write.
        imitated: an encoder of the same vocabulary whose document vectors the head is to give.
        cache: folder for tokens.
        device: "cpu" to stay off a GPU; by default CUDA where there is one.
        overwrite: replace ``out``.
        progress: show a bar on stderr.

    Returns:
        The last log line: ``loss`` and its parts.

    Raises:
        InputError, FormatError: the body or a corpus cannot be read, or ``out`` is there.
        MismatchError: ``imitated`` has another vocabulary.
    """
    out = Path(out)
    check_target(out, overwrite=overwrite)
    folder = find_folder(source)
    torch.manual_seed(options.seed)
    headless = not has_mlm_head(folder)
    backbone = load_backbone(folder, device, head="embeddings" if headless else "checkpoint")
    model = MaskedModel(backbone, options, imitated)
    tokenizer = backbone.tokenizer.with_options(DOCUMENT_TOKENS, add_special_tokens=False)
    texts = [document_table(cache, corpus) for corpus in corpora]
    tables = [token_table(cache, table, tokenizer, progress=progress) for table in texts]
    windows = Windows(tables, backbone.tokenizer([""]).ids[0], min(options.max_length, model.max_length))
    what = {
        **asdict(options),
        "body": backbone.fingerprint,
        "texts": [table.content_hash for table in texts],
        "imitated": None if imitated is None else imitated.documents.fingerprint,
    }
    if headless:
        lower_bias(backbone, windows)
    work = out.with_name(f".{out.name}.pretrain")
    last = _last_checkpoint(work, what)
    trainer = _Trainer(
        model=model,
        args=_arguments(options, work, cpu=device == "cpu"),
        train_dataset=cast(Any, windows),
        data_collator=windows.collate,
    )
    for shown in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(shown)
    if progress:
        trainer.add_callback(_Bar())
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    backbone.eval()
    with new_folder(out, overwrite=overwrite) as partial:
        backbone.save(partial)
    shutil.rmtree(work)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return {name: float(value) for name, value in lines[-1].items()} if lines else {}


@torch.no_grad()
def lower_bias(backbone: Backbone, windows: "Windows", texts: int = 32) -> None:
    """Move all biases of a new head down to where 1 % of a text's terms have a weight.

    Masked tokens do not see it, as softmax does not; a sparse vector does, and a step of Adam moves a bias by no more
    than the learning rate.
    """
    rows = [windows[i] for i in np.linspace(0, len(windows) - 1, min(texts, len(windows))).astype(int)]
    batch = {name: tensor.to(backbone.device) for name, tensor in windows.collate(rows).items()}
    head = backbone.head()
    states = backbone.states(**batch)
    best = fused_sparse_head(states, batch["attention_mask"], head.weight, head.bias, activation="log1p").expm1()
    head.bias.sub_(torch.quantile(best, 1 - STARTING_SHARE, dim=1).mean())


class Windows(torch.utils.data.Dataset[NDArray[Any]]):
    """The documents of several token tables; of a long one a part that is drawn anew at each visit.

    Args:
        tables: tokens without special ones.
        frame: the special tokens of an empty text, such as [CLS] [SEP]: half of them go before, half behind.
        length: tokens of a part, special ones included.
    """

    def __init__(self, tables: Sequence[TokenTable], frame: NDArray[Any], length: int) -> None:
        self.tables = list(tables)
        self.before, self.behind = np.split(frame, [(len(frame) + 1) // 2])
        self.length = length - len(frame)
        self._ends = np.cumsum([len(table) for table in tables])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> NDArray[Any]:
        """Token ids, int64 (at most ``length``,)."""
        source = int(np.searchsorted(self._ends, i, side="right"))
        tokens = self.tables[source][i - (int(self._ends[source - 1]) if source else 0)]
        first = int(torch.randint(max(1, len(tokens) - self.length + 1), ()))
        parts = (self.before, tokens[first : first + self.length], self.behind)
        return np.concatenate(parts).astype(np.int64)

    @staticmethod
    def collate(rows: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
        """input_ids and attention_mask, int64 (rows, longest)."""
        ids, mask = pad(rows)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


class MaskedModel(torch.nn.Module):
    """The loss of a batch: cross-entropy of the masked tokens, plus the distance to another encoder's vectors.

    The distance is |log(1 + softplus(max_i logit_ij)) − y_j|² / |y|², with y = log(1 + relu(…)) of the imitated
    encoder: softplus, since a relu that begins at 0 would stay there.

    Raises:
        InputError: the tokenizer has no [MASK], or the imitated encoder no transformer.
        MismatchError: its vocabulary is another one.
    """

    def __init__(self, backbone: Backbone, options: PretrainOptions, imitated: Encoder | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.share, self.weight = options.mask, options.imitation
        mask_id = getattr(backbone._hf_tokenizer, "mask_token_id", None)
        if mask_id is None:
            raise InputError("the tokenizer has no [MASK] token: a masked-LM head needs one")
        self.mask_id = int(mask_id)
        self.register_buffer("special", torch.from_numpy(backbone.tokenizer.special_ids), persistent=False)
        self._imitated: list[SparseHead] = []  # in a list, so that it is none of the modules that are trained and saved
        if imitated is not None and self.weight:
            self._imitated = [_head_of(imitated, backbone)]
        self.max_length = min(part.max_length for part in (backbone, *(head.backbone for head in self._imitated)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """{"loss": scalar} of int64 (texts, length)."""
        masked, chosen = self._mask(input_ids, attention_mask)
        states, head = self.backbone.states(masked, attention_mask), self.backbone.head()
        logits = linear(states[chosen], head.weight, head.bias).float()
        loss = cross_entropy(logits, input_ids[chosen], reduction="sum") / chosen.sum().clamp(min=1)
        for imitated in self._imitated:
            with torch.no_grad():
                wanted = imitated(input_ids, attention_mask).float()
            best = fused_sparse_head(states, attention_mask, head.weight, head.bias, activation="softplus")
            distance = (torch.log1p(best) - wanted).square().sum(1) / wanted.square().sum(1).clamp(min=1)
            loss = loss + self.weight * distance.mean()
        return {"loss": loss}

    def _mask(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The ids with some tokens replaced, and which those are."""
        eligible = attention_mask.bool() & ~torch.isin(ids, cast(Tensor, self.special))
        chosen = eligible & (torch.rand(ids.shape, device=ids.device) < self.share)
        draw = torch.rand(ids.shape, device=ids.device)
        random = torch.randint(self.backbone.tokenizer.size, ids.shape, device=ids.device)
        masked = torch.where(chosen & (draw < AS_MASK), self.mask_id, ids)
        return torch.where(chosen & (draw >= (1 + AS_MASK) / 2), random, masked), chosen


def _head_of(imitated: Encoder, backbone: Backbone) -> SparseHead:
    head = module_of(imitated.documents)
    if not isinstance(head, SparseHead):
        raise InputError("the encoder to imitate runs no transformer over documents: name a SPLADE model")
    same = head.backbone.tokenizer.vocabulary_hash == backbone.tokenizer.vocabulary_hash
    if not same or head.vocabulary_size != backbone.vocabulary_size:
        raise MismatchError("the encoder to imitate has another vocabulary than the body: their terms have other ids")
    return head.to(backbone.device).eval().requires_grad_(False)


def _arguments(options: PretrainOptions, work: Path, *, cpu: bool) -> transformers.TrainingArguments:
    cuda = torch.cuda.is_available() and not cpu
    arguments = transformers.TrainingArguments(
        output_dir=str(work),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=options.steps // 10,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        seed=options.seed,
        bf16=cuda,
        tf32=True if cuda else None,
        use_cpu=not cuda,
        logging_steps=max(1, options.steps // 50),
        save_steps=max(1, options.steps // 4),
        save_total_limit=1,
        dataloader_num_workers=4 if cuda else 0,
        dataloader_pin_memory=cuda,
        dataloader_drop_last=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _last_checkpoint(work: Path, what: dict[str, Any]) -> Path | None:
    """Where to go on, if ``work`` is of the same call; a folder of another one is cleared."""
    note = work / OPTIONS_FILE
    found = list(checkpoints(work).values())
    if found and note.is_file() and json.loads(note.read_text(encoding="utf-8")) == what:
        return found[-1]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with replacing(note) as file:
        json.dump(what, file)
    return None


class _Trainer(transformers.Trainer):
    """Saves weights that have two names once."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or cast(str, self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(cast(torch.nn.Module, self.model), str(folder / WEIGHTS_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_weights(cast(torch.nn.Module, self.model), Path(resume_from_checkpoint))


class _Bar(transformers.TrainerCallback):
    """A progress bar with the loss."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="pretraining", unit=" steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()
