"""The published benchmark tables: read from `papers/tables`, shown, and attempted.

    tables = load_tables(root / "papers" / "tables")
    tables[1].commands()             # the command lines that would attempt it
    attempt(tables[1])               # full scale: weights and tasks from the hub, hours on a GPU

Guarantees: numbers are shown with the digits that the report prints; a table without a harness task
for each column has no lm_eval command, and states what an attempt would need instead.
Out of scope: guessing shots, prompts or metrics that the report omits. Where it does not say
whether it prints acc or acc_norm, `attempt` returns both.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from moxin_lab.lab import Stage, claims, published, show

HUB_ORGANISATION = "moxin-org"
"""Source: model cards of the release; technical report v6, table 9."""

ZERO_SHOT = {
    "HellaSwag": ("hellaswag", 0),
    "WinoGrande": ("winogrande", 0),
    "PIQA": ("piqa", 0),
    "ARC-E": ("arc_easy", 0),
    "ARC-C": ("arc_challenge", 0),
}
FEW_SHOT = {
    "ARC-C": ("arc_challenge", 25),
    "HellaSwag": ("hellaswag", 10),
    "MMLU": ("mmlu", 5),
    "WinoGrande": ("winogrande", 5),
}

HARNESS_TASKS: dict[str, dict[str, tuple[str, int]]] = {
    "table_2_zero_shot_base": ZERO_SHOT,
    "table_3_few_shot_base": FEW_SHOT,
    "table_4_zero_shot_instruct": ZERO_SHOT,
    "table_5_few_shot_instruct": FEW_SHOT,
}
"""By table, the columns' lm-evaluation-harness tasks and numbers of shots.

Only tables for which the report states both (sections 7.1 and 7.2).
"""

NEAREST_TASKS: dict[str, dict[str, tuple[str, int]]] = {
    "table_6_olmes": {
        "GSM8K": ("gsm8k_cot", 8),
        "MATH": ("minerva_math", 4),
        "MMLU": ("mmlu_flan_cot_zeroshot", 0),
        "BBH": ("bbh_cot_fewshot", 3),
    },
    "table_7_reasoning": {"MATH-500": ("minerva_math500", 4)},
}
"""By table, harness tasks on the same questions with other prompts, for a first look.

Their numbers are not comparable with those of the table's suite. The shots of table 6 are those
that the model card of Tulu 3 8B states for OLMES.
"""

OTHER_SUITES = {
    "table_1_architecture": "no benchmark: stage 03 builds the model and counts its parameters",
    "table_6_olmes": "the OLMES suite; the report prints neither shots nor prompts, so no harness "
    "task is known to be the same",
    "table_7_reasoning": "the Qwen2.5-Math evaluation code; the report prints neither prompts nor "
    "samples per item",
    "table_8_vlm": "the Prismatic evaluation suite on the released vision-language model",
    "table_mt_bench": "MT-Bench with GPT-4, a closed model, as judge",
}
"""What an attempt at the other tables would need."""


GROUPS = {
    "base": ("table_2_zero_shot_base", "table_3_few_shot_base"),
    "instruct": ("table_4_zero_shot_instruct", "table_5_few_shot_instruct"),
    "reasoning": ("table_6_olmes", "table_7_reasoning"),
    "other": ("table_8_vlm", "table_mt_bench"),
}
"""The tables of benchmarks in the groups in which notebook 08 shows them."""

CLAIM_TABLES = {
    "eval.zero-shot-base": "table_2_zero_shot_base",
    "eval.few-shot-base": "table_3_few_shot_base",
    "eval.zero-shot-instruct": "table_4_zero_shot_instruct",
    "eval.few-shot-instruct": "table_5_few_shot_instruct",
    "eval.olmes": "table_6_olmes",
    "eval.reasoning": "table_7_reasoning",
    "eval.reasoning-above-70b": "table_7_reasoning",
    "eval.vlm": "table_8_vlm",
    "eval.mt-bench": "table_mt_bench",
    "eval.same-pipeline": "table_6_olmes",
}
"""The claims of stage 08, and the table that an attempt at each would need."""


@dataclass(frozen=True)
class PublishedTable:
    """One file of `papers/tables` and its entry in the index."""

    name: str
    title: str
    source: str
    caption: str
    frame: pd.DataFrame
    """The first column holds row names; the others floats, or strings where words are printed."""
    ours: Mapping[str, str | None]
    """Rows that are Moxin models, to the name of the release; None if it was not released."""
    claims: tuple[str, ...]
    notes: tuple[str, ...]
    shots: str
    metric: str
    command: str | None
    """The lab's command; None if no stage runs the suite that the table was made with."""

    @property
    def tasks(self) -> dict[str, tuple[str, int]]:
        """Column to harness task and shots; empty if the table was made with another suite."""
        return HARNESS_TASKS.get(self.name, {})

    def commands(self) -> list[str]:
        """Command lines that attempt the table: the lab's, then lm_eval's.

        There is one lm_eval command per released Moxin row and number of shots.
        """
        return [*([self.command] if self.command else []), *self._lm_eval(self.tasks)]

    def nearest_commands(self) -> list[str]:
        """lm_eval command lines on some of the questions of a table made with another suite."""
        return self._lm_eval(NEAREST_TASKS.get(self.name, {}))

    def _lm_eval(self, tasks: Mapping[str, tuple[str, int]]) -> list[str]:
        lines = []
        for release in filter(None, self.ours.values()):
            for shots in sorted({shots for _, shots in tasks.values()}):
                names = ",".join(task for task, count in tasks.values() if count == shots)
                lines.append(
                    "lm_eval run --model hf "
                    f"--model_args pretrained={HUB_ORGANISATION}/{release},dtype=bfloat16 "
                    f"--tasks {names} --num_fewshot {shots} --batch_size auto"
                )
        return lines

    def requirement(self) -> str:
        """What an attempt needs, in one clause."""
        return (
            "released weights and task data from the hub, and a GPU"
            if self.tasks
            else OTHER_SUITES[self.name]
        )

    def not_attempted(self, scale: str) -> str:
        """Evidence for a claim on this table that `scale` does not attempt."""
        commands = self.commands()
        how = f"attempted by {commands[0]}" if commands else "this lab has no command for it yet"
        return f"Not attempted at {scale} scale: needs {self.requirement()}; {how}."

    def marked(self) -> pd.DataFrame:
        """The table as printed, with Moxin's rows marked by an asterisk."""
        frame = self.frame.copy()
        first = frame.columns[0]
        frame[first] = [f"{row} *" if row in self.ours else row for row in frame[first]]
        return frame.map(_as_printed)


def load_tables(folder: Path) -> list[PublishedTable]:
    """The tables of the index, in its order.

    Raises ValueError naming the file if the index and the CSV files do not match, or if this module
    names for a table neither a harness task for each column nor another suite.
    """
    return [_load(folder, entry) for entry in published.index(folder)]


def attempt(
    table: PublishedTable,
    *,
    hub_path: Callable[[str], str] = str,
    run: Callable[..., dict[str, Any]] | None = None,
    batch_size: str | int = "auto",
) -> pd.DataFrame:
    """Evaluates each released Moxin row with lm-evaluation-harness on weights and tasks of the hub.

    hub_path: where a model of the hub is read, by its name there (`Stage.hub_path`).
    run: called in place of `lm_eval.simple_evaluate`; for tests.
    Returns one row per printed number. Columns: row, column, published, acc, acc_norm, in percent;
    acc_norm is missing for a task that has none.
    Raises ValueError for a table made with another suite.
    """
    if not table.tasks:
        raise ValueError(
            f"{table.title} cannot be attempted with lm-evaluation-harness: "
            f"it needs {table.requirement()}"
        )
    if run is None:
        from lm_eval import simple_evaluate

        run = simple_evaluate
    printed = table.frame.set_index(table.frame.columns[0])
    rows = []
    for row, release in table.ours.items():
        if release is None:
            continue
        model_args = {
            "pretrained": hub_path(f"{HUB_ORGANISATION}/{release}"),
            "dtype": "bfloat16",
        }
        for column, (task, shots) in table.tasks.items():
            results = run(
                model="hf",
                model_args=model_args,
                tasks=[task],
                num_fewshot=shots,
                batch_size=batch_size,
            )
            scores = results["results"][task]
            accuracy = {
                key: 100 * scores[f"{key},none"] if f"{key},none" in scores else None
                for key in ("acc", "acc_norm")
            }
            rows.append(
                {"row": row, "column": column, "published": printed.at[row, column], **accuracy}
            )
    return pd.DataFrame(rows)


class Lead(NamedTuple):
    """Moxin's best row of a table beside the best row that is not Moxin's, by the last column."""

    title: str
    """`Table 4`, or the whole title of one without a number."""
    moxin: str
    other: str
    last: tuple[float, float]
    """The last column (`Ave`, or the only one) of both."""
    points: pd.Series
    """Moxin's minus the other's, by benchmark, largest first."""


def lead(table: PublishedTable) -> Lead:
    """Where the printed lead of Moxin's best row comes from, or its deficit."""
    printed = table.frame.set_index(table.frame.columns[0])
    last, is_moxin = printed.columns[-1], printed.index.isin(list(table.ours))
    moxin, other = (str(printed.loc[rows, last].idxmax()) for rows in (is_moxin, ~is_moxin))
    first, second = (printed.loc[name].astype(float) for name in (moxin, other))
    benchmarks = [name for name in printed.columns if name != "Ave"]
    points = (first - second)[benchmarks].sort_values(ascending=False)
    title = table.title.partition(",")[0]
    return Lead(title, moxin, other, (first[last], second[last]), points)


def lead_in_words(found: Lead) -> str:
    """What to look at in a table: both rows, and the benchmarks that make the difference."""
    first, second = found.last
    text = f"{found.title}: {found.moxin} {first:g}, the best other row ({found.other}) {second:g}."
    if len(found.points) == 1:
        return text
    top, bottom = found.points.index[0], found.points.index[-1]
    highest, lowest = (f"{found.points[name]:+.1f}" for name in (top, bottom))
    without = f"{found.points.drop(top).mean():+.1f}"
    text += (
        f" The difference runs from {highest} ({top}) to {lowest} ({bottom}); without {top} its "
        f"mean is {without}."
    )
    return text.replace(" -", " \N{MINUS SIGN}")


def folded(table: PublishedTable, scale: str, attempted: bool) -> str:
    """A table as printed, with what is printed about it and what an attempt needs, as HTML that
    opens on a click. attempted: whether this run attempts it.
    """
    state = "attempted above" if attempted else f"not attempted at this scale ({scale})"
    caption = f"Published, {state}. {table.title} ({table.source}). {table.caption}"
    notes = [f"Shots: {table.shots}. Metric: {table.metric}.", *table.notes]
    notes.append(f"An attempt needs {table.requirement()}.")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    commands = (
        f"<p>{title}</p><pre>{escape(chr(10).join(lines))}</pre>"
        for title, lines in (
            ("Attempted by:", table.commands()),
            ("Nearest in lm-evaluation-harness:", table.nearest_commands()),
        )
        if lines
    )
    return (
        f"<details><summary>{escape(table.title)}: the printed digits, and what an attempt needs"
        f"</summary>{show.table_html(table.marked(), caption=caption, scale='')}<ul>{items}</ul>"
        f"{''.join(commands)}</details>"
    )


def show_folded(tables: Sequence[PublishedTable], scale: str, attempted: Collection[str]) -> None:
    """Display tables in the notebook, each `folded`. attempted: names of those of this run."""
    for table in tables:
        show.html_output(folded(table, scale, table.name in attempted), f"[{table.title}]")


def verdicts(
    tables: Mapping[str, PublishedTable], attempted: Mapping[str, pd.DataFrame], stage: Stage
) -> dict[str, tuple[str, str]]:
    """Verdict and evidence of each claim of `CLAIM_TABLES`: `judge` where its table was attempted,
    else not attempted.
    """
    return {
        claim: judge(claim, attempted[name], stage.root)
        if name in attempted
        else ("not attempted", tables[name].not_attempted(stage.scale))
        for claim, name in CLAIM_TABLES.items()
    }


def judge(claim: str, attempted: pd.DataFrame, root: Path) -> tuple[str, str]:
    """Verdict and evidence for a claim about an average, from the result of `attempt`.

    The claim is reproduced if the mean over the columns, by acc or by acc_norm (by acc for a task
    without acc_norm), is within the tolerance of the claim's entry in `papers/claims.yml`;
    otherwise it is contradicted.
    """
    entries = {entry["id"]: entry for entry in claims.load(root)}
    value, tolerance = entries[claim]["value"], entries[claim]["tolerance"]
    means = {
        "acc": attempted["acc"].mean(),
        "acc_norm": attempted["acc_norm"].fillna(attempted["acc"]).mean(),
    }
    near = [metric for metric, mean in means.items() if abs(mean - value) <= tolerance]
    measured = ", ".join(f"{mean:.2f} by {metric}" for metric, mean in means.items())
    evidence = (
        f"Mean over {len(attempted)} tasks {measured}; published {value}, tolerance {tolerance}."
    )
    return ("reproduced" if near else "contradicted"), evidence


def _load(folder: Path, entry: Mapping[str, Any]) -> PublishedTable:
    path = folder / entry["file"]
    frame = published.table(folder, entry["file"]).reset_index()
    absent = set(entry.get("ours", {})) - set(frame.iloc[:, 0])
    if absent:
        raise ValueError(f"{path} has no row {', '.join(sorted(absent))}, which index.yml names")
    tasks = HARNESS_TASKS.get(path.stem, {})
    if path.stem not in OTHER_SUITES and set(tasks) != set(frame.columns[1:]) - {"Ave"}:
        raise ValueError(
            f"{path}: moxin_lab/evaluation/published.py names neither a task for each column "
            "nor another suite"
        )
    return PublishedTable(
        name=path.stem,
        title=entry["title"],
        source=entry["source"],
        caption=entry["caption"],
        frame=frame,
        ours=entry.get("ours", {}),
        claims=tuple(entry["claims"]),
        notes=tuple(entry.get("notes", ())),
        shots=str(entry.get("shots", "not stated")),
        metric=str(entry.get("metric", "not stated")),
        command=entry["command"],
    )


def _as_printed(value: Any) -> Any:
    """The shortest digits that give the same number, which is how the report prints it."""
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e5 else value
