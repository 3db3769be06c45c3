"""Figures: labels state everything that colours state, and text is escaped in HTML."""

import pandas as pd

from moxin_lab.tokenizer import figures, router
from moxin_lab.tokenizer.routed import Block


def test_each_run_is_labelled_with_its_expert_and_escaped():
    html = figures.runs_html(router.route("<b> 文"), "a & b", "tiny")
    assert html.count("<li") == 3 and "<b>" not in html
    assert "&lt;b</span>" in html and "a &amp; b" in html
    assert ">common</span>" in html and ">cjk</span>" in html
    assert "␣文" in html and "tiny scale" in html


def test_every_block_that_has_ids_is_labelled_with_their_number_whatever_its_width():
    sizes = {
        "special": 4,
        "byte": 256,
        "shared": 1,
        "common": 300,
        "latin": 5000,
        "cjk": 1500,
        "hangul": 800,
        "thai": 0,
        "other": 3,
    }
    blocks, start = [], 0
    for name, size in sizes.items():
        blocks.append(Block(name, start, start + size))
        start += size
    texts = [text.get_text().split() for text in figures.blocks_figure(blocks).axes[0].texts]
    assert sorted(texts) == sorted([name, f"{size:,}"] for name, size in sizes.items() if size)


def test_every_expert_has_a_colour_and_the_labels_stay_above_the_axis():
    assert set(router.EXPERTS) < set(figures.COLOURS)
    blocks = [Block("special", 0, 4), Block("byte", 4, 260), Block("latin", 260, 9000)]
    axes = figures.blocks_figure(blocks).axes[0]
    assert all(text.get_position()[1] > axes.get_ylim()[0] + 0.2 for text in axes.texts)


def test_the_trade_off_has_a_line_per_language_and_marks_the_choice():
    curve = pd.DataFrame(
        {"factor": [1, 2] * 2, "language": ["en", "en", "zh", "zh"], "relative": [1, 0.98, 1, 1.03]}
    )
    axes = figures.trade_off_figure(curve, 2.0, 0.97).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["en", "zh"]
    assert [text.get_text().strip() for text in axes.texts] == ["chosen: 2"]
