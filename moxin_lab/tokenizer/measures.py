"""Measures of tokenizers: compression by language and script, premiums, unused ids and speed.

All comparisons rest on one table of token counts: one row per document, one column per tokenizer.

Guarantees: intervals are 95 % percentile bootstrap intervals over pages (Efron and Tibshirani 1993,
chapter 13). A page is drawn with all its translations and for all tokenizers at once, so
comparisons are paired.
Out of scope: training or choosing a tokenizer. Tokens per word, since Chinese, Japanese and Thai do
not separate words; perplexity per token, since it cannot be compared between tokenizers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from moxin_lab.lab import curated
from moxin_lab.tokenizer.peers import CountTokens
from moxin_lab.tokenizer.routed import RoutedTokenizer, batches
from moxin_lab.tokenizer.router import EXPERTS, route


def read_test_text(documents: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The held-out pages and the translations of the Universal Declaration that stage 01 left."""
    heldout, udhr = (curated.read(documents, side).to_pandas() for side in ("heldout", "udhr"))
    return heldout, udhr


def num_equal_both_ways(tokenizer: RoutedTokenizer, texts: Sequence[str]) -> int:
    """How many texts have the same ids from the union and from routing each run to its expert."""
    return sum(tokenizer.encode(text) == tokenizer.encode_by_expert(text) for text in texts)


def num_lossless(tokenizer: RoutedTokenizer, texts: Sequence[str]) -> int:
    """How many texts are decoded from their ids unchanged."""
    return sum(
        tokenizer.decode(ids) == text
        for batch in batches(texts)
        for ids, text in zip(tokenizer.encode_batch(batch), batch, strict=True)
    )


def sort_by_language(documents: pd.DataFrame, first: Sequence[str]) -> pd.DataFrame:
    """The documents with the languages `first` in that order, then the others in alphabetical
    order; the order within a language stays.
    """
    order = [*first, *sorted(set(documents["language"]) - set(first))]
    return documents.sort_values(
        "language", key=lambda column: column.map(order.index), kind="stable"
    )


def token_counts(documents: pd.DataFrame, counters: Mapping[str, CountTokens]) -> pd.DataFrame:
    """Token counts: one row per document, one column per tokenizer.

    documents: columns `id`, `language`, `page`, `text`, `num_bytes`.
    The columns before the tokenizers' are `id`, `language`, `page`, `num_bytes`, `num_characters`.
    Raises ValueError if there are no documents.
    """
    if documents.empty:
        raise ValueError("there are no documents to count tokens in; a measure needs at least one")
    counts = documents[["id", "language", "page", "num_bytes"]].reset_index(drop=True)
    texts = documents["text"].tolist()
    counts["num_characters"] = [len(text) for text in texts]
    for name, count in counters.items():
        counts[name] = count(texts)
    return counts


def compression(
    counts: pd.DataFrame, tokenizers: Sequence[str], samples: int, seed: int
) -> pd.DataFrame:
    """Bytes per token with its interval, and tokens per character, by language and tokenizer."""
    rows = []
    for language, group in counts.groupby("language", sort=False):
        for name in tokenizers:
            low, high = _interval(group, "num_bytes", name, samples, seed)
            rows.append(
                {
                    "language": language,
                    "tokenizer": name,
                    "bytes_per_token": group["num_bytes"].sum() / group[name].sum(),
                    "low": low,
                    "high": high,
                    "tokens_per_character": group[name].sum() / group["num_characters"].sum(),
                    "pages": group["page"].nunique(),
                }
            )
    return pd.DataFrame(rows)


def gain(
    counts: pd.DataFrame, comparisons: Mapping[str, tuple[str, str]], samples: int, seed: int
) -> pd.DataFrame:
    """Gain in bytes per token over a baseline in percent, with its interval, by language.

    comparisons: name to (tokenizer, baseline), both columns of `counts`. A negative gain is a loss.
    """
    rows = []
    for language, group in counts.groupby("language", sort=False):
        for name, (tokenizer, baseline) in comparisons.items():
            ratio = group[baseline].sum() / group[tokenizer].sum()
            low, high = _interval(group, baseline, tokenizer, samples, seed)
            values = {"gain": 100 * (ratio - 1), "low": 100 * (low - 1), "high": 100 * (high - 1)}
            rows.append({"language": language, "tokenizer": name, **values})
    return pd.DataFrame(rows)


def parallel_pages(counts: pd.DataFrame, languages: Sequence[str]) -> pd.DataFrame:
    """The counts of the pages that exist in all of the languages."""
    rows = counts[counts["language"].isin(languages)]
    complete = rows.groupby("page")["language"].nunique() == len(languages)
    return rows[rows["page"].isin(complete.index[complete])]


def premium(
    counts: pd.DataFrame, tokenizers: Sequence[str], base: str, samples: int = 0, seed: int = 0
) -> pd.DataFrame:
    """Premium of each language: tokens of its pages over tokens of the same pages in `base`.

    Source: Petrov et al., arXiv 2305.15425.

    Args:
        counts: parallel pages only; see `parallel_pages`.
        samples: bootstrap samples; with 0, as for a single document, the interval is NaN.
    Raises ValueError if the languages do not have the same pages.
    """
    totals = counts.groupby(["page", "language"])[list(tokenizers)].sum().unstack("language")
    if totals.isna().any().any():
        raise ValueError(
            "premiums need the same pages in every language; "
            "pass the counts through parallel_pages first"
        )
    rows = []
    for name in tokenizers:
        for language in dict.fromkeys(counts["language"]):
            pair = totals[name][[language, base]] if language != base else None
            ratio = 1.0 if pair is None else pair[language].sum() / pair[base].sum()
            low = high = ratio if pair is None else np.nan
            if samples and pair is not None:
                low, high = _bootstrap(
                    pair[language].to_numpy(), pair[base].to_numpy(), samples, seed
                )
            rows.append(
                {
                    "language": language,
                    "tokenizer": name,
                    "premium": ratio,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def parallel_premiums(
    counts: pd.DataFrame,
    languages: Sequence[str],
    tokenizers: Sequence[str],
    samples: int,
    seed: int,
) -> pd.DataFrame:
    """`premium` on the pages that exist in all of the languages, the first of which is the base; an
    empty table if there is only that one.
    """
    if len(languages) < 2:
        return pd.DataFrame()
    return premium(parallel_pages(counts, languages), tokenizers, languages[0], samples, seed)


def bytes_per_token_by_script(
    texts: Sequence[str], tokenizers: Mapping[str, Tokenizer | SentencePieceProcessor]
) -> pd.DataFrame:
    """Bytes per token in the runs of each script: one row per expert, one column per tokenizer.

    A token is counted in the run that holds its first byte, so a token of a joint vocabulary that
    spans two runs is missing from the count of the second. Scripts with fewer than 1,000 bytes of
    text are omitted.
    """
    num_bytes = np.zeros(len(EXPERTS), dtype=np.int64)
    tokens = {name: np.zeros_like(num_bytes) for name in tokenizers}
    for batch in batches(texts):
        owners = [_owners(text) for text in batch]
        num_bytes += np.bincount(np.concatenate(owners), minlength=len(EXPERTS))
        for name, tokenizer in tokenizers.items():
            starts = _token_starts(tokenizer, batch)
            first = [owner[start] for owner, start in zip(owners, starts, strict=True)]
            tokens[name] += np.bincount(np.concatenate(first), minlength=len(EXPERTS))
    columns: dict[str, np.ndarray] = {"bytes": num_bytes}
    for name, number in tokens.items():
        columns[name] = np.divide(
            num_bytes, number, out=np.full(len(EXPERTS), np.nan), where=number > 0
        )
    frame = pd.DataFrame(columns, index=pd.Index(EXPERTS, name="script"))
    return frame[frame["bytes"] >= 1000].drop(columns="bytes")


def unused_share(tokenizer: RoutedTokenizer, texts: Sequence[str]) -> pd.DataFrame:
    """Use of each block: number of ids, share of ids that never occur, share of all tokens.

    Columns: block, ids, unused, tokens; the last two are shares from 0 to 1.
    """
    used = _uses(tokenizer.union, texts)
    rows = []
    for block in tokenizer.blocks:
        counts = used[block.start : block.stop]
        unused = float((counts == 0).mean()) if len(block) else np.nan
        rows.append(
            {
                "block": block.name,
                "ids": len(block),
                "unused": unused,
                "tokens": counts.sum() / used.sum(),
            }
        )
    return pd.DataFrame(rows)


def frequent_tokens(
    tokenizer: RoutedTokenizer, texts: Sequence[str], min_letters: int, num_tokens: int
) -> pd.DataFrame:
    """The `num_tokens` most frequent tokens of each expert, spaces shown as ␣.

    Only tokens of letters alone count, with at least `min_letters` of them.
    """
    used = _uses(tokenizer.union, texts)
    rows = []
    for block in tokenizer.blocks[-len(EXPERTS) :]:
        order = block.start + np.argsort(-used[block.start : block.stop], kind="stable")
        words = [tokenizer.decode([index]) for index in order if used[index]]
        long = [
            word.replace(" ", "␣")
            for word in words
            if len(word.strip()) >= min_letters and word.strip().isalpha()
        ]
        rows.append({"expert": block.name, "tokens": " ".join(long[:num_tokens]) or "none"})
    return pd.DataFrame(rows)


def throughput(
    count: CountTokens,
    texts: Sequence[str],
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Megabytes (10^6 bytes of UTF-8) tokenized per second: the best of `repeats` runs.

    The library uses as many cores as it is given.
    """
    num_bytes = sum(len(text.encode()) for text in texts)
    seconds = []
    for _ in range(repeats):
        start = clock()
        count(texts)
        seconds.append(clock() - start)
    return num_bytes / min(seconds) / 1e6


def _uses(tokenizer: Tokenizer | SentencePieceProcessor, texts: Sequence[str]) -> np.ndarray:
    """How often the texts use each id: int64 [vocab_size]."""
    size = (
        tokenizer.vocab_size()
        if isinstance(tokenizer, SentencePieceProcessor)
        else tokenizer.get_vocab_size()
    )
    counts = np.zeros(size, dtype=np.int64)
    for batch in batches(texts):
        ids = np.concatenate([np.array(one, dtype=np.int64) for one in _ids(tokenizer, batch)])
        counts += np.bincount(ids, minlength=size)
    return counts


def _ids(tokenizer: Tokenizer | SentencePieceProcessor, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, special tokens not among them."""
    if isinstance(tokenizer, SentencePieceProcessor):
        return tokenizer.encode(list(texts))
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _interval(
    group: pd.DataFrame, numerator: str, denominator: str, samples: int, seed: int
) -> tuple[float, float]:
    pages = group.groupby("page")[[numerator, denominator]].sum()
    return _bootstrap(pages[numerator].to_numpy(), pages[denominator].to_numpy(), samples, seed)


def _bootstrap(
    numerator: np.ndarray, denominator: np.ndarray, samples: int, seed: int
) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of a ratio of sums over pages drawn with replacement.

    numerator, denominator: [pages].
    """
    # How often each page is drawn, [samples, pages].
    draws = np.random.default_rng(seed).multinomial(
        len(numerator), np.full(len(numerator), 1 / len(numerator)), samples
    )
    low, high = np.percentile((draws @ numerator) / (draws @ denominator), [2.5, 97.5])
    return float(low), float(high)


def _owners(text: str) -> np.ndarray:
    """The index into EXPERTS of the run that each byte of a text belongs to: int64 [bytes]."""
    runs = route(text)
    return np.repeat(
        [EXPERTS.index(expert) for expert, _ in runs], [len(run.encode()) for _, run in runs]
    ).astype(int)


def _token_starts(
    tokenizer: Tokenizer | SentencePieceProcessor, texts: Sequence[str]
) -> list[np.ndarray]:
    """The byte at which each token begins, for each text: int64 [tokens].

    The number of bytes of a token comes from its spelling in the vocabulary. Raises RuntimeError if
    the tokens of a text do not add up to its bytes.
    """
    if isinstance(tokenizer, SentencePieceProcessor):
        ids = range(tokenizer.vocab_size())
        pieces = [tokenizer.id_to_piece(index).replace("▁", " ") for index in ids]
        sizes = np.array(
            [
                1 if tokenizer.is_byte(i) else len(piece.encode())
                for i, piece in zip(ids, pieces, strict=True)
            ]
        )
        # SentencePiece puts one space before the text.
        before = 1
    else:
        names = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        # Byte-level BPE spells each byte as one character.
        sizes = np.array([len(name) for name, _ in names])
        before = 0
    starts = []
    for text, text_ids in zip(texts, _ids(tokenizer, texts), strict=True):
        ends = np.cumsum(sizes[text_ids]) - before
        if len(ends) and ends[-1] != len(text.encode()):
            raise RuntimeError(
                f"the tokens spell {ends[-1]} bytes, but the text has {len(text.encode())}: "
                f"{text[:60]!r}"
            )
        starts.append(np.maximum(ends - sizes[text_ids], 0))
    return starts


def with_interval(
    frame: pd.DataFrame, value: str, decimals: int, signed: bool = False
) -> list[str]:
    """Each row's value and interval as text, such as `4.12 [4.01, 4.23]`.

    The value alone where the interval is NaN.
    """
    sign = "+" if signed else ""
    texts = []
    for middle, low, high in frame[[value, "low", "high"]].itertuples(index=False):
        text = f"{middle:{sign}.{decimals}f}"
        if pd.notna(low):
            text += f" [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"
        texts.append(text.replace("-", "−"))
    return texts


def pivot(frame: pd.DataFrame, value: str, decimals: int, signed: bool = False) -> pd.DataFrame:
    """A table to display: one row per language, one column per tokenizer, cells as text.

    A cell holds the value and its interval; see `with_interval`.
    """
    rows = frame.assign(text=with_interval(frame, value, decimals, signed))
    order = {name: list(dict.fromkeys(frame[name])) for name in ("language", "tokenizer")}
    return rows.pivot(index="language", columns="tokenizer", values="text").loc[
        order["language"], order["tokenizer"]
    ]


def renyi_efficiency(counts: np.ndarray, vocab_size: int, order: float = 2.5) -> float:
    """Rényi entropy of the tokens over that of a uniform use of all ids, 0 to 1.

    Near 0 a few tokens make up the text, at 1 all ids are used alike. Source: Zouhar et al., arXiv
    2306.16842, where order 2.5 went with translation quality best; it can be gamed (2402.14614), so
    it stands beside bytes per token.

    counts: how often each id occurs, [at most vocab_size]. Raises ValueError if none does.
    """
    total = counts.sum()
    if not total:
        raise ValueError("no token was counted, so there is no distribution to measure")
    shares = counts[counts > 0] / total
    entropy = np.log((shares**order).sum()) / (1 - order)
    return max(0.0, float(entropy / np.log(vocab_size)))  # of one id it is 0, and -0.0 in floats


def renyi_efficiencies(
    tokenizers: Mapping[str, Tokenizer | SentencePieceProcessor], texts: Sequence[str]
) -> dict[str, float]:
    """`renyi_efficiency` of each tokenizer on all texts together, special tokens not counted."""
    found = {}
    for name, tokenizer in tokenizers.items():
        counts = _uses(tokenizer, texts)
        found[name] = renyi_efficiency(counts, len(counts))
    return found
