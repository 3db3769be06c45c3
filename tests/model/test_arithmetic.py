"""The arithmetic of notebook 03 equals the published sizes, the bytes that autograd holds, and the
FLOPs that PyTorch counts.
"""

import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moxin_lab.model import arithmetic
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.held import Watch
from tests.model.test_checkpointing import LAYERS, ids, loss_of, make

FULL = MoxinConfig()


def test_published_sizes_give_these_bytes():
    memory = arithmetic.training_memory(FULL, batch=1, sequence=4096).set_index("part")["bytes"]
    assert memory["weights, 16 bits"] == memory["gradients, 16 bits"] == 2 * 8_114_180_096
    assert memory["AdamW: 32-bit weights and two moments"] == 12 * 8_114_180_096
    one_block = 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14_336)
    assert memory["activations, checkpointing none"] == 36 * 4096 * one_block
    assert memory["activations, checkpointing full"] == 4096 * (36 * 2 * 4096 + one_block)
    assert memory["loss over all logits"] == 4096 * 32_000 * 10
    table = arithmetic.cost_per_token(FULL, [4096, 32_768]).set_index("tokens")
    assert table.loc[32_768, "full cache, GiB"] / table.loc[32_768, "ring, GiB"] == 8.0
    assert table.loc[32_768, "ring, GiB"] == 0.5625


@pytest.mark.parametrize("name", ["none", "selective", "full"])
def test_one_more_block_holds_the_bytes_of_the_formula(name):
    held = []
    for blocks in (LAYERS, LAYERS + 1):
        model, tokens, watch = make(name, num_hidden_layers=blocks), ids(), Watch()
        with watch:
            loss = loss_of(model, tokens)
        gc.collect()
        held.append(watch.alive(but=[*model.parameters(), tokens]))
        assert loss.requires_grad
    formula = arithmetic.block_activation_bytes(model.config, name, element_bytes=4) * 2 * 30
    # "none": norms on the CPU also keep their float32 intermediate values, a few numbers per token;
    # the formula is that of the fused operations on a GPU.
    assert formula <= held[1] - held[0] <= formula * (1.2 if name == "none" else 1.0)


def test_forward_and_decode_flops_equal_those_that_pytorch_counts():
    model = make("none", sliding_window=None).eval()
    model.attention_backend = "reference"
    config, length = model.config, 24
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids(length)[:1])
    # The counter counts every pair, ours only those that the mask allows.
    pairs = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    masked = pairs * (length * length - length * (length + 1) / 2)
    assert arithmetic.forward_flops(config, length) * length + masked == counter.get_total_flops()
    step = arithmetic.decode_flops(config, length - 1)
    before = arithmetic.forward_flops(config, length - 1) * (length - 1)
    assert step == pytest.approx(arithmetic.forward_flops(config, length) * length - before)


def test_decoding_does_not_grow_beyond_the_window():
    assert arithmetic.decode_flops(FULL, 4095) == arithmetic.decode_flops(FULL, 30_000)
    assert arithmetic.decode_flops(FULL, 4094) < arithmetic.decode_flops(FULL, 4095)


def test_an_unknown_checkpointing_raises_an_error_with_the_available_names():
    with pytest.raises(
        ValueError, match="unknown checkpointing 'some': available are none, selective, full"
    ):
        arithmetic.block_activation_bytes(FULL, "some")
