"""What notebook 09 concludes: sentences, the measures that it records, and its verdicts by rule.

Guarantees: `numbers` holds the values of the tables that the notebook shows, unrounded; a verdict
comes from an interval and `lab/rules.py` alone.
Out of scope: computing a number (`knowledge.py`, `experiments.py`).
"""

import numpy as np
import pandas as pd

from moxin_lab.evaluation.statistics import Estimate, paired_bootstrap
from moxin_lab.lab import rules
from moxin_lab.lab.recording import Judged, Number
from moxin_lab.serving.knowledge import AT, CLOSED_BOOK, NAMES, Threshold

FIRST = "first paragraph"
TERMS = "most shared terms"
MODEL = "model ranks"
ADAPTED = "adapted model ranks"


def recall_sentence(table: pd.DataFrame, weight: float) -> str:
    """What the recall table shows of pages in the question's own language."""
    asked = table.index.get_level_values("question")
    own = table[asked == table.index.get_level_values("pages")]["recall"].unstack("retrieval")
    both, parts = own[NAMES["hybrid"]], own[[NAMES["lexical"], NAMES["dense"]]].max(axis=1)
    worse = [str(language) for language, *_ in own.index[(both < parts).to_numpy()]]
    low, high = f"{both.min():.2f}", f"{both.max():.2f}"
    found = f"{low} in every language" if low == high else f"{low} to {high}"
    text = f"Both together find {found}, with weight {weight:g} on the vectors, chosen on the "
    text += "validation half. "
    return text + (
        f"In {', '.join(worse)} one half alone finds more."
        if worse
        else "In no language does one half alone find more."
    )


def threshold_sentence(chosen: Threshold, tested: Threshold) -> str:
    """What the threshold does on the test half."""
    return (
        f"With a threshold of {chosen.coverage:g}, chosen on the validation half, "
        f"{tested.answered:.0%} of the test questions with an answer get one, and "
        f"{tested.refused:.0%} of those without get `no answer found`."
    )


def readers_sentence(table: pd.DataFrame) -> str:
    """Which reader quotes the right paragraph most often, the rules without a model among them.
    table: of `knowledge.answers_table`.
    """
    exact = table["exact match"].sort_values(ascending=False, kind="stable")
    listed = ", ".join(f"{name} {value:.2f}" for name, value in exact.items())
    rules = [name for name in (FIRST, TERMS) if name in exact.index]
    models = [name for name in (MODEL, ADAPTED) if name in exact.index]
    text = f"Exact quotations, best first: {listed}."
    if rules and models and exact[rules].max() > exact[models].max():
        best = exact[rules].idxmax()
        text += f" The rule of {best}, which has no model, is ahead of both models."
    return text


def gain(read: pd.DataFrame, first: str, second: str, *, seed: int) -> Estimate:
    """Exact match of one reader minus another's on the same questions, with its interval."""
    exact = {
        name: part.sort_values(["language", "question"])["exact"].to_numpy(dtype=float)
        for name, part in read.groupby("reader")
        if name in (first, second)
    }
    return paired_bootstrap(exact[first], exact[second], seed=seed)


def judge_knowledge_base(read: pd.DataFrame, *, seed: int) -> Judged:
    """On the claim that retrieval makes a model answer questions about documents."""
    value, low, high = gain(read, MODEL, CLOSED_BOOK, seed=seed)
    share = read.groupby("reader")["exact"].mean()
    return (
        rules.judge_gain(low, high),
        f"Exact match {share[MODEL]:.2f} with retrieval, {share[CLOSED_BOOK]:.2f} without: "
        f"{value:+.2f} ({low:+.2f} to {high:+.2f}) over questions, one model. The paragraph with "
        f"most shared terms, without a model, reaches {share[TERMS]:.2f}.",
    )


def judge_vertical(product: Estimate, answers: Estimate, general: Estimate) -> Judged:
    """On the claim that fine-tuning on a field's documents adapts a model to it: its held-out text
    costs less, and its questions are answered better. All are after minus before.
    """
    verdict = rules.all_of(
        [
            rules.judge_gain(-product.high, -product.low),
            rules.judge_gain(answers.low, answers.high),
        ]
    )
    return (
        verdict,
        f"Held-out text of the product {_signed(product)} bits per byte, exact match "
        f"{_signed(answers)}, general text {_signed(general)} bits per byte; one seed, intervals "
        "over documents and questions.",
    )


def judge_image_dialogue(same: int, asked: int) -> Judged:
    """On the claim about images in a dialogue, which no scale below full can decide."""
    return (
        "not attempted",
        f"Over HTTP the model of stage 07 gives the same answer as in this process to {same} of "
        f"{asked} questions; how well it answers is in stage 07. Service pictures and textbook "
        "charts need the published model.",
    )


def numbers(
    table: pd.DataFrame,
    tested: Threshold,
    read: pd.DataFrame,
    adaptations: pd.DataFrame,
    changes: dict[str, Estimate],
) -> list[Number]:
    """What stage 09 records. changes: of the adaptation by what was measured."""
    rows = []
    for (asked, pages, half), row in table.iterrows():
        labels = {"question": asked, "pages": pages, "retrieval": half, "k": AT}
        shown = (asked, pages, half) == ("en", "en", NAMES["hybrid"])
        labels |= {"headline": True} if shown else {}
        rows.append(Number("recall", row["recall"], "share", (row["low"], row["high"]), labels))
    rows.append(Number("answered", tested.answered, "share", None, {"questions": "with answer"}))
    rows.append(Number("refused", tested.refused, "share", None, {"questions": "without answer"}))
    for reader, part in read.groupby("reader", sort=False):
        rows.append(Number("exact_match", part["exact"].mean(), "share", None, {"reader": reader}))
        rows.append(Number("page_cited", part["page"].mean(), "share", None, {"reader": reader}))
    for (adapters, count), row in adaptations.iterrows():
        for kind in ("product text", "general text"):
            labels = {"adapters": adapters, "rows": int(count), "text": kind}
            rows.append(Number("heldout_bits", row[kind], "bits/byte", None, labels))
    for name, change in changes.items():
        rows.append(Number(f"change_{name}", change.value, "difference", change[1:], {}))
    return rows


def adaptation_sentence(product: Estimate, general: Estimate) -> str:
    """What the largest adaptation did to held-out text, and what was forgotten."""
    forgotten = (
        "general text got harder: the model forgot"
        if general.low > 0
        else "no forgetting of general text is seen"
        if general.high > 0
        else "general text got easier, too"
    )
    return (
        f"The largest adaptation changes held-out text of the product by {_signed(product)} bits "
        f"per byte, general text by {_signed(general)}: {forgotten}."
    )


def _signed(change: Estimate) -> str:
    value, low, high = np.round(change, 3)
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
