"""What notebook 07 concludes: the measures that it records, and what it says of the two claims that
no stage can decide yet.

Guarantees: `of_*` hold the values of the tables that the notebook shows, unrounded.
Out of scope: training and scoring; the claims that a comparison of recipes decides (`recipes`).
"""

import pandas as pd

from moxin_lab.lab.recording import Judged, Number
from moxin_lab.vision.retrieval import RECALL_AT


def of_recall(recall: pd.DataFrame) -> list[Number]:
    """Recall by language, direction and k, of `retrieval.recall_table`; none for an empty table."""
    rows = []
    for (language, direction), row in recall.iterrows():
        for k in RECALL_AT:
            first_page = (language, direction, k) == ("en", "image to text", 5)
            labels = {"language": language, "direction": direction, "k": k, "headline": first_page}
            interval = (row[f"R@{k} low"], row[f"R@{k} high"])
            rows.append(Number("recall", row[f"R@{k}"], "share", interval, labels))
    if rows:
        best = recall.loc[("en", "image to text")]
        times = best["R@5"] / best["chance R@5"]
        labels = {"language": "en", "k": 5}
        rows.append(Number("recall_over_chance", times, "times chance", None, labels))
    return rows


def of_styles(across: pd.DataFrame) -> list[Number]:
    """Recall at 5 across styles by kind of features, of `retrieval.style_recall_table`."""
    return [
        Number(
            "style_recall",
            row["R@5"],
            "share",
            (row["R@5 low"], row["R@5 high"]),
            {"features": kind},
        )
        for kind, row in across.iterrows()
    ]


def of_scores(against: dict[str, pd.DataFrame]) -> list[Number]:
    """Accuracy by task, its difference to each baseline, and on how many tasks it is above.

    against: baseline to the table of `scoring.gains` against it; blind and shuffled among them.
    """
    rows = [
        Number("task_accuracy", row["model"], "share", None, {"task": task})
        for task, row in against["blind"].iterrows()
    ]
    for name, table in against.items():
        rows += [
            Number(
                f"minus_{name}",
                row[f"minus {name}"],
                "share",
                (row["low"], row["high"]),
                {"task": task},
            )
            for task, row in table.iterrows()
        ]
        above = int((table["verdict"] == f"above {name}").sum())
        below = int((table["verdict"] == f"below {name}").sum())
        rows.append(Number(f"tasks_above_{name}", above, "tasks", None, {}))
        rows.append(Number(f"tasks_below_{name}", below, "tasks", None, {}))
    both = len(needs_its_own_picture(against["blind"], against["shuffled"]))
    return [*rows, Number("tasks_above_blind_and_shuffled", both, "tasks", None, {})]


def of_runs(runs: pd.DataFrame) -> list[Number]:
    """Accuracy over all questions, by training."""
    return [
        Number("accuracy", row.accuracy, "share", None, {"arm": row.arm, "seed": row.seed})
        for row in runs.itertuples()
    ]


def needs_its_own_picture(blind: pd.DataFrame, shuffled: pd.DataFrame) -> list[str]:
    """Tasks on which the model is above itself without a picture and above itself with another
    question's picture; tables of `scoring.gains`.
    """
    return [
        str(task)
        for task in blind.index
        if blind.loc[task, "verdict"] == "above blind"
        and shuffled.loc[task, "verdict"] == "above shuffled"
    ]


def not_attempted(instructions: int, *, published_data: bool) -> dict[str, Judged]:
    """Why the claims about the published model stay open at every scale.

    published_data: whether this run trained on LLaVA's files.
    """
    about = "" if published_data else " about drawings instead of 665K about photographs"
    needs = "the seven benchmarks of table 8, which no stage of this lab carries"
    lmms = "lmms-eval carries four, and moxin_lab.vision.lmms gives it the model"
    reasons = {
        "vlm.prismatic": f"{instructions:,} instructions{about}. The same cells train on LLaVA's "
        f"files where a scale names them (vision: llava). The comparison needs {needs}.",
        "eval.vlm": f"It needs {needs}; {lmms}.",
    }
    return {claim: ("not attempted", reason) for claim, reason in reasons.items()}
