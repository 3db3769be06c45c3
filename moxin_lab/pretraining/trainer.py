"""One Lightning training over all phases: module, callbacks, and `fit`.

Guarantees: the loss of a step is the mean over the step's targets, however the step is split into
micro-batches and ranks; a run killed and started again continues from its last resume point with
bitwise the same weights and losses on the CPU (batches are a function of the step, random states
are in the checkpoint); weights at the end of each phase are saved as a Hugging Face folder in one
lineage.
On a GPU the blocks and the loss are compiled, a step's passes are one CUDA graph, and under
bf16-mixed the stream between the blocks is bfloat16, as the products are. With `parallel` the model
is sharded over ranks (parallel.py), and without dropout any number of ranks continues the run.
Out of scope: CUDA graphs of a sharded model.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining import parallel as parallelism
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.pretraining.parallel import ParallelSettings, own_share, shard
from moxin_lab.scales.sections import PretrainingSettings
from moxin_lab.training.compiled import GraphedPass, compiled_blocks
from moxin_lab.training.loss import IGNORE_INDEX, linear_cross_entropy
from moxin_lab.training.optimizer import adamw_of
from moxin_lab.training.resume import ExactResume, run_to_end, with_defaults, world_size
from moxin_lab.training.schedules import pretraining_learning_rate
from moxin_lab.training.step_log import StepLog

# Tokens whose logits are held at once. A GPU wants large products (16,384 x 32,000 logits of
# bfloat16 are 1 GB); on a processor 512 x 8,192 logits stay in its cache, which takes a tenth off
# the tiny model's step (`moxin-lab bench train-step`, reports/released/train-step-tiny-cpu).
LOSS_CHUNK = {"cuda": 16384, "cpu": 512}


class Pretraining(ExactResume):
    """A causal language model (`hidden_states(input_ids, document_ids=...) -> [B, T, C]`,
    `lm_head`, `config`) under AdamW and a cosine.
    """

    def __init__(
        self,
        model: MoxinForCausalLM,
        stream: TrainingStream,
        settings: PretrainingSettings,
        loss: Callable[..., torch.Tensor] = linear_cross_entropy,
        graphs: bool = False,
        parallel: ParallelSettings | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(stream)
        self.model = model
        self._settings, self._loss = settings, loss
        self._parallel, self._compiled = parallel, compiled
        self._call: Callable[..., Any] = lambda function, *arguments: function(model, *arguments)
        self._graphed = GraphedPass(self._sums, model.parameters()) if graphs else None

    def functions(self) -> dict[str, str]:
        """The model's constants, of which its weights show only the shapes, and the seed of weights
        that are yet to be drawn: a model on the meta device has none.
        """
        found = {f"model.{name}": str(value) for name, value in asdict(self.model.config).items()}
        if self._parallel is not None and any(p.is_meta for p in self.model.parameters()):
            found["initial_seed"] = str(self._parallel.seed)
        return found

    def configure_model(self) -> None:
        if self._parallel is not None:
            self._call = shard(
                self.model,
                self.device_mesh,
                self._parallel,
                precision=self._settings.precision,
                device=self.trainer.strategy.root_device,
                compiled=self._compiled,
            )

    def training_step(
        self, batch: dict[str, torch.Tensor], batch_index: int
    ) -> dict[str, torch.Tensor]:
        if self._graphed is None:
            return self._sums(batch)
        return dict(self._graphed.load(batch))  # filled by `backward`

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if self._graphed is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._graphed.replay()

    def _sums(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        total = self._call(token_loss, batch, self._loss)
        # Lightning divides by the micro-batches, and gradients are averaged over the ranks that
        # read different rows; undo both, then divide by the step's targets.
        loss = (
            total * (self.trainer.accumulate_grad_batches * self.reader()[1]) / batch["num_targets"]
        )
        targets = (batch["labels"] != IGNORE_INDEX).sum()
        if self._parallel is not None and self.device_mesh["tensor_parallel"].get_local_rank():
            targets = targets * 0  # the first rank of those that read these rows counts them
        return {"loss": loss, "nats": total.detach(), "targets": targets}

    def configure_optimizers(self) -> Any:
        settings = self._settings
        optimizer = adamw(self.model, settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: pretraining_learning_rate(
                step,
                self._stream.num_steps,
                peak=1.0,
                warmup_steps=settings.warmup_steps,
                final_ratio=settings.final_learning_rate_ratio,
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PhaseEnds(Callback):
    """Calls `save(phase index)` after the last step of every phase."""

    def __init__(self, stream: TrainingStream, save: Callable[[int], None]) -> None:
        self._last_steps = {
            phase.first_step + phase.steps: index for index, phase in enumerate(stream.phases)
        }
        self._save = save
        self._saved: set[int] = set()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        index = self._last_steps.get(trainer.global_step)
        if index is not None and index not in self._saved:
            self._saved.add(index)
            self._save(index)


def token_loss(
    model: Any,
    batch: dict[str, torch.Tensor],
    loss: Callable[..., torch.Tensor] = linear_cross_entropy,
) -> torch.Tensor:
    """Sum of the cross-entropy over the targets of a (micro-)batch, in nats; over this rank's share
    of them with tensor parallelism. loss: `linear_cross_entropy` or that function compiled.
    """
    # input_ids [B, T] -> embeddings [B, T, C] -> states [B, T, C]
    embeddings = model.model.embed_tokens(batch["input_ids"])
    device = embeddings.device.type
    if torch.is_autocast_enabled(device):
        # An embedding is a look-up, which autocast leaves in float32, and every sum of the residual
        # stream would be float32 with it: twice the memory traffic between the products.
        embeddings = embeddings.to(torch.get_autocast_dtype(device))
    states = model.hidden_states_from_embeddings(embeddings, document_ids=batch["document_ids"])
    chunk = LOSS_CHUNK.get(device, LOSS_CHUNK["cuda"])
    share = own_share(states, model.lm_head.weight, batch["labels"])
    return loss(*share, chunk_tokens=chunk, reduction="sum")


def adamw(model: nn.Module, settings: PretrainingSettings) -> torch.optim.AdamW:
    """AdamW with a `pretraining` section's constants. Weight decay acts on the matrices of the
    blocks and on the head, not on norms and the embedding table (our choice).
    """
    decayed = [
        p for name, p in model.named_parameters() if p.ndim >= 2 and "embed_tokens" not in name
    ]
    decayed_ids = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in decayed_ids]
    return adamw_of(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        settings,
    )


def accumulation(settings: PretrainingSettings, world_size: int) -> int:
    """Micro-batches per step on one rank. Raises ValueError if the step does not divide evenly."""
    micro, step = settings.micro_batch_tokens * world_size, settings.tokens_per_step
    if step % micro:
        raise ValueError(
            f"tokens_per_step {step} is not a multiple of micro_batch_tokens x ranks = {micro}; "
            "change one of them"
        )
    return step // micro


def uses_gpu(options: dict[str, Any]) -> bool:
    """Whether a trainer with these options trains on a GPU."""
    return options["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def can_be_graphed(
    model: MoxinForCausalLM, settings: PretrainingSettings, options: dict[str, Any]
) -> bool:
    """Whether a step can be one CUDA graph: on one GPU, in one micro-batch (a replay's gradients do
    not add up), without a loss scaler, which scales outside of the graph, and without dropout.
    """
    ranks, config = world_size(options), model.config
    return (
        uses_gpu(options)
        and ranks == 1
        and accumulation(settings, ranks) == 1
        and settings.precision != "16-mixed"
        and not (config.attention_dropout or config.mlp_dropout)
    )


def check_inputs(model: MoxinForCausalLM, stream: TrainingStream, ranks: int) -> None:
    """Raises ValueError for a model whose vocabulary is not the tokenizer's, a context that the
    model has no positions for, and more ranks than documents.
    """
    config = model.config
    if stream.vocab_size != config.vocab_size:
        raise ValueError(
            f"the documents were tokenised with a vocabulary of {stream.vocab_size}, the model has "
            f"{config.vocab_size}: take the tokenizer that the model was made for (stages 02, 03)"
        )
    longest = max(stream.phases, key=lambda phase: phase.sequence_length)
    if longest.sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"phase {longest.name!r} has a context of {longest.sequence_length}, the model "
            f"{config.max_position_embeddings} positions: shorten it or raise "
            "max_position_embeddings"
        )
    window = config.sliding_window
    if window is not None and longest.sequence_length < window:
        raise ValueError(
            f"no phase has a context as long as the model's window: {window} tokens against "
            f"{longest.sequence_length} in phase {longest.name!r}, so the window would never be "
            "trained; lengthen the context or set sliding_window to it"
        )
    documents = stream.num_documents
    if ranks > documents:
        raise ValueError(
            f"{ranks} ranks and {documents} documents: some ranks would read what others read; "
            "take fewer ranks or more documents"
        )


def fit(
    model: MoxinForCausalLM,
    stream: TrainingStream,
    settings: PretrainingSettings,
    *,
    resume_folder: Path | None,
    save_phase: Callable[[int], None],
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
    compiled: bool | None = None,
    graphs: bool | None = None,
    callbacks: Sequence[Callback] = (),
    parallel: ParallelSettings | None = None,
) -> pd.DataFrame:
    """Train `model` in place over the whole stream; the log, one row per step.

    resume_folder: where resume points are kept and looked for; a run that is there is continued;
    None for a run that leaves none. save_phase: called with 0, 1, 2 when that phase has ended, on
    every rank. parallel: shards the model, which may be on the meta device, over its ranks; it is
    sharded afterwards (`parallel.save_pretrained` writes it). compiled: whether blocks and
    loss run compiled; None: on a GPU, where it pays for the minute that compiling takes. graphs:
    whether a step's passes are one CUDA graph; None: where `can_be_graphed`. callbacks: further
    ones. Raises
    ValueError before the first step for inputs that do not fit together (`check_inputs`) and for a
    step that does not divide into micro-batches; besides as `fit` of training/fit.py.
    """

    def row(step: int, sums: dict[str, float]) -> dict[str, float]:
        loss = sums["nats"] / sums["targets"]
        return {"loss": loss, "phase": stream.phase_of(step), "targets": int(sums["targets"])}

    def name(step: int) -> str:
        return stream.phases[stream.phase_of(step)].name

    options, readers = dict(trainer_options or {}), None
    if parallel is not None:
        parallelism.check(model, parallel, settings.precision)
        options, readers = parallelism.trainer_options(options, parallel), parallel.data
    options = with_defaults(options)
    readers_or_ranks = readers or world_size(options)
    check_inputs(model, stream, readers_or_ranks)
    sigmas = getattr(settings, "spike_sigmas", None)
    log = StepLog(stream, progress, name, row, late=uses_gpu(options), spike_sigmas=sigmas)
    if compiled is None:
        compiled = uses_gpu(options)
    loss = torch.compile(linear_cross_entropy, dynamic=False) if compiled else linear_cross_entropy
    if graphs is None:
        graphs = compiled and parallel is None and can_be_graphed(model, settings, options)
    with compiled_blocks(model.model.layers, on=compiled and parallel is None):
        run_to_end(
            Pretraining(model, stream, settings, loss, graphs, parallel, compiled),
            [log, PhaseEnds(stream, save_phase), *callbacks],
            settings,
            num_steps=stream.num_steps,
            accumulate=accumulation(settings, readers_or_ranks),
            resume_folder=resume_folder,
            options=options,
            text=name,
            readers=readers,
        )
    table = log.table()
    columns = ["step", "phase", "loss", "targets", "gradient_norm", "learning_rate", "skipped"]
    return table[columns + [name for name in table if name == "reads"]]


def replay(
    model: MoxinForCausalLM, stream: TrainingStream, step: int, *, micro_batch_tokens: int
) -> tuple[float, float]:
    """Loss in nats per target and gradient norm of a step's batch on a model as it is, such as a
    step that the log says was skipped. Nothing is changed but the gradients, which are cleared.
    """
    device, total = next(model.parameters()).device, 0.0
    parts = max(1, stream.tokens_per_step // micro_batch_tokens)
    model.zero_grad(set_to_none=True)
    for part in range(parts):
        read = stream.batch(step, part=part, parts=parts)
        batch = {name: torch.as_tensor(values, device=device) for name, values in read.items()}
        loss = token_loss(model, batch) / batch["num_targets"]
        loss.backward()
        total += float(loss.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    model.zero_grad(set_to_none=True)
    return total, float(norm)


def fit_timed(
    model: MoxinForCausalLM, stream: TrainingStream, settings: PretrainingSettings, **options: Any
) -> tuple[pd.DataFrame, float]:
    """`fit`, and the seconds of its steps over all attempts. Options are those of `fit`."""
    log = fit(model, stream, settings, **options)
    return log, log.attrs["seconds"]
