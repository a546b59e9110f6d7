"""A pretrained transformer, taken apart for sparse heads: token states on one hand, the projection on the other."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad

from lsr.errors import FormatError, InputError
from lsr.int8 import pack_weights
from lsr.packing import packable, run_packed
from lsr.tokenizer import ModelTokenizer, compact_json

#: Settings that decide vectors and show in no weight; other versions of transformers keep their names.
DECISIVE = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta", "local_attention")

#: Kernels of attention on a GPU. cuDNN's is left out: it makes a plan for each shape, which takes tens of milliseconds,
#: and nearly every batch of texts has a shape of its own.
ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

#: Bytes of weights that are written to one file.
ONE_FILE = 1 << 50

#: Tokens that fill a device: a smaller group of texts would not run faster for being smaller.
GROUP_TOKENS = {"cpu": 256, "cuda": 65_536}


class Backbone(torch.nn.Module):
    """A transformer with or without its masked-LM head; several sparse heads may share one.

    The head's last linear layer is taken out of the Hugging Face model, so that calling it gives the
    states that the layer would have seen; `lsr.sparse_head` then applies the layer block by block.

    Args:
        model: a ``PreTrainedModel`` for masked language modelling, in evaluation mode.
        hf_tokenizer: its ``PreTrainedTokenizerFast``.
        with_head: whether the masked-LM head is kept; without it there are hidden states only.

    Raises:
        FormatError: the tokenizer has more terms than the model, or the architecture cannot be taken apart.
    """

    def __init__(self, model: Any, hf_tokenizer: Any, *, with_head: bool = True) -> None:
        super().__init__()
        self._hf_tokenizer = hf_tokenizer
        self.tokenizer = ModelTokenizer(hf_tokenizer.backend_tokenizer.to_str(), max_length=512)
        self.vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        self.projection: torch.nn.Linear | None = None
        if with_head:
            self.projection = model.get_output_embeddings()
            self.vocabulary_size = self.projection.out_features
        if self.tokenizer.size > self.vocabulary_size:
            raise FormatError(
                f"the tokenizer has {self.tokenizer.size:,} terms but the model only {self.vocabulary_size:,}: "
                "they belong to different models"
            )
        self.model = model if with_head else model.base_model
        if self.projection is not None:
            self._take_out(self.projection)
        self.max_length = _positions(self.model)
        self.n_special = len(self.tokenizer([""]).ids[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def packs(self) -> bool:
        """Whether texts run without padding, so that long and short ones may go through the model together."""
        return self.device.type == "cuda" and packable(self.model)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.hidden_size)

    def head(self) -> torch.nn.Linear:
        """The masked-LM head's last layer.

        Raises:
            InputError: the backbone has no such head.
        """
        if self.projection is None:
            raise InputError(
                f"the backbone {type(self.model).__name__} has no masked-LM head, and this encoder needs one: give a "
                '...ForMaskedLM checkpoint, or head_init = "embeddings" to start a new head from the word embeddings'
            )
        return self.projection

    def embeddings(self) -> torch.nn.Embedding:
        """The static word embeddings, (vocabulary, hidden)."""
        table: torch.nn.Embedding = self.model.get_input_embeddings()
        return table

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What `head` is applied to: (texts, length, hidden), of no meaning where there is no token."""
        self.head()
        (states,) = self._run(lambda **inputs: (self.model(**inputs).logits,), input_ids, attention_mask)
        return states

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last layer's states, (texts, length, hidden), of no meaning where there is no token."""
        body = self.model.base_model
        (hidden,) = self._run(lambda **inputs: (body(**inputs).last_hidden_state,), input_ids, attention_mask)
        return hidden

    def states_and_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """`states` and `hidden` of one pass."""
        self.head()

        def both(**inputs: Any) -> tuple[Tensor, ...]:
            output = self.model(**inputs, output_hidden_states=True)
            return output.logits, output.hidden_states[-1]

        states, hidden = self._run(both, input_ids, attention_mask)
        return states, hidden

    def _run(
        self, run: Callable[..., tuple[Tensor, ...]], input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """``run`` without the cost of padding: a GPU takes texts packed in one row, a CPU groups of like length."""
        if torch.compiler.is_exporting():
            return run(input_ids=input_ids, attention_mask=attention_mask)
        if not input_ids.is_cuda:
            return _by_length(run, input_ids, attention_mask)
        with sdpa_kernel(ATTENTION_KERNELS):
            if self.packs:
                return run_packed(self.model, run, input_ids, attention_mask)
            return _by_length(run, input_ids, attention_mask)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration, the tokenizer's hash and the digests of all weights.

        The digests are sorted: names of weights differ between versions of transformers.
        """
        config = {name: getattr(self.model.config, name, None) for name in DECISIVE}
        digests = sorted(digest(parameter) for parameter in self.parameters())
        parts = [json.dumps(config, sort_keys=True, default=str), self.tokenizer.hash, *digests]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write a Hugging Face folder: configuration, weights in ``dtype``, tokenizer.

        With "int8" the weights are in a file that lsr alone reads (`lsr.int8`).

        Raises:
            InputError: weights that are not finite would be saved as int8.
        """
        kept = torch.float32 if dtype == "int8" else getattr(torch, dtype)
        if self.projection is not None:
            self.model.set_submodule(self._place, self.projection)
        try:
            weights = _cast(self.model.state_dict(), kept)
            self.model.save_pretrained(folder, state_dict=weights, max_shard_size=ONE_FILE)
        finally:
            if self.projection is not None:
                self.model.set_submodule(self._place, torch.nn.Identity())
        if dtype == "int8":
            pack_weights(folder)
        _note_dtype(folder / "config.json", dtype)
        self.save_tokenizer(folder)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer as Hugging Face's libraries read it."""
        self._hf_tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        path.write_text(compact_json(path.read_text(encoding="utf-8")), encoding="utf-8")

    def _take_out(self, projection: torch.nn.Linear) -> None:
        expected = self._logits()
        self._place = next(name for name, module in self.model.named_modules() if module is projection)
        self.model.set_submodule(self._place, torch.nn.Identity())
        with torch.inference_mode():
            unchanged = torch.allclose(projection(self._logits()), expected, atol=1e-3)
        if not unchanged:
            raise FormatError(
                f"{type(self.model).__name__} changes its logits after the last linear layer: this architecture is "
                "not supported as an MLM encoder"
            )

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        """The model's output on four arbitrary tokens."""
        ids = torch.arange(4, device=self.model.device)[None] % self.tokenizer.size
        output: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return output


def length_groups(lengths: Sequence[int], least: int) -> list[list[int]]:
    """Positions of texts, the longest first, in groups whose texts are padded to the longest of the group.

    A group has ``least`` tokens, padding included, before another is begun, and another is begun where it
    spares a quarter of the positions.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[groups[-1][0]] if groups else 0
        if not groups or (longest * len(groups[-1]) >= least and 4 * lengths[i] <= 3 * longest):
            groups.append([])
        groups[-1].append(i)
    return groups


def _by_length(run: Callable[..., tuple[Tensor, ...]], input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
    """``run`` over the texts in groups of similar length, the results as if it had run over all at once.

    Half of a batch is padding where lengths differ as they do in real collections: it costs neither time nor
    memory here.
    """
    width = input_ids.shape[1]
    ends = torch.arange(1, width + 1, device=attention_mask.device) * (attention_mask != 0)
    lengths = ends.amax(1).clamp_(min=1).tolist()
    groups = length_groups(lengths, GROUP_TOKENS.get(input_ids.device.type, GROUP_TOKENS["cuda"]))
    parts = []
    for group in groups:
        longest = lengths[group[0]]
        rows = slice(None) if len(groups) == 1 else torch.tensor(group, device=input_ids.device)
        made = run(input_ids=input_ids[rows, :longest], attention_mask=attention_mask[rows, :longest])
        parts.append([pad(states, (0, 0, 0, width - longest)) for states in made])
    if len(parts) == 1:
        return tuple(parts[0])
    order = torch.tensor([i for group in groups for i in group], device=input_ids.device).argsort()
    return tuple(torch.cat(some)[order] for some in zip(*parts, strict=True))


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values as float32."""
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _positions(model: Any) -> int:
    """Positions the model has, special tokens included."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(module.num_embeddings) - int(padding) - 1  # positions are counted from behind the padding id
    return int(getattr(model.config, "max_position_embeddings", None) or 512)


def _cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights in ``dtype``; what was one tensor under two names stays one."""
    cast: dict[int, Tensor] = {}
    for tensor in weights.values():
        if tensor.data_ptr() not in cast:
            cast[tensor.data_ptr()] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: cast[tensor.data_ptr()] for name, tensor in weights.items()}


def _note_dtype(path: Path, dtype: str) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["dtype"] = dtype
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
