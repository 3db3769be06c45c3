"""Guarantees of `moxin-lab bench extension`: old ids keep their logits when rows are added, a
training moves the chosen rows and no other, and pages are cut between characters.
"""

import dataclasses

import pytest
import torch

from moxin_lab.bench import extension
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM

CONFIG = MoxinConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=None,
    initializer_range=0.2,
    tie_word_embeddings=True,
)


def model(tied=True):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    return MoxinForCausalLM(config, generator=torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_old_ids_keep_their_logits_when_rows_are_added(tied):
    base = model(tied)
    rows = torch.full((3, 32), 0.5)
    longer = extension.with_rows(base, rows)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(longer(ids)[..., :40], base(ids))
    assert longer.config.vocab_size == 43
    assert torch.equal(longer.model.embed_tokens.weight[40:], rows)
    assert torch.equal(longer.lm_head.weight[40:], rows)
    assert (longer.lm_head.weight is longer.model.embed_tokens.weight) == tied


def test_training_moves_the_chosen_rows_and_no_other():
    rows = 0.2 * torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    longer = extension.with_rows(model(), rows)
    before = {name: value.clone() for name, value in longer.state_dict().items()}
    batches = torch.tensor([40, 41, 42] * 7)[:21].repeat(30, 2, 1)
    losses = extension.train_rows(longer, batches, [40, 41, 42], learning_rate=0.05)
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]
    after = longer.state_dict()
    for name in before:
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(after[name][:40], before[name][:40])
            assert not torch.equal(after[name][40:], before[name][40:])
        else:
            assert torch.equal(after[name], before[name])


def test_pages_are_cut_between_characters_and_lose_only_the_last_part():
    text = "日本語の文章です。" * 20
    parts = extension._parts(text, 100)
    assert text.startswith("".join(parts))
    assert all(90 < len(part.encode()) <= 100 for part in parts)
    assert extension._parts("短い", 100) == ["短い"]
