"""What notebook 10 concludes: claims about documents, which any scale decides, and its measures.

Guarantees: a verdict follows from the entries in `papers/` and `MOF.yml` by the rule in its
function's docstring.
Out of scope: verdicts of other stages, which their notebooks record (`lab.claims` joins them).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moxin_lab.lab import Stage, claims, published
from moxin_lab.lab.recording import Judged, Number, reproduced_if
from moxin_lab.openness import mof, report, sources

WEIGHTS = ("Model parameters (Intermediate)", "Model parameters (Final)")
NAMED = {
    "mof.release": ("Datasets", "Training code", WEIGHTS[1]),
    "mof.checkpoints": ("Training code", "Datasets", *WEIGHTS),
}
"""Components that a sentence of the sources says were released."""


def judge_all(
    upstream: mof.Evaluation,
    evidence: Mapping[str, Mapping[str, Any]],
    averages: pd.DataFrame,
    root: Path,
) -> dict[str, Judged]:
    """Every claim of this stage, those of `sources` included. averages: of `published.averages`."""
    return {
        "mof.class-I": judge_class(upstream),
        **{claim: judge_release(evidence, parts) for claim, parts in NAMED.items()},
        "mof.licence": judge_licences(evidence),
        "eval.averages": judge_averages(averages),
        **sources.judge_all(root),
    }


def judge_class(upstream: mof.Evaluation) -> Judged:
    """Reproduced if the favourable reading of the public files reaches class I."""
    missing = "" if upstream.next_class is None else ", ".join(upstream.next_class.missing)
    return reproduced_if(
        upstream.mof_class == 1,
        f"{upstream.class_name}, {upstream.progress(3):.1f} % of class III, on the favourable "
        f"reading; lacking for the next class: {missing or 'nothing'}. The project's own blog "
        "claims class II.",
    )


def judge_release(evidence: Mapping[str, Mapping[str, Any]], parts: Sequence[str]) -> Judged:
    """Reproduced if every component that the sentence names was found."""
    holds = all(evidence[name]["status"] == "present" for name in parts)
    return reproduced_if(holds, report.found_sentence(evidence, parts))


def judge_licences(evidence: Mapping[str, Mapping[str, Any]]) -> Judged:
    """Reproduced if the base and the chat model, which the sentence names, are Apache-2.0."""
    licences = evidence[WEIGHTS[1]]["licences"]
    listed = ", ".join(f"{model} {licence}" for model, licence in licences.items())
    both = {licences["Base"], licences["Chat"]}
    return reproduced_if(both == {"Apache-2.0"}, f"Licences on the model cards: {listed}.")


def judge_averages(averages: pd.DataFrame) -> Judged:
    """Reproduced if every printed average is the mean of its row, to the printed digits."""
    wrong = averages[~averages["agrees"]]
    rows = "".join(
        f"; {row.model} prints {row.printed} for {row.mean:.2f}" for row in wrong.itertuples()
    )
    return reproduced_if(
        wrong.empty, f"{correct_averages(averages)} are the mean of their row{rows}."
    )


def correct_averages(averages: pd.DataFrame) -> str:
    """`12 of 14 printed averages`."""
    return f"{int(averages['agrees'].sum())} of {len(averages)} printed averages"


def read_averages(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All printed averages beside the means of their rows, and those that differ."""
    averages = published.averages(root / "papers" / "tables")
    return averages, averages[~averages["agrees"]].drop(columns="agrees")


def join(
    stage: Stage, records: Sequence[Mapping[str, Any]], judged: Mapping[str, Judged]
) -> list[claims.Verdict]:
    """The verdicts of all stages and of this one, one per published claim."""
    own = {
        "stage": stage.name,
        "scale": stage.scale,
        "decides_as": stage.decides_as,
        "claims": [
            {"id": claim, "verdict": verdict, "evidence": evidence}
            for claim, (verdict, evidence) in judged.items()
        ],
    }
    return claims.verdicts(stage.root, [*records, own], stage.decides_as)


def numbers(
    evaluations: Mapping[str, mof.Evaluation], averages: pd.DataFrame, totals: Mapping[str, int]
) -> list[Number]:
    """The measures of the stage. totals: claims by verdict."""
    progress = [
        Number(
            "mof_progress",
            result.progress,
            "%",
            None,
            {"release": name, "mof_class": result.number},
        )
        for name, evaluation in evaluations.items()
        for result in evaluation.classes
    ]
    wrong = int((~averages["agrees"]).sum())
    return [
        *progress,
        Number("averages_checked", len(averages), "rows", None, {}),
        Number("averages_wrong", wrong, "rows", None, {}),
        *(
            Number("claims", count, "claims", None, {"verdict": name})
            for name, count in totals.items()
        ),
    ]
