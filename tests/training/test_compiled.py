"""Guarantees of moxin_lab.training.compiled: the same losses and gradients, nothing left behind."""

import copy

import pytest
import torch
import torch._dynamo

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining.trainer import token_loss
from moxin_lab.training.compiled import GraphedPass, compiled_blocks

VOCAB = 64


def make_model():
    config = MoxinConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        max_position_embeddings=64,
    )
    return MoxinForCausalLM(config, generator=torch.Generator().manual_seed(0)).train()


def make_batch(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(VOCAB, (3, length), generator=generator),
        "labels": torch.randint(VOCAB, (3, length), generator=generator),
        "document_ids": (torch.rand(3, length, generator=generator) < 0.2).long().cumsum(1),
    }


def loss_and_gradients(model, batch, mixed):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss = token_loss(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("mixed", "bound"), [(False, 2e-6), (True, 2e-2)])
def test_compiled_blocks_give_the_loss_and_gradients_of_the_blocks(monkeypatch, mixed, bound):
    # What is checked here is the traced graph, with its joined projections; making machine code of
    # it is PyTorch's part and takes a minute.
    plain_compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, **options: plain_compile(module, backend="aot_eager", **options),
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, eager = make_model(), make_model()
    with compiled_blocks(model.model.layers, on=True):
        for length, seed in ((16, 1), (16, 2), (32, 3)):
            batch = make_batch(length, seed)
            loss, gradients = loss_and_gradients(model, batch, mixed)
            expected, reference = loss_and_gradients(eager, batch, mixed)
            assert loss == pytest.approx(expected, rel=bound)
            for name, gradient in gradients.items():
                error = (gradient - reference[name]).norm() / reference[name].norm()
                assert error < bound, name
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # one for each row length, for all blocks
    assert not counters["graph_break"]


def test_a_block_is_compiled_within_the_context_only_and_keeps_its_parameters():
    model = make_model()
    names, first = list(model.state_dict()), model.model.layers[0]
    weight = first.mlp.up_proj.weight
    with pytest.raises(KeyboardInterrupt), compiled_blocks(model.model.layers, on=True):
        assert all(block._compiled_call_impl is not None for block in model.model.layers)
        raise KeyboardInterrupt
    assert all(block._compiled_call_impl is None for block in model.model.layers)
    assert list(model.state_dict()) == names and first.mlp.up_proj.weight is weight
    copy.deepcopy(model)  # compiled code cannot be copied
    with compiled_blocks(model.model.layers, on=False):
        assert all(block._compiled_call_impl is None for block in model.model.layers)


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="a CUDA graph needs a GPU; ran on an H200 for reports/released/pretraining-small",
)
def test_a_graph_gives_the_gradients_of_each_batch_and_of_each_shape():
    model, eager = make_model().cuda(), make_model().cuda()

    def sums(batch):
        return {"loss": token_loss(model, batch)}

    graphed = GraphedPass(sums, model.parameters())
    with compiled_blocks(model.model.layers, on=True):
        for length, seed in ((16, 1), (16, 2), (16, 1), (32, 3), (16, 2)):
            batch = {name: ids.cuda() for name, ids in make_batch(length, seed).items()}
            found = graphed.load(batch)
            graphed.replay()
            eager.zero_grad()
            loss = token_loss(eager, batch)
            loss.backward()
            assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
            for (name, one), other in zip(
                model.named_parameters(), eager.parameters(), strict=True
            ):
                error = (one.grad - other.grad).norm() / other.grad.norm()
                assert error < 2e-3, name  # float32 products may be tf32 on a GPU
