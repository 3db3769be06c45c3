"""Figures: labels state everything that colours state, and text is escaped in HTML."""

from moxin_lab.tokenizer import figures, routed
from moxin_lab.tokenizer.routed import Block


def test_each_run_is_labelled_with_its_expert_and_escaped():
    html = figures.runs_html(routed.route("<b> 文"), "a & b", "tiny")
    assert (
        html.count("<li") == 2 and "<b>" not in html and "&lt;b&gt;" in html and "a &amp; b" in html
    )
    assert (
        ">latin</span>" in html and ">han</span>" in html and "␣文" in html and "tiny scale" in html
    )


def test_every_block_is_labelled_with_its_size_whatever_its_width():
    sizes = {
        "special": 4,
        "byte": 256,
        "shared": 1,
        "latin": 5000,
        "han": 1500,
        "kana": 0,
        "hangul": 800,
        "other": 0,
    }
    blocks, start = [], 0
    for name, size in sizes.items():
        blocks.append(Block(name, start, start + size))
        start += size
    texts = [text.get_text().split() for text in figures.blocks_figure(blocks).axes[0].texts]
    assert sorted(texts) == sorted([name, f"{size:,}"] for name, size in sizes.items())
