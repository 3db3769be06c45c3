"""Guarantee of the README: each number among its findings is in the released file that it names."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELEASED = ROOT / "reports" / "released"
README = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("docs_figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_its_alt_text_and_the_finding_have_the_measured_times(figures):
    times, floor, gpu = figures.milliseconds()
    picture = (ROOT / "docs" / "img" / "decode.svg").read_text(encoding="utf-8")
    alt = re.search(r"!\[(.*?)\]\(docs/img/decode.svg\)", README).group(1)
    for value in (*times.values(), floor):
        assert f">{value:.1f}<" in picture or f" {value:.1f}<" in picture
        assert re.search(rf"\b{value:.1f}\b", alt)
    assert gpu in picture
    ours, peer = times["ours, kernels in a CUDA graph"], times["transformers (DynamicCache, SDPA)"]
    assert f"takes {ours:.1f} ms on an H100" in README
    assert f"transformers takes {peer:.1f} ms" in README and f"once takes {floor:.1f} ms" in README


def test_the_picture_is_what_its_script_draws(figures, tmp_path):
    figures.draw(tmp_path / "decode.svg")

    def words(path):
        return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))

    assert words(tmp_path / "decode.svg") == words(ROOT / "docs" / "img" / "decode.svg")


def test_the_verifiers_finding_is_in_its_file():
    rows = json.loads((RELEASED / "verifier-cpu" / "verifier.json").read_text())["rows"]
    by = {(row["suite"], row["grader"]): row for row in rows}
    ours, peer = by["mixed 512", "ours"], by["mixed 512", "math-verify"]
    assert f"512 mixed answers, 52 of them hostile, are judged in {ours['total_s']:.1f} s" in README
    assert f"Math-Verify had judged {peer['items']} of them after ten seconds" in README

    def totals(suite, grader):
        found = [row for key, row in by.items() if key[1] == grader and key[0].endswith(suite)]
        return len(found), sum(r["items"] for r in found), sum(r["accepted"] for r in found)

    kinds, rewrites, accepted = totals(": rewrites", "ours")
    _, misses, paid = totals(": near-misses", "ours")
    assert (
        f"Of {rewrites:,} rewrites of gold answers, in {kinds} kinds, it accepts {accepted:,}, "
        f"and of {misses:,} near-misses {paid};" in README
    )
    _, asked, theirs = totals(": rewrites", "math-verify")
    _, _, wrongly = totals(": near-misses", "math-verify")
    assert f"Math-Verify, on {asked} of each, {theirs} and {wrongly}." in README


def test_what_a_benchmark_in_training_buys_is_in_its_file():
    record = json.loads((RELEASED / "ablations" / "ablations.json").read_text())
    rows = {
        row["measure"]: row for row in record["differences"] if row["experiment"] == "benchmark"
    }
    said = {
        one["measure"]: one["verdict"]
        for one in record["verdicts"]
        if one["experiment"] == "benchmark"
    }
    for measure in ("benchmark_right", "neighbour_right"):
        row = rows[measure]
        found = f"by {row['difference']:.3f} ({row['low']:.3f} to {row['high']:.3f}"
        assert found in re.sub(r"\s+", " ", README) and row["seeds"] == 3
    assert said["mean"] == "no difference seen"
    assert {one["verdict"] for one in record["verdicts"] if one["experiment"] == "phase-3"} == {
        "no difference seen"
    }


def test_grpos_finding_is_on_the_runs_page():
    page = re.sub(r"\s+", " ", (RELEASED / "small-h100-chain" / "README.md").read_text())
    for number in ("+0.038", "0.012", "0.063", "0.698", "0.641", "0.612", "0.457", "0.026"):
        assert number in page and number in README
