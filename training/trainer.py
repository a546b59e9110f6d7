"""The training loop: transformers.Trainer with our batches, objective, validation and stops."""

import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from lsr.encoder import Encoder
from lsr.errors import InputError, LsrWarning
from lsr.heads import SparseHead, module_of
from lsr.lookup import LookupEncoder
from lsr.tokenizer import ModelTokenizer
from lsr.training.batches import CALL_TOKENS, Chunk, ExampleSampler, PlannedCollator
from lsr.training.checkpoints import OBJECTIVE_FILE, WEIGHTS_FILE, best_steps, checkpoints, load_weights, prune
from lsr.training.config import TrainConfig
from lsr.training.data import Batch, Collator, Scorer, TrainingSet
from lsr.training.gradient_cache import cached_backward
from lsr.training.losses import Loss, TermRecall
from lsr.training.objective import Objective, SideObjective
from lsr.training.regularizers import n_processes
from lsr.training.sparsity import check_health, limit_of
from lsr.training.validation import Validate

SIDES = ("queries", "documents")


class Pair(torch.nn.Module):
    """Both sides of an encoder as one module: a batch in, query and document vectors out.

    Raises:
        InputError: a side cannot be trained at all (BM25), or nothing in the two can.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.queries = module_of(encoder.queries)
        self.documents = module_of(encoder.documents)
        self.alike = _are_alike(self.queries, self.documents)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise InputError("neither side of the encoder has anything to train: choose another head")

    def forward(self, batch: Batch, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Vectors of a chunk's queries (c, V) and documents (c·n, V), float32.

        Documents of like length go through the encoder together, so that little of it is padding. Where texts are
        not padded at all and both sides are one module, a single call takes all.
        """
        first, end, longest = chunk["queries"]
        ids, mask = batch["query_ids"][first:end, :longest], batch["query_mask"][first:end, :longest]
        parts = []
        for start, stop, longest in chunk["parts"]:
            rows = chunk["order"][start:stop]
            parts.append((batch["document_ids"][rows, :longest], batch["document_mask"][rows, :longest]))
        if self.alike and cast(SparseHead, self.documents).backbone.packs:
            made = self.documents(*(_stacked(side) for side in zip((ids, mask), *parts, strict=True)))
            queries, documents = made[: len(ids)], made[len(ids) :]
        else:
            queries, documents = self.queries(ids, mask), torch.cat([self.documents(*part) for part in parts])
        return queries, documents[chunk["inverse"]]


def _are_alike(queries: Any, documents: Any) -> bool:
    """Whether two sides are the same function: one kind of head over one backbone, with no weights of its own."""
    if not (isinstance(queries, SparseHead) and isinstance(documents, SparseHead)):
        return False
    same = type(queries) is type(documents) and queries.backbone is documents.backbone
    return same and queries.config() == documents.config() and not documents.own_state()


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths below each other, zeros behind the shorter."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])


class SparseTrainer(transformers.Trainer):
    """transformers.Trainer for sparse encoders.

    Args:
        encoder: made by `lsr.methods.build_encoder`; it is trained in place.
        config: what to do.
        training_set: examples.
        folder: for checkpoints and logs.
        validate: called at each evaluation; None for none.
        scorer: teacher scores on the fly.
        progress: show a bar and a line per log on stderr.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: TrainConfig,
        training_set: TrainingSet,
        folder: Path,
        *,
        validate: Validate | None = None,
        scorer: Scorer | None = None,
        progress: bool = True,
    ) -> None:
        self.encoder, self.config, self.validate = encoder, config, validate
        arguments = training_arguments(config, folder, validating=validate is not None)
        if scorer is not None:
            arguments.dataloader_num_workers, arguments.dataloader_persistent_workers = 0, False  # a teacher is here
        query_tokenizer, document_tokenizer = (
            cast(Any, side).tokenizer for side in (encoder.queries, encoder.documents)
        )
        collator = Collator(query_tokenizer, document_tokenizer, training_set, scorer=scorer, progress=progress)
        super().__init__(
            model=Pair(encoder),
            args=arguments,
            data_collator=PlannedCollator(collator, config.training.queries_a_pass, CALL_TOKENS[arguments.device.type]),
            train_dataset=cast(Any, training_set),
            eval_dataset=cast(Any, training_set),  # never looked at: `evaluate` calls `validate`
        )
        for shown in (transformers.PrinterCallback, transformers.ProgressCallback):
            self.remove_callback(shown)
        self.add_callback(_Schedule(config))
        if progress and self.is_world_process_zero():
            self.add_callback(_Console(config))
        loss = _with_special_ids(config.loss, document_tokenizer)
        self._fixed = {
            side: f"check that the IDF table (encoder.{side}.idf) has weights for the terms of these texts"
            for side in SIDES
            if not any(parameter.requires_grad for parameter in getattr(self.model, side).parameters())
        }
        sides = {side: self._side(side) for side in SIDES}
        self.objective: Objective = Objective(loss, sides["queries"], sides["documents"], arguments.device)

    def _is_dense(self, name: str) -> bool:
        """Whether a side's weights are nowhere zero while it is trained."""
        module = getattr(self.model, name)
        return isinstance(module, SparseHead) and module.config().get("activation") == "softplus"

    def _side(self, name: str) -> SideObjective:
        regularizer = getattr(self.config.regularizer, name)
        if regularizer is not None and name in self._fixed:
            raise InputError(f"regularizer.{name}: the weights of this side are fixed: leave its regularizer out")
        idf = None
        if regularizer is not None and regularizer.needs_idf:
            if not isinstance(self.encoder.queries, LookupEncoder):
                raise InputError(
                    f"regularizer.{name}.name = 'idf_flops' needs queries with an IDF table: "
                    "encoder.queries.head = 'lookup'"
                )
            idf = torch.from_numpy(self.encoder.queries.weights)
        return SideObjective(regularizer, self.encoder.vocabulary_size, self.args.device, idf)

    # --- one step ------------------------------------------------------------------------------

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The gradient of an optimizer step, in one pass or several; returns the step's loss."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        batch, chunks, step = cast(Batch, inputs), inputs["chunks"], self.state.global_step
        if len(chunks) > 1:
            return cached_backward(
                [lambda chunk=chunk: model(batch, chunk) for chunk in chunks],  # type: ignore[misc]
                lambda queries, documents: self.objective(queries, documents, batch, step),
                self.accelerator.backward,
                no_sync=lambda: self.accelerator.no_sync(model),
            )
        queries, documents = model(batch, chunks[0])
        loss: Tensor = self.objective(queries, documents, batch, step)
        self.accelerator.backward(loss)
        return loss.detach()

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[Any]:
        options = self.config.training
        length = options.steps * options.queries_a_step * n_processes()
        return ExampleSampler(cast(TrainingSet, self.train_dataset), length, options.seed)

    # --- logs and validation -------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's numbers to a log line of the training, and stop where it went wrong."""
        if "loss" in logs:
            ranking, sides = self.objective.take()
            step = self.state.global_step
            logs["ranking_loss"] = ranking
            for side, values in sides.items():
                logs |= {f"{side}_{name}": value for name, value in values.items()}
            super().log(logs, start_time)
            size = self.encoder.vocabulary_size
            limits = {
                side: limit_of(getattr(self.config.regularizer, side), size, step, dense=self._is_dense(side))
                for side in SIDES
            }
            check_health(step, {"ranking": ranking}, sides, limits, self._fixed)
        else:
            super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate on the first process, and tell the others."""
        metrics: dict[str, float] = {}
        if self.validate is not None:
            told: list[Mapping[str, float]] = [{}]
            if self.is_world_process_zero():
                with evaluating(cast(torch.nn.Module, self.model)):
                    told = [self.validate(self.encoder)]
            if n_processes() > 1:
                torch.distributed.broadcast_object_list(told)
            metrics = {f"eval_{name}": float(value) for name, value in told[0].items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- checkpoints ---------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or cast(str, self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(cast(torch.nn.Module, self.model), str(folder / WEIGHTS_FILE))
        state = self.objective.state() or {"none": torch.zeros(0)}
        safetensors.torch.save_file(state, folder / OBJECTIVE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_weights(cast(torch.nn.Module, self.model), folder)
        self.objective.load_state(safetensors.torch.load_file(folder / OBJECTIVE_FILE))


def training_arguments(config: TrainConfig, folder: Path, *, validating: bool) -> transformers.TrainingArguments:
    """The arguments of transformers' Trainer for a config.

    Raises:
        InputError: the device or the precision is not to be had.
    """
    options = config.training
    cuda = torch.cuda.is_available() and options.device != "cpu"
    if options.device == "cuda" and not cuda:
        raise InputError("training.device = 'cuda', and there is no CUDA device here: leave it out, or say 'cpu'")
    bf16 = options.precision == "bfloat16" or (options.precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    every = options.evaluate_every or options.steps
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.queries_a_step,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else options.schedule,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        optim="adamw_torch_fused",
        seed=options.seed,
        bf16=bf16,
        tf32=True if cuda and bf16 else None,
        use_cpu=not cuda,
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,  # a NaN is to be seen
        eval_strategy="steps" if validating else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        metric_for_best_model="ndcg@10" if validating else None,
        greater_is_better=True if validating else None,
        dataloader_num_workers=options.workers,
        dataloader_persistent_workers=options.workers > 0,
        dataloader_pin_memory=cuda,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="tensorboard" if _has_tensorboard() else "none",
        log_level="error",
        ddp_find_unused_parameters=None,
    )
    if arguments.n_gpu > 1:
        warnings.warn(
            f"{arguments.n_gpu} GPUs are visible and one is used: start one process per GPU, "
            f"torchrun --nproc-per-node {arguments.n_gpu} -m lsr.cli train …",
            LsrWarning,
            stacklevel=2,
        )
        arguments._n_gpu = 1
    return arguments


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _with_special_ids(loss: Loss, tokenizer: ModelTokenizer) -> Loss:
    if isinstance(loss, TermRecall):
        return dataclasses.replace(loss, special_ids=tuple(tokenizer.special_ids.tolist()))
    return loss


def _has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


class _Schedule(transformers.TrainerCallback):
    """Log, validate and save together, at the end too; keep the checkpoints that are wanted."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.global_step >= state.max_steps
        if last:
            control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"
        if control.should_save:
            control.should_log = True  # broken weights are found before they are saved

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        options = self.config.training
        last = list(checkpoints(Path(args.output_dir)))[-options.keep :]
        best = best_steps(scores_of(state.log_history), options.keep if options.average == "best" else 1)
        prune(Path(args.output_dir), [*last, *best])


def scores_of(log_history: list[dict[str, float]]) -> dict[int, float]:
    """nDCG@10 by step."""
    return {int(line["step"]): line["eval_ndcg@10"] for line in log_history if "eval_ndcg@10" in line}


class _Console(transformers.TrainerCallback):
    """A progress bar, and a line for each log."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        line = log_line(state.global_step, state.max_steps, logs or {})
        if line:
            tqdm.write(line, file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def log_line(step: int, steps: int, logs: Mapping[str, float]) -> str:
    """One line for people: loss, and per side FLOPS, terms and λ; or nDCG and per side sparsity of a validation."""
    if "ranking_loss" in logs:
        sides = " | ".join(
            f"{side} {logs[f'{side}_nnz']:.1f} terms, FLOPS {logs[f'{side}_flops']:.4g}, λ {logs[f'{side}_lambda']:.3g}"
            for side in SIDES
        )
        return f"step {step}/{steps}: loss {logs['loss']:.4f} (ranking {logs['ranking_loss']:.4f}) | {sides}"
    if "eval_ndcg@10" in logs:
        parts = [_statistics(side, logs) for side in SIDES if f"eval_{side}_nnz_p50" in logs]
        return " | ".join([f"step {step}/{steps}: validation nDCG@10 {logs['eval_ndcg@10']:.4f}", *parts])
    return ""


def _statistics(side: str, logs: Mapping[str, float]) -> str:
    """How sparse a side's vectors were in a validation."""
    of = {name.removeprefix(f"eval_{side}_"): value for name, value in logs.items() if name.startswith(f"eval_{side}_")}
    return (
        f"{side} {of['nnz']:.1f} terms (p50 {of['nnz_p50']:.0f}, p99 {of['nnz_p99']:.0f}), FLOPS {of['flops']:.4g}, "
        f"{of['empty']:.1%} empty, {of['dead_terms']:,.0f} dead and {of['overused_terms']:,.0f} over-used terms"
    )
