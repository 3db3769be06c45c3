"""Kernels of joined projections: equal to the plain operations, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from moxin_lab.kernels import joined
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import rotary_angles, rotate


def gradients(outputs, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum((o * torch.randn(o.shape, generator=generator)).sum() for o in outputs)
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize(("batch", "length", "rows"), [(2, 19, 1), (2, 8, 2)])
def test_split_heads_equals_slices_and_the_rotation(batch, length, rows):
    heads, kv_heads, head_dim = 4, 2, 8
    config = MoxinConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    positions = torch.arange(length).expand(rows, -1) + 5 * torch.arange(rows)[:, None]
    cos, sin = rotary_angles(positions, config)
    width = (heads + 2 * kv_heads) * head_dim
    x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    found = joined.split_heads(x, cos, sin, heads, kv_heads)
    query, key, value = (
        part.view(batch, length, -1, head_dim)
        for part in x.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=-1)
    )
    expected = (rotate(query, cos, sin), rotate(key, cos, sin), value)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(gradients(found, [x], 2), gradients(expected, [x], 2))


def test_swiglu_equals_its_definition():
    x = torch.randn(3, 5, 2 * 45, generator=torch.Generator().manual_seed(1)) * 3
    x.requires_grad_()
    gate, up = x.chunk(2, dim=-1)
    found, expected = joined.swiglu(x), F.silu(gate) * up
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients([found], [x], 2), gradients([expected], [x], 2))
