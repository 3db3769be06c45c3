"""The texts of a release: model card, technical report (Markdown and HTML) and its two figures.

Guarantees: every number comes from the run's records, its settings or the scores of the released
bytes; the report as Markdown and as HTML has the same words.
Out of scope: the public summary (`summary.py`), and assembling a release (`release.py`).
"""

import re
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from moxin_lab.lab import layout, pictures, show
from moxin_lab.lab.artifacts import read_json, write_atomically
from moxin_lab.lab.cells import render_notebook
from moxin_lab.openness import summary_records
from moxin_lab.scales import Scale

TEMPLATES = Path(__file__).parent / "templates"
FIGURES = ("training_loss", "bits_per_byte")


def facts(
    root: Path,
    folder: Path,
    manifest: Mapping[str, Any],
    scale: Scale,
    records: Mapping[str, Mapping[str, Any]],
    scored: pd.DataFrame,
    samples: pd.DataFrame,
) -> dict[str, Any]:
    """What the templates read. folder: the release so far; scored and samples: of the tools."""
    log = pd.read_parquet(folder / "training" / "steps.parquet")
    sets = [
        summary_records.data_set(root, name, text)
        for name, text in manifest["training_text"].items()
    ]
    wide = scored.pivot(index="group", columns="model", values="bits_per_byte")
    wide = wide[list(scored["model"].unique())]
    environment = records["04_pretraining"]["environment"]
    return {
        **manifest,
        "settings": scale,
        "config": read_json(folder / "model" / "config.json"),
        "sets": sets,
        "phases": _phases(log, scale),
        "curation": read_json(folder / "training" / "curation.json"),
        "order": read_json(folder / "training" / "order.json"),
        "log": log,
        "scored": scored,
        "bits": wide,
        "cloze": _cloze(records.get("08_benchmarks", {}).get("measures", [])),
        "samples": samples.to_dict(orient="records"),
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "environment": environment,
        "weight_bytes": sum(path.stat().st_size for path in folder.rglob("model.safetensors")),
        "in_tree": (folder / "model" / "model.safetensors").exists(),
    }


def write(folder: Path, values: Mapping[str, Any]) -> None:
    """README.md, technical_report.md and .html, and figures/."""
    drawn = {
        "training_loss": (_loss_figure(values["log"]), _loss_alt(values["phases"])),
        "bits_per_byte": (_bits_figure(values["scored"]), _bits_alt(values["bits"])),
    }
    captions = {
        "training_loss": "Training loss by step, mean of ten steps; the phases are shaded",
        "bits_per_byte": "Held-out bits per byte of the released weights and of baselines, with "
        "95 % intervals over documents, one seed",
    }
    (folder / "figures").mkdir()
    html = {}
    for name in FIGURES:
        figure, alt = drawn[name]
        svg = pictures.figure_svg(figure, captions[name])
        if "xmlns=" not in svg[: svg.index(">")]:
            svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        write_atomically(folder / "figures" / f"{name}.svg", svg.rstrip() + "\n")
        html[name] = show.figure_html(
            figure, alt=alt, caption=captions[name], scale=str(values["scale"])
        )
        plt.close(figure)
    shared = {
        **values,
        "table": markdown_table,
        "figure": lambda name: f"![{drawn[name][1]}](figures/{name}.svg)\n\n*{captions[name]}.*",
    }
    write_atomically(folder / "README.md", _render("model_card.md.j2", shared))
    report = _render("technical_report.md.j2", shared)
    write_atomically(folder / "technical_report.md", report)
    _write_html(folder / "technical_report.html", report, html, values)


def markdown_table(frame: pd.DataFrame, decimals: int = 3) -> str:
    """A frame with its index as a Markdown table."""
    head = [str(frame.index.name or ""), *map(str, frame.columns)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" + "---:|" * len(frame.columns)]
    for name, row in frame.iterrows():
        cells = [show.format_value(value, decimals) for value in row]
        lines.append(f"| {' | '.join([str(name), *cells])} |")
    return "\n".join(lines)


def _write_html(
    path: Path, report: str, html: Mapping[str, str], values: Mapping[str, Any]
) -> None:
    marked = re.sub(r"!\[[^\]]*\]\(figures/(\w+)\.svg\)\n\n\*[^\n]*\*", r"FIGURE-\1-HERE", report)
    cell = {"cell_type": "markdown", "metadata": {}, "source": marked}
    rendered = render_notebook({"cells": [cell]}, values["name"], lambda address: address)
    body = rendered.html
    for name, figure in html.items():
        body = body.replace(f"<p>FIGURE-{name}-HERE</p>", pictures.inlined(figure))
    layout.write_page(
        path,
        "text.html.j2",
        kind="document",
        here="",
        nav=[],
        documents=[],
        scale=values["scale"],
        page_title=f"{rendered.title}, Moxin Lab",
        title_html=layout.markup(rendered.title_html),
        body=layout.markup(body),
        contents=[heading for heading in rendered.headings if heading[0] in (2, 3)],
    )


def _phases(log: pd.DataFrame, scale: Scale) -> list[dict[str, Any]]:
    """Of each phase: its settings, and its mean loss over the last ten steps."""
    rows, start = [], 0
    for phase in scale.pretraining.phases:
        part = log.iloc[start : start + phase.steps]
        start += phase.steps
        rows.append(
            {
                "name": phase.name,
                "steps": phase.steps,
                "tokens": phase.steps * scale.pretraining.tokens_per_step,
                "sequence_length": phase.sequence_length,
                "mixture": ", ".join(f"{pool} {of:g} %" for pool, of in phase.mixture.items()),
                "loss": float(part["loss"].tail(10).mean()),
                "end": start,
            }
        )
    return rows


def _cloze(measures: list[Mapping[str, Any]]) -> pd.DataFrame:
    """Cloze accuracy of stage 08 in percent, one row per language, one column per model."""
    rows = [
        {"language": m["labels"]["language"], "model": m["labels"]["model"], "value": m["value"]}
        for m in measures
        if m["name"] == "cloze_accuracy" and m["labels"]["metric"] == "acc_norm"
    ]
    frame = pd.DataFrame(rows, columns=["language", "model", "value"])
    return frame.pivot(index="language", columns="model", values="value")


def _loss_figure(log: pd.DataFrame) -> Figure:
    show.style()
    figure, axes = plt.subplots(figsize=(7.0, 3.4))
    smooth = log["loss"].rolling(10, min_periods=1).mean().to_numpy()
    steps = range(0, len(smooth), max(1, len(smooth) // 200))
    axes.plot([step + 1 for step in steps], [smooth[step] for step in steps])
    for number, (_, part) in enumerate(log.groupby("phase", sort=False)):
        first = int(log.index.get_loc(part.index[0])) + 1
        if number % 2:
            axes.axvspan(first, first + len(part), color="#eeeeee", zorder=0)
        axes.text(first + len(part) / 2, smooth.max(), f"phase {number + 1}", ha="center", va="top")
    axes.set(xlabel="step", ylabel="training loss (nats per token)")
    return figure


def _loss_alt(phases: list[dict[str, Any]]) -> str:
    ends = ", ".join(f"{phase['loss']:.2f} after {phase['name']}" for phase in phases)
    return f"Line of the training loss by step. Mean of the last ten steps: {ends}."


def _bits_figure(scored: pd.DataFrame) -> Figure:
    show.style()
    figure, axes = plt.subplots(figsize=(7.0, 4.0))
    languages, models = list(scored["group"].unique()), list(scored["model"].unique())
    height = 0.8 / len(models)
    for number, model in enumerate(models):
        part = scored[scored["model"] == model].set_index("group").loc[languages]
        places = [at + (number - (len(models) - 1) / 2) * height for at in range(len(languages))]
        axes.errorbar(
            part["bits_per_byte"],
            places,
            xerr=[part["bits_per_byte"] - part["low"], part["high"] - part["bits_per_byte"]],
            fmt="osD^vP"[number % 6],
            markersize=5,
            linewidth=1,
            label=model,
        )
    axes.set_yticks(range(len(languages)), languages)
    axes.set(xlabel="bits per byte (lower is better)", ylim=(len(languages) - 0.5, -0.5))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _bits_alt(bits: pd.DataFrame) -> str:
    rows = "; ".join(
        f"{language}: " + ", ".join(f"{model} {value:.2f}" for model, value in row.items())
        for language, row in bits.iterrows()
    )
    return f"Held-out bits per byte by language and model. {rows}."


def _render(name: str, values: Mapping[str, Any]) -> str:
    text: str = _environment().get_template(name).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["cell"] = lambda text: (
        escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")
    )
    return environment
