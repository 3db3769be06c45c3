"""Draws docs/img/decode.svg from reports/released/h100/decode.json: python docs/figures.py

Guarantees: every number in the picture is read from that file; text stays text in the SVG, so that
it can be searched and read aloud.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
SOURCE = "reports/released/h100/decode.json"
LABELS = {
    "transformers, DynamicCache, SDPA": "transformers (DynamicCache, SDPA)",
    "ours, plain forward pass": "ours, plain forward pass",
    "ours, kernels": "ours, kernels",
    "ours, kernels in a CUDA graph": "ours, kernels in a CUDA graph",
}


def milliseconds() -> tuple[dict[str, float], float, str]:
    """Milliseconds of one token after 32,000 by implementation, the floor, and the GPU's name."""
    bench = json.loads((ROOT / SOURCE).read_text(encoding="utf-8"))
    rows = {row["implementation"]: row for row in bench["rows"] if row["tokens"] == 32_000}
    times = {label: rows[name]["ms_per_token"] for name, label in LABELS.items()}
    return times, rows["ours, kernels"]["floor_ms"], bench["machine"]["gpu"]


def draw(path: Path) -> None:
    """Write the picture."""
    times, floor, gpu = milliseconds()
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "moxin", "font.size": 11})
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    bars = axes.barh(list(times), list(times.values()), color=["#8a8f98", *["#2f6fab"] * 3])
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.axvline(floor, color="#b3261e", linestyle="--")
    axes.text(floor + 0.4, -0.62, f"memory floor {floor:.1f}", color="#b3261e", va="center")
    axes.set(xlim=(0, 48), ylim=(3.5, -0.9), xlabel=f"milliseconds per token, {gpu}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "img" / "decode.svg")
