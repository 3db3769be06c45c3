"""Long texts: the ring's losses are the full cache's, and a needle lies where its row says."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from moxin_lab.evaluation import comparison_figures, long_context
from moxin_lab.evaluation.scoring import Request, score
from moxin_lab.model.cache import FullCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.experiments import new_model

WINDOW, BOS = 8, 1
CONFIG = MoxinConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=WINDOW,
    max_position_embeddings=64,
    initializer_range=0.3,
)


class Words:
    """A tokenizer of whole words, as far as `needles` uses one."""

    def __init__(self):
        self.known = {}

    def __call__(self, text, add_special_tokens):
        pieces = text.replace("\n", " \n ").replace(".", " .").split(" ")
        return {
            "input_ids": [
                self.known.setdefault(piece, 10 + len(self.known)) for piece in pieces if piece
            ]
        }


@pytest.fixture(scope="module")
def model():
    return new_model(CONFIG, 0).eval()


def rows(length=33, count=3):
    return np.random.default_rng(0).integers(10, 300, size=(count, length))


def test_every_reader_gives_the_losses_of_a_single_pass(model):
    losses = long_context.read_long(model, rows(), bos_id=BOS)
    for name, each in (("ring", model), ("no window", long_context.with_window(model, None))):
        with torch.inference_mode():
            logits = each(torch.tensor(rows())[:, :-1]).log_softmax(-1)
        expected = -logits.gather(2, torch.tensor(rows())[:, 1:, None])[:, :, 0].double().numpy()
        np.testing.assert_allclose(losses[name], expected, atol=1e-4)
    np.testing.assert_allclose(losses["ring"], losses["full cache"], atol=1e-4)
    assert np.abs(losses["ring"] - losses["no window"])[:, : WINDOW - 1].max() < 1e-4
    assert np.abs(losses["ring"] - losses["no window"])[:, WINDOW:].max() > 1e-2
    assert model.config.sliding_window == WINDOW  # another window is another model


def test_a_model_that_begins_anew_reads_each_piece_behind_bos(model):
    losses = long_context.read_long(model, rows(), bos_id=BOS)["begun anew"]
    piece = [BOS, *rows()[1, 1 + WINDOW : 1 + 2 * WINDOW].tolist()]
    (single,) = score(model, [Request(piece, WINDOW)])
    assert losses[1, WINDOW : 2 * WINDOW].sum() == pytest.approx(single.nats, abs=1e-4)


def test_perplexity_is_that_of_the_mean_loss_in_its_range():
    nats = np.array([[1.0, 3.0, 2.0], [3.0, 1.0, 4.0]])
    table = long_context.by_position({"ring": nats}, [0, 2, 3], seed=0)
    assert table["perplexity"].tolist() == pytest.approx([np.exp(2.0), np.exp(3.0)])
    assert (table["low"] <= table["perplexity"]).all()
    assert table[["first", "last"]].to_numpy().tolist() == [[1, 2], [3, 3]]
    assert long_context.edges(8, 32) == [0, 2, 8, 16, 24, 32]


def test_rows_are_of_one_length_and_short_documents_are_joined():
    made = long_context.long_rows([[5] * 3, [6] * 9, [7] * 4], length=8, count=5, bos_id=BOS)
    assert made.tolist() == [[BOS, *[6] * 7], [BOS, *[7] * 4, *[5] * 3]]
    with pytest.raises(ValueError, match="3 tokens of text do not fill a row of 8"):
        long_context.long_rows([[5] * 3], length=8, count=5, bos_id=BOS)


def test_a_needle_lies_at_its_distance_and_each_place_is_right_equally_often():
    tokenizer = Words()
    items = long_context.needles(
        tokenizer, [range(200, 290)], distances=(9, 20), count=8, length=40, bos_id=BOS, seed=0
    )
    question = tokenizer(f"\n{long_context.NEEDLE}", False)["input_ids"]
    for item in items:
        assert len(item.tokens) == 40 and item.tokens[0] == BOS
        assert item.tokens[-len(question) :] == question
        word = item.choices[item.label]
        assert len(set(item.choices)) == 4
        assert [place for place, each in enumerate(item.tokens) if each == word] == [
            40 - 1 - item.distance
        ]
    assert sorted(item.label for item in items) == sorted([0, 1, 2, 3] * 4)
    assert [item.distance for item in items] == [9] * 8 + [20] * 8
    for wrong in ((3,), (38,)):
        with pytest.raises(ValueError, match="do not fit"):
            long_context.needles(
                tokenizer, [range(90)], distances=wrong, count=1, length=40, bos_id=BOS, seed=0
            )


class Copies(torch.nn.Module):
    """A model that says again what stood after the same token within its window: it retrieves."""

    def __init__(self, window):
        super().__init__()
        self.config = MoxinConfig(**{**vars(CONFIG), "sliding_window": window})
        self.lm_head = torch.nn.Linear(1, 1)

    def forward(self, ids, cache, logits_to_keep=None):
        cache.seen = torch.cat([getattr(cache, "seen", ids[:, :0]), ids], dim=1)
        logits = torch.zeros(len(ids), 1, self.config.vocab_size)
        for row, text in enumerate(cache.seen.tolist()):
            visible = text[-(self.config.sliding_window or len(text)) :]
            for earlier, after in itertools.pairwise(visible):
                if earlier == text[-1]:
                    logits[row, 0, after] = 5.0
        return logits


def test_a_model_that_copies_finds_what_lies_in_its_window_and_nothing_beyond():
    items = long_context.needles(
        Words(),
        [range(200, 290)],
        distances=(8, 12, 20, 28),
        count=8,
        length=40,
        bos_id=BOS,
        seed=0,
    )
    found = {
        name: long_context.find_needles((Copies(window), FullCache), items, chunk=7)
        for name, window in (("ring", 16), ("no window", None))
    }
    table = long_context.needle_table(found, seed=0).set_index(["reader", "distance"])
    assert table.loc["no window", "share"].tolist() == [1.0] * 4
    assert table.loc["ring", "share"].tolist()[:2] == [1.0, 1.0]
    assert table.loc[("ring", 28), "gain"] == 0 and table.loc[("ring", 28), "share"] == 0
    said = long_context.sentence(table.reset_index(), 16, "it")
    assert "within one window 100 %" in said and "beyond one window 0 %" in said
    numbers = long_context.numbers(
        long_context.by_position({"ring": np.ones((2, 4))}, [0, 4], seed=0), table.reset_index()
    )
    assert {number.name for number in numbers} == {"long_text_perplexity", "needles_found"}


def test_the_figures_show_each_reader_and_their_words_have_the_values():
    table = pd.DataFrame(
        {
            "reader": ["ring", "ring"],
            "distance": [4, 12],
            "share": [1.0, 0.25],
            "low": [0.7, 0.1],
            "high": [1.0, 0.5],
            "items": [8, 8],
        }
    )
    figure = comparison_figures.needles({"m": (table, 8), "n": (table, 4)})
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        "m, window of 8 tokens",
        "n, window of 4 tokens",
    ]
    assert "m, window 8, ring: 100 at 4 tokens, 25 at 12 tokens" in comparison_figures.needles_alt(
        {"m": (table, 8)}
    )
    positions = long_context.by_position(
        {"ring": np.ones((2, 4)), "no window": np.full((2, 4), 2.0)}, [0, 4], seed=0
    )
    labels = comparison_figures.positions(positions, 2).axes[0].get_legend().get_texts()
    assert {"ring", "no window"} <= {text.get_text() for text in labels}
    assert "no window 7, ring 3" in comparison_figures.positions_alt(positions)
