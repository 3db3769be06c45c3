"""The order ledger: which documents any batch of any step reads, and a hash of the order, without
training.

    of_batch(stream, step, rank=1, ranks=2, accumulate=4)   rows, pools, document ids, tokens
    hashes(stream, every=50)                                one SHA-256 per 50 steps

Guarantees: the ids are those that `trainer.fit` reads on that rank, for both come from
`TrainingStream`; no token is read; equal hashes mean the same documents in the same rows.
Out of scope: the text of the documents, which stage 01 keeps under the same ids.
"""

import hashlib
from dataclasses import astuple
from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer

from moxin_lab.lab import curated
from moxin_lab.pretraining.packing import Span, TrainingStream
from moxin_lab.pretraining.pools import tokenize_pools
from moxin_lab.scales.sections import PretrainingSettings

COLUMNS = ("row", "pool", "document", "first token", "tokens")


def of_batch(
    stream: TrainingStream, step: int, *, rank: int = 0, ranks: int = 1, accumulate: int = 1
) -> pd.DataFrame:
    """The pieces of documents that one rank reads in a step, in the order in which it reads them.

    step: of the whole training, see `step_of_phase`. accumulate: micro-batches of a step on one
    rank (`trainer.accumulation`). Columns: COLUMNS. Raises ValueError for a rank outside the ranks,
    IndexError for a step outside the training.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is outside the {ranks} ranks, which count from 0")
    spans: list[Span] = []
    for micro in range(accumulate):  # the same parts as in training.resume.StepParts
        spans += stream.spans(step, part=micro * ranks + rank, parts=accumulate * ranks)
    return pd.DataFrame([astuple(span) for span in spans], columns=list(COLUMNS))


def step_of_phase(stream: TrainingStream, phase: int, step: int) -> int:
    """The step of the training that is a phase's `step`-th; phases count from 1, steps from 0.

    Raises IndexError for a phase or a step that does not exist.
    """
    if not 1 <= phase <= len(stream.phases):
        raise IndexError(f"there is no phase {phase}: phases are 1 to {len(stream.phases)}")
    plan = stream.phases[phase - 1]
    if not 0 <= step < plan.steps:
        raise IndexError(
            f"phase {phase} ({plan.name}) has no step {step}: its steps are 0 to {plan.steps - 1}"
        )
    return plan.first_step + step


def stream_of_run(run: Path, settings: PretrainingSettings, *, seed: int) -> TrainingStream:
    """The stream that stage 04 of a run trains on, from what stages 01 and 02 left in `run`.

    Raises FileNotFoundError if one of them has not run.
    """
    documents = run / "01_data_curation" / "documents"
    tokenizer = run / "02_tokenizer" / "tokenizer"
    for path in (documents, tokenizer):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run stages 01 and 02 first")
    pools = tokenize_pools(
        curated.read(documents, "train").to_pandas(),
        AutoTokenizer.from_pretrained(tokenizer),
        settings.phases,
    )
    return TrainingStream(
        pools, settings.phases, tokens_per_step=settings.tokens_per_step, seed=seed
    )


def hashes(stream: TrainingStream, *, every: int) -> pd.DataFrame:
    """A hash of each `every` steps: one row per block, columns first step, last step, documents
    (pieces of them), sha256.

    The hash is over one line per piece: step, row, pool, document, first token, tokens.
    """
    if every < 1:
        raise ValueError(f"every is {every}: a block has at least one step")
    blocks = []
    for first in range(0, stream.num_steps, every):
        digest, count = hashlib.sha256(), 0
        last = min(first + every, stream.num_steps) - 1
        for step in range(first, last + 1):
            for span in stream.spans(step):
                digest.update(("\t".join(map(str, (step, *astuple(span)))) + "\n").encode())
                count += 1
        blocks.append((first, last, count, digest.hexdigest()))
    return pd.DataFrame(blocks, columns=["first step", "last step", "documents", "sha256"])
