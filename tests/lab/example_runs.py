"""A small run folder written by hand, with one stage in each state, from which the report's tests
build a site.

The notebooks look as papermill writes them; `show.py` makes the figures and tables in them.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from moxin_lab.lab import show
from moxin_lab.openness import bills
from moxin_lab.stages import find_stage

OPENING = r"""# 01 · Data *curation*

What the stage does, with inline $\sqrt{d_k}$ and a formula that
spans lines $a +
b$. See [the tokenizer](02_tokenizer.ipynb), [the claims](../papers/claims.yml) and [the report](https://example.org/paper).

$$
\operatorname{softmax}\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V, \qquad
\mathcal{L} = -\frac{1}{T}\sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t})
$$

Costs \$5 and \$6. 中文、日本語、한국어 stand in the text.

```text
raw HTML ──▶ resiliparse ──▶ NFC ──▶ language ──▶ exact duplicates ──▶ near duplicates ──▶ split by page
```

| step | kept |
|---|--:|
| all | 100 |
| NFC | 98 |
"""


def code(
    source: str, outputs: list[dict[str, Any]] | None = None, tags: list[str] | None = None
) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "metadata": {"tags": tags} if tags else {},
        "source": source,
        "outputs": outputs or [],
        "execution_count": 1,
    }


def words(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def html(text: str) -> dict[str, Any]:
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {"text/html": text, "text/plain": "…"},
    }


def printed(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def example_figure() -> str:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    show.style()
    figure, axes = plt.subplots()
    for name, values in {"English": [3.1, 2.2, 1.9, 1.7], "中文": [4.0, 3.1, 2.6, 2.5]}.items():
        axes.plot([0, 100, 200, 300], values, marker="o", label=name)
    axes.set(xlabel="step", ylabel="held-out bits per byte", title="Loss falls in both languages")
    axes.legend()
    alt = "Bits per byte over 300 steps: English falls from 3.1 to 1.7, Chinese from 4.0 to 2.5."
    text = show.figure_html(
        figure, alt=alt, caption="Held-out bits per byte during training.", scale="tiny"
    )
    plt.close(figure)
    return text


def example_table() -> str:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "language": ["English", "Simplified Chinese"],
            "documents kept after every filter": [12345, 678],
            "share": [0.91234, None],
            "smallest probability": [0.00001, -0.5],
            "a <rather> long column name that makes the table wider than a telephone": [
                "help_pages",
                "python_docs",
            ],
        }
    )
    return show.table_html(frame, caption="Documents kept.", scale="tiny", decimals=3)


def record(stage: str, title: str, **more: Any) -> dict[str, Any]:
    digest = "0123456789abcdef" * 4
    return {
        "stage": stage,
        "title": title,
        "scale": "tiny",
        "seed": 0,
        "state": "done",
        "key": digest,
        "parameters": {"scale": "tiny", "seed": 0},
        "settings": {"data": {"min_characters": 200}},
        "inputs": {"documents": {"stage": "01_data_curation", "sha256": digest, "size": 123456}},
        "outputs": {"documents": {"sha256": digest, "size": 7_340_032, "files": {}}},
        "measures": [
            {
                "name": "documents_kept",
                "value": 12345,
                "unit": "documents",
                "labels": {},
                "interval": None,
            },
            {
                "name": "bytes_per_token",
                "value": 4.1234567,
                "unit": "bytes/token",
                "labels": {"language": "zh"},
                "interval": [4.0, 4.2],
            },
        ],
        "claims": [
            {"id": "data.kept", "verdict": "reproduced", "evidence": "12,345 documents were kept."}
        ],
        "environment": {
            "python": "3.11.9",
            "platform": "Linux 6.1 x86_64",
            "cpu": "Example CPU",
            "cores": 2,
            "memory_bytes": 8 * 2**30,
            "gpu": None,
            "packages": {"torch": "2.13.0", "daft": None},
            "git_commit": "abcdef0123456789abcdef",
            "git_dirty": True,
        },
        "seconds": 71.25,
        "peak_memory_bytes": 1_503_238_553,
        "finished_at": "2026-11-22T00:00:00Z",
        **more,
    }


def write_notebook(path: Path, cells: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}),
        encoding="utf-8",
    )


def good_cells() -> list[dict[str, Any]]:
    setup = (
        "from moxin_lab import lab\n\n"
        "stage = lab.stage('01_data_curation', scale=scale, seed=seed, root=root)  # opens it"
    )
    markdown = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"text/markdown": "Kept **91 %**, so $p<0.5$."},
    }
    return [
        words(OPENING),
        code('scale = "tiny"\nseed = 0\nroot = "."', tags=["parameters"]),
        code('scale = "tiny"', tags=["injected-parameters"]),
        code(
            setup,
            [
                printed(
                    "step 1\rstep 2\rstep 3\n" + "\n".join(f"line {i}" for i in range(100)),
                    "stderr",
                )
            ],
        ),
        words("## The funnel\n\nLook at the last column: near duplicates by MinHash."),
        code("stage.show_table(frame, caption='Documents kept.')", [html(example_table())]),
        words("### By language"),
        code(
            "stage.show_figure(fig, alt=alt, caption=caption)", [html(example_figure()), markdown]
        ),
        code(
            "1 + 1",
            [{"output_type": "execute_result", "metadata": {}, "data": {"text/plain": "2"}}],
        ),
        words("## What this does not show\n\nAnything at the paper's scale."),
        code(
            "stage.finish()",
            [{"output_type": "display_data", "metadata": {}, "data": {"text/markdown": "Done."}}],
        ),
    ]


def failing_cells(root: Path) -> list[dict[str, Any]]:
    error = {
        "output_type": "error",
        "ename": "ValueError",
        "evalue": "train.parquet has no column <text>",
        "traceback": [
            "\x1b[0;31mValueError\x1b[0m  Traceback",
            f"File {root.resolve()}/moxin_lab/x.py:3, in f",
            "boom",
        ],
    }
    notice = {**words('<span style="color:red">An Exception was encountered</span>')}
    notice["metadata"] = {"tags": ["papermill-error-cell-tag"]}
    return [
        notice,
        words("# 02 · The tokenizer\n\nText."),
        code("f()", [error]),
        words("## Later"),
        code("g()"),
    ]


def claim(claim_id: str, text: str, **fields: str) -> dict[str, str]:
    rest = {
        "topic": "model",
        "source": "report",
        "scale_needed": "tiny",
        "how": "By looking.",
        "status": "not attempted",
    }
    return {"id": claim_id, "claim": text, **rest, **fields}


def write_example(root: Path) -> None:
    """Turn `root` into a repository with one finished stage, one failed, and the others not run."""
    (root / "papers").mkdir(parents=True)
    claims = [
        claim("data.kept", "Most documents are kept.", topic="data", tested_in="01_data_curation"),
        claim(
            "model.size",
            "It has 8 billion parameters.",
            tested_in="03_model",
            scale_needed="full",
            command="moxin-lab run --scale full --only 03",
        ),
        claim("vlm.loss", "<b>Vision</b> works.", tested_in="07_vision_language"),
    ]
    content = {"planned_notebooks": ["07_vision_language"], "claims": claims}
    (root / "papers" / "claims.yml").write_text(json.dumps(content), encoding="utf-8")
    card = root / "data_cards" / "help_pages"
    card.mkdir(parents=True)
    (card / "README.md").write_text(
        "---\npretty_name: LibreOffice help\nlicense: mpl-2.0\n---\n# Help pages\n",
        encoding="utf-8",
    )
    summaries = Path(__file__).parents[2] / "papers" / "summaries"
    shutil.copytree(summaries, root / "papers" / "summaries")
    first = root / "runs" / "tiny" / "01_data_curation"
    write_notebook(first / "notebook.ipynb", good_cells())
    (first / "stage.json").write_text(
        json.dumps(record("01_data_curation", "Data curation")), encoding="utf-8"
    )
    write_notebook(root / "runs" / "tiny" / "02_tokenizer" / "failed.ipynb", failing_cells(root))


MODELS = {
    "04_pretraining": ("pretrained", "phase_checkpoints"),
    "05_instruction_tuning": ("sft", "instruct"),
    "07_vision_language": ("vision_towers", "vlm"),
    "09_applications": ("knowledge_base", "adapted"),
}
"""Stage -> artifacts of the whole example, models and others."""


def write_whole_example(root: Path, repository: Path) -> Path:
    """The example with every kind of document: this repository's own claims, deviations, cards and
    summaries, records of stages that make models, and both bills of materials; returns `root`.
    """
    write_example(root)
    shutil.rmtree(root / "data_cards")
    for card in sorted((repository / "data_cards").iterdir()):
        (root / "data_cards" / card.name).mkdir(parents=True)
        for name in ("README.md", "croissant.json"):
            shutil.copy(card / name, root / "data_cards" / card.name)
    for name in ("claims.yml", "deviations.yml"):
        shutil.copy(repository / "papers" / name, root / "papers")
    for name in ("CITATION.cff", "requirements.lock"):
        shutil.copy(repository / name, root)
    for name in ("public_summary.json", "public_summary_grade.json"):
        (root / "release" / "moxin-lab-small").mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / "release/moxin-lab-small" / name, root / "release/moxin-lab-small")
    write_records(root, "tiny", by=1.0)
    bills.write(root, "tiny")
    return root


def write_records(root: Path, run: str, by: float) -> None:
    """Records of the whole example in `runs/<run>`, their measures multiplied."""
    verdict = {"id": "data.html-extraction", "verdict": "reproduced", "evidence": "It keeps more."}
    first = record(
        "01_data_curation",
        "Data curation",
        claims=[verdict],
        inputs={},
        data_cards={name: {"sha256": "ab" * 32} for name in find_stage("01").data_cards},
        measures=[measure(number, by) for number in range(30)],
    )
    records = [first]
    for stage, names in MODELS.items():
        outputs = {
            name: {"sha256": hashlib.sha256(f"{name} {by}".encode()).hexdigest(), "size": 5 * 10**6}
            for name in names
        }
        measures = [measure(number, by) for number in range(40)]
        records.append(
            record(stage, stage[3:], outputs=outputs, measures=measures, claims=[], data_cards={})
        )
    for made in records:
        folder = root / "runs" / run / made["stage"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stage.json").write_text(json.dumps(made), encoding="utf-8")


def measure(number: int, by: float) -> dict[str, Any]:
    """With labels as long as those of stage 09."""
    value = by * (number + 1) / 41
    labels = {"question": "en", "pages": "pt-BR", "retrieval": "words and vectors", "k": number}
    return {
        "name": "recall_of_pages_by_their_heading",
        "value": value,
        "unit": "share",
        "labels": labels,
        "interval": [value - 0.01, value + 0.01] if number % 3 else None,
    }
