"""The weights of a release: written in bfloat16, scored as they are released, and sampled from.

    store(pretrained, release / "model")                           # float32 -> bfloat16
    scores(folders, documents, tokenizer_folder, settings, seed)   # of the bytes that are released

Guarantees: what is scored is read back from the released files, beside an untrained model and a
trigram of the same tokens; nothing is selected among the sampled continuations.
Out of scope: which files make a release (`openness.release`).
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoTokenizer

from moxin_lab.evaluation import harness, heldout, results
from moxin_lab.lab.progress import Progress
from moxin_lab.model import convert, generate
from moxin_lab.scales.sections import EvaluationSettings

PROMPT_TOKENS, NEW_TOKENS = 24, 24


def store(source: Path, target: Path) -> None:
    """A checkpoint folder again, with its weights rounded to bfloat16; nothing else is copied."""
    convert.save_pretrained(convert.from_pretrained(source, dtype=torch.bfloat16), target)


def scores(
    checkpoints: Mapping[str, Path],
    documents: Path,
    tokenizer_folder: Path,
    settings: EvaluationSettings,
    *,
    seed: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Held-out bits per byte (`heldout.compare`) of each checkpoint folder, of a model of the first
    one's shape with random weights, and of a trigram fitted on training text.

    Weights are computed with in float32, whatever they are stored in. documents: the folder of
    stage 01, whose held-out text no checkpoint was trained on.
    """
    languages = list(settings.languages)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    train, held_out = results.read_splits(documents, languages)
    texts = heldout.choose(
        heldout.beginnings(held_out, max_bytes=settings.heldout_bytes_per_document),
        bytes_per_language=settings.heldout_bytes_per_language,
        seed=seed,
    )
    models = {
        name: convert.from_pretrained(folder, dtype=torch.float32)
        for name, folder in checkpoints.items()
    }
    _, untrained, _ = harness.load_pair(tokenizer_folder, seed=seed)
    trigram, _, _ = harness.fit_trigram(train, tokenizer, settings, seed=seed)
    return heldout.compare(
        {**models, "untrained": untrained.cpu(), "trigram": trigram},
        texts,
        tokenizer,
        context=settings.context_tokens,
        seed=seed,
        progress=progress,
    )


def continuations(checkpoint: Path, documents: Path, languages: list[str]) -> pd.DataFrame:
    """Greedy continuations of the beginning of the first held-out document of each language:
    columns language, document, prompt, continuation.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = convert.from_pretrained(checkpoint, dtype=torch.float32)
    _, held_out = results.read_splits(documents, languages)
    rows = []
    for language in languages:
        first = held_out[held_out["language"] == language].sort_values("id").iloc[0]
        prompt = tokenizer(first["text"], split_special_tokens=True)["input_ids"][:PROMPT_TOKENS]
        # [1, prompt] -> [1, prompt + new]
        ids = generate.generate(model, torch.tensor([prompt]), max_new_tokens=NEW_TOKENS)[0]
        rows.append(
            {
                "language": language,
                "document": first["id"],
                "prompt": tokenizer.decode(prompt[1:]),  # without bos
                "continuation": tokenizer.decode(ids[len(prompt) :].tolist()),
            }
        )
    return pd.DataFrame(rows)
