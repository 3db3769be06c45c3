"""`moxin-lab bench sft`: steps of supervised fine-tuning, of ours and of TRL's `SFTTrainer`, with
the same model, data and machine.

Both train the same checkpoint on the same conversations in the same order, with the loss on answers
only and with the same update (AdamW), precision, batch and micro-batch. Ours runs padded, as TRL
does, and packed. TRL runs the checkpoint as transformers' Mistral with SDPA; one padded row of ours
uses SDPA too, which separates the effect of attention. Each row names its layout and attention. In
every step TRL's trainer reads the loss and computes entropy and token accuracy; ours reads the loss
and the gradient norm.

Guarantees: rows run one after the other in one process, on one device; the time of a step is that
between the ends of two steps, on a GPU after a synchronisation; only tokens of conversations are
counted, never padding, so packing is credited for what it saves; each row holds the loss of its
first step, which shows that the rows do equal work; a row that cannot run holds its reason.
Out of scope: start-up, compilation (each row trains twice and the second training counts),
tokenisation, saving.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moxin_lab.bench import free_memory, peak_bytes, say
from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.posttraining.chat import Encoded

Layout = Literal["padded", "packed"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="runs/tiny/04_pretraining/pretrained",
        metavar="FOLDER",
        help="checkpoint with tokenizer (default: runs/tiny/04_pretraining/pretrained)",
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default 20)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those (default 3)")
    parser.add_argument(
        "--passes",
        type=int,
        default=2,
        help="trainings per row (default 2); the last one counts, the others compile for every "
        "shape of the data",
    )
    parser.add_argument("--batch", type=int, default=32, help="conversations per step (default 32)")
    parser.add_argument(
        "--micro-batch", type=int, default=32, help="conversations per forward pass (default 32)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=256,
        help="longer conversations are omitted (default 256)",
    )
    parser.add_argument(
        "--max-difficulty", type=int, default=3, help="rows of data_cards/instructions up to this"
    )
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")


@keeping("sft")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: ours padded (two attention backends), ours packed, TRL padded; their columns are what,
    layout, attention and those of `_measures`.
    """
    import pandas as pd
    import torch
    from transformers import AutoTokenizer

    from moxin_lab.lab.artifacts import LabError, find_root
    from moxin_lab.posttraining import chat
    from moxin_lab.training.fit import Order

    folder = Path(options.model)
    if options.device == "cuda" and torch.cuda.device_count() > 1:
        raise LabError(
            "transformers' trainer would use all GPUs, ours would not: "
            "set CUDA_VISIBLE_DEVICES to one"
        )
    if not (folder / "config.json").is_file():
        raise LabError(
            f"{folder} is not a checkpoint folder: create it with moxin-lab run --scale tiny, "
            "or give --model"
        )
    if options.passes < 1 or options.warmup < 1 or options.steps < 1:
        raise LabError("--passes, --warmup and --steps must be at least 1")
    if options.batch % options.micro_batch:
        raise LabError(
            f"--batch {options.batch} is not a multiple of --micro-batch {options.micro_batch}"
        )
    tokenizer = chat.install_template(AutoTokenizer.from_pretrained(folder))
    card = pd.read_parquet(
        find_root(".") / "data_cards" / "instructions" / "data" / "train.parquet"
    )
    conversations = [
        list(messages)
        for messages in card["messages"][card["difficulty"] <= options.max_difficulty]
    ]
    needed = (options.steps + options.warmup) * options.batch
    encoded: list[chat.Encoded] = []
    for index, conversation in enumerate(conversations):
        example, _ = chat.encode(conversation, tokenizer, max_tokens=10**6, index=index)
        if example is not None and len(example) <= options.max_tokens:
            encoded.append(example)
        if len(encoded) == needed:
            break
    else:
        raise LabError(
            f"{needed} conversations are needed and {len(encoded)} fit: lower --steps or --batch"
        )
    # Our stream reads in this order; the peer reads its data set in sequence.
    order = Order(needed, examples_per_step=options.batch, epochs=1, seed=0)
    in_order = [encoded[index] for step in range(order.num_steps) for index in order.step(step)]
    texts = [conversations[example.index] for example in in_order]
    jobs: list[tuple[str, Layout, str, Callable[..., dict[str, Any]]]] = [
        ("moxin-lab", "padded", "auto", partial(_ours, folder, tokenizer, encoded)),
        ("moxin-lab", "padded", "sdpa", partial(_ours, folder, tokenizer, encoded)),
        ("moxin-lab", "packed", "auto", partial(_ours, folder, tokenizer, encoded)),
        ("TRL SFTTrainer", "padded", "sdpa", partial(_trl, folder, tokenizer, texts)),
    ]
    rows: list[dict[str, Any]] = []
    result = {"rows": rows, "conversations": needed, "tokens": sum(map(len, encoded))}
    for name, layout, attention, train in jobs:
        free_memory(options.device)
        row: dict[str, Any] = {"what": name, "layout": layout, "attention": attention}
        try:
            for _ in range(options.passes):  # the last one counts
                row |= train(in_order, options, layout, attention)
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            row["reason"] = f"{type(error).__name__}: {error}"[:300]
        say(f"   {row}")
        rows.append(row)
        keep(result)
    return result


def _measures(
    step_ends: list[float],
    first_loss: float,
    in_order: list[Encoded],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Columns of a row, from the times at which the steps ended, without the warm-up steps."""
    seconds = [later - earlier for earlier, later in pairwise(step_ends)][options.warmup - 1 :]
    timed = in_order[options.warmup * options.batch :]
    return {
        "tokens_per_second": sum(map(len, timed)) / sum(seconds),
        "median_step_seconds": statistics.median(seconds),
        "steps": len(seconds),
        "first_loss": first_loss,
        "peak_bytes": peak_bytes(options.device),
    }


def _ours(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    encoded: list[Encoded],
    in_order: list[Encoded],
    options: argparse.Namespace,
    layout: Layout,
    attention: str,
) -> dict[str, Any]:
    from types import SimpleNamespace

    import torch

    from moxin_lab.model import convert
    from moxin_lab.posttraining import sft
    from moxin_lab.posttraining.batches import ConversationStream
    from moxin_lab.training.fit import fit_language_model

    stream = ConversationStream(
        encoded,
        examples_per_step=options.batch,
        epochs=1,
        row_tokens=options.max_tokens,
        seed=0,
        pad_id=tokenizer.pad_token_id,
        layout=layout,
    )
    settings = SimpleNamespace(
        learning_rate=1e-4,
        warmup_ratio=0.0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_eps=1e-8,
        gradient_clip_norm=1.0,
        precision=options.precision,
        micro_batch_examples=options.micro_batch,
        checkpoint_every_steps=10**9,
    )
    step_ends: list[float] = []

    def record_end(step: int, total: int, text: str) -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()
        step_ends.append(time.perf_counter())

    model = convert.from_pretrained(folder)
    model.attention_backend = attention
    with tempfile.TemporaryDirectory() as work:
        log = fit_language_model(
            model,
            stream,
            settings,
            sft.sft_loss(),
            resume_folder=Path(work),
            text="bench",
            progress=record_end,
            trainer_options={"accelerator": "gpu" if options.device == "cuda" else "cpu"},
        )
    return {"attention": _backend_name(model, attention, layout, options)} | _measures(
        step_ends, float(log["loss"][0]), in_order, options
    )


def _backend_name(
    model: MoxinForCausalLM, attention: str, layout: Layout, options: argparse.Namespace
) -> str:
    """The attention backend, and for "auto" the one that it selected."""
    import torch

    from moxin_lab.model.attention import choose_backend
    from moxin_lab.model.mask import AttentionMask

    if attention != "auto":
        return attention
    dtype = torch.bfloat16 if options.precision == "bf16-mixed" else torch.float32
    query = torch.empty(
        1,
        model.config.num_attention_heads,
        2,
        model.config.head_dim,
        dtype=dtype,
        device=options.device,
    )
    documents = (
        torch.zeros(1, 2, dtype=torch.int64, device=options.device) if layout == "packed" else None
    )
    mask = AttentionMask.build(
        2, sliding_window=None, document_ids=documents, device=options.device
    )
    return f"auto ({choose_backend(query, mask)})"


def _trl(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[list[dict[str, str]]],
    in_order: list[Encoded],
    options: argparse.Namespace,
    layout: Layout,
    attention: str,
) -> dict[str, Any]:
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    step_ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            if options.device == "cuda":
                torch.cuda.synchronize()
            step_ends.append(time.perf_counter())

        def on_log(
            self, arguments: Any, state: Any, control: Any, logs: Any = None, **more: Any
        ) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as work:
        arguments = SFTConfig(
            output_dir=work,
            per_device_train_batch_size=options.micro_batch,
            num_train_epochs=1,
            learning_rate=1e-4,
            gradient_accumulation_steps=options.batch // options.micro_batch,
            lr_scheduler_type="linear",
            warmup_steps=0,
            optim="adamw_torch_fused",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=options.max_tokens,
            assistant_only_loss=True,
            packing=layout == "packed",
            bf16=options.precision == "bf16-mixed",
            report_to=[],
            gradient_checkpointing=False,
            use_cpu=options.device != "cuda",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32
        )
        trainer = SFTTrainer(
            model,
            args=arguments,
            processing_class=tokenizer,
            callbacks=[Clock()],
            train_dataset=datasets.Dataset.from_dict({"messages": conversations}),
        )
        trainer.train()
    return _measures(step_ends, losses[0], in_order, options)
