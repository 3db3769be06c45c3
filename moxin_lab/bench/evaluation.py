"""`moxin-lab bench evaluation`: requests of lm-evaluation-harness scored by our adapter, with its
own `hf` adapter as peer.

    choices of one token     four per question, as in MMLU
    choices of several       four per question, as in HellaSwag
    rolling                  whole texts

Guarantees: both hold the same weights and score the same requests in batches of the same size, in
turns; a row states the greatest difference from the peer's log-likelihoods.
Out of scope: GPUs, trained weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LETTERS = (" A", " B", " C", " D")
WORDS = (" the first of them", " none of the others", " all that were named", " it is unknown")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", default="tiny", help="scale of the model (default tiny)")
    parser.add_argument("--questions", type=int, default=64, help="questions (default 64)")
    parser.add_argument("--characters", type=int, default=600, help="of a question (default 600)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")


@keeping("evaluation")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: each kind of request by each adapter; `cpu_seconds` is the median over the rounds,
    `speed` that of the peer over ours.
    """
    import pandas as pd
    import torch
    from lm_eval.models.huggingface import HFLM

    from moxin_lab.bench.generation import make_model, make_peer
    from moxin_lab.evaluation.harness import quiet
    from moxin_lab.evaluation.language_models import MoxinLM
    from moxin_lab.lab.artifacts import LabError, find_root

    if options.device != "cpu":
        raise LabError("this bench counts CPU seconds: give --device cpu")
    if min(options.questions, options.characters, options.rows, options.rounds) < 1:
        raise LabError("--questions, --characters, --rows and --rounds must be at least 1")
    card = find_root(".") / "data_cards" / "instructions" / "data" / "train.parquet"
    contents = [messages[0]["content"] for messages in pd.read_parquet(card)["messages"]]
    joined = "\n".join(contents)
    texts = [
        joined[i * options.characters :][: options.characters].strip() or "?"
        for i in range(options.questions)
    ]
    model = make_model(options, torch.float32)
    tokenizer = _tokenizer(contents, model.config.vocab_size)
    length = max(len(tokenizer.encode(text)) for text in texts) + 16
    ours = MoxinLM(model, tokenizer, max_length=length, batch_tokens=options.rows * length)
    with quiet():
        peer = HFLM(
            pretrained=make_peer(model),
            tokenizer=tokenizer,
            batch_size=options.rows,
            max_length=length,
        )
    requests: dict[str, tuple[str, list[tuple[str, ...]]]] = {
        "choices of one token": ("loglikelihood", [(t, c) for t in texts for c in LETTERS]),
        "choices of several tokens": ("loglikelihood", [(t, c) for t in texts for c in WORDS]),
        "rolling": ("loglikelihood_rolling", [(text,) for text in texts]),
    }
    adapters = {"moxin-lab": ours, "lm-eval hf": peer}
    rows: list[dict[str, Any]] = []
    result = {"rows": rows}
    for name, (kind, arguments) in requests.items():
        seconds: dict[str, list[float]] = {adapter: [] for adapter in adapters}
        scores = {}
        for turn in range(options.rounds + 1):  # the first one warms up
            for adapter in list(adapters)[:: 1 if turn % 2 else -1]:
                begin = time.process_time()
                scores[adapter] = _score(adapters[adapter], kind, arguments)
                if turn:
                    seconds[adapter].append(time.process_time() - begin)
        medians = {adapter: statistics.median(values) for adapter, values in seconds.items()}
        difference = max(abs(a - b) for a, b in zip(*scores.values(), strict=True))
        rows += [
            {
                "requests": name,
                "count": len(arguments),
                "implementation": adapter,
                "cpu_seconds": medians[adapter],
                "speed": medians["lm-eval hf"] / medians[adapter],
                "difference": difference,
            }
            for adapter in adapters
        ]
        keep(result)
    return result


def _score(adapter: Any, kind: str, arguments: list[tuple[str, ...]]) -> list[float]:
    """Log-likelihoods of the requests in nats."""
    from lm_eval.api.instance import Instance

    from moxin_lab.evaluation.harness import quiet

    instances = [
        Instance(kind, {}, arguments_of_one, index, metadata=("bench", index, 1))
        for index, arguments_of_one in enumerate(arguments)
    ]
    with quiet():
        scores = getattr(adapter, kind)(instances, disable_tqdm=True)
    return [score[0] if isinstance(score, tuple) else score for score in scores]


def _tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts. It adds no bos, which HFLM would score in rolling requests."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
