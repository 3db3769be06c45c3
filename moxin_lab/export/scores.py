"""Bits per byte of an export beside those of its source, on text that the caller names.

    texts = read_texts(Path("heldout.parquet"), max_bytes=20_000)
    table = before_and_after(model, tokenizer, Path("exported"), "torchao-int8", texts)

Guarantees: both are scored on the same documents with the source's tokenizer, the export as it is
read back from its folder; the difference is paired by document.
Out of scope: whether a text was trained on, which the caller knows (stage 01 holds pages out).
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from moxin_lab.evaluation import bits_per_byte as bpb
from moxin_lab.evaluation.statistics import bootstrap_interval, paired_bootstrap
from moxin_lab.lab import sampling
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import convert, gguf_reader
from moxin_lab.model.decoder import MoxinForCausalLM

CONTEXT = 512
"""Most tokens of a window, our choice: enough for a comparison, and quick on a CPU."""
LN2 = 0.6931471805599453


def read_texts(path: Path, max_bytes: int) -> list[str]:
    """Documents of a parquet file with a column `text`, or the paragraphs of a text file, in their
    order, up to `max_bytes` UTF-8 bytes. Raises LabError.
    """
    try:
        if path.suffix == ".parquet":
            texts = pq.read_table(path, columns=["text"]).column("text").to_pylist()
        else:
            texts = [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n")]
    except (OSError, ValueError, KeyError) as error:  # missing, not UTF-8, no such column
        raise LabError(
            f"--text {path} cannot be read: {error}. Give a parquet file with a column text, or a "
            "UTF-8 text file"
        ) from error
    chosen, left = [], max_bytes
    for text in filter(None, texts):
        part = sampling.beginning(text, left)
        left -= len(part.encode())
        if part:
            chosen.append(part)
        if part != text:  # cut, so that no bytes are left
            break
    if not chosen:
        raise LabError(f"--text {path} holds no text")
    return chosen


def before_and_after(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    target: str,
    texts: list[str],
) -> dict[str, Any]:
    """Bits per byte of the source and of the export, and their difference, each with its 95 %
    interval over documents (bootstrap). Raises LabError for a tokenizer that loses some text.
    """
    try:
        tokens = bpb.encode_documents(tokenizer, texts)
        bos = bpb.prefix_token_id(tokenizer)
    except ValueError as error:
        raise LabError(str(error)) from error
    num_bytes = [len(text.encode()) for text in texts]
    config = model.config
    context = min(CONTEXT, config.sliding_window or CONTEXT, config.max_position_embeddings)
    before, after = (
        bpb.document_losses(scored, tokens, context=context, bos_id=bos) / LN2
        for scored in (model, read_back(folder, target))
    )
    estimates = {
        "bits_per_byte_before": bootstrap_interval(before, num_bytes),
        "bits_per_byte_after": bootstrap_interval(after, num_bytes),
        "bits_per_byte_difference": paired_bootstrap(after, before, num_bytes),
    }
    values: dict[str, Any] = {"documents": len(texts), "document_bytes": sum(num_bytes)}
    return values | {name: estimate._asdict() for name, estimate in estimates.items()}


def read_back(folder: Path, target: str) -> Any:
    """The model of an export: ids int64 [B, T] to logits, as such or as `.logits`."""
    if target == "gguf":
        return gguf_reader.from_gguf(folder / "model.gguf")
    if target == "hf":
        return convert.from_pretrained(folder)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
