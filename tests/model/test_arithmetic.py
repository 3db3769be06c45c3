"""The arithmetic of notebook 03: the published sizes, bytes that autograd really holds, operations
counted one by one.
"""

import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moxin_lab.model import arithmetic
from moxin_lab.model.config import MoxinConfig
from tests.model.test_checkpointing import LAYERS, Watch, ids, loss_of, make

FULL = MoxinConfig()


def test_the_published_sizes_written_out():
    memory = arithmetic.training_memory(FULL, batch=1, sequence=4096).set_index("part")["bytes"]
    assert memory["weights, 16 bits"] == memory["gradients, 16 bits"] == 2 * 8_114_180_096
    assert memory["AdamW: 32-bit weights and two moments"] == 12 * 8_114_180_096
    one_block = 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14_336)
    assert memory["activations, checkpointing none"] == 36 * 4096 * one_block
    assert memory["activations, checkpointing full"] == 4096 * (36 * 2 * 4096 + one_block)
    assert memory["loss over all logits"] == 4096 * 32_000 * 10
    table = arithmetic.per_token(FULL, [4096, 32_768]).set_index("tokens")
    assert table.loc[32_768, "full cache, GiB"] / table.loc[32_768, "ring, GiB"] == 8.0
    assert table.loc[32_768, "ring, GiB"] == 0.5625


@pytest.mark.parametrize("name", ["none", "selective", "full"])
def test_a_block_more_holds_the_bytes_that_the_formula_says(name):
    held = []
    for blocks in (LAYERS, LAYERS + 1):
        model, tokens, watch = make(name, num_hidden_layers=blocks), ids(), Watch()
        with watch:
            loss = loss_of(model, tokens)
        gc.collect()
        held.append(watch.alive(but=[*model.parameters(), tokens]))
        assert loss.requires_grad
    formula = arithmetic.block_activation_bytes(model.config, name, element=4) * 2 * 30
    # "none": the CPU's norms also keep their float32 inner values, a few numbers a token; the
    # formula is the fused GPU's.
    assert formula <= held[1] - held[0] <= formula * (1.2 if name == "none" else 1.0)


def test_forward_and_decode_operations_are_those_that_the_counter_sees():
    model = make("none", sliding_window=None).eval()
    model.attention_backend = "reference"
    config, length = model.config, 24
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids(length)[:1])
    # The counter sees every pair, our count only those that the mask allows.
    pairs = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    unseen = pairs * (length * length - length * (length + 1) / 2)
    assert arithmetic.forward_flops(config, length) * length + unseen == counter.get_total_flops()
    step = arithmetic.decode_flops(config, length - 1)
    before = arithmetic.forward_flops(config, length - 1) * (length - 1)
    assert step == pytest.approx(arithmetic.forward_flops(config, length) * length - before)


def test_decoding_does_not_grow_beyond_the_window():
    assert arithmetic.decode_flops(FULL, 4095) == arithmetic.decode_flops(FULL, 30_000)
    assert arithmetic.decode_flops(FULL, 4094) < arithmetic.decode_flops(FULL, 4095)


def test_an_unknown_checkpointing_is_refused():
    with pytest.raises(
        ValueError, match="unknown checkpointing 'some': available are none, selective, full"
    ):
        arithmetic.block_activation_bytes(FULL, "some")
