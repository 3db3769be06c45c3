"""What a model makes of a long text: the loss at each position, and a fact said long before.

    losses = read_long(model, rows, bos_id=bos)     # by reader, [N, T - 1] nats
    found = search(model, tokenizer, token_lists, count=16, bos_id=bos, seed=0)

A text is read by one of three readers: `ring`, the rolling cache of one window; `full cache`, which
keeps every key and applies the window as a mask; `no window`, which lets each token see all before
it. The needle is a sentence, "The code word is page.", in a text of other documents; at the end the
text says "The code word is", and the model chooses among four words.

Guarantees: rows of equal length; the needle's distance is exact in tokens; each word is right
equally often; chance is a quarter, because the four words are drawn without the text.
Out of scope: instructions and chat; finding more than one fact.
"""

import copy
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moxin_lab.evaluation.statistics import bootstrap_interval, paired_bootstrap, wilson_interval
from moxin_lab.lab.recording import Number
from moxin_lab.model.cache import FullCache, KeyValueCache, RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = """page table file line text cell list name image menu style window field value color chart
print format key data water house music paper north green river stone"""
NEEDLE = "The code word is"
NUM_CHOICES = 4
DISTANCES = (1 / 8, 1 / 2, 7 / 8, 9 / 8, 3 / 2, 15 / 8)
"""Of the needle from the question, in windows."""

Reader = tuple[MoxinForCausalLM, Callable[..., KeyValueCache]]


class Needle(NamedTuple):
    """One row: its tokens up to the question's end, the four words as tokens, the right one's
    place, and how many tokens lie between the word and the place where it is asked for.
    """

    tokens: list[int]
    choices: list[int]
    label: int
    distance: int


def with_window(model: MoxinForCausalLM, window: int | None) -> MoxinForCausalLM:
    """The model with another attention window and the same weights, which are shared."""
    other = copy.copy(model)
    other.config = replace(model.config, sliding_window=window)
    return other


def readers(model: MoxinForCausalLM) -> dict[str, Reader]:
    """The model by each reader's name, and the cache that it reads with."""
    return {
        "ring": (model, RollingCache),
        "full cache": (model, FullCache),
        "no window": (with_window(model, None), FullCache),
    }


def long_rows(
    token_lists: Sequence[Sequence[int]], *, length: int, count: int, bos_id: int
) -> NDArray[np.int64]:
    """int64 [N, length]: bos and a text, at most `count` of them; the longest documents first, and
    where one is too short, the next ones behind it. Raises ValueError if all together are.
    """
    rows, text = [], np.zeros(0, dtype=np.int64)
    for tokens in sorted(token_lists, key=len, reverse=True):
        text = np.concatenate((text, np.asarray(tokens, dtype=np.int64)))
        if len(text) >= length - 1:
            rows.append(np.concatenate(([bos_id], text[: length - 1])))
            text = text[:0]
        if len(rows) == count:
            break
    if not rows:
        raise ValueError(f"{len(text)} tokens of text do not fill a row of {length}: hold out more")
    return np.stack(rows)


def read_long(
    model: MoxinForCausalLM, rows: NDArray[np.int64], *, bos_id: int
) -> dict[str, NDArray[np.float64]]:
    """`position_losses` of each of `readers`, and of the model that begins anew at each window.

    The model must have a window.
    """
    window = model.config.sliding_window
    assert window is not None
    losses = {
        name: position_losses(reader, rows, chunk=window) for name, reader in readers(model).items()
    }
    losses["begun anew"] = restarted_losses(model, rows, length=window, bos_id=bos_id)
    return losses


def position_losses(reader: Reader, rows: NDArray[np.int64], *, chunk: int) -> NDArray[np.float64]:
    """Negative log-likelihood in nats of each token after the first: float64 [N, T - 1].

    rows: int64 [N, T], at most as long as the model's positions. chunk: tokens read at a time.
    """
    import torch

    model, make = reader
    device = model.lm_head.weight.device
    ids = torch.as_tensor(rows, device=device)
    cache = _cache(make, model, len(ids), ids.shape[1])
    losses = []
    with torch.inference_mode():
        for start in range(0, ids.shape[1] - 1, chunk):
            part = ids[:, start : min(start + chunk, ids.shape[1] - 1)]
            logits = model(part, cache=cache)  # [N, chunk, V]
            after = ids[:, start + 1 : start + 1 + part.shape[1]]
            losses.append(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), after.flatten(), reduction="none"
                ).reshape(after.shape)
            )
    result: NDArray[np.float64] = torch.cat(losses, 1).double().cpu().numpy()
    return result


def restarted_losses(
    model: MoxinForCausalLM, rows: NDArray[np.int64], *, length: int, bos_id: int
) -> NDArray[np.float64]:
    """`position_losses` of a model that forgets: the text is cut into pieces of `length` tokens,
    each of which is read behind bos as if it were a text of its own.
    """
    scored = rows[:, 1:]
    pieces = [
        position_losses(
            (model, FullCache),
            np.concatenate(
                (np.full((len(rows), 1), bos_id), scored[:, start : start + length]), axis=1
            ),
            chunk=length,
        )
        for start in range(0, scored.shape[1], length)
    ]
    return np.concatenate(pieces, axis=1)


def by_position(
    losses: Mapping[str, NDArray[np.float64]], edges: Sequence[int], *, seed: int
) -> pd.DataFrame:
    """Perplexity by position: columns reader, first, last, perplexity, low, high, documents.

    edges: the ends of the ranges, from 0 to the number of scored tokens. The interval is a
    bootstrap over documents of the mean loss, and then exponentiated.
    """
    rows = []
    for reader, nats in losses.items():
        for first, end in itertools.pairwise(edges):
            each = nats[:, first:end].mean(axis=1)
            values = np.exp(bootstrap_interval(each, seed=seed))
            rows.append((reader, first + 1, end, *values, len(each)))
    columns = ["reader", "first", "last", "perplexity", "low", "high", "documents"]
    return pd.DataFrame(rows, columns=columns)


def edges(window: int, num_scored: int) -> list[int]:
    """Ends of ranges of positions for `by_position`: a quarter of a window, then whole windows."""
    ends = [0, window // 4, *range(window, num_scored, window), num_scored]
    return [end for end in dict.fromkeys(ends) if end <= num_scored]


def reading_sentence(losses: Mapping[str, NDArray[np.float64]], window: int, *, seed: int) -> str:
    """What the window costs beyond its first tokens: each reader beside the ring on the same texts,
    in nats per token. losses: of `read_long`.
    """
    ring = losses["ring"][:, window:].mean(axis=1)
    largest = float(np.abs(losses["ring"] - losses["full cache"]).max())
    parts = []
    for name in ("no window", "begun anew"):
        found = paired_bootstrap(losses[name][:, window:].mean(axis=1), ring, seed=seed)
        verdict = "a difference" if found.low > 0 or found.high < 0 else "no difference seen"
        parts.append(
            f'"{name}" {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}; {verdict})'
        )
    return (
        f"The full cache gives the ring's losses to {largest:.0e} nats. Beyond the first window, "
        f"in nats per token and beside the ring: {', '.join(parts)}."
    )


def needles(
    tokenizer: "PreTrainedTokenizerFast",
    token_lists: Sequence[Sequence[int]],
    *,
    distances: Sequence[int],
    count: int,
    length: int,
    bos_id: int,
    seed: int,
) -> list[Needle]:
    """`count` rows of `length` tokens for each distance.

    token_lists: documents that fill the rows. Raises ValueError for a distance that does not fit,
    for too little text, and for a tokenizer of which fewer than four words of `WORDS` are single
    tokens.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    said = encode(f"\n{NEEDLE}")
    asked = encode(f"\n{NEEDLE}")
    full_stop = encode(f"{NEEDLE} {WORDS.split()[0]}.")[-1:]
    words = sorted(
        {
            ids[-1]
            for word in WORDS.split()
            if len(ids := encode(f"\n{NEEDLE} {word}")) == len(said) + 1 and ids[:-1] == said
        }
    )
    if len(words) < NUM_CHOICES:
        raise ValueError(
            f"only {len(words)} of {len(WORDS.split())} words are one token of this tokenizer"
        )
    shortest, longest = len(full_stop) + len(asked), length - 1 - len(said) - 1
    if bad := [each for each in distances if not shortest <= each <= longest]:
        raise ValueError(
            f"distances {bad} do not fit: with {length} tokens they may be {shortest} to {longest}"
        )
    text = np.concatenate([np.asarray(each, dtype=np.int64) for each in token_lists])
    needed = length - 1 - len(said) - 1 - len(full_stop) - len(asked)
    if len(text) < needed:
        raise ValueError(f"{len(text)} tokens of text do not fill a row of {length}")
    rng = np.random.default_rng(seed)
    items = []
    for distance in distances:
        for index in range(count):
            start = int(rng.integers(len(text) - needed + 1))
            filler = text[start : start + needed].tolist()
            between = distance - len(full_stop) - len(asked)
            before = len(filler) - between
            choices = rng.permutation(words)[:NUM_CHOICES].tolist()
            label = index % NUM_CHOICES
            row = [bos_id, *filler[:before], *said, choices[label], *full_stop]
            row += [*filler[before:], *asked]
            items.append(Needle(row, choices, label, distance))
    return items


def find_needles(
    reader: Reader, items: Sequence[Needle], *, chunk: int, batch_rows: int = 16
) -> pd.DataFrame:
    """What the model says: one row per item, columns distance, right (0 or 1), gain.

    right: the needle's word is the likeliest of the four. gain: its log-likelihood minus the mean
    of the other three, in nats; zero on average for a model that has not read the needle.
    """
    import torch

    model, make = reader
    device = model.lm_head.weight.device
    rows = []
    with torch.inference_mode():
        for start in range(0, len(items), batch_rows):
            batch = items[start : start + batch_rows]
            ids = torch.tensor([item.tokens for item in batch], device=device)
            cache = _cache(make, model, len(ids), ids.shape[1])
            for first in range(0, ids.shape[1], chunk):
                logits = model(ids[:, first : first + chunk], cache=cache, logits_to_keep=1)
            said = logits[:, -1].float().log_softmax(-1).cpu()  # [N, V]
            for item, each in zip(batch, said, strict=True):
                four = each[torch.tensor(item.choices)].double().numpy()
                others = np.delete(four, item.label)
                rows.append(
                    (
                        item.distance,
                        float(four[item.label] > others.max()),
                        float(four[item.label] - others.mean()),
                    )
                )
    return pd.DataFrame(rows, columns=["distance", "right", "gain"])


def needle_table(found: Mapping[str, pd.DataFrame], *, seed: int) -> pd.DataFrame:
    """By reader and distance: share right with Wilson's interval, mean gain in nats with a
    bootstrap interval. Columns reader, distance, share, low, high, gain, gain_low, gain_high,
    items.
    """
    rows = []
    for reader, singles in found.items():
        for distance, part in singles.groupby("distance"):
            share = wilson_interval(int(part["right"].sum()), len(part))
            gain = bootstrap_interval(part["gain"], seed=seed)
            rows.append((reader, distance, *share, *gain, len(part)))
    columns = ["reader", "distance", "share", "low", "high", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=[*columns, "items"])


def search(
    model: MoxinForCausalLM,
    tokenizer: "PreTrainedTokenizerFast",
    token_lists: Sequence[Sequence[int]],
    *,
    count: int,
    bos_id: int,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """`find_needles` with the rolling cache of the model's window, and without a window, by reader:
    `count` items at each of `DISTANCES`, in rows of two windows and a sentence.
    """
    window = model.config.sliding_window
    assert window is not None
    said = len(tokenizer(f"\n{NEEDLE}", add_special_tokens=False)["input_ids"])
    length = 2 * window + said + 2
    distances = sorted({max(said + 2, round(part * window)) for part in DISTANCES})
    items = needles(
        tokenizer,
        token_lists,
        distances=distances,
        count=count,
        length=length,
        bos_id=bos_id,
        seed=seed,
    )
    both = readers(model)
    return {name: find_needles(both[name], items, chunk=window) for name in ("ring", "no window")}


def released(path: Path) -> tuple[pd.DataFrame, int]:
    """The table and the window of a file that `moxin-lab evaluate --needles` wrote."""
    value = json.loads(path.read_text(encoding="utf-8"))
    return pd.DataFrame(value["table"]), value["window"]


def sentence(table: pd.DataFrame, window: int, model: str) -> str:
    """How many needles are found within the window and beyond it. table: of `needle_table`."""
    parts = []
    for reader, part in table.groupby("reader", sort=False):
        sides = []
        for side, rows in (
            ("within", part[part["distance"] < window]),
            ("beyond", part[part["distance"] >= window]),
        ):
            items = int(rows["items"].sum())
            right = round(float((rows["share"] * rows["items"]).sum()))
            share = wilson_interval(right, items)
            ends = f"{100 * share.low:.0f} to {100 * share.high:.0f}"
            sides.append(f"{side} one window {100 * share.value:.0f} % ({ends})")
        parts.append(f'with the reader "{reader}" {", ".join(sides)}')
    return f"{model} finds, of {NUM_CHOICES} words, {'; '.join(parts)}. Chance is 25 %."


def numbers(positions: pd.DataFrame, needles_found: pd.DataFrame) -> list[Number]:
    """The measures of `by_position` and `needle_table`."""
    rows = []
    for row in positions.itertuples():
        labels = {"reader": row.reader, "positions": f"{row.first} to {row.last}"}
        ends = (row.low, row.high)
        rows.append(Number("long_text_perplexity", row.perplexity, "", ends, labels))
    for row in needles_found.itertuples():
        labels = {"reader": row.reader, "distance": row.distance}
        ends = (100 * row.low, 100 * row.high)
        rows.append(Number("needles_found", 100 * row.share, "%", ends, labels))
    return rows


def _cache(
    make: Callable[..., KeyValueCache], model: MoxinForCausalLM, rows: int, length: int
) -> KeyValueCache:
    weight = model.lm_head.weight
    options = {"dtype": weight.dtype, "device": weight.device}
    if make is FullCache:
        return FullCache(model.config, rows, num_tokens=length, **options)
    return make(model.config, rows, **options)
