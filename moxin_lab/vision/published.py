"""Table 8 of the paper, with what it omits: how each row was trained, and Prismatic's rows with the
same two encoders.

Those rows are no control of Moxin's: they see 384 pixels and Moxin's model 224. Prismatic also
released a model at 224 pixels, of which no row is published.

Guarantees: digits as printed, each average recomputed by a test; where no source states a
configuration, the table says so.
Out of scope: running a benchmark. The command of Moxin's row is this lab's, which trains the model;
the models of the other rows are Prismatic's.
"""

from pathlib import Path

import pandas as pd

from moxin_lab.lab import published

TABLE = "table_8_vlm.csv"
COLUMNS = ("encoder", "pixels", "resize", "epochs", "data")
PRISMATIC = "torchrun scripts/pretrain.py --model.type"
COMMANDS = {
    # OCID-Ref, VSR and TallyQA are not among lmms-eval's tasks.
    "Moxin-7B-VLM": "moxin-lab run --scale full --only 07, then python -m lmms_eval "
    "--model moxin_vl --model_args pretrained=runs/full/07_vision_language/vlm "
    "--tasks gqa,vizwiz_vqa_val,refcoco+_bbox_rec_val,pope",
    "Prism-DINOSigLIP 7B (Controlled)": f"{PRISMATIC} prism-dinosiglip-controlled+7b (Prismatic)",
    "Prism-DINOSigLIP 7B": f"{PRISMATIC} prism-dinosiglip+7b (Prismatic)",
}
OTHER_ROWS = f"{PRISMATIC} with the row's configuration (Prismatic)"


def table_8(folder: Path) -> pd.DataFrame:
    """Rows of table 8 and Prismatic's own, sorted by average: configuration, seven scores, average,
    and the command that would reproduce the row.

    folder: `papers/tables`. Raises ValueError naming a row without a configuration.
    """
    entry = next(entry for entry in published.index(folder) if entry["file"] == TABLE)
    printed = published.table(folder, TABLE)
    unknown = set(printed.index) ^ set(entry["configurations"])
    if unknown:
        raise ValueError(
            f"index.yml and table_8_vlm.csv do not name the same rows: {', '.join(sorted(unknown))}"
        )
    rows = {
        (name, "Moxin's table 8"): [
            *(entry["configurations"][name][column] for column in COLUMNS),
            *printed.loc[name],
        ]
        for name in printed.index
    }
    for name, control in entry["controls"].items():
        rows[name, "Prismatic"] = [
            *(control["configuration"][column] for column in COLUMNS),
            *control["values"],
        ]
    frame = pd.DataFrame(rows, index=[*COLUMNS, *printed.columns]).T
    frame.index.names = ["model", "printed in"]
    frame = frame.sort_values("Ave", ascending=False)
    frame["command"] = [COMMANDS.get(name, OTHER_ROWS) for name, _ in frame.index]
    return frame


def commands_in_words(table: pd.DataFrame) -> str:
    """Markdown: each command that would attempt rows of `table_8`, with its rows."""
    rows: dict[str, list[str]] = {}
    for (name, _), command in table["command"].items():
        rows.setdefault(command, []).append(name)
    return "None of these rows was attempted here. What would attempt them:\n\n" + "\n".join(
        f"- {', '.join(names)}: `{command}`" for command, names in rows.items()
    )
