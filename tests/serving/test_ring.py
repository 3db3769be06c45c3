"""Rows of different ages in one ring get the logits that they would get alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.model.cache import RollingCache
from moxin_lab.serving import ring as ring_module
from moxin_lab.serving.ring import SharedRing
from tests.posttraining.examples import make_model

WINDOW = 8
MODEL = make_model(sliding_window=WINDOW, max_position_embeddings=256)


class Row:
    """A sequence, its logits in the shared ring, and those that it gets in a ring of its own."""

    def __init__(self, ids):
        self.alone = RollingCache(MODEL.config, 1)
        self.logits = self.expected = MODEL(torch.tensor([ids]), cache=self.alone)[0, -1]

    def step(self):
        token = int(self.expected.argmax())
        self.expected = MODEL(torch.tensor([[token]]), cache=self.alone)[0, -1]
        return token


def read(ids):
    prompt = RollingCache(MODEL.config, 1)
    MODEL(torch.tensor([ids]), cache=prompt)
    return prompt


@torch.inference_mode()
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_row_is_as_if_alone_whatever_joins_leaves_or_moves(data):
    shared = SharedRing(MODEL.config, 3, num_slots=WINDOW)
    rows: dict[int, Row] = {}
    for _ in range(data.draw(st.integers(5, 40))):
        free = [row for row in range(3) if row not in rows]
        action = data.draw(st.sampled_from(["step", "step", "admit", "release", "move"]))
        if action == "admit" and free:
            ids = data.draw(st.lists(st.integers(3, 258), min_size=1, max_size=20))
            shared.admit(free[0], read(ids))
            rows[free[0]] = Row(ids)
        elif action == "release" and rows:
            row = data.draw(st.sampled_from(sorted(rows)))
            shared.release(row)
            del rows[row]
        elif action == "move" and rows and free:
            row = data.draw(st.sampled_from(sorted(rows)))
            shared.move(row, free[-1])
            rows[free[-1]] = rows.pop(row)
        elif rows:
            tokens = torch.zeros(3, 1, dtype=torch.int64)
            for place, row in rows.items():
                tokens[place] = row.step()
            logits = MODEL(tokens, cache=shared)[:, -1]
            shared.length -= 1  # the model has committed the step; `advance` does it here
            shared.advance()
            for place, row in rows.items():
                torch.testing.assert_close(logits[place], row.expected, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_clock_is_set_back_without_a_trace(monkeypatch):
    monkeypatch.setattr(ring_module, "LATEST", 3 * WINDOW)
    shared = SharedRing(MODEL.config, 2, num_slots=WINDOW)
    view, row = shared.first(1), Row([5, 6, 7])
    shared.admit(0, read([5, 6, 7]))
    for _ in range(5 * WINDOW):
        view.follow(shared)
        logits = MODEL(torch.tensor([[row.step()]]), cache=view)[0, -1]
        shared.advance()
        torch.testing.assert_close(logits, row.expected, atol=2e-4, rtol=1e-4)
    assert shared.length < 4 * WINDOW


@torch.inference_mode()
def test_a_cleared_row_leaves_no_nan_to_its_successor():
    shared = SharedRing(MODEL.config, 1, num_slots=WINDOW)
    shared.keys.fill_(torch.nan)
    shared.values.fill_(torch.nan)
    shared.clear(0)
    shared.admit(0, read([9]))
    row = Row([9])
    logits = MODEL(torch.tensor([[row.step()]]), cache=shared)[0, -1]
    torch.testing.assert_close(logits, row.expected, atol=2e-4, rtol=1e-4)


def test_a_taken_row_is_refused():
    shared = SharedRing(MODEL.config, 1, num_slots=WINDOW)
    shared.admit(0, read([9]))
    with pytest.raises(ValueError, match="row 0 is taken"):
        shared.admit(0, read([9]))
