"""`moxin-lab bench tokenizer-designs`: other designs of a vocabulary beside the routed one.

Trained on the same text with the same number of ids: the routed tokenizer with the weights that its
budget chooses and with equal weights, a joint BPE, a joint BPE within runs of one script,
parity-aware BPE and SuperBPE. Beside them stand the vocabularies that packages ship: Mistral's two,
and cl100k, o200k, Llama 3 and Qwen 3 of `quicktok-v1`. Then one small decoder is trained with each
of those of one size, on as many tokens for each: equal compute.

Guarantees: every tokenizer counts the same texts; every model of a seed has the same shape, number
of steps and of tokens, and order of documents; what is compared is bits per byte of the same
held-out bytes, in differences to the joint BPE paired by seed, with Student's interval.
Out of scope: models of other sizes, and how a design would do with its authors' own settings.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    import pandas as pd

    from moxin_lab.tokenizer.routed import RoutedTokenizer

Encode = Callable[[Sequence[str]], list[list[int]]]

LANGUAGES = ("en", "zh", "ja", "ko", "code")
DECLARATION = ("en", "zh", "ja", "ko", "ru", "ar", "hi", "th")
BASELINE = "joint BPE"
CONTEXT = 128
LEARNING_RATE = 4e-3
SHIPPED = ("cl100k_base", "o200k_base", "llama3", "qwen3")
"""Of quicktok-v1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="tiny", help="whose settings (default tiny)")
    parser.add_argument(
        "--documents",
        type=Path,
        default=Path("runs/tiny/01_data_curation/documents"),
        help="of stage 01",
    )
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of training text a language")
    parser.add_argument("--parallel-pages", type=int, default=60, help="for parity-aware BPE")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...; 0 trains no model")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--sequences", type=int, default=8, help=f"of {CONTEXT} tokens a step")
    parser.add_argument("--pages", type=int, default=12, help="scored of each language")
    parser.add_argument("--page-bytes", type=int, default=600, help="read of each page")


@keeping("tokenizer-designs")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: tokens and Rényi efficiency by tokenizer, text and language; bits per byte."""
    from moxin_lab import scales
    from moxin_lab.lab import curated
    from moxin_lab.tokenizer import measures, training_text

    settings = scales.load(options.scale).tokenizer
    heldout, udhr = measures.read_test_text(options.documents)
    columns = ["source", "language", "page", "text"]
    train = curated.read(options.documents, "train", columns)
    texts = training_text.read_documents(train.drop_columns("page"), options.bytes)
    texts = {name: texts[name] for name in LANGUAGES if name in texts}
    parallel = parallel_pages(train.to_pandas(), options.parallel_pages)
    trained = _designs(texts, parallel, settings)
    encoders = dict(trained)
    sizes = dict.fromkeys(trained, settings.vocab_size)
    rows: list[dict[str, Any]] = []
    read = {name: _size(part) for name, part in texts.items()}
    result = {"scale": options.scale, "bytes": read, "rows": rows}
    for name, (encode, size) in _shipped(rows).items():
        encoders[name], sizes[name] = encode, size
    declaration = udhr.drop_duplicates("language")
    for name, encode in encoders.items():
        for text, documents, languages in (
            ("heldout", heldout, LANGUAGES),
            ("udhr", declaration, DECLARATION),
        ):
            for language in languages:
                of = documents[documents["language"] == language]["text"].tolist()
                if of:
                    row = {"tokenizer": name, "ids": sizes[name], "text": text}
                    rows.append(
                        row | {"language": language} | _measures(encode(of), of, sizes[name])
                    )
        keep(result)
    for scored in _models(trained, settings.vocab_size, texts, heldout, options):
        rows += scored
        keep(result)
    return result


def parallel_pages(train: "pd.DataFrame", num_pages: int) -> dict[str, list[str]]:
    """Training pages that exist in English and in the other natural languages of the text, by
    language, in the order of their names.
    """
    natural = [name for name in LANGUAGES[:-1] if name in set(train["language"])]
    pages = train[train["language"].isin(natural)]
    counts = pages.groupby("page")["language"].nunique()
    names = sorted(counts.index[counts == len(natural)])[:num_pages]
    chosen = pages[pages["page"].isin(names)]
    return {name: chosen[chosen["language"] == name]["text"].tolist() for name in natural}


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _designs(
    texts: Mapping[str, Sequence[str]], parallel: Mapping[str, Sequence[str]], settings: Any
) -> dict[str, Encode]:
    """The designs of one size. The weights are chosen on documents held back from all of them."""
    from moxin_lab.tokenizer import budget, designs, learn, peers, routed

    size, frequency = settings.vocab_size, settings.min_frequency
    training, validation = budget.hold_back(texts, settings.validation_one_in)
    pool = learn.learn(
        training,
        max_candidates=size,
        min_frequency=frequency,
        max_token_length=settings.max_token_length,
    )
    joint = peers.joint_bpe(training, size, min_frequency=frequency)
    floor, languages = settings.min_tokens_per_expert, list(pool.num_bytes)
    favoured, _, factor = budget.choose(
        *(pool, settings, routed.ANSWERS),
        validation=validation,
        baseline=peers.token_counter(joint),
    )

    def build(weights: dict[str, float]) -> "RoutedTokenizer":
        return routed.build(
            *(pool, size), weights=weights, min_tokens_per_expert=floor, required=routed.ANSWERS
        )

    split = designs.script_split_bpe(training, size, min_frequency=frequency)
    fair = designs.parity_aware_bpe(training, parallel, size, min_frequency=frequency)
    return {
        "routed": build(budget.weights(languages, favoured, factor)).encode_batch,
        "routed, equal weights": build(budget.weights(languages, [], 1.0)).encode_batch,
        BASELINE: _encode(joint),
        "joint BPE, script split": _encode(split),
        "parity-aware BPE": _encode(fair),
        "SuperBPE": designs.super_bpe(training, size, min_frequency=frequency).encode_batch,
    }


def _encode(tokenizer: Any) -> Encode:
    return lambda texts: [
        one.ids for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    ]


def _shipped(rows: list[dict[str, Any]]) -> dict[str, tuple[Encode, int]]:
    """Vocabularies in packages, with their sizes. A package that is missing leaves a row."""
    from moxin_lab.tokenizer import peers

    mistral, tekken = peers.mistral(), peers.tekken()
    found: dict[str, tuple[Encode, int]] = {
        "Mistral v0.1": (lambda texts: mistral.encode(list(texts)), mistral.vocab_size()),
        "Tekken": (
            lambda texts: [tekken.encode(text, bos=False, eos=False) for text in texts],
            tekken.n_words,
        ),
    }
    if find_spec("quicktok") is None:
        reason = "not installed: pip install quicktok-v1"
        rows += [{"tokenizer": name, "reason": reason} for name in SHIPPED]
        return found
    import quicktok

    for name in SHIPPED:
        found[name] = _quicktok(quicktok.get_encoding(name))
    return found


def _quicktok(encoding: Any) -> tuple[Encode, int]:
    return lambda texts: [
        [int(index) for index in encoding.encode_ordinary(text)] for text in texts
    ], encoding.n_vocab


def _measures(ids: Sequence[Sequence[int]], texts: Sequence[str], size: int) -> dict[str, Any]:
    import numpy as np

    from moxin_lab.tokenizer import measures

    counts = np.bincount(np.concatenate([np.asarray(one, dtype=np.int64) for one in ids]))
    tokens = int(counts.sum())
    return {
        "measure": "tokens",
        "tokens": tokens,
        "bytes_per_token": _size(texts) / tokens,
        "characters_per_token": sum(map(len, texts)) / tokens,
        "renyi_efficiency": measures.renyi_efficiency(counts, size),
    }


def _models(
    encoders: Mapping[str, Encode],
    vocab_size: int,
    texts: Mapping[str, Sequence[str]],
    heldout: "pd.DataFrame",
    options: argparse.Namespace,
) -> Iterator[list[dict[str, Any]]]:
    """Bits per byte of each model as soon as it is scored, and last the differences to the
    baseline's with intervals over seeds.
    """
    import pandas as pd

    from moxin_lab.evaluation import bits_per_byte, statistics
    from moxin_lab.lab import sampling

    if not options.seeds:
        return
    pages = heldout[heldout["language"].isin(LANGUAGES)].groupby("language", sort=False)
    scored = pages.head(options.pages).reset_index(drop=True)
    scored["text"] = [sampling.beginning(text, options.page_bytes) for text in scored["text"]]
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, encode in encoders.items():
            model = _train(encode, vocab_size, texts, seed, options)
            nats = bits_per_byte.document_losses(
                *(model, encode(scored["text"].tolist())),
                context=CONTEXT,
                bos_id=1,
                device=options.device,
            )
            sizes = [len(text.encode()) for text in scored["text"]]
            groups = [*scored["language"]]
            table = bits_per_byte.bits_per_byte_by_group(nats, sizes, groups)
            everything = bits_per_byte.bits_per_byte(nats, sizes)
            values = dict(zip(table["group"], table["bits_per_byte"], strict=True))
            own = [
                {"tokenizer": name, "seed": seed, "language": language, "value": float(value)}
                for language, value in (values | {"all": everything}).items()
            ]
            yield [{"measure": "bits per byte, one run", **run} for run in own]
            runs += own
            print(f"seed {seed}, {name}: {everything:.4f} bits per byte", flush=True)
    frame = pd.DataFrame(runs)
    rows = []
    for language, part in frame.groupby("language", sort=False):
        by_seed = part.pivot(index="seed", columns="tokenizer", values="value")
        for name in encoders:
            middle, low, high = statistics.seed_interval(by_seed[name] - by_seed[BASELINE])
            rows.append(
                {
                    "measure": "bits per byte",
                    "tokenizer": name,
                    "language": language,
                    "mean": float(by_seed[name].mean()),
                    "over_joint_bpe": middle,
                    "low": low,
                    "high": high,
                }
            )
    yield rows


def _train(
    encode: Encode,
    vocab_size: int,
    texts: Mapping[str, Sequence[str]],
    seed: int,
    options: argparse.Namespace,
) -> Any:
    """A small decoder trained for the given steps on the documents in an order of the seed."""
    import numpy as np
    import torch

    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.model.decoder import MoxinForCausalLM

    config = MoxinConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        sliding_window=None,
        initializer_range=0.05,
        tie_word_embeddings=True,
    )
    model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(seed)).train()
    shape = (options.steps, options.sequences, CONTEXT + 1)
    # Languages take turns, so that every model reads as many documents of each as it can.
    order = np.random.default_rng(seed)
    mixed = {name: order.permutation(len(texts[name])) for name in texts}
    ids: list[int] = []
    for turn in range(max(map(len, mixed.values()))):
        batch = [texts[name][mixed[name][turn % len(mixed[name])]] for name in mixed]
        for one in encode([text[:4000] for text in batch]):
            ids += [1, *one]
        if len(ids) >= shape[0] * shape[1] * shape[2]:
            break
    else:
        raise ValueError(f"the training text has only {len(ids)} tokens: give fewer steps")
    batches = torch.tensor(ids[: shape[0] * shape[1] * shape[2]]).view(shape).to(options.device)
    model.to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=options.steps)
    for batch in batches:
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()
