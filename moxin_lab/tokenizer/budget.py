"""How many ids each language is worth: one dial, turned on validation text.

The vocabulary is filled with the tokens that save most (`learn`). How much a saved token counts
depends on its language: the favoured languages count `factor` times as much as the others. A larger
factor buys them tokens, and the others pay. `trade_off` shows the price, `best_factor` takes the
largest factor at which the guarded language keeps a stated share of what the joint BPE gives it.

Guarantees: only validation text decides, which `hold_back` takes out of the training text; the
held-out text that the notebook reports is not read.
Out of scope: a weight for each language. Three dials for three languages would follow the noise of
a few pages.
"""

import hashlib
from collections.abc import Mapping, Sequence

import pandas as pd

from moxin_lab.scales.sections import TokenizerSettings
from moxin_lab.tokenizer.learn import Pool
from moxin_lab.tokenizer.peers import CountTokens, token_counter
from moxin_lab.tokenizer.routed import build


def hold_back(
    texts: Mapping[str, Sequence[str]], one_in: int
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Documents by language for training, and about one in `one_in` of them for validation.

    Which ones follows from a hash of the text. A language with fewer than two documents has none to
    validate on; otherwise it has at least one on either side.
    """
    training: dict[str, list[str]] = {}
    validation: dict[str, list[str]] = {}
    for language, documents in texts.items():
        # By hash, so that the documents of one project do not all fall on one side.
        order = sorted(range(len(documents)), key=lambda index: _hash(documents[index]))
        back = set(order[: max(1, len(documents) // one_in)] if len(documents) > 1 else ())
        training[language] = [text for i, text in enumerate(documents) if i not in back]
        if back:
            validation[language] = [text for i, text in enumerate(documents) if i in back]
    return training, validation


def weights(languages: Sequence[str], favoured: Sequence[str], factor: float) -> dict[str, float]:
    """The weight of each language: `factor` if it is favoured, else 1."""
    return {language: factor if language in favoured else 1.0 for language in languages}


def trade_off(
    pool: Pool,
    vocab_size: int,
    min_tokens_per_expert: int,
    required: Sequence[str],
    *,
    favoured: Sequence[str],
    factors: Sequence[float],
    validation: Mapping[str, Sequence[str]],
    baseline: CountTokens,
) -> pd.DataFrame:
    """Bytes per token relative to the baseline's on validation text, by factor and language.

    Columns: factor, language, relative (1 is the baseline). The other arguments are those of
    `routed.build`.
    """
    base = {language: sum(baseline(texts)) for language, texts in validation.items()}
    rows = []
    for factor in factors:
        tokenizer = build(
            pool,
            vocab_size,
            weights=weights(list(pool.num_bytes), favoured, factor),
            min_tokens_per_expert=min_tokens_per_expert,
            required=required,
        )
        count = token_counter(tokenizer)
        for language, texts in validation.items():
            relative = base[language] / sum(count(texts))
            rows.append({"factor": factor, "language": language, "relative": relative})
    return pd.DataFrame(rows)


def best_factor(curve: pd.DataFrame, guarded: str, floor: float) -> float:
    """The largest factor at which the guarded language is at or above the floor.

    curve: the table of `trade_off`. floor: relative bytes per token, such as 0.97.
    Raises ValueError if no factor reaches the floor.
    """
    rows = curve[(curve["language"] == guarded) & (curve["relative"] >= floor)]
    if rows.empty:
        best = curve.loc[curve["language"] == guarded, "relative"].max()
        raise ValueError(
            f"no factor keeps {guarded} at {floor} of the joint BPE's bytes per token (best: "
            f"{best:.3f}); give smaller factors, or a lower floor"
        )
    return float(rows["factor"].max())


def choose(
    pool: Pool,
    settings: TokenizerSettings,
    required: Sequence[str],
    *,
    validation: Mapping[str, Sequence[str]],
    baseline: CountTokens,
) -> tuple[list[str], pd.DataFrame, float]:
    """The favoured languages that have validation text, the table of `trade_off`, and its
    `best_factor` with English guarded, by a scale's settings. Raises ValueError as `best_factor`.
    """
    favoured = [name for name in settings.favoured_languages if name in validation]
    curve = trade_off(
        *(pool, settings.vocab_size, settings.min_tokens_per_expert, required),
        favoured=favoured,
        factors=settings.weight_factors,
        validation=validation,
        baseline=baseline,
    )
    return favoured, curve, best_factor(curve, "en", settings.english_floor)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
