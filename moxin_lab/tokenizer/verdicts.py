"""What notebook 02 concludes: measures that are no table of languages, and its two verdicts.

Guarantees: a verdict follows from the intervals by the rule in its function's docstring.
Out of scope: counting tokens (`measures`), the tables of gains (`tables.record` records those).
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from moxin_lab.lab import rules
from moxin_lab.lab.recording import Judged, Number
from moxin_lab.tokenizer.tables import gains_in_words

WEIGHTED = "over joint BPE"
EQUAL_WEIGHTS = "equal weights, over joint BPE"
JUDGED = ("over Mistral v0.1", EQUAL_WEIGHTS)
"""Not the weighted tokenizer against the joint BPE: its gain there is mostly ids moved."""


def numbers(
    sizes: Mapping[str, int],
    equal_both_ways: float,
    lossless: float,
    by_script: pd.DataFrame,
    usage: pd.DataFrame,
    speed: Mapping[str, float],
) -> list[Number]:
    """The measures of the stage beside its tables by language.

    sizes: ids by block; equal_both_ways, lossless: shares of documents; speed: MB/s.
    """
    scripts = (
        Number(
            "bytes_per_token_by_script",
            value,
            "bytes/token",
            None,
            {"script": script, "tokenizer": name},
        )
        for script, row in by_script.iterrows()
        for name, value in row.items()
    )
    unused = (
        Number("unused_share", row.unused, "share of ids", None, {"block": row.block})
        for row in usage[usage["ids"] > 0].itertuples()
    )
    return [
        *(Number("block_size", size, "ids", None, {"block": name}) for name, size in sizes.items()),
        Number("documents_equal_both_ways", equal_both_ways, "share of documents", None, {}),
        Number("documents_lossless", lossless, "share of documents", None, {}),
        *scripts,
        *unused,
        *(
            Number("throughput", value, "MB/s", None, {"tokenizer": name})
            for name, value in speed.items()
        ),
    ]


def judge_experts(gains: pd.DataFrame, languages: Sequence[str], vocab_size: int) -> Judged:
    """`tokenizer.moe-cjk`: the verdict of the least favourable of the gains over both peers in each
    language (`lab.rules`), over the joint BPE with equal weights; not attempted without text in
    these languages.

    gains: the table of `measures.gain`. The claim is that the structure improves all three
    languages, so one language with a loss contradicts it.
    """
    if not languages:
        return (
            "not attempted",
            "No Chinese, Japanese or Korean text: moxin-lab run --scale small --only 02 has it.",
        )
    rows = gains[gains["tokenizer"].isin(JUDGED) & gains["language"].isin(list(languages))]
    over_mistral, alone, weighted = (
        gains_in_words(gains, name, languages) for name in (*JUDGED, WEIGHTED)
    )
    english = gains_in_words(gains, "over joint BPE", ["en"]) if "en" in set(gains.language) else ""
    paid = f", for which English pays with {english}" if english else ""
    return (
        rules.all_of(rules.judge_gain(row.low, row.high) for row in rows.itertuples()),
        f"Gain in bytes per token of a routed tokenizer of our own design ({vocab_size:,} ids) on "
        f"held-out pages, every language weighing the same: over a joint BPE of equal size and "
        f"text {alone}. With more weight on these languages it is {weighted}{paid}, and over "
        f"Mistral v0.1's 32,000 ids {over_mistral}. Moxin's own structure is unpublished, and its "
        "released tokenizer routes nothing.",
    )


def judge_vocabulary(released: Mapping[str, int] | None) -> Judged:
    """`tokenizer.vocab-32000`: reproduced if the released file has 32,000 tokens.

    released: from `peers.compare_released`; None where the file was not read.
    """
    if released is None:
        return "not attempted", "Needs the released files: moxin-lab run --scale full --only 02."
    return (
        "reproduced" if released["size"] == 32_000 else "contradicted",
        f"The released tokenizer has {released['size']:,} tokens, {released['shared']:,} of them "
        "also in Mistral v0.1's.",
    )
